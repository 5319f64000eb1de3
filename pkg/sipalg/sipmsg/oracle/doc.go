// Package oracle holds the differential test of sipmsg against the parsers of gosip
// and sipgo. It is a module of its own, so that their dependencies are none of
// edged's. There is no code in it but the test:
//
//	message ─┬─ sipmsg ─┐
//	         ├─ gosip ──┼─► the fields that routing needs ─► equal, or a known deviation
//	         └─ sipgo ──┘
package oracle

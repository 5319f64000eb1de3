// Package sipmsg is a lossless SIP codec (RFC 3261 §7, §18.3, §25). The bytes that
// came in are the truth: Parse indexes them, typed views read them where they
// stand, and an Editor lists what to change and copies the rest as it is.
//
//	stream ─ Framer ─► one message ─► Message.Parse ─► views: TopVia, From, Elements ...
//	datagram ────────────────┘             │
//	                                       └─► Editor: replace, insert, delete ─► AppendTo ─► bytes out
//
// It is not a SIP stack: no sockets, timers, transactions or dialogs, and it never
// prints a message from a model, so unknown methods, header fields and bodies pass
// in order and untouched. It checks only what routing needs; see check.go.
//
// No view may be used after the bytes given to Parse have changed. A Message and
// an Editor are reusable and belong to one goroutine at a time.
package sipmsg

// Package schema holds the tables of H.225.0 v7, H.245 v16, H.235, H.460.18/.19,
// T.124 and T.125 for package per.
//
// The *.schema files are their source, in a notation of our own: names, kinds,
// ranges and extension markers as the Recommendations have them. H.450 and what
// non-standard fields carry is not in there; it stays opaque octets. It holds no
// rule of a protocol; those are where the protocol is.
//
//	*.schema ─► go generate (gen) ─► tables.go ─► Tables() ─► per.NewDecoder
package schema

import "edged.dev/edged/internal/per"

//go:generate go run ./gen

// Tables returns the schema of all the protocols. It must not be changed.
func Tables() *per.Schema { return &tables }

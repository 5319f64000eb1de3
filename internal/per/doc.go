// Package per reads, edits and writes aligned PER (ITU-T X.691), driven by tables.
//
// It is not a compiler of ASN.1 and makes no Go types: a Schema says how the
// bits lie, a Decoder turns a message into a Tree of Nodes that know their bits
// in the source, and an Editor changes some of them. What is not changed is
// never re-encoded: the sender's extension bitmaps, unknown additions, long
// lengths and everything else that the tables do not know stay as they came.
//
//	bytes ─► Decoder.Decode ─► Tree (refs, spans) ─► view of a protocol
//	                             │
//	                             ├─ same size:  patched in place
//	Editor.Set… Replace Drop Add ┤
//	                             └─ other size: rewritten from the innermost open
//	                                type or OCTET STRING, lengths mended outward
//	Editor.Apply ─► bytes, decoded again and compared with the source
//	Value ─► Schema.Encode ─► bytes
//
// The numbers of clauses are those of X.691 (07/2002).
package per

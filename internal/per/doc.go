// Package per reads, edits and writes aligned PER (X.691, clauses as of 2002) by
// tables. It is not a compiler of ASN.1 and makes no Go types. What an edit does
// not change is never re-encoded: extension bitmaps, unknown additions and all
// else stay as they came.
//
//	bytes ─► Decoder.Decode ─► Tree (refs, spans) ─► view of a protocol
//	                             │
//	Editor.Set… Replace Drop Add ┤ same size: patched in place
//	                             │ other size: rewritten from the innermost open type
//	                             └ or OCTET STRING, lengths mended outward
//	Editor.Apply ─► bytes, decoded again and compared with the source
//	Value ─► Schema.Encode ─► bytes
package per

package sdp

import "bytes"

// EditParts appends body to dst with f applied to each leaf that is no session description: body itself, or the
// parts of a multipart (RFC 2046 §5.1) at any depth. It is the counterpart of [RewriteBody] for what else a
// message carries. F returns what to put in the part's place, nil to leave it. Preamble, boundaries, headers
// and session descriptions keep their bytes, but for a Content-Length of a part that was true before. F undoes
// a part's transfer encoding itself; a Content-Encoding stays, since many readers pass over it. On error dst is returned as it was.
func EditParts(dst, contentType, body []byte, f func(p Part) []byte) (out []byte, changed bool, err error) {
	e := partEditor{f: f}
	out, err = e.edit(dst, entity{head: partHead{contentType: contentType}, body: body}, 0)
	if err != nil {
		return dst, false, err
	}
	return out, e.changed, nil
}

type partEditor struct {
	f       func(p Part) []byte
	parts   int
	changed bool
}

func (e *partEditor) edit(dst []byte, in entity, depth int) ([]byte, error) {
	if IsMultipart(in.head.contentType) {
		return e.multipart(dst, in, depth)
	}
	if IsSDP(in.head.contentType) {
		return append(dst, in.body...), nil
	}
	with := e.f(in.part(depth))
	if with == nil {
		return append(dst, in.body...), nil
	}
	e.changed = e.changed || !bytes.Equal(with, in.body)
	return append(dst, with...), nil
}

func (e *partEditor) multipart(dst []byte, in entity, depth int) ([]byte, error) {
	split, err := newSplitter(in, depth)
	if err != nil {
		return dst, err
	}
	pos := 0
	for {
		child, at, ok, err := split.next(&e.parts)
		if err != nil {
			return dst, err
		}
		if !ok {
			return append(dst, in.body[pos:]...), nil
		}
		headEnd := len(dst) + at - pos
		dst = append(dst, in.body[pos:at]...)
		if dst, err = e.edit(dst, child, depth+1); err != nil {
			return dst, err
		}
		dst = child.head.fixLength(dst, headEnd, len(child.body))
		pos = at + len(child.body)
	}
}

package ils

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/ils/ber"
)

// search answers a SearchRequest (RFC 4511 §4.5.2). As with Microsoft's ILS the scope does not matter: the
// base is a suffix of the names. A lifetime in the filter refreshes the visitor's own entries that match.
func (d *directory) search(v *visitor, m message, reply func([]byte) error) error {
	f, filter, err := m.search()
	if err != nil {
		return reply(result(m.id, opSearchDone, resultProtocol))
	}
	want, limit, ok := selection(m)
	if !ok {
		return reply(result(m.id, opSearchDone, resultProtocol))
	}
	base, ttl := foldDN(f.dn.Of(m.raw)), f.ttl(m.raw)
	found, code := d.matching(v, m.raw, filter, base, ttl, want, limit)
	for _, e := range found {
		if err := reply(envelope(m.id, e)); err != nil {
			return err
		}
	}
	return reply(result(m.id, opSearchDone, code))
}

// matching returns the entries of an answer, as SearchResultEntry.
func (d *directory) matching(v *visitor, raw []byte, filter ber.Element, base string, ttl time.Duration, want choice, limit int) (out [][]byte, code int32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now, size := time.Now(), 0
	d.sweepLocked(now)
	for dn, e := range d.entries {
		if !strings.HasSuffix(dn, base) || !e.matches(raw, filter) {
			continue
		}
		if ttl > 0 && e.owner == v.host {
			e.expires = now.Add(ttl)
		}
		entry := e.encode(want)
		if size += len(entry); len(out) == limit || size > maxAnswerBytes {
			return out, resultSizeLimit
		}
		out = append(out, entry)
	}
	return out, resultOK
}

// choice is what of an entry was asked for.
type choice struct {
	names     []string // empty: all
	typesOnly bool
}

// selection reads sizeLimit, typesOnly and the attributes of a search.
func selection(m message) (c choice, limit int, ok bool) {
	w := ber.Walk(m.raw, m.op)
	var at [8]ber.Element // baseObject, scope, derefAliases, sizeLimit, timeLimit, typesOnly, filter, attributes
	for i := range at {
		if at[i], ok = w.Next(); !ok {
			return c, 0, false
		}
	}
	n, fits := ber.Int(at[3].Of(m.raw))
	if !fits || n < 0 {
		return c, 0, false
	}
	limit = maxAnswer
	if n > 0 {
		limit = min(limit, int(n))
	}
	c.typesOnly = !bytes.Equal(at[5].Of(m.raw), []byte{0})
	w = ber.Walk(m.raw, at[7])
	for a, ok := w.Next(); ok && len(c.names) <= maxAttributes; a, ok = w.Next() {
		name := string(a.Of(m.raw))
		if name == "*" {
			c.names = nil
			break
		}
		c.names = append(c.names, storedAs(name))
	}
	return c, limit, w.Err() == nil
}

// encode writes a SearchResultEntry. The names are those that the entry was written with.
func (e *dirEntry) encode(want choice) []byte {
	var attrs []byte
	for _, a := range e.attrs {
		if len(want.names) > 0 && !slices.Contains(want.names, storedAs(a.name)) {
			continue
		}
		var vals []byte
		for _, v := range a.values {
			if !want.typesOnly {
				vals = ber.Append(vals, ber.OctetString, v)
			}
		}
		attrs = ber.Append(attrs, ber.Sequence, ber.Append(nil, ber.OctetString, []byte(a.name)), ber.Append(nil, ber.Set, vals))
	}
	return ber.Append(nil, opEntry, ber.Append(nil, ber.OctetString, e.dn), ber.Append(nil, ber.Sequence, attrs))
}

// matches evaluates a filter (RFC 4511 §4.5.1.7) whose depth has been checked. What is unknown is false.
func (e *dirEntry) matches(raw []byte, f ber.Element) bool {
	w := ber.Walk(raw, f)
	switch f.Tag {
	case filterAnd, filterOr:
		for c, ok := w.Next(); ok; c, ok = w.Next() {
			if e.matches(raw, c) != (f.Tag == filterAnd) {
				return f.Tag == filterOr
			}
		}
		return f.Tag == filterAnd
	case filterNot:
		c, ok := w.Next()
		return ok && !e.matches(raw, c)
	case filterEqual, filterApprox, filterGreater, filterLess:
		return e.asserts(raw, f)
	case filterPresent:
		return e.index(string(f.Of(raw))) >= 0 || strings.EqualFold(string(f.Of(raw)), "objectclass")
	case filterSubstr:
		return e.contains(raw, f)
	}
	return false
}

// asserts compares an attribute without regard to case. "%" stands for any value, and a lifetime is an order,
// not a question ([MS-TAIL] 3.5.4).
func (e *dirEntry) asserts(raw []byte, f ber.Element) bool {
	w := ber.Walk(raw, f)
	name, _ := w.Next()
	value, _ := w.Next()
	want := value.Of(raw)
	if k, _ := attributeKind(name.Of(raw)); k == kindTTL || k == kindSeconds {
		return true
	}
	i := e.index(string(name.Of(raw)))
	if i < 0 {
		return false
	}
	return slices.ContainsFunc(e.attrs[i].values, func(v []byte) bool {
		order := bytes.Compare(bytes.ToLower(v), bytes.ToLower(want))
		switch {
		case f.Tag == filterGreater:
			return order >= 0
		case f.Tag == filterLess:
			return order <= 0
		}
		return string(want) == "%" || order == 0
	})
}

// contains evaluates SubstringFilter: initial [0], any [1], final [2].
func (e *dirEntry) contains(raw []byte, f ber.Element) bool {
	w := ber.Walk(raw, f)
	name, _ := w.Next()
	parts, _ := w.Next()
	i := e.index(string(name.Of(raw)))
	return i >= 0 && slices.ContainsFunc(e.attrs[i].values, func(v []byte) bool {
		rest, w := bytes.ToLower(v), ber.Walk(raw, parts)
		for p, ok := w.Next(); ok; p, ok = w.Next() {
			want := bytes.ToLower(p.Of(raw))
			at := bytes.Index(rest, want)
			if at < 0 || p.Tag == 0x80 && at > 0 || p.Tag == 0x82 && !bytes.HasSuffix(rest, want) {
				return false
			}
			rest = rest[at+len(want):]
		}
		return true
	})
}

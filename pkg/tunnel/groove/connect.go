package groove

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

// maxConnect bounds a Connect command, minConnect is one with an empty token and one character of a name.
const maxConnect, minConnect = 8192, 13

// errNotConnect says that a stream does not begin with a Connect of SSTP.
var errNotConnect = errors.New("no Connect of SSTP 1.5 or 1.6")

// Connect is the command that begins a connection of SSTP ([MS-GRVSSTP] §2.2.1).
type Connect struct {
	// Minor is the version after 1: 5 (Groove 2007) or 6 (SharePoint Workspace 2010).
	Minor uint8
	// Target names the device that is called, Sources those that call.
	Target  string
	Sources []string
	// Product is the caller's, e.g. "Groove Client 4.2 2623".
	Product string
	// Len is the length of the command.
	Len int
}

// ParseConnect reads the command that b begins with. It returns more if b is too short to tell, which it never is from
// 8192 bytes on. No document that could be had tells the byte order of the lengths: one is right if with it the command
// ends where it says.
func ParseConnect(b []byte) (c Connect, more bool, err error) {
	if len(b) > 0 && b[0] != 1 {
		return Connect{}, false, errNotConnect
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		c, m, err := parseConnect(b, order)
		if err == nil && !m {
			return c, false, nil
		}
		more = more || m
	}
	if !more {
		err = errNotConnect
	}
	return Connect{}, more, err
}

// parseConnect reads the command in one byte order.
func parseConnect(b []byte, order binary.ByteOrder) (c Connect, more bool, err error) {
	const fixed = 6 // command, length, version, a zero
	if len(b) < fixed {
		return c, true, nil
	}
	c.Len = int(order.Uint16(b[1:]))
	c.Minor = b[4]
	if c.Len < minConnect || c.Len > maxConnect || b[3] != 1 || c.Minor != 5 && c.Minor != 6 || b[5] != 0 {
		return c, false, errNotConnect
	}
	if len(b) < c.Len {
		return c, true, nil
	}
	r := reader{b: b[fixed:c.Len]}
	c.Target = r.text()
	for range r.octet() {
		c.Sources = append(c.Sources, r.text())
	}
	r.skip(order)
	c.Product = r.text()
	r.text() // capabilities
	if r.bad || len(r.b) > 0 || c.Target == "" {
		return c, false, errNotConnect
	}
	return c, false, nil
}

// Relay returns the host that Target names: what is between "://" and the next "/", ":" or ";", or all of it, in
// small letters.
func (c Connect) Relay() string { return hostOf(c.Target) }

func hostOf(url string) string {
	if _, rest, ok := strings.Cut(url, "://"); ok {
		url = rest
	}
	if i := strings.IndexAny(url, "/:;"); i >= 0 {
		url = url[:i]
	}
	return strings.ToLower(url)
}

// reader takes fields off a command; bad says that one was not there.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) octet() uint8 {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// text reads printable ASCII up to a NUL.
func (r *reader) text() string {
	text, rest, ok := bytes.Cut(r.b, []byte{0})
	if !ok || bytes.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
		r.bad, r.b = true, nil
		return ""
	}
	r.b = rest
	return string(text)
}

// skip passes over a field that has its length before it.
func (r *reader) skip(order binary.ByteOrder) {
	if len(r.b) < 2 || len(r.b)-2 < int(order.Uint16(r.b)) {
		r.bad, r.b = true, nil
		return
	}
	r.b = r.b[2+int(order.Uint16(r.b)):]
}

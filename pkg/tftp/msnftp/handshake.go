package msnftp

import (
	"bytes"
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"net"

	"edged.dev/edged/pkg/pinhole"
)

// admitted is a connection that Admit has spoken on; Serve goes on where that ended.
type admitted struct {
	net.Conn
	rest   []byte
	octets int
	// hello is what the file's receiver said, nil if it is the sender that dialled, which knows version.
	hello   *hello
	version string
}

// hello is how the file's receiver introduced itself, with a cookie that is right.
type hello struct {
	version string
	// lines are VER and USR as the sender is to get them.
	ver, usr []byte
}

// Admit fits pinhole.Request.Admit. A caller that is the file's receiver must know the cookie, before anybody else
// hears of him. One that is the sender is asked for the protocol's version only: it has nothing by which
// to prove itself, and its address must do.
func (t *Transfer) Admit(_ context.Context, from pinhole.Side, conn net.Conn) (net.Conn, error) {
	c := &admitted{Conn: conn}
	r := &reader{conn: conn, side: from, moved: func(_ pinhole.Side, n int) { c.octets += n }}
	err := t.meet(c, r)
	if c.rest = r.rest; err != nil {
		if t.Refused != nil {
			t.Refused(pinhole.AddrPortOf(conn.RemoteAddr()).Addr(), err)
		}
		return nil, err
	}
	return c, nil
}

func (t *Transfer) meet(c *admitted, r *reader) (err error) {
	switch {
	case r.side == t.Receiver:
		c.hello, err = t.hear(r)
	case !t.Plain: // else nobody knows which version the receiver will speak
		c.version, err = greet(r, []byte("VER "+secure+"\r\n"))
	}
	return err
}

// hear has the file's receiver introduce itself, and answers in the sender's stead.
func (t *Transfer) hear(r *reader) (*hello, error) {
	ver, err := r.line()
	if err != nil {
		return nil, fmt.Errorf("VER: %w", err)
	}
	version, err := dialect(ver.words(), t.Plain)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(r.conn, "VER "+version+ver.end()); err != nil {
		return nil, fmt.Errorf("VER: %w", err)
	}
	usr, err := r.line()
	if err != nil {
		return nil, fmt.Errorf("USR: %w", err)
	}
	h := &hello{version: version, ver: ver, usr: usr}
	words := usr.words()
	switch {
	case words[0] != "USR" || len(words) != 3:
		return nil, fmt.Errorf("%.20q instead of USR: %w", words[0], ErrProtocol)
	case t.Cookie == "" || subtle.ConstantTimeCompare([]byte(words[2]), []byte(t.Cookie)) != 1:
		return nil, fmt.Errorf("%.80q: %w", words[1], ErrCookie)
	case t.User != "":
		h.usr = bytes.Replace(usr, []byte(words[1]), []byte(t.User), 1)
	}
	return h, nil
}

// greet tells the sender the version, as the receiver would, and returns the sender's.
func greet(r *reader, ver []byte) (string, error) {
	if _, err := r.conn.Write(ver); err != nil {
		return "", fmt.Errorf("VER: %w", err)
	}
	l, err := r.line()
	if err != nil {
		return "", fmt.Errorf("VER: %w", err)
	}
	return dialect(l.words(), true)
}

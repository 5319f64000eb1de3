package groove

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Target is what a client calls.
type Target struct {
	// Relay is the relay's name, which stands in the URI.
	Relay string
	// Host is the relay's HOST or HOST:PORT, for the field Host and for the absolute URIs that proxies get.
	Host string
	// Proxied says that the connections lead to a proxy.
	Proxied bool
	// Authorize, if not nil, gives the value of Proxy-Authorization for a request; "" is none.
	Authorize func(method, uri string) string
}

// DialFunc opens a connection of TCP to the relay or the proxy. It may be called again while the virtual connection lives.
type DialFunc func(context.Context) (net.Conn, error)

// StatusError says that a relay or a proxy has answered a request otherwise than with 200.
type StatusError struct {
	Code string // three digits
	// Challenge are the values of Proxy-Authenticate.
	Challenge []string
}

// Error returns "status CODE".
func (e *StatusError) Error() string { return "status " + e.Code }

// errProtocol says that what answers is no relay.
var errProtocol = errors.New("not the answer of a relay")

// Dial builds a virtual connection: it is established when Dial returns. An end of ctx ends the attempt; a proxy that
// buffers is found out by nothing else. What goes wrong at the relay or a proxy is a [StatusError] or an error of the
// connection.
func Dial(ctx context.Context, m Mode, t Target, dial DialFunc) (*Conn, error) {
	if !isName(t.Relay) {
		return nil, fmt.Errorf("groove: %q is no relay's name", t.Relay)
	}
	d := dialling{Target: t, uri: target{relay: t.Relay, guid: newToken(guidLen), mode: m}, dial: dial}
	if m == LongLived {
		d.uri.length = longLength
	}
	var conn net.Conn
	var err error
	switch m {
	case LongLived:
		conn, err = d.longLived(ctx)
	case KeepAlive:
		conn, err = d.keepAlive(ctx)
	case Polling:
		conn, err = d.polling(ctx)
	default:
		err = errors.New("no such mode")
	}
	if err != nil {
		return nil, fmt.Errorf("groove %v: %w", m, err)
	}
	return &Conn{Conn: conn, Mode: m, Relay: t.Relay}, nil
}

// dialling is a virtual connection that is being built, or carried by requests.
type dialling struct {
	Target
	uri  target
	dial DialFunc
}

// head returns the header of a request.
func (d *dialling) head(method string, length int64) []byte {
	uri := d.uri.String()
	if d.Proxied {
		uri = "http://" + d.Host + uri + ",ID=" + newToken(16)
	}
	more := ""
	if d.Proxied && d.uri.mode != LongLived {
		more = "Proxy-Connection: Keep-Alive\r\n"
	}
	if d.Authorize != nil {
		if value := d.Authorize(method, uri); value != "" {
			more += "Proxy-Authorization: " + value + "\r\n"
		}
	}
	return request(method, uri, d.Host, d.uri.mode != LongLived, length, more)
}

// longLived builds a connection of that mode.
func (d *dialling) longLived(ctx context.Context) (_ net.Conn, err error) {
	get, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	post, err := d.dial(ctx)
	if err != nil {
		get.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		get.Close()
		post.Close()
	})
	refused := make(chan error, 1) // what the POST is answered, of which there is one
	established := make(chan *stream, 1)
	go watchPost(post, refused, established)
	br, left, err := d.longHandshake(get, post, refused)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		get.Close()
		post.Close()
		close(established)
		return nil, firstOf(ctx.Err(), err)
	}
	s := &stream{rc: get, wc: post, br: br, left: left, room: d.uri.length - int64(len(echo)), ended: func(string) {}}
	established <- s
	return s, nil
}

// firstOf returns why an attempt has ended: because it was given up, or else what has gone wrong.
func firstOf(given, err error) error {
	if given != nil {
		return given
	}
	return err
}

// longHandshake says the echo and waits for it, or until the POST is refused.
func (d *dialling) longHandshake(get, post net.Conn, refused <-chan error) (*bufio.Reader, int64, error) {
	if _, err := get.Write(d.head("GET", -1)); err != nil {
		return nil, 0, err
	}
	if _, err := post.Write(append(d.head("POST", d.uri.length), echo...)); err != nil {
		return nil, 0, err
	}
	br := bufio.NewReaderSize(get, maxHead)
	type answer struct {
		left int64
		err  error
	}
	answered := make(chan answer, 1) // of which there is one
	go func() {
		left, err := readEcho(br)
		answered <- answer{left, err}
	}()
	select {
	case a := <-answered:
		return br, a.left, a.err
	case err := <-refused:
		var status *StatusError
		if errors.As(err, &status) {
			get.Close()
		}
		get.SetReadDeadline(time.Now().Add(linger)) // the relay may have ended already what it had established
		if a := <-answered; a.err == nil {
			get.SetReadDeadline(time.Time{})
			return br, a.left, nil
		}
		return nil, 0, err
	}
}

// readEcho reads the header and the first octets of the GET's response, and returns how many may follow.
func readEcho(br *bufio.Reader) (left int64, err error) {
	h, err := readHead(br)
	if err != nil {
		return 0, err
	}
	if err := h.status(); err != nil {
		return 0, err
	}
	first := make([]byte, len(echo))
	if _, err := io.ReadFull(br, first); err != nil {
		return 0, err
	}
	if string(first) != echo || h.length < minLength {
		return 0, errProtocol
	}
	return h.length - int64(len(echo)), nil
}

// status returns the fault of a response that is no success.
func (h *head) status() error {
	switch {
	case h.first[1] != "200":
		return &StatusError{h.first[1], h.challenge}
	case h.chunked:
		return errProtocol
	}
	return nil
}

// watchPost reads what is answered to the POST of LongLived: nothing, as long as the connection lives.
func watchPost(post net.Conn, refused chan<- error, established <-chan *stream) {
	h, err := readHead(bufio.NewReaderSize(post, maxHead))
	if err == nil {
		if err = h.status(); err == nil {
			err = errProtocol
		}
	}
	refused <- err
	if s := <-established; s != nil {
		s.deaf()
	}
}

// requestTime bounds a request of KeepAlive or Polling that the server answers at once.
const requestTime = bodyTime

package proxydial

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	maxHeader = 64 << 10  // of an answer of the proxy
	maxBody   = 256 << 10 // of an error page that is read to keep the connection
	maxLegs   = 8         // requests of one login, those after a closed connection included
)

// StatusError is the answer of a proxy that does not connect.
type StatusError struct{ Code int }

func (e StatusError) Error() string {
	return fmt.Sprintf("the proxy answered %d %s", e.Code, http.StatusText(e.Code))
}

// attempt is a login that has begun, with the answer for the next request.
type attempt struct {
	login     login
	scheme    string
	challenge challenge // what value answers
	value     string    // of Proxy-Authorization
	more      bool      // the proxy's next challenge belongs to the same exchange
	stale     bool      // an old nonce was replaced once
}

// exchange says one request to a proxy until it is let through.
type exchange struct {
	d           *Dialer
	proxy       Proxy
	method, uri string
	host        string
	passed      func(status int) bool // whether the status means that the login is over and the request done

	conn  net.Conn
	br    *bufio.Reader
	limit *io.LimitedReader
	try   attempt
	turn  time.Duration // of the last request
}

// dialConnect opens a tunnel by CONNECT (RFC 9110 §9.3.6).
func (d *Dialer) dialConnect(ctx context.Context, p Proxy, target string) (Connected, error) {
	x := &exchange{d: d, proxy: p, method: http.MethodConnect, uri: target, host: target, passed: func(s int) bool { return s/100 == 2 }}
	if _, err := x.run(ctx); err != nil {
		return Connected{}, err
	}
	return Connected{x.rest(), x.turn, x.scheme()}, nil
}

// scheme names the login that was needed.
func (x *exchange) scheme() string {
	if x.try.scheme == "" {
		return "none"
	}
	return x.try.scheme
}

// rest returns the connection, with what the reader has taken too much of.
func (x *exchange) rest() net.Conn {
	if n := x.br.Buffered(); n > 0 {
		head, _ := x.br.Peek(n)
		return &headed{x.conn, head}
	}
	return x.conn
}

// headed is a connection of which some bytes were read already.
type headed struct {
	net.Conn
	head []byte // belongs to the reader
}

func (c *headed) Read(b []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.head)
	c.head = c.head[n:]
	return n, nil
}

// run says the request, and again with each answer to a challenge. The connection is open and idle afterwards; what is
// returned is the last response, its body unread.
func (x *exchange) run(ctx context.Context) (*http.Response, error) {
	for range maxLegs {
		resp, err := x.leg(ctx)
		if err != nil {
			x.drop()
			return nil, err
		}
		if x.passed(resp.StatusCode) {
			return resp, nil
		}
		err = StatusError{resp.StatusCode}
		switch {
		case resp.StatusCode == http.StatusProxyAuthRequired:
			err = x.challenged(ctx, resp)
		case resp.StatusCode == http.StatusUnauthorized && x.try.login != nil:
			err = x.d.refused(x.proxy, x.try.scheme) // so tinyproxy says it
		}
		if err != nil {
			x.drop()
			return nil, err
		}
	}
	x.drop()
	return nil, errors.New("the proxy never stops asking for a login")
}

// leg is one request and its answer, on a new connection if there is none.
func (x *exchange) leg(ctx context.Context) (*http.Response, error) {
	if x.conn == nil {
		conn, err := x.d.open(ctx, x.proxy)
		if err != nil {
			return nil, err
		}
		x.conn, x.limit = conn, &io.LimitedReader{R: conn}
		x.br = bufio.NewReader(x.limit)
	}
	release := guard(ctx, x.conn)
	began := time.Now()
	x.limit.N = maxHeader + maxBody
	resp, err := x.ask()
	x.turn = time.Since(began)
	if ended := release(); ended != nil {
		return nil, ended
	}
	return resp, err
}

func (x *exchange) ask() (*http.Response, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: edged\r\nProxy-Connection: keep-alive\r\n", x.method, x.uri, x.host)
	if x.try.value != "" {
		fmt.Fprintf(&b, "Proxy-Authorization: %s\r\n", x.try.value)
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(x.conn, b.String()); err != nil {
		return nil, fmt.Errorf("ask the proxy: %w", err)
	}
	for {
		resp, err := http.ReadResponse(x.br, &http.Request{Method: x.method})
		if err != nil {
			return nil, fmt.Errorf("answer of the proxy: %w", err)
		}
		if resp.StatusCode/100 != 1 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
}

// challenged prepares the answer to a 407.
func (x *exchange) challenged(ctx context.Context, resp *http.Response) error {
	offered := parseChallenges(resp.Header.Values("Proxy-Authenticate"))
	if !x.drain(ctx, resp) {
		x.drop()
	}
	if x.try.login == nil {
		if err := x.d.held(x.proxy); err != nil {
			return err
		}
		a, err := x.d.begin(ctx, x.proxy, offered, x.method, x.uri)
		x.try = a
		return err
	}
	c, ok := x.try.next(offered)
	switch {
	case x.try.more && ok && c.token != "":
		if x.conn == nil {
			return fmt.Errorf("the proxy closed the connection within %s", x.try.scheme)
		}
	case x.try.scheme == digest && ok && strings.EqualFold(c.params["stale"], "true") && !x.try.stale:
		x.try.stale = true // RFC 7616 §3.3: the login is right, the nonce is old
	default:
		return x.d.refused(x.proxy, x.try.scheme)
	}
	var err error
	x.try.challenge = c
	x.try.value, x.try.more, err = x.try.login.answer(ctx, c, x.method, x.uri)
	return err
}

// next returns the challenge that goes on from the one that was answered.
func (a attempt) next(offered []challenge) (challenge, bool) {
	for _, c := range offered {
		if c.scheme == a.scheme && strings.EqualFold(c.params["algorithm"], a.challenge.params["algorithm"]) {
			return c, true
		}
	}
	return challenge{}, false
}

// drain reads the body, so that the connection can be used again; it tells whether it can.
func (x *exchange) drain(ctx context.Context, resp *http.Response) bool {
	release := guard(ctx, x.conn)
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	ended := release()
	closing := resp.Close || strings.EqualFold(resp.Header.Get("Proxy-Connection"), "close")
	return err == nil && ended == nil && n < maxBody && !closing
}

// drop closes the connection.
func (x *exchange) drop() {
	if x.conn != nil {
		x.conn.Close()
		x.conn = nil
	}
}

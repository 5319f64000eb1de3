// Package groovepeer is a client of Groove's carriage for tests: LongLived and KeepAlive over plain sockets, as a
// client of 2007 speaks them. It was written from the documents alone ([MS-GRVHENC]) and shares no code with the product,
// which internal/archtest makes sure of; nor is it one: it does not care for speed, odd servers or cleaning up.
//
//	LongLived  GET ◄─ response without end      POST ─► body without end
//	KeepAlive  GET ◄─ response, GET ◄─ …        POST ─► 200, POST ─► 200, …
package groovepeer

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Ping is the handshake of both modes.
const Ping = "GroovePing: 1.0,Ping\r\n"

// Client says how to reach a relay.
type Client struct {
	// Relay is its name, Host its HOST or HOST:PORT.
	Relay, Host string
	// Proxied says that Dial leads to a proxy.
	Proxied bool
	Dial    func() (net.Conn, error)
	// Patience is how long a handshake may take.
	Patience time.Duration
	// GUID is used instead of a random one, where that is to be wrong.
	GUID string
}

// Climb tries LongLived, then KeepAlive, and tells which of them it has got.
func (c Client) Climb() (io.ReadWriteCloser, string, error) {
	s, err := c.LongLived()
	if err == nil {
		return s, "LongLived", nil
	}
	k, err2 := c.KeepAlive()
	if err2 != nil {
		return nil, "", errors.Join(err, err2)
	}
	return k, "KeepAlive", nil
}

func (c Client) guid() string {
	if c.GUID != "" {
		return c.GUID
	}
	return random(39)
}

func random(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	var b strings.Builder
	for range n {
		i, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			panic(err) // there is no randomness
		}
		b.WriteByte(letters[i.Int64()])
	}
	return b.String()
}

// uri returns the URI for a virtual connection.
func (c Client) uri(guid, parameters string) string {
	path := "/2.0/" + c.Relay + "/" + guid + "," + parameters
	if c.Proxied {
		return "http://" + c.Host + path + ",ID=" + random(8)
	}
	return path
}

func get(uri, host string, keep bool) string {
	return "GET " + uri + " HTTP/1.0\r\nAccept: */*\r\n" + rest(host, keep) + "\r\n"
}

func post(uri, host string, keep bool, length int) string {
	return "POST " + uri + " HTTP/1.0\r\nAccept: */*\r\nContent-Type: application/octet-stream\r\n" + rest(host, keep) +
		"Content-Length: " + strconv.Itoa(length) + "\r\n\r\n"
}

func rest(host string, keep bool) string {
	text := "User-Agent: Mozilla/4.0 (compatible; MSIE 5.5; Win32)\r\nHost: " + host +
		"\r\nPragma: no-cache\r\nCache-Control: no-cache\r\nCache-Control: max-age=0\r\nExpires: 0\r\n"
	if keep {
		text += "Connection: Keep-Alive\r\n"
	}
	return text
}

// dial connects, and sends what is first.
func (c Client) dial(first string) (net.Conn, *bufio.Reader, error) {
	conn, err := c.Dial()
	if err != nil {
		return nil, nil, err
	}
	conn.SetDeadline(time.Now().Add(c.Patience))
	if _, err := io.WriteString(conn, first); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, bufio.NewReader(conn), nil
}

// header reads a header, and returns the body's length.
func header(br *bufio.Reader) (length int, goesOn bool, err error) {
	status, err := br.ReadString('\n')
	if err != nil {
		return 0, false, err
	}
	words := strings.Fields(status)
	if len(words) < 2 || !strings.HasPrefix(words[0], "HTTP/1.") || words[1] != "200" {
		return 0, false, fmt.Errorf("answered %q", strings.TrimSpace(status))
	}
	length, goesOn = -1, words[0] == "HTTP/1.1"
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return 0, false, err
		}
		name, value, _ := strings.Cut(strings.ToLower(strings.TrimSpace(line)), ":")
		value = strings.TrimSpace(value)
		switch {
		case name == "":
			return length, goesOn, nil
		case name == "content-length":
			if length, err = strconv.Atoi(value); err != nil {
				return 0, false, err
			}
		case name == "connection":
			goesOn = value == "keep-alive" || goesOn && value != "close"
		}
	}
}

// Long is a connection of LongLived.
type Long struct {
	get, post net.Conn
	br        *bufio.Reader
}

// LongLived builds a connection: the GET, the POST with the ping, and the ping back.
func (c Client) LongLived() (*Long, error) {
	const length = 2147479552
	uri := func(guid string) string { return c.uri(guid, "ConnType=LongLived,ContentLength="+strconv.Itoa(length)) }
	guid := c.guid()
	g, br, err := c.dial(get(uri(guid), c.Host, false))
	if err != nil {
		return nil, err
	}
	p, _, err := c.dial(post(uri(guid), c.Host, false, length) + Ping)
	if err != nil {
		g.Close()
		return nil, err
	}
	l := &Long{g, p, br}
	n, _, err := header(br)
	if err == nil && n != length {
		err = fmt.Errorf("the response has the length %d", n)
	}
	if err == nil {
		err = ping(br)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("LongLived: %w", err)
	}
	g.SetDeadline(time.Time{})
	p.SetDeadline(time.Time{})
	return l, nil
}

func ping(r io.Reader) error {
	b := make([]byte, len(Ping))
	_, err := io.ReadFull(r, b)
	if err == nil && string(b) != Ping {
		err = fmt.Errorf("no ping but %q", b)
	}
	return err
}

// Read reads what the relay says.
func (l *Long) Read(b []byte) (int, error) { return l.br.Read(b) }

// Write says something to the relay.
func (l *Long) Write(b []byte) (int, error) { return l.post.Write(b) }

// Close closes both connections.
func (l *Long) Close() error { return errors.Join(l.get.Close(), l.post.Close()) }

// Keep is a connection of KeepAlive. There is always a GET that waits, unless what the last has brought is not read yet.
type Keep struct {
	c         Client
	guid      string
	get, post *sequence
	*io.PipeReader
	got *io.PipeWriter
}

// sequence is one of both sequences of requests.
type sequence struct {
	mu   sync.Mutex // guards what follows: it is closed by another goroutine
	conn net.Conn
	over bool
	// waits says that there is a request without its response.
	waits bool
	br    *bufio.Reader
}

// send sends a request, on a new connection if a proxy has closed the last.
func (s *sequence) send(c Client, request string, patience time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return net.ErrClosed
	}
	if s.conn == nil {
		conn, err := c.Dial()
		if err != nil {
			return err
		}
		s.conn, s.br = conn, bufio.NewReader(conn)
	}
	s.waits = true
	s.conn.SetDeadline(time.Now().Add(patience))
	_, err := io.WriteString(s.conn, request)
	return err
}

func (s *sequence) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits = false
}

// leave closes the connection for good, with a request on it: what the relay sees end is a request that waits.
func (s *sequence) leave(request string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.conn != nil {
		if !s.waits {
			_, _ = io.WriteString(s.conn, request)
		}
		s.conn.Close()
	}
}

// close closes the connection, so that the next request goes by another.
func (s *sequence) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// do sends a request and returns the body of its response.
func (s *sequence) do(c Client, request string, patience time.Duration) ([]byte, error) {
	if err := s.send(c, request, patience); err != nil {
		return nil, err
	}
	n, goesOn, err := header(s.br)
	if err != nil {
		return nil, err
	}
	if n < 0 || n > 32768 {
		return nil, fmt.Errorf("a body of %d octets", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.br, b); err != nil {
		return nil, err
	}
	s.answered()
	if !goesOn {
		s.close()
	}
	return b, nil
}

// KeepAlive builds a connection: a GET that waits, the POST with the ping, and the ping back.
func (c Client) KeepAlive() (*Keep, error) {
	k := &Keep{c: c, guid: c.guid(), get: &sequence{}, post: &sequence{}}
	k.PipeReader, k.got = io.Pipe()
	got := make(chan error, 1)
	go func() {
		b, err := k.get.do(c, get(k.uri(), c.Host, true), c.Patience)
		if err == nil && string(b) != Ping {
			err = fmt.Errorf("no ping but %q", b)
		}
		got <- err
	}()
	_, err := k.post.do(c, post(k.uri(), c.Host, true, len(Ping))+Ping, c.Patience)
	if err = errors.Join(err, <-got); err != nil {
		_ = k.Close()
		return nil, fmt.Errorf("KeepAlive: %w", err)
	}
	go k.getAll()
	return k, nil
}

// getAll gets what the relay says.
func (k *Keep) getAll() {
	for {
		b, err := k.get.do(k.c, get(k.uri(), k.c.Host, true), 2*time.Minute)
		if err == nil {
			_, err = k.got.Write(b)
		}
		if err != nil {
			k.got.CloseWithError(err)
			return
		}
	}
}

func (k *Keep) uri() string { return k.c.uri(k.guid, "ConnType=KeepAlive") }

// Write says something to the relay.
func (k *Keep) Write(b []byte) (n int, err error) {
	for n < len(b) {
		part := b[n:min(len(b), n+32768)]
		if _, err := k.post.do(k.c, post(k.uri(), k.c.Host, true, len(part))+string(part), time.Minute); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// Close closes both connections.
func (k *Keep) Close() error {
	_ = k.PipeReader.Close()
	k.get.leave(get(k.uri(), k.c.Host, true))
	k.post.close()
	return nil
}

// Connect is the command of SSTP that calls a device: version 1.5, little-endian or big-endian.
func Connect(device string, big bool) []byte {
	u16 := func(n int) []byte {
		if big {
			return []byte{byte(n >> 8), byte(n)}
		}
		return []byte{byte(n), byte(n >> 8)}
	}
	rest := append([]byte{1, 5, 0}, device+"\x00\x01dpp://client.example.org\x00"...)
	rest = append(rest, u16(4)...)
	rest = append(rest, "\x00\x01\x02\x03Groove Client 4.2 2623\x00\x00"...)
	return append(append([]byte{1}, u16(len(rest)+3)...), rest...)
}

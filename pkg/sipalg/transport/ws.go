package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// subprotocol is the one of SIP over WebSocket (RFC 7118 §4).
const subprotocol = "sip"

// requestMax bounds the HTTP request that opens a WebSocket.
const requestMax = 8 << 10

// errNoSIP: the peer does not speak the sip subprotocol, which RFC 7118 §4.1 demands.
var errNoSIP = errors.New("the sip subprotocol was not agreed")

// accept takes the HTTP request on c.nc and makes it a WebSocket. Any path is taken. A browser's
// Origin must be the host that it asks for or match Config.Origins (RFC 6455 §10.2).
func (c *conn) accept() error {
	limited := &io.LimitedReader{R: c.nc, N: requestMax}
	br := bufio.NewReaderSize(limited, firstBuf)
	req, err := http.ReadRequest(br)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	limited.N = 1 << 62 // it is a stream from here on
	w := &hijack{nc: c.nc, br: br, header: http.Header{}}
	ws, err := websocket.Accept(w, req, c.wsOptions())
	if err != nil {
		return err
	}
	return c.setWS(ws)
}

func (c *conn) wsOptions() *websocket.AcceptOptions {
	return &websocket.AcceptOptions{
		Subprotocols: []string{subprotocol}, OriginPatterns: c.cfg.Origins,
		OnPingReceived: c.pinged,
	}
}

func (c *conn) setWS(ws *websocket.Conn) error {
	if ws.Subprotocol() != subprotocol {
		ws.CloseNow()
		return errNoSIP
	}
	ws.SetReadLimit(int64(c.cfg.MaxMessage))
	c.ws = ws
	c.try.raw = nil // bytes go in frames only
	return nil
}

// pinged notes a ping as a sign of life. It is called by the reading goroutine, perhaps between the
// frames of a message, which it gives no more time. (Pongs are none: they answer our own pings.)
func (c *conn) pinged(context.Context, []byte) bool {
	c.heard = time.Now()
	c.arm()
	return true
}

// keepOpen pings the peer now and then until stop is called.
func (c *conn) keepOpen() (stop func()) {
	var timer *time.Timer
	ready := make(chan struct{}) // closed when timer is set
	timer = time.AfterFunc(c.cfg.Ping, func() {
		<-ready
		if c.ping() {
			timer.Reset(c.cfg.Ping)
		}
	})
	close(ready)
	return func() { timer.Stop() }
}

// ping returns false if the connection has ended.
func (c *conn) ping() bool {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return false
	}
	c.writer.Add(1) // so that run waits for it
	c.mu.Unlock()
	defer c.writer.Done()
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Write)
	defer cancel()
	if err := c.ws.Ping(ctx); err != nil {
		c.end(noPong)
		return false
	}
	return true
}

// readFrames reads WebSocket messages, each of which is one SIP message (RFC 7118 §5), until the
// connection ends.
func (c *conn) readFrames() reason {
	defer c.keepOpen()()
	for {
		c.first = time.Time{}
		c.arm()
		_, r, err := c.ws.Reader(context.Background())
		if err == nil {
			c.heard = time.Now()
			c.first = c.heard
			c.arm()
			err = c.frame(r)
		}
		switch {
		case err == nil:
		case errors.Is(err, websocket.ErrMessageTooBig):
			return oversize
		default:
			why, _ := c.readError(err)
			return why
		}
	}
}

// frame reads one message and hands it on.
func (c *conn) frame(r io.Reader) error {
	first := c.t.bufs.Get().(*[firstBuf]byte)
	defer c.t.bufs.Put(first)
	buf, n := first[:], 0
	for {
		got, err := r.Read(buf[n:])
		n += got
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if n == len(buf) { // the read limit bounds this
			bigger := make([]byte, 2*len(buf))
			copy(bigger, buf)
			buf = bigger
		}
	}
	c.first = time.Time{}
	switch {
	case !blank(buf[:n]):
		c.message(buf[:n:n])
	case n == 4:
		_ = c.enqueue([]byte(pong)) // RFC 7118 §6: RFC 5626's keep-alive may be used too
	}
	return nil
}

// dialWS opens a WebSocket over nc.
func (c *conn) dialWS(ctx context.Context, host string) error {
	one := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return c.nc, nil },
		DisableKeepAlives: true,
	}
	ws, _, err := websocket.Dial(ctx, "ws://"+host+"/", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: one}, Subprotocols: []string{subprotocol},
		OnPingReceived: c.pinged,
	})
	if err != nil {
		return err
	}
	return c.setWS(ws)
}

func validText(b []byte) bool { return utf8.Valid(b) }

// hijack is the http.ResponseWriter of one upgrade: it writes the head and gives the connection away.
type hijack struct {
	nc     net.Conn
	br     *bufio.Reader
	header http.Header
	wrote  bool
}

func (h *hijack) Header() http.Header { return h.header }

func (h *hijack) WriteHeader(status int) {
	if h.wrote {
		return
	}
	h.wrote = true
	bw := bufio.NewWriter(h.nc)
	if status != http.StatusSwitchingProtocols {
		h.header.Set("Connection", "close")
	}
	fmt.Fprintf(bw, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	_ = h.header.Write(bw)
	fmt.Fprint(bw, "\r\n")
	_ = bw.Flush() // who uses the connection next meets the error
}

func (h *hijack) Write(b []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	return h.nc.Write(b)
}

// Hijack implements [http.Hijacker].
func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.nc, bufio.NewReadWriter(h.br, bufio.NewWriterSize(h.nc, firstBuf)), nil
}

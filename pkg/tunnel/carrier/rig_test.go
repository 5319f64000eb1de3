package carrier

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/groove"
	"edged.dev/edged/pkg/tunnel/proxydial"
)

// rig is a relay on loopback whose sessions echo, and a device.
type rig struct {
	t        *testing.T
	relay    device.Key
	device   device.Key
	server   *Server
	tlsPort  uint16
	httpPort uint16
	quicPort uint16
	tickets  chan [16]byte
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, relay: newKey(t), device: newKey(t), tickets: make(chan [16]byte, 64)}
	cfg, err := device.ServerTLS(r.relay, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.server = &Server{TLS: cfg, Session: r.echo, Log: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)),
		Bulk: func(_ context.Context, c *Carrier, ticket [16]byte) {
			defer c.Close()
			r.tickets <- ticket
			r.unwrapEcho(c)
		}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	r.tlsPort = r.listen(ctx, &wg, func(c net.Conn) { r.shared(ctx, c) })
	l := listenTCP(t)
	r.httpPort = portNumber(l.Addr())
	carriage, err := groove.New(groove.Config{Polling: true}, groove.Deps{Tunnel: "relay.example.org",
		Virtual: func(ctx context.Context, c *groove.Conn) { r.server.ServeVirtual(ctx, c, RungOf(c.Mode)) }}, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _ = carriage.Run(ctx) })
	mux := http.NewServeMux()
	mux.Handle("/2.0/", carriage)
	mux.Handle("/", r.server.Handler(ctx))
	front := HTTPServer(mux)
	wg.Go(func() { _ = front.Serve(l) })
	context.AfterFunc(ctx, func() { front.Close() })
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.quicPort = portNumber(pc.LocalAddr())
	wg.Go(func() {
		if err := r.server.ServeQUIC(ctx, pc); err != nil {
			t.Error(err)
		}
	})
	return r
}

func newKey(t *testing.T) device.Key {
	t.Helper()
	k, err := device.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func portNumber(a net.Addr) uint16 {
	switch a := a.(type) {
	case *net.TCPAddr:
		return uint16(a.Port)
	case *net.UDPAddr:
		return uint16(a.Port)
	}
	return 0
}

// listen serves connections until ctx ends.
func (r *rig) listen(ctx context.Context, wg *sync.WaitGroup, serve func(net.Conn)) uint16 {
	l := listenTCP(r.t)
	context.AfterFunc(ctx, func() { l.Close() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	return portNumber(l.Addr())
}

// shared does what the shared port 443 does: the tunnel's TLS goes to the tunnel raw, other TLS ends here. It tells
// them apart by the server's name, which the tests' devices do not send.
func (r *rig) shared(ctx context.Context, c net.Conn) {
	var hello [600]byte
	n, err := peekHello(c, hello[:])
	if err != nil {
		c.Close()
		return
	}
	if bytes.Contains(hello[:n], []byte(device.ALPN)) {
		r.server.ServeConn(ctx, c)
		return
	}
	cert, err := r.relay.Certificate()
	if err != nil {
		r.t.Error(err)
		return
	}
	secured := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	one := &oneListener{conn: secured, done: make(chan struct{})}
	_ = HTTPServer(r.server.Handler(ctx)).Serve(one)
}

// oneListener has one connection.
type oneListener struct {
	conn net.Conn
	once sync.Once
	done chan struct{}
}

func (l *oneListener) Accept() (c net.Conn, err error) {
	l.once.Do(func() { c = &tellsClose{l.conn.(*tls.Conn), l.done} })
	if c != nil {
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return l.conn.LocalAddr() }

type tellsClose struct {
	*tls.Conn
	done chan struct{}
}

func (c *tellsClose) Close() error {
	defer func() { _ = recover() }() // closed twice
	close(c.done)
	return c.Conn.Close()
}

// peekHello looks at the first bytes without taking them.
func peekHello(c net.Conn, b []byte) (n int, err error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	defer c.SetReadDeadline(time.Time{})
	e := raw.Read(func(fd uintptr) bool {
		n, err = peekFD(int(fd), b)
		return err == nil && n >= 200 || err != nil && !again(err) || n == 0 && err == nil
	})
	if e != nil {
		err = e
	}
	return n, err
}

// echo is a session that sends back what comes, and datagrams too where there are any.
func (r *rig) echo(ctx context.Context, c *Carrier) {
	defer c.Close()
	id, err := device.PeerID(c.PeerState())
	if err != nil || !id.Equal(r.device.ID()) {
		r.t.Errorf("the relay saw device %v, %v", id, err)
	}
	if q, ok := c.Conn.(*quicConn); ok {
		go func() {
			for {
				b, err := q.ReceiveDatagram(ctx)
				if err != nil || q.SendDatagram(b) != nil {
					return
				}
			}
		}()
	}
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
}

// unwrapEcho leaves TLS and echoes what comes in clear.
func (r *rig) unwrapEcho(c *Carrier) {
	tcp, err := c.Unwrap()
	if err != nil {
		r.t.Errorf("relay: %v", err)
		return
	}
	_, _ = io.Copy(tcp, tcp)
	_ = tcp.CloseWrite()
}

// dialer is the device's. It knows of no proxy unless one is given.
func (r *rig) dialer(proxy string, change func(*Dialer)) *Dialer {
	r.t.Helper()
	if proxy == "" {
		proxy = "none"
	}
	p, err := proxydial.New(proxydial.Config{URL: proxy}, zap.NewNop())
	if err != nil {
		r.t.Fatal(err)
	}
	cfg, err := device.ClientTLS(r.device, r.relay.ID(), "")
	if err != nil {
		r.t.Fatal(err)
	}
	d := &Dialer{Relay: "127.0.0.1", Name: "relay.example.org", TLS: cfg, Proxy: p, PortTLS: r.tlsPort, PortQUIC: r.quicPort, PortHTTP: r.httpPort,
		Limits: Limits{Echo: 10 * time.Second, Cross: 15 * time.Second}, Attempt: 30 * time.Second, Log: zaptest.NewLogger(r.t)}
	if change != nil {
		change(d)
	}
	return d
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wantEcho sends size octets through c and wants them back.
func wantEcho(t *testing.T, c net.Conn, size int) {
	t.Helper()
	c.SetDeadline(time.Now().Add(time.Minute))
	data := make([]byte, size)
	_, _ = rand.Read(data)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	back := make([]byte, size)
	_, err := io.ReadFull(c, back)
	wg.Wait()
	if err != nil || !bytes.Equal(data, back) {
		t.Fatalf("the echo of %d octets: %v, equal %v", size, err, bytes.Equal(data, back))
	}
	c.SetDeadline(time.Time{})
}

// connectProxy is an HTTP proxy that does CONNECT, forwards plain requests, and counts both.
func connectProxy(t *testing.T) (addr string, served func() []string) {
	t.Helper()
	var mu sync.Mutex
	var list []string
	plain := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.Header.Del("Upgrade") }, FlushInterval: -1}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		list = append(list, r.Method)
		mu.Unlock()
		if r.Method != http.MethodConnect {
			plain.ServeHTTP(w, r)
			return
		}
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		defer to.Close()
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 200 ok\r\n\r\n")
		join(conn, rw.Reader, to)
	})
	l := listenTCP(t)
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String(), func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), list...) }
}

// join copies both ways until one ends.
func join(a net.Conn, fromA io.Reader, b net.Conn) {
	done := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(b, fromA); done <- struct{}{} }()
	go func() { _, _ = io.Copy(a, b); done <- struct{}{} }()
	<-done
}

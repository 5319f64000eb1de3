package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// patience is for a machine that is busy with other things.
const patience = 30 * time.Second

type event struct {
	flow   flow.Flow
	raw    string
	closed bool
}

// recorder is a Handler that keeps what it is told, in order.
type recorder struct {
	ch       chan event
	patience time.Duration
}

func newRecorder() *recorder { return &recorder{make(chan event, 4096), patience} }

func (r *recorder) Receive(f flow.Flow, raw []byte) { r.ch <- event{flow: f, raw: string(raw)} }
func (r *recorder) Closed(f flow.Flow)              { r.ch <- event{flow: f, closed: true} }

func (r *recorder) next(t testing.TB) event {
	t.Helper()
	select {
	case e := <-r.ch:
		return e
	case <-time.After(r.patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// message waits for one message and checks its text.
func (r *recorder) message(t testing.TB, want string) flow.Flow {
	t.Helper()
	e := r.next(t)
	if e.closed || e.raw != want {
		t.Fatalf("got %.200q on %+v (end: %v), want message %.200q", e.raw, e.flow, e.closed, want)
	}
	return e.flow
}

func (r *recorder) ended(t testing.TB, f flow.Flow) {
	t.Helper()
	if e := r.next(t); !e.closed || e.flow != f {
		t.Fatalf("got %+v, want the end of %+v", e, f)
	}
}

func (r *recorder) quiet(t testing.TB) {
	t.Helper()
	select {
	case e := <-r.ch:
		t.Fatalf("unexpected %+v", e)
	default:
	}
}

func loopback() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.2")}},
	}
}

func newTransport(cfg Config, tlsConf TLSSource) (*Transport, *recorder) {
	r := newRecorder()
	return New(cfg, loopback(), tlsConf, r, zap.NewNop()), r
}

// serveTCP serves a listener until the test ends or stop is called, and returns its address.
func serveTCP(t testing.TB, tr *Transport, network string, p flow.Proto, listen string) (addr netip.AddrPort, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		t.Skipf("needs a socket on %s: %v", listen, err)
	}
	return pinhole.AddrPortOf(ln.Addr()), serving(t, func(ctx context.Context) error { return tr.Serve(ctx, network, p, ln) })
}

func serveUDP(t testing.TB, tr *Transport, network, listen string) (addr netip.AddrPort, stop func()) {
	t.Helper()
	pc, err := net.ListenPacket("udp", listen)
	if err != nil {
		t.Skipf("needs a socket on %s: %v", listen, err)
	}
	return pinhole.AddrPortOf(pc.LocalAddr()), serving(t, func(ctx context.Context) error { return tr.ServePacket(ctx, network, pc) })
}

// serving runs serve; stop ends it, waits for it, and checks that it returned nil.
func serving(t testing.TB, serve func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("serve returned %v", err)
				}
			case <-time.After(patience):
				t.Error("serve did not return")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// waitFor polls until ok.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

func waitLocal(t testing.TB, tr *Transport, network string, p flow.Proto) netip.AddrPort {
	t.Helper()
	var a netip.AddrPort
	waitFor(t, "the listener", func() (ok bool) { a, ok = tr.LocalFor(network, p, pinhole.AnyFamily); return ok })
	return a
}

func drops(tr *Transport, r reason) uint64 { return tr.count.drops[r].Load() }

func admitted(tr *Transport) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.in
}

func sipMessage(id int, body string) string {
	return fmt.Sprintf("MESSAGE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK%d\r\nCall-ID: %d\r\nContent-Length: %d\r\n\r\n%s", id, id, len(body), body)
}

// dialTCP connects as a client that the test plays.
func dialTCP(t testing.TB, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	nc, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return nc.(*net.TCPConn)
}

func write(t testing.TB, w interface{ Write([]byte) (int, error) }, s string) {
	t.Helper()
	if _, err := w.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, r interface{ Read([]byte) (int, error) }, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	for n := 0; n < len(want); {
		got, err := r.Read(buf[n:])
		if n += got; err != nil {
			t.Fatalf("read %.200q, then %v; want %.200q", buf[:n], err, want)
		}
	}
	if string(buf) != want {
		t.Fatalf("read %.200q, want %.200q", buf, want)
	}
}

// authority issues certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	a := &authority{pool: x509.NewCertPool()}
	cert := a.issue(t, "authority.example.org")
	a.cert, a.key = cert.Leaf, cert.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.cert)
	return a
}

// issue makes a certificate for names and the loopback addresses; the first one becomes the authority.
func (a *authority) issue(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        a.cert == nil, BasicConstraintsValid: true,
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// certs is a TLSSource whose configurations can be replaced.
type certs struct {
	mu             sync.Mutex
	server, client *tls.Config
}

func (c *certs) Server(string, flow.Proto) *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server
}

func (c *certs) Client(string) *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client
}

// serveHTTP serves until the test ends.
func serveHTTP(t testing.TB, s *http.Server) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return pinhole.AddrPortOf(ln.Addr())
}

// pipeDialer makes an http.Transport connect to a memory listener.
func pipeDialer(ln *memory) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return ln.dial(client), nil }
}

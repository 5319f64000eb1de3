package carrier

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
)

// TestRungs dials each rung by itself and moves a megabyte through it.
func TestRungs(t *testing.T) {
	r := newRig(t)
	proxy, _ := connectProxy(t)
	for _, c := range []struct {
		rung  Rung
		proxy string
	}{{QUIC, ""}, {TLS, ""}, {Connect, "http://" + proxy}, {WSS, ""}, {WSS, "http://" + proxy}, {WS, ""},
		{LongLived, ""}, {KeepAlive, ""}, {Polling, ""}, {KeepAlive, "http://" + proxy}, {Polling, "http://" + proxy}} {
		t.Run(fmt.Sprint(c.rung, " ", c.proxy != ""), func(t *testing.T) {
			d := r.dialer(c.proxy, func(d *Dialer) { d.Rungs = []Rung{c.rung}; d.NoDirect = true })
			got, err := d.Dial(within(t))
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if got.Rung != c.rung || (got.Path == "direct") != (c.proxy == "") {
				t.Errorf("came by %v %s", got.Rung, got.Path)
			}
			if id, err := device.PeerID(got.PeerState()); err != nil || !id.Equal(r.relay.ID()) {
				t.Errorf("the relay is %v, %v", id, err)
			}
			wantEcho(t, got, 1)
			wantEcho(t, got, 1<<20)
		})
	}
}

func TestQUICDatagrams(t *testing.T) {
	r := newRig(t)
	c, err := r.dialer("", func(d *Dialer) { d.Rungs = []Rung{QUIC} }).Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	q, ok := c.Conn.(interface {
		SendDatagram([]byte) error
		ReceiveDatagram(context.Context) ([]byte, error)
	})
	if !ok {
		t.Fatalf("%T has no datagrams", c.Conn)
	}
	wantEcho(t, c, 1) // the relay reads datagrams by now
	for n := range 3 {
		if err := q.SendDatagram([]byte{byte(n)}); err != nil {
			t.Fatal(err)
		}
		if b, err := q.ReceiveDatagram(within(t)); err != nil || !bytes.Equal(b, []byte{byte(n)}) {
			t.Fatalf("%x, %v", b, err)
		}
	}
}

// TestOtherRelay has a relay with another key behind the same address: nothing may come of it on any rung.
func TestOtherRelay(t *testing.T) {
	r := newRig(t)
	for _, rung := range []Rung{QUIC, TLS, WSS, WS} {
		d := r.dialer("", func(d *Dialer) { d.Rungs = []Rung{rung} })
		cfg, err := device.ClientTLS(r.device, newKey(t).ID(), "")
		if err != nil {
			t.Fatal(err)
		}
		d.TLS = cfg
		if c, err := d.Dial(within(t)); err == nil {
			c.Close()
			t.Errorf("%v: connected to a stranger", rung)
		}
	}
}

// TestRefusedMovesOn has closed ports first: the race must reach the proxy long before its steps say so.
func TestRefusedMovesOn(t *testing.T) {
	r := newRig(t)
	proxy, _ := connectProxy(t)
	var mu sync.Mutex
	var seen []string
	d := r.dialer("http://"+proxy, func(d *Dialer) {
		d.Step = time.Hour
		d.Rungs = []Rung{TLS, Connect}
		d.Probed = func(r Result) {
			mu.Lock()
			seen = append(seen, r.Rung.String()+" "+r.Outcome)
			mu.Unlock()
		}
	})
	cfg, err := device.ClientTLS(r.device, r.relay.ID(), "")
	if err != nil {
		t.Fatal(err)
	}
	d.TLS = cfg
	tlsPort := d.PortTLS
	l := listenTCP(t)
	d.PortTLS = portNumber(l.Addr())
	l.Close() // nobody listens there, and the proxy is asked for it
	if c, err := d.Dial(within(t)); err == nil {
		c.Close()
		t.Fatal("connected to a closed port")
	}
	d.PortTLS = tlsPort
	d.NoDirect = true
	c, err := d.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"tls failed", "connect failed", "connect won"}; !slices.Equal(seen, want) {
		t.Errorf("%v, want %v", seen, want)
	}
}

// TestRestartingRelay refuses the first way while another hangs: the first must be tried again before that has failed.
func TestRestartingRelay(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	hangs := r.listen(ctx, &wg, func(c net.Conn) { <-ctx.Done(); c.Close() })
	l := listenTCP(t)
	addr := l.Addr().String()
	l.Close()
	refused := make(chan struct{})
	var once sync.Once
	d := r.dialer("", func(d *Dialer) {
		d.Rungs, d.PortHTTP, d.Attempt = []Rung{TLS, WS}, hangs, 10*time.Minute
		_, port, _ := net.SplitHostPort(addr)
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		d.PortTLS = uint16(n)
		d.Probed = func(p Result) {
			if p.Rung == TLS && p.Outcome == "failed" {
				once.Do(func() { close(refused) })
			}
		}
	})
	wg.Go(func() {
		<-refused
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		context.AfterFunc(ctx, func() { l.Close() })
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			wg.Go(func() { r.server.ServeConn(ctx, c) })
		}
	})
	c, err := d.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Rung != TLS {
		t.Errorf("came by %v", c.Rung)
	}
}

// TestSlowIsSteppedOver has a middlebox before port 443 that holds everything back for a while, as buffering ones do.
func TestSlowIsSteppedOver(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	slow := r.listen(ctx, &wg, func(c net.Conn) { r.delay(ctx, c, 300*time.Millisecond) })
	var mu sync.Mutex
	outcome := map[Rung]string{}
	change := func(d *Dialer) {
		d.PortTLS = slow
		d.Step = 10 * time.Minute
		d.Limits = Limits{Echo: 290 * time.Millisecond}
		d.Probed = func(r Result) { mu.Lock(); outcome[r.Rung] = r.Outcome; mu.Unlock() }
	}
	c, err := r.dialer("", func(d *Dialer) { change(d); d.Rungs = []Rung{TLS, WS} }).Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	mu.Lock()
	if c.Rung != WS || outcome[TLS] != "slow" {
		t.Errorf("won %v, outcomes %v", c.Rung, outcome)
	}
	mu.Unlock()
	// Where it is the only way, it is taken.
	c, err = r.dialer("", func(d *Dialer) { change(d); d.Rungs = []Rung{TLS} }).Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEcho(t, c, 10)
}

// delay forwards to the relay's TLS port, each piece late.
func (r *rig) delay(ctx context.Context, c net.Conn, by time.Duration) {
	to, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", r.tlsPort))
	if err != nil {
		c.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close(); to.Close() })
	defer stop()
	defer to.Close()
	defer c.Close()
	late := func(from io.Reader) io.Reader {
		pr, pw := io.Pipe()
		go func() {
			b := make([]byte, 256<<10)
			for {
				n, err := from.Read(b)
				<-time.After(by)
				if _, e := pw.Write(b[:n]); e != nil || err != nil {
					pw.CloseWithError(io.EOF)
					return
				}
			}
		}()
		return pr
	}
	done := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(to, late(c)); done <- struct{}{} }()
	go func() { _, _ = io.Copy(c, late(to)); done <- struct{}{} }()
	<-done
}

func TestBetter(t *testing.T) {
	r := newRig(t)
	c, err := r.dialer("", func(d *Dialer) { d.Rungs = []Rung{WS} }).Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all := r.dialer("", func(d *Dialer) { d.Rungs = []Rung{TLS, WSS, WS} })
	b, err := all.Better(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Rung != TLS {
		t.Errorf("better than ws is %v", b.Rung)
	}
	wantEcho(t, b, 1000)
	if x, err := all.Better(within(t), b); !errors.Is(err, ErrNoBetter) {
		t.Errorf("better than the best: %v, %v", x, err)
	}
}

// TestMemory has a device that remembers the lower rung, and begins with it.
func TestMemory(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "ways.json")
	network := "home"
	dial := func(m *Memory) Rung {
		t.Helper()
		d := r.dialer("", func(d *Dialer) {
			d.Rungs, d.Step, d.Memory = []Rung{TLS, WS}, time.Hour, m
			d.Network = func() string { return network }
		})
		c, err := d.Dial(within(t))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.Rung
	}
	port := r.tlsPort
	l := listenTCP(t)
	r.tlsPort = portNumber(l.Addr())
	l.Close()
	if got := dial(OpenMemory(file)); got != WS {
		t.Fatalf("first: %v", got)
	}
	r.tlsPort = port
	if got := dial(OpenMemory(file)); got != WS {
		t.Errorf("again: %v", got)
	}
	network = "elsewhere"
	if got := dial(OpenMemory(file)); got != TLS {
		t.Errorf("elsewhere: %v", got)
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(b), "home") {
		t.Errorf("%s, %v", b, err)
	}
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	network = "home"
	if got := dial(OpenMemory(file)); got != TLS {
		t.Errorf("with a damaged file: %v", got)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := OpenMemory(filepath.Join(t.TempDir(), "ways.json"))
	for i := range 3 * memoryMax {
		m.remember(fmt.Sprint(i), "tls direct", nil)
	}
	if len(m.known) != memoryMax {
		t.Errorf("%d networks", len(m.known))
	}
	if _, ok := m.recall(fmt.Sprint(3*memoryMax - 1)); !ok {
		t.Error("the last one is forgotten")
	}
}

// TestUnwrap leaves TLS with bytes in clear right behind the last record, which must not be lost to either end.
func TestUnwrap(t *testing.T) {
	r := newRig(t)
	like, err := r.dialer("", func(d *Dialer) { d.Rungs = []Rung{TLS} }).Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer like.Close()
	if _, err := like.Unwrap(); !errors.Is(err, ErrWrapped) {
		t.Errorf("unwrapped a session: %v", err)
	}
	d := r.dialer("", nil)
	for i := range 20 {
		ticket := [16]byte{byte(i)}
		c, err := d.DialBulk(within(t), like, ticket)
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := c.Unwrap()
		if err != nil {
			t.Fatal(err)
		}
		if got := <-r.tickets; got != ticket {
			t.Errorf("ticket %x", got)
		}
		wantEcho(t, tcp, 1<<uint(i%20))
		_ = tcp.CloseWrite()
		if b, err := io.ReadAll(tcp); err != nil || len(b) > 0 {
			t.Errorf("%d octets after the end, %v", len(b), err)
		}
		tcp.Close()
	}
	ws, err := r.dialer("", func(d *Dialer) { d.Rungs = []Rung{WS} }).Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if _, err := d.DialBulk(within(t), ws, [16]byte{}); !errors.Is(err, ErrNoBulk) {
		t.Errorf("bulk on a WebSocket: %v", err)
	}
}

// TestRecordConn reads a stream of records by reads of all sizes: no read may go over the end of a record.
func TestRecordConn(t *testing.T) {
	var stream []byte
	var ends []int
	for i := range 200 {
		body := make([]byte, (i*97)%1500)
		_, _ = rand.Read(body)
		stream = append(stream, 23, 3, 3)
		stream = binary.BigEndian.AppendUint16(stream, uint16(len(body)))
		stream = append(stream, body...)
		ends = append(ends, len(stream))
	}
	a, b := net.Pipe()
	go func() { _, _ = a.Write(stream); a.Close() }()
	c := &recordConn{Conn: b}
	var got []byte
	buf := make([]byte, 4096)
	for i := 0; ; i++ {
		n, err := c.Read(buf[:1+i%len(buf)])
		before := len(got)
		got = append(got, buf[:n]...)
		for _, e := range ends {
			if before < e && e < len(got) {
				t.Fatalf("a read from %d to %d goes over the end at %d", before, len(got), e)
			}
		}
		if err != nil {
			break
		}
	}
	if !bytes.Equal(got, stream) {
		t.Error("the stream differs")
	}
}

// TestPreambleHostile has devices that are let in and do not keep to the preamble.
func TestPreambleHostile(t *testing.T) {
	r := newRig(t)
	probe := func(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{sayProbe}, n) }
	for name, say := range map[string][]byte{
		"garbage":       []byte("GET / HTTP/1.1\r\n\r\n"),
		"large echo":    probe(longEcho + 1),
		"huge echo":     probe(1<<32 - 1),
		"many probes":   bytes.Repeat(append(probe(1), 'x'), maxProbes+1),
		"no enrolments": {sayEnrol},
	} {
		before := r.server.Refused()
		d := r.dialer("", nil)
		ways, err := d.ladder(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, _, err := d.open(within(t), ways[slices.IndexFunc(ways, func(w way) bool { return w.rung == TLS })])
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.Write(say); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c) // until the relay closes
		c.Close()
		after := r.server.Refused()
		if after["preamble"]+after["service"] != before["preamble"]+before["service"]+1 {
			t.Errorf("%s: counted %v, before %v", name, after, before)
		}
	}
}

// TestHandshakesAreBounded has silent connections take all places, and one wait: the next is refused at once, and counted.
func TestHandshakesAreBounded(t *testing.T) {
	r := newRig(t)
	r.server.Handshakes, r.server.Waiting = 3, 1
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 3 {
		a, b := net.Pipe()
		defer a.Close()
		wg.Go(func() { r.server.ServeVirtual(ctx, b, WS) })
		if _, err := a.Write([]byte{22}); err != nil { // read: so it has its place
			t.Fatal(err)
		}
	}
	waits, other := net.Pipe()
	defer waits.Close()
	wg.Go(func() { r.server.ServeVirtual(ctx, other, WS) })
	for r.server.Queued() == 0 {
		select {
		case <-t.Context().Done():
			t.Fatal("nobody waits")
		case <-time.After(time.Millisecond):
		}
	}
	a, b := net.Pipe()
	r.server.ServeVirtual(ctx, b, WS)
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the fifth: %v", err)
	}
	if n := r.server.Refused()["full"]; n != 1 {
		t.Errorf("counted %d", n)
	}
}

func FuzzPreamble(f *testing.F) {
	f.Add([]byte{sayProbe, 0, 0, 0, 1, 'x', saySession})
	f.Add(append([]byte{sayBulk}, make([]byte, 16)...))
	f.Add([]byte{sayProbe, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &scripted{in: bytes.NewReader(b)}
		what, _, err := readPreamble(c)
		if err == nil && what != saySession && what != sayBulk && what != sayEnrol {
			t.Fatalf("%#x", what)
		}
		if c.out > len(b) || c.out > maxProbes*longEcho {
			t.Fatalf("%d octets for %d", c.out, len(b))
		}
	})
}

// scripted is a connection that says in and counts what is written.
type scripted struct {
	net.Conn
	in  io.Reader
	out int
}

func (c *scripted) Read(b []byte) (int, error)         { return c.in.Read(b) }
func (c *scripted) Write(b []byte) (int, error)        { c.out += len(b); return len(b), nil }
func (c *scripted) Close() error                       { return nil }
func (c *scripted) SetWriteDeadline(t time.Time) error { return nil }

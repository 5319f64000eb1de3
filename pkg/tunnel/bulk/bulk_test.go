package bulk

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tunnel/mux"
)

// plain is a carrier without TLS.
type plain struct{ *net.TCPConn }

func (p plain) Unwrap() (*net.TCPConn, error) { return p.TCPConn, nil }

// cutter joins, and cuts after a random number of bytes while cuts are left.
type cutter struct {
	left  atomic.Int64 // cuts
	after int64
	cuts  atomic.Int64
	bytes atomic.Int64
}

func (c *cutter) Join(_ context.Context, a, b net.Conn, _ splice.Options) splice.Result {
	var both sync.WaitGroup
	var total atomic.Int64
	limit := int64(1) << 60
	if c.left.Add(-1) >= 0 {
		limit = 1 + mrand.Int64N(c.after)
	}
	one := func(to, from net.Conn) {
		buf := make([]byte, 10000)
		for {
			n, err := from.Read(buf)
			c.bytes.Add(int64(n))
			if total.Add(int64(n)) > limit {
				c.cuts.Add(1)
				if mrand.IntN(2) == 0 {
					_ = to.(*net.TCPConn).SetLinger(0)
				}
				n /= 2 // some of it never arrives
				err = io.ErrUnexpectedEOF
			}
			if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
				break
			}
		}
		a.Close()
		b.Close()
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
	return splice.Result{}
}

// site is a device: its session with the relay, seen from both ends.
type site struct {
	id             Device
	session, relay *mux.Session
}

func dialed() (a, b *net.TCPConn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	y, err := l.Accept()
	if err != nil {
		return nil, nil, err
	}
	return x.(*net.TCPConn), y.(*net.TCPConn), nil
}

func newSite(t *testing.T, id byte) *site {
	a, b, err := dialed()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{id: Device{id}}
	var both sync.WaitGroup
	both.Go(func() {
		var err error
		if s.relay, _, err = mux.Server(t.Context(), b, func(mux.ID) *mux.Session { return nil }, mux.Config{}); err != nil {
			t.Error(err)
		}
	})
	if s.session, err = mux.Client(t.Context(), a, mux.Config{}); err != nil {
		t.Fatal(err)
	}
	both.Wait()
	t.Cleanup(func() {
		s.session.Close(mux.CodeClosed)
		s.relay.Close(mux.CodeClosed)
	})
	return s
}

// net2 is two sites and a relay between them.
type net2 struct {
	t     *testing.T
	a, b  *site
	pairs *Pairs
	join  *cutter

	moves sync.WaitGroup
	over  atomic.Bool // the test is: what fails now fails because of that
}

// failed tells an error of a move, which may outlast what the test looks at.
func (n *net2) failed(err error) {
	if !n.over.Load() {
		n.t.Error(err)
	}
}

func newNet(t *testing.T, cuts, after int64) *net2 {
	n := &net2{t: t, a: newSite(t, 1), b: newSite(t, 2), join: &cutter{after: after}}
	n.join.left.Store(cuts)
	n.pairs = NewPairs(n.join)
	t.Cleanup(func() { // before the sites' own
		n.over.Store(true)
		for _, s := range []*site{n.a, n.b} {
			s.session.Close(mux.CodeClosed)
			s.relay.Close(mux.CodeClosed)
		}
		n.moves.Wait()
	})
	return n
}

// stream opens a stream from a to b through the relay; there is none once the sessions are over.
func (n *net2) stream() (a, b *mux.Stream, ok bool) {
	accept := func(s *mux.Session) *mux.Stream {
		in, err := s.Accept(context.Background())
		if err != nil {
			n.failed(err)
			return nil
		}
		return in.Accept()
	}
	var all sync.WaitGroup
	all.Go(func() {
		in := accept(n.a.relay)
		if in == nil {
			return
		}
		out, err := n.b.relay.Open(context.Background(), nil, mux.OpenOptions{})
		if err != nil {
			n.failed(err)
			return
		}
		go func() { _, _, _ = mux.Join(in, out) }() // ends with the sessions
	})
	all.Go(func() { b = accept(n.b.session) })
	a, err := n.a.session.Open(context.Background(), nil, mux.OpenOptions{})
	if err != nil {
		n.failed(err)
	}
	all.Wait()
	return a, b, a != nil && b != nil
}

// enter dials the relay with a ticket; nil if that fails.
func (n *net2) enter(who *site, t Ticket) *net.TCPConn {
	x, y, err := dialed()
	if err != nil {
		n.failed(err)
		return nil
	}
	go func() { _, _ = n.pairs.Serve(context.Background(), plain{y}, who.id, t) }() // the end tells what the test wants to know
	tcp, err := Enter(context.Background(), plain{x})
	if err != nil {
		n.failed(err)
	}
	return tcp
}

// move moves both ends beside the session once.
func (n *net2) move(a, b *Conn) {
	ta, tb, err := n.pairs.Issue(context.Background(), n.a.id, n.b.id)
	if err != nil {
		n.failed(err)
		return
	}
	ctlA, ctlB, ok := n.stream()
	if !ok {
		return
	}
	one := func(c *Conn, ctl *mux.Stream, tcp *net.TCPConn) {
		if tcp != nil {
			_ = c.Move(ctl, tcp) // it may have ended meanwhile
		}
	}
	var both sync.WaitGroup
	both.Go(func() { one(b, ctlB, n.enter(n.b, tb)) })
	both.Go(func() { one(a, ctlA, n.enter(n.a, ta)) })
	both.Wait()
}

// conns returns a connection that moves each time that it is worth it.
func (n *net2) conns() (a, b *Conn) {
	n.t.Helper()
	x, y, ok := n.stream()
	if !ok {
		n.t.FailNow()
	}
	b = New(y, nil)
	a = New(x, func() { n.moves.Go(func() { n.move(a, b) }) })
	return a, b
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// both sends n bytes each way and compares the sums.
func both(t *testing.T, a, b halfCloser, n int) {
	t.Helper()
	var all sync.WaitGroup
	var sent, got [2][]byte
	for i, ends := range [][2]halfCloser{{a, b}, {b, a}} {
		all.Go(func() {
			h, buf := sha256.New(), make([]byte, 16000)
			src := mrand.NewChaCha8([32]byte{byte(i)})
			for left := n; left > 0; {
				p := buf[:min(left, 1+mrand.IntN(len(buf)))]
				_, _ = src.Read(p)
				h.Write(p)
				if _, err := ends[0].Write(p); err != nil {
					t.Errorf("direction %d: write: %v", i, err)
					return
				}
				left -= len(p)
			}
			if err := ends[0].CloseWrite(); err != nil {
				t.Errorf("direction %d: close: %v", i, err)
			}
			sent[i] = h.Sum(nil)
		})
		all.Go(func() {
			h := sha256.New()
			if m, err := io.Copy(h, struct{ io.Reader }{ends[1]}); err != nil || m != int64(n) {
				t.Errorf("direction %d: read %d of %d: %v", i, m, n, err)
			}
			got[i] = h.Sum(nil)
		})
	}
	all.Wait()
	for i := range sent {
		if !bytes.Equal(sent[i], got[i]) {
			t.Errorf("direction %d: sums differ", i)
		}
	}
}

// quiet waits until the sessions of both sites have no streams.
func (n *net2) quiet() {
	n.t.Helper()
	deadline := time.After(30 * time.Second)
	for n.a.session.Stats().Streams+n.b.session.Stats().Streams > 0 {
		select {
		case <-deadline:
			n.t.Fatalf("streams left: %d, %d", n.a.session.Stats().Streams, n.b.session.Stats().Streams)
		case <-time.After(time.Millisecond):
		}
	}
}

// A stream moves when it is worth it, most bytes go beside the session, and nothing is left over.
func TestMove(t *testing.T) {
	n := newNet(t, 0, 0)
	a, b := n.conns()
	both(t, a, b, 32<<20)
	if got := n.join.bytes.Load(); got < 32<<20 {
		t.Errorf("only %d bytes beside the session", got)
	}
	a.Close()
	b.Close()
	n.quiet()
	if n.pairs.Waiting() != 0 {
		t.Error("tickets wait")
	}
}

// Connections beside the session are cut at random bytes; the stream goes on
// in the session, and later beside it again.
func TestCuts(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		n := newNet(t, 4, 3<<20)
		a, b := n.conns()
		both(t, a, b, 48<<20)
		if n.join.cuts.Load() == 0 {
			t.Error("nothing was cut")
		}
		a.Close()
		b.Close()
		n.quiet()
	}
}

// Small exchanges stay in the session.
func TestSmall(t *testing.T) {
	n := newNet(t, 0, 0)
	a, b := n.conns()
	both(t, a, b, 1000)
	if a.Beside() || n.join.bytes.Load() != 0 {
		t.Error("moved")
	}
	a.Close()
	b.Close()
	n.quiet()
}

// configs returns the TLS of two devices.
func configs(t *testing.T) (client, server *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"b.example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{RootCAs: pool, ServerName: "b.example.org", MinVersion: tls.VersionTLS13},
		&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
}

// under is TLS over a Conn; its half-close ends the Conn's direction too.
type under struct {
	*tls.Conn
	below *Conn
}

func (u under) CloseWrite() error {
	if err := u.Conn.CloseWrite(); err != nil {
		return err
	}
	return u.below.CloseWrite()
}

// What lies above is TLS between the devices; it notices nothing of moves and cuts.
func TestBeneathTLS(t *testing.T) {
	client, server := configs(t)
	n := newNet(t, 2, 2<<20)
	a, b := n.conns()
	x, y := under{tls.Client(a, client), a}, under{tls.Server(b, server), b}
	both(t, x, y, 32<<20)
	x.Close()
	y.Close()
	n.quiet()
}

// A reader that waits in the session hears of bytes that come beside it, and
// deadlines end it in both places.
func TestDeadlines(t *testing.T) {
	n := newNet(t, 0, 0)
	a, b := n.conns()
	check := func() {
		t.Helper()
		b.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := b.Read(make([]byte, 1))
		var late net.Error
		if !errors.As(err, &late) || !late.Timeout() {
			t.Fatal(err)
		}
		b.SetReadDeadline(time.Time{})
	}
	check()
	go func() { _, _ = a.Write(make([]byte, After)) }() // which makes it move
	if _, err := io.ReadFull(b, make([]byte, After)); err != nil {
		t.Fatal(err)
	}
	for moved := false; !moved; { // by the first write that finds the leg
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		moved = a.Beside()
	}
	check()
	both(t, a, b, 100000)
	a.Close()
	b.Close()
	n.quiet()
}

// A reset in either place ends both ends with its code.
func TestReset(t *testing.T) {
	for _, much := range []int{10, 4 << 20} {
		n := newNet(t, 0, 0)
		a, b := n.conns()
		done := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, struct{ io.Reader }{b})
			done <- err
		}()
		if _, err := a.Write(make([]byte, much)); err != nil {
			t.Fatal(err)
		}
		a.Reset(mux.CodeTryLater)
		var r *mux.ResetError
		if err := <-done; !errors.As(err, &r) || r.Code != mux.CodeTryLater {
			t.Errorf("after %d bytes: %v", much, err)
		}
		b.Close()
		n.quiet()
	}
}

// Tickets are for one device, once, and for a time.
func TestTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPairs(splice.Copier{})
		a, b := Device{1}, Device{2}
		ta, tb, err := p.Issue(t.Context(), a, b)
		if err != nil {
			t.Fatal(err)
		}
		serve := func(who Device, k Ticket) error {
			x, y := net.Pipe()
			defer x.Close()
			_, err := p.Serve(t.Context(), pipeCarrier{y}, who, k)
			return err
		}
		for _, c := range []struct {
			who Device
			k   Ticket
		}{{a, tb}, {b, ta}, {Device{3}, ta}, {a, Ticket{}}} {
			if err := serve(c.who, c.k); !errors.Is(err, ErrTicket) {
				t.Errorf("%v: %v", c.who[0], err)
			}
		}
		start := time.Now()
		if err := serve(a, ta); !errors.Is(err, ErrAlone) || time.Since(start) != valid {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		for _, k := range []Ticket{ta, tb} {
			if err := serve(a, k); !errors.Is(err, ErrTicket) {
				t.Errorf("second time: %v", err)
			}
		}
		for range perOwner {
			if _, _, err := p.Issue(t.Context(), a, b); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := p.Issue(t.Context(), a, b); !errors.Is(err, ErrFull) {
			t.Error(err)
		}
		if _, _, err := p.Issue(t.Context(), b, a); err != nil {
			t.Error(err)
		}
		time.Sleep(valid)
		synctest.Wait()
		if p.Waiting() != 0 || len(p.tickets) != 0 {
			t.Errorf("%d pairs, %d tickets left", p.Waiting(), len(p.tickets))
		}
	})
}

type pipeCarrier struct{ net.Conn }

func (pipeCarrier) Unwrap() (*net.TCPConn, error) { return nil, errors.New("no TCP") }

// A peer that says what cannot be is cut off; nothing panics.
func FuzzControl(f *testing.F) {
	f.Add([]byte("M\x00\x00\x00\x00\x00\x00\x00\x00A\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("E\x00\x00\x00\x00\x00\x00\x00\x05L\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("L\x00\x00\x00\x00\x00\x00\x00\x03F\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := New(nil, nil)
		l := &leg{moved: len(data)%2 == 0, tcp: &splice.Direct{TCPConn: &net.TCPConn{}}}
		c.leg, c.out, c.handed = l, 1000, 1000
		c.keep.append(make([]byte, 1000))
		for len(data) >= messageLen {
			n := uint64(data[7])<<8 | uint64(data[8])
			c.mu.Lock()
			_, err := c.heardLocked(l, message{data[0], n})
			c.mu.Unlock()
			if err != nil {
				return
			}
			if c.keep.base > c.keep.end || c.end >= 0 && c.got > uint64(c.end) {
				t.Fatalf("%+v", c.keep)
			}
			data = data[messageLen:]
		}
	})
}

func TestKeep(t *testing.T) {
	var k keep
	k.begin(5)
	var want []byte
	for range 1000 {
		p := make([]byte, mrand.IntN(50000))
		_, _ = rand.Read(p)
		k.append(p)
		want = append(want, p...)
		n := mrand.IntN(len(want) + 1)
		if mrand.IntN(10) == 0 {
			n = len(want)
		}
		k.drop(k.base + uint64(n))
		want = want[n:]
		if k.size() != len(want) || len(k.list) > len(want)/blockSize+2 {
			t.Fatalf("%d bytes in %d blocks, want %d", k.size(), len(k.list), len(want))
		}
		if b := k.next(); !bytes.HasPrefix(want, b) || len(want) > 0 && len(b) == 0 {
			t.Fatal("other bytes")
		}
	}
}

// TestEndOfContext: what tickets were used for ends with the context that they were made for, whatever the devices do.
func TestEndOfContext(t *testing.T) {
	p := NewPairs(splice.Copier{})
	ctx, end := context.WithCancel(t.Context())
	a, b := Device{1}, Device{2}
	ta, tb, err := p.Issue(ctx, a, b)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.TCPConn
	var served, entered sync.WaitGroup
	for i, k := range []Ticket{ta, tb} {
		x, y, err := dialed()
		if err != nil {
			t.Fatal(err)
		}
		served.Go(func() { _, _ = p.Serve(t.Context(), plain{y}, []Device{a, b}[i], k) }) // cut off
		entered.Go(func() {
			var err error
			if ends[i], err = Enter(t.Context(), plain{x}); err != nil {
				t.Error(err)
			}
		})
	}
	entered.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if _, err := ends[0].Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var got [1]byte
	if _, err := io.ReadFull(ends[1], got[:]); err != nil {
		t.Fatal(err)
	}
	end()
	for i, c := range ends {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(got[:]); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("end %d goes on: %v", i, err)
		}
		c.Close()
	}
	served.Wait()

	ctx, end = context.WithCancel(t.Context())
	if _, _, err = p.Issue(ctx, a, b); err != nil {
		t.Fatal(err)
	}
	end()
	for late := time.After(time.Minute); p.Waiting() > 0; {
		select {
		case <-late:
			t.Fatal("tickets are good though what they were for has ended")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestAsksOnce: however much passes, a move is not asked for before the last one is answered. Of two under way each end might
// begin with another, and wait for ever.
func TestAsksOnce(t *testing.T) {
	asked := 0
	c := New(nil, func() { asked++ })
	pass := func(n uint64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.out += n
		c.passedLocked()
	}
	pass(After - 1)
	for _, step := range []struct {
		do   func()
		want int
	}{
		{func() {}, 0},
		{func() { pass(1) }, 1},
		{func() { pass(100 * After); pass(100 * After) }, 1},
		{func() { c.Stay(); pass(1) }, 2},
		{func() { pass(100 * After) }, 2},
	} {
		if step.do(); asked != step.want {
			t.Fatalf("asked %d times after %d bytes, not %d", asked, c.out, step.want)
		}
	}
}

// TestOvertaken: the reader of a connection says what has come while another goroutine finds it lost, so that LOST may
// come first. That is no fault of the peer's.
func TestOvertaken(t *testing.T) {
	for _, late := range []message{{ack, 400}, {finished, 1000}} {
		c := New(nil, nil)
		l := &leg{moved: true, tcp: &splice.Direct{TCPConn: &net.TCPConn{}}}
		c.leg, c.out, c.handed, c.fin = l, 1000, 1000, true
		c.keep.append(make([]byte, 1000))
		c.mu.Lock()
		for _, m := range []message{{lost, 1000}, late} {
			if _, err := c.heardLocked(l, m); err != nil {
				t.Errorf("%c after LOST: %v", m.what, err)
			}
		}
		c.mu.Unlock()
		if c.keep.size() != 1000 {
			t.Errorf("%c after LOST: %d bytes are kept to be sent again", late.what, c.keep.size())
		}
	}
}

// What is being sent stays as it is, whatever the peer says meanwhile, and goes afterwards.
func TestPinned(t *testing.T) {
	var k keep
	k.begin(7)
	p := make([]byte, 3*blockSize)
	_, _ = rand.Read(p)
	k.append(p)
	k.drop(7 + blockSize/2)
	parts := k.since(7 + blockSize + 10)
	k.drop(k.end)
	if k.base != 7+blockSize+10 {
		t.Errorf("dropped up to %d", k.base)
	}
	if !bytes.Equal(bytes.Join(parts, nil), p[blockSize+10:]) {
		t.Error("other bytes")
	}
	if k.unpin(); k.size() != 0 || k.list != nil {
		t.Errorf("%d bytes in %d blocks left", k.size(), len(k.list))
	}
}

// holding writes in pairs that are held back together.
type holding struct{ *Conn }

func (h holding) Write(p []byte) (int, error) {
	h.Hold()
	defer h.Release()
	n, err := h.Conn.Write(p[:len(p)/2])
	if err != nil {
		return n, err
	}
	m, err := h.Conn.Write(p[len(p)/2:])
	return n + m, err
}

// What is held back arrives once and in order, through moves and cuts too.
func TestHold(t *testing.T) {
	n := newNet(t, 3, 2<<20)
	a, b := n.conns()
	both(t, holding{a}, holding{b}, 32<<20)
	if n.join.cuts.Load() == 0 {
		t.Error("nothing was cut")
	}
	a.Close()
	b.Close()
	n.quiet()
}

// Bytes that are held back are not sent before Release; CloseWrite sends them.
func TestHeldBack(t *testing.T) {
	n := newNet(t, 0, 0)
	a, b := n.conns()
	go func() { _, _ = a.Write(make([]byte, After)) }() // which makes it move
	if _, err := io.ReadFull(b, make([]byte, After)); err != nil {
		t.Fatal(err)
	}
	for !a.Beside() { // by the first write that finds the leg
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	a.Hold()
	if _, err := a.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := b.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came", n)
	}
	b.SetReadDeadline(time.Time{})
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(struct{ io.Reader }{b}); err != nil || string(got) != "held" {
		t.Errorf("%q, %v", got, err)
	}
	a.Release()
	a.Close()
	b.Close()
	n.quiet()
}

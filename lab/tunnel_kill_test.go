//go:build lab

package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/mux"
)

// killing is how much is moved and how often the carrier is killed meanwhile. EDGED_SOAK is for make soak-tunnel, which
// takes an hour or two; EDGED_SOAK_MIB says how much it moves by each rung.
func killing(t *testing.T) (size int64, kills int) {
	switch {
	case soaking():
		mib := 1024
		if text := os.Getenv("EDGED_SOAK_MIB"); text != "" {
			var err error
			mib, err = strconv.Atoi(text)
			must(t, "EDGED_SOAK_MIB", err)
		}
		return int64(mib) << 20, 100
	case os.Getenv("EDGED_LAB_FULL") != "":
		return 64 << 20, 20
	}
	return 8 << 20, 10
}

func soaking() bool { return os.Getenv("EDGED_SOAK") != "" }

// sockets are those that a host has opened for the tunnel, to be killed from below.
type sockets struct {
	host *Host
	next []*Host // where its packets arrive
	mu   sync.Mutex
	open []interface {
		io.Closer
		LocalAddr() net.Addr
	}
}

// watch makes the dialer's sockets known.
func (s *sockets) watch(d *carrier.Dialer) {
	tcp, udp := d.Proxy.TCP, d.UDP
	d.Proxy.TCP = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := tcp(ctx, network, address)
		if err == nil {
			s.mu.Lock()
			s.open = append(s.open, c)
			s.mu.Unlock()
		}
		return c, err
	}
	d.UDP = func(ctx context.Context) (net.PacketConn, error) {
		c, err := udp(ctx)
		if err == nil {
			s.mu.Lock()
			s.open = append(s.open, c)
			s.mu.Unlock()
		}
		return c, err
	}
}

// kill does it to one of the sockets that the carrier in use is made of: a reset, an end (of UDP: the socket is gone),
// or a hole in which all packets vanish.
func (s *sockets) kill(how string, rung carrier.Rung) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 1
	if rung == carrier.LongLived || rung == carrier.KeepAlive {
		n = 2
	}
	if len(s.open) < n {
		return net.ErrClosed
	}
	c := s.open[len(s.open)-1-rand.IntN(n)]
	tcp, isTCP := c.(*net.TCPConn)
	switch {
	case how == "hole":
		return s.hole(c.LocalAddr(), isTCP)
	case isTCP && how == "fin":
		return tcp.CloseWrite()
	case isTCP:
		_ = tcp.SetLinger(0)
	}
	return c.Close()
}

// hole drops every packet of a port of the host, where it arrives: dropped as it leaves, a datagram is an error for its sender.
func (s *sockets) hole(a net.Addr, tcp bool) error {
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return err
	}
	proto := map[bool]string{true: "tcp", false: "udp"}[tcp]
	errs := []error{s.host.dropFrom(proto + " dport " + port)}
	for _, h := range s.next {
		errs = append(errs, h.dropFrom(fmt.Sprintf("ip saddr %v %s sport %s", s.host.IP, proto, port)))
	}
	return errors.Join(errs...)
}

// dropFrom drops what arrives at the host and matches.
func (h *Host) dropFrom(match string) error {
	return h.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("add table inet holes\nadd chain inet holes in { type filter hook prerouting priority -400; }\n" +
			"add rule inet holes in " + match + " drop\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// serveSessions makes the relay's sessions resumable, with streams that echo.
func (r *pathRig) serveSessions(t *testing.T) {
	var mu sync.Mutex
	known := map[mux.ID]*mux.Session{}
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range known {
			_ = s.Close(mux.CodeClosed)
		}
	})
	r.server.Session = func(ctx context.Context, c *carrier.Carrier) {
		s, resumed, err := mux.Server(ctx, c.Conn, func(id mux.ID) *mux.Session { mu.Lock(); defer mu.Unlock(); return known[id] }, killedMux())
		if err != nil || resumed {
			return
		}
		mu.Lock()
		known[s.ID()] = s
		mu.Unlock()
		for {
			in, err := s.Accept(ctx)
			if err != nil {
				return
			}
			go func() {
				st := in.Accept()
				if _, err := io.Copy(struct{ io.Writer }{st}, struct{ io.Reader }{st}); err == nil {
					_ = st.CloseWrite()
				}
			}()
		}
	}
}

// killedMux finds out sooner than is usual that a carrier is dead: an end that has nothing to say only by its pings.
func killedMux() mux.Config {
	return mux.Config{DeadAfter: 1500 * time.Millisecond, PingEvery: time.Second}
}

// keep moves the session to a new carrier as often as it loses one.
func keep(ctx context.Context, t *testing.T, s *mux.Session, d *carrier.Dialer, resumed *atomic.Int64) {
	for {
		select {
		case <-s.Done():
			return
		case <-ctx.Done():
			return
		case <-s.Lost():
		}
		for ctx.Err() == nil {
			began := time.Now()
			attempt, cancel := context.WithTimeout(ctx, 20*time.Second)
			c, err := d.Dial(attempt)
			if err == nil {
				err = s.Resume(attempt, c.Conn)
			}
			cancel()
			if err == nil {
				resumed.Add(1)
				break
			}
			if s.Err() != nil {
				return
			}
			t.Logf("again after %v: %v", time.Since(began), err)
		}
	}
}

// wantSurvives moves size octets there and back in one stream while the carrier is killed again and again.
func (r *pathRig) wantSurvives(t *testing.T, h *Host, d *carrier.Dialer) {
	t.Helper()
	size, kills := killing(t)
	socks := &sockets{host: h, next: []*Host{r.GW, r.relay}}
	socks.watch(d)
	d.Probed = nil
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	began := time.Now()
	first, err := d.Dial(ctx)
	must(t, "dial", err)
	s, err := mux.Client(ctx, first.Conn, killedMux())
	must(t, "session", err)
	defer func() { _ = s.Close(mux.CodeClosed) }()
	k := &killer{socks: socks, rung: first.Rung, size: size, kills: kills}
	wg.Go(func() { keep(ctx, t, s, d, &k.resumed) })
	st, err := s.Open(ctx, nil, mux.OpenOptions{})
	must(t, "stream", err)
	sent := sha256.New()
	wg.Go(func() {
		source := &paced{ctx, k, io.LimitReader(rand.NewChaCha8([32]byte{1}), size), 0}
		if _, err := io.Copy(io.MultiWriter(sent, struct{ io.Writer }{st}), source); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := st.CloseWrite(); err != nil { // the half-close must leave the answer whole
			t.Errorf("half-close: %v", err)
		}
	})
	wg.Go(func() { k.run(ctx, t) })
	back := sha256.New()
	n, err := io.Copy(io.MultiWriter(back, counter{&k.received}), struct{ io.Reader }{st})
	if err != nil || n != size || string(back.Sum(nil)) != string(sent.Sum(nil)) {
		t.Errorf("%d of %d octets came back, %v, equal %v", n, size, err, string(back.Sum(nil)) == string(sent.Sum(nil)))
	}
	t.Logf("%s: %d MiB there and back, %d kills, %d resumes, %d KiB replayed, %v", strings.TrimPrefix(t.Name(), "TestTunnelRungsKilled/"),
		n>>20, k.done.Load(), k.resumed.Load(), s.Stats().Replayed>>10, time.Since(began).Round(time.Second))
	if got := int(k.resumed.Load()); got < kills {
		t.Errorf("resumed %d times for %d kills", got, kills)
	}
}

// run kills the carrier each time another part of what is to come has come, and waits until the session has moved on.
func (k *killer) run(ctx context.Context, t *testing.T) {
	ways := []string{"rst", "fin", "rst", "fin", "hole"}
	for i := range k.kills {
		at := k.part(int64(i)) + rand.N(k.part(1))
		if !waitFor(ctx, func() bool { return k.received.Load() >= at }) {
			return
		}
		if soaking() && i > 0 && i%10 == 0 {
			t.Logf("%d kills, %d MiB are back", i, k.received.Load()>>20)
		}
		before, how := k.resumed.Load(), ways[i%len(ways)]
		if !waitFor(ctx, func() bool { return k.socks.kill(how, k.rung) == nil }) { // the new one may not be there yet
			t.Errorf("kill %d: nothing to be killed", i)
			return
		}
		if !waitFor(ctx, func() bool { return k.resumed.Load() > before }) {
			return
		}
		k.done.Add(1)
	}
}

// part returns what n kills lie behind; some is left for after the last.
func (k *killer) part(n int64) int64 { return k.size * n / int64(k.kills+2) }

// paced is a source that stays so little ahead of the kills that each hits bytes in flight.
type paced struct {
	ctx  context.Context //nolint:containedctx // a reader has no other place for it
	k    *killer
	from io.Reader
	n    int64
}

// Read waits until there is something that may be sent.
func (p *paced) Read(b []byte) (int, error) {
	left := func() int64 { return p.k.part(p.k.done.Load()+2) - p.n }
	if !waitFor(p.ctx, func() bool { return left() > 0 || p.n >= p.k.size }) {
		return 0, p.ctx.Err()
	}
	if p.n < p.k.size {
		b = b[:min(int64(len(b)), left())]
	}
	n, err := p.from.Read(b)
	p.n += int64(n)
	return n, err
}

// waitFor polls until cond is true; false if ctx has ended before.
func waitFor(ctx context.Context, cond func() bool) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// killer kills carriers, and knows how far everything has come.
type killer struct {
	socks *sockets
	rung  carrier.Rung
	size  int64
	kills int

	received, resumed, done atomic.Int64
}

// counter counts what is written.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

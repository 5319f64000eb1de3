package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/relay"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// patience is for a loaded machine.
const patience = time.Minute

func newKey(t testing.TB) device.Key {
	t.Helper()
	k, err := device.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// hub is a relay on loopback whose carriers are TLS and nothing else.
type hub struct {
	key      device.Key
	relay    *relay.Relay
	registry *device.Registry
	at       string
	peers    map[device.ID]bool // written before their connections come

	mu    sync.Mutex
	conns map[net.Conn]bool // that are open, to be cut
}

// quietly returns a log that is silent once the test is over: goroutines of cut connections may be a little later.
func quietly(t testing.TB) *zap.Logger { return zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)) }

func newHub(t *testing.T, rules relay.Rules, deps relay.Deps, known ...device.Device) *hub {
	t.Helper()
	h := &hub{key: newKey(t), registry: &device.Registry{}, conns: map[net.Conn]bool{}, peers: map[device.ID]bool{}}
	if err := h.registry.Replace(known); err != nil {
		t.Fatal(err)
	}
	if rules.Limits == (relay.Limits{}) {
		rules.Limits = relay.DefaultLimits()
	}
	deps.Registry, deps.Peers = h.registry, h.peers
	h.relay = relay.New(rules, deps, quietly(t))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.at = ln.Addr().String()
	cfg, err := device.ServerTLS(h.key, h.relay.Admit)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			run.Go(func() { h.take(ctx, conn, cfg) })
		}
	})
	t.Cleanup(func() {
		cancel()
		ln.Close()
		h.cut()
		h.relay.Wait()
		run.Wait()
	})
	return h
}

func (h *hub) take(ctx context.Context, raw net.Conn, cfg *tls.Config) {
	h.mu.Lock()
	h.conns[raw] = true
	h.mu.Unlock()
	c := tls.Server(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return
	}
	id, err := device.PeerID(c.ConnectionState())
	if err != nil {
		raw.Close()
		return
	}
	h.relay.Session(ctx, c, id, relay.Via{Rung: "tls", Path: "direct", Remote: raw.RemoteAddr().String()})
}

// cut closes all connections that devices have.
func (h *hub) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.Close()
		delete(h.conns, c)
	}
}

// direct dials a hub by TLS.
type direct struct {
	key device.Key
	hub *hub
}

func (d direct) Dial(ctx context.Context) (*uplink.Carrier, error) {
	cfg, err := device.ClientTLS(d.key, d.hub.key.ID(), "")
	if err != nil {
		return nil, err
	}
	c, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", d.hub.at)
	if err != nil {
		return nil, err
	}
	return &uplink.Carrier{Conn: c, Rung: "tls", Path: "direct"}, nil
}

func (direct) Better(context.Context, *uplink.Carrier) (*uplink.Carrier, error) { return nil, nil }

// site is a running agent.
type site struct {
	*Agent
	up *uplink.Uplink
}

// join runs an agent at hubs until the test ends.
func join(t *testing.T, key device.Key, cfg Config, hubs ...*hub) *site {
	t.Helper()
	return joinWith(t, Deps{Key: key}, cfg, hubs...)
}

func joinWith(t *testing.T, deps Deps, cfg Config, hubs ...*hub) *site {
	t.Helper()
	key := deps.Key
	var dialers []uplink.Dialer
	for _, h := range hubs {
		dialers = append(dialers, direct{key, h})
	}
	up := uplink.New(dialers, uplink.Config{Pause: 20 * time.Millisecond, MaxPause: time.Second}, quietly(t))
	deps.Uplink = up
	a := New(cfg, deps, quietly(t))
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { a.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	return &site{a, up}
}

// echoTCP is a service that answers everything, and ends when it is told so.
func echoTCP(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var run sync.WaitGroup
	run.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			run.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		run.Wait()
	})
	return ln.Addr().String()
}

// pair is two sites at one relay: a may reach b's services.
type pair struct {
	*hub
	a, b       *site
	keyA, keyB device.Key
	known      []device.Device
}

func newPair(t *testing.T, policy device.Policy, services map[string]Service) *pair {
	t.Helper()
	p := &pair{keyA: newKey(t), keyB: newKey(t)}
	p.known = []device.Device{{ID: p.keyA.ID(), Name: "a", Groups: []string{"sites"}}, {ID: p.keyB.ID(), Name: "b", Groups: []string{"sites"}}}
	p.hub = newHub(t, relay.Rules{Policy: policy}, relay.Deps{}, p.known...)
	devices := map[string]device.ID{"a": p.keyA.ID(), "b": p.keyB.ID()}
	p.a = join(t, p.keyA, Config{Devices: devices}, p.hub)
	p.b = join(t, p.keyB, Config{Devices: devices, Services: services}, p.hub)
	for _, s := range []*site{p.a, p.b} {
		if _, err := s.up.Session(timeout(t)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are attached", func() bool { return len(p.relay.Tunnels()) == 2 })
	return p
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("not so: ", what)
		}
	}
}

func everything() device.Policy {
	return device.Policy{{From: "a", To: "b", Services: []string{device.Any}}}
}

// listen opens a forward of a site, and returns where.
func (s *site) listen(t *testing.T, f Forward) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	var at string
	if f.Listen.Proto == "udp" {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at = pc.LocalAddr().String()
		run.Go(func() { s.ServeUDP(ctx, pc, f) })
	} else {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at = ln.Addr().String()
		run.Go(func() { s.ServeTCP(ctx, ln, f) })
	}
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	return at
}

func dialTCP(t *testing.T, at string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func TestForwardTCP(t *testing.T) {
	p := newPair(t, everything(), map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"a"}}})
	at := p.a.listen(t, Forward{Device: "b", Service: "echo"})
	var run sync.WaitGroup
	for i := range 4 {
		run.Go(func() {
			if err := through(dialTCP(t, at), 3<<20+i); err != nil {
				t.Error(err)
			}
		})
	}
	run.Wait()
	eventually(t, "no stream is left", func() bool { return p.relay.Open() == 0 })
}

// through sends n octets, ends its direction, and wants them all back and then the end.
func through(c *net.TCPConn, n int) error {
	want := sha256.New()
	var sent error
	var run sync.WaitGroup
	run.Go(func() {
		_, sent = io.CopyN(io.MultiWriter(c, want), rand.Reader, int64(n))
		if sent == nil {
			sent = c.CloseWrite()
		}
	})
	got := sha256.New()
	m, err := io.Copy(got, c)
	run.Wait()
	if err := errors.Join(err, sent); err != nil {
		return err
	}
	if m != int64(n) || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%d octets sent, %d came back, alike: %v", n, m, bytes.Equal(got.Sum(nil), want.Sum(nil)))
	}
	return nil
}

// TestCarrierLost cuts every connection again and again while bytes flow: the applications notice nothing.
func TestCarrierLost(t *testing.T) {
	p := newPair(t, everything(), map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"*"}}})
	at := p.a.listen(t, Forward{Device: "b", Service: "echo"})
	done := make(chan error, 1)
	c := dialTCP(t, at)
	go func() { done <- through(c, 16<<20) }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for cuts := 0; ; cuts++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if n := p.a.up.State().Resumes + p.b.up.State().Resumes; n == 0 && cuts > 1 {
				t.Errorf("%d cuts, and no session has been resumed", cuts)
			}
			return
		case <-tick.C:
			p.cut()
		}
	}
}

// TestRefused: whatever refuses, the application's connection is reset.
func TestRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	policy := device.Policy{{From: "a", To: "b", Services: []string{"echo", "closed", "others", "none", "packets"}}}
	p := newPair(t, policy, map[string]Service{
		"echo": {TCP: echoTCP(t), Allow: []string{"a"}}, "closed": {TCP: closed, Allow: []string{"a"}}, "others": {TCP: closed, Allow: []string{"b"}},
		"secret": {TCP: echoTCP(t), Allow: []string{"a"}}, "packets": {UDP: closed, Allow: []string{"a"}},
	})
	for service, want := range map[string]mux.Code{
		"secret": mux.CodeLockedOut, "closed": mux.CodeHostNotReachable, "others": mux.CodeNoSuchService, "none": mux.CodeNoSuchService, "packets": mux.CodeNoSuchService,
	} {
		_, err := p.a.Dial(timeout(t), "b", service)
		var reset *mux.ResetError
		if !errors.As(err, &reset) || reset.Code != want {
			t.Errorf("%s: %v, want %v", service, err, want)
		}
		c, err := net.Dial("tcp", p.a.listen(t, Forward{Device: "b", Service: service}))
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the application sees %v", service, err)
		}
	}
	if _, err := p.b.Dial(timeout(t), "a", "echo"); reason(err) != "locked_out" {
		t.Errorf("the other way round: %v", err)
	}
	if _, err := p.a.Dial(timeout(t), newKey(t).ID().String(), "echo"); reason(err) != "locked_out" {
		t.Errorf("a device that does not exist: %v", err)
	}
	if c, err := p.a.Dial(timeout(t), "b", "echo"); err != nil {
		t.Error("what is allowed: ", err)
	} else {
		c.Close()
	}
}

// TestReset: a reset at one end is a reset at the other, both ways.
func TestReset(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := newPair(t, everything(), map[string]Service{"x": {TCP: ln.Addr().String(), Allow: []string{"a"}}})
	at := p.a.listen(t, Forward{Device: "b", Service: "x"})
	for _, byCaller := range []bool{true, false} {
		caller := dialTCP(t, at)
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		called := conn.(*net.TCPConn)
		called.SetDeadline(time.Now().Add(patience))
		first, second := caller, called
		if !byCaller {
			first, second = called, caller
		}
		first.SetLinger(0)
		first.Close()
		if _, err := second.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reset by the caller: %v: the other sees %v", byCaller, err)
		}
		second.Close()
	}
}

// TestRelayEnds: when a relay ends its sessions, an application sees an error and never an orderly end.
func TestRelayEnds(t *testing.T) {
	p := newPair(t, everything(), map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"a"}}})
	at := p.a.listen(t, Forward{Device: "b", Service: "echo"})
	for range 4 {
		eventually(t, "both are attached", func() bool { return len(p.relay.Tunnels()) == 2 })
		c := dialTCP(t, at)
		if err := through1(c); err != nil {
			t.Fatal(err)
		}
		if err := p.registry.Replace(nil); err != nil {
			t.Fatal(err)
		}
		p.relay.Reload(relay.Rules{Policy: everything(), Limits: relay.DefaultLimits()})
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the application sees %v", err)
		}
		if err := p.registry.Replace(p.known); err != nil {
			t.Fatal(err)
		}
	}
}

// through1 sends one octet and wants it back.
func through1(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// TestPolicyReload: what is not allowed any more ends, and a device that is removed is cut off.
func TestPolicyReload(t *testing.T) {
	p := newPair(t, everything(), map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"a"}}})
	c := dialTCP(t, p.a.listen(t, Forward{Device: "b", Service: "echo"}))
	if err := through1(c); err != nil {
		t.Fatal(err)
	}
	p.relay.Reload(relay.Rules{Policy: everything(), Limits: relay.DefaultLimits()})
	if n := p.relay.Open(); n != 1 {
		t.Fatalf("%d streams after a reload that changes nothing", n)
	}
	p.relay.Reload(relay.Rules{Limits: relay.DefaultLimits()})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("forbidden meanwhile: %v", err)
	}
	if err := p.registry.Replace(p.known[:1]); err != nil {
		t.Fatal(err)
	}
	p.relay.Reload(relay.Rules{Policy: everything(), Limits: relay.DefaultLimits()})
	eventually(t, "the removed device is gone", func() bool {
		list := p.relay.Tunnels()
		return len(list) == 1 && list[0].Device == "a"
	})
}

func TestForwardUDP(t *testing.T) {
	target, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p := newPair(t, everything(), map[string]Service{"sip": {UDP: target.LocalAddr().String(), Allow: []string{"a"}, Idle: time.Hour}})
	at := p.a.listen(t, Forward{Listen: Listen{Proto: "udp"}, Device: "b", Service: "sip"})
	var run sync.WaitGroup
	run.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := target.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			target.WriteToUDPAddrPort(append(buf[:n:n], '!'), from)
		}
	})
	for i := range 3 { // sources, each with a flow of its own
		c, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		for j := range 5 {
			text := fmt.Sprintf("packet %d of %d %s", j, i, bytes.Repeat([]byte("x"), j*300))
			if got := ask(t, c, text); got != text+"!" {
				t.Errorf("%.20q is answered by %.20q", text, got)
			}
		}
		c.Close()
	}
	if list := p.relay.Streams(); len(list) != 3 || !list[0].Datagrams {
		t.Errorf("streams: %+v", list)
	}
	target.Close()
	run.Wait()
}

// ask sends a datagram until it is answered: it may be lost.
func ask(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	buf := make([]byte, 4000)
	for range 60 {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			if len(buf[:n]) >= len(text) && string(buf[:len(text)]) == text { // else the answer to one sent twice
				return string(buf[:n])
			}
		}
	}
	return ""
}

// TestTwoRelays: devices at different relays meet by one hop, and not by two.
func TestTwoRelays(t *testing.T) {
	keys := []device.Key{newKey(t), newKey(t), newKey(t)}
	known := []device.Device{{ID: keys[0].ID(), Name: "a"}, {ID: keys[1].ID(), Name: "b"}, {ID: keys[2].ID(), Name: "c"}}
	policy := device.Policy{{From: "a", To: device.Any, Services: []string{"echo"}}}
	far := newHub(t, relay.Rules{Policy: policy}, relay.Deps{}, known...)
	keyMiddle := newKey(t)
	up := uplink.New([]uplink.Dialer{direct{keyMiddle, far}}, uplink.Config{Pause: 20 * time.Millisecond}, quietly(t))
	near := newHub(t, relay.Rules{Policy: policy}, relay.Deps{Upstreams: []relay.Upstream{up}}, known...)
	peerOf(t, far, keyMiddle, up)
	devices := map[string]device.ID{"a": keys[0].ID(), "b": keys[1].ID(), "c": keys[2].ID()}
	services := map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"a"}}}
	a := join(t, keys[0], Config{Devices: devices}, near)
	join(t, keys[1], Config{Devices: devices, Services: services}, far)
	at := a.listen(t, Forward{Device: "b", Service: "echo"})
	eventually(t, "b is attached there", func() bool { return len(far.relay.Tunnels()) == 2 })
	if err := through(dialTCP(t, at), 1<<20); err != nil {
		t.Error(err)
	}
	if _, err := a.Dial(timeout(t), "c", "echo"); reason(err) != "offline" {
		t.Errorf("who is nowhere: %v", err)
	}
}

// peerOf has a relay know another as its peer, and runs that one's uplink.
func peerOf(t *testing.T, h *hub, key device.Key, up *uplink.Uplink) {
	t.Helper()
	h.peers[key.ID()] = true
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		up.Run(ctx, func(ctx context.Context, s *mux.Session) { <-s.Done() })
	})
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
}

// TestSecondRelay: when the first relay cannot be reached the next one is used.
func TestSecondRelay(t *testing.T) {
	key := newKey(t)
	good := newHub(t, relay.Rules{}, relay.Deps{}, device.Device{ID: key.ID(), Name: "a"})
	strange := newHub(t, relay.Rules{}, relay.Deps{})
	a := join(t, key, Config{}, strange, good)
	if _, err := a.up.Session(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if st := a.up.State(); st.Relay != 1 {
		t.Errorf("attached at %+v", st)
	}
}

// TestWrongRelay: nothing is said to a relay with another key.
func TestWrongRelay(t *testing.T) {
	key := newKey(t)
	h := newHub(t, relay.Rules{}, relay.Deps{}, device.Device{ID: key.ID(), Name: "a"})
	expected := &hub{key: newKey(t), at: h.at}
	if _, err := (direct{key, expected}).Dial(timeout(t)); err == nil {
		t.Error("the device talks to a relay whose key it does not know")
	}
}

func TestBandwidth(t *testing.T) {
	p := newPair(t, everything(), map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"a"}}})
	limits := relay.DefaultLimits()
	limits.Bandwidth = 2 << 20
	p.relay.Reload(relay.Rules{Policy: everything(), Limits: limits})
	began := time.Now()
	if err := through(dialTCP(t, p.a.listen(t, Forward{Device: "b", Service: "echo"})), 3<<20); err != nil {
		t.Error(err)
	}
	// 3 MiB there and back, of which one second's worth was there: at least 2 s.
	if d := time.Since(began); d < 1900*time.Millisecond {
		t.Errorf("6 MiB at 2 MiB/s in %v", d)
	}
}

func TestNeighbours(t *testing.T) {
	p := newPair(t, everything(), nil)
	list, err := p.a.Neighbours(timeout(t))
	if err != nil || len(list) != 1 || list[0] != (Neighbour{p.keyB.ID(), "b", true}) {
		t.Errorf("a may reach %+v, %v", list, err)
	}
	list, err = p.b.Neighbours(timeout(t))
	if err != nil || len(list) != 0 {
		t.Errorf("b may reach %+v, %v", list, err)
	}
}

// TestCut: the end of the stream alone, which the relay could bring about, is no end of what the other device says.
func TestCut(t *testing.T) {
	keyA, keyB := newKey(t), newKey(t)
	x, y := net.Pipe()
	served := make(chan *mux.Session, 1)
	go func() {
		s, _, err := mux.Server(t.Context(), y, func(mux.ID) *mux.Session { return nil }, mux.Config{})
		if err != nil {
			t.Error(err)
		}
		served <- s
	}()
	a, err := mux.Client(t.Context(), x, mux.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b := <-served
	defer a.Close(mux.CodeClosed)
	defer b.Close(mux.CodeClosed)
	for _, orderly := range []bool{true, false} {
		called, caller := secured(t, a, b, keyA, keyB)
		if _, err := called.Write([]byte("all of it?")); err != nil {
			t.Fatal(err)
		}
		if orderly {
			err = called.CloseWrite()
		} else {
			err = called.below.CloseWrite()
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(caller)
		if string(text) != "all of it?" || (err == nil) != orderly || !orderly && !errors.Is(err, ErrCut) {
			t.Errorf("in order: %v: %q, %v", orderly, text, err)
		}
		called.Reset(mux.CodeClosed)
	}
}

// secured opens a stream and has both ends speak TLS.
func secured(t *testing.T, a, b *mux.Session, keyA, keyB device.Key) (called, caller *Conn) {
	t.Helper()
	done := make(chan *Conn, 1)
	go func() {
		in, err := b.Accept(t.Context())
		var c *Conn
		if err == nil {
			var cfg *tls.Config
			if cfg, err = device.EndServerTLS(keyB, keyA.ID()); err == nil {
				c, err = handshake(t.Context(), in.Accept(), cfg, false, false, keyA.ID(), nil)
			}
		}
		if err != nil {
			t.Error(err)
		}
		done <- c
	}()
	s, err := a.Open(timeout(t), []byte{1}, mux.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := device.EndClientTLS(keyA, keyB.ID())
	if err != nil {
		t.Fatal(err)
	}
	caller, err = handshake(timeout(t), s, cfg, true, false, keyB.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if called = <-done; called == nil {
		t.FailNow()
	}
	return called, caller
}

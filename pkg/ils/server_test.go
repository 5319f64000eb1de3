package ils

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/ils/ber"
	"edged.dev/edged/pkg/pinhole"
)

// On the loopback the inside is 127.1/16 and the outside all else; the edge's public address is 198.51.100.1.
func loopback() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.1.0.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{publicAddr}},
	}
}

// slow bounds each wait of a test, for a loaded machine.
const slow = 30 * time.Second

// relayed is a server with a listener on each network.
type relayed struct {
	t       *testing.T
	server  *Server
	inside  string
	outside string
}

func serve(t *testing.T, cfg Config, limit int) *relayed {
	t.Helper()
	cfg.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 389}, {Proto: "tcp", Network: "outside", Port: 389}}
	srv, err := New(cfg, Deps{Networks: loopback(), Connections: limit}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	r := &relayed{t: t, server: srv}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for _, name := range []string{"inside", "outside"} {
		ln := listen(t)
		if name == "inside" {
			r.inside = ln.Addr().String()
		} else {
			r.outside = ln.Addr().String()
		}
		work.Go(func() {
			if err := srv.ServeListener(ctx, name, ln); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
	return r
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// client is an LDAP client.
type client struct {
	t    *testing.T
	conn net.Conn
	buf  []byte
}

// dial connects from the address to an own listener.
func (r *relayed) dial(from, to string) *client {
	r.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: slow}
	conn, err := d.Dial("tcp4", to)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(slow))
	return &client{t: r.t, conn: conn}
}

func (c *client) send(b ...[]byte) {
	c.t.Helper()
	if _, err := c.conn.Write(bytes.Join(b, nil)); err != nil {
		c.t.Fatal(err)
	}
}

// receive returns the next message.
func (c *client) receive() message {
	c.t.Helper()
	for {
		if n, err := ber.Size(c.buf); err != nil {
			c.t.Fatalf("%x: %v", c.buf, err)
		} else if n > 0 && n <= len(c.buf) {
			m, err := parse(c.buf[:n])
			if err != nil {
				c.t.Fatalf("%x: %v", c.buf[:n], err)
			}
			c.buf = c.buf[n:]
			return m
		}
		b := make([]byte, 4096)
		n, err := c.conn.Read(b)
		if err != nil {
			c.t.Fatalf("receive: %v", err)
		}
		c.buf = append(c.buf, b[:n]...)
	}
}

// expect receives a response and checks its tag and result.
func (c *client) expect(tag byte, code int32) message {
	c.t.Helper()
	m := c.receive()
	if m.op.Tag != tag || m.result() != code {
		c.t.Fatalf("got %#x with the result %d, want %#x with %d", m.op.Tag, m.result(), tag, code)
	}
	return m
}

// closed waits for the other side to close.
func (c *client) closed() {
	c.t.Helper()
	if b, err := io.ReadAll(c.conn); err != nil && !strings.Contains(err.Error(), "reset") {
		c.t.Fatalf("not closed: %d octets, %v", len(b), err)
	}
}

func bindRequest(id int32) []byte {
	return envelope(id, ber.Append(nil, opBind, []byte{2, 1, 2, 4, 0, 0x80, 0}))
}

func unbind(id int32) []byte { return envelope(id, []byte{opUnbind, 0}) }

// TestBuiltin registers, reads from both sides, changes, refreshes and deletes.
func TestBuiltin(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Server = Builtin
	r := serve(t, cfg, 0)
	alice := r.dial("127.1.0.2", r.inside)
	const own = "33554815" // 127.1.0.2
	alice.send(bindRequest(1), entry(2, opAdd, aliceDN, attr{"cn", "alice@example.org"}, attr{"sipaddress", own}, attr{"objectClass", "RTPerson"}),
		change(3, aliceDN, attr{"sappid", "ms-netmeeting"}, attr{"sprotid", "h323"}, attr{"sport", "2720"}), entry(4, opAdd, aliceDN))
	alice.expect(opBindResponse, resultOK)
	alice.expect(opAddResponse, resultOK)
	alice.expect(opModifyResponse, resultOK)
	alice.expect(opAddResponse, resultExists)

	lookup := func(id int32, items ...[]byte) []byte {
		return query(id, base, and(append(items, equal("objectClass", "rtperson"), equal("cn", "Alice@example.org"))...), "ipAddress", "sport")
	}
	for _, tc := range []struct{ from, to, addr, port string }{
		{"127.1.0.3", r.inside, own, "2720"},
		{"127.0.0.1", r.outside, pub, "1720"},
	} {
		c := r.dial(tc.from, tc.to)
		c.send(lookup(5, equal("sappid", "ms-netmeeting"), equal("sprotid", "%")))
		m := c.receive()
		if got := strings.Join(leaves(t, m.raw)[1:], " "); got != aliceDN+" sipaddress "+tc.addr+" sport "+tc.port {
			t.Errorf("%s reads %q", tc.from, got)
		}
		c.expect(opSearchDone, resultOK)
		c.send(lookup(6, equal("sappid", "other")))
		c.expect(opSearchDone, resultOK)
		c.send(change(7, aliceDN, attr{"sipaddress", "1"}), envelope(8, str(opDelete, aliceDN)))
		c.expect(opModifyResponse, resultNoAccess)
		c.expect(opDeleteResponse, resultNoAccess)
		c.send(unbind(9))
		c.closed()
	}
	reg := r.server.Registry()
	if to, ok := reg.Route("", publicAddr, netip.MustParseAddr("127.0.0.1"), H323); !ok || to.String() != "127.1.0.2:2720" {
		t.Errorf("after the lookup a call goes to %v, %v", to, ok)
	}
	alice.send(lookup(10, equal("sttl", "10")))
	alice.receive()
	alice.expect(opSearchDone, resultOK)
	if e, _ := reg.Lookup("alice@example.org"); time.Until(e.Expires) > 10*time.Minute {
		t.Errorf("the refresh to 10 minutes made it %v", time.Until(e.Expires))
	}
	alice.send(envelope(11, str(opDelete, strings.ToUpper(aliceDN))))
	alice.expect(opDeleteResponse, resultOK)
	if got := reg.Entries(); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
	alice.conn.(*net.TCPConn).CloseWrite()
	alice.closed()
}

// upstream accepts one connection of the relay's.
func upstream(t *testing.T) (addr string, accept func() *client) {
	t.Helper()
	ln := listen(t)
	return ln.Addr().String(), func() *client {
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(slow))
		return &client{t: t, conn: conn}
	}
}

// TestRelay passes requests and answers, edits them, and keeps the half-close.
func TestRelay(t *testing.T) {
	cfg := DefaultConfig()
	addr, accept := upstream(t)
	cfg.Server = addr
	r := serve(t, cfg, 0)
	c := r.dial("127.1.0.2", r.inside)
	c.send(entry(2, opAdd, aliceDN, attr{"sipaddress", "33554815"}), unbind(3))
	c.conn.(*net.TCPConn).CloseWrite()
	s := accept()
	if m := s.receive(); !slices.Contains(leaves(t, m.raw), pub) {
		t.Errorf("the server got %q", m.raw)
	}
	if m := s.receive(); m.op.Tag != opUnbind {
		t.Errorf("the server got %q", m.raw)
	}
	if n, err := s.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("no half-close: %d, %v", n, err)
	}
	s.send(result(2, opAddResponse, 0))
	s.conn.Close()
	c.expect(opAddResponse, 0)
	c.closed()
	if e, ok := r.server.Registry().Lookup("alice@example.org"); !ok || e.Host.String() != "127.1.0.2" {
		t.Errorf("registered %+v, %v", e, ok)
	}
}

// TestStartTLS: once the server has agreed, what follows is nobody's business.
func TestStartTLS(t *testing.T) {
	cfg := DefaultConfig()
	addr, accept := upstream(t)
	cfg.Server = addr
	r := serve(t, cfg, 0)
	c := r.dial("127.1.0.2", r.inside)
	c.send(envelope(1, ber.Append(nil, opExtended, str(0x80, oidStartTLS))))
	s := accept()
	s.receive()
	s.send(result(1, opExtendedDone, 0))
	c.expect(opExtendedDone, 0)
	secret := append([]byte{0x16, 3, 1, 0xff}, entry(2, opAdd, aliceDN, attr{"sipaddress", "33554815"})...)
	for _, way := range [][2]*client{{c, s}, {s, c}} {
		way[0].send(secret)
		got := make([]byte, len(secret))
		if _, err := io.ReadFull(way[1].conn, got); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// TestSealedFromOutside: an outside client of an inside directory is read to the last octet, for what it wrote unread
// would come back as an inside host in a plain answer. However it begins to hide, its connection ends.
func TestSealedFromOutside(t *testing.T) {
	secret := append([]byte{0x16, 3, 1, 0xff}, entry(2, opAdd, aliceDN, attr{"sipaddress", "33554815"})...)
	saslBind := envelope(1, ber.Append(nil, opBind, []byte{2, 1, 3, 4, 0}, ber.Append(nil, 0xa3, str(4, "SRP"))))
	startTLS := envelope(1, ber.Append(nil, opExtended, str(0x80, oidStartTLS)))
	for _, tc := range []struct {
		name                string
		ask, answer, hidden []byte
	}{
		{"StartTLS", nil, nil, startTLS},
		{"StartTLS, and at once", nil, nil, append(slices.Clone(startTLS), secret...)},
		{"SASL", saslBind, result(1, opBindResponse, 0), append([]byte{0, 0, 0, 40}, secret...)},
		{"TLS from the start", nil, nil, secret},
	} {
		for _, piece := range []int{1 << 20, 1} {
			s := newEdge().session(outsideHost, true)
			s.request(tc.ask)
			s.response(tc.answer)
			f := framer{limit: 1 << 16, opaque: s.opaque, seal: s.seal, refuse: s.sealing()}
			var out []byte
			var err error
			for part := range slices.Chunk(tc.hidden, piece) {
				f.filled(copy(f.space(), part))
				var got []byte
				if got, err = f.drain(s.request); err != nil {
					break
				}
				out = append(out, got...)
			}
			if !errors.Is(err, errSealed) || len(out) > 0 {
				t.Errorf("%s in pieces of %d: passed %x, %v", tc.name, piece, out, err)
			}
		}
	}
	s := newEdge().session(outsideHost, false)
	if _, err := s.request(startTLS); err != nil || s.sealing() != nil {
		t.Errorf("to an outside directory: %v", err)
	}
}

// TestSilent: no directory is reached for a client that says nothing, and it does not stay.
func TestSilent(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Server = "198.51.100.30:389"
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		s, err := New(cfg, Deps{Networks: loopback(), Dial: func(context.Context, string) (net.Conn, error) {
			dials++
			return nil, errors.New("unreachable")
		}}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		for _, says := range []string{"", "0"} {
			client, edge := net.Pipe()
			began := time.Now()
			if says != "" {
				go client.Write([]byte(says))
			}
			s.serve(t.Context(), "inside", edge)
			client.Close()
			if took := time.Since(began); says == "" && took != firstTimeout || dials != len(says) {
				t.Errorf("%q: closed after %v, directories reached: %d", says, took, dials)
			}
		}
		if s.count.drops["silent"] != 1 || s.count.drops["dial"] != 1 {
			t.Errorf("counted %v", s.count.drops)
		}
	})
}

// TestSASL: after a SASL bind messages are read until one is wrapped.
func TestSASL(t *testing.T) {
	s := newEdge().session(insideHost, false)
	s.request(envelope(1, ber.Append(nil, opBind, []byte{2, 1, 3, 4, 0}, ber.Append(nil, 0xa3, str(4, "SRP")))))
	s.response(result(1, opBindResponse, 0))
	if s.opaque(0x30) {
		t.Error("readable messages are taken for wrapped")
	}
	if !s.opaque(0) || !s.opaque(0x30) {
		t.Error("wrapped messages are not passed as they are")
	}
	s = newEdge().session(insideHost, false)
	s.request(envelope(1, ber.Append(nil, opBind, []byte{2, 1, 3, 4, 0}, ber.Append(nil, 0xa3, str(4, "SRP")))))
	s.response(result(1, opBindResponse, 49))
	if s.opaque(0) {
		t.Error("a refused bind wraps")
	}
}

// TestHostile: each is refused with its reason, and the connection closed.
func TestHostile(t *testing.T) {
	deep := equal("cn", "x")
	for range 10000 {
		deep = ber.Append(nil, filterNot, deep)
	}
	var many []attr
	for range maxValues + 1 {
		many = append(many, attr{"sipaddress", in2})
	}
	var flood [][]byte
	for i := range maxPending + 1 {
		flood = append(flood, query(int32(i+1), base, equal("cn", "x")))
	}
	cfg := DefaultConfig()
	addr, accept := upstream(t)
	cfg.Server = addr
	cfg.MaxMessage = 64 << 10
	r := serve(t, cfg, 0)
	for _, tc := range []struct {
		name, reason string
		data         []byte
	}{
		{"length ffffffff", "malformed", []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}},
		{"length of a gigabyte", "message_size", []byte{0x30, 0x84, 0x3f, 0xff, 0xff, 0xff}},
		{"indefinite length", "malformed", []byte{0x30, 0x80}},
		{"length of five octets", "malformed", []byte{0x30, 0x85, 0, 0, 0, 0, 1}},
		{"longer than the limit", "message_size", []byte{0x30, 0x83, 1, 0, 1}},
		{"HTTP", "not_ldap", []byte("GET / HTTP/1.1\r\n\r\n")},
		{"TPKT", "not_ldap", []byte{3, 0, 0, 4}},
		{"garbage after a message", "malformed", append(unbind(1), 'x')},
		{"empty", "malformed", []byte{0x30, 0}},
		{"no operation", "malformed", []byte{0x30, 3, 2, 1, 1}},
		{"negative message ID", "malformed", []byte{0x30, 5, 2, 1, 0xff, 0x42, 0}},
		{"operation overruns", "malformed", []byte{0x30, 5, 2, 1, 1, 0x42, 9}},
		{"filter of depth 10,000", "filter_depth", query(1, base, deep)},
		{"too many values", "values", entry(1, opAdd, aliceDN, many...)},
		{"add without attributes", "malformed", envelope(1, ber.Append(nil, opAdd, str(4, aliceDN)))},
		{"modify cut short", "malformed", envelope(1, ber.Append(nil, opModify, str(4, aliceDN), []byte{0x30, 2, 0x30, 9}))},
		{"search cut short", "malformed", envelope(1, ber.Append(nil, opSearch, str(4, aliceDN)))},
		{"compare without a value", "malformed", envelope(1, ber.Append(nil, opCompare, str(4, aliceDN), ber.Append(nil, ber.Sequence)))},
		{"bind without a version", "malformed", envelope(1, ber.Append(nil, opBind, str(4, "")))},
		{"operations never answered", "pending", bytes.Join(flood, nil)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.t = t
			before := r.drops(tc.reason)
			c := r.dial("127.1.0.2", r.inside)
			go c.conn.Write(tc.data)
			go io.Copy(io.Discard, accept().conn)
			c.closed()
			for end := time.Now().Add(slow); r.drops(tc.reason) == before; <-time.After(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("not counted as %s", tc.reason)
				}
			}
		})
	}
}

func (r *relayed) drops(reason string) uint64 {
	r.server.count.mu.Lock()
	defer r.server.count.mu.Unlock()
	return r.server.count.drops[reason]
}

// TestLongAnswer: an answer longer than the limit passes unread, and the next is read again.
func TestLongAnswer(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxMessage = 4096
	addr, accept := upstream(t)
	cfg.Server = addr
	r := serve(t, cfg, 0)
	register(t, &edge{cfg, r.server.registry, r.server.count}, netip.MustParseAddr("10.77.1.2"), false, bobDN, in2)
	c := r.dial("127.1.0.2", r.inside)
	c.send(bindRequest(1)) // the directory is reached once a client has spoken
	s := accept()
	photo := entry(7, opEntry, bobDN, attr{"sipaddress", pub}, attr{"jpegPhoto", strings.Repeat("x", 1<<20)})
	short := entry(8, opEntry, bobDN, attr{"sipaddress", pub})
	go s.conn.Write(append(slices.Clone(photo), short...))
	if m := c.receive(); !bytes.Equal(m.raw, photo) {
		t.Errorf("the long answer changed: %d octets of %d", len(m.raw), len(photo))
	}
	if m := c.receive(); !slices.Contains(leaves(t, m.raw), in2) {
		t.Errorf("the one after it was not read: %q", m.raw)
	}
}

// TestLimit: one source has so many connections and no more.
func TestLimit(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Server = Builtin
	r := serve(t, cfg, 2)
	held := []*client{r.dial("127.1.0.2", r.inside), r.dial("127.1.0.2", r.inside)}
	for _, c := range held {
		c.send(bindRequest(1))
		c.expect(opBindResponse, 0)
	}
	r.dial("127.1.0.2", r.inside).closed()
	other := r.dial("127.1.0.3", r.inside)
	other.send(bindRequest(1))
	other.expect(opBindResponse, 0)
	if r.drops("connections") != 1 {
		t.Errorf("drops: %d", r.drops("connections"))
	}
	r.server.SetPerSource(3)
	third := r.dial("127.1.0.2", r.inside)
	third.send(bindRequest(1))
	third.expect(opBindResponse, 0)
}

// addressed is a connection with a local address.
type addressed struct {
	net.Conn
	local net.Addr
}

func (a addressed) LocalAddr() net.Addr { return a.local }

// TestTarget: an explicit client is brought to the directory of its network, a transparent one (TPROXY) to the one
// that it called.
func TestTarget(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Server, cfg.Servers = "198.51.100.30:389", map[string]string{"outside": Builtin}
	s, err := New(cfg, Deps{Networks: networks(), RouteTo: func(a netip.Addr) string {
		return map[bool]string{true: "outside"}[a == netip.MustParseAddr("203.0.113.7")]
	}}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ network, local, want string }{
		{"inside", "10.77.1.1:389", "198.51.100.30:389"},
		{"outside", "198.51.100.1:389", Builtin},
		{"inside", "203.0.113.7:1002", "203.0.113.7:1002"},
	} {
		local := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tc.local))
		if got := s.target(tc.network, addressed{local: local}); got != tc.want {
			t.Errorf("from %s to %s: %s, want %s", tc.network, tc.local, got, tc.want)
		}
	}
	for addr, want := range map[string]side{
		"10.77.1.9": {"inside", true}, "203.0.113.7": {"outside", false}, "203.0.113.8": {"outside", false},
	} {
		if got := s.sideOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is at %+v, want %+v", addr, got, want)
		}
	}
}

// TestRestart: who registered, under which address, and who looked whom up, come back; what has expired does not,
// and a damaged file is no reason not to start.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.Server, cfg.Pool = Builtin, []netip.Addr{publicAddr}
	start := func() *Server {
		s, err := New(cfg, Deps{Networks: loopback(), StateDir: dir}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a := start()
	a.registry.claimPublic("bob")
	a.registry.register(registration{names: []string{"bob", "bob@example.org"}, host: insideHost, ports: [2]uint16{2720, 2503}})
	a.registry.register(registration{names: []string{"brief"}, host: otherInside, ttl: time.Nanosecond})
	a.registry.resolve(outsideHost, "bob")
	a.save()
	b := start()
	want, _ := a.registry.Lookup("bob")
	for _, name := range []string{"bob", "bob@example.org"} {
		if got, ok := b.registry.Lookup(name); !ok || got.Host != want.Host || got.Ports != want.Ports || got.Public != publicAddr || got.Expires.Sub(want.Expires).Abs() > time.Second {
			t.Errorf("%s came back as %+v, %v; was %+v", name, got, ok, want)
		}
	}
	if got, ok := b.registry.Resolved(outsideHost); !ok || got.Host != insideHost {
		t.Errorf("the lookup came back as %+v, %v", got, ok)
	}
	if got := b.registry.Entries(); len(got) != 1 {
		t.Errorf("came back: %+v", got)
	}
	b.registry.refresh("bob", 0) // NetMeeting's refresh says no address
	if got, ok := b.registry.At(publicAddr); !ok || got.Host != insideHost {
		t.Errorf("refreshed: %+v, %v", got, ok)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"entries":[{"names":[]},{"names":["x"]},7`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := start().registry.Entries(); len(got) != 0 {
		t.Errorf("a damaged file brought %+v", got)
	}
}

// TestSaver: a change is on the disk when the server has ended.
func TestSaver(t *testing.T) {
	cfg, dir := DefaultConfig(), t.TempDir()
	cfg.Server = Builtin
	s, err := New(cfg, Deps{Networks: loopback(), StateDir: dir}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.ServeListener(ctx, "inside", listen(t)) }()
	s.registry.register(registration{names: []string{"bob"}, host: insideHost})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, stateFile)); err != nil || !strings.Contains(string(b), "bob") {
		t.Errorf("%s, %v", b, err)
	}
}

// FuzzSession feeds arbitrary octets as a stream in both directions: no panic, and what is not a directory of
// calls stays as it is.
func FuzzSession(f *testing.F) {
	f.Add(entry(2, opAdd, aliceDN, attr{"cn", "alice"}, attr{"sipaddress", in2}, attr{"sport", "1503"}), result(2, opAddResponse, 0))
	f.Add(change(2, aliceDN, attr{"sipaddress", in2}), result(2, opModifyResponse, 0))
	f.Add(query(3, base, and(equal("sipaddress", in2), equal("sttl", "10"), equal("cn", "x"))), entry(3, opEntry, aliceDN, attr{"sipaddress", pub}))
	f.Add(bindRequest(1), []byte{0x16, 3, 1})
	f.Add(envelope(1, []byte{0x7e, 0}), envelope(1, []byte{opModifyDN, 0}))
	f.Add(envelope(1, ber.Append(nil, opExtended, str(0x80, oidRefresh), ber.Append(nil, 0x81, ber.Append(nil, 0x30, str(0x80, aliceDN), []byte{0x81, 1, 9})))), result(1, opExtendedDone, 0))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, serverInside := range []bool{false, true} {
			for _, host := range []netip.Addr{insideHost, outsideHost, netip.MustParseAddr("2001:db8::9")} {
				e := newEdge(func(c *Config) { c.Pool = []netip.Addr{netip.MustParseAddr("198.51.100.49")} })
				s := e.session(host, serverInside)
				d := newDirectory(e.cfg)
				feed := func(stream []byte, edit func([]byte) ([]byte, error)) {
					fr := framer{limit: 1 << 16, opaque: s.opaque, seal: s.seal}
					fr.buf = slices.Clone(stream)
					edits := e.count.edits
					out, err := fr.drain(edit)
					if err == nil && e.count.edits == edits && !bytes.HasPrefix(stream, out) {
						t.Fatalf("%x became %x", stream, out)
					}
				}
				feed(a, s.request)
				feed(b, s.response)
				feed(a, func(raw []byte) ([]byte, error) {
					err := d.handle(&visitor{host}, raw, func(ans []byte) error {
						_, err := parse(ans)
						if err != nil {
							t.Fatalf("answered %x: %v", ans, err)
						}
						return err
					})
					return raw, err
				})
			}
		}
	})
}

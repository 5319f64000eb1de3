package msturn

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn/timelimited"
)

const patience = 20 * time.Second

// testPorts opens ports on loopback.
type testPorts struct {
	open atomic.Int64
	fail atomic.Bool
}

type testPort struct {
	*net.UDPConn
	of   *testPorts
	once sync.Once
}

func (p *testPorts) OpenPort(_ context.Context, r pinhole.PortRequest) (pinhole.Port, error) {
	if p.fail.Load() {
		return nil, pinhole.ErrExhausted
	}
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.21.1:0")))
	if err != nil {
		return nil, err
	}
	p.open.Add(1)
	return &testPort{UDPConn: c, of: p}, nil
}

func (*testPorts) Front(c net.PacketConn) (net.PacketConn, error) { return c, nil }

func (p *testPort) Local() pinhole.Local {
	return pinhole.Local{Addr: pinhole.AddrPortOf(p.LocalAddr())}
}
func (*testPort) Next(context.Context) (pinhole.Port, error) {
	return nil, pinhole.ErrExhausted
}
func (*testPort) Bind(pinhole.Channel) error    { return pinhole.ErrNotCarried }
func (*testPort) Unbind(uint16)                 {}
func (*testPort) Stats() [2]pinhole.StreamStats { return [2]pinhole.StreamStats{} }
func (p *testPort) Close() error {
	p.once.Do(func() { p.of.open.Add(-1) })
	return p.UDPConn.Close()
}

// testPeers refuses 127.0.21.66.
type testPeers struct{}

func (testPeers) Permission(a netip.Addr) string {
	if a == netip.MustParseAddr("127.0.21.66") {
		return "denied"
	}
	return ""
}
func (p testPeers) Packet(to netip.AddrPort) string { return p.Permission(to.Addr()) }
func (testPeers) Relay(netip.AddrPort, bool)        {}

// testStreams are ordinary TCP sockets.
type testStreams struct{}

func (testStreams) Listen(ctx context.Context, at netip.Addr) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(at, 0).String())
}

func (testStreams) Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.Addr(), 0))}
	return d.DialContext(ctx, "tcp", to.String())
}

type house struct {
	*Server
	ports    *testPorts
	udp, tcp netip.AddrPort
	silent   atomic.Bool // no challenges
}

func newHouse(t *testing.T, change func(*Config)) *house {
	t.Helper()
	h := &house{ports: &testPorts{}}
	cfg := DefaultConfig()
	cfg.Realm, cfg.Users, cfg.Secrets = "example.org", map[string]Secret{"alice": "secret", "bob": "other"}, []Secret{"0123456789"}
	if change != nil {
		change(&cfg)
	}
	nets := pinhole.Networks{"outside": {Addresses: []netip.Addr{netip.MustParseAddr("127.0.21.1")}}}
	var err error
	h.Server, err = New(cfg, Deps{
		Networks: nets, Ports: h.ports, Streams: testStreams{}, Peers: testPeers{}, Challenge: func(netip.Addr) bool { return !h.silent.Load() },
	}, zaptest.NewLogger(t))
	must(t, err)
	pc, err := net.ListenPacket("udp4", "127.0.21.1:0")
	must(t, err)
	ln, err := net.Listen("tcp4", "127.0.21.1:0")
	must(t, err)
	h.udp, h.tcp = pinhole.AddrPortOf(pc.LocalAddr()), pinhole.AddrPortOf(ln.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := h.ServePacket(ctx, "outside", pc); err != nil {
			t.Error(err)
		}
	})
	work.Go(func() {
		if err := h.Serve(ctx, "outside", ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		work.Wait()
		if n := h.ports.open.Load(); n != 0 {
			t.Errorf("%d ports are open at the end", n)
		}
	})
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *house) drops(reason string) uint64 {
	h.count.mu.Lock()
	defer h.count.mu.Unlock()
	return h.count.drops[reason]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not so: " + what)
		}
	}
}

// guest is a client. It frames what it sends if it is on TCP.
type guest struct {
	t        *testing.T
	conn     net.Conn
	framed   bool
	user     string
	password []byte
	realm    string
	nonce    []byte
	seq      sequence
	relay    netip.AddrPort
	mapped   netip.AddrPort
	life     uint32
}

func newGuest(t *testing.T, network string, to netip.AddrPort) *guest {
	t.Helper()
	c, err := net.Dial(network, to.String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &guest{t: t, conn: c, framed: network == "tcp4", user: "alice", password: []byte("secret"), realm: "example.org"}
}

func (g *guest) key() []byte { return newUsers(g.realm, nil, nil).key(g.user, g.password) }

func (g *guest) write(kind byte, b []byte) {
	g.t.Helper()
	if g.framed {
		b = append(binary.BigEndian.AppendUint16([]byte{kind, 0}, uint16(len(b))), b...)
	}
	_, err := g.conn.Write(b)
	must(g.t, err)
}

func (g *guest) read() (kind byte, b []byte) {
	g.t.Helper()
	b = make([]byte, 4096)
	if !g.framed {
		n, err := g.conn.Read(b)
		must(g.t, err)
		return 0, b[:n]
	}
	_, err := io.ReadFull(g.conn, b[:4])
	must(g.t, err)
	n := binary.BigEndian.Uint16(b[2:])
	_, err = io.ReadFull(g.conn, b[4:4+n])
	must(g.t, err)
	return b[0], b[4 : 4+n]
}

// attrs splits a message.
func (g *guest) attrs(b []byte) (kind, map[attr][]byte) {
	g.t.Helper()
	if !IsMessage(b) {
		g.t.Fatalf("no message: %x", b)
	}
	out := map[attr][]byte{}
	for rest := b[headerLen:]; len(rest) >= 4; {
		n := 4 + int(binary.BigEndian.Uint16(rest[2:]))
		out[attr(binary.BigEndian.Uint16(rest))] = rest[4:n]
		rest = rest[n:]
	}
	return kind(binary.BigEndian.Uint16(b)), out
}

// ask sends a request and returns what the answer says: the error code, 0 if it is none.
func (g *guest) ask(b []byte) (code int, attrs map[attr][]byte) {
	g.t.Helper()
	g.write(frameMessage, b)
	_, answer := g.read()
	k, attrs := g.attrs(answer)
	if [16]byte(answer[4:20]) != [16]byte(b[4:20]) {
		g.t.Error("another transaction's answer")
	}
	if e := attrs[attrErrorCode]; e != nil {
		code = int(e[2])*100 + int(e[3])
	}
	if n := attrs[attrNonce]; n != nil {
		g.nonce = n
	}
	if code != 401 && code != 438 && code != 437 && code != 441 {
		if m, err := decode(answer); err != nil || !m.signed(g.key()) {
			g.t.Errorf("%x (%d) is not signed", k, code)
		}
	}
	return code, attrs
}

var lastID atomic.Uint64

func newID() (id [16]byte) {
	binary.BigEndian.PutUint64(id[:], lastID.Add(1)<<32|0x5a5a)
	return id
}

// allocate asks for a port with what the guest knows of realm and nonce.
func (g *guest) allocate(more func(reply) reply) int {
	g.t.Helper()
	r := begin(allocateRequest, newID()).number(attrVersion, 1)
	if more != nil {
		r = more(r)
	}
	b := r.finish()
	if g.nonce != nil {
		b = r.bytes(attrRealm, []byte(g.realm)).bytes(attrNonce, g.nonce).bytes(attrUsername, []byte(g.user)).sign(g.key())
	}
	code, attrs := g.ask(b)
	if s := attrs[attrSequence]; s != nil {
		g.seq = sequence{[20]byte(s), binary.BigEndian.Uint32(s[20:])}
	}
	if a := attrs[attrMappedAddress]; a != nil {
		g.relay, _ = readAddr(a)
	}
	if a := attrs[attrXorMapped]; a != nil {
		for i := range a[4:] {
			a[4+i] ^= b[4+i]
		}
		a[2], a[3] = a[2]^b[4], a[3]^b[5]
		g.mapped, _ = readAddr(a)
	}
	if l := attrs[attrLifetime]; l != nil {
		g.life = binary.BigEndian.Uint32(l)
	}
	return code
}

// join makes an allocation.
func (g *guest) join() {
	g.t.Helper()
	if code := g.allocate(nil); code != 401 {
		g.t.Fatalf("first Allocate: %d", code)
	}
	if code := g.allocate(nil); code != 0 || !g.relay.IsValid() || g.mapped != pinhole.AddrPortOf(g.conn.LocalAddr()) || g.life != 600 {
		g.t.Fatalf("Allocate: %d, relay %v, mapped %v, %d s", code, g.relay, g.mapped, g.life)
	}
}

// request is a Send or Set-Active-Destination as clients sign it.
func (g *guest) request(k kind, to netip.AddrPort, data []byte) []byte {
	g.seq.number++
	r := begin(k, newID()).bytes(attrUsername, []byte(g.user)).addr(attrDestination, to).number(attrVersion, 1).sequence(g.seq)
	if data != nil {
		r = r.bytes(attrData, data)
	}
	return r.sign(g.key())
}

func (g *guest) send(to netip.AddrPort, data string) {
	g.t.Helper()
	g.write(frameMessage, g.request(sendRequest, to, []byte(data)))
}

// indicated reads a Data-Indication.
func (g *guest) indicated() (from netip.AddrPort, data string) {
	g.t.Helper()
	_, b := g.read()
	k, attrs := g.attrs(b)
	if k != dataIndication {
		g.t.Fatalf("%x, not a Data-Indication", k)
	}
	from, _ = readAddr(attrs[attrRemote])
	return from, string(attrs[attrData])
}

// host is a UDP peer.
func newHost(t *testing.T) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.21.2:0")))
	must(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, pinhole.AddrPortOf(c.LocalAddr())
}

func hears(t *testing.T, c *net.UDPConn, want string) netip.AddrPort {
	t.Helper()
	b := make([]byte, 4096)
	n, from, err := c.ReadFromUDPAddrPort(b)
	must(t, err)
	if string(b[:n]) != want {
		t.Fatalf("heard %q, want %q", b[:n], want)
	}
	return from
}

// TestDatagrams is the life of an allocation on UDP.
func TestDatagrams(t *testing.T) {
	h := newHouse(t, nil)
	g := newGuest(t, "udp4", h.udp)
	g.join()
	peer, at := newHost(t)
	_, err := peer.WriteToUDPAddrPort([]byte("too early"), g.relay)
	must(t, err)
	eventually(t, "who was not sent to is not heard", func() bool { return h.drops("no_permission") == 1 })
	g.send(at, "hello")
	if from := hears(t, peer, "hello"); from != g.relay {
		t.Errorf("from %v, want %v", from, g.relay)
	}
	_, err = peer.WriteToUDPAddrPort([]byte("good day"), g.relay)
	must(t, err)
	if from, data := g.indicated(); from != at || data != "good day" {
		t.Errorf("%q of %v", data, from)
	}
	if code, _ := g.ask(g.request(setActiveRequest, at, nil)); code != 0 {
		t.Fatalf("Set-Active-Destination: %d", code)
	}
	for _, text := range []string{"bare", "\x00\x01\x00\x00!\x12\xa4B", strings.Repeat("x", 1300)} {
		g.write(frameData, []byte(text))
		hears(t, peer, text)
		_, err = peer.WriteToUDPAddrPort([]byte(text), g.relay)
		must(t, err)
		if _, b := g.read(); string(b) != text {
			t.Errorf("got %q, want %q", b, text)
		}
	}
	other, _ := newHost(t)
	_, err = other.WriteToUDPAddrPort([]byte("same host"), g.relay)
	must(t, err)
	if _, data := g.indicated(); data != "same host" {
		t.Errorf("%q", data)
	}
	if code := g.allocate(func(r reply) reply { return r.number(attrLifetime, 0) }); code != 0 || g.life != 0 {
		t.Errorf("end: %d, %d s", code, g.life)
	}
	eventually(t, "the port is closed", func() bool { return h.Open() == 0 && h.ports.open.Load() == 0 })
}

// TestStreams is a client on TCP, framed and behind pseudo-TLS, in whole segments and octet by octet, with a peer whom the
// relay connects to and one who connects to it.
func TestStreams(t *testing.T) {
	for _, tt := range []struct {
		name         string
		pseudo, slow bool
	}{{"framed", false, false}, {"pseudo-TLS", true, false}, {"octets", true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t, nil)
			g := newGuest(t, "tcp4", h.tcp)
			if tt.slow {
				g.conn = slow{g.conn}
			}
			if tt.pseudo {
				g.hello()
			}
			g.join()
			ln, err := net.Listen("tcp4", "127.0.21.2:0")
			must(t, err)
			defer ln.Close()
			at := pinhole.AddrPortOf(ln.Addr())
			g.send(at, "\x00\x05hello")
			conn, err := ln.Accept()
			must(t, err)
			g.converse(conn, at)
			early, err := net.Dial("tcp4", g.relay.String())
			must(t, err)
			g.converse(early, pinhole.AddrPortOf(early.LocalAddr()))
			if code, _ := g.ask(g.request(setActiveRequest, at, nil)); code != 0 {
				t.Fatalf("Set-Active-Destination: %d", code)
			}
			g.write(frameData, []byte("\x00\x04bare"))
			reads(t, conn, "\x00\x04bare")
			_, err = conn.Write([]byte("\x00\x04back"))
			must(t, err)
			if k, b := g.read(); k != frameData || string(b) != "\x00\x04back" {
				t.Errorf("frame %d, %q", k, b)
			}
			g.conn.Close()
			eventually(t, "all is closed", func() bool { return h.Open() == 0 && h.ports.open.Load() == 0 })
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d octets after the end", n)
			}
		})
	}
}

// slow writes each octet as a segment of its own.
type slow struct{ net.Conn }

func (s slow) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := s.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// hello is pseudo-TLS as clients speak it.
func (g *guest) hello() {
	g.t.Helper()
	b := append([]byte{0x16, 3, 1, 0, 0x2d, 1, 0, 0, 0x29, 3, 1}, bytes.Repeat([]byte{0xc1}, 32)...)
	_, err := g.conn.Write(append(b, 0, 0, 2, 0, 0x18, 1, 0))
	must(g.t, err)
	answer := make([]byte, 83)
	_, err = io.ReadFull(g.conn, answer)
	must(g.t, err)
	clear(answer[11:43])
	clear(answer[44:76])
	want := make([]byte, 83)
	copy(want, []byte{0x16, 3, 1, 0, 0x4e, 2, 0, 0, 0x46, 3, 1})
	want[43] = 32
	copy(want[76:], []byte{0, 0x18, 0, 0x0e, 0, 0, 0})
	if !bytes.Equal(answer, want) {
		g.t.Fatalf("ServerHello %x", answer)
	}
}

// converse has the client hear packets of a peer on TCP that come in pieces, one by one, once it has sent.
func (g *guest) converse(conn net.Conn, at netip.AddrPort) {
	g.t.Helper()
	conn.SetDeadline(time.Now().Add(patience))
	if pinhole.AddrPortOf(conn.RemoteAddr()) == g.relay { // it has connected itself, and waits
		g.send(at, "\x00\x05hello")
	}
	reads(g.t, conn, "\x00\x05hello")
	for _, piece := range []string{"\x00", "\x05go", "od!\x00\x03day"} {
		_, err := conn.Write([]byte(piece))
		must(g.t, err)
	}
	for _, want := range []string{"\x00\x05good!", "\x00\x03day"} {
		if from, data := g.indicated(); from != at || data != want {
			g.t.Errorf("%q of %v, want %q", data, from, want)
		}
	}
}

func reads(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	_, err := io.ReadFull(c, b)
	must(t, err)
	if string(b) != want {
		t.Errorf("read %q, want %q", b, want)
	}
}

// TestRefusals: what is not right is refused, and counted.
func TestRefusals(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.PerUser = 2 })
	code := func(want int, change func(g *guest), more func(reply) reply) *guest {
		t.Helper()
		g := newGuest(t, "udp4", h.udp)
		g.allocate(nil)
		change(g)
		if got := g.allocate(more); got != want {
			t.Errorf("%d, want %d", got, want)
		}
		return g
	}
	code(401, func(g *guest) { g.password = []byte("wrong") }, nil)
	code(401, func(g *guest) { g.user = "nobody" }, nil)
	code(401, func(g *guest) { g.realm = "elsewhere" }, nil)
	code(438, func(g *guest) { g.nonce = []byte("0123") }, nil)
	code(420, func(*guest) {}, func(r reply) reply { return r.bytes(0x0020, nil) })
	h.ports.fail.Store(true)
	code(486, func(*guest) {}, nil)
	h.ports.fail.Store(false)
	if n := h.Open(); n != 0 {
		t.Errorf("%d allocations", n)
	}
	a := code(0, func(*guest) {}, nil)
	code(0, func(*guest) {}, nil)
	code(486, func(*guest) {}, nil)
	code(0, func(g *guest) { g.user, g.password = "bob", []byte("other") }, nil)
	limited := code(0, func(g *guest) {
		g.user = "4000000000:carol"
		g.password = timelimited.Password("0123456789", g.user)
	}, nil)
	code(401, func(g *guest) {
		g.user = "1000000000:carol"
		g.password = timelimited.Password("0123456789", g.user)
	}, nil)
	a.user, a.password = "bob", []byte("other")
	if got := a.allocate(nil); got != 441 {
		t.Errorf("another user's port: %d", got)
	}
	a.user, a.password = "alice", []byte("secret")
	h.hostile(t, a)
	if got := limited.allocate(nil); got != 0 {
		t.Errorf("refresh: %d", got)
	}
	h.silent.Store(true)
	before := h.drops("challenge_limit")
	newGuest(t, "udp4", h.udp).write(frameMessage, begin(allocateRequest, newID()).finish())
	eventually(t, "no challenge", func() bool { return h.drops("challenge_limit") == before+1 })
}

// hostile sends what has no answer: each is dropped for its reason.
func (h *house) hostile(t *testing.T, g *guest) {
	t.Helper()
	peer, at := newHost(t)
	drops := func(reason string, b []byte) {
		t.Helper()
		before := h.drops(reason)
		g.write(frameMessage, b)
		eventually(t, "dropped: "+reason, func() bool { return h.drops(reason) == before+1 })
	}
	once := g.request(sendRequest, at, []byte("once"))
	g.write(frameMessage, once)
	hears(t, peer, "once")
	drops("replay", once)
	denied := netip.MustParseAddrPort("127.0.21.66:4000")
	drops("peer_denied", g.request(sendRequest, denied, []byte("x")))
	drops("peer_family", g.request(sendRequest, netip.MustParseAddrPort("[2001:db8::1]:4000"), []byte("x")))
	drops("malformed", g.request(sendRequest, at, nil))
	drops("unexpected", begin(dataIndication, newID()).finish())
	drops("foreign", []byte("not bare, for nobody is chosen"))
	g.password = []byte("wrong")
	drops("unauthorized", g.request(sendRequest, at, []byte("x")))
	g.password = []byte("secret")
	stranger := newGuest(t, "udp4", h.udp)
	before := h.drops("no_allocation")
	stranger.send(at, "x")
	eventually(t, "no allocation", func() bool { return h.drops("no_allocation") == before+1 })
	if code, _ := stranger.ask(stranger.request(setActiveRequest, at, nil)); code != 437 {
		t.Errorf("Set-Active-Destination without allocation: %d", code)
	}
	if code, _ := g.ask(g.request(setActiveRequest, denied, nil)); code != 403 {
		t.Errorf("Set-Active-Destination to whom is denied: %d", code)
	}
	again := g.request(setActiveRequest, at, nil)
	for range 2 { // the answer to the first was lost
		if code, _ := g.ask(again); code != 0 {
			t.Errorf("Set-Active-Destination: %d", code)
		}
	}
	for i := range maxPermissions + 3 {
		g.send(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 22, byte(i)}), 9), "x")
	}
	eventually(t, "permissions are bounded", func() bool { return h.drops("permission_limit") > 0 })
}

// TestHostileStreams: what is no frame ends the connection.
func TestHostileStreams(t *testing.T) {
	h := newHouse(t, nil)
	hello := append([]byte{0x16, 3, 1, 0, 0x2d, 1, 0, 0, 0x29, 3, 1}, make([]byte, 39)...)
	for _, b := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n\r\n"), {2, 0, 0, 0}, {2, 0, 0xff, 0xff}, {2, 1, 0, 4, 1, 2, 3, 4}, hello, {2, 0, 0, 4, 1, 2, 3, 4},
		append([]byte{2, 0, 0, 36}, unhex(t, "0003ffff"+firstAllocate[8:])...),
	} {
		g := newGuest(t, "tcp4", h.tcp)
		_, err := g.conn.Write(b)
		must(t, err)
		if n, err := g.conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%x: %d octets, %v", b, n, err)
		}
	}
}

// TestBandwidth: more than the rate allows is not relayed.
func TestBandwidth(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.Bandwidth = 80 })
	g := newGuest(t, "udp4", h.udp)
	g.join()
	_, at := newHost(t)
	for range 40 {
		g.send(at, strings.Repeat("x", 1000))
	}
	eventually(t, "the rate is kept", func() bool { return h.drops("bandwidth") > 0 })
}

// TestDraining: who has an allocation keeps and renews it, and nobody gets a new one.
func TestDraining(t *testing.T) {
	h := newHouse(t, nil)
	old := newGuest(t, "udp4", h.udp)
	old.allocate(nil)
	if got := old.allocate(nil); got != 0 {
		t.Fatalf("before: %d", got)
	}
	h.Drain()
	if got := old.allocate(nil); got != 0 || h.Open() != 1 {
		t.Errorf("renewed: %d, %d allocations", got, h.Open())
	}
	late := newGuest(t, "udp4", h.udp)
	late.allocate(nil)
	if got := late.allocate(nil); got != 486 {
		t.Errorf("new: %d", got)
	}
}

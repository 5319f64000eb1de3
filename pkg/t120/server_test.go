package t120

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/t120/mcs"
	"edged.dev/edged/pkg/t120/x224"
)

// config sends outside callers to a host.
func config(to netip.AddrPort) Config {
	cfg := DefaultConfig()
	cfg.Targets = map[string]netip.AddrPort{"outside": to}
	return cfg
}

// up takes a caller and the called host through the whole front.
func up(t *testing.T, a *peer, accept func() *peer, conference string, id byte) *peer {
	t.Helper()
	a.packet(request)
	b := accept()
	b.tpdu(x224.ConnectionRequest)
	b.packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
	a.tpdu(x224.ConnectionConfirm)
	a.dt(connectInitial(joinRequest(t, conference, "Alice")))
	b.connect(mcs.ConnectInitial)
	b.dt(connectResponse(id, createResponse(t)))
	a.connect(mcs.ConnectResponse)
	return b
}

func TestConference(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	g := serve(t, config(at), Deps{})
	a := g.dial("127.2.0.9", g.outside)
	b := up(t, a, accept, "Staff", 1)
	a.dt([]byte{0x28})
	if got := b.tpdu(x224.Data); !bytes.Equal(got.User, []byte{0x28}) {
		t.Errorf("got %x", got.User)
	}
	// what an inside host says of itself, those outside hear of the edge; and not the other way round
	b.dt(sendData(addRequest(t, "127.1.0.2:1503")))
	if got := a.tpdu(x224.Data); !bytes.Equal(got.User, sendData(addRequest(t, "198.51.100.1:1503"))) {
		t.Errorf("got %x", got.User)
	}
	a.dt(sendData(addRequest(t, "127.1.0.2:1503")))
	if got := b.tpdu(x224.Data); !bytes.Equal(got.User, sendData(addRequest(t, "127.1.0.2:1503"))) {
		t.Errorf("got %x", got.User)
	}
	// in several DTs too
	whole := sendData(addRequest(t, "127.1.0.2:1503"))
	b.packet(append([]byte{2, 0xf0, 0}, whole[:5]...))
	b.packet(append([]byte{2, 0xf0, 0x80}, whole[5:]...))
	if got := append(a.tpdu(x224.Data).User, a.tpdu(x224.Data).User...); !bytes.Equal(got, sendData(addRequest(t, "198.51.100.1:1503"))) {
		t.Errorf("got %x", got)
	}
	a.conn.(*net.TCPConn).CloseWrite()
	b.dt([]byte("last words"))
	if got := a.tpdu(x224.Data); string(got.User) != "last words" {
		t.Errorf("after the half-close: %q", got.User)
	}
	b.conn.Close()
	a.closed()
}

// TestQuery: the answer to a query lists conferences without the inside address.
func TestQuery(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	g := serve(t, config(at), Deps{})
	a := g.dial("127.2.0.9", g.outside)
	a.packet(request)
	b := accept()
	b.read()
	b.packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
	a.read()
	a.dt(connectInitial(gccConnect(t, "conferenceQueryRequest", per.F("nodeType", per.Number(0)))))
	b.connect(mcs.ConnectInitial)
	answer := func(more ...per.Field) []byte {
		d := per.Fields(append([]per.Field{per.F("conferenceName", per.Fields(per.F("numeric", per.Text("1")))),
			per.F("lockedConference", per.Truth(false)), per.F("passwordInTheClearRequired", per.Truth(false))}, more...)...)
		return gccConnect(t, "conferenceQueryResponse", per.F("nodeType", per.Number(0)), per.F("conferenceList", per.Elements(d)), per.F("result", per.Number(0)))
	}
	addr := per.Elements(per.Alternative("transportConnection", per.Fields(per.F("nsapAddress", per.Octet([]byte{127, 1, 0, 2})))))
	b.dt(connectResponse(0, answer(per.F("networkAddress", addr))))
	if c := a.connect(mcs.ConnectResponse); !bytes.Equal(c.UserData, answer()) {
		t.Errorf("got  %x\nwant %x", c.UserData, answer())
	}
}

// TestNamed: two inside hosts behind one address; the conference's name decides, and connections that are
// added to a conference go where it is.
func TestNamed(t *testing.T) {
	staff, acceptStaff := host(t, "127.1.0.2")
	sales, acceptSales := host(t, "127.1.0.3")
	cfg := DefaultConfig()
	cfg.Conferences = map[string]netip.AddrPort{"staff": staff, "sales": sales}
	g := serve(t, cfg, Deps{})
	late := func(conference string, accept func() *peer, id byte) (a, b *peer) {
		a = g.dial("127.2.0.9", g.outside)
		a.packet(request)
		if cc := a.tpdu(x224.ConnectionConfirm); cc.Dst != 9 {
			t.Errorf("confirmed to %d", cc.Dst)
		}
		a.dt(connectInitial(joinRequest(t, conference, "Alice")))
		b = accept()
		if cr := b.tpdu(x224.ConnectionRequest); cr.Src != 9 {
			t.Errorf("requested by %d", cr.Src)
		}
		b.packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
		b.connect(mcs.ConnectInitial)
		b.dt(connectResponse(id, createResponse(t)))
		a.connect(mcs.ConnectResponse)
		return a, b
	}
	late("Staff", acceptStaff, 7)
	late("SALES", acceptSales, 8)
	for id, accept := range map[byte]func() *peer{8: acceptSales, 7: acceptStaff} {
		a := g.dial("127.2.0.9", g.outside)
		a.packet(request)
		a.tpdu(x224.ConnectionConfirm)
		a.dt(connectAdditional(id))
		b := accept()
		b.tpdu(x224.ConnectionRequest)
		b.packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
		if c := b.connect(mcs.ConnectAdditional); c.ConnectID != uint32(id) {
			t.Errorf("added to %d", c.ConnectID)
		}
		b.dt([]byte{0x7f, 0x68, 3, 0x0a, 1, 0})
		a.connect(mcs.ConnectResult)
	}
	// of another caller's conference nobody is told
	before := g.drops("route")
	a := g.dial("127.2.0.10", g.outside)
	a.packet(request)
	a.tpdu(x224.ConnectionConfirm)
	a.dt(connectAdditional(7))
	if c := a.connect(mcs.ConnectResult); c.Result != mcs.UnspecifiedFailure {
		t.Errorf("result %d", c.Result)
	}
	g.counted("route", before)
}

// TestAmbiguous: two hosts gave the same id to conferences of one address. What is added is refused as long as both
// live, and goes to the one that is left then.
func TestAmbiguous(t *testing.T) {
	staff, acceptStaff := host(t, "127.1.0.2")
	sales, acceptSales := host(t, "127.1.0.3")
	cfg := DefaultConfig()
	cfg.Conferences = map[string]netip.AddrPort{"staff": staff, "sales": sales}
	g := serve(t, cfg, Deps{})
	late := func(conference string, accept func() *peer) (a, b *peer) {
		a = g.dial("127.2.0.9", g.outside)
		a.packet(request)
		a.tpdu(x224.ConnectionConfirm)
		a.dt(connectInitial(joinRequest(t, conference, "Alice")))
		b = accept()
		b.tpdu(x224.ConnectionRequest)
		b.packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
		b.connect(mcs.ConnectInitial)
		b.dt(connectResponse(7, createResponse(t)))
		a.connect(mcs.ConnectResponse)
		return a, b
	}
	add := func() *peer {
		a := g.dial("127.2.0.9", g.outside)
		a.packet(request)
		a.tpdu(x224.ConnectionConfirm)
		a.dt(connectAdditional(7))
		return a
	}
	late("staff", acceptStaff)
	second, called := late("sales", acceptSales)
	before := g.drops("ambiguous")
	if c := add().connect(mcs.ConnectResult); c.Result != mcs.UnspecifiedFailure {
		t.Errorf("result %d", c.Result)
	}
	g.counted("ambiguous", before)
	second.conn.Close()
	called.conn.Close()
	g.left(1)
	add()
	acceptStaff().tpdu(x224.ConnectionRequest)
}

// left waits until so many connections are open.
func (g *doorway) left(n int) {
	g.t.Helper()
	for end := time.Now().Add(slow); g.server.Open() != n; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("%d connections, want %d", g.server.Open(), n)
		}
	}
}

// TestDrain: who comes now is refused; a conference that is open goes on until its end.
func TestDrain(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	g := serve(t, config(at), Deps{})
	a := g.dial("127.2.0.9", g.outside)
	b := up(t, a, accept, "Staff", 1)
	g.server.Drain()
	before := g.drops("draining")
	g.dial("127.2.0.10", g.outside).closed()
	g.counted("draining", before)
	if n := g.server.Open(); n != 1 {
		t.Errorf("%d connections are open", n)
	}
	exchange(t, a, b, []byte{3, 0, 0, 8, 2, 0xf0, 0x80, 0x28})
	a.conn.Close()
	b.closed()
	b.conn.Close()
	g.left(0)
}

// routerFunc is a Router that is a function.
type routerFunc func(Call) (netip.AddrPort, bool)

func (f routerFunc) Route(c Call) (netip.AddrPort, bool) { return f(c) }

func TestRouter(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	calls := make(chan Call, 4)
	g := serve(t, DefaultConfig(), Deps{Router: routerFunc(func(c Call) (netip.AddrPort, bool) {
		calls <- c
		return at, c.Client.Addr() == netip.MustParseAddr("127.2.0.9")
	})})
	a := g.dial("127.2.0.9", g.outside)
	up(t, a, accept, "Staff", 1)
	if c := <-calls; c.Network != "outside" || c.Client.Addr().String() != "127.2.0.9" || c.Local.String() != g.outside {
		t.Errorf("asked for %+v", c)
	}
	before := g.drops("route")
	b := g.dial("127.2.0.10", g.outside)
	b.packet(request)
	b.tpdu(x224.ConnectionConfirm)
	b.dt(connectInitial(joinRequest(t, "Staff", "Bob")))
	if c := b.connect(mcs.ConnectResponse); c.Result != mcs.UnspecifiedFailure {
		t.Errorf("result %d", c.Result)
	}
	g.counted("route", before)
	<-calls
	if c := <-calls; c.Conference != "Staff" || c.Caller != "Bob" {
		t.Errorf("asked again for %+v", c)
	}
}

// TestRoute: what says where a call goes, in order.
func TestRoute(t *testing.T) {
	at := func(n byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, n}), 1503) }
	cfg := DefaultConfig()
	cfg.Conferences = map[string]netip.AddrPort{"staff": at(3)}
	cfg.Targets = map[string]netip.AddrPort{"outside": at(5)}
	s, err := New(cfg, Deps{Networks: loopback(), Router: routerFunc(func(c Call) (netip.AddrPort, bool) {
		return at(4), c.Called == "alice"
	})}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddrPort("127.2.0.1:1503")
	for _, tc := range []struct {
		name string
		call Call
		want netip.AddrPort
		err  error
	}{
		{"transparent", Call{Network: "inside", Local: netip.MustParseAddrPort("203.0.113.7:1503"), Conference: "staff"}, netip.MustParseAddrPort("203.0.113.7:1503"), nil},
		{"transparent from outside", Call{Network: "outside", Local: netip.MustParseAddrPort("203.0.113.7:1503"), Conference: "staff"}, at(3), nil},
		{"conference", Call{Network: "outside", Local: own, Conference: "STAFF", Called: "alice"}, at(3), nil},
		{"directory", Call{Network: "outside", Local: own, Conference: "other", Called: "alice"}, at(4), nil},
		{"network", Call{Network: "outside", Local: own}, at(5), nil},
		{"nobody", Call{Network: "inside", Local: own}, netip.AddrPort{}, errRoute},
	} {
		if got, err := s.route(tc.call); got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, %v; want %v", tc.name, got, err, tc.want)
		}
	}
}

func TestPolicy(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	cfg := config(at)
	cfg.Policy = []Rule{{Conference: "open*", Allow: true}, {From: []netip.Prefix{netip.MustParsePrefix("127.2.0.9/32")}}}
	g := serve(t, cfg, Deps{})
	up(t, g.dial("127.2.0.9", g.outside), accept, "Open House", 1)
	up(t, g.dial("127.2.0.8", g.outside), accept, "Staff", 1)
	a := g.dial("127.2.0.9", g.outside)
	a.packet(request)
	a.tpdu(x224.ConnectionConfirm) // of the edge: the caller has a conference already
	a.dt(connectInitial(joinRequest(t, "Staff", "Alice")))
	if c := a.connect(mcs.ConnectResponse); c.Result != mcs.UserRejected {
		t.Errorf("result %d", c.Result)
	}
	a.closed()
	g.counted("policy", 0)
}

// TestSealed: once TLS is selected nothing more is read, and nothing is lost at the hand-over.
func TestSealed(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	cfg := config(at)
	cfg.RDP = true
	for _, rdp := range []bool{true, false} {
		cfg.RDP = rdp
		g := serve(t, cfg, Deps{})
		a := g.dial("127.2.0.9", g.outside)
		a.packet([]byte{0x0e, 0xe0, 0, 0, 0, 9, 0, 1, 0, 8, 0, 3, 0, 0, 0})
		b := accept()
		b.tpdu(x224.ConnectionRequest)
		b.packet([]byte{0x0e, 0xd0, 0, 9, 0, 1, 0, 2, 0, 8, 0, 1, 0, 0, 0})
		if !rdp {
			a.closed()
			g.counted("rdp", 0)
			continue
		}
		a.tpdu(x224.ConnectionConfirm)
		exchange(t, a, b, append([]byte{0x16, 3, 1}, bytes.Repeat([]byte("secret "), 100000)...))
		a.conn.(*net.TCPConn).CloseWrite()
		b.write([]byte("end"))
		b.conn.Close()
		a.closed()
	}
}

// joinerFunc is a Joiner that is a function.
type joinerFunc func(context.Context, [2]net.Conn, [2][]byte, time.Duration) ([2]uint64, error)

func (f joinerFunc) Join(ctx context.Context, c [2]net.Conn, p [2][]byte, idle time.Duration) ([2]uint64, error) {
	return f(ctx, c, p, idle)
}

// TestHandOver: what was read already goes to the joiner, in order.
func TestHandOver(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	cfg := config(at)
	cfg.Addresses = AddressesPass
	joined := make(chan [2][]byte, 1)
	g := serve(t, cfg, Deps{Joiner: joinerFunc(func(_ context.Context, c [2]net.Conn, p [2][]byte, idle time.Duration) (n [2]uint64, err error) {
		if idle != cfg.Idle {
			t.Errorf("idle %v", idle)
		}
		joined <- p
		c[0].Write(p[1])
		c[1].Write(p[0])
		c[0].Close()
		c[1].Close()
		return n, nil
	})})
	a := g.dial("127.2.0.9", g.outside)
	a.packet(request)
	b := accept()
	b.read()
	b.packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
	a.read()
	a.dt(connectInitial(joinRequest(t, "Staff", "Alice")))
	b.read()
	response, rest := x224.AppendData(nil, connectResponse(1, createResponse(t))), []byte{3, 0, 0, 9, 2}
	pkt := append([]byte{3, 0, byte((len(response) + 4) >> 8), byte(len(response) + 4)}, response...)
	b.write(append(slices.Clone(pkt), rest...))
	a.connect(mcs.ConnectResponse)
	if p := <-joined; !bytes.Equal(p[1], rest) {
		t.Errorf("handed over %x", p)
	}
}

// TestPair: a channel that H.245 has opened; the caller is whoever sends the request.
func TestPair(t *testing.T) {
	srv, err := New(DefaultConfig(), Deps{Networks: loopback()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	pair := func(ip string) (edge net.Conn, far *peer) {
		ln := listen(t, "127.0.0.1")
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).Dial("tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		edge, err = ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return edge, newPeer(t, conn)
	}
	near, a := pair("127.1.0.2")
	far, b := pair("127.2.0.9")
	done := make(chan struct{})
	var moved [2]int
	go func() {
		defer close(done)
		srv.ServePair(t.Context(), [2]net.Conn{near, far}, func(from pinhole.Side, n int) { moved[from] += n })
	}()
	up(t, b, func() *peer { return a }, "Staff", 1)
	a.conn.Close()
	b.closed()
	b.conn.Close()
	select {
	case <-done:
	case <-time.After(slow):
		t.Fatal("ServePair has not ended")
	}
	if moved[0] == 0 || moved[1] == 0 {
		t.Errorf("moved %v", moved)
	}
}

// TestHostile: each is refused with its reason, and the connection closed.
func TestHostile(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	packet := func(payload ...byte) []byte {
		return append([]byte{3, 0, byte((len(payload) + 4) >> 8), byte(len(payload) + 4)}, payload...)
	}
	cr := packet(request...)
	dt := func(user []byte) []byte { return packet(x224.AppendData(nil, user)...) }
	good := connectInitial(joinRequest(t, "Staff", "Alice"))
	var endless []byte
	for range 9 {
		endless = append(endless, packet(append([]byte{2, 0xf0, 0}, make([]byte, 8000)...)...)...)
	}
	g := serve(t, config(at), Deps{})
	for _, tc := range []struct {
		name, reason string
		first, then  []byte // then is sent when the transport is up
	}{
		{"HTTP", "tpkt", []byte("GET / HTTP/1.1\r\n\r\n"), nil},
		{"TLS", "tpkt", []byte{0x16, 3, 1, 0, 5}, nil},
		{"TPKT of length 3", "tpkt", []byte{3, 0, 0, 3}, nil},
		{"LI beyond the end", "x224", packet(0x20, 0xe0, 0, 0, 0, 1, 0), nil},
		{"class 4", "x224", packet(6, 0xe0, 0, 0, 0, 1, 0x40), nil},
		{"cookie of 64 KiB", "x224", packet(append([]byte{0xfe, 0xe0, 0, 0, 0, 1, 0}, bytes.Repeat([]byte("a"), 60000)...)...), nil},
		{"data first", "sequence", dt(good), nil},
		{"CC first", "sequence", packet(6, 0xd0, 0, 0, 0, 1, 0), nil},
		{"DR first", "sequence", packet(6, 0x80, 0, 0, 0, 1, 0), nil},
		{"two CRs", "sequence", cr, cr},
		{"no connect PDU", "mcs", cr, dt([]byte{0x28})},
		{"BER of indefinite length", "mcs", cr, dt([]byte{0x7f, 0x65, 0x80})},
		{"BER of 4 GiB", "mcs", cr, dt([]byte{0x7f, 0x65, 0x84, 0xff, 0xff, 0xff, 0xff})},
		{"Connect-Response from the caller", "sequence", cr, dt(connectResponse(1, nil))},
		{"no T.124 in it", "gcc", cr, dt(connectInitial([]byte("hello")))},
		{"units without end", "size", cr, endless},
		{"the front of a terminal session", "rdp", cr, dt(connectInitial(gccConnect(t, "conferenceCreateRequest",
			per.F("conferenceName", per.Fields(per.F("numeric", per.Text("1")))), per.F("lockedConference", per.Truth(false)), per.F("listedConference", per.Truth(false)),
			per.F("conductibleConference", per.Truth(false)), per.F("terminationMethod", per.Number(0)),
			per.F("userData", per.Elements(per.Fields(per.F("key", per.Alternative("h221NonStandard", per.Octet([]byte("Duca"))))))))))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g.t = t
			before := g.drops(tc.reason)
			a := g.dial("127.2.0.9", g.outside)
			a.write(tc.first)
			if tc.then != nil {
				b := accept()
				b.packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
				a.tpdu(x224.ConnectionConfirm)
				a.conn.Write(tc.then)
			}
			a.closed()
			g.counted(tc.reason, before)
		})
	}
}

// TestUnreachable: the refusal says why.
func TestUnreachable(t *testing.T) {
	ln := listen(t, "127.1.0.2")
	at := netip.MustParseAddrPort(ln.Addr().String())
	ln.Close()
	g := serve(t, config(at), Deps{})
	a := g.dial("127.2.0.9", g.outside)
	a.packet(request)
	if dr := a.tpdu(x224.DisconnectRequest); dr.Dst != 9 {
		t.Errorf("%+v", dr)
	}
	g.counted("dial", 0)

	loop := config(netip.MustParseAddrPort("127.1.0.2:1"))
	g = serve(t, loop, Deps{Router: routerFunc(func(Call) (netip.AddrPort, bool) { return netip.MustParseAddrPort("127.2.0.1:1503"), true })})
	a = g.dial("127.2.0.9", g.outside)
	a.packet([]byte{0x0e, 0xe0, 0, 0, 0, 9, 0, 1, 0, 8, 0, 0, 0, 0, 0})
	a.tpdu(x224.DisconnectRequest)
	g.counted("loop", 0)
}

// quiet is an idle time that a loaded machine does not reach between two messages.
const quiet = 6 * time.Second

// TestSlow: a front that does not come to an end, and a connection on which nothing passes.
func TestSlow(t *testing.T) {
	t.Parallel()
	at, accept := host(t, "127.1.0.2")
	cfg := config(at)
	cfg.Setup = time.Second
	g := serve(t, cfg, Deps{})
	a := g.dial("127.2.0.9", g.outside)
	a.write([]byte{3, 0, 0})
	a.closed()
	g.counted("timeout", 0)
	cfg.Setup, cfg.Idle = slow, quiet
	g = serve(t, cfg, Deps{})
	a = g.dial("127.2.0.9", g.outside)
	b := up(t, a, accept, "Staff", 1)
	a.closed()
	b.closed()
}

// TestStalled: a side that takes nothing does not hold the connection for ever, read or joined.
func TestStalled(t *testing.T) {
	t.Parallel()
	at, accept := host(t, "127.1.0.2")
	for _, mode := range []AddressMode{AddressesHide, AddressesPass} {
		cfg := config(at)
		cfg.Idle, cfg.Addresses = quiet, mode
		g := serve(t, cfg, Deps{})
		a := g.dial("127.2.0.9", g.outside)
		up(t, a, accept, "Staff", 1)
		packet := append([]byte{3, 0, 0x40, 0, 2, 0xf0, 0x80}, make([]byte, 0x4000-7)...)
		for {
			if _, err := a.conn.Write(packet); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal("not closed")
				}
				break
			}
		}
	}
}

func TestLimit(t *testing.T) {
	at, accept := host(t, "127.1.0.2")
	g := serve(t, config(at), Deps{Connections: 1})
	up(t, g.dial("127.2.0.9", g.outside), accept, "Staff", 1)
	g.dial("127.2.0.9", g.outside).closed()
	g.counted("connections", 0)
	up(t, g.dial("127.2.0.10", g.outside), accept, "Staff", 1)
	g.server.SetPerSource(0)
	more := g.dial("127.2.0.10", g.outside)
	more.packet(request)
	more.tpdu(x224.ConnectionConfirm)
}

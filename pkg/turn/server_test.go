package turn

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pion/logging"
	pion "github.com/pion/turn/v5"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// testPorts grants relay ports as plain sockets.
type testPorts struct {
	nets pinhole.Networks
	mu   sync.Mutex
	open int
	full bool
}

type testPort struct {
	*net.UDPConn
	of    *testPorts
	next  *testPort
	once  sync.Once
	mu    sync.Mutex
	stats [2]pinhole.StreamStats
}

func (p *testPorts) OpenPort(_ context.Context, r pinhole.PortRequest) (pinhole.Port, error) {
	at, _, err := p.nets.Local(r.Network, r.Family)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	full := p.full
	p.mu.Unlock()
	for try := 0; try < 200 && !full; try++ {
		first, err := p.listen(netip.AddrPortFrom(at, 0))
		if err != nil {
			return nil, err
		}
		if r.Even && first.Local().Addr.Port()%2 == 1 {
			first.Close()
			continue
		}
		if !r.Pair {
			return first, nil
		}
		if first.next, err = p.listen(netip.AddrPortFrom(at, first.Local().Addr.Port()+1)); err == nil {
			return first, nil
		}
		first.Close()
	}
	return nil, pinhole.ErrExhausted
}

func (p *testPorts) listen(at netip.AddrPort) (*testPort, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open++
	return &testPort{UDPConn: c, of: p}, nil
}

func (p *testPorts) Front(c net.PacketConn) (net.PacketConn, error) { return c, nil }

func (p *testPorts) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

func (p *testPort) Local() pinhole.Local {
	return pinhole.Local{Addr: pinhole.AddrPortOf(p.LocalAddr())}
}
func (p *testPort) Bind(pinhole.Channel) error { return pinhole.ErrNotCarried }
func (p *testPort) Unbind(uint16)              {}
func (p *testPort) Stats() [2]pinhole.StreamStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

func (p *testPort) pass(i, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats[i].Packets++
	p.stats[i].Bytes += uint64(n)
}

func (p *testPort) WriteTo(b []byte, to net.Addr) (int, error) {
	p.pass(0, len(b))
	return p.UDPConn.WriteTo(b, to)
}

func (p *testPort) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := p.UDPConn.ReadFrom(b)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			continue
		}
		if err == nil {
			p.pass(1, n)
		}
		return n, from, err
	}
}

func (p *testPort) Next(context.Context) (pinhole.Port, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		return nil, pinhole.ErrExhausted
	}
	n := p.next
	p.next = nil
	return n, nil
}

func (p *testPort) Close() error {
	p.once.Do(func() {
		p.of.mu.Lock()
		p.of.open--
		p.of.mu.Unlock()
		if p.next != nil {
			p.next.Close()
		}
	})
	return p.UDPConn.Close()
}

// testStreams opens sockets of relayed TCP.
type testStreams struct{}

func reusePort(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(err, failed)
}

func (testStreams) Listen(ctx context.Context, at netip.Addr) (net.Listener, error) {
	return (&net.ListenConfig{Control: reusePort}).Listen(ctx, "tcp", netip.AddrPortFrom(at, 0).String())
}

func (testStreams) Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	return (&net.Dialer{Control: reusePort, LocalAddr: net.TCPAddrFromAddrPort(from)}).DialContext(ctx, "tcp", to.String())
}

// bench is a running server with a UDP socket and listeners on loopback.
type bench struct {
	t        testing.TB
	s        *Server
	ports    *testPorts
	udp, tcp netip.AddrPort
	tls      netip.AddrPort
	dtls     netip.AddrPort
}

const (
	testRealm = "example.org"
	testUser  = "alice"
	testPass  = "correct horse"
)

// lo is the server's address: 127.0.0.2 for IPv4, so that 127.0.0.1 is a peer that is not the server's own.
var (
	lo4 = netip.MustParseAddr("127.0.0.2")
	lo6 = netip.MustParseAddr("::1")
)

func testConfig() Config {
	c := DefaultConfig()
	c.Listen = []Listen{{Proto: "udp", Network: "lo", Port: 3478}}
	c.Realm = testRealm
	c.Users = map[string]Password{testUser: testPass, "bob": "secret"}
	c.Peers.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	c.Challenges, c.Bindings = 0, 0
	return c
}

func serve(t testing.TB, change func(*Config, *Deps)) *bench {
	t.Helper()
	nets := pinhole.Networks{"lo": {Addresses: []netip.Addr{lo4, lo6}}}
	b := &bench{t: t, ports: &testPorts{nets: nets}}
	cfg, deps := testConfig(), Deps{Networks: nets, Ports: b.ports, Streams: testStreams{}}
	if change != nil {
		change(&cfg, &deps)
	}
	var err error
	if b.s, err = New(cfg, deps, nopLog()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	packets := func(serve func(context.Context, string, net.PacketConn) error) netip.AddrPort {
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(lo4, 0)))
		if err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			if err := serve(ctx, "lo", pc); err != nil {
				t.Error(err)
			}
		})
		return pinhole.AddrPortOf(pc.LocalAddr())
	}
	b.udp = packets(b.s.ServePacket)
	b.dtls = packets(func(ctx context.Context, network string, pc net.PacketConn) error {
		return b.s.ServeDTLS(ctx, network, pc, testTLS(t))
	})
	listen := func(proto string, conf *tls.Config) netip.AddrPort {
		ln, err := net.Listen("tcp", netip.AddrPortFrom(lo4, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			if err := b.s.Serve(ctx, Listen{Proto: proto, Network: "lo"}, ln, conf); err != nil {
				t.Error(err)
			}
		})
		return pinhole.AddrPortOf(ln.Addr())
	}
	b.tcp = listen("tcp", nil)
	b.tls = listen("tls", testTLS(t))
	t.Cleanup(func() {
		cancel()
		work.Wait()
		if n := b.s.Open(); n != 0 {
			t.Errorf("%d allocations after the end", n)
		}
		if n := b.ports.count(); n != 0 {
			t.Errorf("%d relay ports after the end", n)
		}
	})
	return b
}

// client returns pion's client, listening, over what is named.
func (b *bench) client(transport, user, password string) *pion.Client {
	b.t.Helper()
	var conn net.PacketConn
	at := b.udp
	switch transport {
	case "udp":
		conn = b.socket()
	case "dtls":
		conn, at = b.dialDTLS(), b.dtls
	default:
		conn, at = pion.NewSTUNConn(b.dial(transport)), b.tcp
	}
	c, err := pion.NewClient(&pion.ClientConfig{
		STUNServerAddr: at.String(), TURNServerAddr: at.String(), Conn: conn, Username: user, Password: password, Realm: testRealm,
		LoggerFactory: logging.NewDefaultLoggerFactory(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		c.Close()
		conn.Close()
	})
	if err := c.Listen(); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// socket returns a client's UDP socket.
func (b *bench) socket() net.PacketConn {
	b.t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { pc.Close() })
	return pc
}

func (b *bench) dial(transport string) net.Conn {
	b.t.Helper()
	at := b.tcp
	if transport == "tls" {
		at = b.tls
	}
	c, err := net.Dial("tcp4", at.String())
	if err != nil {
		b.t.Fatal(err)
	}
	if transport == "tls" {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// echo is a peer that sends back what it gets.
func echo(t testing.TB) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = pc.WriteTo(buf[:n], from)
			}
		}
	})
	t.Cleanup(func() {
		pc.Close()
		work.Wait()
	})
	return pc
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// TestRelay: an allocation by each transport; the first packets to a peer are Send indications, later ones ChannelData.
func TestRelay(t *testing.T) {
	b := serve(t, nil)
	peer := echo(t)
	for _, transport := range []string{"udp", "tcp", "tls", "dtls"} {
		t.Run(transport, func(t *testing.T) {
			c := b.client(transport, testUser, testPass)
			relay, err := c.Allocate()
			if err != nil {
				t.Fatal(err)
			}
			if b.s.Open() != 1 || len(b.s.Allocations()) != 1 {
				t.Fatalf("%d allocations", b.s.Open())
			}
			buf := make([]byte, 2000)
			for i := range 40 {
				data := make([]byte, 8+i*35) // of shorter ones pion's client makes no frames
				if _, err := relay.WriteTo(data, peer.LocalAddr()); err != nil {
					t.Fatal(i, err)
				}
				relay.SetReadDeadline(time.Now().Add(20 * time.Second))
				if n, from, err := relay.ReadFrom(buf); err != nil || n != len(data) || from.String() != peer.LocalAddr().String() {
					t.Fatal(i, n, from, err)
				}
			}
			eventually(t, "a channel", func() bool { return b.s.Allocations()[0].Channels == 1 })
			if err := relay.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the allocation ends", func() bool { return b.s.Open() == 0 && b.ports.count() == 0 })
		})
	}
}

func nopLog() *zap.Logger { return zap.NewNop() }

// dropReservations gives held ports back before their time.
func (s *Server) dropReservations() {
	s.mu.Lock()
	tokens := map[[8]byte]string{}
	for token, r := range s.reserved {
		tokens[token] = r.user
	}
	s.mu.Unlock()
	for token, user := range tokens {
		if r := s.takeReservation(token, user); r != nil {
			r.port.Close()
		}
	}
}

package pathtest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// patience is how long a packet that must come may take on a busy machine.
const patience = 20 * time.Second

const (
	near = pinhole.Near
	far  = pinhole.Far
)

// rig is a relay with one path between two networks.
type rig struct {
	t     *testing.T
	relay *media.Relay
	nets  pinhole.Networks
}

func loopbackNetworks() pinhole.Networks {
	addr, pfx := netip.MustParseAddr, netip.MustParsePrefix
	return pinhole.Networks{
		"inside": {
			Addresses: []netip.Addr{addr("127.0.1.1")}, Subnets: []netip.Prefix{pfx("127.0.1.0/24")}, Trusted: true,
		},
		"outside": {Addresses: []netip.Addr{addr("127.0.2.1"), addr("::1")}, Subnets: []netip.Prefix{pfx("127.0.2.0/24")}},
	}
}

func newRig(t *testing.T, newPath func(*testing.T) media.Path, change func(*media.PinholeConfig, *media.Config)) *rig {
	t.Helper()
	nets := loopbackNetworks()
	pin, cfg := media.DefaultPinholeConfig(), media.DefaultConfig()
	pin.Quarantine = 0
	if change != nil {
		change(&pin, &cfg)
	}
	relay, err := media.New(pin, cfg, nets, newPath(t), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return &rig{t: t, relay: relay, nets: nets}
}

func (r *rig) open(kind pinhole.Kind, families ...pinhole.Family) pinhole.Lease {
	r.t.Helper()
	req := pinhole.Request{Owner: "127.0.1.10", Label: r.t.Name(), Kind: kind, Networks: [2]string{"inside", "outside"}}
	copy(req.Families[:], families)
	l, err := r.relay.Open(context.Background(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (r *rig) declare(l pinhole.Lease, s pinhole.Side, remote pinhole.Remote) {
	r.t.Helper()
	if err := l.Declare(s, remote); err != nil {
		r.t.Fatal(err)
	}
}

// waitFor polls until ok holds for the only lease's description.
func (r *rig) waitFor(what string, ok func(media.Info) bool) {
	r.t.Helper()
	var last []media.Info
	for end := time.Now().Add(patience); time.Now().Before(end); {
		last = r.relay.Pinholes()
		if len(last) > 0 && ok(last[0]) {
			return
		}
		pause()
	}
	r.t.Fatalf("%s: %+v", what, last)
}

func (r *rig) waitDropped(s pinhole.Side, reason media.Reason, n uint64) {
	r.t.Helper()
	r.waitFor("dropped "+reason.String(), func(i media.Info) bool {
		return i.Ends[s].Stats.Dropped[reason.String()] == n
	})
}

// pause gives the relay time to work between two looks.
func pause() {
	<-time.After(2 * time.Millisecond)
}

// peer is a host with an RTP socket, and an RTCP one at the next port if it was made by pair.
type peer struct {
	t    *testing.T
	conn *net.UDPConn
	ctl  *net.UDPConn
}

func newPeer(t *testing.T, host string) *peer {
	t.Helper()
	p := &peer{t: t, conn: listen(t, netip.AddrPortFrom(netip.MustParseAddr(host), 0))}
	if p.conn == nil {
		t.Fatalf("no socket at %s", host)
	}
	return p
}

func listen(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// newPair returns a peer with two neighbouring ports, the first even.
func newPair(t *testing.T, host string) *peer {
	t.Helper()
	for range 200 {
		p := newPeer(t, host)
		a := p.addr()
		if a.Port()%2 == 0 {
			if p.ctl = listen(t, netip.AddrPortFrom(a.Addr(), a.Port()+1)); p.ctl != nil {
				return p
			}
		}
		p.conn.Close()
	}
	t.Fatalf("no pair of ports at %s", host)
	return nil
}

func (p *peer) addr() netip.AddrPort { return addrOf(p.conn) }

func addrOf(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// remote is what the peer's own signalling would declare.
func (p *peer) remote() pinhole.Remote {
	return pinhole.Remote{Addr: p.addr(), Source: p.addr().Addr()}
}

func (p *peer) send(to netip.AddrPort, b []byte) { write(p.t, p.conn, to, b) }

func (p *peer) sendRTCP(to netip.AddrPort, b []byte) { write(p.t, p.ctl, to, b) }

func write(t *testing.T, c *net.UDPConn, to netip.AddrPort, b []byte) {
	t.Helper()
	// The error of an earlier packet (ICMP) may stand before this one's.
	for range 3 {
		if _, err := c.WriteToUDPAddrPort(b, to); err == nil {
			return
		} else if !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
}

// expect reads the next packet, which must be b, sent from the address from.
func (p *peer) expect(from netip.AddrPort, b []byte) { read(p.t, p.conn, from, b) }

func (p *peer) expectRTCP(from netip.AddrPort, b []byte) { read(p.t, p.ctl, from, b) }

func read(t *testing.T, c *net.UDPConn, from netip.AddrPort, want []byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(patience))
	n, src, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("want %s: %v", brief(want), err)
	}
	if !bytes.Equal(buf[:n], want) {
		t.Fatalf("got %s, want %s", brief(buf[:n]), brief(want))
	}
	if src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port()); src != from {
		t.Fatalf("%s came from %s, want %s", brief(want), src, from)
	}
}

// next reads the next packet, whatever it is.
func (p *peer) next() []byte {
	p.t.Helper()
	buf := make([]byte, 1<<16)
	p.conn.SetReadDeadline(time.Now().Add(patience))
	n, _, err := p.conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		p.t.Fatal(err)
	}
	return buf[:n]
}

// quiet fails if a packet lies in the socket.
func (p *peer) quiet() {
	p.t.Helper()
	raw, err := p.conn.SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n := -1
	err = raw.Read(func(fd uintptr) bool {
		if got, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); err == nil {
			n = got
		}
		return true
	})
	if err != nil {
		p.t.Fatal(err)
	}
	if n >= 0 {
		p.t.Fatalf("%s heard %s", p.addr(), brief(buf[:n]))
	}
}

func brief(b []byte) string {
	if len(b) > 40 {
		return string(b[:20]) + "... (long)"
	}
	return string(b)
}

// call is a lease whose both peers are declared.
type call struct {
	*rig
	lease pinhole.Lease
	peers [2]*peer
	local [2]pinhole.Local
}

func (r *rig) call(kind pinhole.Kind) *call {
	r.t.Helper()
	c := &call{rig: r, lease: r.open(kind)}
	c.peers = [2]*peer{newPair(r.t, "127.0.1.10"), newPair(r.t, "127.0.2.10")}
	for s, p := range c.peers {
		c.local[s] = c.lease.Local(pinhole.Side(s))
		r.declare(c.lease, pinhole.Side(s), p.remote())
	}
	return c
}

// talk sends text from side s and expects it at the other.
func (c *call) talk(s pinhole.Side, text string) {
	c.t.Helper()
	c.peers[s].send(c.local[s].Addr, []byte(text))
	c.peers[s.Other()].expect(c.local[s.Other()].Addr, []byte(text))
}

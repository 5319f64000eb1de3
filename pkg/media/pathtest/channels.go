package pathtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// allocation is a client with a port, and a listener's socket by which both are served.
//
//	client 127.0.1.10 ── front 127.0.1.1 ─ relay ─ port 127.0.2.1 ── peers 127.0.2.10
type allocation struct {
	*rig
	front         net.PacketConn
	at            netip.AddrPort
	client        *peer
	port          pinhole.Port
	network, host string
}

func newAllocation(t *testing.T, newPath func(*testing.T) media.Path) *allocation {
	return &allocation{rig: newRig(t, newPath, nil), network: "outside", host: "127.0.2.10"}
}

// open makes the client's side at the host of the edge, and the port.
func (a *allocation) serve(edge, host string) {
	a.t.Helper()
	l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(edge), 0)))
	if err != nil {
		a.t.Fatal(err)
	}
	if a.front, err = a.relay.Front(l); err != nil {
		a.t.Fatal(err)
	}
	a.at, a.client = pinhole.AddrPortOf(a.front.LocalAddr()), newPeer(a.t, host)
	a.port = a.allocate()
}

func (a *allocation) allocate() pinhole.Port {
	a.t.Helper()
	p, err := a.relay.OpenPort(context.Background(), pinhole.PortRequest{
		Owner: "alice", Label: a.t.Name(), Network: a.network, Client: a.client.addr(),
		Family: pinhole.FamilyOf(netip.MustParseAddr(a.host)),
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return p
}

// bind binds a new peer to a channel.
func (a *allocation) bind(number uint16) *peer {
	a.t.Helper()
	p := newPeer(a.t, a.host)
	a.rebind(number, p)
	return p
}

func (a *allocation) rebind(number uint16, p *peer) {
	a.t.Helper()
	c := pinhole.Channel{Number: number, Client: a.client.addr(), Front: a.front, Peer: p.addr()}
	if err := a.port.Bind(c); err != nil {
		a.t.Fatal(err)
	}
}

func (a *allocation) local() netip.AddrPort { return a.port.Local().Addr }

// both sends data each way and expects it there.
func (a *allocation) both(number uint16, p *peer, data []byte) {
	a.t.Helper()
	a.client.send(a.at, channelData(number, data))
	p.expect(a.local(), data)
	p.send(a.local(), data)
	a.client.expect(a.at, channelData(number, data))
}

func channelData(number uint16, b []byte) []byte {
	head := binary.BigEndian.AppendUint16(nil, number)
	return append(binary.BigEndian.AppendUint16(head, uint16(len(b))), b...)
}

// hears reads from a front or a port what no channel carries.
func hears(t *testing.T, c net.PacketConn, from netip.AddrPort, want []byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, src, err := c.ReadFrom(buf)
	if err != nil || !bytes.Equal(buf[:n], want) || pinhole.AddrPortOf(src) != from {
		t.Fatalf("heard %s from %v, %v; want %s from %s", brief(buf[:n]), src, err, brief(want), from)
	}
}

// testChannels: two channels of one client, and what belongs to none, both ways.
func testChannels(t *testing.T, newPath func(*testing.T) media.Path) {
	a := newAllocation(t, newPath)
	a.serve("127.0.1.1", "127.0.1.10")
	first, second := a.bind(0x4000), a.bind(0x7fff)
	for i := range 3 {
		a.both(0x4000, first, fmt.Appendf(nil, "first %d", i))
		a.both(0x7fff, second, fmt.Appendf(nil, "second %d", i))
	}
	stranger := newPeer(t, a.host)
	stranger.send(a.local(), []byte("no channel"))
	hears(t, a.port, stranger.addr(), []byte("no channel"))
	if _, err := a.port.WriteTo([]byte("indication"), net.UDPAddrFromAddrPort(stranger.addr())); err != nil {
		t.Fatal(err)
	}
	stranger.expect(a.local(), []byte("indication"))
	request := append([]byte{0, 1}, make([]byte, 18)...)
	for _, b := range [][]byte{request, channelData(0x4001, []byte("unbound")), {0x40}, {}} {
		a.client.send(a.at, b)
		hears(t, a.front, a.client.addr(), b)
	}
	// Another client of the same host has no part in the channel.
	other := newPeer(t, "127.0.1.10")
	other.send(a.at, channelData(0x4000, []byte("evil")))
	hears(t, a.front, other.addr(), channelData(0x4000, []byte("evil")))
	if _, err := a.front.WriteTo(request, net.UDPAddrFromAddrPort(a.client.addr())); err != nil {
		t.Fatal(err)
	}
	a.client.expect(a.at, request)
	want := [2]pinhole.StreamStats{{Packets: 7, Bytes: 55}, {Packets: 7, Bytes: 55}}
	if got := a.port.Stats(); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	a.waitFor("what people see", func(i media.Info) bool {
		return i.Kind == "port" && i.Ends[near].Declared == a.client.addr() && i.Ends[far].Local == a.local() &&
			i.Ends[near].Stats.Packets == 7 && i.Ends[far].Stats.Bytes == 55
	})
}

// testChannelFraming: padding is not data, a length that lies is nobody's, and no data is data.
func testChannelFraming(t *testing.T, newPath func(*testing.T) media.Path) {
	a := newAllocation(t, newPath)
	a.serve("127.0.1.1", "127.0.1.10")
	p := a.bind(0x4abc)
	a.client.send(a.at, append(channelData(0x4abc, []byte("padded")), 0, 0))
	p.expect(a.local(), []byte("padded"))
	long := channelData(0x4abc, []byte("short"))
	long[3]++
	a.client.send(a.at, long)
	long[2] = 0xff
	a.client.send(a.at, long)
	a.both(0x4abc, p, nil)
	for _, size := range []int{1, 3, 4, 172, 1468, 1469, 9000, 65503} {
		a.both(0x4abc, p, bytes.Repeat([]byte{0x80}, size))
	}
	// What fits a datagram, but not with its header, can not reach the client.
	p.send(a.local(), make([]byte, 65504))
	a.both(0x4abc, p, []byte("still here"))
	if st := a.port.Stats(); st[near].Dropped != 0 || st[far].Dropped != 1 || st[near].Packets != 11 {
		t.Errorf("counted %+v", st)
	}
}

// testChannelEnds: what a channel carried goes to those who read as soon as it has ended, however it did.
func testChannelEnds(t *testing.T, newPath func(*testing.T) media.Path) {
	a := newAllocation(t, newPath)
	a.serve("127.0.1.1", "127.0.1.10")
	p, q := a.bind(0x4000), a.bind(0x4001)
	a.both(0x4000, p, []byte("bound"))
	a.port.Unbind(0x4000)
	a.port.Unbind(0x4002)
	a.client.send(a.at, channelData(0x4000, []byte("over")))
	hears(t, a.front, a.client.addr(), channelData(0x4000, []byte("over")))
	p.send(a.local(), []byte("over"))
	hears(t, a.port, p.addr(), []byte("over"))
	a.both(0x4001, q, []byte("the other one is not"))
	// The number for another peer, and the peer by another number.
	a.rebind(0x4001, p)
	a.both(0x4001, p, []byte("another peer"))
	q.send(a.local(), []byte("left"))
	hears(t, a.port, q.addr(), []byte("left"))
	a.rebind(0x4009, p)
	a.both(0x4009, p, []byte("another number"))
	a.client.send(a.at, channelData(0x4001, nil))
	hears(t, a.front, a.client.addr(), channelData(0x4001, nil))
	// The client has lost its allocation, has a new one, and binds the same number there.
	old := a.port
	a.port = a.allocate()
	a.rebind(0x4009, q)
	a.both(0x4009, q, []byte("another port"))
	p.send(old.Local().Addr, []byte("to the old one"))
	hears(t, old, p.addr(), []byte("to the old one"))
	if err := a.port.Close(); err != nil {
		t.Fatal(err)
	}
	a.client.send(a.at, channelData(0x4009, []byte("closed")))
	hears(t, a.front, a.client.addr(), channelData(0x4009, []byte("closed")))
	a.port = old
	a.rebind(0x4000, p)
	a.both(0x4000, p, []byte("the old port serves again"))
	if err := a.front.Close(); err != nil {
		t.Fatal(err)
	}
	p.send(a.local(), []byte("no way to the client"))
	hears(t, a.port, p.addr(), []byte("no way to the client"))
	a.client.quiet()
	if err := a.port.Bind(pinhole.Channel{Number: 0x4000, Client: a.client.addr(), Front: a.front, Peer: p.addr()}); err == nil {
		t.Error("bound at a socket that is closed")
	}
}

// testChannelBursts: video of two clients at once, as the kernel may join it and take it in a piece: in order, none is lost
// and none is somebody else's.
func testChannelBursts(t *testing.T, newPath func(*testing.T) media.Path) {
	a := newAllocation(t, newPath)
	a.serve("127.0.1.1", "127.0.1.10")
	p, q := a.bind(0x4000), a.bind(0x4001)
	for round := range 60 {
		data := func(i int) []byte {
			b := bytes.Repeat([]byte{byte(round)}, 1100)
			if i%10 == 9 {
				b = b[:300]
			}
			binary.BigEndian.PutUint32(b, uint32(i))
			return b
		}
		for i := range 40 {
			a.client.send(a.at, channelData(0x4000+uint16(i/20), data(i)))
			[...]*peer{p, q}[i/20].send(a.local(), data(i))
		}
		heard := [2][]byte{}
		for i := range 40 {
			[...]*peer{p, q}[i/20].expect(a.local(), data(i))
			b := a.client.next()
			heard[b[1]] = append(heard[b[1]], b[7])
			if want := channelData(0x4000+uint16(b[1]), data(int(b[7]))); !bytes.Equal(b, want) {
				t.Fatalf("round %d: got %s, want %s", round, brief(b), brief(want))
			}
		}
		for s, h := range heard {
			for i, n := range h {
				if len(h) != 20 || int(n) != 20*s+i {
					t.Fatalf("round %d, channel %d: %v", round, s, h)
				}
			}
		}
	}
}

// testChannelFamilies: client and peers may have different ones.
func testChannelFamilies(t *testing.T, newPath func(*testing.T) media.Path) {
	if l, err := net.ListenPacket("udp", "[::1]:0"); err != nil {
		t.Skipf("no IPv6 on loopback: %v", err)
	} else {
		l.Close()
	}
	for _, hosts := range [][3]string{{"::1", "::1", "127.0.2.10"}, {"127.0.1.1", "127.0.1.10", "::1"}} {
		a := newAllocation(t, newPath)
		a.host = hosts[2]
		a.serve(hosts[0], hosts[1])
		a.both(0x4000, a.bind(0x4000), []byte("hello"))
		p := newPeer(t, hosts[1])
		if p.addr().Addr().Is4() == a.local().Addr().Is4() {
			t.Fatal("the peer should have the other family")
		}
		if err := a.port.Bind(pinhole.Channel{Number: 0x4001, Client: a.client.addr(), Front: a.front, Peer: p.addr()}); err == nil {
			t.Error("a peer of the other family was bound")
		}
	}
}

package fastpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/pinhole"
)

// turn is a client at the near host with a channel to a peer at the far one.
type turn struct {
	*rig
	front        net.PacketConn
	port         pinhole.Port
	client, peer *peer
	at, local    netip.AddrPort
	number       uint16
}

// newTurn makes the hosts' checksums whole, as on a cable, unless offload says that a device is to make them.
func newTurn(t *testing.T, family pinhole.Family, offload bool, rig func(*testing.T) *rig) *turn {
	t.Helper()
	r := rig(t)
	for _, h := range r.hosts {
		pathtest.Within(t, h.ns, func() { must(t, pathtest.TXChecksums(h.own, offload)) })
	}
	edge := gatewayNetworks()["inside"].Addresses[family/5]
	c := &turn{rig: r, number: 0x4321}
	l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(edge, 0)))
	must(t, err)
	c.front, err = r.relay.Front(l)
	must(t, err)
	c.client, c.peer = r.hosts[near].peer(r.hosts[near].addrs[family/5]), r.hosts[far].peer(r.hosts[far].addrs[family/5])
	c.port, err = r.relay.OpenPort(context.Background(), pinhole.PortRequest{
		Owner: "alice", Label: t.Name(), Network: "outside", Family: family, Client: c.client.addr(),
	})
	must(t, err)
	c.at, c.local = pinhole.AddrPortOf(c.front.LocalAddr()), c.port.Local().Addr
	c.bind()
	return c
}

func (c *turn) bind() {
	c.t.Helper()
	must(c.t, c.port.Bind(pinhole.Channel{Number: c.number, Client: c.client.addr(), Front: c.front, Peer: c.peer.addr()}))
}

// waitPath waits until both ways are carried as want says.
func (c *turn) waitPath(want string) {
	c.t.Helper()
	var last media.Info
	for end := time.Now().Add(patience); time.Now().Before(end); pause() {
		if last = c.relay.Pinholes()[0]; last.Path == want {
			return
		}
	}
	c.t.Fatalf("carried by %q, not %q: %+v", last.Path, want, last)
}

// moved returns how many packets the kernel has carried from a side.
func (c *turn) moved(s pinhole.Side) (n uint64) {
	c.t.Helper()
	c.path.mu.Lock()
	defer c.path.mu.Unlock()
	for key, ch := range c.path.byChannel {
		var v tcFlow
		must(c.t, c.path.kern.objs.Channels.Lookup(&key, &v))
		if (ch.number != 0) == (s == near) {
			n += v.Packets
		}
	}
	return n
}

func channelData(number uint16, b []byte) []byte {
	head := binary.BigEndian.AppendUint16(nil, number)
	return append(binary.BigEndian.AppendUint16(head, uint16(len(b))), b...)
}

// pass sends data from a side and expects it at the other.
func (c *turn) pass(s pinhole.Side, data []byte) packet {
	c.t.Helper()
	from, to, at, out, sent, want := c.client, c.peer, c.at, c.local, channelData(c.number, data), data
	if s == far {
		from, to, at, out, sent, want = c.peer, c.client, c.local, c.at, data, channelData(c.number, data)
	}
	from.send(at, sent)
	got := to.receive()
	if !bytes.Equal(got.data, want) || got.from != out {
		c.t.Fatalf("from side %d %d bytes came from %s, not these %d", s, len(got.data), got.from, len(want))
	}
	return got
}

func eachTurn(t *testing.T, run func(*testing.T, pinhole.Family, func(*testing.T) *rig)) {
	needKernel(t)
	for _, path := range everyPath() {
		for _, family := range []pinhole.Family{4, 6} {
			t.Run(fmt.Sprintf("v%d, %s", family, path.name), func(t *testing.T) { run(t, family, path.rig) })
		}
	}
}

// TestChannelCarried: both ways pass in the kernel, of any length, with the right headers and checksums, and none comes to a
// socket of the gateway.
func TestChannelCarried(t *testing.T) {
	eachTurn(t, func(t *testing.T, family pinhole.Family, rig func(*testing.T) *rig) {
		c := newTurn(t, family, false, rig)
		c.waitPath(c.want)
		audits := [2]*pathtest.Audit{}
		for s, h := range c.hosts {
			audits[s] = pathtest.Watch(t, h.ns, h.own, 1500)
		}
		runs := c.runs()
		before, g, want := datagrams(t), rand.New(rand.NewPCG(1, uint64(family))), [2]pinhole.StreamStats{}
		longest, up := 1500-48-4, 0
		for i := range 300 {
			size := 4 + g.IntN(longest-3)
			if i == 0 {
				size = longest
			}
			for s := range want {
				got := c.pass(pinhole.Side(s), noise(g, make([]byte, 12), max(12, size)))
				if got.ttl == 64 {
					up++ // its checksum looked unfinished, as one in 65536 does
				} else if got.ttl != 63 || got.tos != dscp<<2 {
					t.Fatalf("tos %#x, ttl %d", got.tos, got.ttl)
				}
				want[s].Packets++
				want[s].Bytes += uint64(max(12, size))
			}
		}
		if after := datagrams(t); after != before+up || up > 5 {
			t.Errorf("%d packets came to the gateway's sockets, %d passed there", after-before, up)
		}
		// Neighbours are looked for all the time, but that is little.
		if ran := c.runs() - runs; (ran < 300) != (c.want == "xdp") {
			t.Errorf("tc's program ran %d times", ran)
		}
		c.path.Refresh()
		if got := c.port.Stats(); got != want || c.moved(near)+c.moved(far) != uint64(600-up) {
			t.Errorf("counted %+v, want %+v; %d and %d carried", got, want, c.moved(near), c.moved(far))
		}
		for s, a := range audits {
			for end := time.Now().Add(patience); a.Packets.Load() < 300; pause() {
				if time.Now().After(end) {
					t.Fatalf("side %d: %d packets were judged", s, a.Packets.Load())
				}
			}
			if faults := a.Faults(); faults != "" {
				t.Errorf("side %d: %s", s, faults)
			}
		}
		must(t, c.port.Close())
		if got := c.port.Stats(); got != want {
			t.Errorf("closed: %+v, want %+v", got, want)
		}
		var k tcChannelKey
		if err := c.path.kern.objs.Channels.NextKey(nil, &k); err == nil {
			t.Error("a channel is left in the kernel")
		}
		if len(c.path.known) != 0 {
			t.Errorf("%d ways are left", len(c.path.known))
		}
	})
}

// TestChannelUp: what the kernel must not touch passes by the sockets, or comes to who reads them, as without it.
func TestChannelUp(t *testing.T) {
	eachTurn(t, func(t *testing.T, family pinhole.Family, rig func(*testing.T) *rig) {
		c := newTurn(t, family, false, rig)
		c.waitPath(c.want)
		c.pass(near, []byte("carried"))
		c.pass(far, []byte("carried"))
		moved := [2]uint64{c.moved(near), c.moved(far)}
		c.client.send(c.at, append(channelData(c.number, []byte("padded")), 0, 0))
		if got := c.peer.receive(); string(got.data) != "padded" {
			t.Errorf("padded data became %q", got.data)
		}
		long := channelData(c.number, []byte("its length lies"))
		long[3]++
		c.client.send(c.at, long)
		c.pass(far, nil)
		c.pass(far, []byte{1})           // less than a header is not looked at
		c.pass(near, make([]byte, 1500)) // in fragments
		c.pass(far, make([]byte, 1500-28-20*int(family/6)))
		c.hears(c.front, c.client, c.at, channelData(c.number+1, []byte("another channel")))
		c.hears(c.front, c.client, c.at, make([]byte, 20))
		other := c.hosts[near].peer(c.client.addr().Addr())
		c.hears(c.front, other, c.at, channelData(c.number, []byte("another client")))
		other = c.hosts[far].peer(c.peer.addr().Addr())
		c.hears(c.port, other, c.local, channelData(c.number, []byte("another peer")))
		if c.moved(near) != moved[near] || c.moved(far) != moved[far] {
			t.Errorf("%d and %d were carried", c.moved(near)-moved[near], c.moved(far)-moved[far])
		}
		// Data that looks like ChannelData is data, and none is too.
		c.pass(far, channelData(c.number, []byte("nested")))
		c.pass(near, channelData(c.number, []byte("nested")))
		c.pass(near, nil)
		if c.moved(near) != moved[near]+2 || c.moved(far) != moved[far]+1 {
			t.Error("data that looks like ChannelData was not carried")
		}
	})
}

// hears sends b and expects it from who is read in the path's stead.
func (c *turn) hears(by net.PacketConn, from *peer, at netip.AddrPort, b []byte) {
	c.t.Helper()
	from.send(at, b)
	buf := make([]byte, 2000)
	must(c.t, by.SetReadDeadline(time.Now().Add(patience)))
	n, src, err := by.ReadFrom(buf)
	must(c.t, err)
	if !bytes.Equal(buf[:n], b) || pinhole.AddrPortOf(src) != from.addr() {
		c.t.Fatalf("%q came from %v, want %q", buf[:n], src, b)
	}
}

// TestChannelEnds: nothing passes in the kernel when a channel has ended, or the lease; and again when it is bound again.
func TestChannelEnds(t *testing.T) {
	needKernel(t)
	c := newTurn(t, pinhole.IPv4, false, newTCRig)
	c.waitPath(c.want)
	c.pass(near, []byte("bound"))
	c.port.Unbind(c.number)
	c.hears(c.front, c.client, c.at, channelData(c.number, []byte("ended")))
	c.hears(c.port, c.peer, c.local, []byte("ended"))
	c.bind()
	c.waitPath(c.want)
	c.pass(far, []byte("bound again"))
	c.path.mu.Lock()
	at, err := readClock()
	must(t, err)
	at.ns -= uint64(leaseTime) + 1
	must(t, c.path.kern.renew(at))
	c.pass(near, []byte("the lease is over"))
	c.pass(far, []byte("the lease is over"))
	c.path.mu.Unlock()
	if c.moved(near) != 0 || c.moved(far) != 1 {
		t.Errorf("%d and %d were carried", c.moved(near), c.moved(far))
	}
	c.path.Refresh()
	if got := c.port.Stats(); got[near].Packets != 2 || got[far].Packets != 3 {
		t.Errorf("counted %+v", got) // of the last, one was read from the port
	}
}

// TestChannelMTU: what does not fit the way out with its header goes in fragments, by the socket.
func TestChannelMTU(t *testing.T) {
	needKernel(t)
	const mtu = 1400
	c := newTurn(t, pinhole.IPv4, false, newTCRig)
	l, err := netlink.LinkByName(c.hosts[near].dev)
	must(t, err)
	must(t, netlink.LinkSetMTU(l, mtu))
	c.port.Unbind(c.number)
	<-time.After(2 * lookEvery) // the way is looked at anew
	c.bind()
	c.waitPath(c.want)
	a := pathtest.Watch(t, c.hosts[near].ns, c.hosts[near].own, mtu)
	c.pass(far, make([]byte, mtu-28-4))
	if c.moved(far) != 1 {
		t.Error("what fits was not carried")
	}
	c.pass(far, make([]byte, mtu-28-3))
	c.pass(far, make([]byte, mtu-28))
	if n := c.moved(far); n != 1 {
		t.Errorf("%d were carried", n)
	}
	if faults := a.Faults(); faults != "" {
		t.Error(faults)
	}
}

// TestChannelOffload: checksums that a device is to finish are left to the kernel.
func TestChannelOffload(t *testing.T) {
	needKernel(t)
	for _, family := range []pinhole.Family{4, 6} {
		t.Run(fmt.Sprintf("v%d", family), func(t *testing.T) {
			c := newTurn(t, family, true, newTCRig)
			c.waitPath(c.want)
			for i := range 20 {
				c.pass(near, fmt.Appendf(nil, "client %d", i))
				c.pass(far, fmt.Appendf(nil, "peer %d", i))
			}
			if c.moved(near) != 0 || c.moved(far) != 0 {
				t.Errorf("%d and %d were carried", c.moved(near), c.moved(far))
			}
		})
	}
}

// TestChannelNoSum: over IPv4 a packet without a checksum keeps none.
func TestChannelNoSum(t *testing.T) {
	needKernel(t)
	c := newTurn(t, pinhole.IPv4, false, newTCRig)
	c.waitPath(c.want)
	for s, p := range []*peer{c.client, c.peer} {
		p.set(unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
		c.pass(pinhole.Side(s), []byte("no checksum"))
		if c.moved(pinhole.Side(s)) != 1 {
			t.Error("not carried")
		}
	}
}

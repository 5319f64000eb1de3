package fastpath

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// TestSequence: the kernel and package media find the same losses in the same packets.
func TestSequence(t *testing.T) { rigs(t, testSequence) }

func testSequence(t *testing.T, newRig func(*testing.T) *rig) {
	r := newRig(t)
	carried, relayed := r.call(pinhole.RTP), r.call(pinhole.RTP)
	carried.offload()
	relayed.pass(near, relayed.rtp(near)) // its far peer stays silent: it is not carried
	before := carried.moved(near)
	g := rand.New(rand.NewPCG(1, 2))
	seq, ssrc := uint16(65000), uint32(77)
	const n = 1500
	for i := range n {
		switch g.IntN(40) {
		case 0:
			seq += uint16(g.IntN(50)) // lost
		case 1:
			seq -= uint16(g.IntN(50)) // late, or twice
		case 2:
			if i%5 == 0 {
				seq += 20000 // the sender starts anew
			}
		case 3:
			if i%7 == 0 {
				ssrc++
			}
		}
		b := rtpPacket(60)
		binary.BigEndian.PutUint16(b[2:], seq)
		binary.BigEndian.PutUint32(b[8:], ssrc)
		carried.pass(near, b)
		relayed.pass(near, b)
		seq++
	}
	if got := carried.moved(near) - before; got != n {
		t.Fatalf("%d of %d carried", got, n)
	}
	a, b := carried.info().Ends[near].Stats, relayed.info().Ends[near].Stats
	if a.Lost != b.Lost || a.Packets != b.Packets || a.Bytes != b.Bytes || b.Lost == 0 {
		t.Errorf("carried %+v, relayed %+v", a, b)
	}
}

// TestJitter: the clock of a dynamic payload type is found from its timestamps, and even packets have
// little jitter.
func TestJitter(t *testing.T) {
	r := newRig(t, rigOptions{})
	c := r.call(pinhole.RTP)
	c.offload()
	start := time.Now()
	for i := range 80 {
		b := c.rtp(near)
		b[1] = 111
		// The timestamp says when the packet really leaves, so that a busy machine does no harm.
		<-time.After(time.Until(start.Add(time.Duration(i) * 20 * time.Millisecond)))
		binary.BigEndian.PutUint32(b[4:], uint32(time.Since(start)*48000/time.Second))
		c.pass(near, b)
	}
	key := keyOf(c.local[near])
	var v tcFlow
	must(t, r.path.kern.objs.Flows.Lookup(&key, &v))
	if v.Clock.Rate != 48000 {
		t.Errorf("the clock runs at %d Hz", v.Clock.Rate)
	}
	if j := c.info().Ends[near].Stats.JitterSeconds; j <= 0 || j > 0.5 {
		t.Errorf("jitter %v s", j)
	}
}

// TestNeighbour: a peer that gets another network card is found again, and so is one that was never
// heard of on the link.
func TestNeighbour(t *testing.T) {
	r := newRig(t, rigOptions{})
	c := r.call(pinhole.RTP)
	c.offload()
	hop := func() tcHop {
		r.path.mu.Lock()
		defer r.path.mu.Unlock()
		return r.path.streams[r.socket(c, near)].forth.hop
	}
	wait := func(what string, ok func(tcHop) bool) {
		t.Helper()
		for end := time.Now().Add(patience); !ok(hop()); pause() {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, hop())
			}
		}
	}
	wait("the first card", func(h tcHop) bool { return h.Flags&hopMAC != 0 })
	first := hop().Dmac
	h := r.hosts[far]
	l, err := h.nl.LinkByName(h.own)
	must(t, err)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	must(t, h.nl.LinkSetHardwareAddr(l, mac))
	// As its own ARP announcement, or the end of the old entry, would.
	dev, err := netlink.LinkByName(h.dev)
	must(t, err)
	n := &netlink.Neigh{LinkIndex: dev.Attrs().Index, IP: h.addrs[0].AsSlice(), HardwareAddr: mac, State: unix.NUD_REACHABLE}
	must(t, netlink.NeighSet(n))
	wait("the new card", func(h tcHop) bool { return h.Flags&hopMAC != 0 && h.Dmac != first && string(h.Dmac[:]) == string(mac) })
	c.pass(near, c.rtp(near))
	// Without a known address the kernel looks for it; the packet waits.
	must(t, netlink.NeighDel(n))
	before := c.moved(near)
	must(t, r.path.kern.objs.Hops.Put(r.slot(c, near), ptr(without(hop()))))
	c.pass(near, c.rtp(near))
	if c.moved(near) != before+1 {
		t.Error("not carried by the kernel's own look-up")
	}
}

func without(h tcHop) tcHop {
	h.Flags, h.Dmac, h.Smac = 0, [6]byte{}, [6]byte{}
	return h
}

func ptr[T any](v T) *T { return &v }

// TestRouteLost: a link that goes down takes the flow out of the kernel, and back in when it comes up.
func TestRouteLost(t *testing.T) {
	r := newRig(t, rigOptions{})
	c := r.call(pinhole.RTP)
	c.offload()
	dev, err := netlink.LinkByName(r.hosts[far].dev)
	must(t, err)
	must(t, netlink.LinkSetDown(dev))
	c.waitPath("user")
	must(t, netlink.LinkSetUp(dev))
	c.waitPath("tc")
	before := c.moved(near)
	c.pass(near, c.rtp(near))
	if c.moved(near) == before {
		t.Error("not carried")
	}
}

// TestAddressMoves: streams leave the kernel when their address leaves the device, and come back with it.
func TestAddressMoves(t *testing.T) {
	r := newRig(t, rigOptions{})
	c := r.call(pinhole.RTP)
	c.offload()
	dev, err := netlink.LinkByName(r.hosts[near].dev)
	must(t, err)
	for _, a := range []string{"192.0.2.1/24", "2001:db8:1::1/64"} {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		must(t, netlink.AddrDel(dev, addr))
	}
	c.waitPath("user")
	for end := time.Now().Add(patience); r.attached() != 1; pause() {
		if time.Now().After(end) {
			t.Fatal("the program stays at the device")
		}
	}
	addr, err := netlink.ParseAddr("192.0.2.1/24")
	must(t, err)
	must(t, netlink.AddrAdd(dev, addr))
	c.waitPath("tc")
	before := c.moved(near)
	c.pass(near, c.rtp(near))
	if c.moved(near) == before {
		t.Error("not carried")
	}
}

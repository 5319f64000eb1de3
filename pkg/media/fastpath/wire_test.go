package fastpath

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// TestOffload: checksums are right whoever has to make them: the sender, the gateway's device, or nobody
// because the packet never leaves the machine; and for senders that leave the cutting to the device.
func TestOffload(t *testing.T) {
	needKernel(t)
	for name, families := range map[string][]pinhole.Family{"4-4": {4, 4}, "6-6": {6, 6}, "4-6": {4, 6}, "6-4": {6, 4}} {
		for mask := range 4 {
			sender, gateway := mask&1 != 0, mask&2 != 0
			t.Run(fmt.Sprintf("%s/sender %v gateway %v", name, sender, gateway), func(t *testing.T) {
				r := newRig(t, rigOptions{})
				within(t, r.hosts[near].ns, func() { must(t, txChecksums(r.hosts[near].own, sender)) })
				must(t, txChecksums(r.hosts[far].dev, gateway))
				c := r.call(pinhole.RTP, families...)
				c.offload()
				bad := r.hosts[far].badChecksums()
				for range 20 {
					c.pass(near, c.rtp(near))
				}
				c.burst(10)
				if n := r.hosts[far].badChecksums() - bad; n != 0 {
					t.Errorf("%d bad checksums", n)
				}
				if st := c.info().Ends[near].Stats; st.Packets != 31 || st.Bytes != 31*172 || st.Lost != 0 {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

// burst sends n packets by one system call, as one buffer that a device has to cut (UDP_SEGMENT).
func (c *call) burst(n int) {
	c.t.Helper()
	c.peers[near].set(unix.SOL_UDP, unix.UDP_SEGMENT, 172)
	var all []byte
	for range n {
		all = append(all, c.rtp(near)...)
	}
	c.peers[near].send(c.local[near], all)
	for i := range n {
		if got := c.peers[far].receive(); string(got.data) != string(all[172*i:172*(i+1)]) {
			c.t.Fatalf("packet %d of the burst came as %d bytes", i, len(got.data))
		}
	}
	c.peers[near].set(unix.SOL_UDP, unix.UDP_SEGMENT, 0)
}

// badChecksums returns how many UDP packets the host refused.
func (h *host) badChecksums() (n int) {
	h.t.Helper()
	within(h.t, h.ns, func() {
		for file, key := range map[string]string{"snmp": "Udp:", "snmp6": "Udp6InCsumErrors"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			must(h.t, err)
			for line := range strings.Lines(string(text)) {
				f := strings.Fields(line)
				at := 1
				if f[0] == "Udp:" {
					at = 7 // InCsumErrors
				}
				var v int
				if f[0] != key {
					continue
				} else if _, err := fmt.Sscan(f[at], &v); err == nil {
					n += v
				}
			}
		}
	})
	return n
}

// TestNoChecksum: a sender that makes no checksums (IPv4) is carried as it is.
func TestNoChecksum(t *testing.T) { rigs(t, testNoChecksum) }

func testNoChecksum(t *testing.T, newRig func(*testing.T) *rig) {
	r := newRig(t)
	c := r.call(pinhole.RTP)
	c.offload()
	c.peers[near].set(unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	before := c.moved(near)
	c.pass(near, c.rtp(near))
	if c.moved(near) != before+1 {
		t.Error("not carried")
	}
}

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

// TestOneInterface: both networks of a call may be on one device.
func TestOneInterface(t *testing.T) { rigs(t, testOneInterface) }

func testOneInterface(t *testing.T, newRig func(*testing.T) *rig) {
	r := newRig(t)
	r.hosts[far] = r.hosts[near]
	c := r.callBetween([2]string{"inside", "inside"}, pinhole.RTP)
	c.offload()
	for range 10 {
		c.pass(near, c.rtp(near))
		c.pass(far, c.rtp(far))
	}
	if a, b := c.moved(near), c.moved(far); a != 10 || b != 10 {
		t.Errorf("%d and %d carried", a, b)
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

package fastpath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// everyPath makes a rig for each way to carry media, user space first: it is the truth.
func everyPath() []struct {
	name string
	rig  func(*testing.T) *rig
} {
	tc := func(o options) func(*testing.T) *rig {
		return func(t *testing.T) *rig { return newRig(t, rigOptions{options: o}) }
	}
	return []struct {
		name string
		rig  func(*testing.T) *rig
	}{
		{"user", func(t *testing.T) *rig { return newRig(t, rigOptions{user: true}) }},
		{"tcx", tc(options{})},
		{"clsact", tc(options{clsact: true})},
		{"xdp", newXDPRig},
	}
}

// wire is a raw socket at a host's device.
type wire struct {
	t     *testing.T
	fd    int
	index int
	mac   [6]byte
	// gateway is the address of the other end.
	gateway [6]byte
}

func (h *host) wire() *wire {
	h.t.Helper()
	w := &wire{t: h.t, fd: -1}
	own, err := h.nl.LinkByName(h.own)
	must(h.t, err)
	dev, err := netlink.LinkByName(h.dev)
	must(h.t, err)
	w.index, w.mac, w.gateway = own.Attrs().Index, [6]byte(own.Attrs().HardwareAddr), [6]byte(dev.Attrs().HardwareAddr)
	within(h.t, h.ns, func() {
		var err error
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(port(unix.ETH_P_ALL)))
		if err == nil {
			err = unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: port(unix.ETH_P_ALL), Ifindex: w.index})
		}
		must(h.t, err)
	})
	h.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(frames ...[]byte) {
	w.t.Helper()
	for _, f := range frames {
		must(w.t, unix.Sendto(w.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}))
	}
}

// audit reads every UDP packet that comes to a host, and judges it by itself.
type audit struct {
	packets, bad, long atomic.Int64
	mu                 sync.Mutex
	worst              string
}

// audit begins to watch; nothing longer than mtu may come.
func (h *host) audit(mtu int) *audit {
	h.t.Helper()
	a, w := &audit{}, h.wire()
	must(h.t, unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	must(h.t, unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000}))
	var end atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<17)
		for !end.Load() {
			n, from, err := unix.Recvfrom(w.fd, buf, 0)
			if err != nil {
				continue
			}
			if at, ok := from.(*unix.SockaddrLinklayer); ok && at.Pkttype == unix.PACKET_HOST {
				a.judge(buf[:n], mtu)
			}
		}
	}()
	h.t.Cleanup(func() {
		end.Store(true)
		<-done
	})
	return a
}

func (a *audit) judge(b []byte, mtu int) {
	ok, udp := sound(b)
	if !udp {
		return
	}
	a.packets.Add(1)
	if !ok {
		a.bad.Add(1)
		a.mu.Lock()
		a.worst = fmt.Sprintf("%x", b[:min(len(b), 100)])
		a.mu.Unlock()
	}
	if len(b)-14 > mtu {
		a.long.Add(1)
	}
}

// sound tells whether a frame bears UDP, and whether its checksums are right.
func sound(b []byte) (ok, udp bool) {
	if len(b) < 14+28 {
		return false, false
	}
	switch ip := b[14:]; {
	case b[12] == 8 && b[13] == 0 && ip[9] == unix.IPPROTO_UDP:
		l4, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if total > len(ip) || checksum(ip[:l4]) != 0xffff {
			return false, true
		}
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 || binary.BigEndian.Uint16(ip[l4+6:]) == 0 {
			return true, true // fragments are judged by who puts them together
		}
		return sums(ip[12:20], ip[l4:total]), true
	case b[12] == 0x86 && b[13] == 0xdd && ip[6] == unix.IPPROTO_UDP && len(ip) >= 48:
		total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		return total <= len(ip) && binary.BigEndian.Uint16(ip[46:]) != 0 && sums(ip[8:40], ip[40:total]), true
	}
	return false, false
}

func sums(addrs, udp []byte) bool {
	pseudo := append(append([]byte(nil), addrs...), 0, unix.IPPROTO_UDP, byte(len(udp)>>8), byte(len(udp)))
	return checksum(append(pseudo, udp...)) == 0xffff
}

// TestSamePackets: whatever carries a call, the same packets come out of the same packets, and are counted alike.
func TestSamePackets(t *testing.T) {
	needKernel(t)
	for name, families := range map[string][]pinhole.Family{"4-4": {4, 4}, "6-6": {6, 6}, "4-6": {4, 6}, "6-4": {6, 4}} {
		t.Run(name, func(t *testing.T) {
			var truth []string
			for _, p := range everyPath() {
				t.Run(p.name, func(t *testing.T) {
					got := transcript(p.rig(t), families)
					if truth == nil {
						truth = got
					}
					if !slices.Equal(got, truth) {
						t.Errorf("got\n%s\nuser space makes\n%s", strings.Join(got, "\n"), strings.Join(truth, "\n"))
					}
				})
			}
		})
	}
}

// transcript says what becomes of each case, and what was counted at the end.
func transcript(r *rig, families []pinhole.Family) (lines []string) {
	const mtu = 1400
	far0, err := netlink.LinkByName(r.hosts[far].dev)
	must(r.t, err)
	must(r.t, netlink.LinkSetMTU(far0, mtu))
	must(r.t, txChecksums(r.hosts[far].dev, false))
	c := r.call(pinhole.RTP, families...)
	c.offload()
	w, audited := r.hosts[near].wire(), r.hosts[far].audit(mtu)
	for _, cs := range c.cases(w) {
		w.send(cs.frames...)
		if cs.quiet {
			end := time.Now().Add(patience)
			for c.info().Ends[near].Stats.Dropped["unknown_source"] < cs.dropped && time.Now().Before(end) {
				pause()
			}
			continue
		}
		got := c.peers[far].receive()
		lines = append(lines, fmt.Sprintf("%s: %d bytes, sum %04x, dscp %d, from our port %v", cs.name, len(got.data),
			checksum(got.data), got.tos>>2, got.from == c.local[far]))
	}
	if got, err := c.peers[far].read(time.Now().Add(time.Millisecond)); err == nil {
		lines = append(lines, fmt.Sprintf("and %d bytes too many", len(got.data)))
	}
	if audited.bad.Load()+audited.long.Load() > 0 {
		r.t.Errorf("%d bad, %d longer than the MTU: %s", audited.bad.Load(), audited.long.Load(), audited.worst)
	}
	st := c.info().Ends[near].Stats
	return append(lines, fmt.Sprintf("%d packets, %d bytes, %d lost, %v dropped", st.Packets, st.Bytes, st.Lost, st.Dropped))
}

type wireCase struct {
	name   string
	frames [][]byte
	// quiet cases are heard by nobody; dropped is how many packets of strangers were then seen in all.
	quiet   bool
	dropped uint64
}

func (c *call) cases(w *wire) (list []wireCase) {
	make := func(change func(*frame), size int) frame {
		f := frame{dmac: w.gateway, smac: w.mac, from: c.peers[near].addr(), to: c.local[near], ttl: 64, payload: c.rtp(near)}
		f.payload = append(f.payload, rtpPacket(max(size, 172))[172:]...)[:size]
		if change != nil {
			change(&f)
		}
		return f
	}
	add := func(name string, size int, change func(*frame)) {
		list = append(list, wireCase{name: name, frames: [][]byte{make(change, size).wire()}})
	}
	v4 := c.local[near].Addr().Is4()
	add("rtp", 172, nil)
	add("video", 1200, nil)
	add("shortest", 12, nil)
	add("marked", 172, func(f *frame) { f.payload[1] = 0x80 | 96 })
	add("dscp and ecn", 172, func(f *frame) { f.tos = 0x29 })
	add("last hop", 172, func(f *frame) { f.ttl = 1 })
	add("last hop but one", 172, func(f *frame) { f.ttl = 2 })
	add("as long as the smallest MTU", 1400-48, nil)
	add("longer than the MTU of the way out", 1400, nil)
	add("as long as the MTU of the way in", 1500-48, nil)
	add("options", 172, func(f *frame) { f.options = true })
	if v4 {
		add("no checksum", 172, func(f *frame) { f.noSum = true })
	}
	for _, other := range []struct {
		name string
		head []byte
	}{{"stun", []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}}, {"dtls", []byte{22, 254, 253, 0}}, {"rtcp", []byte{0x80, 200, 0, 6}}} {
		add(other.name, 40, func(f *frame) { f.payload = append(other.head, rtpPacket(40)...) })
		c.seq[near]--
	}
	whole := make(nil, 172).wire()
	list = append(list, wireCase{name: "bytes behind the packet", frames: [][]byte{append(whole, rtpPacket(1200)...)}})
	list = append(list, wireCase{name: "fragments", frames: fragments(make(nil, 1000).wire())})
	add("after the fragments", 172, nil)
	for i, stranger := range []netip.AddrPort{
		netip.AddrPortFrom(c.peers[near].addr().Addr(), c.peers[near].addr().Port()+1),
		netip.AddrPortFrom(stranger(c.peers[near].addr().Addr()), c.peers[near].addr().Port()),
	} {
		f := make(func(f *frame) { f.from = stranger }, 172)
		c.seq[near]--
		list = append(list, wireCase{name: "stranger", frames: [][]byte{f.wire()}, quiet: true, dropped: uint64(i) + 1})
	}
	add("after the strangers", 172, nil)
	return list
}

// stranger is another host of the same network.
func stranger(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] = 66
	s, _ := netip.AddrFromSlice(b)
	return s
}

// fragments cuts the packet in a frame into two.
func fragments(b []byte) [][]byte {
	const cut = 480
	if b[12] == 0x86 {
		first := append(slices.Clone(b[:54]), unix.IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 7)
		second := append(slices.Clone(b[:54]), unix.IPPROTO_UDP, 0, cut>>8, cut&0xff, 0, 0, 0, 7)
		first, second = append(first, b[54:54+cut]...), append(second, b[54+cut:]...)
		for _, f := range [][]byte{first, second} {
			f[20] = unix.IPPROTO_FRAGMENT
			binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
		}
		return [][]byte{first, second}
	}
	first, second := slices.Clone(b[:34+cut]), append(slices.Clone(b[:34]), b[34+cut:]...)
	for i, f := range [][]byte{first, second} {
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		binary.BigEndian.PutUint16(f[20:], []uint16{0x2000, cut / 8}[i])
		binary.BigEndian.PutUint16(f[24:], 0)
		binary.BigEndian.PutUint16(f[24:], ^checksum(f[14:34]))
	}
	return [][]byte{first, second}
}

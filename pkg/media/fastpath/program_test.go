package fastpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The verdicts of the programs, said alike.
const (
	up         = ^uint32(0) // TC_ACT_UNSPEC, XDP_PASS
	redirected = 7          // TC_ACT_REDIRECT, XDP_REDIRECT
)

// entry is one of the two programs, loaded.
type entry struct {
	name string
	k    *kernel
}

// newEntry loads the programs, with a lease.
func newEntry(t testing.TB, name string) entry {
	t.Helper()
	needKernel(t)
	k, err := loadPinned(nil, 0, true)
	must(t, err)
	t.Cleanup(func() { must(t, k.close()) })
	c, err := readClock()
	must(t, err)
	c.ns += uint64(1 << 50) // longer than any test
	must(t, k.renew(c))
	return entry{name, k}
}

// eachProgram runs a test for both.
func eachProgram(t *testing.T, run func(*testing.T, entry)) {
	e := newEntry(t, "tc")
	for _, name := range []string{"tc", "xdp"} {
		t.Run(name, func(t *testing.T) { run(t, entry{name, e.k}) })
	}
}

// try returns the verdict on a frame and what became of it. change is for tc alone.
func (e entry) try(frame []byte, change func(*skb)) (uint32, []byte, error) {
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	if e.name == "xdp" {
		verdict, err := e.k.xdp.Run(&o)
		switch verdict {
		case 2:
			verdict = up
		case 4:
			verdict = redirected
		}
		return verdict, o.DataOut, err
	}
	ctx := skb{Ifindex: 1}
	if change != nil {
		change(&ctx)
	}
	o.Context = &ctx
	verdict, err := e.k.objs.Relay.Run(&o)
	return verdict, o.DataOut, err
}

// frame is an Ethernet frame with a UDP packet, written out by wire.
type frame struct {
	dmac, smac [6]byte
	from, to   netip.AddrPort
	ttl, tos   byte
	id, flags  uint16 // of IPv4
	noSum      bool
	options    bool // IPv4 with a no-op option, IPv6 with an empty destination option
	payload    []byte
}

// wire returns the bytes, with checksums made from scratch.
func (f frame) wire() []byte {
	udp := binary.BigEndian.AppendUint16(nil, f.from.Port())
	udp = binary.BigEndian.AppendUint16(udp, f.to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(f.payload)))
	udp = append(append(udp, 0, 0), f.payload...)
	if !f.noSum {
		pseudo := append(f.from.Addr().AsSlice(), f.to.Addr().AsSlice()...)
		pseudo = append(pseudo, 0, unix.IPPROTO_UDP, udp[4], udp[5])
		sum := ^checksum(append(pseudo, udp...))
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(udp[6:], sum)
	}
	b := append(f.dmac[:], f.smac[:]...)
	if f.from.Addr().Is6() {
		b = append(b, 0x86, 0xdd)
		ext, next := []byte(nil), byte(unix.IPPROTO_UDP)
		if f.options {
			ext, next = []byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0}, unix.IPPROTO_DSTOPTS
		}
		b = append(b, 0x60|f.tos>>4, f.tos<<4|0x0a, 0xbc, 0xde)
		b = binary.BigEndian.AppendUint16(b, uint16(len(ext)+len(udp)))
		b = append(b, next, f.ttl)
		b = append(append(b, f.from.Addr().AsSlice()...), f.to.Addr().AsSlice()...)
		return append(append(b, ext...), udp...)
	}
	b = append(b, 8, 0)
	ip := []byte{0x45, f.tos}
	if f.options {
		ip[0] = 0x46
	}
	ip = binary.BigEndian.AppendUint16(ip, uint16(int(ip[0]&15)*4+len(udp)))
	ip = binary.BigEndian.AppendUint16(ip, f.id)
	ip = binary.BigEndian.AppendUint16(ip, f.flags)
	ip = append(ip, f.ttl, unix.IPPROTO_UDP, 0, 0)
	ip = append(append(ip, f.from.Addr().AsSlice()...), f.to.Addr().AsSlice()...)
	if f.options {
		ip = append(ip, 1, 1, 1, 0)
	}
	binary.BigEndian.PutUint16(ip[10:], ^checksum(ip))
	return append(append(b, ip...), udp...)
}

// checksum is the sum of RFC 1071, not inverted.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// bench is the program with one flow, at the loopback device, whose address is all zeros.
type bench struct {
	t    *testing.T
	kern *kernel
	r    route
	e    entry
}

func newBench(t *testing.T, e entry, r route, rtp bool, change func(*tcFlow, *tcHop)) *bench {
	t.Helper()
	k := e.k
	v := r.value(rtp, dscp)
	v.Device, v.Hop = 1, 3
	h := tcHop{Device: 1, Mtu: 1500, Flags: hopMAC | hopXDP, Dmac: [6]byte{2, 0, 0, 0, 0, 9}, Smac: [6]byte{2, 0, 0, 0, 0, 1}}
	if change != nil {
		change(&v, &h)
	}
	key := keyOf(r.in)
	must(t, k.objs.Flows.Put(&key, &v))
	must(t, k.objs.Hops.Put(uint32(3), &h))
	return &bench{t, k, r, e}
}

// run returns the verdict on a frame and what became of it.
func (b *bench) run(frame []byte, change func(*skb)) (uint32, []byte) {
	b.t.Helper()
	verdict, out, err := b.e.try(frame, change)
	must(b.t, err)
	return verdict, out
}

func (b *bench) flow() (v tcFlow) {
	b.t.Helper()
	key := keyOf(b.r.in)
	must(b.t, b.kern.objs.Flows.Lookup(&key, &v))
	return v
}

// skb is struct __sk_buff up to what test runs may set.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto, Priority uint32
	IngressIfindex, Ifindex, TcIndex                                                      uint32
	CB                                                                                    [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4                   uint32
	RemoteIP6, LocalIP6                                                                   [4]uint32
	RemotePort, LocalPort, DataMeta                                                       uint32
	FlowKeys, Tstamp                                                                      uint64
	WireLen, GsoSegs                                                                      uint32
	SK                                                                                    uint64
	GsoSize, _                                                                            uint32
	Hwtstamp                                                                              uint64
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// routes are the four pairs of families.
func routes() map[string]route {
	return map[string]route{
		"4 to 4": {ap("192.0.2.7:4000"), ap("192.0.2.1:50000"), ap("198.51.100.1:50002"), ap("203.0.113.9:40001")},
		"6 to 6": {ap("[2001:db8::7]:4000"), ap("[2001:db8::1]:50000"), ap("[2001:db8:9::1]:50002"), ap("[2001:db8:9::ffff:9]:40001")},
		"4 to 6": {ap("192.0.2.7:4000"), ap("192.0.2.1:50000"), ap("[2001:db8:9::1]:50002"), ap("[2001:db8:9::9]:40001")},
		"6 to 4": {ap("[2001:db8::7]:4000"), ap("[2001:db8::1]:50000"), ap("198.51.100.1:50002"), ap("203.0.113.9:40001")},
	}
}

// rtpPacket returns an RTP packet of the size, all of it different from its neighbours.
func rtpPacket(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	copy(b, []byte{0x80, 0, 0, 1, 0, 0, 0, 160, 0, 0, 0, 1})
	return b
}

// arriving is a frame as the source of the route sends it, leaving what must become of it.
func (r route) arriving(payload []byte) frame {
	return frame{smac: [6]byte{2, 0, 0, 0, 0, 7}, from: r.from, to: r.in, ttl: 60, tos: 0xfd, id: 0x1234, flags: 0x4000, payload: payload}
}

func (r route) leaving(payload []byte) frame {
	return frame{
		dmac: [6]byte{2, 0, 0, 0, 0, 9}, smac: [6]byte{2, 0, 0, 0, 0, 1},
		from: r.out, to: r.to, ttl: 59, tos: dscp<<2 | 1, id: 0x1234, flags: 0x4000, payload: payload,
	}
}

// TestRewrite: packets leave as if they had been made for their new addresses from scratch.
func TestRewrite(t *testing.T) { eachProgram(t, testRewrite) }

func testRewrite(t *testing.T, e entry) {
	for name, r := range routes() {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, e, r, true, nil)
			n, sum := 0, 0
			for size := 12; size <= 1400; size += 9 {
				payload := rtpPacket(size)
				in, want := r.arriving(payload).wire(), r.leaving(payload)
				verdict, got := b.run(in, nil)
				if r.from.Addr().Is6() != r.to.Addr().Is6() {
					want = crossed(want, got)
				}
				if verdict != redirected || !bytes.Equal(got, want.wire()) {
					t.Fatalf("%d bytes, verdict %d:\n got %x\nwant %x", size, verdict, got, want.wire())
				}
				n, sum = n+1, sum+size
			}
			if v := b.flow(); v.Packets != uint64(n) || v.Bytes != uint64(sum) || v.Last == 0 {
				t.Errorf("counted %d packets, %d bytes", v.Packets, v.Bytes)
			}
		})
	}
}

// crossed says what cannot be kept between families: the new IPv4 header has an identification of its
// own and may be fragmented, the new IPv6 header has no flow label.
func crossed(want frame, got []byte) frame {
	if want.from.Addr().Is4() {
		want.id, want.flags = binary.BigEndian.Uint16(got[18:]), 0
	} else if got[15]&0x0f == 0 && got[16] == 0 && got[17] == 0 {
		got[15], got[16], got[17] = got[15]|0x0a, 0xbc, 0xde
	}
	return want
}

// TestRewriteSums: the checksums that are special.
func TestRewriteSums(t *testing.T) { eachProgram(t, testRewriteSums) }

func testRewriteSums(t *testing.T, e entry) {
	for name, r := range routes() {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, e, r, true, nil)
			// A payload whose checksum comes out as 0 before or after must be sent with 0xffff.
			for _, f := range []frame{r.arriving(nil), r.leaving(nil)} {
				payload := rtpPacket(30)
				binary.BigEndian.PutUint16(payload[28:], 0)
				f.payload = payload
				at := 14 + 20 + 6
				if f.from.Addr().Is6() {
					at = 14 + 40 + 6
				}
				binary.BigEndian.PutUint16(payload[28:], binary.BigEndian.Uint16(f.wire()[at:]))
				if got := binary.BigEndian.Uint16(f.wire()[at:]); got != 0xffff {
					t.Fatalf("the checksum is %04x, not the special one", got)
				}
				verdict, got := b.run(r.arriving(payload).wire(), nil)
				want := r.leaving(payload)
				if r.from.Addr().Is6() != r.to.Addr().Is6() {
					want = crossed(want, got)
				}
				if verdict != redirected || !bytes.Equal(got, want.wire()) {
					t.Errorf("verdict %d:\n got %x\nwant %x", verdict, got, want.wire())
				}
			}
			none := r.arriving(rtpPacket(172))
			none.noSum = true
			verdict, got := b.run(none.wire(), nil)
			if name != "4 to 4" {
				if verdict != up || !bytes.Equal(got, none.wire()) {
					t.Errorf("without a checksum: verdict %d", verdict)
				}
				return
			}
			want := r.leaving(rtpPacket(172))
			want.noSum = true
			if verdict != redirected || !bytes.Equal(got, want.wire()) {
				t.Errorf("without a checksum: verdict %d:\n got %x\nwant %x", verdict, got, want.wire())
			}
		})
	}
}

// TestUpUnchanged: what the program does not carry, it does not touch.
func TestUpUnchanged(t *testing.T) { eachProgram(t, testUpUnchanged) }

func testUpUnchanged(t *testing.T, e entry) {
	for name, r := range routes() {
		v4 := r.from.Addr().Is4()
		for _, tt := range []struct {
			name   string
			frame  func(*frame)
			bytes  func([]byte) []byte
			skb    func(*skb)
			change func(*tcFlow, *tcHop)
		}{
			{name: "another source port", frame: func(f *frame) { f.from = netip.AddrPortFrom(f.from.Addr(), 4001) }},
			{name: "another source", frame: func(f *frame) { f.from = netip.AddrPortFrom(f.from.Addr().Next(), 4000) }},
			{name: "another port of ours", frame: func(f *frame) { f.to = netip.AddrPortFrom(f.to.Addr(), 50001) }},
			{name: "another address of ours", frame: func(f *frame) { f.to = netip.AddrPortFrom(f.to.Addr().Next(), 50000) }},
			{name: "another device", change: func(v *tcFlow, _ *tcHop) { v.Device = 2 }},
			{name: "another host's frame", frame: func(f *frame) { f.dmac[0] = 2 }},
			{name: "last hop", frame: func(f *frame) { f.ttl = 1 }},
			{name: "no way", change: func(_ *tcFlow, h *tcHop) { h.Device = 0 }},
			{name: "no place for a way", change: func(v *tcFlow, _ *tcHop) { v.Hop = 1 << 20 }},
			{name: "larger than the MTU", frame: func(f *frame) { f.payload = rtpPacket(1500 - 20 - 8 + 21) }},
			{name: "options", frame: func(f *frame) { f.options = true }},
			{name: "stun", frame: func(f *frame) { f.payload[0] = 0 }},
			{name: "dtls", frame: func(f *frame) { f.payload[0] = 22 }},
			{name: "rtcp", frame: func(f *frame) { f.payload[1] = 200 }},
			{name: "short", frame: func(f *frame) { f.payload = f.payload[:11] }},
			{name: "nothing", frame: func(f *frame) { f.payload = nil }},
			{name: "tcp", bytes: func(b []byte) []byte {
				if v4 {
					b[23] = unix.IPPROTO_TCP
				} else {
					b[20] = unix.IPPROTO_TCP
				}
				return b
			}},
			{name: "cut off", bytes: func(b []byte) []byte { return b[:len(b)-1] }},
			{name: "cut off in the header", bytes: func(b []byte) []byte { return b[:14+40] }},
			{name: "UDP shorter than IP", bytes: func(b []byte) []byte { return append(b[:0:0], shorten(b, v4, -1)...) }},
			{name: "UDP longer than IP", bytes: func(b []byte) []byte { return append(b[:0:0], shorten(b, v4, 1)...) }},
			{name: "UDP without a header", bytes: func(b []byte) []byte { return append(b[:0:0], shorten(b, v4, 4-180)...) }},
			{name: "longer than its headers say", bytes: func(b []byte) []byte { return append(b, 0) }},
			{name: "a VLAN tag", bytes: func(b []byte) []byte {
				return append(append(append([]byte(nil), b[:12]...), 0x81, 0, 0, 5), b[12:]...)
			}},
			{name: "another protocol", bytes: func(b []byte) []byte { b[12], b[13] = 0x88, 0xf7; return b }},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				b := newBench(t, e, r, true, tt.change)
				f := r.arriving(rtpPacket(172))
				if tt.frame != nil {
					tt.frame(&f)
				}
				in := f.wire()
				if tt.bytes != nil {
					in = tt.bytes(in)
				}
				if verdict, got := b.run(in, tt.skb); verdict != up || !bytes.Equal(got, in) {
					t.Errorf("verdict %d:\n got %x\nsent %x", verdict, got, in)
				}
				if v := b.flow(); v.Packets != 0 {
					t.Errorf("counted %d", v.Packets)
				}
			})
		}
	}
}

// shorten changes the length in the UDP header alone.
func shorten(b []byte, v4 bool, by int) []byte {
	at := 14 + 40 + 4
	if v4 {
		at = 14 + 20 + 4
	}
	b = bytes.Clone(b)
	binary.BigEndian.PutUint16(b[at:], uint16(int(binary.BigEndian.Uint16(b[at:]))+by))
	return b
}

// TestTTL: 64 at most, so that our neighbours see nothing of the inside, and always less than before.
func TestTTL(t *testing.T) { eachProgram(t, testTTL) }

func testTTL(t *testing.T, e entry) {
	for name, r := range routes() {
		b := newBench(t, e, r, true, nil)
		for in, want := range map[byte]byte{2: 1, 64: 63, 65: 64, 66: 64, 255: 64} {
			f := r.arriving(rtpPacket(172))
			f.ttl = in
			_, got := b.run(f.wire(), nil)
			at := 22
			if r.to.Addr().Is6() {
				at = 21
			}
			if got[at] != want {
				t.Errorf("%s: %d became %d, want %d", name, in, got[at], want)
			}
		}
	}
}

// TestFragments: the first fragment goes up as the others do, but RTP in it is counted.
func TestFragments(t *testing.T) { eachProgram(t, testFragments) }

func testFragments(t *testing.T, e entry) {
	r := routes()["4 to 4"]
	b := newBench(t, e, r, true, nil)
	for _, tt := range []struct {
		flags   uint16
		counted uint32
	}{{0x2000, 1}, {0x2001, 1}, {0x0001, 1}} {
		f := r.arriving(rtpPacket(172))
		f.flags = tt.flags
		if verdict, got := b.run(f.wire(), nil); verdict != up || !bytes.Equal(got, f.wire()) {
			t.Errorf("%04x: verdict %d", tt.flags, verdict)
		}
		if e.name == "xdp" {
			tt.counted = 0 // the second stage does
		}
		if v := b.flow(); v.Rtp.Received != tt.counted || v.Packets != 0 {
			t.Errorf("%04x: %d counted, %d carried", tt.flags, v.Rtp.Received, v.Packets)
		}
	}
}

// TestPadding: Ethernet's padding is no reason to go up.
func TestPadding(t *testing.T) { eachProgram(t, testPadding) }

func testPadding(t *testing.T, e entry) {
	r := routes()["4 to 4"]
	b := newBench(t, e, r, true, nil)
	for frame, want := range map[int]uint32{54: redirected, 60: redirected, 61: up, 1400: up} {
		in := append(r.arriving(rtpPacket(12)).wire(), make([]byte, frame-54)...)
		verdict, got := b.run(in, nil)
		if verdict != want || want == redirected && !bytes.Equal(got[:54], r.leaving(rtpPacket(12)).wire()) {
			t.Errorf("%d bytes: verdict %d: %x", frame, verdict, got)
		}
	}
}

// TestUnfinished: a checksum that some device was to complete goes up from XDP.
func TestUnfinished(t *testing.T) {
	e := newEntry(t, "xdp")
	for name, r := range routes() {
		b := newBench(t, e, r, true, nil)
		f := r.arriving(rtpPacket(173))
		in := f.wire()
		at := len(in) - 173 - 2
		pseudo := append(f.from.Addr().AsSlice(), f.to.Addr().AsSlice()...)
		pseudo = append(pseudo, 0, unix.IPPROTO_UDP, in[at-2], in[at-1])
		binary.BigEndian.PutUint16(in[at:], checksum(pseudo))
		if verdict, got := b.run(in, nil); verdict != up || !bytes.Equal(got, in) {
			t.Errorf("%s: verdict %d", name, verdict)
		}
		if v := b.flow(); v.Rtp.Received != 0 {
			t.Errorf("%s: %d counted, which the second stage will do", name, v.Rtp.Received)
		}
		binary.BigEndian.PutUint16(in[at:], checksum(pseudo)+1)
		if verdict, _ := b.run(in, nil); verdict != redirected {
			t.Errorf("%s: another checksum: verdict %d", name, verdict)
		}
	}
}

// TestSecondStage: XDP leaves to tc what it cannot send itself.
func TestSecondStage(t *testing.T) {
	r := routes()["4 to 4"]
	e := newEntry(t, "xdp")
	for _, flags := range []uint32{0, hopMAC, hopXDP} {
		b := newBench(t, e, r, true, func(_ *tcFlow, h *tcHop) { h.Flags = flags })
		in := r.arriving(rtpPacket(172)).wire()
		if verdict, got := b.run(in, nil); verdict != up || !bytes.Equal(got, in) {
			t.Errorf("flags %d: verdict %d", flags, verdict)
		}
		b.e.name = "tc"
		if verdict, _ := b.run(in, nil); verdict != redirected {
			t.Errorf("flags %d: tc's verdict %d", flags, verdict)
		}
	}
}

// TestOpaque: what is not RTP (T.38) is carried unread.
func TestOpaque(t *testing.T) { eachProgram(t, testOpaque) }

func testOpaque(t *testing.T, e entry) {
	r := routes()["4 to 4"]
	b := newBench(t, e, r, false, nil)
	for _, payload := range [][]byte{nil, {0}, []byte("t38 packet"), rtpPacket(172)} {
		verdict, got := b.run(r.arriving(payload).wire(), nil)
		want := r.leaving(payload).wire()
		// Frames are at least as long as Ethernet headers and an IP header here.
		if verdict != redirected || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: verdict %d:\n got %x\nwant %x", len(payload), verdict, got, want)
		}
	}
}

// TestSegments: a run of packets in one buffer counts as so many.
func TestSegments(t *testing.T) {
	r := routes()["4 to 4"]
	b := newBench(t, newEntry(t, "tc"), r, true, nil)
	verdict, _ := b.run(r.arriving(rtpPacket(1200)).wire(), func(s *skb) { s.GsoSegs, s.GsoSize = 3, 400 })
	if v := b.flow(); verdict != redirected || v.Packets != 3 || v.Bytes != 1200 || v.Rtp.Received != 3 || v.lost() != 0 {
		t.Errorf("verdict %d: %d packets, %d bytes, %d lost", verdict, v.Packets, v.Bytes, v.lost())
	}
}

// TestDifference: as RFC 1624 says, a sum plus the difference is the sum of the new words.
func TestDifference(t *testing.T) {
	for i := range 1000 {
		old, new := rtpPacket(32 + i%7*2)[i%5*4:][:16], rtpPacket(64 + i)[i%31:][:32]
		before := uint32(binary.NativeEndian.Uint16(fmt.Append(nil, "xy")))
		sum := before
		for j := 0; j < len(old); j += 2 {
			sum += uint32(binary.NativeEndian.Uint16(old[j:]))
		}
		want := before
		for j := 0; j < len(new); j += 2 {
			want += uint32(binary.NativeEndian.Uint16(new[j:]))
		}
		if got, want := fold(uint64(sum)+uint64(difference(old, new))), fold(uint64(want)); got%0xffff != want%0xffff {
			t.Fatalf("%d: %04x, want %04x", i, got, want)
		}
	}
}

func fold(sum uint64) uint64 {
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum
}

// BenchmarkProgram measures the programs alone: a flow that rewrites a packet into itself, as often as its
// TTL lets it.
func BenchmarkProgram(b *testing.B) {
	needKernel(b)
	k, err := loadPinned(nil, 0, true)
	must(b, err)
	b.Cleanup(func() { must(b, k.close()) })
	c, err := readClock()
	must(b, err)
	must(b, k.renew(c))
	r := route{from: ap("192.0.2.7:4000"), in: ap("192.0.2.1:50000"), out: ap("192.0.2.7:4000"), to: ap("192.0.2.1:50000")}
	v := r.value(true, dscp)
	v.Device = 1
	key := keyOf(r.in)
	must(b, k.objs.Flows.Put(&key, &v))
	must(b, k.objs.Hops.Put(uint32(0), &tcHop{Device: 1, Mtu: 1500, Flags: hopMAC | hopXDP}))
	f := r.arriving(rtpPacket(172))
	f.ttl, f.smac = 64, [6]byte{}
	in := f.wire()
	const times = 60
	for name, program := range map[string]*ebpf.Program{"tc": k.objs.Relay, "xdp": k.xdp} {
		b.Run(name, func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				_, each, err := program.Benchmark(in, times, nil)
				must(b, err)
				took += each
			}
			b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/packet")
		})
	}
}

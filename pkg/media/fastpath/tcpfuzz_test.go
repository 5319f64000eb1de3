package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// FuzzTCP: whatever arrives either goes up unchanged, or belongs to a live connection or begins one, and then leaves
// for its other end with nothing else changed; or is dropped, which only a live connection's packets are.
func FuzzTCP(f *testing.F) {
	needKernel(f)
	for i, name := range slices.Sorted(maps.Keys(tcpEnds())) {
		b := newTCPBench(f, tcpEnds()[name], nil)
		for side := range 2 {
			for _, flags := range []byte{0, thSYN, thSYN | thACK, thACK, thACK | thPSH, thFIN | thACK, thRST, thRST | thACK, thSYN | thFIN} {
				s := b.sent(side, flags)
				s.options = []byte{2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2}
				f.Add(i == 1, s.wire())
				s.payload = rtpPacket(100)
				f.Add(i == 1, s.wire())
				s.from = netip.AddrPortFrom(s.from.Addr(), s.from.Port()+1)
				f.Add(i == 1, s.wire())
				s.frag, s.ttl = 0x2000, 1
				f.Add(i == 1, s.wire())
			}
		}
	}
	benches := make(map[bool]*tcpBench)
	for six, name := range map[bool]string{false: "v4", true: "v6"} {
		benches[six] = newTCPBench(f, tcpEnds()[name], nil)
		must(f, benches[six].kern.objs.LeaseUntil.Set(uint64(1<<62))) // longer than any fuzzing
	}
	f.Fuzz(func(t *testing.T, six bool, in []byte) {
		b := *benches[six]
		b.t = t
		must(t, empty(b.kern.objs.TcpConns))
		must(t, b.kern.objs.TcpCounts.Put(b.rule.Index, tcCounts{}))
		b.open()
		o := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256)}
		verdict, err := b.kern.objs.Relay.Run(&o)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOMEM) || errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("the kernel does not accept it as a packet")
		}
		must(t, err)
		from, to, ok := ends(in)
		live := ok && (from == b.client && to == b.listen || from == b.to && to == b.from)
		switch verdict {
		case up:
			if !bytes.Equal(o.DataOut, in) {
				t.Errorf("went up changed:\n got %x\nsent %x", o.DataOut, in)
			}
		case dropped:
			if !live {
				t.Errorf("dropped %s to %s: %x", from, to, in)
			}
		case redirected:
			b.checkPassed(t, in, o.DataOut, live)
		default:
			t.Errorf("verdict %d", verdict)
		}
	})
}

// ends returns the addresses of a TCP segment.
func ends(b []byte) (from, to netip.AddrPort, ok bool) {
	l3, size, l4 := 14+12, 4, 14+20
	switch {
	case len(b) >= 14+20+20 && b[12] == 8 && b[13] == 0 && b[14] == 0x45 && b[23] == unix.IPPROTO_TCP:
	case len(b) >= 14+40+20 && b[12] == 0x86 && b[13] == 0xdd && b[20] == unix.IPPROTO_TCP:
		l3, size, l4 = 14+8, 16, 14+40
	default:
		return from, to, false
	}
	src, _ := netip.AddrFromSlice(b[l3 : l3+size])
	dst, _ := netip.AddrFromSlice(b[l3+size : l3+2*size])
	return netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[l4:])), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[l4+2:])), true
}

// checkPassed checks what can be known of a segment that left.
func (b *tcpBench) checkPassed(t *testing.T, in, out []byte, live bool) {
	t.Helper()
	from, to, ok := ends(in)
	newFrom, newTo, same := ends(out)
	if !ok || !same || len(in) != len(out) {
		t.Fatalf("%x became %x", in, out)
	}
	allowed := netip.PrefixFrom(b.client.Addr(), b.client.Addr().BitLen()-8).Masked()
	l4 := 14 + 20
	if from.Addr().Is6() {
		l4 += 20
	}
	syn := in[l4+13]&(thSYN|thACK) == thSYN
	want := [2]netip.AddrPort{b.from, b.to}
	switch {
	case live && from == b.to:
		want = [2]netip.AddrPort{b.listen, b.client}
	case live:
	case syn && to == b.listen && allowed.Contains(from.Addr()):
		want[0] = netip.AddrPortFrom(b.from.Addr(), b.from.Port()+1) // the next port
	default:
		t.Fatalf("%s to %s left: %x", from, to, in)
	}
	if newFrom != want[0] || newTo != want[1] {
		t.Errorf("%s to %s left as %s to %s", from, to, newFrom, newTo)
	}
	if got, want := segmentSum(out, l4), segmentSum(in, l4); got != want {
		t.Errorf("the checksum is off by %04x, was by %04x", got, want)
	}
	if in[l4+13]&thSYN == 0 && (!bytes.Equal(out[l4+4:l4+16], in[l4+4:l4+16]) || !bytes.Equal(out[l4+18:], in[l4+18:])) {
		t.Errorf("changed too much:\n got %x\nsent %x", out, in)
	}
}

// segmentSum is the sum over a segment with its pseudo header: 0xffff if the checksum is right. The length in the pseudo
// header is the same for both, so it does not matter which.
func segmentSum(b []byte, l4 int) uint16 {
	at := 14 + 12
	if l4 != 14+20 {
		at = 14 + 8
	}
	sum := checksum(append(bytes.Clone(b[at:l4]), b[l4:]...))
	if sum == 0 {
		return 0xffff
	}
	return sum
}

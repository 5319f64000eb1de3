package fastpath

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// FuzzProgram: whatever arrives either goes up unchanged, or leaves for the flow's destination with a length
// that fits, and nothing is dropped; and XDP carries nothing that tc would not.
func FuzzProgram(f *testing.F) {
	tc := newEntry(f, "tc")
	k := tc.k
	must(f, k.objs.Hops.Put(uint32(0), &tcHop{Device: 1, Mtu: 1500, Flags: hopMAC | hopXDP}))
	all := routes()
	for i, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name]
		r.in = netip.AddrPortFrom(r.in.Addr(), 50000+uint16(i))
		v := r.value(i%2 == 0, dscp)
		v.Device = 1
		key := keyOf(r.in)
		must(f, k.objs.Flows.Put(&key, &v))
		for _, size := range []int{0, 12, 172} {
			f.Add(r.arriving(rtpPacket(max(size, 12))[:size]).wire())
		}
		odd := r.arriving(rtpPacket(30))
		odd.options = true
		f.Add(odd.wire())
		odd.options, odd.flags = false, 0x2000
		f.Add(odd.wire())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before, out, err := entry{"xdp", k}.try(in, nil)
		if err == nil && before == redirected {
			checkLeft(t, in, out)
		} else if err == nil && (before != up || !bytes.Equal(out, in)) {
			t.Errorf("XDP: verdict %d:\n got %x\nsent %x", before, out, in)
		}
		verdict, out, err := tc.try(in, nil)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOMEM) || errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("the kernel does not accept it as a packet")
		}
		must(t, err)
		switch verdict {
		case up:
			if !bytes.Equal(out, in) {
				t.Errorf("went up changed:\n got %x\nsent %x", out, in)
			}
			if before != up {
				t.Errorf("XDP carried what tc does not: %x", in)
			}
		case redirected:
			checkLeft(t, in, out)
		default:
			t.Errorf("verdict %d", verdict)
		}
	})
}

// checkLeft checks what can be known of a packet that was carried: its header adds up, and what it bears is
// what came.
func checkLeft(t *testing.T, in, out []byte) {
	t.Helper()
	body := func(b []byte) []byte {
		if b[12] == 0x86 {
			return b[14+40+8:]
		}
		if sum := checksum(b[14:34]); sum != 0xffff {
			t.Errorf("the IPv4 header adds up to %04x", sum)
		}
		return b[14+20+8:]
	}
	if len(in) < 42 || len(out) < 42 || in[12] == 0x86 && len(in) < 62 {
		t.Fatalf("%d bytes became %d", len(in), len(out))
	}
	was, is := in[42:], body(out)
	if in[12] == 0x86 {
		was = in[62:]
	}
	if !bytes.Equal(was, is) {
		t.Errorf("the payload changed:\n got %x\nsent %x", is, was)
	}
}

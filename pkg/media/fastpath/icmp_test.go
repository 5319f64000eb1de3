package fastpath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media/pathtest"
)

// icmpError is a frame with an error of a router about a quoted IP packet, with the checksum made from scratch.
type icmpError struct {
	dmac, smac [6]byte
	from, to   netip.Addr
	ttl        byte
	kind, code byte
	mtu        uint16
	quoted     []byte
}

func (e icmpError) wire() []byte {
	b := append([]byte{e.kind, e.code, 0, 0, 0, 0, byte(e.mtu >> 8), byte(e.mtu)}, e.quoted...)
	s := segment{dmac: e.dmac, smac: e.smac, from: netip.AddrPortFrom(e.from, 0), to: netip.AddrPortFrom(e.to, 0), ttl: e.ttl, tos: 0xc0}
	head := s.headers(len(b))
	if e.from.Is6() {
		head[20] = unix.IPPROTO_ICMPV6
		pseudo := append(e.from.AsSlice(), e.to.AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
		binary.BigEndian.PutUint16(b[2:], ^checksum(append(append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6), b...)))
		return append(head, b...)
	}
	head[23] = unix.IPPROTO_ICMP
	head[24], head[25] = 0, 0
	binary.BigEndian.PutUint16(head[24:], ^checksum(head[14:34]))
	binary.BigEndian.PutUint16(b[2:], ^checksum(b))
	return append(head, b...)
}

// about is an error that a router beyond the side sends about a segment, and what its sender must get: router is
// an address that neither end has.
func (b *tcpBench) about(side int, s segment) (in, want icmpError) {
	sent, left := s, b.left(s)
	router := differ(b.to.Addr())
	in = icmpError{smac: [6]byte{2, 0, 0, 0, 0, 0x55}, from: router, to: left.from.Addr(), ttl: 60, kind: 3, code: 4, mtu: 1280}
	if router.Is6() {
		in.kind, in.code = 2, 0
	}
	sent.ttl = left.ttl // what a router quotes is what it has got
	in.quoted, want.quoted = left.wire()[14:], sent.wire()[14:]
	if router.Is4() {
		in.quoted, want.quoted = in.quoted[:28], want.quoted[:28]
	} else {
		in.quoted, want.quoted = in.quoted[:48], want.quoted[:48]
	}
	want.from, want.to, want.ttl, want.kind, want.code, want.mtu = s.to.Addr(), s.from.Addr(), 59, in.kind, in.code, in.mtu
	if side == 1 {
		want.dmac, want.smac = [6]byte{2, 0, 0, 0, 0, 9}, [6]byte{2, 0, 0, 0, 0, 1}
	}
	return in, want
}

// TestICMP: errors about what either side has sent go there, as if nothing had been rewritten.
func TestICMP(t *testing.T) {
	eachFamily(t, func(t *testing.T, bench func(func(*tcRule, *tcHop)) *tcpBench) {
		for side := range 2 {
			b := bench(nil)
			b.open()
			in, want := b.about(side, b.sent(side, thACK))
			if verdict, got := b.run(in.wire(), nil); verdict != redirected || !bytes.Equal(got, want.wire()) {
				t.Errorf("side %d, verdict %d:\n got %x\nwant %x", side, verdict, got, want.wire())
			}
			for name, change := range map[string]func(*icmpError){
				"another type":         func(e *icmpError) { e.kind = 8 },
				"about something else": func(e *icmpError) { e.quoted[len(e.quoted)-8]++ },
				"about another's":      func(e *icmpError) { e.to = differ(e.to) },
				"last hop":             func(e *icmpError) { e.ttl = 1 },
				"cut off":              func(e *icmpError) { e.quoted = e.quoted[:len(e.quoted)-1] },
				"a whole MTU":          func(e *icmpError) { e.quoted = append(e.quoted, make([]byte, 1500)...) },
			} {
				e := in
				e.quoted = bytes.Clone(in.quoted)
				change(&e)
				if verdict, got := b.run(e.wire(), nil); verdict != up || !bytes.Equal(got, e.wire()) {
					t.Errorf("%s: verdict %d", name, verdict)
				}
			}
			must(t, b.kern.objs.LeaseUntil.Set(uint64(1)))
			if verdict, _ := b.run(in.wire(), nil); verdict != up {
				t.Errorf("without a lease: verdict %d", verdict)
			}
		}
	})
}

// TestForwardPMTU: a client learns of a link with a smaller MTU beyond the target's.
func TestForwardPMTU(t *testing.T) {
	const mtu = 1000
	r := newTCPRig(t, 0, nil)
	client, server := r.connect(0)
	exchangeSome(t, client, server)
	var c *conn
	r.wait("the connection", func(ForwardStats) bool {
		r.path.tcp.mu.Lock()
		defer r.path.tcp.mu.Unlock()
		for _, c = range r.forward.live {
			return c.values[1].Ack != 0 && c.values[0].Bytes == 5000
		}
		return false
	})
	s := segment{from: addrPort(c.values[0].To.Src.Word, c.values[0].To.Sport), to: r.forward.Rule().To, ttl: 63, flags: thACK, seq: c.values[1].Ack}
	e := icmpError{from: netip.MustParseAddr("198.51.100.66"), to: s.from.Addr(), ttl: 64, kind: 3, code: 4, mtu: mtu, quoted: s.wire()[14:][:28]}
	pathtest.Within(t, r.hosts[far].ns, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.Sendto(fd, e.wire()[14:], 0, sockaddr(s.from)))
	})
	raw, err := client.SyscallConn()
	must(t, err)
	eventually(t, "the client knows the MTU", func() (ok bool) {
		must(t, raw.Control(func(fd uintptr) {
			n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
			ok = err == nil && n == mtu
		}))
		return ok
	})
	exchange(t, client, server, 9)
}

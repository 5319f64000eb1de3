package fastpath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The flags of a TCP header.
const (
	thFIN = 1 << iota
	thSYN
	thRST
	thPSH
	thACK
	thURG
	thECE
	thCWR
)

// dropped is the verdict of that name.
const dropped = 2 // TC_ACT_SHOT

// segment is an Ethernet frame with a TCP segment.
type segment struct {
	dmac, smac [6]byte
	from, to   netip.AddrPort
	ttl, tos   byte
	id, frag   uint16 // of IPv4
	ipOptions  bool
	flags      byte
	seq, ack   uint32
	options    []byte
	payload    []byte
}

// wire returns the bytes, with checksums made from scratch.
func (s segment) wire() []byte {
	options := append(bytes.Clone(s.options), make([]byte, -len(s.options)&3)...)
	tcp := binary.BigEndian.AppendUint16(nil, s.from.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, s.to.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, s.seq)
	tcp = binary.BigEndian.AppendUint32(tcp, s.ack)
	tcp = append(tcp, byte(20+len(options))<<2, s.flags, 0x12, 0x34, 0, 0, 0, 0)
	tcp = append(append(tcp, options...), s.payload...)
	pseudo := append(s.from.Addr().AsSlice(), s.to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(tcp)))
	binary.BigEndian.PutUint16(tcp[16:], ^checksum(append(pseudo, tcp...)))
	return append(s.headers(len(tcp)), tcp...)
}

func (s segment) headers(size int) []byte {
	b := append(s.dmac[:], s.smac[:]...)
	if s.from.Addr().Is6() {
		b = append(b, 0x86, 0xdd, 0x60|s.tos>>4, s.tos<<4|0x0a, 0xbc, 0xde)
		b = binary.BigEndian.AppendUint16(b, uint16(size))
		b = append(b, unix.IPPROTO_TCP, s.ttl)
		return append(append(b, s.from.Addr().AsSlice()...), s.to.Addr().AsSlice()...)
	}
	ip := []byte{0x45, s.tos}
	if s.ipOptions {
		ip[0]++
	}
	ip = binary.BigEndian.AppendUint16(ip, uint16(int(ip[0]&15)*4+size))
	ip = binary.BigEndian.AppendUint16(ip, s.id)
	ip = binary.BigEndian.AppendUint16(ip, s.frag)
	ip = append(ip, s.ttl, unix.IPPROTO_TCP, 0, 0)
	ip = append(append(ip, s.from.Addr().AsSlice()...), s.to.Addr().AsSlice()...)
	if s.ipOptions {
		ip = append(ip, 1, 1, 1, 0)
	}
	binary.BigEndian.PutUint16(ip[10:], ^checksum(ip))
	return append(append(b, 8, 0), ip...)
}

// tcpBench is the program with one rule, at the loopback device, whose address is all zeros.
type tcpBench struct {
	t                        testing.TB
	kern                     *kernel
	client, listen, from, to netip.AddrPort // from has the port that the program takes first
	rule                     tcRule
}

// tcpEnds are client, listening address, own address to the target and target.
func tcpEnds() map[string][4]netip.AddrPort {
	return map[string][4]netip.AddrPort{
		"v4": {ap("192.0.2.7:4000"), ap("192.0.2.1:8057"), ap("198.51.100.1:40001"), ap("198.51.100.9:80")},
		"v6": {ap("[2001:db8::7]:4000"), ap("[2001:db8::1]:8057"), ap("[2001:db8:9::1]:40001"), ap("[2001:db8:9::9]:80")},
	}
}

const tcpRulePorts = 8

func newTCPBench(t testing.TB, ends [4]netip.AddrPort, change func(*tcRule, *tcHop)) *tcpBench {
	t.Helper()
	needKernel(t)
	k, err := load()
	must(t, err)
	t.Cleanup(func() { must(t, k.close()) })
	return tcpBenchOf(t, k, ends, change)
}

// tcpBenchOf uses a program again: loading takes a while.
func tcpBenchOf(t testing.TB, k *kernel, ends [4]netip.AddrPort, change func(*tcRule, *tcHop)) *tcpBench {
	t.Helper()
	c, err := readClock()
	must(t, err)
	must(t, k.renew(c))
	for _, m := range []*ebpf.Map{k.objs.TcpConns, k.objs.TcpRules, k.objs.TcpAllow} {
		must(t, empty(m))
	}
	b := &tcpBench{t: t, kern: k, client: ends[0], listen: ends[1], from: ends[2], to: ends[3]}
	b.rule = tcRule{
		ToPort: port(b.to.Port()), Index: 5, Device: 1, Mtu: 1500, Hop: 3 + 1, Limit: 6, HalfLimit: 4, First: 64, Mask: 63,
		Given: tcpRulePorts,
	}
	b.rule.From.Word, b.rule.To.Word = words(b.from.Addr()), words(b.to.Addr())
	h := tcHop{Device: 1, Mtu: 1400, Flags: hopMAC, Dmac: [6]byte{2, 0, 0, 0, 0, 9}, Smac: [6]byte{2, 0, 0, 0, 0, 1}}
	if change != nil {
		change(&b.rule, &h)
	}
	must(t, k.objs.Hops.Put(uint32(3), &h))
	must(t, k.objs.TcpCounts.Put(b.rule.Index, tcCounts{}))
	for i := range uint32(reasons) {
		must(t, k.objs.TcpReasons.Put(b.rule.Index*reasons+i, uint64(0)))
	}
	for i := range tcpRulePorts {
		must(t, k.objs.TcpPorts.Put(b.rule.First+uint32(i), uint32(port(b.from.Port()+uint16(i)))))
	}
	bits := b.client.Addr().BitLen() - 8
	must(t, k.objs.TcpAllow.Put(allowKey(b.rule.Index, netip.PrefixFrom(b.client.Addr(), bits)), uint32(1)))
	b.write()
	must(t, k.objs.TcpOn.Set(uint32(1)))
	return b
}

func (b *tcpBench) write() {
	b.t.Helper()
	key := tcpKey(b.listen)
	must(b.t, b.kern.objs.TcpRules.Put(&key, &b.rule))
}

func (b *tcpBench) run(frame []byte, change func(*skb)) (uint32, []byte) {
	b.t.Helper()
	ctx := skb{Ifindex: 1}
	if change != nil {
		change(&ctx)
	}
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &ctx}
	verdict, err := b.kern.objs.Relay.Run(&o)
	must(b.t, err)
	return verdict, o.DataOut
}

// clientMAC is where the client's frames come from.
func clientMAC() [6]byte { return [6]byte{2, 0, 0, 0, 0, 7} }

// sent is a segment as the client sends it (side 0) or the target (1); left what must become of it.
func (b *tcpBench) sent(side int, flags byte) segment {
	s := segment{smac: clientMAC(), from: b.client, to: b.listen, ttl: 60, tos: 0xfd, id: 0x1234, frag: 0x4000, flags: flags, seq: 1000, ack: 77}
	if side == 1 {
		s.smac, s.from, s.to = [6]byte{2, 0, 0, 0, 0, 9}, b.to, b.from
	}
	return s
}

func (b *tcpBench) left(s segment) segment {
	s.ttl--
	if s.from == b.to {
		s.from, s.to, s.smac, s.dmac = b.listen, b.client, [6]byte{}, [6]byte{}
		return s
	}
	s.from, s.to, s.smac, s.dmac = b.from, b.to, [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 9}
	return s
}

// pass sends a segment, and expects what it must become.
func (b *tcpBench) pass(s segment, change ...func(*segment)) {
	b.t.Helper()
	want := b.left(s)
	for _, f := range change {
		f(&want)
	}
	if verdict, got := b.run(s.wire(), nil); verdict != redirected || !bytes.Equal(got, want.wire()) {
		b.t.Fatalf("flags %#x, verdict %d:\n got %x\nwant %x", s.flags, verdict, got, want.wire())
	}
}

// remain sends a segment that must go up, or be dropped, unchanged.
func (b *tcpBench) remain(want uint32, s segment, change func(*skb)) {
	b.t.Helper()
	in := s.wire()
	if verdict, got := b.run(in, change); verdict != want || !bytes.Equal(got, in) {
		b.t.Errorf("flags %#x, verdict %d, want %d:\n got %x\nsent %x", s.flags, verdict, want, got, in)
	}
}

// open does the handshake.
func (b *tcpBench) open() {
	b.t.Helper()
	b.pass(b.sent(0, thSYN))
	b.pass(b.sent(1, thSYN|thACK))
	b.pass(b.sent(0, thACK))
}

func (b *tcpBench) counts() (n tcCounts) {
	b.t.Helper()
	must(b.t, b.kern.objs.TcpCounts.Lookup(b.rule.Index, &n))
	return n
}

// reason returns the count of a reason.
func (b *tcpBench) reason(i int) (n uint64) {
	b.t.Helper()
	must(b.t, b.kern.objs.TcpReasons.Lookup(b.rule.Index*reasons+uint32(i), &n))
	return n
}

// reasonOf returns the number of a reason: a SYN that goes up, or a packet that is dropped.
func reasonOf(t testing.TB, up bool, name string) int {
	for i := range reasons {
		if reasonName(i) == name && (i < handedUp) == up {
			return i
		}
	}
	t.Fatalf("no reason %q", name)
	return 0
}

// conn returns the connection as the sweep would see it.
func (b *tcpBench) conn() *conn {
	b.t.Helper()
	c := &conn{have: [2]bool{true, true}, forward: &Forward{rule: ForwardRule{Idle: idleTime}}}
	for side, s := range [2]segment{b.sent(0, 0), b.sent(1, 0)} {
		c.keys[side] = tcTuple{Sport: port(s.from.Port()), Dport: port(s.to.Port())}
		c.keys[side].Src.Word, c.keys[side].Dst.Word = words(s.from.Addr()), words(s.to.Addr())
		must(b.t, b.kern.objs.TcpConns.Lookup(&c.keys[side], &c.values[side]))
	}
	return c
}

// eachFamily runs f with a maker of benches.
func eachFamily(t *testing.T, f func(t *testing.T, bench func(func(*tcRule, *tcHop)) *tcpBench)) {
	for name, ends := range tcpEnds() {
		t.Run(name, func(t *testing.T) {
			b := newTCPBench(t, ends, nil)
			f(t, func(change func(*tcRule, *tcHop)) *tcpBench { return tcpBenchOf(t, b.kern, ends, change) })
		})
	}
}

// TestTCPLife: a connection from its SYN to its end, byte by byte, and the state that the sweep sees.
func TestTCPLife(t *testing.T) {
	eachFamily(t, func(t *testing.T, bench func(func(*tcRule, *tcHop)) *tcpBench) {
		b := bench(nil)
		state := func(want string) {
			t.Helper()
			if got := b.conn().state(); got != want {
				t.Fatalf("state %q, want %q", got, want)
			}
		}
		b.pass(b.sent(0, thSYN))
		b.pass(b.sent(0, thSYN)) // once more: the same connection
		state(stateOpening)
		b.pass(b.sent(1, thSYN|thACK))
		state(stateOpening)
		b.pass(b.sent(0, thACK))
		state(stateEstablished)
		bytes := uint64(0)
		for size := 0; size < 1200; size += 13 {
			s := b.sent(size&1, thACK|thPSH)
			s.payload = rtpPacket(max(size, 12))[:size]
			s.options = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
			b.pass(s)
			bytes += uint64(size)
		}
		b.pass(b.sent(0, thFIN|thACK))
		state(stateHalfClosed)
		s := b.sent(1, thACK)
		s.payload = rtpPacket(100)
		b.pass(s)
		b.pass(b.sent(1, thFIN|thACK))
		state(stateClosing)
		b.pass(b.sent(0, thACK))
		c := b.conn()
		if got := c.values[0].Bytes + c.values[1].Bytes; got != bytes+100 {
			t.Errorf("counted %d bytes, want %d", got, bytes+100)
		}
		if n := b.counts(); n != (tcCounts{Taken: 1, Completed: 1}) {
			t.Errorf("%+v", n)
		}
		b.pass(b.sent(0, thSYN)) // the client uses its port again
		state(stateOpening)
		b.pass(b.sent(1, thSYN|thACK))
		b.pass(b.sent(0, thACK))
		state(stateEstablished)
		if n := b.counts(); n != (tcCounts{Taken: 1, Completed: 1, Reopened: 1}) {
			t.Errorf("%+v", n)
		}
	})
}

// TestTCPReset: a credible RST ends the connection, whoever sends it; any other passes, and is only a packet.
func TestTCPReset(t *testing.T) {
	eachFamily(t, func(t *testing.T, bench func(func(*tcRule, *tcHop)) *tcpBench) {
		for side := range 2 {
			b := bench(nil)
			b.open()
			forged := b.sent(side, thRST)
			forged.seq = 77 - 1
			b.pass(forged)
			if got := b.conn().state(); got != stateEstablished {
				t.Errorf("side %d: out of the window: %q", side, got)
			}
			credible := b.sent(side, thRST|thACK)
			credible.seq = 77 + 5000
			b.pass(credible)
			if got := b.conn().state(); got != stateReset {
				t.Errorf("side %d: %q", side, got)
			}
			b.pass(b.sent(side, thACK)) // it was not the peer that reset it
			if got := b.conn().state(); got != stateEstablished {
				t.Errorf("side %d: goes on, but is %q", side, got)
			}
		}
		b := bench(nil)
		b.pass(b.sent(0, thSYN))
		refused := b.sent(1, thRST|thACK)
		refused.seq = 0
		b.pass(refused)
		if got := b.conn().state(); got != stateReset {
			t.Errorf("refused: %q", got)
		}
	})
}

// TestTCPClamp: SYN and SYN with ACK offer no more than fits the smaller MTU, wherever the option stands.
func TestTCPClamp(t *testing.T) {
	eachFamily(t, func(t *testing.T, bench func(func(*tcRule, *tcHop)) *tcpBench) {
		most := uint16(1400 - 40)
		if bench(nil).client.Addr().Is6() {
			most -= 20
		}
		mss := func(n uint16) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }
		for _, tt := range []struct {
			name          string
			options, want []byte
		}{
			{"none", nil, nil},
			{"too large", mss(1460), mss(most)},
			{"largest", mss(0xffff), mss(most)},
			{"just right", mss(most), mss(most)},
			{"small", mss(536), mss(536)},
			{"at an odd place", append([]byte{1}, mss(1460)...), append([]byte{1}, mss(most)...)},
			{"after others", append([]byte{4, 2, 3, 3, 7, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mss(1460)...), append([]byte{4, 2, 3, 3, 7, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, mss(most)...)},
			{"at the end", append(bytes.Repeat([]byte{1}, 36), mss(1460)...), append(bytes.Repeat([]byte{1}, 36), mss(most)...)},
			{"after the end", append([]byte{0}, mss(1460)...), append([]byte{0}, mss(1460)...)},
			{"of a wrong length", []byte{2, 3, 9, 9}, []byte{2, 3, 9, 9}},
			{"cut off", append(bytes.Repeat([]byte{1}, 38), 2, 4), append(bytes.Repeat([]byte{1}, 38), 2, 4)},
			{"after an option without a length", append([]byte{9, 0}, mss(1460)...), append([]byte{9, 0}, mss(1460)...)},
			{"after an option that is too long", append([]byte{9, 99}, mss(1460)...), append([]byte{9, 99}, mss(1460)...)},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := bench(nil)
				for side, flags := range [2]byte{thSYN | thECE | thCWR, thSYN | thACK} {
					s := b.sent(side, flags)
					s.options = tt.options
					b.pass(s, func(s *segment) { s.options = tt.want })
				}
			})
		}
	})
}

// TestTCPHandedUp: SYNs that the program does not take go up unchanged, and are counted by reason.
func TestTCPHandedUp(t *testing.T) {
	eachFamily(t, func(t *testing.T, bench func(func(*tcRule, *tcHop)) *tcpBench) {
		for _, tt := range []struct {
			reason string // "": it is nothing to the rule
			syn    func(*segment)
			skb    func(*skb)
			rule   func(*tcRule, *tcHop)
		}{
			{reason: "denied", syn: func(s *segment) { s.from = netip.AddrPortFrom(differ(s.from.Addr()), 4000) }},
			{reason: "limit", rule: func(r *tcRule, _ *tcHop) { r.Limit = 0 }},
			{reason: "half_open", rule: func(r *tcRule, _ *tcHop) { r.HalfLimit = 0 }},
			{reason: "no_port", rule: func(r *tcRule, _ *tcHop) { r.Given = 0 }},
			{reason: "no_way", rule: func(_ *tcRule, h *tcHop) { h.Device = 0 }},
			{reason: "odd", syn: func(s *segment) { s.flags |= thFIN }},
			{reason: "odd", syn: func(s *segment) { s.flags |= thRST }},
			{reason: "odd", syn: func(s *segment) { s.payload = []byte("fast open") }},
			{reason: "ttl", syn: func(s *segment) { s.ttl = 1 }},
			{reason: "mtu", rule: func(_ *tcRule, h *tcHop) { h.Mtu = 59 }},
			{reason: "device", rule: func(r *tcRule, _ *tcHop) { r.Device = 2 }},
			{syn: func(s *segment) { s.to = netip.AddrPortFrom(s.to.Addr(), 8058) }},
			{syn: func(s *segment) { s.to = netip.AddrPortFrom(s.to.Addr().Next(), 8057) }},
			{syn: func(s *segment) { s.flags = thACK }},
			{syn: func(s *segment) { s.flags = thRST }},
			{syn: func(s *segment) { s.flags = thFIN | thACK }},
			{syn: func(s *segment) { s.flags = 0 }},
			{syn: func(s *segment) { s.dmac[0] = 2 }},
		} {
			b := bench(tt.rule)
			s := b.sent(0, thSYN)
			if tt.syn != nil {
				tt.syn(&s)
			}
			b.remain(up, s, tt.skb)
			for i := range reasons {
				if want := tt.reason == reasonName(i) && i < handedUp; (b.reason(i) == 1) != want {
					t.Errorf("%s: %s counted %d times", tt.reason, reasonName(i), b.reason(i))
				}
			}
			if n := b.counts(); n.Taken != 0 {
				t.Errorf("%s: took %d ports", tt.reason, n.Taken)
			}
		}
	})
}

// differ returns an address of another network.
func differ(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	b[1] ^= 1
	a, _ = netip.AddrFromSlice(b)
	return a
}

// TestTCPFragmentUp: fragments and options of IP begin no connection.
func TestTCPFragmentUp(t *testing.T) {
	b := newTCPBench(t, tcpEnds()["v4"], nil)
	for _, change := range []func(*segment){
		func(s *segment) { s.frag = 0x2000 }, func(s *segment) { s.frag = 1 }, func(s *segment) { s.ipOptions = true },
	} {
		s := b.sent(0, thSYN)
		change(&s)
		b.remain(up, s, nil)
	}
	if n := b.counts(); n.Taken != 0 {
		t.Errorf("%+v", n)
	}
}

// TestTCPMartians: sources that nobody has begin no connection, even if all may connect.
func TestTCPMartians(t *testing.T) {
	for name, list := range map[string][]string{
		"v4": {"0.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255"},
		"v6": {"::1", "fe80::1", "ff02::1", "::", "64:ff9b::1", "::ffff:192.0.2.7"},
	} {
		b := newTCPBench(t, tcpEnds()[name], nil)
		must(t, b.kern.objs.TcpAllow.Put(&tcAllowKey{Bits: 32, Rule: b.rule.Index}, uint32(1)))
		for _, a := range list {
			s := b.sent(0, thSYN)
			s.from = netip.AddrPortFrom(netip.MustParseAddr(a), 4000)
			b.remain(up, s, nil)
		}
		if n := b.counts(); n.Taken != 0 {
			t.Errorf("%+v", n)
		}
	}
}

// TestTCPDropped: what a live connection cannot carry is dropped, as the stack would reset the connection.
func TestTCPDropped(t *testing.T) {
	eachFamily(t, func(t *testing.T, bench func(func(*tcRule, *tcHop)) *tcpBench) {
		for _, tt := range []struct {
			reason string
			change func(*segment)
			skb    func(*skb)
			hop    func(*tcHop)
		}{
			{reason: "odd", change: func(s *segment) { s.flags = 0 }},
			{reason: "odd", change: func(s *segment) { s.flags = thSYN | thFIN }},
			{reason: "odd", change: func(s *segment) { s.flags = thSYN | thRST }},
			{reason: "odd", change: func(s *segment) { s.flags = thFIN }},
			{reason: "ttl", change: func(s *segment) { s.ttl = 1 }},
			{reason: "mtu", change: func(s *segment) { s.payload = make([]byte, 1400) }},
			{reason: "device", hop: func(h *tcHop) { h.Device = 2 }, skb: func(s *skb) { s.Ifindex = 0 }},
			{reason: "no_way", hop: func(h *tcHop) { h.Device = 0 }},
		} {
			b := bench(nil)
			b.open()
			if tt.hop != nil {
				h := tcHop{Device: 1, Mtu: 1400, Flags: hopMAC}
				tt.hop(&h)
				must(t, b.kern.objs.Hops.Put(uint32(3), &h))
			}
			s := b.sent(0, thACK)
			if tt.change != nil {
				tt.change(&s)
			}
			if tt.reason == "device" {
				c := b.conn()
				c.values[0].Device = 3
				must(t, b.kern.objs.TcpConns.Put(&c.keys[0], &c.values[0]))
			}
			b.remain(dropped, s, nil)
			if n := b.reason(reasonOf(t, false, tt.reason)); n != 1 {
				t.Errorf("%s counted %d times", tt.reason, n)
			}
		}
	})
	// The first fragment, without which the others are nothing.
	b := newTCPBench(t, tcpEnds()["v4"], nil)
	b.open()
	s := b.sent(0, thACK)
	s.frag = 0x2000
	b.remain(dropped, s, nil)
}

// TestTCPLease: without a daemon that renews it everything goes up, live connections too.
func TestTCPLease(t *testing.T) {
	b := newTCPBench(t, tcpEnds()["v4"], nil)
	b.open()
	must(t, b.kern.objs.LeaseUntil.Set(uint64(1)))
	b.remain(up, b.sent(0, thACK), nil)
	b.remain(up, b.sent(1, thACK), nil)
	b.remain(up, b.sent(0, thSYN), nil)
}

// TestTCPLimits: each client's port is a connection of its own with a port of its own, until a limit.
func TestTCPLimits(t *testing.T) {
	b := newTCPBench(t, tcpEnds()["v4"], nil)
	client, from := b.client, b.from
	for i := range 8 {
		b.client = netip.AddrPortFrom(client.Addr(), client.Port()+uint16(i))
		b.from = netip.AddrPortFrom(from.Addr(), from.Port()+uint16(i))
		switch {
		case i < 4: // of 4 that may be half open, 2 are completed
			b.pass(b.sent(0, thSYN))
			if i < 2 {
				b.pass(b.sent(1, thSYN|thACK))
				b.pass(b.sent(0, thACK))
			}
		case i < 6:
			b.pass(b.sent(0, thSYN))
		default:
			b.remain(up, b.sent(0, thSYN), nil)
		}
	}
	if n := b.counts(); n != (tcCounts{Taken: 6, Completed: 2}) {
		t.Errorf("%+v", n)
	}
	if n := b.reason(reasonOf(t, true, "limit")); n != 2 {
		t.Errorf("%d over the limit", n)
	}
	b.rule.Limit = 100
	b.write()
	b.remain(up, b.sent(0, thSYN), nil)
	if n := b.reason(reasonOf(t, true, "half_open")); n != 1 {
		t.Errorf("%d over the limit of half-open ones", n)
	}
}

// TestTCPSegments: many segments in one buffer count as many, and their size is that of one.
func TestTCPSegments(t *testing.T) {
	b := newTCPBench(t, tcpEnds()["v4"], func(_ *tcRule, h *tcHop) { h.Mtu = 600 })
	b.open()
	s := b.sent(0, thACK)
	s.payload = make([]byte, 2800)
	for size, want := range map[uint32]uint32{500: redirected, 560: redirected, 561: dropped} {
		before := b.conn().values[0].Packets
		n := (2800 + size - 1) / size
		verdict, _ := b.run(s.wire(), func(s *skb) { s.GsoSize, s.GsoSegs = size, n })
		if verdict != want {
			t.Errorf("segments of %d: verdict %d", size, verdict)
		}
		if got := b.conn().values[0].Packets - before; verdict == redirected && got != uint64(n) {
			t.Errorf("segments of %d: counted %d, want %d", size, got, n)
		}
	}
}

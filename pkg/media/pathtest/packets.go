package pathtest

import (
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// packetCase is a packet from the near peer, and what becomes of it: the far peer hears the same payload, with a
// right checksum, from the edge's port, and it is counted once; unless the case is silent.
type packetCase struct {
	name string
	// size of the payload; if it is 0, what just fits the MTU of the way out, and over bytes more.
	size, over int
	// head replaces the beginning of the RTP packet.
	head []byte
	// ttl is 64 if it is 0.
	ttl, tos               byte
	options, noSum, mapped bool
	// ones makes the checksum come out as 0, which is sent as 0xffff (RFC 768).
	ones bool
	// form is how the frame comes by the wire, as it is if nil.
	form func([]byte) [][]byte
	from role // peerRTP if it is nobody
	// only says where there is such a packet: everywhere if nil.
	only func(*stream) bool

	// up packets pass, but no path other than user space carries them.
	up bool
	// silent packets are heard by nobody; dropped is the reason that is counted, if any.
	silent  bool
	dropped media.Reason
	counted bool
}

func packetCases() []packetCase {
	stun, dtls := []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, []byte{22, 254, 253, 0}
	fromV4 := func(c *stream) bool { return c.families[near] == pinhole.IPv4 }
	return []packetCase{
		{name: "rtp", size: 172},
		{name: "video", size: 1200},
		{name: "a header alone", size: 12},
		{name: "odd", size: 173},
		{name: "marked", size: 172, head: []byte{0x80, 0x80 | 96}},
		{name: "padding, extension, contributors", size: 172, head: []byte{0xb2, 0}},
		{name: "ecn-capable, 1", size: 172, tos: 0x29},
		{name: "ecn-capable, 0", size: 172, tos: 0x02},
		{name: "congestion experienced", size: 172, tos: 0xff},
		{name: "congestion experienced, rtcp", size: 40, head: []byte{0x80, 200, 0, 6}, tos: 0xff, up: true},
		{name: "last hop", size: 172, ttl: 1, up: true},
		{name: "last hop but one", size: 172, ttl: 2},
		{name: "many hops", size: 172, ttl: 255},
		{name: "as long as the MTU"},
		{name: "longer than the MTU of the way out", over: 1, up: true, only: (*stream).narrow},
		{name: "as long as the MTU of the way in", over: 100, up: true, only: (*stream).narrow},
		{name: "options", size: 172, options: true, up: true},
		{name: "no checksum", size: 172, noSum: true, only: func(c *stream) bool { return c.is(4, 4) }},
		{name: "no checksum, to IPv6", size: 172, noSum: true, up: true, only: func(c *stream) bool { return c.is(4, 6) }},
		{name: "checksum of ones", size: 172, ones: true},
		{name: "empty", size: -1, up: true},
		{name: "too short for RTP", size: 11, up: true},
		{name: "stun", size: 40, head: stun, up: true},
		{name: "dtls", size: 40, head: dtls, up: true},
		{name: "rtcp report", size: 40, head: []byte{0x80, 200, 0, 6}, up: true},
		{name: "rtcp feedback", size: 40, head: []byte{0x81, 206, 0, 6}, up: true},
		{name: "first packet type of RTCP", size: 40, head: []byte{0x80, 192}, up: true},
		{name: "last packet type of RTCP", size: 40, head: []byte{0x80, 223}, up: true},
		{name: "bytes behind the packet", size: 172, up: true, form: func(b []byte) [][]byte {
			return [][]byte{append(b, make([]byte, 1000)...)}
		}},
		{name: "fragments", size: 1000, up: true, form: fragments},
		{name: "a VLAN tag", size: 172, silent: true, form: func(b []byte) [][]byte { return [][]byte{tagged(b)} }},
		{name: "another device's frame", size: 172, silent: true, form: func(b []byte) [][]byte {
			b[5] ^= 1
			return [][]byte{b}
		}},
		{name: "the same addresses in IPv6", size: 172, mapped: true, silent: true, only: fromV4},
		{name: "the same addresses in IPv6, options", size: 172, mapped: true, options: true, silent: true, only: fromV4},
		{name: "another port of the host", size: 172, from: another, silent: true, counted: true, dropped: media.UnknownSource},
		{name: "another host", size: 172, from: stranger, silent: true, counted: true, dropped: media.UnknownSource},
		{name: "another host's stun", size: 40, head: stun, from: stranger, silent: true, counted: true, dropped: media.UnknownSource},
		{name: "rtp again", size: 172},
	}
}

// narrow tells whether the way out has a smaller MTU than the way in.
func (c *stream) narrow() bool { return c.devices[near] != c.devices[far] }

func (c *stream) is(n, f pinhole.Family) bool { return c.families == [2]pinhole.Family{n, f} }

// longest is the payload that passes on both sides without a fragment. A path may count the longer IPv6 header even
// if it goes away.
func (c *stream) longest() int {
	out, heads := 1500, 48
	if c.narrow() {
		out = mtu
	}
	if c.is(4, 4) {
		heads = 28
	}
	return out - heads
}

func testPackets(t *testing.T, e *edge, families [2]pinhole.Family) {
	c := e.open(t, pinhole.RTP, families)
	c.play(confirmed())
	w := c.hosts[near].wire()
	longest := 1500
	if c.narrow() {
		longest = mtu
	}
	audit := Watch(t, c.hosts[far].ns, c.hosts[far].own, longest)
	for _, p := range packetCases() {
		if p.only == nil || p.only(c) {
			c.try(w, p)
		}
	}
	c.quiet()
	if s := audit.Faults(); s != "" {
		t.Error(s)
	}
	c.sum()
}

// try sends the packet and looks what becomes of it.
func (c *stream) try(w *wire, p packetCase) {
	c.t.Helper()
	f := c.frame(w, p)
	before, frames := c.d.Carried(c.t, c.path, c.local[near].Addr), [][]byte{f.wire()}
	if p.form != nil {
		frames = p.form(frames[0])
	}
	w.send(frames...)
	if p.silent {
		if p.counted {
			c.want[near].dropped[p.dropped.String()]++
			c.check(p.name)
		}
		// Those that come after it, by whatever path, are the next to be heard.
		c.carried(p.name, near, before, 0)
		c.play([]step{pass(near, rtp, fast), pass(near, stun, up)})
		return
	}
	c.want[near].packets, c.want[near].bytes = c.want[near].packets+1, c.want[near].bytes+uint64(len(f.payload))
	got := c.hear(p.name, who{far, peerRTP}, c.local[far].Addr, f.payload)
	by := fast
	if p.up {
		by = up
	}
	c.marked(p.name, got, f.ttl, f.tos, by)
	if by == fast {
		c.carried(p.name, near, before, 1)
	} else {
		c.carried(p.name, near, before, 0)
	}
	c.check(p.name)
}

func (c *stream) frame(w *wire, p packetCase) frame {
	f := frame{
		dmac: w.gateway, smac: w.mac, from: addrOf(c.socks[who{near, max(p.from, peerRTP)}]), to: c.local[near].Addr,
		ttl: max(p.ttl, 1), tos: p.tos, options: p.options, noSum: p.noSum, mapped: p.mapped,
	}
	if p.ttl == 0 {
		f.ttl = 64
	}
	size := max(p.size, 0)
	if p.size == 0 {
		size = c.longest() + p.over
	}
	f.payload = c.rtp(near, size)
	copy(f.payload, p.head)
	if b := f.payload; p.silent || len(b) < 12 || b[0]>>6 != 2 || b[1] >= 192 && b[1] <= 223 {
		c.seq[near]-- // nobody counts it as RTP
	}
	if p.ones {
		last := f.payload[len(f.payload)-2:]
		last[0], last[1] = 0, 0
		sum := f.udp(f.from.Addr(), f.to.Addr())[6:8]
		copy(last, sum)
	}
	return f
}

// marked checks what may differ between paths: user space ends the IP packet and makes a new one, the kernel
// forwards it. So the TTL is lowered (64 at most) or new, and the bits of ECN (RFC 3168 §5) are kept or "not
// capable". The DSCP is ours always.
func (c *stream) marked(what string, got packet, ttl, tos byte, by verdict) {
	c.t.Helper()
	if by == either {
		return
	}
	wantTTL, ecn := byte(64), byte(0)
	if by == fast && c.d.Name() != "user" {
		wantTTL, ecn = min(ttl-1, 64), tos&3
	}
	if got.ttl != wantTTL || got.tos != dscp<<2|ecn {
		c.t.Errorf("%s: ttl %d, tos %#x, want %d, %#x", what, got.ttl, got.tos, wantTTL, dscp<<2|ecn)
	}
}

// carried checks that the path itself has moved n packets from side s; user space moves all that pass.
func (c *stream) carried(what string, s pinhole.Side, before, n uint64) {
	c.t.Helper()
	if c.d.Name() == "user" {
		n = 0
	}
	if got := c.d.Carried(c.t, c.path, c.local[s].Addr) - before; got != n {
		c.t.Errorf("%s: %d carried, want %d", what, got, n)
	}
}

// onLocal is the address of the edge that a socket of the role talks to.
func (c *stream) onLocal(w who) netip.AddrPort {
	if w.role == peerRTCP {
		return c.local[w.side].RTCP
	}
	return c.local[w.side].Addr
}

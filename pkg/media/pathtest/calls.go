package pathtest

import (
	"fmt"
	"slices"
	"testing"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// verdict says who moves a packet.
type verdict int

const (
	either verdict = iota
	fast           // the path itself
	up             // user space, whatever the path
)

// kind is what a packet bears.
type kind int

const (
	rtp kind = iota
	rtcp
	stun
	dtls
	text
)

// step is something that happens to a call: signalling, and then packets.
type step struct {
	do   func(*stream)
	from who
	// toRTCP sends to the RTCP port although the sender is another socket than that for RTCP.
	toRTCP bool
	kind   kind
	// n packets are sent, by one call as one buffer if burst says so; 0 means one.
	n     int
	burst bool
	// heard is who must hear it, and nobody else; if that is nobody the packets are counted as from an unknown
	// source.
	heard who
	by    verdict
}

// script is a call.
type script struct {
	name  string
	kind  pinhole.Kind
	steps []step
}

// pass has a packet go from one peer to the other.
func pass(s pinhole.Side, k kind, by verdict) step {
	return step{from: who{s, peerRTP}, kind: k, heard: who{s.Other(), peerRTP}, by: by}
}

func both(by verdict) []step { return []step{pass(near, rtp, by), pass(far, rtp, by)} }

func signal(f func(*stream)) step { return step{do: f} }

func settle() step { return signal((*stream).settle) }

func declare() step {
	return signal(func(c *stream) {
		c.declare(near, c.remote(near))
		c.declare(far, c.remote(far))
	})
}

// change declares a side anew.
func change(s pinhole.Side, f func(*stream, *pinhole.Remote)) step {
	return signal(func(c *stream) {
		r := c.remote(s)
		f(c, &r)
		c.declare(s, r)
	})
}

// confirmed is how most calls begin: both sides are heard, and the path carries them.
func confirmed() []step { return slices.Concat([]step{declare()}, both(either), []step{settle()}) }

// inject has strangers send to both sides: of all ports, all that a packet may bear.
func inject() (list []step) {
	for _, s := range []pinhole.Side{near, far} {
		for _, k := range []kind{rtp, rtcp, stun, dtls, text} {
			list = append(list, step{from: who{s, stranger}, kind: k, n: 3})
		}
		list = append(list, step{from: who{s, stranger}, kind: rtcp, n: 3, toRTCP: true})
	}
	return list
}

// refused is a packet of somebody who is not heard.
func refused(s pinhole.Side, r role) step { return step{from: who{s, r}, n: 3} }

func scripts() []script {
	hold := func(quiet bool) step {
		return change(far, func(_ *stream, r *pinhole.Remote) { r.Quiet = quiet })
	}
	moved := change(far, func(c *stream, r *pinhole.Remote) { r.Addr = addrOf(c.socks[who{far, another}]) })
	fromMoved := step{from: who{far, another}, heard: who{near, peerRTP}}
	toMoved := step{from: who{near, peerRTP}, heard: who{far, another}}
	list := []script{
		{name: "there and back", steps: slices.Concat(confirmed(), both(fast), both(fast), both(fast))},
		{name: "rtcp", steps: slices.Concat(confirmed(), []step{
			{from: who{near, peerRTCP}, kind: rtcp, heard: who{far, peerRTCP}, by: up},
			{from: who{far, peerRTCP}, kind: rtcp, heard: who{near, peerRTCP}, by: up},
		}, both(fast))},
		{name: "rtcp-mux", steps: slices.Concat([]step{declare(), change(far, func(_ *stream, r *pinhole.Remote) { r.RTCP = r.Addr })},
			both(either), []step{
				settle(), pass(near, rtcp, up), pass(far, rtcp, up), pass(near, rtp, fast), pass(far, rtp, fast),
				{from: who{near, peerRTCP}, kind: rtcp, heard: who{far, peerRTP}, by: up},
			}, both(fast))},
		{name: "stun and dtls beside media", steps: slices.Concat(confirmed(), []step{
			pass(near, stun, up), pass(far, stun, up), pass(near, rtp, fast), pass(near, dtls, up), pass(far, dtls, up), pass(far, rtp, fast),
		})},
		{name: "t.38", kind: pinhole.UDP, steps: []step{
			declare(), pass(near, text, either), pass(far, text, either), settle(),
			pass(near, text, fast), pass(far, stun, fast), pass(near, rtcp, fast), pass(far, dtls, fast), refused(far, stranger),
		}},
		{name: "sends from another port, and hears there", steps: []step{
			declare(), fromMoved, toMoved, settle(), byFast(fromMoved), byFast(toMoved), refused(far, peerRTP),
			byFast(fromMoved), byFast(toMoved),
		}},
		{name: "hold and resume", steps: slices.Concat(confirmed(), []step{hold(true)}, both(fast), []step{hold(false)}, both(fast))},
		{name: "a new address", steps: slices.Concat(confirmed(), both(fast), []step{
			moved, refused(far, peerRTP), toMoved, fromMoved, settle(), byFast(fromMoved), byFast(toMoved), refused(far, peerRTP),
		})},
		{name: "strangers", steps: slices.Concat(
			inject(), []step{declare()}, inject(), []step{pass(near, rtp, either)}, inject(), []step{pass(far, rtp, either), settle()},
			inject(), both(fast), []step{refused(near, another), refused(far, another)}, both(fast),
			[]step{hold(true)}, inject(), both(fast), []step{hold(false)}, inject(), both(fast),
			[]step{moved}, inject(), []step{toMoved, fromMoved, settle()}, inject(), []step{byFast(fromMoved), byFast(toMoved)},
		)},
	}
	return slices.Concat(list, asymmetric(), bursts(), []script{tapped()})
}

func byFast(s step) step {
	s.by = fast
	return s
}

// asymmetric calls: peers that send from another port than they receive on (H.323).
func asymmetric() (list []script) {
	for mask := 1; mask < 4; mask++ {
		s := script{name: fmt.Sprintf("asymmetric %02b", mask), steps: []step{declare()}}
		var talk, late []step
		for _, side := range []pinhole.Side{near, far} {
			p := pass(side, rtp, either)
			if mask>>side&1 == 1 {
				s.steps = append(s.steps, change(side, func(_ *stream, r *pinhole.Remote) { r.Asymmetric = true }))
				p.from.role = another
				late = append(late, refused(side, peerRTP))
			}
			talk = append(talk, p)
		}
		s.steps = append(append(s.steps, talk...), settle())
		for _, p := range slices.Concat(talk, talk) {
			s.steps = append(s.steps, byFast(p))
		}
		s.steps = append(append(s.steps, late...), talk...)
		list = append(list, s)
	}
	return list
}

// bursts leave as one buffer that somebody has to cut: the sender, the gateway's device, or nobody, and by whom the
// checksums are made is as varied.
func bursts() (list []script) {
	for mask := range 4 {
		sender, gateway := mask&1 != 0, mask&2 != 0
		offload := func(on bool, s pinhole.Side, host bool) step {
			return signal(func(c *stream) {
				h := c.hosts[s]
				if !host {
					must(c.t, TXChecksums(h.dev, on))
					return
				}
				Within(c.t, h.ns, func() { must(c.t, TXChecksums(h.own, on)) })
			})
		}
		burst := func(s pinhole.Side) step {
			p := pass(s, rtp, fast)
			p.n, p.burst = 10, true
			return p
		}
		list = append(list, script{
			name: fmt.Sprintf("burst, offload of the sender %v, of the gateway %v", sender, gateway),
			steps: slices.Concat(confirmed(), []step{offload(sender, near, true), offload(gateway, far, false)},
				both(fast), []step{burst(near), burst(far)}, both(fast),
				[]step{offload(false, near, true), offload(false, far, false)}),
		})
	}
	return list
}

func (s script) run(t *testing.T, e *edge, families [2]pinhole.Family) {
	c := e.open(t, s.kind, families)
	c.play(s.steps)
	c.quiet()
	c.sum()
}

// play does one step after the other.
func (c *stream) play(steps []step) {
	c.t.Helper()
	for i, s := range steps {
		if s.do != nil {
			s.do(c)
		}
		if s.from.role != nobody {
			c.send(fmt.Sprintf("step %d", i), s)
		}
	}
}

func (c *stream) send(what string, s step) {
	c.t.Helper()
	to := c.onLocal(s.from)
	if s.toRTCP {
		to = c.local[s.from.side].RTCP
	}
	var packets [][]byte
	for range max(s.n, 1) {
		packets = append(packets, c.payload(s))
	}
	side, before := s.from.side, c.d.Carried(c.t, c.path, c.local[s.from.side].Addr)
	if s.burst {
		c.segment(s.from, len(packets[0]))
		write(c.t, c.socks[s.from], to, slices.Concat(packets...))
		c.segment(s.from, 0)
	} else {
		for _, b := range packets {
			write(c.t, c.socks[s.from], to, b)
		}
	}
	w, n := &c.want[side], uint64(len(packets))
	if s.heard.role == nobody {
		w.dropped[media.UnknownSource.String()] += n
		n = 0
	}
	if s.heard.role != nobody {
		for _, b := range packets {
			w.packets, w.bytes = w.packets+1, w.bytes+uint64(len(b))
			c.marked(what, c.hear(what, s.heard, c.onLocal(s.heard), b), 64, 0, s.by)
		}
	}
	c.check(what)
	if s.by == up {
		n = 0
	}
	if s.by != either || n == 0 {
		c.carried(what, side, before, n)
	}
}

// payload returns the next packet.
func (c *stream) payload(s step) []byte {
	if s.kind == rtp && s.heard.role != nobody {
		return c.rtp(s.from.side, 172)
	}
	b := rtpPacket(c.seq[s.from.side]+1, byte(s.from.side)+1, 172)
	switch s.kind {
	case rtcp:
		copy(b, []byte{0x80, 200, 0, 42})
	case stun:
		copy(b, []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42})
	case dtls:
		copy(b, []byte{22, 254, 253, 0})
	case text:
		b = fmt.Appendf(nil, "a text of %v", s.from)
	}
	return b
}

// sum closes the lease, whose last figures are the same.
func (c *stream) sum() {
	c.t.Helper()
	sum := c.lease.Close()
	for s, want := range c.want {
		var dropped uint64
		for _, n := range want.dropped {
			dropped += n
		}
		if st := sum.From[s]; st.Packets != want.packets || st.Bytes != want.bytes || st.Lost != 0 || st.Dropped != dropped {
			c.t.Errorf("side %d: in the end %+v, want %+v", s, st, want)
		}
	}
}

package h323

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

var (
	insideEdge  = netip.MustParseAddr("192.0.2.1")
	outsideEdge = netip.MustParseAddr("192.0.2.129")
)

func testNetworks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{insideEdge}},
		"outside": {Addresses: []netip.Addr{outsideEdge}},
	}
}

// recorded is one call of a capture.
type recorded struct {
	name string
	from [2]*tpkttest.Stream // Near, Far
	h245 [][2]*tpkttest.Stream
}

// recordedCalls finds the signalling connections in the captures that begin with a Setup, and the H.245 connections
// between the same hosts.
func recordedCalls(t testing.TB) (out []recorded) {
	t.Helper()
	root := tpkttest.Corpora(t, "../..", "h323-lab")
	files, _ := filepath.Glob(filepath.Join(root, "*.pcap"))
	for _, f := range files {
		c, err := tpkttest.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		var calls []recorded
		used := map[*tpkttest.Stream]bool{}
		for _, a := range c.TCP {
			if len(a.Data) > 9 && a.Data[4] == 8 && a.Data[5] == 2 && a.Data[8] == 5 {
				if b := reverse(c, a, used); b != nil {
					used[a], used[b] = true, true
					calls = append(calls, recorded{name: filepath.Base(f), from: [2]*tpkttest.Stream{a, b}})
				}
			}
		}
		for i := range calls {
			calls[i].find245(c, used)
		}
		out = append(out, calls...)
	}
	if len(out) < 50 {
		t.Fatalf("only %d calls in the corpora", len(out))
	}
	return out
}

func reverse(c *tpkttest.Capture, a *tpkttest.Stream, used map[*tpkttest.Stream]bool) *tpkttest.Stream {
	for _, b := range c.TCP {
		if b.Src == a.Dst && b.Dst == a.Src && !used[b] {
			return b
		}
	}
	return nil
}

// find245 takes the connections between the two hosts whose payloads are H.245.
func (r *recorded) find245(c *tpkttest.Capture, used map[*tpkttest.Stream]bool) {
	near, far := r.from[0].Src.Addr(), r.from[0].Dst.Addr()
	for _, a := range c.TCP {
		if used[a] || a.Src.Addr() != near || a.Dst.Addr() != far || len(a.Data) < 6 || a.Data[0] != 3 || a.Data[4] == 8 {
			continue
		}
		p := payloads(a)
		if len(p) == 0 {
			continue
		}
		if _, _, err := h245.Decode(h245.NewDecoder(), p[0].Payload); err != nil {
			continue
		}
		if b := reverse(c, a, used); b != nil {
			used[a], used[b] = true, true
			r.h245 = append(r.h245, [2]*tpkttest.Stream{a, b})
		}
	}
}

func payloads(s *tpkttest.Stream) (out []tpkt.Packet) {
	var sp tpkt.Splitter
	sp.Push(s.Data)
	for {
		p, ok, err := sp.Next()
		if err != nil || !ok {
			return out
		}
		p.Payload = bytes.Clone(p.Payload)
		out = append(out, p)
	}
}

// said is a message of one side.
type said struct {
	from pinhole.Side
	tpkt.Packet
}

// order returns the messages in an order in which they may have been said: the Setup, the answers to it, the rest,
// and the ends.
func (r *recorded) order() (out []said) {
	var ends []said
	near := payloads(r.from[pinhole.Near])
	add := func(s pinhole.Side, list []tpkt.Packet) {
		for _, m := range list {
			if s == pinhole.Far && len(m.Payload) > 4 && m.Payload[2]&0x80 == 0 {
				continue // of no call: a greeting of H.460.18
			}
			if len(m.Payload) > 4 && m.Payload[4] == 0x5a {
				ends = append(ends, said{s, m})
			} else {
				out = append(out, said{s, m})
			}
		}
	}
	add(pinhole.Near, near[:1])
	add(pinhole.Far, payloads(r.from[pinhole.Far]))
	add(pinhole.Near, near[1:])
	return append(out, ends...)
}

// player runs a recorded call through a core.
type player struct {
	t      *testing.T
	core   *Core
	near   ConnID
	far    ConnID
	hosts  [2]netip.Addr
	sent   [2][][]byte // towards Near, Far: whole TPKTs
	served *call
	opener *pinholetest.Opener
}

func newPlayer(t *testing.T, near, far netip.AddrPort) *player {
	p := &player{t: t, near: 1, hosts: [2]netip.Addr{near.Addr(), far.Addr()}}
	p.opener = pinholetest.New(testNetworks(), 20000)
	cfg := DefaultConfig()
	cfg.Default = map[string]Target{"inside": Target(far)}
	cfg.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 1720}, {Proto: "tcp", Network: "outside", Port: 1720}}
	p.core = NewCore(cfg, Deps{Networks: testNetworks(), Opener: p.opener}, zap.NewNop())
	p.core.serve = func(k *call) func(context.Context, [2]net.Conn, func(pinhole.Side, int)) {
		p.served = k
		return func(context.Context, [2]net.Conn, func(pinhole.Side, int)) {}
	}
	p.core.Accept(testNow, p.near, "inside", netip.AddrPortFrom(insideEdge, 1720), near)
	return p
}

var testNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// message plays a message of one side.
func (p *player) message(from pinhole.Side, m tpkt.Packet) {
	var out Output
	p.core.Message(testNow, [2]ConnID{p.near, p.far}[from], m, &out)
	for len(out.Actions) > 0 {
		a := out.Actions[0]
		out.Actions = out.Actions[1:]
		switch {
		case a.Kind == Dial:
			p.far = a.Conn
			p.core.Dialed(testNow, a.Conn, netip.AddrPortFrom(outsideEdge, 30000), nil, &out)
		case a.Kind == Send && a.Conn == p.near:
			p.sent[pinhole.Near] = append(p.sent[pinhole.Near], a.Data)
		case a.Kind == Send:
			p.sent[pinhole.Far] = append(p.sent[pinhole.Far], a.Data)
		}
	}
}

// TestCorpora plays every recorded call of two real stacks through the core: every message comes out on the other
// side, holds no address of the sender's host any more, and is else what it was.
func TestCorpora(t *testing.T) {
	calls, messages, edited, control := 0, 0, 0, 0
	for _, r := range recordedCalls(t) {
		t.Run(r.name, func(t *testing.T) {
			p := newPlayer(t, r.from[0].Src, r.from[0].Dst)
			calls++
			for _, m := range r.order() {
				to := m.from.Other()
				before := len(p.sent[to])
				p.message(m.from, m.Packet)
				if len(p.sent[to]) != before+1 {
					t.Fatalf("message %x of side %d came out as %d", m.Payload[:min(8, len(m.Payload))], m.from, len(p.sent[to])-before)
				}
				messages++
				if p.signalling(m.from, m.Packet, p.sent[to][before]) {
					edited++
				}
			}
			if len(r.h245) > 0 && p.served == nil && !strings.Contains(r.name, "natk") {
				t.Errorf("%d H.245 connections, but no pinhole", len(r.h245))
			}
			for _, h := range r.h245 {
				if p.served == nil {
					continue
				}
				for s, stream := range h {
					for _, m := range payloads(stream) {
						if len(m.Payload) > 0 {
							control++
							p.h245(pinhole.Side(s), m)
						}
					}
				}
			}
		})
	}
	t.Logf("%d calls, %d messages, %d of them edited, %d payloads on H.245 connections", calls, messages, edited, control)
}

// signalling compares a message with what came out of it, and tells whether they differ.
func (p *player) signalling(from pinhole.Side, m tpkt.Packet, sent []byte) bool {
	p.t.Helper()
	if bytes.Equal(m.Payload, sent[4:]) {
		p.leaks(from, sent[4:])
		return false
	}
	a, b := h225.NewCodec(), h225.NewCodec()
	in, err := a.Decode(m.Payload)
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := b.Decode(sent[4:])
	if err != nil {
		p.t.Fatalf("what came out: %v", err)
	}
	p.leaks(from, sent[4:])
	// With the addresses put back it must be the same, byte for byte.
	was := in.Addresses(nil)
	for i, x := range out.Addresses(nil) {
		if x.AddrPort != was[i].AddrPort {
			if err := x.Set(b.Editor(), out.Tree, was[i].AddrPort); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	p.traversalBack(in, out, b)
	back, err := b.Apply(nil)
	if err != nil || !bytes.Equal(back, m.Payload) {
		p.t.Errorf("more than addresses has changed: %v\n%x\n%x", err, m.Payload, sent[4:])
	}
	return true
}

// traversalBack puts the parameters of H.460.19 back.
func (p *player) traversalBack(in, out *h225.Message, b *h225.Codec) {
	p.t.Helper()
	was := in.Tunnelled(in.FastStart(nil))
	for i, item := range out.Tunnelled(out.FastStart(nil)) {
		if at := h245.TraversalAt(out.Tree, item); at != per.None {
			octets := in.Tree.Octets(h245.TraversalAt(in.Tree, was[i]))
			if len(octets) != len(out.Tree.Octets(at)) {
				p.t.Errorf("traversal parameters of %d octets came out as %d", len(octets), len(out.Tree.Octets(at)))
			}
			if err := b.Editor().SetOctets(at, octets); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

// leaks looks for the sender's address in what the other side gets.
func (p *player) leaks(from pinhole.Side, b []byte) {
	p.t.Helper()
	host := p.hosts[from].As4()
	if p.hosts[0] != p.hosts[1] && bytes.Contains(b, host[:]) {
		p.t.Errorf("%v of side %d is still in %x", p.hosts[from], from, b)
	}
}

func (p *player) h245(from pinhole.Side, m tpkt.Packet) {
	p.t.Helper()
	got, err := p.core.Control(testNow, p.served, from, m.Payload)
	if err != nil {
		p.t.Errorf("H.245 %x: %v", m.Payload, err)
		return
	}
	p.leaks(from, got)
	if len(got) != len(m.Payload) {
		p.t.Errorf("H.245 of %d octets came out as %d", len(m.Payload), len(got))
	}
}

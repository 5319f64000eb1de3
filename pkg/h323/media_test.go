package h323

import (
	"net/netip"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

// open returns the leases of a kind that are open.
func (b *bench) open(kind pinhole.Kind) (out []*pinholetest.Lease) {
	for _, l := range b.opener.Leases() {
		if !l.Closed() && l.Request.Kind == kind {
			out = append(out, l)
		}
	}
	return out
}

// TestSlipstreaming: what a page or a peer can make an endpoint say opens nothing to anybody else.
func TestSlipstreaming(t *testing.T) {
	for _, bad := range []string{
		"10.0.0.8:4000", "10.0.0.7:22", "10.0.0.1:9060", "198.51.100.1:1720", "127.0.0.1:4000", "224.0.0.1:4000", "255.255.255.255:4000",
		"169.254.169.254:80", "203.0.113.9:4000",
	} {
		addr := netip.MustParseAddrPort(bad)
		for name, msg := range map[string][]byte{
			"h245Address": facility(t, 1, false, "startH245", per.F("h245Address", h245.CallAddress(addr))),
			"fastStart":   facility(t, 1, false, "undefinedReason", per.F("fastStart", per.Elements(per.Encoded(per.Fields(lcn(1), forwardOf(1, addr, addr)))))),
			"tunnelled":   tunnel(t, 1, false, ack(t, 1, 1, addr, addr)),
		} {
			b := newBench(t, nil)
			near, far := b.talk(1, aliceAt)
			b.say(far, connect(t, 1))
			for _, m := range sent(t, b.say(near, msg), far) {
				// A multicast group is nobody's host: it passes, and opens nothing.
				if m.Type != q931.ReleaseComplete && !addr.Addr().IsMulticast() {
					t.Errorf("%s %s passed", name, bad)
				}
			}
			for _, l := range b.open(pinhole.RTP) {
				if l.Remote(pinhole.Near).Addr.IsValid() {
					t.Errorf("%s %s: a pinhole to %v", name, bad, l.Remote(pinhole.Near).Addr)
				}
			}
			if n := len(b.open(pinhole.TCP)); n != 0 {
				t.Errorf("%s %s: %d pinholes for TCP", name, bad, n)
			}
			b.closed(near)
			b.tick(lingerTime)
			b.empty()
		}
	}
	// What says nothing passes, and opens nothing.
	b := newBench(t, nil)
	near, far := b.talk(1, aliceAt)
	if m := one(t, b.say(near, facility(t, 1, false, "startH245", per.F("h245Address", h245.CallAddress(netip.MustParseAddrPort("0.0.0.0:0"))))), far); m.Type != q931.Facility || b.opener.Count() != 0 {
		t.Errorf("%v, %d pinholes", m.Type, b.opener.Count())
	}
}

// TestFastStart: alternatives on one port share a pinhole, those on others get theirs; the answer counts for all.
func TestFastStart(t *testing.T) {
	item := func(n int64, session int64, port uint16) per.Value {
		return per.Encoded(per.Fields(lcn(n), per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", per.Alternative("nullData", per.Nothing())),
			per.F("multiplexParameters", per.Alternative("none", per.Nothing())))),
			per.F("reverseLogicalChannelParameters", per.Fields(per.F("dataType", g711()), per.F("multiplexParameters", params(session, at(aliceAt, port), at(aliceAt, port+1)))))))
	}
	for _, tt := range []struct {
		name   string
		items  []per.Value
		leases int
	}{
		{"two on one port", []per.Value{item(1, 1, 4000), item(2, 1, 4000)}, 1},
		{"two on two ports", []per.Value{item(1, 1, 4000), item(2, 1, 4002)}, 2},
		{"audio and video", []per.Value{item(1, 1, 4000), item(2, 2, 4002)}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, nil)
			near, far := b.talk(1, aliceAt, per.F("fastStart", per.Elements(tt.items...)))
			m := one(t, b.out.Actions, far)
			leases := b.open(pinhole.RTP)
			if len(leases) != tt.leases {
				t.Fatalf("%d pinholes", len(leases))
			}
			seen := map[netip.AddrPort]bool{}
			for _, a := range m.Addresses(nil) {
				if a.Field == h245.MediaChannel {
					seen[a.AddrPort] = true
				}
			}
			if len(seen) != tt.leases {
				t.Errorf("bob is told %v", seen)
			}
			// The answer repeats where alice receives, and names its own port for RTCP.
			told := leases[0].Local(pinhole.Far).Addr
			answer := per.Encoded(per.Fields(lcn(1), per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", per.Alternative("nullData", per.Nothing())),
				per.F("multiplexParameters", per.Alternative("none", per.Nothing())))),
				per.F("reverseLogicalChannelParameters", per.Fields(per.F("dataType", g711()), per.F("multiplexParameters", params(1, told, at(bobAt, 5001)))))))
			m = one(t, b.say(far, connect(t, 1, per.F("fastStart", per.Elements(answer)))), near)
			if got := addressIn(m, h245.MediaChannel); got != at(aliceAt, 4000) {
				t.Errorf("alice gets back %v", got)
			}
			if got := addressIn(m, h245.MediaControlChannel); got != leases[0].Local(pinhole.Near).RTCP {
				t.Errorf("alice is told %v for RTCP", got)
			}
			if got := leases[0].Remote(pinhole.Far).RTCP; got != at(bobAt, 5001) {
				t.Errorf("RTCP goes to %v", got)
			}
			b.closed(near)
			b.empty()
		})
	}
}

// TestChannels: channels are opened, answered, closed, rejected and numbered anew, tunnelled.
func TestChannels(t *testing.T) {
	b := newBench(t, nil)
	near, far := b.talk(1, aliceAt)
	b.say(far, connect(t, 1))
	count := func(want int, what string) {
		t.Helper()
		if n := b.opener.Count(); n != want {
			t.Fatalf("%s: %d pinholes, want %d", what, n, want)
		}
	}
	m := one(t, b.say(near, tunnel(t, 1, false, olc(t, 1, 1, at(aliceAt, 4001)))), far)
	count(1, "alice opens")
	lease := b.open(pinhole.RTP)[0]
	if got := addressIn(m, h245.MediaControlChannel); got != lease.Local(pinhole.Far).RTCP {
		t.Errorf("bob is told %v", got)
	}
	m = one(t, b.say(far, tunnel(t, 1, true, ack(t, 1, 1, at(bobAt, 5000), at(bobAt, 5001)))), near)
	if got := addressIn(m, h245.MediaChannel); got != lease.Local(pinhole.Near).Addr || lease.Remote(pinhole.Far).Addr != at(bobAt, 5000) {
		t.Errorf("alice is told %v, media goes to %v", got, lease.Remote(pinhole.Far).Addr)
	}
	// Bob is the slave: he does not know the session's number yet, the Ack names it.
	b.say(far, tunnel(t, 1, true, olc(t, 7, 0, at(bobAt, 5001))))
	count(2, "bob opens without a session")
	b.say(near, tunnel(t, 1, false, ack(t, 7, 1, at(aliceAt, 4000), at(aliceAt, 4001))))
	count(2, "alice takes it")
	b.say(near, tunnel(t, 1, false, clc(t, 1)))
	count(1, "alice closes hers")
	b.say(near, tunnel(t, 1, false, olc(t, 1, 2, at(aliceAt, 4003))))
	count(2, "her number again, for video")
	b.say(far, tunnel(t, 1, true, h245Of(t, "response", h245.OpenLogicalChannelReject, lcn(1), per.F("cause", per.Alternative("unspecified", per.Nothing())))))
	count(1, "bob rejects it")
	b.say(far, tunnel(t, 1, true, clc(t, 7)))
	count(0, "bob closes his")
	b.say(near, tunnel(t, 1, false, clc(t, 99)))
	count(0, "one that is not there")
	b.closed(far)
	b.empty()
}

// TestChannelLimits: a flood of channels ends the call and opens no more than a call may have.
func TestChannelLimits(t *testing.T) {
	for name, message := range map[string]func(i int) []byte{
		"sessions": func(i int) []byte {
			return tunnel(t, 1, false, olc(t, int64(i+1), int64(i+1), at(aliceAt, uint16(4001+2*i))))
		},
		"channels": func(i int) []byte { return tunnel(t, 1, false, olc(t, int64(i+1), 1, at(aliceAt, 4001))) },
		"controls": func(i int) []byte {
			return facility(t, 1, false, "startH245", per.F("h245Address", h245.CallAddress(at(aliceAt, uint16(4001+i)))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			near, _ := b.talk(1, aliceAt)
			ended := false
			for i := 0; i < 100 && !ended; i++ {
				for _, m := range sent(t, b.say(near, message(i)), near) {
					ended = m.Type == q931.ReleaseComplete
				}
			}
			if !ended || b.opener.Count() > maxSessions {
				t.Errorf("ended %v, %d pinholes", ended, b.opener.Count())
			}
			b.tick(lingerTime)
			b.empty()
		})
	}
}

// TestExhausted: no port is free: the call is refused and nothing is left.
func TestExhausted(t *testing.T) {
	b := newBench(t, nil)
	b.opener.Fail(pinhole.ErrExhausted)
	near := b.connect(aliceAt)
	actions := b.say(near, setup(t, 1, aliceAt, "bob", per.F("h245Address", h245.CallAddress(at(aliceAt, 4000)))))
	if m := one(t, actions, near); m.Type != q931.ReleaseComplete || m.Reason() != "gatewayResources" {
		t.Errorf("%v %s", m.Type, m.Reason())
	}
	b.tick(lingerTime)
	b.empty()
}

// FuzzCore: sequences of anything on both connections and in H.245 neither panic nor leave anything.
func FuzzCore(f *testing.F) {
	frame := func(who byte, p []byte) []byte { return append([]byte{who, byte(len(p) >> 8), byte(len(p))}, p...) }
	join := func(parts ...[]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	f.Add(join(frame(1, connect(f, 1, per.F("h245Address", h245.CallAddress(at(bobAt, 5000))))), frame(2, olc(f, 1, 1, at(aliceAt, 4001))),
		frame(3, ack(f, 1, 1, at(bobAt, 5000), at(bobAt, 5001))), frame(2, clc(f, 1)), frame(0, release(f, 1, false))))
	f.Add(join(frame(0, facility(f, 1, false, "startH245", per.F("h245Address", h245.CallAddress(at(carolAt, 22))))), frame(4, nil)))
	f.Add(join(frame(1, tunnel(f, 1, true, olc(f, 1, 0, at(bobAt, 5001)), ack(f, 1, 1, at(bobAt, 5000), at(bobAt, 5001)))), frame(0, setup(f, 2, aliceAt, "bob"))))
	for _, r := range seedCalls(f) {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBench(t, nil)
		near, far := b.talk(1, aliceAt)
		for len(data) >= 3 {
			who, n := data[0], min(int(data[1])<<8|int(data[2]), len(data)-3)
			p := data[3 : 3+n]
			data = data[3+n:]
			switch who % 6 {
			case 0:
				b.say(near, p)
			case 1:
				b.say(far, p)
			case 2, 3:
				if b.served != nil {
					_, _ = b.core.Control(b.now, b.served, pinhole.Side(who%6-2), p)
				}
			case 4:
				b.tick(lingerTime)
			default:
				b.closed(far)
			}
			for _, a := range b.out.Actions {
				if a.Kind == Send && (len(a.Data) < 4 || int(a.Data[2])<<8|int(a.Data[3]) != len(a.Data)) {
					t.Errorf("no TPKT: %x", a.Data)
				}
			}
		}
		for _, l := range b.opener.Leases() {
			for s, host := range [2]netip.Addr{aliceAt.Addr(), bobAt.Addr()} {
				// Inside only the speaker's own host; the edge's own ports are those of a spiral.
				if r := l.Remote(pinhole.Side(s)); s == 0 && r.Addr.IsValid() && r.Addr.Addr() != host && r.Addr.Addr() != inEdge && l.Request.Networks[0] == "inside" {
					t.Errorf("a pinhole to %v", r.Addr)
				}
			}
		}
		b.closed(near)
		b.closed(far)
		b.tick(answerTime)
		b.tick(lingerTime)
		b.empty()
	})
}

// seedCalls returns recorded calls as the fuzz target reads them.
func seedCalls(f *testing.F) (out [][]byte) {
	if _, ok := tpkttest.Find("../..", "h323-lab"); !ok {
		return nil
	}
	calls := recordedCalls(f)
	for _, r := range calls[:min(12, len(calls))] {
		var seed []byte
		for _, m := range r.order() {
			seed = append(seed, byte(m.from), byte(len(m.Payload)>>8), byte(len(m.Payload)))
			seed = append(seed, m.Payload...)
		}
		out = append(out, seed)
	}
	return out
}

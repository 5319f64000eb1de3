package h323

import (
	"bytes"
	"context"
	"net/netip"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/pinhole"
)

// fastSetup is a Setup with a channel each way.
func fastSetup(t testing.TB, n byte) []byte {
	return setup(t, n, aliceAt, "bob", per.F("fastStart", per.Elements(
		per.Encoded(per.Fields(lcn(1), forwardOf(1, at(aliceAt, 0), at(aliceAt, 4001)))),
		per.Encoded(per.Fields(lcn(2), per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", per.Alternative("nullData", per.Nothing())),
			per.F("multiplexParameters", per.Alternative("none", per.Nothing())))),
			per.F("reverseLogicalChannelParameters", per.Fields(per.F("dataType", g711()), per.F("multiplexParameters", params(1, at(aliceAt, 4000), at(aliceAt, 4001))))))))))
}

// forgetful grants leases that cost next to nothing; the fake of the tests remembers each.
type forgetful struct{}

func (forgetful) Open(context.Context, pinhole.Request) (pinhole.Lease, error) {
	return freeLease{}, nil
}

type freeLease struct{ pinhole.Lease }

func (freeLease) Local(s pinhole.Side) pinhole.Local {
	a := [2]netip.Addr{inEdge, outEdge}[s]
	return pinhole.Local{Addr: netip.AddrPortFrom(a, 20000), RTCP: netip.AddrPortFrom(a, 20001)}
}
func (freeLease) Declare(pinhole.Side, pinhole.Remote) error { return nil }
func (freeLease) Close() pinhole.Summary                     { return pinhole.Summary{} }

// BenchmarkCall is what a whole call costs the core: Setup with fast start, Connect, ReleaseComplete, and all
// that it opens and closes, but for sockets.
func BenchmarkCall(b *testing.B) {
	w := newBench(b, nil)
	w.core.opener = forgetful{}
	offer, answer, end := fastSetup(b, 1), connect(b, 1, per.F("h245Address", h245.CallAddress(at(bobAt, 5000)))), release(b, 1, false)
	b.ReportAllocs()
	for b.Loop() {
		near := w.connect(aliceAt)
		far := w.dialled(w.say(near, offer))
		w.say(far, answer)
		w.say(near, end)
		w.closed(near)
		w.closed(far)
		w.out = Output{}
	}
	if len(w.core.calls) != 0 || w.core.counts.connected == 0 {
		b.Fatalf("%d calls are left of %d", len(w.core.calls), w.core.counts.connected)
	}
}

// again returns what has a core edit a Setup with fast start of a call that is there already: no routing, no new
// pinhole. The action is its only output.
func again(t testing.TB) (edit func() []Action) {
	w := newBench(t, nil)
	w.core.opener = forgetful{}
	offer := fastSetup(t, 1)
	near := w.connect(aliceAt)
	w.dialled(w.say(near, offer))
	out := Output{Actions: make([]Action, 0, 4)}
	return func() []Action {
		out.Actions = out.Actions[:0]
		w.core.Message(w.now, near, tpkt.Packet{Payload: offer}, &out)
		return out.Actions
	}
}

// BenchmarkRewrite is the editing of a Setup by the core, its addresses found among those of the call.
func BenchmarkRewrite(b *testing.B) {
	edit := again(b)
	b.ReportAllocs()
	for b.Loop() {
		edit()
	}
}

// TestRewriteAllocates: a Setup with fast start costs the core what is sent, and at most one allocation beside.
func TestRewriteAllocates(t *testing.T) {
	edit := again(t)
	offer := fastSetup(t, 1)
	if a := edit(); len(a) != 1 || a[0].Kind != Send || len(a[0].Data) != len(offer)+4 || bytes.Equal(a[0].Data[4:], offer) {
		t.Fatalf("%d actions: %x", len(a), a)
	}
	if n := testing.AllocsPerRun(100, func() { edit() }); n > 2 {
		t.Errorf("%v allocations", n)
	}
}

package h323

import (
	"bytes"
	"slices"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
)

// TestTunnelledRAS: RAS in call signalling ends the connection at once, and is counted.
func TestTunnelledRAS(t *testing.T) {
	b := newBench(t, nil)
	id := b.connect(bobAt)
	m := payloadWith(t, q931.Facility, 0, false, h225.Info(h225.Empty, per.Nothing(),
		per.F("genericData", per.Elements(h225.GenericData(rasOverSignalling, h225.RawParameter(1, []byte{1, 2, 3}))))))
	if a := b.say(id, m); len(a) != 1 || a[0].Kind != Close || a[0].Conn != id {
		t.Errorf("%+v", a)
	}
	if n := b.core.counts.dropped[droppedTunnelled]; n != 1 {
		t.Errorf("%v", b.core.counts.dropped)
	}
}

// TestDirectDeclined: features by which media would go past the edge are taken out of a Setup, others stay.
func TestDirectDeclined(t *testing.T) {
	b := newBench(t, nil)
	var list []per.Value
	for _, id := range []int64{natDetection, 9, directMedia, 26} {
		list = append(list, h225.GenericData(id))
	}
	near := b.connect(aliceAt)
	far := b.dialled(b.say(near, setup(t, 1, aliceAt, "bob", per.F("supportedFeatures", per.Elements(list...)))))
	var got []int64
	for _, f := range h225.Features(nil, one(t, b.out.Actions, far).Tree) {
		got = append(got, f.ID)
	}
	if !slices.Equal(got, []int64{9, 26}) {
		t.Errorf("features %v came through", got)
	}
}

// TestDirectAddresses: what H.460.24 says of a channel is taken out, with the inside address in it; the rest of
// genericInformation stays.
func TestDirectAddresses(t *testing.T) {
	host := aliceAt.Addr().As4()
	direct := h245.GenericInformation("0.0.8.460.24.2", 0, append([]byte{1}, host[:]...))
	other := h245.GenericInformation("0.0.8.239.1.1", 1, []byte("other"))
	for _, list := range [][]per.Value{{direct}, {direct, other}, {other, direct}} {
		b := newBench(t, nil)
		near, far := b.talk(1, aliceAt)
		b.say(far, connect(t, 1))
		m := one(t, b.say(near, tunnel(t, 1, false, h245Of(t, "request", h245.OpenLogicalChannel, lcn(1),
			forwardOf(1, at(aliceAt, 5000), at(aliceAt, 5001)), per.F("genericInformation", per.Elements(list...))))), far)
		c, ok := tunnelledKind(m, h245.OpenLogicalChannel)
		if !ok || bytes.Contains(m.Tree.Source(), host[:]) {
			t.Fatalf("alice's address came through: %x", m.Tree.Source())
		}
		if kept := bytes.Contains(m.Tree.Source(), []byte("other")); kept != (len(list) > 1) {
			t.Errorf("the rest is kept: %v", kept)
		}
		if len(h245.DirectAt(m.Tree, m.Tree.Child(c.Body, "genericInformation"))) != 0 || len(b.open(pinhole.RTP)) != 1 {
			t.Error("it is still there")
		}
	}
}

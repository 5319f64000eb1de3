package pathtest

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// notes keeps what a tap was shown.
type notes struct {
	mu   sync.Mutex
	seen []media.Seen
	end  func()
}

func (n *notes) show(s media.Seen) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Data = bytes.Clone(s.Data)
	n.seen = append(n.seen, s)
}

// await waits until so many packets were shown, and returns them.
func (n *notes) await(t *testing.T, want int) (list []media.Seen) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); pause() {
		n.mu.Lock()
		list = slices.Clone(n.seen)
		n.mu.Unlock()
		if len(list) >= want {
			break
		}
	}
	if len(list) != want {
		t.Fatalf("the tap was shown %d packets, want %d", len(list), want)
	}
	return list
}

// tapped is a call of which somebody wants to see some part: it leaves the path for that long, and comes back.
func tapped() script {
	n := &notes{}
	begin := signal(func(c *stream) {
		n.mu.Lock()
		n.seen = nil // of the script's last run
		n.mu.Unlock()
		n.end = c.relay.Tap(func(label string) bool { return label == c.t.Name() }, n.show)
	})
	end := signal(func(c *stream) {
		c.t.Helper()
		seen := n.await(c.t, 15) // what has arrived at its end may not have been shown yet
		n.end()
		var in, out, stray int
		for _, s := range seen {
			switch {
			case s.Unrelayed:
				stray++
			case s.Out:
				out++
			default:
				in++
			}
			if s.Out != (s.From.Port() == c.local[near].Addr.Port() || s.From.Port() == c.local[far].Addr.Port() ||
				s.From.Port() == c.local[far].RTCP.Port()) {
				c.t.Errorf("direction of %+v", s)
			}
		}
		if in != 6 || out != 6 || stray != 3 {
			c.t.Errorf("%d packets came, %d left, %d were for nobody; want 6, 6 and 3", in, out, stray)
		}
	})
	return script{name: "captured", steps: slices.Concat(confirmed(), both(fast), []step{begin}, both(up), both(up), []step{
		{from: who{near, peerRTCP}, kind: rtcp, heard: who{far, peerRTCP}, by: up}, refused(far, stranger), pass(near, rtp, up), end, settle(),
	}, both(fast))}
}

// testTap looks at what a tap is shown, and that it is the one of its own label and no other.
func testTap(t *testing.T, newPath func(*testing.T) media.Path) {
	r := newRig(t, newPath, nil)
	n, others := &notes{}, &notes{}
	endOthers := r.relay.Tap(func(label string) bool { return label == "another" }, others.show)
	defer endOthers()
	end := r.relay.Tap(func(label string) bool { return label == t.Name() }, n.show)
	c := r.call(pinhole.RTP) // opened after it was asked for
	before := time.Now()
	c.talk(near, "there")
	c.talk(far, "back")
	seen := n.await(t, 4)
	for i, want := range []media.Seen{
		{Network: "inside", From: c.peers[near].addr(), To: c.local[near].Addr, Data: []byte("there")},
		{Network: "outside", From: c.local[far].Addr, To: c.peers[far].addr(), Data: []byte("there"), Out: true},
		{Network: "outside", From: c.peers[far].addr(), To: c.local[far].Addr, Data: []byte("back")},
		{Network: "inside", From: c.local[near].Addr, To: c.peers[near].addr(), Data: []byte("back"), Out: true},
	} {
		got := seen[i]
		if got.Time.Before(before.Add(-time.Second)) || got.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("packet %d passed at %v", i, got.Time)
		}
		if got.Network != want.Network || got.From != want.From || got.To != want.To || got.Out != want.Out || got.Unrelayed || !bytes.Equal(got.Data, want.Data) {
			t.Errorf("packet %d: %+v, want %+v", i, got, want)
		}
	}
	end()
	c.talk(near, "unseen")
	n.await(t, 4)
	others.await(t, 0)
}

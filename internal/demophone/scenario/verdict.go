package scenario

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/internal/demophone"
)

// Check is one line of the verdict.
type Check struct {
	Name   string
	OK     bool
	Detail string
}

const (
	// wantVerified is the share of the frames sent that must be verified at the far end, in percent.
	wantVerified = 98
	// wantFrames is the share of the frames that the talking time should bring, in percent: far
	// below 100, because a busy machine may start late, and far above what an accident brings. A call
	// goes on until it has them, or for the stage's patience.
	wantFrames = 50
)

// judge tells whether both directions of a call were heard as they were sent.
func (s *Stage) judge(l leg, talk time.Duration) (ok bool, detail string) {
	near, far := l.near.Stats(), l.far.Stats()
	heard := func(sent, heard demophone.StreamStats) bool {
		return heard.Verified*100 >= sent.Sent*wantVerified && heard.Wrong == 0
	}
	ok = l.spoken(talk) && heard(near, far) && heard(far, near) && near.Refused == 0 && far.Refused == 0
	edge := func(inside bool) netip.Addr {
		if inside {
			return s.plan.EdgeInside.Addr()
		}
		return s.plan.EdgeOutside.Addr()
	}
	if l.near.Media.Addr() != edge(!l.inward) || l.far.Media.Addr() != edge(l.inward) {
		return false, fmt.Sprintf("the audio addresses are not the edge's: %v, %v", l.near.Media, l.far.Media)
	}
	return ok, fmt.Sprintf("%s heard %s; %s heard %s", l.to, hearing(near.Sent, far), l.from, hearing(far.Sent, near))
}

func hearing(sent int, st demophone.StreamStats) string {
	return fmt.Sprintf("%d of %d frames (lost %d, wrong %d, jitter %v, RTCP %d)",
		st.Verified, sent, max(st.Lost, sent-st.Received), st.Wrong, st.Jitter.Round(10*time.Microsecond), st.Reports)
}

// Privacy checks that no SIP byte received outside names an inside address, and no packet came to
// a phone from anyone but the edge and the hosts of its own network.
func (s *Stage) Privacy() []Check {
	needle := []byte(strings.TrimSuffix(s.plan.Inside.Addr().String(), "0"))
	messages, size, leaks, skipped := 0, 0, []string(nil), 0
	for _, name := range []string{"bob", "registrar"} {
		kept, lost := s.taps[name].Messages()
		skipped += lost
		for _, m := range kept {
			if m.Sent {
				continue
			}
			messages, size = messages+1, size+len(m.Data)
			for line := range bytes.Lines(m.Data) {
				if bytes.Contains(line, needle) {
					leaks = append(leaks, fmt.Sprintf("%s: %s", name, bytes.TrimSpace(line)))
				}
			}
		}
	}
	c := Check{Name: "inside addresses stay inside", OK: len(leaks) == 0 && messages > 0 && skipped == 0,
		Detail: fmt.Sprintf("no inside address in %d SIP messages (%d bytes) received outside", messages, size)}
	if len(leaks) > 0 {
		slices.Sort(leaks)
		leaks = slices.Compact(leaks)
		c.Detail = fmt.Sprintf("%d different lines name one: %s", len(leaks), strings.Join(leaks[:min(3, len(leaks))], " | "))
	}
	return []Check{c}
}

// Timing says what the edge added. It judges nothing: the clock of a busy machine is no witness.
type Timing struct {
	// Audio is the one-way delay through the edge (worst call's median and 99th percentile), Direct
	// the same without an edge, measured just before.
	AudioP50, AudioP99, DirectP50, DirectP99 time.Duration
	// Signalling is the time from an INVITE's arrival at the edge's doorstep to its departure, as
	// the neighbours on both sides saw it; of N INVITEs.
	SignallingP50, SignallingMax time.Duration
	N                            int
}

// Timing returns the delays of all calls so far.
func (s *Stage) Timing() Timing {
	s.mu.Lock()
	legs := slices.Clone(s.legs)
	t := Timing{DirectP50: s.direct.DelayP50, DirectP99: s.direct.DelayP99}
	s.mu.Unlock()
	var invites []time.Duration
	for _, l := range legs {
		for _, st := range []demophone.StreamStats{l.near.Stats(), l.far.Stats()} {
			t.AudioP50, t.AudioP99 = max(t.AudioP50, st.DelayP50), max(t.AudioP99, st.DelayP99)
		}
		from, to := l.from, "registrar"
		if l.inward {
			from, to = "registrar", l.to
		}
		if d, ok := s.transit(l.near.ID, from, to); ok {
			invites = append(invites, d)
		}
	}
	slices.Sort(invites)
	t.N, t.SignallingP50, t.SignallingMax = len(invites), demophone.Percentile(invites, 50), demophone.Percentile(invites, 100)
	return t
}

// transit returns the time from the INVITE's first departure at one tap to its arrival at another.
func (s *Stage) transit(callID, from, to string) (time.Duration, bool) {
	sent, ok := s.first(from, true, callID)
	if !ok {
		return 0, false
	}
	got, ok := s.first(to, false, callID)
	return got.Sub(sent), ok
}

func (s *Stage) first(name string, sent bool, callID string) (time.Time, bool) {
	kept, _ := s.taps[name].Messages()
	for _, m := range kept {
		if m.Sent == sent && bytes.HasPrefix(m.Data, []byte("INVITE ")) && bytes.Contains(m.Data, []byte(callID)) {
			return m.At, true
		}
	}
	return time.Time{}, false
}

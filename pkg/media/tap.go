package media

import (
	"net/netip"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// A tap shows the packets of leases to somebody, each as it came and as it left. Only the user-space path sees packets, so
// a carrier leaves flows with a tap to it: nothing of them is missed, and flows without one cost a comparison with nil.

// Seen is a packet that a tap is shown.
type Seen struct {
	Time time.Time
	// Network is the one on which it passed.
	Network  string
	From, To netip.AddrPort
	// Out: the edge has sent it.
	Out bool
	// Unrelayed: it came and was not for the other side: its source may not be heard, or it was meant for the edge itself.
	Unrelayed bool
	// Data is the UDP payload, valid during the call.
	Data []byte
}

// tap is somebody who is shown packets.
type tap struct {
	wants func(label string) bool
	show  func(Seen)
}

// Tap has show called with every packet of the leases with a label that wants accepts, those that are open and those that
// are opened later, until end is called. A lease has one tap, the first that wants it. show is called by the path's
// goroutines, several at a time, must not block, and may be called for a moment after end. wants is called with the
// relay's lock held.
func (r *Relay) Tap(wants func(label string) bool, show func(Seen)) (end func()) {
	t := &tap{wants, show}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.taps = append(r.taps, t)
	r.tapLocked()
	return func() { r.untap(t) }
}

func (r *Relay) untap(t *tap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, o := range r.taps {
		if o == t {
			r.taps = append(r.taps[:i:i], r.taps[i+1:]...)
			r.tapLocked()
			return
		}
	}
}

// tapLocked gives every lease the tap that it is to have.
func (r *Relay) tapLocked() {
	for l := range r.leases {
		if t := r.tapOfLocked(l.req.Label); t != l.tap.Swap(t) {
			l.publishOrLogLocked()
		}
	}
}

func (r *Relay) tapOfLocked(label string) *tap {
	for _, t := range r.taps {
		if t.wants(label) {
			return t
		}
	}
	return nil
}

// Tapped tells whether somebody wants to see the packets of the flow: then no carrier may have it.
func (f *Flow) Tapped() bool { return f.tapped }

// Arrived shows packet b, which came to s from src at time now, to the tap of a flow that is tapped.
func (f *Flow) Arrived(s *Socket, src *Sockaddr, now time.Time, b []byte, relayed bool) {
	f.show(f.leg.side, Seen{Time: now, From: src.AddrPort(), To: s.Local, Unrelayed: !relayed, Data: b})
}

// Left shows packet b, which was sent, to the tap of a flow that is tapped.
func (f *Flow) Left(now time.Time, b []byte) {
	f.show(f.leg.side.Other(), Seen{Time: now, From: f.Out.Local, To: f.To.AddrPort(), Out: true, Data: b})
}

func (f *Flow) show(side pinhole.Side, s Seen) {
	l := f.leg.lease
	if t := l.tap.Load(); t != nil { // it may have ended since
		s.Network = l.req.Networks[side]
		t.show(s)
	}
}

package sipalg

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sdp"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// maxStreams bounds the pinholes of one session description.
const maxStreams = 16

// stream is the pinhole of one m= line.
type stream struct {
	lease    pinhole.Lease
	remote   [2]pinhole.Remote
	prev     *[2]pinhole.Remote // before the offer under way; nil = there was nothing
	kind     pinhole.Kind
	fresh    bool    // opened by the offer under way
	rejected bool    // the answer refused it
	hold     [2]bool // the side's last description puts it on hold
	silent   bool    // the relay hears nobody on it
	t120     bool    // it is a data conference's
	passed   bool    // of the first one: the offer was left alone, so its answer is too
	serial   uint32  // names it to the relay
	keys     *keying // its protection, where the edge changes it; nil: the media pass as they are
	prevKeys *keying // as prev
}

// offer says whose session description is at hand.
type offer struct {
	session *session
	streams *[]stream
	side    pinhole.Side
	flow    flow.Flow // it came by
	far     netip.Addr
	proto   flow.Proto // of the other side
	answer  bool
	early   bool // no 2xx yet: silence is no fault
	stale   bool // it may have been said before: it declares nothing
	passes  bool // its bytes stay as they are
}

// rewriteRequestBody relays the media of a request's body. It returns nil if the body stays as it is.
func (c *Core) rewriteRequestBody(t *tx, l *local, dest flow.Flow) ([]byte, error) {
	if has, err := c.describes(); !has {
		return nil, err
	}
	o := offer{session: t.session, side: pinhole.Side(t.fromSide), flow: t.up, far: dest.Remote.Addr(), proto: dest.Proto}
	s := t.session
	if s == nil || !negotiates(t.method) {
		return c.scrub(l)
	}
	o.streams, o.early = &s.streams, true
	if d := t.dialog; d != nil {
		o.streams, o.early = &d.streams, !d.confirmed
		o.answer = t.method == "ACK" || t.method == "PRACK" && d.offered == 1+int8(o.side.Other())
		d.offered = 0
		if !o.answer {
			d.offered = 1 + int8(o.side)
		}
	}
	t.offered = !o.answer
	return c.relayBody(o)
}

// rewriteResponseBody relays the media of a response's body.
func (c *Core) rewriteResponseBody(t *tx, f flow.Flow, up *local) ([]byte, error) {
	m := &c.m
	s := t.session
	has, err := c.describes()
	if s == nil || m.Status() >= 300 || !negotiates(t.method) {
		switch {
		case has:
			return c.scrub(up) // capabilities (RFC 3261 §11.2, §21.4.26)
		case err != nil:
			return []byte{}, nil // what cannot be read goes, and the answer stays
		}
		return nil, nil
	}
	d := t.dialog
	if d == nil && t.invite && len(m.To().Tag()) > 0 && m.Status() > 100 {
		var err error
		if d, err = c.dialogFor(s, m.To().Tag()); err != nil {
			return nil, err
		}
	}
	if !has {
		return nil, err
	}
	if d == nil {
		return c.scrub(up)
	}
	o := offer{
		session: s, streams: &d.streams, side: pinhole.Side(t.fromSide).Other(), flow: f, far: t.up.Remote.Addr(), proto: t.up.Proto,
		answer: t.offered, early: !d.confirmed && !(t.invite && m.Status() >= 200),
	}
	if t.invite && t.dialog == nil && t.state == txAccepted && d.confirmed {
		o.stale = true // the 2xx again: what it says may be older than a re-INVITE
		return c.relayBody(o)
	}
	d.offered = 0
	if !o.answer {
		d.offered = 1 + int8(o.side)
	}
	return c.relayBody(o)
}

// negotiates tells whether a method's descriptions are offers and answers (RFC 3264, 3262, 3311); those of
// others only tell capabilities.
func negotiates(method string) bool {
	switch method {
	case "INVITE", "ACK", "PRACK", "UPDATE":
		return true
	}
	return false
}

// errEncoded refuses a description that cannot be read: addresses in it would be missed.
var errEncoded = errors.New("the session description is encoded")

// bodyType returns the media type of the message at hand. A body of unknown type that begins as a session description
// is one: it was the default once (RFC 2543 §6.14), and is read as one.
func (c *Core) bodyType() []byte {
	ct := c.m.ContentType()
	if len(bytes.TrimSpace(ct)) == 0 && bytes.HasPrefix(c.m.Body(), []byte("v=")) {
		return []byte("application/sdp")
	}
	return ct
}

// describes tells whether the message at hand carries a session description.
func (c *Core) describes() (bool, error) {
	ct := c.bodyType()
	if len(c.m.Body()) == 0 || !sdp.IsSDP(ct) && !sdp.IsMultipart(ct) {
		return false, nil
	}
	if v, ok := c.m.Find(sipmsg.ContentEncoding); ok && !bytes.EqualFold(v, []byte("identity")) {
		return false, errEncoded
	}
	return true, nil
}

// ownerOf names who pays for a pinhole: the sender's host, or the call alone where it is a configured
// server, which makes calls for many.
func (c *Core) ownerOf(o *offer) string {
	if c.servers[o.flow.Remote.Addr().Unmap()] {
		return "call " + o.session.callID
	}
	return c.sourceKey(o.flow).String()
}

// remoteOf says what the m= line tells of its sender.
func (c *Core) remoteOf(o *offer, st *stream, md *sdp.Media) pinhole.Remote {
	src := o.flow.Remote.Addr().Unmap()
	r := pinhole.Remote{Source: src, Trusted: c.servers[src], Quiet: md.Hold || md.Direction != sdp.SendRecv} // hold: RFC 3264 §8.4
	r.Quiet = r.Quiet && md.Kind != sdp.T120                                                                  // there it says who shares something
	switch {
	case c.proves(o, st, md):
		r.Addr = netip.AddrPortFrom(src, discard) // not its candidates: its checks say where it is
		r.Quiet = md.Direction != sdp.SendRecv
		return r
	case md.Addr.IsValid() && !md.Addr.IsUnspecified():
		r.Addr = netip.AddrPortFrom(md.Addr, md.Port)
	case st.lease != nil && md.Addr.IsValid() && !md.Unset:
		r.Addr, r.RTCP = st.remote[o.side].Addr, st.remote[o.side].RTCP // hold of RFC 2543: the address is kept
		return r
	case md.AddrIsName || md.Unset:
		r.Addr = netip.AddrPortFrom(src, md.Port) // what the sender may name is itself
	default:
		return r
	}
	switch {
	case md.MuxRTCP && o.answer:
		r.RTCP = r.Addr
	case md.RTCPPort != 0:
		a := md.RTCPAddr
		if !a.IsValid() {
			a = md.Addr
		}
		r.RTCP = netip.AddrPortFrom(a, md.RTCPPort)
	}
	return r
}

func leaseKind(k sdp.MediaKind, stream bool) (pinhole.Kind, bool) {
	switch k {
	case sdp.RTP:
		return pinhole.RTP, true
	case sdp.UDPTL, sdp.UDPOther:
		return pinhole.UDP, true
	case sdp.MSRP, sdp.TCPOther, sdp.T120:
		return pinhole.TCP, true
	case sdp.BFCP:
		if stream {
			return pinhole.TCP, true
		}
		return pinhole.UDP, true
	}
	return 0, false
}

// scrubAddr is the edge's address on the network to which the description goes, for m= lines without a pinhole.
func (c *Core) scrubAddr(o *offer) netip.Addr {
	_, a, err := c.nets.Local(o.session.networks[o.side.Other()], pinhole.FamilyOf(o.far))
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// scrub rewrites the addresses of a description that opens nothing (capabilities in OPTIONS).
func (c *Core) scrub(l *local) ([]byte, error) {
	b, changed, err := sdp.RewriteBody(nil, c.bodyType(), c.m.Body(), func(part, dst []byte) ([]byte, error) {
		if err := c.sdp.Parse(part); err != nil {
			return nil, err
		}
		return c.sdp.AppendRewritten(dst, sdp.Rewrite{ICE: c.cfg.ICE.sdp(), Origin: true, Addr: l.public.Addr()}), nil
	})
	if !changed {
		return nil, err
	}
	return b, err
}

// confirm takes a 2xx: from now on silence counts, and the other early dialogs are over.
func (c *Core) confirm(s *session, d *dialog) {
	d.confirmed = true
	for i := range d.streams {
		st := &d.streams[i]
		if st.rejected {
			st.close()
		}
		st.fresh = false
		for side := pinhole.Near; st.lease != nil && side <= pinhole.Far; side++ {
			// An unanswered offer (it is in the ACK) has told nothing of one side yet.
			if r := &st.remote[side]; r.Source.IsValid() {
				r.Quiet = st.hold[side]
				_ = st.lease.Declare(side, *r) // it was accepted before
			}
		}
	}
	for _, other := range s.dialogs {
		if other != d && !other.confirmed {
			other.close()
		}
	}
	s.dialogs = slices.DeleteFunc(s.dialogs, func(o *dialog) bool { return o != d && !o.confirmed })
}

// rollback restores what was before an offer that was refused (RFC 3264 §8, RFC 3261 §14.1).
func (c *Core) rollback(d *dialog, side pinhole.Side) {
	d.offered = 0
	for i := range d.streams {
		st := &d.streams[i]
		switch {
		case st.lease == nil:
		case st.fresh:
			st.close()
		case st.prev != nil && st.prev[side].Source.IsValid():
			st.remote[side], st.keys = st.prev[side], st.prevKeys
			_ = st.lease.Declare(side, st.prev[side]) // it was accepted before
		}
	}
}

// undo closes what a refused offer has opened so far.
func (c *Core) undo(o *offer) {
	for i := range *o.streams {
		if st := &(*o.streams)[i]; st.fresh {
			st.close()
		}
	}
}

// fork gives d pinholes of its own on the caller's side, sharing the callee's side with base.
func (d *dialog) fork(base *dialog) error {
	d.streams = make([]stream, len(base.streams))
	for i := range base.streams {
		b := &base.streams[i]
		d.streams[i].passed = b.passed
		if b.lease == nil {
			continue
		}
		l, err := b.lease.Fork()
		if err != nil {
			return err
		}
		d.streams[i] = stream{lease: l, kind: b.kind, fresh: true, serial: b.serial, t120: b.t120, keys: b.keys.fork()}
		near := b.remote[pinhole.Near]
		d.streams[i].keys.protect(pinhole.Near, &near)
		if err := l.Declare(pinhole.Near, near); err != nil {
			return err
		}
		d.streams[i].remote[pinhole.Near] = near
	}
	return nil
}

func (d *dialog) close() {
	closeStreams(d.streams, nil)
	d.streams = nil
}

// keep remembers what a side has told so far.
func (st *stream) keep(side pinhole.Side) {
	if st.prev == nil {
		if !st.remote[side].Source.IsValid() {
			return // the first offer: most calls have no other
		}
		st.prev = new([2]pinhole.Remote)
	}
	st.prev[side], st.prevKeys = st.remote[side], st.keys
}

func (st *stream) close() {
	if st.lease != nil {
		st.lease.Close()
	}
	*st = stream{}
}

func closeStreams(streams []stream, r *Record) {
	for i := range streams {
		if st := &streams[i]; st.lease != nil {
			sum := st.lease.Close()
			if r != nil {
				r.Streams = append(r.Streams, NewStreamRecord(st.kind, sum))
			}
			st.lease = nil
		}
	}
}

// mediaStatus is the answer to a request whose media cannot be relayed: honest, never one-way.
func (c *Core) mediaStatus(err error) (int, string) {
	var bad *sdp.Error
	switch {
	case errors.Is(err, errEncoded):
		return 415, "Unsupported Content Encoding"
	case errors.Is(err, pinhole.ErrTarget):
		return 488, "Media Address Not Allowed"
	case errors.Is(err, errKeying):
		return 488, "Media Protection Not Acceptable"
	case errors.Is(err, errConference):
		return 488, "Data Conference Not Possible"
	case errors.As(err, &bad):
		return 400, "Bad Session Description"
	}
	return 503, "No Media Relay Available"
}

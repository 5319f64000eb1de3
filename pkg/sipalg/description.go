package sipalg

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/sdp"
)

// Of a body with session descriptions:
//
//	relayBody ─► arrange, the one that counts: place ─► lease ─► open, Declare
//	         └─► every description is written with the places

// relayBody rewrites every session description of the body. Where there are several, one counts, and the
// others are given the pinholes of that one.
func (c *Core) relayBody(o offer) ([]byte, error) {
	m := &c.m
	if sdp.IsSDP(c.bodyType()) {
		if err := c.arrange(&o, m.Body()); err != nil || o.passes {
			return nil, err
		}
		c.sdpBuf = c.sdp.AppendRewritten(c.sdpBuf[:0], c.rewriting(&o, c.places))
		return c.sdpBuf, nil
	}
	counts, number, err := sdp.Preferred(c.bodyType(), m.Body())
	if err != nil || counts == nil {
		return nil, err
	}
	if err := c.arrange(&o, counts); err != nil || o.passes {
		return nil, err
	}
	n := 0
	b, changed, err := sdp.RewriteBody(nil, c.bodyType(), m.Body(), func(part, dst []byte) ([]byte, error) {
		if err := c.sdp.Parse(part); err != nil {
			return nil, err
		}
		places := c.places
		if n != number {
			places = c.samePlaces(&o)
		}
		n++
		return c.sdp.AppendRewritten(dst, c.rewriting(&o, places)), nil
	})
	if err != nil && !o.answer {
		c.undo(&o)
	}
	if !changed {
		return nil, err
	}
	return b, err
}

func (c *Core) rewriting(o *offer, places []sdp.Placement) sdp.Rewrite {
	return sdp.Rewrite{Media: places, ICE: c.cfg.ICE.sdp(), Origin: true, Addr: c.scrubAddr(o), Session: c.webSession(o)}
}

// arrange opens or updates a pinhole for each m= line of the description that counts. It leaves the
// description in c.sdp, and where its lines are to be received in c.places.
func (c *Core) arrange(o *offer, raw []byte) error {
	if err := c.sdp.Parse(raw); err != nil {
		return err
	}
	if o.passes = c.cfg.ICE.sdp() == sdp.Pass && !c.converts(o) && c.leaveAlone(o); o.passes {
		return nil
	}
	n := c.sdp.NumMedia()
	if n > maxStreams {
		return pinhole.ErrLimit
	}
	live, rejected := 0, 0
	for i := range *o.streams {
		if st := &(*o.streams)[i]; !o.stale && !o.answer {
			st.keep(o.side) // also of those that the offer does not touch
		}
	}
	c.places = c.places[:0]
	for i := range n {
		p, err := c.place(o, i)
		if err != nil {
			if !o.answer {
				c.undo(o)
			}
			return err
		}
		c.places = append(c.places, p)
		if p.Reject {
			rejected++
		} else if c.sdp.Media(i).Port != 0 {
			live++
		}
	}
	if live == 0 && rejected > 0 && !o.answer {
		c.undo(o)
		return errConference
	}
	return nil
}

// leaveAlone tells, where ICE is to pass, whether the description in c.sdp speaks of ICE or answers one that did. Other
// addresses in c= and m= than a candidate's would end ICE (RFC 8839 §4.2.5).
func (c *Core) leaveAlone(o *offer) bool {
	if o.answer || o.stale {
		return len(*o.streams) > 0 && (*o.streams)[0].passed
	}
	passes := false
	for i := range c.sdp.NumMedia() {
		md := c.sdp.Media(i)
		passes = passes || md.ICE && md.Port != 0
	}
	if len(*o.streams) == 0 && passes {
		*o.streams = append(*o.streams, stream{})
	}
	if len(*o.streams) > 0 {
		(*o.streams)[0].passed = passes
	}
	return passes
}

// samePlaces gives the m= lines of another description, which is in c.sdp, the pinholes of the one that counts.
// A line for which that has none is rejected: nobody would hear it.
func (c *Core) samePlaces(o *offer) []sdp.Placement {
	places := make([]sdp.Placement, c.sdp.NumMedia())
	for i := range places {
		md := c.sdp.Media(i)
		kind, media := leaseKind(md.Kind, md.Stream)
		switch {
		case !media || md.Port == 0:
		case i < len(c.places) && c.places[i].Addr.IsValid() && fits((*o.streams)[i].kind, kind):
			places[i] = c.places[i]
		default:
			places[i].Reject = true
		}
	}
	return places
}

// fits tells whether a pinhole can carry media of another kind: UDP and TCP cannot stand in for each other.
func fits(have, want pinhole.Kind) bool { return (have == pinhole.TCP) == (want == pinhole.TCP) }

// place finds the local address for m= line i.
func (c *Core) place(o *offer, i int) (sdp.Placement, error) {
	md := c.sdp.Media(i)
	kind, ok := leaseKind(md.Kind, md.Stream)
	for len(*o.streams) <= i {
		*o.streams = append(*o.streams, stream{})
	}
	st := &(*o.streams)[i]
	if !ok || md.Port == 0 && !(md.BundleOnly && st.lease != nil) {
		if o.answer {
			told := c.told(o, st, i)
			st.rejected = true
			if !o.early {
				st.close()
			}
			return sdp.Placement{Security: told}, nil
		}
		if st.lease == nil && c.profile(o, o.side) == WebRTC {
			return c.exclude(o, st, i), nil
		}
		return sdp.Placement{Security: c.told(o, st, i)}, nil
	}
	// Bundled m= lines share the port of the first one (RFC 8843 §7.2).
	for j := range i {
		if other := c.sdp.Media(j); md.Port != 0 && other.Port == md.Port && other.Addr == md.Addr && (*o.streams)[j].lease != nil {
			if (*o.streams)[j].keys != nil {
				return c.exclude(o, st, i), nil // a stream of its own would be needed
			}
			return c.places[j], nil
		}
	}
	if st.keys.excludes(o) || !o.answer && md.Kind != sdp.RTP && c.profile(o, o.side) == WebRTC {
		return c.exclude(o, st, i), nil // a browser's data channel
	}
	st.rejected = false
	if err := c.lease(o, st, kind, i); err != nil {
		return c.refuseLine(o, st, md, err)
	}
	lo := st.lease.Local(o.side.Other())
	return sdp.Placement{Addr: lo.Addr, RTCP: lo.RTCP, Security: c.told(o, st, i)}, nil
}

// lease opens the pinhole of m= line i, if it has none that will do, and declares its sender.
func (c *Core) lease(o *offer, st *stream, kind pinhole.Kind, i int) error {
	md := c.sdp.Media(i)
	r := c.remoteOf(o, st, md)
	hold := r.Quiet
	r.Quiet = hold || o.early
	if st.lease != nil && (!fits(st.kind, kind) || st.t120 != (md.Kind == sdp.T120) || !sameFamily(st.lease.Local(o.side).Addr.Addr(), r.Addr.Addr())) {
		if o.answer && st.keys != nil {
			return errKeying // the offer's keys go with its ports
		}
		st.close()
	}
	keys, err := c.keysFor(o, st, i)
	if err != nil {
		c.drop("keying_refused")
		return err
	}
	keys.protect(o.side, &r)
	if st.lease == nil {
		if err := c.open(o, st, kind, md); err != nil {
			return err
		}
	}
	if o.stale {
		return nil
	}
	if err := st.lease.Declare(o.side, r); err != nil {
		return err
	}
	st.remote[o.side], st.hold[o.side], st.keys = r, hold, keys
	if o.answer {
		st.fresh = false
	}
	return nil
}

// errConference refuses a data conference that cannot be told from another one, or for which there is no relay.
var errConference = errors.New("no data conference with this host now")

// refuseLine decides what becomes of an m= line without a pinhole. A data conference is not the whole call: it is
// rejected where the edge has no relay for it, or where it has been accepted; everything else fails as a whole.
func (c *Core) refuseLine(o *offer, st *stream, md *sdp.Media, err error) (sdp.Placement, error) {
	target := errors.Is(err, pinhole.ErrTarget)
	if target {
		c.drop("target_refused")
	}
	if md.Kind != sdp.T120 || target {
		return sdp.Placement{}, err
	}
	c.drop("conference_refused")
	if !o.answer && !errors.Is(err, pinhole.ErrNetwork) {
		return sdp.Placement{}, fmt.Errorf("%w: %w", errConference, err)
	}
	st.close()
	return sdp.Placement{Reject: true}, nil
}

func sameFamily(a, b netip.Addr) bool {
	return !b.IsValid() || a.Unmap().Is4() == b.Unmap().Is4()
}

// open asks the relay for a pinhole.
func (c *Core) open(o *offer, st *stream, kind pinhole.Kind, md *sdp.Media) error {
	s := o.session
	var fam [2]pinhole.Family
	fam[o.side] = pinhole.FamilyOf(md.Addr)
	if fam[o.side] == pinhole.AnyFamily || c.proves(o, st, md) {
		fam[o.side] = pinhole.FamilyOf(o.flow.Remote.Addr())
	}
	fam[o.side.Other()] = pinhole.FamilyOf(o.far)
	opener := c.opener
	if md.Kind == sdp.T120 {
		if opener = c.conferences; opener == nil {
			return pinhole.ErrNetwork
		}
	}
	s.serial++
	l, err := opener.Open(context.Background(), pinhole.Request{
		Owner: c.ownerOf(o), Label: s.callID, Kind: kind, Networks: s.networks, Families: fam,
		OnIdle: s.idleFunc(c, s.serial),
	})
	if err != nil {
		c.log.Warn("no pinhole", zap.String("call_id", s.callID), zap.Stringer("peer", o.flow.Remote), zap.Error(err))
		return err
	}
	*st = stream{lease: l, kind: kind, fresh: true, serial: s.serial, t120: md.Kind == sdp.T120}
	return nil
}

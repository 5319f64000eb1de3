package sipalg

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strconv"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/sdp"
)

// Browsers (WebRTC, RFC 8829) at a plain phone: their ICE, their DTLS, their multiplexing of RTP and RTCP and of m-lines end at the
// edge, and the phone sees nothing of it. The codecs are between the two, as nothing is transcoded.
//
//	browser   UDP/TLS/RTP/SAVPF, ICE, mid, rtcp-mux, BUNDLE ──► webLeg.heard ──► RTP/AVP   phone
//	browser ◄── ice-lite, one candidate, fingerprint ── webLeg.told ◄────────── RTP/AVP   phone
//
// One m-line of a bundle is carried, as each stream has ports of its own here; the others are rejected.

// discard is the port that stands for one which is not known (RFC 8840 §4.1.1).
const discard = 9

// webLeg is what is agreed on with a browser about one stream. It never changes.
type webLeg struct {
	// own are the credentials of the edge; its Peer is empty before the browser has spoken.
	own pinhole.ICE
	// pwd is the browser's password: another one, or another user fragment, is an ICE restart.
	pwd string
	mid string
	// mux says that RTCP is at RTP's port, bundled that the browser groups the m-line.
	mux, bundled bool
}

// newWebLeg returns what the edge offers to a browser for m-line i.
func newWebLeg(i int) *webLeg {
	return &webLeg{own: newCredentials(), mid: strconv.Itoa(i), mux: true, bundled: true}
}

// newCredentials returns a user fragment and a password (RFC 8839 §5.4: at least 24 and 128 random bits).
func newCredentials() pinhole.ICE {
	var b [6 + 18]byte
	rand.Read(b[:]) // it never fails
	text := base64.StdEncoding.EncodeToString(b[:])
	return pinhole.ICE{Ufrag: text[:8], Pwd: text[8:]}
}

// heard returns what is agreed on once the browser has spoken. An offer with other credentials than before is an ICE restart,
// which is answered by others too (RFC 8839 §4.4.1.1.1); the edge itself never asks for one.
func (w *webLeg) heard(s *sdp.Session, i int, offer bool) (*webLeg, error) {
	md := s.Media(i)
	ufrag, pwd, ok := s.Credentials(i)
	switch {
	case !ok:
		return nil, fmt.Errorf("no ICE: %w", errKeying)
	case md.Lite:
		return nil, fmt.Errorf("ICE of two lite agents: %w", errKeying)
	}
	var n webLeg
	if w != nil {
		n = *w
	}
	if offer {
		if w == nil || w.own.Peer != "" && (w.own.Peer != ufrag || w.pwd != pwd) {
			n.own = newCredentials()
		}
		n.mid, n.mux, n.bundled = string(md.MID), md.MuxRTCP, md.InBundle
	} else {
		n.mux = n.mux && md.MuxRTCP
	}
	n.own.Peer, n.pwd = ufrag, pwd
	return &n, nil
}

// protect tells the relay how the browser proves where it is.
func (w *webLeg) protect(r *pinhole.Remote) {
	if w == nil || w.own.Peer == "" {
		return
	}
	r.ICE = &w.own
	if w.mux {
		r.RTCP = r.Addr
	}
}

// told returns the attributes that tell the browser of the edge's end of the transport.
func (w *webLeg) told(local pinhole.Local) []string {
	lines := []string{"ice-ufrag:" + w.own.Ufrag, "ice-pwd:" + w.own.Pwd, "msid:edged"}
	candidate := func(component int, at string, priority int) string {
		return fmt.Sprintf("candidate:1 %d udp %d %s typ host", component, priority-component, at)
	}
	const priority = 126<<24 + 65535<<8 + 256 // RFC 8445 §5.1.2.1
	lines = append(lines, candidate(1, fmt.Sprintf("%s %d", local.Addr.Addr(), local.Addr.Port()), priority))
	if w.mux {
		lines = append(lines, "rtcp-mux")
	}
	if !w.mux || w.own.Peer == "" { // it may refuse to multiplex
		lines = append(lines, candidate(2, fmt.Sprintf("%s %d", local.RTCP.Addr(), local.RTCP.Port()), priority))
	}
	return append(lines, "end-of-candidates")
}

// fork returns what is offered to another browser with the same offer.
func (w *webLeg) fork() *webLeg {
	if w == nil {
		return nil
	}
	f := *w
	f.own.Peer, f.pwd, f.mux = "", "", true
	return &f
}

// proves tells whether the sender of an m-line proves by ICE where it is.
func (c *Core) proves(o *offer, st *stream, md *sdp.Media) bool {
	if o.answer || o.stale {
		return st.keys != nil && st.keys.legs[o.side].web != nil
	}
	return md.Kind == sdp.RTP && c.profile(o, o.side) == WebRTC
}

// webSession returns the attributes of the session level for a browser: a lite agent says so there, and BUNDLE names what has a
// transport, which is one m-line (RFC 8843 §7.3).
func (c *Core) webSession(o *offer) []string {
	for i := range min(len(*o.streams), c.sdp.NumMedia()) {
		k := (*o.streams)[i].keys
		if k == nil || k.excluded || c.sdp.Media(i).Port == 0 {
			continue
		}
		if w := k.legs[o.side.Other()].web; w != nil {
			lines := []string{"ice-lite"}
			if w.bundled && w.mid != "" {
				lines = append(lines, "group:BUNDLE "+w.mid)
			}
			return lines
		}
	}
	return nil
}

// exclude rejects an m-line that the edge cannot carry, and remembers how its sender wants it to be rejected.
func (c *Core) exclude(o *offer, st *stream, i int) sdp.Placement {
	if !o.answer {
		md := c.sdp.Media(i)
		k := &keying{excluded: true}
		k.legs[o.side] = keyedLeg{profile: string(md.Proto)}
		if c.profile(o, o.side) == WebRTC {
			k.legs[o.side].web = &webLeg{mid: string(md.MID)}
		}
		st.close()
		st.keys = k
	}
	return sdp.Placement{Reject: true, Security: c.told(o, st, i)}
}

// excludes tells whether an answer takes what the edge has rejected.
func (k *keying) excludes(o *offer) bool { return o.answer && k != nil && k.excluded }

package sipalg

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/sdp"
)

// Media whose protection changes on the way: one network speaks plain RTP and the other SRTP, as media_profile says.
// With SDES (RFC 4568) each side is told keys of the edge's own, and tells the edge its own ones:
//
//	offer   RTP/SAVP, keys of A ──► A's leg: one line taken     ──► RTP/AVP
//	answer  RTP/SAVP, the edge's key for A ◄── A's leg          ◄── RTP/AVP
//
//	offer   RTP/AVP ──► B's leg: keys of the edge's own         ──► RTP/SAVP, these keys
//	answer  RTP/AVP ◄── B's leg: the line that B took           ◄── RTP/SAVP, B's key
//
// What an offer and an answer have said is one keying, never changed: a refused offer goes back to the last one.

// The values of MediaProfile.
const (
	// AsOffered leaves it to the peers.
	AsOffered MediaProfile = "as-offered"
	// PlainRTP is RTP without protection.
	PlainRTP MediaProfile = "rtp"
	// SDES is SRTP with keys in the session descriptions.
	SDES MediaProfile = "srtp"
	// DTLS is SRTP with keys that the peers find at their media ports.
	DTLS MediaProfile = "dtls-srtp"
	// WebRTC is DTLS as browsers speak it: with ICE, of which the edge is the lite half.
	WebRTC MediaProfile = "webrtc"
)

// MediaProfile is how RTP is protected on a network.
type MediaProfile string

// errKeying refuses media that cannot be protected as the network's profile says, or whose protection cannot be read.
var errKeying = errors.New("the media's protection is not what the network's profile says")

// keying is how the media of a stream are protected on its two sides.
type keying struct {
	legs [2]keyedLeg
	// excluded says that the edge has rejected the stream, see exclude.
	excluded bool
}

// keyedLeg is one side of a keying.
type keyedLeg struct {
	// how is plain, withSDES or withDTLS.
	how protection
	// profile is what the peer's offer said, which answers to it repeat.
	profile string
	// offered are the lines of the edge's last offer to the peer, tag the one in use.
	offered []sdp.Crypto
	tag     uint32
	// srtp are the keys in use, nil before the answer.
	srtp *pinhole.SRTP
	// dtls says who the peer is that finds keys with the relay, nil before the answer.
	dtls *pinhole.DTLS
	// web is what else is agreed on with a browser, nil: it is none.
	web *webLeg
}

// protection is how an m-line's sender wants it protected.
type protection uint8

const (
	plain protection = iota
	// optional is RTP/AVP with keys: SRTP for those who can (RFC 8643).
	optional
	withSDES
	withDTLS
)

func protectionOf(md *sdp.Media) protection {
	proto := string(md.Proto)
	savp := strings.EqualFold(proto, "RTP/SAVP") || strings.EqualFold(proto, "RTP/SAVPF")
	switch {
	case savp && (md.Cryptos > 0 || !md.Fingerprint):
		return withSDES
	case savp || !strings.EqualFold(proto, "RTP/AVP") && !strings.EqualFold(proto, "RTP/AVPF"):
		return withDTLS
	case md.Cryptos > 0:
		return optional
	}
	return plain
}

func (c *Core) profile(o *offer, side pinhole.Side) MediaProfile {
	if len(c.cfg.MediaProfile) == 0 {
		return AsOffered
	}
	proto, network := o.flow.Proto, o.session.networks[side]
	if side != o.side {
		proto = o.proto
	}
	for _, key := range [...]string{proto.String() + "://" + network, network} {
		if p := c.cfg.MediaProfile[key]; p != "" {
			return p
		}
	}
	return AsOffered
}

// converts tells whether the protection of media may have to change between the networks of a session.
func (c *Core) converts(o *offer) bool {
	return c.profile(o, pinhole.Near) != AsOffered || c.profile(o, pinhole.Far) != AsOffered
}

// keysFor returns the keying of m-line i with what its description says, nil if its media pass as they are.
func (c *Core) keysFor(o *offer, st *stream, i int) (*keying, error) {
	md := c.sdp.Media(i)
	switch {
	case o.stale:
		return st.keys, nil
	case md.Kind != sdp.RTP, o.answer && st.keys == nil:
		return nil, nil
	case o.answer:
		return c.keysAnswered(o, *st.keys, i)
	case !c.converts(o):
		return nil, nil
	}
	return c.keysOffered(o, st, i)
}

// keysOffered takes an offer: its sender's keys, and how the other side is to be spoken to.
func (c *Core) keysOffered(o *offer, st *stream, i int) (*keying, error) {
	md := c.sdp.Media(i)
	from, to := c.profile(o, o.side), c.profile(o, o.side.Other())
	has := protectionOf(md)
	switch {
	case !from.takes(has):
		return nil, fmt.Errorf("media %d is %s: %w", i, md.Proto, errKeying)
	case has != optional && to.takes(has) && from != WebRTC && to != WebRTC:
		return nil, nil
	}
	var k keying
	if st.keys != nil && !st.keys.excluded {
		k = *st.keys
	}
	near, far := &k.legs[o.side], &k.legs[o.side.Other()]
	near.profile = string(md.Proto)
	if err := c.takeOffer(near, i, has, from); err != nil {
		return nil, fmt.Errorf("media %d: %w", i, err)
	}
	if to == AsOffered && has != optional {
		far.offer(has)
	} else {
		far.offer(map[MediaProfile]protection{SDES: withSDES, DTLS: withDTLS, WebRTC: withDTLS}[to])
	}
	if to == WebRTC && far.web == nil {
		far.web = newWebLeg(i)
	}
	return &k, nil
}

// takes tells whether media that are protected so are what the profile says.
func (p MediaProfile) takes(has protection) bool {
	switch p {
	case PlainRTP:
		return has == plain || has == optional
	case SDES:
		return has == withSDES || has == optional
	case DTLS, WebRTC:
		return has == withDTLS
	}
	return true
}

// takeOffer takes the keys of an offer from a network with a profile.
func (c *Core) takeOffer(l *keyedLeg, i int, has protection, from MediaProfile) error {
	switch {
	case has == withDTLS:
		return l.meet(&c.sdp, i, true, from == WebRTC)
	case has != plain && from != PlainRTP:
		err := l.take(c.sdp.Cryptos(i))
		if err == nil || has != optional || from == SDES {
			l.how, l.dtls = withSDES, nil
			return err
		}
	}
	*l = keyedLeg{profile: l.profile}
	return nil
}

// meet takes what a description says of a peer that finds keys with the relay. It is the peer that begins unless it
// insists: then the relay need not know where it sends from (RFC 5763 §5).
func (l *keyedLeg) meet(s *sdp.Session, i int, offer, browser bool) error {
	md := s.Media(i)
	hash, value, ok := s.Certificate(i)
	if h, known := pinhole.FingerprintHash(hash); !ok || !known || len(value) != h.Size() {
		return fmt.Errorf("no fingerprint that can be compared: %w", errKeying)
	}
	var web *webLeg
	switch {
	case browser:
		var err error
		if web, err = l.web.heard(s, i, offer); err != nil {
			return err
		}
	case offer && md.ICE:
		return fmt.Errorf("ICE does not end here: %w", errKeying)
	}
	d := &pinhole.DTLS{Hash: hash, Fingerprint: value}
	switch setup := string(md.Setup); {
	case strings.EqualFold(setup, "passive"):
		d.Client = true
	case strings.EqualFold(setup, "actpass") && offer:
		d.Client = l.dtls != nil && l.dtls.Client // RFC 8842 §5.5: the association stays as it is
	case strings.EqualFold(setup, "active"):
	default:
		return fmt.Errorf("setup %q: %w", setup, errKeying)
	}
	*l = keyedLeg{profile: l.profile, how: withDTLS, dtls: d, web: web}
	return nil
}

// take takes the first line of an offer that the edge can use, and makes a key of its own unless it has one for that suite.
func (l *keyedLeg) take(lines []sdp.Crypto) error {
	for _, line := range lines {
		suite, ok := pinhole.SuiteOf(string(line.Suite))
		if !ok || len(line.Key) != suite.KeyLen+suite.SaltLen {
			continue
		}
		keys := &pinhole.SRTP{Suite: suite.Name, In: line.Key, InMKI: line.MKI}
		if l.srtp != nil && l.srtp.Suite == suite.Name {
			keys.Out = l.srtp.Out
		} else {
			keys.Out = newKey(suite)
		}
		l.tag, l.offered = line.Tag, nil
		if !keys.Equal(l.srtp) {
			l.srtp = keys
		}
		return nil
	}
	return fmt.Errorf("none of %d keys can be used: %w", len(lines), errKeying)
}

// offer says what the edge offers at this side: no protection, or SRTP, with the key in use or new ones.
func (l *keyedLeg) offer(how protection) {
	if how != l.how {
		*l = keyedLeg{profile: l.profile, how: how}
	}
	switch {
	case how != withSDES:
	case l.srtp != nil:
		l.offered = []sdp.Crypto{{Tag: l.tag, Suite: []byte(l.srtp.Suite), Key: l.srtp.Out}}
	case len(l.offered) == 0:
		for i, name := range []string{"AEAD_AES_256_GCM", "AES_CM_128_HMAC_SHA1_80"} {
			suite, _ := pinhole.SuiteOf(name)
			l.offered = append(l.offered, sdp.Crypto{Tag: uint32(i + 1), Suite: []byte(name), Key: newKey(suite)})
		}
	}
}

func newKey(s pinhole.Suite) []byte {
	k := make([]byte, s.KeyLen+s.SaltLen)
	rand.Read(k) // it never fails
	return k
}

// keysAnswered takes an answer: which of the edge's keys its sender took, and its own.
func (c *Core) keysAnswered(o *offer, k keying, i int) (*keying, error) {
	md := c.sdp.Media(i)
	leg := &k.legs[o.side]
	has := protectionOf(md)
	if leg.how == plain && has == optional {
		has = plain
	}
	switch {
	case has != leg.how:
		return nil, fmt.Errorf("media %d answers with %s: %w", i, md.Proto, errKeying)
	case has == plain:
		return &k, nil
	case has == withDTLS:
		if err := leg.meet(&c.sdp, i, false, leg.web != nil); err != nil {
			return nil, fmt.Errorf("media %d: %w", i, err)
		}
		return &k, nil
	}
	lines := c.sdp.Cryptos(i)
	if len(lines) != 1 {
		return nil, fmt.Errorf("media %d answers with %d keys: %w", i, len(lines), errKeying)
	}
	line := lines[0]
	n := slices.IndexFunc(leg.offered, func(f sdp.Crypto) bool { return f.Tag == line.Tag })
	if n < 0 || string(leg.offered[n].Suite) != string(line.Suite) || len(line.Key) != len(leg.offered[n].Key) {
		return nil, fmt.Errorf("media %d answers with a key that was not offered: %w", i, errKeying)
	}
	keys := &pinhole.SRTP{Suite: string(line.Suite), In: line.Key, InMKI: line.MKI, Out: leg.offered[n].Key}
	leg.tag = line.Tag
	if !keys.Equal(leg.srtp) {
		leg.srtp = keys
	}
	return &k, nil
}

// protect tells the relay how the peer at a side is protected.
func (k *keying) protect(side pinhole.Side, r *pinhole.Remote) {
	if k != nil {
		r.SRTP, r.DTLS = k.legs[side].srtp, k.legs[side].dtls
		k.legs[side].web.protect(r)
	}
}

// told returns what the receiver of m-line i is told of its protection, nil if that stays as it is.
func (c *Core) told(o *offer, st *stream, i int) *sdp.Security {
	if st.keys == nil || c.sdp.Media(i).Kind != sdp.RTP && !st.keys.excluded {
		return nil
	}
	leg := &st.keys.legs[o.side.Other()]
	sec := c.toldKeys(o, leg, i)
	if leg.web != nil || st.keys.legs[o.side].web != nil {
		sec.Ends = true
	}
	if leg.web != nil {
		sec.MID = leg.web.mid
		if md := c.sdp.Media(i); md.Hold && md.Direction == sdp.SendRecv {
			sec.Attributes = append(sec.Attributes, "sendonly") // a hold by 0.0.0.0 (RFC 2543) says nothing to a browser
		}
		if st.lease != nil {
			sec.Attributes = append(sec.Attributes, leg.web.told(st.lease.Local(o.side.Other()))...)
		}
	}
	return sec
}

// toldKeys returns what is told of the keys alone.
func (c *Core) toldKeys(o *offer, leg *keyedLeg, i int) *sdp.Security {
	if o.answer {
		sec := &sdp.Security{Profile: leg.profile}
		switch {
		case leg.dtls != nil:
			sec.Attributes = c.certificate(map[bool]string{true: "active", false: "passive"}[leg.dtls.Client])
		case leg.srtp != nil:
			own := sdp.Crypto{Tag: leg.tag, Suite: []byte(leg.srtp.Suite), Key: leg.srtp.Out}
			sec.Attributes = []string{string(own.AppendCrypto(nil))}
		}
		return sec
	}
	md := c.sdp.Media(i)
	if md.Kind != sdp.RTP {
		return &sdp.Security{Profile: string(md.Proto)}
	}
	sec := &sdp.Security{Profile: profileFor(leg.how, string(md.Proto))}
	if leg.web != nil {
		sec.Profile = "UDP/TLS/RTP/SAVPF" // JSEP (RFC 8829 §5.1.2)
	}
	if leg.how == withDTLS {
		sec.Attributes = c.certificate("actpass")
	}
	for _, line := range leg.offered {
		sec.Attributes = append(sec.Attributes, string(line.AppendCrypto(nil)))
	}
	return sec
}

// profileFor returns the profile of an offer that came with another one. Feedback (RFC 4585) is kept where SRTP is
// spoken; of plain phones many refuse it.
func profileFor(how protection, proto string) string {
	profile := map[protection]string{plain: "RTP/AVP", withSDES: "RTP/SAVP", withDTLS: "UDP/TLS/RTP/SAVP"}[how]
	if how != plain && proto[len(proto)-1]|0x20 == 'f' {
		profile += "F"
	}
	return profile
}

// certificate returns the attributes that say who the relay is in a handshake.
func (c *Core) certificate(setup string) []string {
	return []string{"fingerprint:" + c.fingerprint, "setup:" + setup}
}

// fork returns the keying of another answer to the same offer: its Near side has a port of its own, and so a key.
func (k *keying) fork() *keying {
	if k == nil {
		return nil
	}
	f := *k
	if near := &f.legs[pinhole.Near]; near.srtp != nil {
		suite, _ := pinhole.SuiteOf(near.srtp.Suite)
		keys := *near.srtp
		keys.Out = newKey(suite)
		near.srtp = &keys
	}
	far := &f.legs[pinhole.Far]
	far.srtp, far.dtls, far.web = nil, nil, far.web.fork()
	return &f
}

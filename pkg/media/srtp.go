package media

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	rtcpheader "github.com/pion/rtcp"
	rtpheader "github.com/pion/rtp"
	"github.com/pion/srtp/v3"

	"edged.dev/edged/pkg/pinhole"
)

// SRTP (RFC 3711) that ends at the edge: a peer whose Remote has keys gets and sends protected packets, whatever the
// other one does. Such flows stay in user space.
//
//	peer, SRTP ──► guard.open ──► counted, RTP ──► guard.seal ──► peer, SRTP
//	peer, RTP  ──────────────────►             ──────────────────► peer, RTP
//
// A guard holds the state of one peer's keys: rollover counters, replay windows, SRTCP indices. It lives as long as
// the keys do, whatever else signalling says meanwhile. When the peer gets new ones, it is still heard with the old
// ones until its first packet with the new ones: it goes on with them until it has our answer.

const (
	// replayWindow is how far a packet may be behind the newest one (RFC 3711 §3.3.2: 64 or more).
	replayWindow = 128
	// maxSSRC bounds the sources in one direction: each has a state of its own.
	maxSSRC = 64
	// MaxPacket is the length of the longest UDP datagram.
	MaxPacket = 1<<16 - 1
)

var (
	errSources = errors.New("more sources than one stream has")
	errNoKeys  = errors.New("the handshake has not ended")
	errShort   = errors.New("too short for RTP")
	errSuite   = errors.New("no such SRTP suite or key length")
)

// Scratch holds a packet on its way through Convert. Each goroutine needs one of its own.
type Scratch struct {
	plain, sealed [MaxPacket]byte
}

// Protected tells whether packets must go through Convert, and so by no other way than user space.
func (f *Flow) Protected() bool { return f.checks() != nil || f.Counters.srtp.Load() != nil }

// Convert counts packet b, which came at time now, and returns it as the other peer is to get it, and the flow that says where
// that is: the packet is valid until s is used again. It returns nil, and has counted the drop, for what is not RTP or
// RTCP, what does not bear the peer's protection, and where no peer is known; what is for the edge itself it answers. It
// may be called concurrently.
func (f *Flow) Convert(s *Scratch, now time.Time, b []byte) (*Flow, []byte) {
	c := f.Counters.srtp.Load()
	if c == nil { // since just now
		c = &conversion{}
	}
	switch {
	case f.checks() != nil && isSTUN(b):
		if !f.checks().answer(f.From.AddrPort(), now, b) {
			f.Counters.Drop(BadCheck, 1)
		}
		return nil, nil
	case isDTLS(b) && c.from != nil && c.from.association != nil && f.From.Valid():
		c.from.association.receive(f.From.AddrPort(), b)
		return nil, nil
	case len(b) < 8 || b[0]>>6 != 2:
		f.Counters.Drop(BadSRTP, 1)
		return nil, nil
	}
	control := f.controls(b)
	var err error
	if c.from != nil {
		if b, err = c.from.open(s.plain[:0], b, control); err != nil {
			f.Counters.Drop(BadSRTP, 1)
			return nil, nil
		}
	}
	f.Counters.Receive(now, b)
	out := f
	if checks := f.checks(); control && checks != nil && checks.control != nil {
		out = checks.control
	}
	if !out.To.Valid() {
		f.Counters.Drop(NoPeer, 1)
		return nil, nil
	}
	if c.to != nil {
		if b, err = c.to.seal(s.sealed[:0], b, control); err != nil {
			f.Counters.Drop(BadSRTP, 1)
			return nil, nil
		}
	}
	return out, b
}

// isDTLS tells whether a packet at a media port is DTLS (RFC 7983).
func isDTLS(b []byte) bool { return len(b) > 0 && b[0] >= 20 && b[0] <= 63 }

// controls tells whether an RTP or RTCP packet of the flow is RTCP (RFC 5761 §4).
func (f *Flow) controls(b []byte) bool {
	return f.Counters.kind == rtcpStream || b[1] >= 192 && b[1] <= 223
}

// greeting is what becomes of a packet whose source is not confirmed.
type greeting uint8

const (
	// friend: nothing speaks against the source.
	friend greeting = iota
	// stranger: the packet does not bear the peer's keys.
	stranger
	// handshake: it was taken for one, which confirms its source if it succeeds.
	handshake
)

// greet looks at a packet whose source is not confirmed, and changes nothing.
func (f *Flow) greet(src netip.AddrPort, b []byte) greeting {
	c := f.Counters.srtp.Load()
	switch {
	case c == nil || c.from == nil:
		return friend
	case c.from.association != nil && isDTLS(b):
		c.from.association.receive(src, b)
		return handshake
	case len(b) < 8 || b[0]>>6 != 2 || !c.from.bears(b, f.controls(b)):
		return stranger
	}
	return friend
}

// conversion is what becomes of the packets that arrive at a leg: from takes the protection off, to puts one on. Either
// may be nil. It never changes.
type conversion struct {
	from, to *guard
}

// guardLocked returns the guard of what its peer sends to the leg, nil if nothing is protected.
func (g *leg) guardLocked() *guard {
	if c := g.srtp.Load(); c != nil {
		return c.from
	}
	return nil
}

// rekeyLocked protects what the peer at s sends and gets as signalling now says. An error changes nothing.
func (l *lease) rekeyLocked(s pinhole.Side, remote *pinhole.Remote) error {
	var guards [2][2]*guard
	for side := range l.legs {
		for c, g := range l.legs[side] {
			if g != nil {
				guards[side][c] = g.guardLocked()
			}
		}
	}
	before := guards[s]
	var err error
	if remote.DTLS != nil {
		guards[s], err = l.associatedLocked(s, before, remote)
	} else {
		if g := before[rtp]; g != nil && g.association != nil {
			guards[s][rtp] = nil
		}
		guards[s][rtp], err = guards[s][rtp].rekey(remote.SRTP)
		guards[s][rtcp] = guards[s][rtp]
	}
	gone := before
	if err != nil {
		gone, guards[s] = guards[s], before
	}
	for _, g := range gone {
		if g != guards[s][rtp] && g != guards[s][rtcp] {
			g.close()
		}
	}
	if err != nil {
		return err
	}
	for side := range l.legs {
		for c, g := range l.legs[side] {
			if g == nil {
				continue
			}
			to := &conversion{from: guards[side][c], to: guards[1-side][c]}
			if *to == (conversion{}) {
				to = nil
			}
			g.srtp.Store(to)
		}
	}
	return nil
}

// associatedLocked returns the guards of a peer that finds keys with the relay: those that are, if the peer is the same.
func (l *lease) associatedLocked(s pinhole.Side, guards [2]*guard, remote *pinhole.Remote) ([2]*guard, error) {
	for c, g := range l.legs[s] {
		at := declaredOf(remote, c)
		shares := c == rtcp && at == remote.Addr // RFC 5761
		if remote.ICE != nil {
			at = netip.AddrPort{} // its checks say where it is
		}
		switch {
		case g == nil:
			continue
		case shares:
			guards[c] = guards[rtp]
			continue
		case guards[c] != nil && guards[c].association.fits(*remote.DTLS, at):
			continue
		case !at.IsValid() && remote.ICE == nil:
			guards[c] = &guard{} // nothing passes
			continue
		}
		a, err := l.associateLocked(g, *remote.DTLS, at)
		if err != nil {
			return guards, err
		}
		guards[c] = &guard{association: a}
	}
	return guards, nil
}

// close ends the association that a guard may have.
func (g *guard) close() {
	if g != nil && g.association != nil {
		g.association.stop()
	}
}

// guard protects what goes to and comes from one peer.
type guard struct {
	keys *pinhole.SRTP
	// association finds the keys, nil: signalling says them.
	association *association

	receiving sync.Mutex
	in, oldIn *session

	sending sync.Mutex
	out     *session
}

// session is one key in one direction.
type session struct {
	suite         string
	key, mki      []byte
	context       *srtp.Context
	sources       map[uint32]struct{}
	rtp           rtpheader.Header
	rtcp          rtcpheader.Header
	authenticated bool
}

func newSession(name string, key, mki []byte) (*session, error) {
	suite, ok := pinhole.SuiteOf(name)
	if !ok || len(key) != suite.KeyLen+suite.SaltLen {
		return nil, fmt.Errorf("%q with %d octets: %w", name, len(key), errSuite)
	}
	options := []srtp.ContextOption{srtp.SRTPReplayProtection(replayWindow), srtp.SRTCPReplayProtection(replayWindow)}
	if len(mki) > 0 {
		options = append(options, srtp.MasterKeyIndicator(mki))
	}
	c, err := srtp.CreateContext(key[:suite.KeyLen], key[suite.KeyLen:], profileOf(name), options...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &session{suite: name, key: key, mki: mki, context: c, sources: map[uint32]struct{}{}}, nil
}

func profileOf(suite string) srtp.ProtectionProfile {
	return map[string]srtp.ProtectionProfile{
		"AEAD_AES_256_GCM":        srtp.ProtectionProfileAeadAes256Gcm,
		"AEAD_AES_128_GCM":        srtp.ProtectionProfileAeadAes128Gcm,
		"AES_256_CM_HMAC_SHA1_80": srtp.ProtectionProfileAes256CmHmacSha1_80,
		"AES_256_CM_HMAC_SHA1_32": srtp.ProtectionProfileAes256CmHmacSha1_32,
		"AES_CM_128_HMAC_SHA1_80": srtp.ProtectionProfileAes128CmHmacSha1_80,
		"AES_CM_128_HMAC_SHA1_32": srtp.ProtectionProfileAes128CmHmacSha1_32,
	}[suite]
}

// has tells whether s is the session of this key.
func (s *session) has(suite string, key, mki []byte) bool {
	return s != nil && s.suite == suite && slices.Equal(s.key, key) && slices.Equal(s.mki, mki)
}

// reuse returns the session of a key: one of those at hand, if it is theirs, else a new one.
func reuse(suite string, key, mki []byte, at ...*session) (*session, error) {
	for _, s := range at {
		if s.has(suite, key, mki) {
			return s, nil
		}
	}
	return newSession(suite, key, mki)
}

// rekey makes g, which may be nil, the guard of other keys. It returns nil for none.
func (g *guard) rekey(keys *pinhole.SRTP) (*guard, error) {
	if keys == nil {
		return nil, nil
	}
	if g == nil {
		g = &guard{}
	}
	if keys.Equal(g.keys) {
		return g, nil
	}
	g.receiving.Lock()
	defer g.receiving.Unlock()
	g.sending.Lock()
	defer g.sending.Unlock()
	in, err := reuse(keys.Suite, keys.In, keys.InMKI, g.in, g.oldIn)
	if err != nil {
		return nil, fmt.Errorf("key of the peer: %w", err)
	}
	out, err := reuse(keys.Suite, keys.Out, nil, g.out)
	if err != nil {
		return nil, fmt.Errorf("key for the peer: %w", err)
	}
	if in != g.in {
		g.in, g.oldIn = in, g.in
		in.authenticated = false
	}
	g.keys, g.out = keys, out
	return g, nil
}

// open takes the peer's protection off a packet, and appends what it holds to dst.
func (g *guard) open(dst, b []byte, control bool) ([]byte, error) {
	g.receiving.Lock()
	defer g.receiving.Unlock()
	if g.in == nil {
		return nil, errNoKeys
	}
	plain, err := g.in.open(dst, b, control)
	switch {
	case err == nil:
		if !g.in.authenticated {
			g.in.authenticated, g.oldIn = true, nil
		}
	case g.oldIn != nil:
		return g.oldIn.open(dst, b, control)
	}
	return plain, err
}

// bears tells whether the peer's keys open a packet, without its being seen: it is no replay afterwards.
func (g *guard) bears(b []byte, control bool) bool {
	g.receiving.Lock()
	defer g.receiving.Unlock()
	return g.in.bears(b, control) || g.oldIn.bears(b, control)
}

// bears does what the guard's does for one key. Another context tries it, as one that has opened a packet takes it no more.
func (s *session) bears(b []byte, control bool) bool {
	if s == nil {
		return false
	}
	ssrc, err := s.source(b, control)
	if err != nil {
		return false
	}
	trial, err := newSession(s.suite, s.key, s.mki)
	if err != nil {
		return false
	}
	if roc, ok := s.context.ROC(ssrc); ok {
		trial.context.SetROC(ssrc, roc)
	}
	_, err = trial.open(nil, b, control)
	return err == nil
}

// seal protects a packet for the peer, and appends it to dst.
func (g *guard) seal(dst, b []byte, control bool) ([]byte, error) {
	g.sending.Lock()
	defer g.sending.Unlock()
	s := g.out
	if s == nil {
		return nil, errNoKeys
	}
	ssrc, err := s.source(b, control)
	if err != nil {
		return nil, err
	}
	if control {
		dst, err = s.context.EncryptRTCP(dst, b, &s.rtcp)
	} else {
		dst, err = s.context.EncryptRTP(dst, b, &s.rtp)
	}
	if err == nil {
		s.sources[ssrc] = struct{}{}
	}
	return dst, err
}

func (s *session) open(dst, b []byte, control bool) (plain []byte, err error) {
	ssrc, err := s.source(b, control)
	if err != nil {
		return nil, err
	}
	if control {
		plain, err = s.context.DecryptRTCP(dst, b, &s.rtcp)
	} else {
		plain, err = s.context.DecryptRTP(dst, b, &s.rtp)
	}
	if err == nil {
		s.sources[ssrc] = struct{}{} // only what is authentic gets a state in the context
	}
	return plain, err
}

// source returns the SSRC of a packet, protected or not, if it may have a state.
func (s *session) source(b []byte, control bool) (uint32, error) {
	at := 8
	if control {
		at = 4
	}
	if len(b) < at+4 {
		return 0, errShort
	}
	ssrc := binary.BigEndian.Uint32(b[at:])
	if _, known := s.sources[ssrc]; !known && len(s.sources) >= maxSSRC {
		return 0, errSources
	}
	return ssrc, nil
}

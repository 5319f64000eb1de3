package media

import (
	"encoding/binary"
	"errors"
	"fmt"
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
	errShort   = errors.New("too short for RTP")
	errSuite   = errors.New("no such SRTP suite or key length")
)

// Scratch holds a packet on its way through Convert. Each goroutine needs one of its own.
type Scratch struct {
	plain, sealed [MaxPacket]byte
}

// Protected tells whether packets must go through Convert, and so by no other way than user space.
func (f *Flow) Protected() bool { return f.Counters.srtp.Load() != nil }

// Convert counts packet b, which came at time now, and returns it as the peer is to get it: it is valid until s is
// used again. It returns nil, and has counted the drop, for what is not RTP or RTCP, what does not bear the
// peer's protection, and where no peer is known. It may be called concurrently.
func (f *Flow) Convert(s *Scratch, now time.Time, b []byte) []byte {
	c := f.Counters.srtp.Load()
	if c == nil { // since just now
		c = &conversion{}
	}
	if len(b) < 8 || b[0]>>6 != 2 {
		f.Counters.Drop(BadSRTP, 1)
		return nil
	}
	control := f.Counters.kind == rtcpStream || b[1] >= 192 && b[1] <= 223 // RFC 5761 §4
	var err error
	if c.from != nil {
		if b, err = c.from.open(s.plain[:0], b, control); err != nil {
			f.Counters.Drop(BadSRTP, 1)
			return nil
		}
	}
	f.Counters.Receive(now, b)
	if !f.To.Valid() {
		f.Counters.Drop(NoPeer, 1)
		return nil
	}
	if c.to != nil {
		if b, err = c.to.seal(s.sealed[:0], b, control); err != nil {
			f.Counters.Drop(BadSRTP, 1)
			return nil
		}
	}
	return b
}

// conversion is what becomes of the packets that arrive at a leg: from takes the protection off, to puts one on. Either
// may be nil. It never changes.
type conversion struct {
	from, to *guard
}

// guardLocked returns the guard of the peer at s, nil if it has no keys.
func (l *lease) guardLocked(s pinhole.Side) *guard {
	if g := l.legs[s][rtp]; g != nil {
		if c := g.srtp.Load(); c != nil {
			return c.from
		}
	}
	return nil
}

// rekeyLocked gives the peer at s other keys, or none. An error changes nothing.
func (l *lease) rekeyLocked(s pinhole.Side, keys *pinhole.SRTP) error {
	own, err := l.guardLocked(s).rekey(keys)
	if err != nil {
		return err
	}
	guards := [2]*guard{own, l.guardLocked(s.Other())}
	if s == pinhole.Far {
		guards[0], guards[1] = guards[1], guards[0]
	}
	for side := range l.legs {
		c := &conversion{from: guards[side], to: guards[1-side]}
		if *c == (conversion{}) {
			c = nil
		}
		for _, g := range l.legs[side] {
			if g != nil {
				g.srtp.Store(c)
			}
		}
	}
	return nil
}

// guard protects what goes to and comes from one peer.
type guard struct {
	keys *pinhole.SRTP

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

// seal protects a packet for the peer, and appends it to dst.
func (g *guard) seal(dst, b []byte, control bool) ([]byte, error) {
	g.sending.Lock()
	defer g.sending.Unlock()
	s := g.out
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

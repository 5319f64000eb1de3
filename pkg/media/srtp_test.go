package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/srtp/v3"

	"edged.dev/edged/pkg/pinhole"
)

// convert lets b arrive at the local address from src, and returns it as the other peer gets it, nil if it gets nothing.
func (p *heldPath) convert(local, src netip.AddrPort, b []byte) []byte {
	p.mu.Lock()
	flows := p.flows[local]
	p.mu.Unlock()
	sa, now := SockaddrOf(src), time.Now()
	f := Pick(flows, &sa, now, b)
	switch {
	case f == nil:
		return nil
	case !f.Protected():
		f.Counters.Receive(now, b)
		return b
	}
	_, out := f.Convert(new(Scratch), now, b)
	return bytes.Clone(out)
}

// speech returns one with the given source and sequence number, and a payload that depends on it.
func speech(ssrc uint32, seq uint16) []byte {
	b := append([]byte{0x80, 0}, make([]byte, 10)...)
	binary.BigEndian.PutUint16(b[2:], seq)
	binary.BigEndian.PutUint32(b[8:], ssrc)
	return fmt.Appendf(b, "payload %d of %d", seq, ssrc)
}

// report returns an RTCP packet.
func report(ssrc uint32) []byte {
	b := []byte{0x80, typeRR, 0, 4, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	binary.BigEndian.PutUint32(b[4:], ssrc)
	return b
}

// key returns a key for a suite; other seeds give other keys.
func key(t testing.TB, suite string, seed byte) []byte {
	t.Helper()
	s, ok := pinhole.SuiteOf(suite)
	if !ok {
		t.Fatalf("no suite %s", suite)
	}
	return bytes.Repeat([]byte{seed}, s.KeyLen+s.SaltLen)
}

// srtpPeer is the far end of keys: it protects with In and reads with Out.
type srtpPeer struct {
	t       testing.TB
	in, out *srtp.Context
}

func newSRTPPeer(t testing.TB, k *pinhole.SRTP) *srtpPeer {
	t.Helper()
	s, _ := pinhole.SuiteOf(k.Suite)
	var options []srtp.ContextOption
	if len(k.InMKI) > 0 {
		options = append(options, srtp.MasterKeyIndicator(k.InMKI))
	}
	in, err := srtp.CreateContext(k.In[:s.KeyLen], k.In[s.KeyLen:], profileOf(k.Suite), options...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := srtp.CreateContext(k.Out[:s.KeyLen], k.Out[s.KeyLen:], profileOf(k.Suite))
	if err != nil {
		t.Fatal(err)
	}
	return &srtpPeer{t, in, out}
}

func (p *srtpPeer) seal(b []byte) []byte {
	p.t.Helper()
	seal := p.in.EncryptRTP
	if b[1] >= 192 && b[1] <= 223 {
		sealed, err := p.in.EncryptRTCP(nil, b, nil)
		if err != nil {
			p.t.Fatal(err)
		}
		return sealed
	}
	sealed, err := seal(nil, b, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return sealed
}

// opens tells whether b is protected for the peer, and holds want.
func (p *srtpPeer) opens(b, want []byte) bool {
	p.t.Helper()
	var plain []byte
	var err error
	if want[1] >= 192 && want[1] <= 223 {
		plain, err = p.out.DecryptRTCP(nil, b, nil)
	} else {
		plain, err = p.out.DecryptRTP(nil, b, nil)
	}
	return err == nil && bytes.Equal(plain, want)
}

// secured is a lease whose near peer speaks SRTP and whose far one plain RTP.
type secured struct {
	t     *testing.T
	path  *heldPath
	lease pinhole.Lease
}

func newSecured(t *testing.T, k *pinhole.SRTP) *secured {
	t.Helper()
	r, path := newTestRelay(t, nil)
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	t.Cleanup(func() { l.Close() })
	declareBoth(t, l)
	s := &secured{t, path, l}
	s.declare(k)
	return s
}

func (s *secured) declare(k *pinhole.SRTP) {
	s.t.Helper()
	if err := s.lease.Declare(pinhole.Near, pinhole.Remote{Addr: nearPhone, Source: nearPhone.Addr(), SRTP: k}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *secured) fromNear(b []byte) []byte {
	return s.path.convert(s.lease.Local(pinhole.Near).Addr, nearPhone, b)
}

func (s *secured) fromFar(b []byte) []byte {
	return s.path.convert(s.lease.Local(pinhole.Far).Addr, farPhone, b)
}

// dropped returns how many packets of the near peer were dropped for a reason.
func (s *secured) dropped(r Reason) uint64 {
	return s.lease.(*lease).legs[pinhole.Near][rtp].Counters.dropped[r].Load()
}

// TestSRTPSuites: RTP and RTCP cross in both directions, with each suite; what is not protected, or with another
// key, or comes again, does not.
func TestSRTPSuites(t *testing.T) {
	for _, suite := range pinhole.Suites() {
		t.Run(suite.Name, func(t *testing.T) {
			k := &pinhole.SRTP{Suite: suite.Name, In: key(t, suite.Name, 1), Out: key(t, suite.Name, 2)}
			s, peer := newSecured(t, k), newSRTPPeer(t, k)
			for n := range uint16(3) {
				for _, plain := range [][]byte{speech(7, n), report(7)} {
					sealed := peer.seal(plain)
					if got := s.fromNear(sealed); !bytes.Equal(got, plain) {
						t.Fatalf("the plain peer got %x, not %x", got, plain)
					}
					if got := s.fromNear(sealed); got != nil {
						t.Fatalf("a packet that came again: %x", got)
					}
					if got := s.fromFar(plain); !peer.opens(got, plain) || bytes.Contains(got, plain[12:]) {
						t.Fatalf("the secure peer got %x for %x", got, plain)
					}
				}
			}
			before := s.dropped(BadSRTP)
			stranger := newSRTPPeer(t, &pinhole.SRTP{Suite: suite.Name, In: key(t, suite.Name, 3), Out: k.Out})
			for _, b := range [][]byte{speech(7, 9), report(7), stranger.seal(speech(7, 10)), stranger.seal(report(7))} {
				if got := s.fromNear(b); got != nil {
					t.Errorf("%x came through as %x", b, got)
				}
			}
			if n := s.dropped(BadSRTP) - before; n != 4 {
				t.Errorf("%d packets counted as not authentic", n)
			}
		})
	}
}

const aes = "AES_CM_128_HMAC_SHA1_80"

// TestSRTPRollover: sequence numbers pass zero twice, also while signalling says the same again (hold and resume).
func TestSRTPRollover(t *testing.T) {
	k := &pinhole.SRTP{Suite: aes, In: key(t, aes, 1), Out: key(t, aes, 2)}
	s, peer := newSecured(t, k), newSRTPPeer(t, k)
	for n := 60000; n < 60000+1<<17; n += 500 {
		plain := speech(7, uint16(n))
		if got := s.fromNear(peer.seal(plain)); !bytes.Equal(got, plain) {
			t.Fatalf("packet %d: the plain peer got %x", n, got)
		}
		if got := s.fromFar(plain); !peer.opens(got, plain) {
			t.Fatalf("packet %d: the secure peer cannot read it", n)
		}
		if n%10000 == 0 {
			again := *k
			s.declare(&again)
		}
	}
}

// TestSRTPRekey: after new keys were declared the peer is heard with the old ones until it uses the new ones; keys
// that are taken back go on where they were.
func TestSRTPRekey(t *testing.T) {
	first := &pinhole.SRTP{Suite: aes, In: key(t, aes, 1), Out: key(t, aes, 2)}
	second := &pinhole.SRTP{Suite: aes, In: key(t, aes, 3), Out: key(t, aes, 2)}
	s, old, fresh := newSecured(t, first), newSRTPPeer(t, first), newSRTPPeer(t, second)
	hears := func(who *srtpPeer, seq uint16) bool {
		plain := speech(7, seq)
		return bytes.Equal(s.fromNear(who.seal(plain)), plain)
	}
	wants := func(step string, oldHeard, freshHeard bool, seq uint16) {
		t.Helper()
		if got := hears(old, seq); got != oldHeard {
			t.Errorf("%s: old key heard: %v", step, got)
		}
		if got := hears(fresh, seq); got != freshHeard {
			t.Errorf("%s: new key heard: %v", step, got)
		}
	}
	wants("before", true, false, 1)
	s.declare(second)
	s.declare(first) // the offer was refused
	wants("refused", true, false, 2)
	s.declare(second)
	wants("offered", true, true, 3)
	wants("in use", false, true, 4)
	if plain := speech(9, 1); !old.opens(s.fromFar(plain), plain) {
		t.Error("the edge's own key has changed")
	}
}

// TestSRTPKeyIndicator: packets of a peer that marks them with its key's number.
func TestSRTPKeyIndicator(t *testing.T) {
	k := &pinhole.SRTP{Suite: aes, In: key(t, aes, 1), Out: key(t, aes, 2), InMKI: []byte{0, 1}}
	s, peer := newSecured(t, k), newSRTPPeer(t, k)
	for _, plain := range [][]byte{speech(7, 1), report(7)} {
		if got := s.fromNear(peer.seal(plain)); !bytes.Equal(got, plain) {
			t.Errorf("the plain peer got %x, not %x", got, plain)
		}
	}
}

// TestSRTPBounds: what is no RTP goes nowhere, sources are bounded in both directions, and keys that fit no suite
// are refused and change nothing.
func TestSRTPBounds(t *testing.T) {
	k := &pinhole.SRTP{Suite: aes, In: key(t, aes, 1), Out: key(t, aes, 2)}
	s, peer := newSecured(t, k), newSRTPPeer(t, k)
	for _, b := range [][]byte{{}, {0x80}, make([]byte, 40), append([]byte{0x80, 0, 0}, make([]byte, 5)...), bytes.Repeat([]byte{0x9f}, 12)} {
		if near, far := s.fromNear(b), s.fromFar(b); near != nil || far != nil {
			t.Errorf("%x came through: %x, %x", b, near, far)
		}
	}
	passed := [2]int{}
	for n := range uint32(2 * maxSSRC) {
		if s.fromNear(peer.seal(speech(n, 1))) != nil {
			passed[0]++
		}
		if s.fromFar(speech(n, 1)) != nil {
			passed[1]++
		}
	}
	if passed != [2]int{maxSSRC, maxSSRC} {
		t.Errorf("%v sources passed, want %d", passed, maxSSRC)
	}
	for _, bad := range []*pinhole.SRTP{{}, {Suite: aes}, {Suite: aes, In: k.In, Out: k.Out[1:]}, {Suite: "F8_128_HMAC_SHA1_80", In: k.In, Out: k.Out}} {
		if err := s.lease.Declare(pinhole.Near, pinhole.Remote{Addr: nearPhone, Source: nearPhone.Addr(), SRTP: bad}); !errors.Is(err, errSuite) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if plain := speech(1, 2); !bytes.Equal(s.fromNear(peer.seal(plain)), plain) {
		t.Error("the keys in use are gone")
	}
}

// TestSRTPBothSides: two peers with keys of their own hear each other, and nobody hears the other's key.
func TestSRTPBothSides(t *testing.T) {
	gcm := "AEAD_AES_256_GCM"
	near := &pinhole.SRTP{Suite: aes, In: key(t, aes, 1), Out: key(t, aes, 2)}
	far := &pinhole.SRTP{Suite: gcm, In: key(t, gcm, 3), Out: key(t, gcm, 4)}
	s, a, b := newSecured(t, near), newSRTPPeer(t, near), newSRTPPeer(t, far)
	if err := s.lease.Declare(pinhole.Far, pinhole.Remote{Addr: farPhone, Source: farPhone.Addr(), SRTP: far}); err != nil {
		t.Fatal(err)
	}
	plain := speech(7, 1)
	if !b.opens(s.fromNear(a.seal(plain)), plain) || !a.opens(s.fromFar(b.seal(plain)), plain) {
		t.Error("the peers do not hear each other")
	}
}

// TestSRTPKeysArePrivate: keys print as their suite's name.
func TestSRTPKeysArePrivate(t *testing.T) {
	k := &pinhole.SRTP{Suite: aes, In: []byte("secret-in"), Out: []byte("secret-out")}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, pinhole.Remote{SRTP: k}.SRTP); got != aes {
			t.Errorf("%s prints %q", format, got)
		}
	}
}

func FuzzConvert(f *testing.F) {
	k := &pinhole.SRTP{Suite: aes, In: key(f, aes, 1), Out: key(f, aes, 2)}
	peer := newSRTPPeer(f, k)
	for _, plain := range [][]byte{speech(7, 1), report(7)} {
		f.Add(plain, false)
		f.Add(peer.seal(plain), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, protected bool) {
		g, err := (*guard)(nil).rekey(k)
		if err != nil {
			t.Fatal(err)
		}
		flow := &Flow{To: SockaddrOf(farPhone), Counters: &Counters{epoch: new(time.Time), kind: rtpStream, rtp: &rtpStats{}, rtcp: &rtcpTimes{}}}
		c := &conversion{to: g}
		if protected {
			c = &conversion{from: g}
		}
		flow.Counters.srtp.Store(c)
		sent := bytes.Clone(b)
		_, out := flow.Convert(new(Scratch), time.Now(), b)
		if !bytes.Equal(sent, b) {
			t.Fatal("the packet that came was changed")
		}
		if out == nil || protected {
			return
		}
		if !newSRTPPeer(t, k).opens(out, sent) {
			t.Fatalf("%x became %x, which its peer cannot read", sent, out)
		}
	})
}

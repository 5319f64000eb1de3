package media

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// FuzzCheck lets anything arrive where ICE ends. Only what holds the right names and has the right keys may confirm its source.
func FuzzCheck(f *testing.F) {
	own := pinhole.ICE{Ufrag: "edgeedge", Pwd: "passwordofthe/edge+which", Peer: "peer"}
	name, key := stun.NewUsername("edgeedge:peer"), stun.NewShortTermIntegrity(own.Pwd)
	nominates := stun.RawAttribute{Type: stun.AttrUseCandidate}
	for _, setters := range [][]stun.Setter{
		{stun.BindingRequest, name, nominates, key, stun.Fingerprint},
		{stun.BindingRequest, name, key, nominates, stun.Fingerprint},
		{stun.BindingRequest, name, nominates, stun.Fingerprint},
		{stun.NewType(stun.MethodBinding, stun.ClassIndication)},
		{stun.BindingSuccess, key},
	} {
		f.Add(stun.MustBuild(append([]stun.Setter{stun.NewTransactionIDSetter([12]byte{1})}, setters...)...).Raw)
	}
	f.Add([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42})
	r, err := New(DefaultPinholeConfig(), DefaultConfig(), testNetworks(), newHeldPath(), zap.NewNop())
	if err != nil {
		f.Fatal(err)
	}
	opened, err := r.Open(context.Background(), testRequest(pinhole.RTP))
	if err != nil {
		f.Fatal(err)
	}
	defer opened.Close()
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 3, 7)})
	if err != nil {
		f.Fatal(err)
	}
	defer peer.Close()
	at := netip.MustParseAddrPort(peer.LocalAddr().String())
	remote := pinhole.Remote{Addr: at, RTCP: at, Source: at.Addr(), ICE: &own}
	if err := opened.Declare(pinhole.Near, remote); err != nil {
		f.Fatal(err)
	}
	l := opened.(*lease)
	g := l.legs[pinhole.Near][rtp]
	f.Fuzz(func(t *testing.T, b []byte) {
		r.mu.Lock()
		g.latched = netip.AddrPort{}
		g.flow = g.flowLocked()
		r.mu.Unlock()
		src := SockaddrOf(at)
		flow := Pick([]*Flow{g.flow}, &src, r.epoch, b)
		if flow != nil {
			t.Fatalf("%x passes", b)
		}
		m := new(stun.Message)
		right := isSTUN(b) && stun.Decode(b, m) == nil && m.Type == stun.BindingRequest && key.Check(m) == nil &&
			bytes.Contains(b, []byte("edgeedge:peer")) && m.Contains(stun.AttrUseCandidate)
		if g.latched.IsValid() && !right {
			t.Fatalf("%x confirms its source", b)
		}
	})
}

// TestICEConsent: a peer whose checks have ceased is sent nothing any more, until it makes one that nominates.
func TestICEConsent(t *testing.T) {
	r, path := newTestRelay(t, nil)
	l := mustOpen(t, r, testRequest(pinhole.RTP)).(*lease)
	defer l.Close()
	declareBoth(t, l)
	own := pinhole.ICE{Ufrag: "edgeedge", Pwd: "passwordofthe/edge+which", Peer: "peer"}
	if err := l.Declare(pinhole.Near, pinhole.Remote{Addr: nearPhone, RTCP: nearPhone, Source: nearPhone.Addr(), ICE: &own}); err != nil {
		t.Fatal(err)
	}
	check := func(at time.Time, more ...stun.Setter) {
		t.Helper()
		what := append([]stun.Setter{stun.TransactionID, stun.BindingRequest, stun.NewUsername("edgeedge:peer")}, more...)
		m := stun.MustBuild(append(what, stun.NewShortTermIntegrity(own.Pwd), stun.Fingerprint)...)
		path.mu.Lock()
		flows := path.flows[l.Local(pinhole.Near).Addr]
		path.mu.Unlock()
		if !offerCheck(flows, nearPhone, at, m.Raw) {
			t.Fatal("a check is not taken")
		}
	}
	sent := func() netip.AddrPort { return path.packet(l.Local(pinhole.Far).Addr, farPhone, speech(1, 1)) }
	begin := time.Now()
	check(begin)
	if at := sent(); at.IsValid() {
		t.Errorf("sent to %v before it is nominated", at)
	}
	check(begin, stun.RawAttribute{Type: stun.AttrUseCandidate})
	check(begin.Add(20 * time.Second))
	r.sweep(begin.Add(49 * time.Second))
	if at := sent(); at != nearPhone {
		t.Errorf("sent to %v, not %v", at, nearPhone)
	}
	r.sweep(begin.Add(51 * time.Second))
	if at := sent(); at.IsValid() {
		t.Errorf("sent to %v without its consent", at)
	}
	check(begin.Add(52 * time.Second))
	if at := sent(); at.IsValid() {
		t.Errorf("sent to %v, which is not nominated again", at)
	}
	check(begin.Add(53*time.Second), stun.RawAttribute{Type: stun.AttrUseCandidate})
	if at := sent(); at != nearPhone {
		t.Errorf("sent to %v, not %v", at, nearPhone)
	}
}

// TestSRTPSourceIsAuthentic: who does not have the keys confirms no source, though its packet comes first and from the peer's host.
func TestSRTPSourceIsAuthentic(t *testing.T) {
	const suite = "AES_CM_128_HMAC_SHA1_80"
	k := &pinhole.SRTP{Suite: suite, In: key(t, suite, 1), Out: key(t, suite, 2)}
	s, peer := newSecured(t, k), newSRTPPeer(t, k)
	stranger := newSRTPPeer(t, &pinhole.SRTP{Suite: suite, In: key(t, suite, 3), Out: k.Out})
	local := s.lease.Local(pinhole.Near).Addr
	from := func(port uint16, b []byte) []byte {
		return s.path.convert(local, netip.AddrPortFrom(nearPhone.Addr(), port), b)
	}
	for _, b := range [][]byte{speech(7, 1), stranger.seal(speech(7, 1)), {0x80}, {22, 254, 253}, nil} {
		if got := from(5000, b); got != nil {
			t.Errorf("%x passes as %x", b, got)
		}
	}
	if at := s.lease.(*lease).legs[pinhole.Near][rtp].latched; at.IsValid() {
		t.Fatalf("%v is confirmed", at)
	}
	if n := s.dropped(BadSRTP); n != 5 {
		t.Errorf("%d dropped, not 5", n)
	}
	// The peer itself comes from another port than it said, as behind a NAT: with its third packet, as the others were lost.
	peer.seal(speech(7, 1))
	peer.seal(speech(7, 2))
	for n := uint16(3); n < 6; n++ {
		if got := from(6000, peer.seal(speech(7, n))); !bytes.Equal(got, speech(7, n)) {
			t.Errorf("packet %d came as %x", n, got)
		}
	}
	if got := from(5000, peer.seal(speech(7, 6))); got != nil {
		t.Error("another source is heard once one is confirmed")
	}
	// A new address: it is heard from there with the rollover counter that it has come to.
	for n := range 70000 {
		if b := peer.seal(speech(7, uint16(7+n))); n%1000 == 0 || n > 65000 {
			from(6000, b)
		}
	}
	moved := netip.AddrPortFrom(nearPhone.Addr(), 8000)
	if err := s.lease.Declare(pinhole.Near, pinhole.Remote{Addr: moved, Source: moved.Addr(), SRTP: k}); err != nil {
		t.Fatal(err)
	}
	want := speech(7, uint16(70007%65536))
	if got := from(8000, peer.seal(want)); !bytes.Equal(got, want) {
		t.Errorf("after the rollover: %x", got)
	}
}

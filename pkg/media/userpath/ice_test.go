package userpath

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/dtls/v3/pkg/crypto/selfsign"
	"github.com/pion/srtp/v3"
	"github.com/pion/stun/v4"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// browser is a media peer with ICE: the edge at to knows it by credentials.
type browser struct {
	*dtlsPeer
	t    *testing.T
	to   netip.AddrPort
	own  pinhole.ICE
	cert tls.Certificate
}

// check is a request as a browser makes it.
func (b *browser) check(more ...stun.Setter) *stun.Message {
	b.t.Helper()
	what := append([]stun.Setter{stun.TransactionID, stun.BindingRequest, stun.NewUsername(b.own.Ufrag + ":" + b.own.Peer)}, more...)
	what = append(what, raw{stun.AttrICEControlling, make([]byte, 8)}, raw{stun.AttrPriority, []byte{0x6e, 0, 1, 0xff}}, raw{0xc057, []byte{0, 0, 0, 10}},
		stun.NewShortTermIntegrity(b.own.Pwd), stun.Fingerprint)
	return stun.MustBuild(what...)
}

// raw is an attribute.
type raw struct {
	typ   stun.AttrType
	value []byte
}

func (r raw) AddTo(m *stun.Message) error { m.Add(r.typ, r.value); return nil }

var useCandidate = raw{stun.AttrUseCandidate, nil}

// ask sends requests from the socket, and returns the first answer.
func (b *browser) ask(from *net.UDPConn, requests ...*stun.Message) *stun.Message {
	b.t.Helper()
	for _, r := range requests {
		if _, err := from.WriteToUDPAddrPort(r.Raw, b.to); err != nil {
			b.t.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	if err := from.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		b.t.Fatal(err)
	}
	for {
		n, err := from.Read(buf)
		if err != nil {
			b.t.Fatalf("no answer: %v", err)
		}
		if m := new(stun.Message); stun.IsMessage(buf[:n]) && stun.Decode(buf[:n], m) == nil {
			if err := from.SetReadDeadline(time.Time{}); err != nil {
				b.t.Fatal(err)
			}
			return m
		}
	}
}

// nominate asks from a socket, and wants a yes.
func (b *browser) nominate(from *net.UDPConn) {
	b.t.Helper()
	r := b.check(useCandidate)
	m := b.ask(from, r)
	var mapped stun.XORMappedAddress
	if m.Type != stun.BindingSuccess || m.TransactionID != r.TransactionID || mapped.GetFrom(m) != nil {
		b.t.Fatalf("answer %v", m)
	}
	if at := netip.AddrPortFrom(netip.MustParseAddr(mapped.IP.String()), uint16(mapped.Port)); at != addrOf(from) {
		b.t.Errorf("the edge sees %v at %v", addrOf(from), at)
	}
	if stun.NewShortTermIntegrity(b.own.Pwd).Check(m) != nil || stun.Fingerprint.Check(m) != nil {
		b.t.Error("the answer is not authentic")
	}
}

// iceRig is a browser at the near side of a lease, and a phone with two ports at the far one.
type iceRig struct {
	*browser
	relay     *media.Relay
	lease     pinhole.Lease
	rtp, rtcp *net.UDPConn
}

// declare tells the relay of the browser.
func (r *iceRig) declare() {
	r.t.Helper()
	sum := sha256.Sum256(r.cert.Certificate[0])
	own := r.own
	remote := pinhole.Remote{Addr: netip.MustParseAddrPort("127.0.5.7:9"), RTCP: netip.MustParseAddrPort("127.0.5.7:9"), Source: netip.MustParseAddr("127.0.5.7"), ICE: &own}
	remote.DTLS = &pinhole.DTLS{Hash: "sha-256", Fingerprint: sum[:]}
	if err := r.lease.Declare(pinhole.Near, remote); err != nil {
		r.t.Fatal(err)
	}
}

func newICERig(t *testing.T) *iceRig {
	t.Helper()
	r := startRelay(t)
	l, err := r.Open(t.Context(), pinhole.Request{Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	cert, err := selfsign.GenerateSelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{
		dtlsPeer: &dtlsPeer{udpAt(t, "127.0.5.7"), make(chan []byte, 64)}, t: t, to: l.Local(pinhole.Near).Addr, cert: cert,
		own: pinhole.ICE{Ufrag: "edgeedge", Pwd: "passwordofthe/edge+which", Peer: "peer"},
	}
	rig := &iceRig{browser: b, relay: r, lease: l, rtp: udpAt(t, "127.0.6.7"), rtcp: udpAt(t, "127.0.6.7")}
	rig.declare()
	if err := l.Declare(pinhole.Far, pinhole.Remote{Addr: addrOf(rig.rtp), RTCP: addrOf(rig.rtcp), Source: addrOf(rig.rtp).Addr()}); err != nil {
		t.Fatal(err)
	}
	return rig
}

// dropped returns how many packets of the browser's side were dropped for a reason.
func (r *iceRig) dropped(reason string) uint64 {
	return r.relay.Pinholes()[0].Ends[pinhole.Near].Stats.Dropped[reason]
}

func (r *iceRig) latched() netip.AddrPort { return r.relay.Pinholes()[0].Ends[pinhole.Near].Latched }

// TestICEHostile: what is no authentic request gets no answer, and confirms nobody.
func TestICEHostile(t *testing.T) {
	r := newICERig(t)
	good := func() *stun.Message { return r.check(useCandidate) }
	build := func(setters ...stun.Setter) *stun.Message { return stun.MustBuild(setters...) }
	name, key := stun.NewUsername("edgeedge:peer"), stun.NewShortTermIntegrity(r.own.Pwd)
	cut := good()
	cut.Raw = cut.Raw[:len(cut.Raw)-8]
	flipped := good()
	flipped.Raw[len(flipped.Raw)-20] ^= 1
	long := build(stun.TransactionID, stun.BindingRequest, name, raw{0xc058, make([]byte, 1300)}, key, stun.Fingerprint)
	for what, m := range map[string]*stun.Message{
		"no credentials":      build(stun.TransactionID, stun.BindingRequest, useCandidate, stun.Fingerprint),
		"no integrity":        build(stun.TransactionID, stun.BindingRequest, name, useCandidate, stun.Fingerprint),
		"another password":    build(stun.TransactionID, stun.BindingRequest, name, useCandidate, stun.NewShortTermIntegrity("x"), stun.Fingerprint),
		"another name":        build(stun.TransactionID, stun.BindingRequest, stun.NewUsername("edgeedge:else"), useCandidate, key, stun.Fingerprint),
		"the names exchanged": build(stun.TransactionID, stun.BindingRequest, stun.NewUsername("peer:edgeedge"), useCandidate, key, stun.Fingerprint),
		"no fingerprint":      build(stun.TransactionID, stun.BindingRequest, name, useCandidate, key),
		"cut":                 cut,
		"a flipped bit":       flipped,
		"too long":            long,
		"a response":          build(stun.TransactionID, stun.BindingSuccess, name, useCandidate, key, stun.Fingerprint),
		"TURN":                build(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), name, useCandidate, key, stun.Fingerprint),
	} {
		before := r.dropped("bad_check")
		plain := r.check()
		if got := r.ask(r.UDPConn, m, plain); got.TransactionID != plain.TransactionID || got.Type != stun.BindingSuccess {
			t.Errorf("%s: answered with %v", what, got)
		}
		if at := r.latched(); at.IsValid() {
			t.Fatalf("%s: %v is confirmed", what, at)
		}
		if n := r.dropped("bad_check") - before; n != 1 {
			t.Errorf("%s: counted %d times", what, n)
		}
	}
	// What stands behind the integrity is not authentic.
	late := build(stun.TransactionID, stun.BindingRequest, name, key, useCandidate, stun.Fingerprint)
	if m := r.ask(r.UDPConn, late); m.Type != stun.BindingSuccess || r.latched().IsValid() {
		t.Errorf("nominating behind the integrity: %v, confirmed %v", m, r.latched())
	}
	indication := build(stun.TransactionID, stun.NewType(stun.MethodBinding, stun.ClassIndication))
	before := r.dropped("bad_check")
	if plain := r.check(); r.ask(r.UDPConn, indication, plain).TransactionID != plain.TransactionID || r.dropped("bad_check") != before {
		t.Error("an indication is answered, or a fault")
	}
}

// TestICEErrors: a peer that takes the edge's role is told so, and so is one that demands what is not known.
func TestICEErrors(t *testing.T) {
	r := newICERig(t)
	for code, more := range map[stun.ErrorCode]stun.Setter{
		stun.CodeRoleConflict:     raw{stun.AttrICEControlled, make([]byte, 8)},
		stun.CodeUnknownAttribute: raw{0x7fff, []byte("else")},
	} {
		m := r.ask(r.UDPConn, r.check(useCandidate, more))
		var got stun.ErrorCodeAttribute
		if got.GetFrom(m) != nil || got.Code != code || stun.NewShortTermIntegrity(r.own.Pwd).Check(m) != nil {
			t.Errorf("%d: %v", code, m)
		}
		if r.latched().IsValid() {
			t.Error("such a request confirms the source")
		}
	}
}

// TestICERestart: the credentials before are good until there are others again.
func TestICERestart(t *testing.T) {
	r := newICERig(t)
	first := r.own
	r.nominate(r.UDPConn)
	r.own = pinhole.ICE{Ufrag: "nextnext", Pwd: "anotherpasswordoftheedge", Peer: "reep"}
	r.declare()
	r.declare() // said again
	second := r.own
	if r.latched() != addrOf(r.UDPConn) {
		t.Error("a restart forgets the source")
	}
	for _, r.own = range []pinhole.ICE{first, second} {
		r.nominate(r.UDPConn)
	}
	r.own = pinhole.ICE{Ufrag: "lastlast", Pwd: "thethirdpasswordoftheone", Peer: "prep"}
	r.declare()
	third := r.check()
	last := r.own
	r.own = first
	if m := r.ask(r.UDPConn, r.check(), third); m.TransactionID != third.TransactionID {
		t.Error("the first credentials are good still")
	}
	for _, r.own = range []pinhole.ICE{second, last} {
		r.nominate(r.UDPConn)
	}
}

// TestICEMedia: a browser that has proved where it is shakes hands, talks with a phone, has its RTCP brought to the phone's own port
// for it, and moves; nobody else is heard.
func TestICEMedia(t *testing.T) {
	r := newICERig(t)
	stranger := udpAt(t, "127.0.5.7")
	r.nominate(r.UDPConn)
	conn, err := r.shake(t, r.cert, r.to, true, r.relay.Fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	go drain(conn)
	seal, open := contexts(t, conn, true)
	converse := func(what string, from *net.UDPConn, media func() []byte) {
		t.Helper()
		heard := [4]bool{}
		for n := 0; n < 2000 && heard != [4]bool{true, true, true, true}; n++ {
			b, c := speech(n), senderReport(uint32(n))
			r.send(from, sealedRTP(t, seal, b), sealedRTCP(t, seal, c))
			for i, at := range []*net.UDPConn{r.rtp, r.rtcp} {
				if got := read(t, at); got != nil {
					if bytes.Equal(got[:2], c[:2]) != (i == 1) {
						t.Fatalf("%s: port %d of the phone gets %x", what, i, got)
					}
					heard[i] = true
				}
			}
			to := r.lease.Local(pinhole.Far)
			if _, err := r.rtp.WriteToUDPAddrPort(b, to.Addr); err != nil {
				t.Fatal(err)
			}
			if _, err := r.rtcp.WriteToUDPAddrPort(c, to.RTCP); err != nil {
				t.Fatal(err)
			}
			for got := media(); got != nil; got = media() {
				if got[1] == c[1] {
					_, err = open.DecryptRTCP(nil, got, nil)
					heard[3] = heard[3] || err == nil
				} else if _, err = open.DecryptRTP(nil, got, nil); err == nil {
					heard[2] = true
				}
			}
		}
		if heard != [4]bool{true, true, true, true} {
			t.Fatalf("%s: heard by the phone, RTP and RTCP, and by the browser: %v", what, heard)
		}
	}
	// Its handshake reads the first socket, and leaves the media in the channel.
	converse("first", r.UDPConn, func() []byte {
		select {
		case b := <-r.media:
			return b
		case <-time.After(10 * time.Millisecond):
			return nil
		}
	})
	before := r.dropped("unknown_source")
	r.send(stranger, sealedRTP(t, seal, speech(3000)), []byte{22, 254, 253, 0})
	other := udpAt(t, "127.0.5.8")
	r.nominate(other) // another network of the browser's
	converse("moved", other, func() []byte { return read(t, other) })
	if n := r.dropped("unknown_source") - before; n != 2 {
		t.Errorf("%d packets of a stranger were dropped, not 2", n)
	}
}

// send sends packets to the edge.
func (r *iceRig) send(from *net.UDPConn, packets ...[]byte) {
	r.t.Helper()
	for _, b := range packets {
		if _, err := from.WriteToUDPAddrPort(b, r.to); err != nil {
			r.t.Fatal(err)
		}
	}
}

// read returns what comes within 10 ms, nil if nothing does.
func read(t *testing.T, from *net.UDPConn) []byte {
	t.Helper()
	if err := from.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, err := from.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// senderReport is one without blocks.
func senderReport(n uint32) []byte {
	b := make([]byte, 28)
	b[0], b[1], b[3], b[7], b[27] = 0x80, 200, 6, 7, byte(n)
	return b
}

func sealedRTP(t *testing.T, c *srtp.Context, b []byte) []byte {
	t.Helper()
	out, err := c.EncryptRTP(nil, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sealedRTCP(t *testing.T, c *srtp.Context, b []byte) []byte {
	t.Helper()
	out, err := c.EncryptRTCP(nil, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// drain reads a DTLS connection until it ends.
func drain(conn net.Conn) {
	for buf := make([]byte, 2048); ; {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

package pathtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// Loopback runs the cases that say what a relay promises, between hosts on the loopback device.
func Loopback(t *testing.T, d Driver) {
	must(t, loopbackUp())
	newPath := func(t *testing.T) media.Path {
		return d.Path(t, Setup{Networks: loopbackNetworks(), DSCP: dscp, Loopback: true})
	}
	tests := []struct {
		name string
		run  func(*testing.T, func(*testing.T) media.Path)
	}{
		{"pair", testPair},
		{"udp", testUDP},
		{"rtcp-mux", testMux},
		{"own rtcp port", testOwnRTCP},
		{"latch another port of the host", testLatchPort},
		{"latch behind a nat", testLatchNAT},
		{"nothing sent to a hidden address", testHidden},
		{"no latch", testNoLatch},
		{"peer not known yet", testNoPeer},
		{"redeclare", testRedeclare},
		{"hold", testHold},
		{"injector", testInjector},
		{"rtcp host", testRTCPHost},
		{"fork", testFork},
		{"close", testClose},
		{"tap", testTap},
		{"v4 to v6", testFamilies},
		{"icmp", testICMP},
		{"sizes", testSizes},
		{"burst", testBurst},
		{"loss and jitter", testStats},
		{"channels", testChannels},
		{"framing of channels", testChannelFraming},
		{"ends of channels", testChannelEnds},
		{"bursts by channels", testChannelBursts},
		{"families of channels", testChannelFamilies},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, newPath) })
	}
}

func testPair(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	for _, s := range []pinhole.Side{near, far} {
		if a, r := c.local[s].Addr, c.local[s].RTCP; a.Port()%2 != 0 || r.Port() != a.Port()+1 || r.Addr() != a.Addr() {
			t.Fatalf("side %d has %v and %v", s, a, r)
		}
		c.talk(s, fmt.Sprintf("rtp %d", s))
		c.peers[s].sendRTCP(c.local[s].RTCP, []byte("rtcp"))
		c.peers[s.Other()].expectRTCP(c.local[s.Other()].RTCP, []byte("rtcp"))
	}
	c.waitFor("counters", func(i media.Info) bool {
		return i.Ends[0].Stats.Packets == 2 && i.Ends[0].Stats.Bytes == 9 &&
			i.Ends[0].Latched == c.peers[0].addr() && i.Ends[0].LatchedRTCP == addrOf(c.peers[0].ctl)
	})
	sum := c.lease.Close()
	for s, st := range sum.From {
		if st.Packets != 2 || st.Bytes != 9 || st.Dropped != 0 {
			t.Errorf("side %d: %+v", s, st)
		}
	}
	if again := c.lease.Close(); again != sum {
		t.Errorf("second close: %+v", again)
	}
}

func testUDP(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.UDP)
	c.talk(far, "t38")
	c.talk(near, "t38")
	if c.local[near].RTCP.IsValid() {
		t.Errorf("a single port has the RTCP port %v", c.local[near].RTCP)
	}
}

// testMux: RTCP that shares the port stays on it; what arrives at the RTCP port all the same leaves by
// the RTP port of a side that shares.
func testMux(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	mux := c.peers[far].remote()
	mux.RTCP = mux.Addr
	c.declare(c.lease, far, mux)
	sr := make([]byte, 28)
	sr[0], sr[1], sr[3] = 0x80, 200, 6
	c.peers[near].send(c.local[near].Addr, sr)
	c.peers[far].expect(c.local[far].Addr, sr)
	c.peers[near].sendRTCP(c.local[near].RTCP, []byte("report"))
	c.peers[far].expect(c.local[far].Addr, []byte("report"))
}

func testOwnRTCP(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	own := newPeer(t, "127.0.2.10")
	r := c.peers[far].remote()
	r.RTCP = own.addr()
	c.declare(c.lease, far, r)
	c.peers[near].sendRTCP(c.local[near].RTCP, []byte("report"))
	own.expect(c.local[far].RTCP, []byte("report"))
	own.send(c.local[far].RTCP, []byte("answer"))
	c.peers[near].expectRTCP(c.local[near].RTCP, []byte("answer"))
}

func testLatchPort(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	c.talk(near, "to the declared port")
	odd := newPeer(t, "127.0.2.10")
	odd.send(c.local[far].Addr, []byte("from another port"))
	c.peers[near].expect(c.local[near].Addr, []byte("from another port"))
	c.peers[near].send(c.local[near].Addr, []byte("to that port"))
	odd.expect(c.local[far].Addr, []byte("to that port"))
	// The source is locked now, for the declared port too.
	c.peers[far].send(c.local[far].Addr, []byte("late"))
	odd.send(c.local[far].Addr, []byte("still me"))
	c.peers[near].expect(c.local[near].Addr, []byte("still me"))
	c.waitDropped(far, media.UnknownSource, 1)
}

func testLatchNAT(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	nat := newPair(t, "127.0.2.20")
	c.declare(c.lease, far, pinhole.Remote{
		Addr: netip.MustParseAddrPort("192.168.7.7:4000"), Source: nat.addr().Addr(),
	})
	nat.send(c.local[far].Addr, []byte("hello"))
	c.peers[near].expect(c.local[near].Addr, []byte("hello"))
	c.peers[near].send(c.local[near].Addr, []byte("hello to you"))
	nat.expect(c.local[far].Addr, []byte("hello to you"))
	nat.sendRTCP(c.local[far].RTCP, []byte("report"))
	c.peers[near].expectRTCP(c.local[near].RTCP, []byte("report"))
}

// testHidden: nothing goes to a private address that a public source declares.
func testHidden(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	c.declare(c.lease, far, pinhole.Remote{
		Addr: netip.MustParseAddrPort("192.168.7.7:4000"), Source: netip.MustParseAddr("127.0.2.20"),
	})
	c.peers[near].send(c.local[near].Addr, []byte("to nobody"))
	c.waitDropped(near, media.NoPeer, 1)
}

func testNoLatch(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, func(_ *media.PinholeConfig, cfg *media.Config) { cfg.Latch = false }).call(pinhole.RTP)
	newPeer(t, "127.0.2.10").send(c.local[far].Addr, []byte("another port"))
	c.talk(far, "the declared port")
	c.talk(near, "back")
	c.waitDropped(far, media.UnknownSource, 1)
}

func testNoPeer(t *testing.T, newPath func(*testing.T) media.Path) {
	r := newRig(t, newPath, nil)
	l := r.open(pinhole.RTP)
	a, b := newPeer(t, "127.0.1.10"), newPeer(t, "127.0.2.10")
	r.declare(l, near, a.remote())
	a.send(l.Local(near).Addr, []byte("early"))
	r.waitDropped(near, media.NoPeer, 1)
	b.send(l.Local(far).Addr, []byte("stranger"))
	r.waitDropped(far, media.UnknownSource, 1)
	r.declare(l, far, b.remote())
	a.send(l.Local(near).Addr, []byte("now"))
	b.expect(l.Local(far).Addr, []byte("now"))
	a.quiet()
}

// testRedeclare is failure mode 3: after a re-INVITE with a new address, late packets from the old
// port neither pass nor draw the media back.
func testRedeclare(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	c.talk(far, "before")
	old, moved := c.peers[far], newPair(t, "127.0.2.10")
	c.declare(c.lease, far, moved.remote())
	old.send(c.local[far].Addr, []byte("late"))
	c.waitDropped(far, media.UnknownSource, 1)
	c.peers[near].send(c.local[near].Addr, []byte("to the new port"))
	moved.expect(c.local[far].Addr, []byte("to the new port"))
	c.peers[far] = moved
	c.talk(far, "after")
	c.talk(near, "after")
	old.quiet()
}

// testHold: the same address again, quiet and back, keeps the source.
func testHold(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	odd := newPair(t, "127.0.2.10")
	declared := c.peers[far].remote()
	odd.send(c.local[far].Addr, []byte("first"))
	c.peers[near].expect(c.local[near].Addr, []byte("first"))
	for _, quiet := range []bool{true, false} {
		declared.Quiet = quiet
		c.declare(c.lease, far, declared)
		c.peers[near].send(c.local[near].Addr, []byte("music"))
		odd.expect(c.local[far].Addr, []byte("music"))
	}
	// Hold by 0.0.0.0 (RFC 2543) names no address at all.
	c.declare(c.lease, far, pinhole.Remote{Quiet: true})
	c.declare(c.lease, far, declared)
	c.peers[far] = odd
	c.talk(near, "resumed")
	c.talk(far, "resumed")
}

// testInjector: a host off the path hears nothing and is heard by nobody: at the start, in the steady
// state, and after a re-INVITE with the same address.
func testInjector(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	evil := [2]*peer{newPeer(t, "127.0.1.66"), newPeer(t, "127.0.2.66")}
	n := uint64(0)
	for _, moment := range []string{"start", "steady", "hold", "resume"} {
		if moment == "hold" || moment == "resume" {
			r := c.peers[far].remote()
			r.Quiet = moment == "hold"
			c.declare(c.lease, far, r)
		}
		for range 50 {
			n++
			for s, e := range evil {
				e.send(c.local[s].Addr, []byte("evil"))
			}
		}
		c.waitDropped(near, media.UnknownSource, n)
		c.waitDropped(far, media.UnknownSource, n)
		for range 3 {
			c.talk(near, moment)
			c.talk(far, moment)
		}
	}
	for s, e := range evil {
		e.quiet()
		c.peers[s].quiet()
	}
}

// testRTCPHost: once RTP has latched a host, RTCP is heard from no other, even if it was declared.
func testRTCPHost(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	nat := newPair(t, "127.0.2.20")
	r := c.peers[far].remote()
	r.Source = nat.addr().Addr()
	c.declare(c.lease, far, r)
	nat.send(c.local[far].Addr, []byte("hello"))
	c.peers[near].expect(c.local[near].Addr, []byte("hello"))
	c.peers[far].sendRTCP(c.local[far].RTCP, []byte("wrong host"))
	c.waitDropped(far, media.UnknownSource, 1)
	nat.sendRTCP(c.local[far].RTCP, []byte("right host"))
	c.peers[near].expectRTCP(c.local[near].RTCP, []byte("right host"))
}

func testFork(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	fork, err := c.lease.Fork()
	if err != nil {
		t.Fatal(err)
	}
	branch := newPeer(t, "127.0.2.30")
	c.declare(fork, far, branch.remote())
	second, shared := fork.Local(near).Addr, fork.Local(far).Addr
	if second == c.local[near].Addr || shared != c.local[far].Addr {
		t.Fatalf("the fork has %v and %v", second, shared)
	}
	branch.send(shared, []byte("from branch 2"))
	c.peers[near].expect(second, []byte("from branch 2"))
	c.talk(far, "from branch 1")
	c.peers[near].send(second, []byte("to branch 2"))
	branch.expect(shared, []byte("to branch 2"))
	c.talk(near, "to branch 1")
	newPeer(t, "127.0.2.66").send(shared, []byte("evil"))
	c.waitDropped(far, media.UnknownSource, 1)
	c.lease.Close()
	branch.send(shared, []byte("branch 1 is gone"))
	c.peers[near].expect(second, []byte("branch 1 is gone"))
	fork.Close()
	if left := c.relay.Pinholes(); len(left) != 0 {
		t.Fatalf("left: %+v", left)
	}
}

// testClose: nothing passes a closed lease, and its port can be bound again.
func testClose(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	c.talk(near, "open")
	c.lease.Close()
	var again *net.UDPConn
	for range 10000 {
		if again = listen(t, c.local[near].Addr); again != nil {
			break
		}
		pause()
	}
	if again == nil {
		t.Fatal("the socket stays open")
	}
	c.peers[near].send(c.local[near].Addr, []byte("closed"))
	read(t, again, c.peers[near].addr(), []byte("closed"))
	c.peers[far].quiet()
}

func testFamilies(t *testing.T, newPath func(*testing.T) media.Path) {
	if l, err := net.ListenPacket("udp", "[::1]:0"); err != nil {
		t.Skipf("no IPv6 on loopback: %v", err)
	} else {
		l.Close()
	}
	r := newRig(t, newPath, nil)
	l := r.open(pinhole.RTP, pinhole.IPv4, pinhole.IPv6)
	a, b := newPair(t, "127.0.1.10"), newPair(t, "::1")
	r.declare(l, near, a.remote())
	r.declare(l, far, b.remote())
	a.send(l.Local(near).Addr, []byte("four to six"))
	b.expect(l.Local(far).Addr, []byte("four to six"))
	b.send(l.Local(far).Addr, []byte("six to four"))
	a.expect(l.Local(near).Addr, []byte("six to four"))
	b.sendRTCP(l.Local(far).RTCP, []byte("report"))
	a.expectRTCP(l.Local(near).RTCP, []byte("report"))
	if err := l.Declare(far, a.remote()); err == nil {
		t.Error("an IPv4 peer at an IPv6 end was accepted")
	}
}

// testICMP: a port that nobody listens on is counted, and the flow goes on when somebody does.
func testICMP(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	at := c.peers[far].addr()
	c.peers[far].conn.Close()
	sent := 0
	for ; sent < 10000; sent++ {
		c.peers[near].send(c.local[near].Addr, []byte("anybody there?"))
		if c.relay.Pinholes()[0].Ends[far].Stats.Unreachable > 0 {
			break
		}
		pause()
	}
	c.waitFor("unreachable", func(i media.Info) bool { return i.Ends[far].Stats.Unreachable > 0 })
	c.peers[far].conn = listen(t, at)
	if c.peers[far].conn == nil {
		t.Skipf("%s was taken by somebody else", at)
	}
	// The error of the last packet may still come, and must not eat this one.
	c.peers[far].send(c.local[far].Addr, []byte("here"))
	c.peers[near].expect(c.local[near].Addr, []byte("here"))
	c.peers[near].send(c.local[near].Addr, []byte("good"))
	for range sent + 2 {
		if string(c.peers[far].next()) == "good" {
			return
		}
	}
	t.Error("packets of before came, but not the one of now")
}

func testSizes(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	for _, size := range []int{0, 1, 7, 8, 11, 12, 172, 1472, 1473, 9000, 65506, 65507} {
		b := bytes.Repeat([]byte{0x80}, size)
		c.peers[near].send(c.local[near].Addr, b)
		c.peers[far].expect(c.local[far].Addr, b)
		c.peers[far].send(c.local[far].Addr, b)
		c.peers[near].expect(c.local[near].Addr, b)
	}
}

// testBurst: more packets than a batch, in order.
func testBurst(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	for i := range 100 {
		c.peers[near].send(c.local[near].Addr, fmt.Appendf(nil, "packet %d", i))
	}
	for i := range 100 {
		c.peers[far].expect(c.local[far].Addr, fmt.Appendf(nil, "packet %d", i))
	}
	c.waitFor("counters", func(i media.Info) bool { return i.Ends[near].Stats.Packets == 100 })
}

// testStats: of 20 packets two are missing.
func testStats(t *testing.T, newPath func(*testing.T) media.Path) {
	c := newRig(t, newPath, nil).call(pinhole.RTP)
	for i := range 20 {
		if i == 5 || i == 6 {
			continue
		}
		b := make([]byte, 172)
		b[0] = 0x80
		binary.BigEndian.PutUint16(b[2:], uint16(65530+i))
		binary.BigEndian.PutUint32(b[4:], uint32(160*i))
		b[11] = 7
		c.peers[near].send(c.local[near].Addr, b)
		c.peers[far].expect(c.local[far].Addr, b)
	}
	st := c.lease.Close().From[near]
	if st.Packets != 18 || st.Lost != 2 || st.Jitter <= 0 || st.MOS < 1 || st.MOS > 4.5 {
		t.Errorf("%+v", st)
	}
}

//go:build lab

package lab

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// injectedHz is the tone of whoever has no business in a call.
const injectedHz = 700

// injector speaks to the relay's port from an outside host that the signalling never named.
func (s *scene) injector() *Voice {
	s.Helper()
	return s.rig.Outside("attacker").Voice(s, netip.AddrPortFrom(netip.IPv4Unspecified(), 0), injectedHz)
}

// wantDeaf checks that the injector received nothing, and that no voice heard it.
func (s *scene) wantDeaf(when string, attacker *Voice, voices ...*Voice) {
	s.Helper()
	if n := attacker.Packets(); n > 0 {
		s.Errorf("%s: the attacker received %d packets of the call", when, n)
	}
	for _, v := range voices {
		if d := v.Heard().Part(injectedHz); d > 0 {
			s.Errorf("%s: %v heard %v of the attacker", when, v.Addr, d)
		}
	}
}

// TestFM14_RTPHijack: an off-path host sends RTP to the relay's outside port at the start of the call,
// before the callee's first packet, in steady state, and over hold and resume. It receives nothing and
// nobody hears it.
func TestFM14_RTPHijack(t *testing.T) {
	onlyEdged(t, "rtpengine's default gives the attacker 26-54 packets (wire notes)")
	paths := []string{"user", "tc", "xdp"}
	if unprivileged() {
		paths = paths[:1]
	}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) { hijack(t, path) })
	}
}

// hijack attacks a call whose media takes a path.
func hijack(t *testing.T, path string) {
	s := newScene(t, plan{Edge: EdgeConfig{More: "media: {datapath: " + path + "}\n"}})
	if path == "xdp" {
		s.forXDP()
	}
	attacker := s.injector()
	d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	relay, err := mediaAddr(req.Body, 0)
	must(t, "offer", err)
	attacker.Talk(relay)
	s.bob.Reply(req, 200, "OK", Offer{Addr: s.vb.Addr}.String())
	s.confirm(d, s.bob, s.va)
	pass(700 * time.Millisecond) // bob is silent: the attacker alone speaks to the port
	s.wantDeaf("at the start", attacker, s.va, s.vb)
	s.vb.Talk(relay)
	s.hearEachOther(time.Second)
	s.wantDeaf("steady", attacker, s.va, s.vb)
	s.wantPath(path)
	for ver, dir := range []string{"sendonly", "sendrecv"} {
		d.Send("INVITE", Offer{Addr: s.va.Addr, Dir: dir, Ver: ver + 1}.String())
		req := s.bob.ExpectRequest("INVITE")
		s.bob.Reply(req, 200, "OK", Offer{Addr: s.vb.Addr, Dir: map[string]string{"sendonly": "recvonly", "sendrecv": "sendrecv"}[dir], Ver: ver + 1}.String())
		d.Await("INVITE", 200, 200)
		d.Send("ACK", "")
		s.bob.ExpectRequest("ACK")
		pass(500 * time.Millisecond)
	}
	s.hearEachOther(time.Second)
	s.wantDeaf("after hold and resume", attacker, s.va, s.vb)
	s.wantPath(path)
	d.Bye(s.bob)
	s.edge.Clean(t)
}

// TestFM14_HijackControl: without restricted latching the same attacker is heard or hears: the
// reference edge is the proof that the attack is real.
func TestFM14_HijackControl(t *testing.T) {
	s := newScene(t, plan{NoEdge: true})
	s.edge = &Edge{rig: s.rig, isRef: true, proc: s.rig.Reference(t)}
	attacker := s.injector()
	d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	relay, err := mediaAddr(req.Body, 0)
	must(t, "offer", err)
	attacker.Talk(relay)
	s.bob.Reply(req, 200, "OK", Offer{Addr: s.vb.Addr}.String())
	s.confirm(d, s.bob, s.va)
	if !until(5*time.Second, func() bool { return attacker.Packets() > 0 || s.va.Heard().Part(injectedHz) > 0 }) {
		t.Error("the attack does not work even on the reference: the case proves nothing")
	}
	t.Logf("the attacker got %d packets; alice heard %v of it", attacker.Packets(), s.va.Heard().Part(injectedHz))
}

// TestFM14_HonestPhoneBehindNAT: a phone behind a NAT, whose SDP names an address that is not the one
// its packets come from, gets its audio while the attacker sends too.
func TestFM14_HonestPhoneBehindNAT(t *testing.T) {
	onlyEdged(t, "see TestFM14_RTPHijack")
	s := newScene(t, plan{})
	attacker := s.injector()
	home, _ := s.rig.BehindNAT("home")
	phone := home.Agent(t, "worker", "udp", home.Addr(4, 5060), nil)
	voice := home.Voice(t, home.Addr(4, 30000), 1240)
	d, req := s.invite(phone, s.alice, "sip:alice@inside.example.org", Offer{Addr: voice.Addr})
	s.aim(s.va, req.Body)
	s.alice.Reply(req, 200, "OK", Offer{Addr: s.va.Addr}.String())
	ok := d.Await("INVITE", 200, 200)
	relay, err := mediaAddr(ok.Body, 0)
	must(t, "answer", err)
	attacker.Talk(relay)
	pass(300 * time.Millisecond) // the attacker's packets come first
	d.Send("ACK", "")
	voice.Talk(relay)
	s.alice.ExpectRequest("ACK")
	wantVoice(t, "alice", s.va, voice.Hz, time.Second)
	wantVoice(t, "the phone behind the NAT", voice, s.va.Hz, time.Second)
	s.wantDeaf("with a NATed peer", attacker, s.va, voice)
	d.Bye(s.alice)
	s.edge.Clean(t)
}

// TestFM14_Scanners: svmap, svwar and sipsak sweep the outside listener: nothing is found, the sender
// is banned and counted; whoever is challenged with 401 again and again is not.
func TestFM14_Scanners(t *testing.T) {
	onlyEdged(t, "it bans nobody")
	s := newScene(t, plan{})
	bad := s.rig.Outside("scanner")
	for name, argv := range map[string][]string{
		"svmap": {"svmap", "-p", "5060", s.outGate.Addr().String()},
		"svwar": {"svwar", "-e", "100-140", "-m", "INVITE", s.outGate.Addr().String()},
	} {
		p := bad.Start(t, name, argv...)
		_ = p.Wait(25 * time.Second) // its exit status says nothing
		if out := tail(p.Log, 4000); strings.Contains(out, s.outGate.String()) && strings.Contains(out, "|") {
			t.Errorf("%s found something: %s", name, out)
		}
	}
	if s.edge.Metric("edged_sip_drops_total", `"scanner"`) == 0 || s.edge.Metric("edged_sip_drops_total", `"banned"`) == 0 {
		t.Error("scanners are not counted")
	}
	banned := bad.Agent(t, "scanner", "udp", bad.Addr(4, 5080), nil)
	banned.Invite(s.outGate, "sip:alice@inside.example.org", Offer{Addr: s.vb.Addr}.String())
	banned.Never("an answer, though banned", time.Second, func(*Message) bool { return true })
	worker := s.rig.Outside("worker")
	honest := worker.Agent(t, "worker", "udp", worker.Addr(4, 5060), nil)
	for range 40 {
		d := honest.NewDialog(s.outGate, "sip:inside.example.org")
		d.Send("REGISTER", "", "Expires: 60")
		req := s.alice.ExpectRequest("REGISTER")
		s.alice.Reply(req, 401, "Unauthorized", "", `WWW-Authenticate: Digest realm="inside.example.org", nonce="n1"`)
		d.Await("REGISTER", 401, 401)
	}
	honest.Register(s.outGate, s.alice, "inside.example.org")
}

// TestSlipstream: an inside host's offer or Contact that names another inside host opens nothing for
// that host, and is counted. (Alice will not do: a configured server may name others.)
func TestSlipstream(t *testing.T) {
	onlyEdged(t, "it relays to whatever SDP says")
	s := newScene(t, plan{})
	bad, host := s.rig.Inside("in2"), s.rig.Inside("in3")
	mallory := bad.Agent(t, "mallory", "udp", bad.Addr(4, 5060), nil)
	victim := host.Voice(t, host.Addr(4, 30000), 1240)
	phone := host.Agent(t, "victim", "udp", host.Addr(4, 5060), nil)
	before := s.edge.Metric("edged_media_refused_total")
	d := mallory.Invite(s.inGate, "sip:bob@example.org", Offer{Addr: victim.Addr}.String())
	if until(2*time.Second, func() bool {
		req := s.bob.take(func(m *Message) bool { return m.CallID() == d.ID })
		if req != nil {
			s.aim(s.vb, req.Body)
			s.bob.Reply(req, 200, "OK", Offer{Addr: s.vb.Addr}.String())
		}
		return req != nil
	}) {
		pass(time.Second)
	}
	if n := victim.Packets(); n > 0 {
		t.Errorf("the host named in another's SDP got %d packets", n)
	}
	if after := s.edge.Metric("edged_media_refused_total"); after <= before {
		t.Errorf("edged_media_refused_total is %v after and %v before", after, before)
	}
	s.slipContact(mallory, phone)
}

// slipContact registers the victim's address as mallory's Contact: no call may reach it there.
func (s *scene) slipContact(mallory, victim *Agent) {
	s.Helper()
	d := mallory.NewDialog(s.inGate, "sip:example.org")
	d.Send("REGISTER", "", fmt.Sprintf("Contact: <sip:victim@%v>", victim.Addr), "Expires: 3600")
	if !until(2*time.Second, func() bool {
		req := s.bob.take(func(m *Message) bool { return m.Method() == "REGISTER" })
		if req == nil {
			return false
		}
		s.bob.grant(req)
		d.Await("REGISTER", 200, 299)
		s.bob.Invite(s.outGate, uriOf(req.Get("Contact")), Offer{Addr: s.vb.Addr}.String())
		return true
	}) {
		d.Await("REGISTER", 400, 499) // refused at the edge
	}
	victim.Never("a call that another host's registration sent there", 1500*time.Millisecond, func(*Message) bool { return true })
}

// TestGarbageFlood: random bytes, broken messages and cut streams on every listener and on the relay's
// port while a call lasts: its audio goes on, and a call can be made afterwards.
func TestGarbageFlood(t *testing.T) {
	onlyEdged(t, "nothing to prove")
	s := newScene(t, plan{})
	a, _ := s.call()
	s.hearEachOther(300 * time.Millisecond)
	relay := s.vb.target()
	noise := s.rig.Outside("noise")
	out := noise.Fax(t, noise.Addr(4, 9000))
	inner := s.rig.Inside("noise-in").Fax(t, netip.AddrPortFrom(netip.IPv4Unspecified(), 9000))
	rng := rand.New(rand.NewPCG(1, 2)) // the same garbage in every run
	s.va.Forget()
	s.vb.Forget()
	for i := range 6000 {
		b := garbage(rng)
		_, _ = out.pc.WriteToUDPAddrPort(b, s.outGate)
		_, _ = out.pc.WriteToUDPAddrPort(b, relay)
		_, _ = inner.pc.WriteToUDPAddrPort(b, s.inGate)
		if i%100 == 0 {
			s.cutStream(noise, b)
		}
	}
	wantVoice(t, "alice", s.va, s.vb.Hz, time.Second)
	wantVoice(t, "bob", s.vb, s.va.Hz, time.Second)
	a.Bye(s.bob)
	b, _ := s.callIn()
	s.hearEachOther(300 * time.Millisecond)
	b.Bye(s.alice)
	s.edge.Clean(t)
	if drops := s.edge.Metric("edged_sip_drops_total") + s.edge.Metric("edged_sip_transport_drops_total"); drops == 0 {
		t.Error("nothing of the garbage was counted")
	}
}

// target returns where the voice speaks to.
func (v *Voice) target() netip.AddrPort {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.to
}

// garbage returns random bytes, sometimes with the beginning of a message.
func garbage(rng *rand.Rand) []byte {
	heads := []string{"", "INVITE sip:x@inside.example.org SIP/2.0\r\nVia: ", "SIP/2.0 200 OK\r\nContent-Length: 99999999999\r\n", "\x80\x00", "\x00\x01\x00\x08\x21\x12\xa4\x42"}
	b := []byte(heads[rng.IntN(len(heads))])
	for range rng.IntN(1200) {
		b = append(b, byte(rng.Uint32()))
	}
	return b
}

// cutStream writes garbage to the TCP listener and breaks off.
func (s *scene) cutStream(h *Host, b []byte) {
	_ = h.Do(func() error {
		c, err := net.DialTimeout("tcp", s.outGate.String(), 2*time.Second)
		if err == nil {
			_, _ = c.Write(b)
			err = c.Close()
		}
		return err
	})
}

// TestHalfOpenTCP: thousands of connections that send one byte at a time do not exhaust the daemon: the
// limit per source holds and is counted, memory stays bounded, a live call goes on and an honest
// client is served. EDGED_LAB_FULL=1 makes it 100,000 attempts from 100 addresses.
func TestHalfOpenTCP(t *testing.T) {
	onlyEdged(t, "nothing to prove")
	attempts, sources := 4000, 8
	if os.Getenv("EDGED_LAB_FULL") != "" {
		attempts, sources = 100000, 100
	}
	s := newScene(t, plan{})
	tcp := s.outHost.Agent(t, "carol", "tcp", s.outHost.Addr(4, 5070), nil)
	a, _ := s.call()
	peak := s.dribbleAll(attempts, sources)
	open := s.edge.Metric("edged_sip_connections", `"outside"`)
	refused := s.edge.Metric("edged_sip_transport_drops_total", "source")
	t.Logf("%d attempts from %d addresses: %v open, %v refused, resident set at most %d MiB", attempts, sources, open, refused, peak>>10)
	if limit := float64(64*sources + 64); open > limit || refused < float64(attempts)/2 || peak > 512<<10 {
		t.Errorf("open %v (limit %v), refused %v, resident %d KiB", open, limit, refused, peak)
	}
	s.hearEachOther(500 * time.Millisecond)
	tcp.Invite(s.outGate, "sip:alice@inside.example.org", Offer{Addr: s.vb.Addr}.String())
	s.alice.ExpectRequest("INVITE")
	a.Bye(s.bob)
}

// dribbleAll opens connections from many addresses, each with the first bytes of a message, keeps as many
// as this process may, and returns edged's largest resident set in KiB. They close when the test ends.
func (s *scene) dribbleAll(attempts, sources int) (peak int) {
	s.Helper()
	mine := descriptors(s.T) * 3 / 4
	bad := s.rig.Outside("dribble")
	var held []net.Conn
	s.Cleanup(func() {
		for _, c := range held {
			_ = c.Close()
		}
	})
	for i := range attempts {
		if i < sources {
			s.rig.ip("-n %s addr add 198.51.100.%d/24 dev eth0", bad.ns, 100+i)
		}
		from := net.IPv4(198, 51, 100, byte(100+i%sources))
		if c := dribble(bad, from, s.outGate); c != nil {
			held = append(held, c)
		}
		if len(held) > mine {
			_ = held[0].Close()
			held = held[1:]
		}
		if i%500 == 0 {
			peak = max(peak, s.edge.rss(s.T))
		}
	}
	for _, c := range held {
		_, _ = c.Write([]byte("N")) // the next byte of "INVITE"; most are closed by now
	}
	return max(peak, s.edge.rss(s.T))
}

// dribble opens a connection from an address and sends the first byte of a message, nil if refused.
func dribble(h *Host, from net.IP, to netip.AddrPort) (c net.Conn) {
	_ = h.Do(func() (err error) {
		d := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: from}}
		if c, err = d.Dial("tcp", to.String()); err == nil {
			_, err = c.Write([]byte("I"))
		}
		return err
	})
	return c
}

// descriptors returns how many files this process may open, at most 100,000.
func descriptors(t *testing.T) int {
	t.Helper()
	var l syscall.Rlimit
	must(t, "limit", syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l))
	l.Cur = l.Max
	must(t, "limit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l))
	return int(min(l.Cur, 100000))
}

// rss returns the resident set of edged in KiB.
func (e *Edge) rss(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.proc.cmd.Process.Pid))
	must(t, "status of edged", err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	must(t, "resident set", err)
	return n
}

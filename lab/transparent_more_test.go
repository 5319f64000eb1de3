//go:build lab

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// managed has the daemon apply the rules itself.
const managed = "firewall: {manage: true}\n"

// TestTransparentTFTP: clients inside that have nothing but a default route get and put files at servers outside, by the
// servers' own addresses, which see the edge or, if that is kept, the client; nothing is forwarded. With the table
// taken off, no file comes.
func TestTransparentTFTP(t *testing.T) {
	for name, keep := range map[string]bool{"": false, "source-kept": true} {
		t.Run(name, func(t *testing.T) {
			r := tftpLab(t)
			in, out := r.Inside("in1"), r.Outside("out1")
			dir, sees := out.tftpd(t), r.GW.IPOn(outside, 4)
			if keep {
				r.ip("-n %s route add %s/32 via %s", out.ns, in.IP, sees)
				sees = in.IP
			}
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("tftp: {trivial: {listen: [\"udp://inside:69\"], transparent: true, keep_source: %v, write: true}}\n", keep) + managed})
			wan := r.Capture("wan")
			want, got := noise(t, filepath.Join(dir, "file"), 30000), filepath.Join(r.Dir, "got")
			for _, block := range []int{0, 1428} {
				text, err := in.tftpGet(tftpTime, out.IP, "file", got, block)
				must(t, "get: "+text, err)
				same(t, got, want)
				text, err = in.tftpPut(tftpTime, out.IP, got, fmt.Sprintf("put-%d", block), block)
				must(t, "put: "+text, err)
				same(t, filepath.Join(dir, fmt.Sprintf("put-%d", block)), want)
			}
			for _, p := range wan.Stop(t) {
				if p.Dst.Addr() == out.IP && p.Src.Addr() != sees {
					t.Fatalf("the server was sent to by %v, not %v", p.Src, sees)
				}
			}
			if n := e.Metric("edged_firewall_packets_total", `for="tftp"`); n < 4 {
				t.Errorf("%v requests were handed over", n)
			}
			if n := e.Metric("edged_firewall_packets_total", `for="answers"`); n < 80 {
				t.Errorf("%v packets came to the server's other ports", n)
			}
			e.Firewall(t, "remove")
			if text, err := in.tftpGet(3*time.Second, out.IP, "file", filepath.Join(r.Dir, "none"), 1428); err == nil {
				t.Errorf("without the table the file came: %s", text)
			}
		})
	}
}

// TestTransparentRAS: phones inside that are told of a gatekeeper outside register with it through an edge that they do not know,
// which passes RAS on to that one, or is a gatekeeper in its place; they hear it from the address that they have asked. With
// the table taken off nobody answers.
func TestTransparentRAS(t *testing.T) {
	for _, c := range []struct {
		name   string
		family int
		outer  bool
	}{{"passed-on", 4, true}, {"in-its-place-ipv6", 6, false}} {
		t.Run(c.name, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in, out, other := r.Inside("in1"), r.Outside("gk"), r.Inside("in2")
			ras, gate := "ras: [\"udp://inside:1719\"]", out.Addr(c.family, 1719)
			if c.outer {
				out.H323Gatekeeper(t)
				ras = fmt.Sprintf("ras: [\"udp://inside:1719\", \"udp://outside:1719\"], gatekeeper: %q", gate)
			}
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, %s, transparent: true}\n", h323Listen, ras) + managed})
			bob := other.H323Phone(t, h323Spec{Name: "bob", At: other.Addr(c.family, 1720), Gatekeeper: gate})
			alice := in.H323Phone(t, h323Spec{Name: "alice", At: in.Addr(c.family, 1720), Gatekeeper: gate, Called: "bob"})
			h323Between(t, e, alice, bob)
			if n := e.Metric("edged_firewall_packets_total", `for="h323_ras"`); n < 2 {
				t.Errorf("%v messages of RAS were handed over", n)
			}
			e.Firewall(t, "remove")
			carol := in.h323PhoneStarts(t, h323Spec{Name: "carol", At: in.Addr(c.family, 1730), Gatekeeper: gate})
			if until(3*time.Second, func() bool { return logged(carol, "ready") }) {
				t.Error("without the table carol has registered")
			}
		})
	}
}

// TestTransparentH323In: a phone inside, which knows of no edge, is called from outside by the gateway's address, and finds the
// gatekeeper of its network by multicast.
func TestTransparentH323In(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	in, out := r.Inside("in1"), r.Outside("out1")
	e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, ras: [\"udp://inside:1719\"], discovery: [inside], transparent: true}\n", h323Listen) + managed})
	bob := in.H323Phone(t, h323Spec{Name: "bob", At: in.Addr(4, 1720), Discover: true})
	alice := out.H323Phone(t, h323Spec{Name: "alice", At: out.Addr(4, 1720), To: netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1720), Called: "bob"})
	h323Talk(t, e, alice, bob, false)
}

// TestTransparentDesktop: xfreerdp inside reaches xrdp outside at 1503 by that one's own address, through T.120's front; the
// server sees the client's address, as is asked for. With the table taken off, nothing appears.
func TestTransparentDesktop(t *testing.T) {
	r := desktopLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	out.xrdp(t)
	r.ip("-n %s route add %s/32 via %s", out.ns, in.IP, r.GW.IPOn(outside, 4))
	e := r.Edge(t, EdgeConfig{More: "t120: {listen: [\"tcp://inside:1503\"], rdp: true, transparent: true, keep_source: true}\n" + managed})
	wan := r.Capture("wan")
	s := in.screen(t, "0")
	s.freerdp(t, netip.AddrPortFrom(out.IP, 1503), "/sec:rdp", "-fast-path")
	s.appear(t)
	for _, p := range wan.Stop(t) {
		if p.Dst == netip.AddrPortFrom(out.IP, 1503) && p.Src.Addr() != in.IP {
			t.Fatalf("the server was called by %v", p.Src)
		}
	}
	e.Firewall(t, "remove")
	if in.connects(netip.AddrPortFrom(out.IP, 1503)) {
		t.Error("without the table the server was reached")
	}
}

// connects tells whether a host gets a connection within two seconds.
func (h *Host) connects(to netip.AddrPort) bool {
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), 2*time.Second)
		return err
	})
	if err == nil {
		c.Close()
	}
	return err == nil
}

// TestTransparentUnread: what is connected to by its own address from inside is reached over IPv6 too: T.120, a directory at
// 1002, audio call control with its datagrams, of which both hosts hear each other, the caller by the other's own address.
// With the table taken off, nothing is.
func TestTransparentUnread(t *testing.T) {
	r := ilsLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	out.slapd(t)
	e := r.Edge(t, EdgeConfig{More: "t120: {listen: [\"tcp://inside:1503\"], transparent: true}\n" +
		"ils: {listen: [\"tcp://inside:389\"], server: \"192.0.2.99:389\", transparent: true}\n" +
		fmt.Sprintf("audiocall: {listen: [\"tcp://inside:1731\"], udp: \"%d-%d\", transparent: true}\n", audioPort, audioPort+1) + managed})
	if got := in.ldap(t, "ldapsearch", netip.AddrPortFrom(out.IP, 389), "", "-LLL", "-b", "dc=example,dc=org", "o"); !strings.Contains(got, "o: example") {
		t.Errorf("the directory says %s", got)
	}
	for _, family := range []int{4, 6} {
		called := out.Addr(family, 1731)
		ln := out.listenOn(t, called)
		host := out.listenOn(t, out.Addr(family, 1503))
		go confirm(host)
		conference := in.dialled(t, out.Addr(family, 1503))
		_, err := conference.Write([]byte{3, 0, 0, 11, 6, 0xe0, 0, 0, 0, 1, 0})
		must(t, "connect request", err)
		answer := make([]byte, 11)
		if _, err := conference.Read(answer); err != nil || !bytes.Equal(answer, []byte{3, 0, 0, 11, 6, 0xd0, 0, 1, 0, 7, 0}) {
			t.Errorf("IPv%d: the conference answers %x, %v", family, answer, err)
		}
		alice, bob := in.hearsAt(t, in.Addr(family, audioPort)), out.hearsAt(t, out.Addr(family, audioPort))
		call := in.dialled(t, called)
		far, err := ln.Accept()
		must(t, "accept", err)
		if from := hears(alice, out.Addr(family, audioPort), bob); from.Addr() != r.GW.IPOn(outside, family) {
			t.Errorf("IPv%d: bob hears %v", family, from)
		}
		if from := hears(bob, netip.AddrPortFrom(r.GW.IPOn(outside, family), audioPort), alice); from != out.Addr(family, audioPort) {
			t.Errorf("IPv%d: alice hears %v", family, from)
		}
		call.Close()
		far.Close()
		eventually(t, 10*time.Second, "the connection ends", func() bool { return e.Metric("edged_audiocall_connections") == 0 })
	}
	e.Firewall(t, "remove")
	for _, port := range []uint16{389, 1503, 1731} {
		if in.connects(out.Addr(4, port)) {
			t.Errorf("without the table %d was reached", port)
		}
	}
}

// confirm answers connection requests of T.120 with the reference 7.
func confirm(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = c.Read(make([]byte, 11))
		_, _ = c.Write([]byte{3, 0, 0, 11, 6, 0xd0, 0, 1, 0, 7, 0})
	}
}

// listenOn listens for a minute.
func (h *Host) listenOn(t *testing.T, at netip.AddrPort) net.Listener {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", at.String())
		return err
	}))
	t.Cleanup(func() { ln.Close() })
	must(t, "deadline", ln.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)))
	return ln
}

// dialled connects, for at most a minute.
func (h *Host) dialled(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	var c net.Conn
	must(t, "call", h.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to.String(), 10*time.Second)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	must(t, "deadline", c.SetDeadline(time.Now().Add(time.Minute)))
	return c
}

// hearsAt opens a socket of UDP.
func (h *Host) hearsAt(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	must(t, "listen", h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// hears sends from one socket until another one hears it, and returns from whom; not valid: it has heard nothing.
func hears(from *net.UDPConn, at netip.AddrPort, to *net.UDPConn) netip.AddrPort {
	buf := make([]byte, 100)
	for range 5 {
		_, _ = from.WriteToUDPAddrPort([]byte("audio"), at)
		_ = to.SetReadDeadline(time.Now().Add(time.Second))
		if n, src, err := to.ReadFromUDPAddrPort(buf); err == nil && string(buf[:n]) == "audio" {
			return netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
		}
	}
	return netip.AddrPort{}
}

// shut gives the gateway a firewall that drops whatever is not the edge's: in, on its way, and out.
func (r *Rig) shut() {
	r.t.Helper()
	r.closed()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table inet shut {\n chain forward {\n  type filter hook forward priority filter; policy drop;\n }\n" +
		" chain output {\n  type filter hook output priority filter; policy drop;\n  oif lo accept\n  meta l4proto ipv6-icmp accept\n" +
		"  ct state established,related accept\n  meta skuid 0 accept\n }\n}\n")
	must(r.t, "nft", r.GW.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	}))
}

// TestTransparentShut: with a host firewall that drops by default, in, forwarded and out, files of TFTP and calls of H.323 pass, in
// and out, if the edge tells of its open ports; each is gone from the set when it is over. If it does not tell, no H.323 is heard.
func TestTransparentShut(t *testing.T) {
	for _, guard := range []string{"nftables", "none"} {
		t.Run(guard, func(t *testing.T) {
			r := tftpLab(t)
			in, out := r.Inside("in1"), r.Outside("out1")
			dir := out.tftpd(t)
			e := r.Edge(t, EdgeConfig{Pinholes: "{udp: 50000-51999, firewall: " + guard + "}", More: fmt.Sprintf(
				"h323: {listen: %s, transparent: true, aliases: {alice: \"%s:1721\"}}\ntftp: {trivial: {listen: [\"udp://inside:69\"], transparent: true}}\n", h323Listen, in.IP) + managed})
			r.setForward(true)
			r.shut()
			bob := out.H323Phone(t, h323Spec{Name: "bob", At: out.Addr(4, 1720)})
			alice := in.H323Phone(t, h323Spec{Name: "alice", At: in.Addr(4, 1720), To: out.Addr(4, 1720), Called: "bob"})
			if guard == "none" {
				if until(4*time.Second, func() bool { a, _ := heard(alice); b, _ := heard(bob); return a+b > 0 }) {
					t.Error("audio has passed")
				}
				return
			}
			h323Heard(t, alice, bob, false)
			if n := e.Metric("edged_firewall_pinholes", `family="ipv4"`); n < 2 {
				t.Errorf("%v pinholes are in the set", n)
			}
			h323Talk(t, e, alice, bob, false)
			called := in.H323Phone(t, h323Spec{Name: "alice-in", At: in.Addr(4, 1721)})
			gate := netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1720)
			h323Talk(t, e, out.H323Phone(t, h323Spec{Name: "bob-out", At: out.Addr(4, 1730), To: gate, Called: "alice"}), called, false)
			want, got := noise(t, filepath.Join(dir, "file"), 5000), filepath.Join(r.Dir, "got")
			text, err := in.tftpGet(tftpTime, out.IP, "file", got, 512)
			must(t, "get: "+text, err)
			same(t, got, want)
			eventually(t, 15*time.Second, "no pinhole is left in the set", func() bool { return e.Metric("edged_firewall_pinholes") == 0 })
		})
	}
}

// TestTransparentFiles: Messenger inside, which is told of its server outside alone, sends a file and is sent one, at ports of the
// edge (6891-6901). With the table taken off the server is not reached.
func TestTransparentFiles(t *testing.T) {
	p := newPair(t, setting{Office: OfficeConfig{Signing: 4}, Taken: true, Capture: true, Edge: EdgeConfig{
		SIP: "transparent: true", More: "tftp: {ports: 6891-6901}\n" + managed,
	}})
	p.alice.offers(t, p.bob, "out.dat", 300000).arrives(t)
	p.bob.offers(t, p.alice, "in.dat", 300000).arrives(t)
	p.wantNoLeaks(t)
	p.office.wantSigned(t)
	p.edge.Firewall(t, "remove")
	if p.alice.Host.connects(p.office.Addr) {
		t.Error("without the table the server was reached")
	}
}

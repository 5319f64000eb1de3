//go:build lab

package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
)

// closedSite is a site whose gateway, an edge, may only dial out, to TCP 443: its public side is another edge outside, the
// tunnel's relay, which it reaches by a link.
type closedSite struct {
	*Rig
	there      *Rig // the host of the other edge as a gateway
	near, far  *Edge
	registrar  *Host
	alice, bob *Host
	way        wayOut
}

const (
	linkNear = "100.64.0.2"
	linkFar  = "100.64.0.1"
)

// closeFirewall lets the gateway send to what an expression of nft says, "" to nobody, and takes nothing but answers.
func closeFirewall(t *testing.T, gw *Host, open string) {
	t.Helper()
	rules := "table inet closed\ndelete table inet closed\ntable inet closed {\n" +
		" chain out { type filter hook output priority 0; policy drop\n  oifname != \"wan\" accept\n"
	if open != "" {
		rules += "  " + open + " accept\n"
	}
	rules += " }\n chain in { type filter hook input priority 0; policy drop\n  iifname != \"wan\" accept\n  ct state established accept\n }\n}\n"
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	must(t, "nft", gw.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// wayOut is how a closed site gets out.
type wayOut struct {
	Cut  bool   // by no way: the relay's policy does not let the link through
	Open string // what the firewall lets out, an expression of nft
	Port uint16 // the port of it
	Rung string // the only rung that is tried; "" = all
	// Proxy starts a proxy at the site's gateway and returns its URL; nil: there is none.
	Proxy func(t *testing.T, gw *Host) string
}

// by443 is the way of most sites.
var by443 = wayOut{Open: "tcp dport 443", Port: 443}

// newClosedSite starts both edges and the registrar.
func newClosedSite(t *testing.T, way wayOut) *closedSite {
	t.Helper()
	r := lab(t)
	onlyEdged(t, "the reference has no tunnel")
	if unprivileged() {
		t.Skip("SKIPPED: making an interface needs CAP_NET_ADMIN")
	}
	public := r.Outside("public")
	s := &closedSite{Rig: r, there: &Rig{t: t, Dir: filepath.Join(r.Dir, "public"), GW: public}, registrar: r.Outside("registrar"), alice: r.Inside("in1"), bob: r.Outside("out1")}
	s.way = way
	closeFirewall(t, r.GW, way.Open)
	s.registrar.Registrar(t, RegistrarConfig{})
	must(t, "directory", os.MkdirAll(s.there.Dir, 0o755))
	tunnels := s.tunnels(t)
	s.far = s.there.Edge(t, EdgeConfig{Sections: fmt.Sprintf(`networks:
  inside: {addresses: [%s], subnets: [%s/32], trusted: true}
  outside: {addresses: [%v], trusted: false}
pinholes: {udp: 50000-51999}
sip:
  listen: ["udp://inside:5060", "udp://outside:5060"]
  domains: {example.org: {network: outside, server: "udp:%v:5060"}}
h323: {listen: ["tcp://inside:1720", "tcp://outside:1720"], aliases: {bob: "%v:1720", alice: "%s:1720"}}
`, linkFar, linkNear, public.IP, s.registrar.IP, s.bob.IP, linkNear) + tunnels[1]})
	s.near = r.Edge(t, EdgeConfig{Sections: fmt.Sprintf(`networks:
  inside: {addresses: [%v], subnets: [%s0/24], trusted: true}
  outside: {addresses: [%s], trusted: false}
pinholes: {udp: 50000-51999}
sip:
  listen: ["udp://inside:5060", "udp://outside:5060"]
  domains: {example.org: {network: outside, server: "udp:%s:5060"}}
h323: {listen: ["tcp://inside:1720", "tcp://outside:1720"], aliases: {bob: "%s:1720", alice: "%v:1720"}}
`, r.GW.IPOn(inside, 4), nets4[inside], linkNear, linkFar, linkFar, s.alice.IP) + tunnels[0]})
	if !way.Cut {
		eventually(t, 60*time.Second, "the link is up at both ends", func() bool {
			return s.near.Metric("edged_link_up") == 1 && s.far.Metric("edged_link_up") == 1
		})
	}
	return s
}

// tunnels returns what the two edges' configurations say of the tunnel: of the site's (0) and of the public one's (1), which is the
// relay too.
func (s *closedSite) tunnels(t *testing.T) (sections [2]string) {
	t.Helper()
	var id [3]device.ID
	var file [3]string
	for i, name := range []string{"site", "public", "relay"} {
		file[i] = filepath.Join(s.Dir, name+".key")
		key, _, err := device.LoadOrCreateKey(file[i])
		must(t, "key", err)
		id[i] = key.ID()
	}
	users := filepath.Join(s.Dir, "tunnel.users")
	must(t, "users", os.WriteFile(users, fmt.Appendf(nil, "%s site\n%s public\n", id[0], id[1]), 0o600))
	service := "link-lab"
	if s.way.Cut {
		service = "link-other"
	}
	ends := [2]string{linkNear, linkFar}
	for i := range ends {
		more := ""
		if i == 0 && s.way.Rung != "" {
			more = fmt.Sprintf(", rungs: [%s]", s.way.Rung)
		}
		if i == 0 && s.way.Proxy != nil {
			c := login(t, s.way.Proxy(t, s.GW))
			more += fmt.Sprintf(", proxy: {url: %q, user: %s, password_file: %s, allow_basic: true}", c.URL, c.User, c.PasswordFile)
		}
		sections[i] = fmt.Sprintf("agent: {key_file: %s, relays: [{address: \"%v:443\", id: %s}], devices: {other: %s}%s}\n"+
			"links: [{name: lab, device: other, addresses: [%s], peer: [%s]}]\n", file[i], s.there.GW.IP, id[2], id[1-i], more, ends[i], ends[1-i])
	}
	sections[1] += fmt.Sprintf("tunnel: {listen: [\"https://outside:443\", \"http://outside:80\", \"quic://outside:443\"], groove: {polling: true}, key_file: %s, users_file: %s, policy: [{from: \"*\", to: \"*\", services: [%s]}]}\n", file[2], users, service)
	if s.way.Rung == "wss" {
		c := newAuthority(t, s.Dir).issue(t, "web", []string{"relay.example.org"}, s.there.GW.IP)
		sections[1] += fmt.Sprintf("tls: {certificates: [{cert: %s, key: %s}]}\n", c.Cert, c.Key)
	}
	return sections
}

// capture watches what leaves the site and what the public side says outside. The check: the site is heard on its one port alone, and no
// address of it, or of the link, is in what the public side says.
func (s *closedSite) capture(t *testing.T) (check func()) {
	t.Helper()
	site, public := s.Capture("wan"), s.there.Capture("eth0")
	return func() {
		t.Helper()
		for _, p := range site.Stop(t) {
			if p.Src.Port() != s.way.Port && p.Dst.Port() != s.way.Port {
				t.Errorf("%v to %v passes the firewall", p.Src, p.Dst)
			}
		}
		n := 0
		for _, p := range public.Stop(t) {
			if p.Src.Addr() != s.there.GW.IP || p.Src.Port() == s.way.Port {
				continue
			}
			n++
			for _, private := range []string{nets4[inside], "100.64.0."} {
				if bytes.Contains(p.Payload, []byte(private)) {
					t.Errorf("%v to %v names %s: %q", p.Src, p.Dst, private, p.Payload)
				}
			}
		}
		if n == 0 {
			t.Error("the public side has said nothing")
		}
	}
}

// TestTunnelLinkSIP: a phone inside registers through both edges, and calls go both ways with sound; nothing of the site's own
// addresses gets out.
func TestTunnelLinkSIP(t *testing.T) {
	s := newClosedSite(t, by443)
	check := s.capture(t)
	alice, bob := s.phones(t)
	talk(t, alice, bob, 2*time.Second)
	talk(t, bob, alice, 2*time.Second)
	check()
	s.near.Clean(t)
	s.far.Clean(t)
	if n := s.near.Metric("edged_link_dropped_packets_total", "source") + s.far.Metric("edged_link_dropped_packets_total", "source"); n != 0 {
		t.Errorf("%v packets of strangers", n)
	}
}

func (s *closedSite) phones(t *testing.T) (alice, bob *Phone) {
	t.Helper()
	alice = s.alice.Phone(t, PhoneConfig{User: "alice", Hz: 440, Register: true, Proxy: s.GW.IPOn(inside, 4).String() + ":5060"})
	bob = s.bob.Phone(t, PhoneConfig{User: "bob", Hz: 1000, Register: true, Proxy: s.registrar.IP.String() + ":5060"})
	return alice, bob
}

// TestTunnelLinkRungs: a call each way with sound over a link whose packets go by each way that the tunnel knows, through a firewall
// that lets out no other; squid and dante want a password.
func TestTunnelLinkRungs(t *testing.T) {
	for _, way := range []wayOut{
		{Rung: "quic", Open: "udp dport 443", Port: 443}, {Rung: "tls", Open: "tcp dport 443", Port: 443},
		{Rung: "connect", Open: "tcp dport 443", Port: 443, Proxy: func(t *testing.T, gw *Host) string {
			return "http://" + gw.squid(t, inside, 3128, "basic", "").String()
		}},
		{Rung: "socks5", Open: "tcp dport 443", Port: 443, Proxy: func(t *testing.T, gw *Host) string { return "socks5://" + gw.dante(t, inside, 3150, true).String() }},
		{Rung: "wss", Open: "tcp dport 443", Port: 443}, {Rung: "ws", Open: "tcp dport 80", Port: 80}, {Rung: "longlived", Open: "tcp dport 80", Port: 80},
		{Rung: "keepalive", Open: "tcp dport 80", Port: 80}, {Rung: "polling", Open: "tcp dport 80", Port: 80},
	} {
		t.Run(way.Rung, func(t *testing.T) {
			s := newClosedSite(t, way)
			check := s.capture(t)
			alice, bob := s.phones(t)
			talk(t, alice, bob, 2*time.Second)
			talk(t, bob, alice, 2*time.Second)
			check()
		})
	}
}

// TestTunnelLinkCut: a call outlives a firewall that lets nothing pass for a while: neither hears the other, and then again.
func TestTunnelLinkCut(t *testing.T) {
	s := newClosedSite(t, by443)
	alice, bob := s.phones(t)
	establish(t, bob, alice)
	hear := func() bool { return s.arrive(t, alice) > 0 && s.arrive(t, bob) > 0 }
	eventually(t, 20*time.Second, "both hear", hear)
	closeFirewall(t, s.GW, "")
	eventually(t, 20*time.Second, "nobody hears", func() bool { return s.arrive(t, alice) == 0 && s.arrive(t, bob) == 0 })
	pass(8 * time.Second) // the tunnel finds its carrier dead
	closeFirewall(t, s.GW, "tcp dport 443")
	eventually(t, 60*time.Second, "both hear again", hear)
	bob.Hangup(t)
	alice.Expect(t, 20*time.Second, "CALL_CLOSED")
}

// TestTunnelLinkRestart: each edge is killed and started again; the link comes back, and a registered phone is called over it.
func TestTunnelLinkRestart(t *testing.T) {
	s := newClosedSite(t, by443)
	alice, bob := s.phones(t)
	for _, e := range []*Edge{s.far, s.near} {
		e.Kill()
		e.Start(t)
		eventually(t, 90*time.Second, "the link is up again at both ends", func() bool {
			return s.near.Metric("edged_link_up") == 1 && s.far.Metric("edged_link_up") == 1
		})
		talk(t, bob, alice, 2*time.Second)
	}
	s.near.Clean(t)
	s.far.Clean(t)
}

// arrive returns how many packets of RTP come to a phone in a while.
func (s *closedSite) arrive(t *testing.T, p *Phone) int {
	t.Helper()
	r, dev := s.Rig, "lan"
	if p.Host.Side == outside {
		r, dev = s.there, "eth0"
	}
	c := r.Capture(dev, "udp")
	pass(300 * time.Millisecond)
	n := 0
	for _, x := range c.Stop(t) {
		if x.Dst.Addr() == p.Host.IP && len(x.Payload) > 12 && x.Payload[0]>>6 == 2 && x.Dst.Port()%2 == 0 {
			n++
		}
	}
	return n
}

// TestTunnelLinkControl: the same two edges without the link's carrier, and with a firewall as closed: the phone inside does not even
// register.
func TestTunnelLinkControl(t *testing.T) {
	s := newClosedSite(t, wayOut{Cut: true, Open: "tcp dport 443", Port: 443})
	alice := s.alice.Phone(t, PhoneConfig{User: "alice", Hz: 440, Proxy: s.GW.IPOn(inside, 4).String() + ":5060"})
	bob := s.bob.Phone(t, PhoneConfig{User: "bob", Hz: 1000, Register: true, Proxy: s.registrar.IP.String() + ":5060"})
	alice.Dial(t, bob.AOR())
	if until(5*time.Second, func() bool { return alice.Saw("CALL_ESTABLISHED") || bob.Saw("CALL_INCOMING") }) {
		t.Error("the call goes through without the link")
	}
	if s.near.Metric("edged_link_up") != 0 || s.near.Metric("edged_link_dropped_packets_total", "down") == 0 {
		t.Error("the link is up, or nothing was dropped")
	}
}

// TestTunnelLinkH323: a call each way, in four modes.
func TestTunnelLinkH323(t *testing.T) {
	s := newClosedSite(t, by443)
	for _, m := range h323Modes[:4] {
		alice, bob := h323Spec{Name: "alice", At: netip.AddrPortFrom(s.alice.IP, 1720), Mode: m.callee}, h323Spec{Name: "bob", At: netip.AddrPortFrom(s.bob.IP, 1720), Mode: m.caller}
		callee := s.alice.H323Phone(t, alice)
		bob.To, bob.Called = netip.AddrPortFrom(s.there.GW.IP, 1720), "alice"
		h323Talk(t, s.near, s.bob.H323Phone(t, bob), callee, false)
		bob.To, bob.Called = netip.AddrPort{}, ""
		called := s.bob.H323Phone(t, bob)
		alice.To, alice.Called = netip.AddrPortFrom(s.GW.IPOn(inside, 4), 1720), "bob"
		h323Talk(t, s.near, s.alice.H323Phone(t, alice), called, false)
	}
	s.near.Clean(t)
	s.far.Clean(t)
}

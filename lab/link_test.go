//go:build lab

package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/link"
)

// closedSite is a site whose gateway, an edge, has no public address of use and may only dial out, to 443: its public side is
// another edge outside, which it reaches by a link. The link's packets are carried by the test itself.
type closedSite struct {
	*Rig
	there      *Rig // the host of the other edge as a gateway
	near, far  *Edge
	registrar  *Host
	alice, bob *Host
}

const (
	linkNear = "100.64.0.2"
	linkFar  = "100.64.0.1"
)

// closeFirewall lets the gateway open connections to port 443 alone, and takes none.
func closeFirewall(t *testing.T, gw *Host) {
	t.Helper()
	rules := `table inet closed {
 chain out { type filter hook output priority 0; policy drop
  oifname != "wan" accept
  ct state established accept
  tcp dport 443 accept
 }
 chain in { type filter hook input priority 0; policy drop
  iifname != "wan" accept
  ct state established accept
 }
}
`
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	must(t, "nft", gw.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// newClosedSite starts both edges and the registrar.
func newClosedSite(t *testing.T) *closedSite {
	t.Helper()
	r := lab(t)
	onlyEdged(t, "the reference has no tunnel")
	if unprivileged() {
		t.Skip("SKIPPED: making an interface needs CAP_NET_ADMIN")
	}
	public := r.Outside("public")
	s := &closedSite{Rig: r, there: &Rig{t: t, Dir: filepath.Join(r.Dir, "public"), GW: public}, registrar: r.Outside("registrar"), alice: r.Inside("in1"), bob: r.Outside("out1")}
	closeFirewall(t, r.GW)
	s.registrar.Registrar(t, RegistrarConfig{})
	must(t, "directory", os.MkdirAll(s.there.Dir, 0o755))
	s.wire(t)
	s.far = s.there.Edge(t, EdgeConfig{Sections: fmt.Sprintf(`networks:
  inside: {addresses: [%s], subnets: [%s/32], trusted: true}
  outside: {addresses: [%v], trusted: false}
pinholes: {udp: 50000-51999}
sip:
  listen: ["udp://inside:5060", "udp://outside:5060"]
  domains: {example.org: {network: outside, server: "udp:%v:5060"}}
h323: {listen: ["tcp://inside:1720", "tcp://outside:1720"], aliases: {bob: "%v:1720", alice: "%s:1720"}}
`, linkFar, linkNear, public.IP, s.registrar.IP, s.bob.IP, linkNear)})
	s.near = r.Edge(t, EdgeConfig{Sections: fmt.Sprintf(`networks:
  inside: {addresses: [%v], subnets: [%s0/24], trusted: true}
  outside: {addresses: [%s], trusted: false}
pinholes: {udp: 50000-51999}
sip:
  listen: ["udp://inside:5060", "udp://outside:5060"]
  domains: {example.org: {network: outside, server: "udp:%s:5060"}}
h323: {listen: ["tcp://inside:1720", "tcp://outside:1720"], aliases: {bob: "%s:1720", alice: "%v:1720"}}
`, r.GW.IPOn(inside, 4), nets4[inside], linkNear, linkFar, linkFar, s.alice.IP)})
	return s
}

// wirePipe is a carrier in the memory of the test.
type wirePipe struct{ in, out chan []byte }

func (q wirePipe) Send(b []byte) error {
	select {
	case q.out <- bytes.Clone(b):
	default:
	}
	return nil
}

func (q wirePipe) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-q.in:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// wire makes both ends of the link.
func (s *closedSite) wire(t *testing.T) {
	t.Helper()
	x, y := make(chan []byte, 256), make(chan []byte, 256)
	addr := func(a string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(a)} }
	for i, h := range []*Host{s.GW, s.there.GW} {
		cfg := link.Config{Name: "lab", Device: "x", Addresses: addr(linkNear), Peer: addr(linkFar)}
		q := wirePipe{x, y}
		if i == 1 {
			cfg.Addresses, cfg.Peer = cfg.Peer, cfg.Addresses
			q = wirePipe{y, x}
		}
		var tun *link.Tun
		must(t, "tun", h.Do(func() (err error) {
			tun, err = link.OpenTun(cfg)
			return err
		}))
		l := link.New(cfg, tun, zap.NewNop())
		go l.Run(t.Context())
		go l.Carry(t.Context(), q)
	}
}

// capture watches what leaves the site and what the public side says outside. The check: the site is heard on port 443 alone, and no
// address of it, or of the link, is in what the public side says.
func (s *closedSite) capture(t *testing.T) (check func()) {
	t.Helper()
	site, public := s.Capture("wan"), s.there.Capture("eth0")
	return func() {
		t.Helper()
		for _, p := range site.Stop(t) {
			if p.Src.Port() != 443 && p.Dst.Port() != 443 {
				t.Errorf("%v to %v passes the firewall", p.Src, p.Dst)
			}
		}
		n := 0
		for _, p := range public.Stop(t) {
			if p.Src.Addr() != s.there.GW.IP || p.Src.Port() == 443 {
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
	s := newClosedSite(t)
	check := s.capture(t)
	alice := s.alice.Phone(t, PhoneConfig{User: "alice", Hz: 440, Register: true, Proxy: s.GW.IPOn(inside, 4).String() + ":5060"})
	bob := s.bob.Phone(t, PhoneConfig{User: "bob", Hz: 1000, Register: true, Proxy: s.registrar.IP.String() + ":5060"})
	talk(t, alice, bob, 2*time.Second)
	talk(t, bob, alice, 2*time.Second)
	check()
	s.near.Clean(t)
	s.far.Clean(t)
}

// TestTunnelLinkH323: a call each way.
func TestTunnelLinkH323(t *testing.T) {
	s := newClosedSite(t)
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

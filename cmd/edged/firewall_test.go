package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/pinhole"
)

// rulesOf returns the rules that a configuration asks for, of a machine with the interfaces lan and wan.
func rulesOf(t *testing.T, sections string) firewall.Rules {
	t.Helper()
	file := filepath.Join(t.TempDir(), "edged.yaml")
	head := "networks:\n  inside: {addresses: [192.0.2.1, \"2001:db8::1\"], subnets: [192.0.2.0/24, \"2001:db8::/64\"], trusted: true}\n" +
		"  outside: {addresses: [198.51.100.1], trusted: false}\n"
	if err := os.WriteFile(file, []byte(head+sections), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := cfg.firewallRules(func(a netip.Addr) (string, error) {
		return map[bool]string{true: "wan", false: "lan"}[a == netip.MustParseAddr("198.51.100.1")], nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := rules.Validate(); err != nil {
		t.Error(err)
	}
	return rules
}

// TestFirewallRules: what each section has handed over, and nothing of networks that are not trusted.
func TestFirewallRules(t *testing.T) {
	for name, c := range map[string]struct {
		sections string
		want     []string // name proto listener [only for]
		answers  []string
	}{
		"nothing is transparent": {sections: "h323: {listen: [\"tcp://inside:1720\"]}\n"},
		"h323, the built-in gatekeeper": {
			sections: "h323: {listen: [\"tcp://inside:1720\", \"tcp://outside:1720\"], ras: [\"udp://inside:1719\", \"udp://outside:1719\"], discovery: [inside], transparent: true}\n",
			want:     []string{"h323 tcp 192.0.2.1:1720", "h323 tcp [2001:db8::1]:1720", "h323_ras udp 192.0.2.1:1719", "h323_ras udp [2001:db8::1]:1719"},
		},
		"h323, one gatekeeper alone": {
			sections: "h323: {listen: [\"tcp://inside:1720\"], ras: [\"udp://inside:1719\"], gatekeeper: 192.0.2.99, transparent: true}\n",
			want:     []string{"h323 tcp 192.0.2.1:1720", "h323 tcp [2001:db8::1]:1720", "h323_ras udp 192.0.2.1:1719 192.0.2.99"},
		},
		"tftp": {
			sections: "tftp: {trivial: {listen: [\"udp://inside:69\", \"udp://outside:69\"], servers: {outside: 192.0.2.7}, transparent: true}}\n",
			want:     []string{"tftp udp 192.0.2.1:69", "tftp udp [2001:db8::1]:69"}, answers: []string{"lan"},
		},
		"t120, sources kept": {
			sections: "t120: {listen: [\"tcp://inside:1503\"], transparent: true, keep_source: true}\n",
			want:     []string{"t120 tcp 192.0.2.1:1503", "t120 tcp [2001:db8::1]:1503"}, answers: []string{"lan", "wan"},
		},
		"audiocall": {
			sections: "audiocall: {listen: [\"tcp://inside:1731\"], udp: 49608-49608, transparent: true}\n",
			want: []string{"audiocall tcp 192.0.2.1:1731", "audiocall tcp [2001:db8::1]:1731",
				"audiocall udp 192.0.2.1:49608", "audiocall udp [2001:db8::1]:49608"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rules := rulesOf(t, c.sections)
			var got []string
			for _, x := range rules.Redirects {
				if x.Interface != "lan" {
					t.Errorf("handed over by %s: %v", x.Interface, x)
				}
				text := strings.Join([]string{x.Name, x.Proto, x.To.String()}, " ")
				if x.For.IsValid() {
					text += " " + x.For.String()
				}
				got = append(got, text)
			}
			if !slices.Equal(got, c.want) || !slices.Equal(rules.Answers, c.answers) {
				t.Errorf("got %q, answers by %q", got, rules.Answers)
			}
		})
	}
}

// TestFirewallGuardKnowsAudioPorts: a closed host firewall opens the datagrams' ports of audio calls too.
func TestFirewallGuardKnowsAudioPorts(t *testing.T) {
	rules := rulesOf(t, "audiocall: {listen: [\"tcp://inside:1731\"], udp: 49608-49608}\npinholes: {firewall: nftables}\nfirewall: {manage: true}\n")
	want := firewall.Port{Proto: "udp", At: netip.MustParseAddrPort("198.51.100.1:49608")}
	if !slices.Contains(rules.Listeners, want) {
		t.Errorf("%v is not among %v", want, rules.Listeners)
	}
}

// transparentSocket opens a transparent socket on the loopback, where 127/8 is everybody's.
func transparentSocket(t *testing.T) *foreignConn {
	t.Helper()
	pc, err := (*handedSockets)(nil).listenForeign(t.Context(), "h323", netip.MustParseAddrPort("127.0.0.1:0"))
	if errors.Is(err, firewall.ErrCapability) {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*foreignConn)
}

// TestForeignConn: who has called somebody else is told so, and hears that one; who has called the edge hears the edge.
func TestForeignConn(t *testing.T) {
	c := transparentSocket(t)
	own := pinhole.AddrPortOf(c.LocalAddr())
	c.own = own
	var lc net.ListenConfig
	peer, err := lc.ListenPacket(context.Background(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	peerAt, other := pinhole.AddrPortOf(peer.LocalAddr()), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), own.Port())
	for _, pc := range []net.PacketConn{peer, c} {
		if err := pc.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	hears := func(want netip.AddrPort, to net.Addr) {
		t.Helper()
		if _, err := c.WriteTo([]byte("x"), to); err != nil {
			t.Fatal(err)
		}
		_, from, err := peer.ReadFrom(make([]byte, 10))
		if err != nil || pinhole.AddrPortOf(from) != want {
			t.Errorf("it hears %v, not %v; %v", from, want, err)
		}
	}
	to := net.UDPAddrFromAddrPort(peerAt)
	hears(own, to)
	c.remember(peerAt, other)
	hears(other, to)
	if _, err := peer.WriteTo([]byte("y"), c.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	_, from, err := c.ReadFrom(make([]byte, 10))
	if err != nil || pinhole.AddrPortOf(from) != peerAt || pinhole.CalledOf(from).IsValid() {
		t.Errorf("%v, %v", from, err)
	}
	hears(own, to)
	hears(other, pinhole.CalledAddr{UDPAddr: to, Called: other})
}

// TestForeignConnForgets: however many peers there are, few are remembered, and those of late.
func TestForeignConnForgets(t *testing.T) {
	c := &foreignConn{called: map[netip.AddrPort]netip.AddrPort{}}
	called := netip.MustParseAddrPort("203.0.113.1:69")
	peer := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i >> 16)}), uint16(i))
	}
	for i := range 3 * remembered {
		c.remember(peer(i), called)
	}
	if n := len(c.called) + len(c.before); n > 2*remembered {
		t.Errorf("%d are remembered", n)
	}
	if c.calledBy(peer(0)).IsValid() || c.calledBy(peer(3*remembered-1)) != called || c.calledBy(peer(2*remembered)) != called {
		t.Error("those of late are forgotten, or those of earlier are not")
	}
}

// TestFirewallWithoutCapability: a daemon that may not do what firewall.manage asks for does not start, and says what helps.
func TestFirewallWithoutCapability(t *testing.T) {
	runtime.LockOSThread() // for good: the thread ends with the test's goroutine
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	_, err := buildFirewall(t.Context(), &serviceDeps{cfg: &cfg, log: zap.NewNop(), reg: prometheus.NewRegistry()})
	for _, text := range []string{"firewall.manage", "CAP_NET_ADMIN is missing", "AmbientCapabilities", "setcap", "edged firewall apply"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v does not say %q", err, text)
		}
	}
}

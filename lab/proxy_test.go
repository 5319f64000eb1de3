//go:build lab

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// proxyRig is an edge with the forward proxy, a web site outside, a user and a host that needs no name inside.
type proxyRig struct {
	*Rig
	edge        *Edge
	site        *Host
	user, guest *Host
	certs       *Certificates
}

// newProxyRig opens the proxy for port 8080 of the site outside.
func newProxyRig(t *testing.T) *proxyRig {
	t.Helper()
	r := lab(t)
	onlyEdged(t, "the reference is no proxy")
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
	}
	p := &proxyRig{Rig: r, site: r.Outside("site"), user: r.Inside("user"), guest: r.Inside("guest")}
	for _, port := range []uint16{8080, 8081} {
		p.site.page(t, port, "the site\n")
	}
	p.certs = newAuthority(t, r.Dir).issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(inside, 4))
	conf := proxyEdge(t, r, fmt.Sprintf("allow: [\"%v:8080\", \"*.example.org:8080\", \"udp/%v:7\", \"*:9060\", \"*:5060\"], anonymous: [%v/32]", p.site.IP, p.site.IP, p.guest.IP))
	conf.TLS = p.certs
	p.edge = r.Edge(t, conf)
	return p
}

// proxyEdge is the configuration of an edge with a proxy for users and more keys, two protocols on one port among its listeners.
func proxyEdge(t *testing.T, r *Rig, keys string) EdgeConfig {
	t.Helper()
	file := filepath.Join(r.Dir, "proxy.users")
	must(t, "users", os.WriteFile(file, []byte("alice:secret\n"), 0o644))
	return EdgeConfig{More: fmt.Sprintf("shared: [{listen: \"tcp://inside:3128\"}]\nproxy: {listen: [\"http://inside:3128\", \"socks5://inside:3128\", \"socks5://inside:1080\", "+
		"\"https://inside:3129\"], users_file: %s, private: [198.51.100.0/24], %s}\n", file, keys)}
}

// curl asks for a page of a host and returns what curl says: the page, or its error.
func (p *proxyRig) curl(t *testing.T, from *Host, name, url string, args ...string) string {
	t.Helper()
	x := from.Start(t, name, append(append([]string{"curl", "-sS", "--max-time", "20"}, args...), url)...)
	err := x.Wait(60 * time.Second)
	b, _ := os.ReadFile(x.Log)
	if err == nil && strings.Contains(string(b), "the site\n") {
		return "page"
	}
	return string(b)
}

// TestProxy: curl reaches the site through CONNECT and SOCKS 5, with a name or from where none is needed, and nothing else.
func TestProxy(t *testing.T) {
	p := newProxyRig(t)
	gw, url := p.GW.IPOn(inside, 4).String(), fmt.Sprintf("http://%v:8080/", p.site.IP)
	http, socks := []string{"-p", "--proxy", "http://" + gw + ":3128"}, []string{"--socks5-hostname", gw + ":1080"}
	login := []string{"--proxy-user", "alice:secret"}
	for _, tc := range []struct {
		name, url, want string
		from            *Host
		args            []string
	}{
		{"http", url, "page", p.user, append(http, login...)},
		{"socks", url, "page", p.user, append(socks, login...)},
		{"http-guest", url, "page", p.guest, http},
		{"socks-guest", url, "page", p.guest, socks},
		{"https", url, "page", p.user, append([]string{"-p", "--proxy", "https://" + gw + ":3129", "--proxy-cacert", p.certs.CA}, login...)},
		{"socks-shared", url, "page", p.user, append([]string{"--socks5-hostname", gw + ":3128"}, login...)},
		{"http-nobody", url, "407", p.user, http},
		{"socks-nobody", url, "curl:", p.user, socks},
		{"http-wrong", url, "407", p.user, append(http, "--proxy-user", "alice:wrong")},
		{"socks-wrong", url, "curl:", p.user, append(socks, "--proxy-user", "alice:wrong")},
		{"http-port", fmt.Sprintf("http://%v:8081/", p.site.IP), "403", p.guest, http},
		{"socks-port", fmt.Sprintf("http://%v:8081/", p.site.IP), "curl:", p.guest, socks},
		{"http-admin", "http://127.0.0.1:9060/", "403", p.guest, http},
		{"http-admin-name", "http://localhost:9060/", "403", p.guest, http},
		{"http-admin-mapped", "http://[::ffff:127.0.0.1]:9060/", "403", p.guest, http},
		{"socks-admin", "http://127.0.0.1:9060/", "curl:", p.guest, socks},
		{"http-inside", fmt.Sprintf("http://%v:9060/", p.user.IP), "403", p.guest, http},
		{"http-own", fmt.Sprintf("http://%v:5060/", p.GW.IPOn(inside, 4)), "403", p.guest, http},
		{"http-link-local", "http://169.254.169.254:9060/", "403", p.guest, http},
	} {
		if got := p.curl(t, tc.from, tc.name, tc.url, tc.args...); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s", tc.name, got)
		}
	}
	if n := p.edge.Metric("edged_proxy_requests_total", `result="ok"`); n != 6 {
		t.Errorf("%v requests are counted", n)
	}
	if n := p.edge.Metric("edged_proxy_requests_total", `result="special_address"`) + p.edge.Metric("edged_proxy_requests_total", `result="own_address"`); n < 5 {
		t.Errorf("%v are refused for their address", n)
	}
}

// TestProxyControl: the gateway routes nothing, so that without the proxy nobody reaches the site.
func TestProxyControl(t *testing.T) {
	p := newProxyRig(t)
	if got := p.curl(t, p.guest, "direct", fmt.Sprintf("http://%v:8080/", p.site.IP), "--max-time", "3"); got == "page" {
		t.Error("the site is reached without the proxy")
	}
}

// TestProxyDatagrams: a datagram goes to a host outside and its answer comes back; one of a host that was not asked does not.
func TestProxyDatagrams(t *testing.T) {
	p := newProxyRig(t)
	echo := udpAt(t, p.site, 7)
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	}()
	c, err := p.guest.dial("tcp", netip.AddrPortFrom(p.GW.IPOn(inside, 4), 1080))
	must(t, "dial", err)
	defer c.Close()
	say := func(send string, n int) []byte {
		t.Helper()
		_, err := c.Write([]byte(send))
		must(t, "write", err)
		b := make([]byte, n)
		_, err = c.Read(b)
		must(t, "read", err)
		return b
	}
	say("\x05\x01\x00", 2)
	reply := say("\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", 10)
	if reply[1] != 0 {
		t.Fatalf("reply %v", reply)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte(reply[4:8])), uint16(reply[8])<<8|uint16(reply[9]))
	local := udpAt(t, p.guest, 4000)
	site := p.site.IP.As4()
	sent := append([]byte{0, 0, 0, 1, site[0], site[1], site[2], site[3], 0, 7}, "hello"...)
	_, err = local.WriteTo(sent, net.UDPAddrFromAddrPort(at))
	must(t, "send", err)
	b := make([]byte, 2000)
	must(t, "deadline", local.SetReadDeadline(time.Now().Add(20*time.Second)))
	n, _, err := local.ReadFrom(b)
	if err != nil || string(b[:n]) != string(sent) {
		t.Fatalf("%q, %v", b[:n], err)
	}
	sent[9] = 8 // a port that is not allowed
	_, err = local.WriteTo(sent, net.UDPAddrFromAddrPort(at))
	must(t, "send", err)
	eventually(t, 20*time.Second, "it is refused", func() bool {
		return p.edge.Metric("edged_proxy_dropped_datagrams_total", `reason="not_allowed"`) == 1
	})
}

// udpAt opens a socket on a host.
func udpAt(t *testing.T, h *Host, port uint16) (pc net.PacketConn) {
	t.Helper()
	must(t, "socket", h.Do(func() (err error) {
		pc, err = net.ListenPacket("udp4", h.Addr(4, port).String())
		return err
	}))
	t.Cleanup(func() { pc.Close() })
	return pc
}

// TestProxyMessenger: a client of Communicator's kind inside signs on over TLS by CONNECT at a server outside, and talks.
func TestProxyMessenger(t *testing.T) {
	r := messengerLab(t)
	server := r.Outside("office")
	ca := newAuthority(t, r.Dir)
	o := server.Office(t, OfficeConfig{Signing: 4, TLS: ca.issue(t, "office", []string{"example.org"}, server.IP)})
	conf := proxyEdge(t, r, fmt.Sprintf("allow: [\"%v:5061\"]", server.IP))
	conf.TLS = ca.issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(inside, 4))
	edge := r.Edge(t, conf)
	near, far := r.Inside("near"), r.Outside("far")
	gw := r.GW.IPOn(inside, 4).String()
	bob := far.Messenger(t, "bob", o.Addr, "tls")
	nobody := r.Inside("nobody").messenger(t, "carol", o.Addr, "tls", gw, "3128", "alice", "wrong")
	alice := near.messenger(t, "alice", o.Addr, "tls", gw, "3128", "alice", "secret")
	alice.wants(t, "signed-on")
	alice.talks(t, bob)
	o.wantSigned(t)
	nobody.wants(t, "error")
	if nobody.count("signed-on") != 0 {
		t.Error("a client with a wrong password has signed on")
	}
	if n := edge.Metric("edged_proxy_connections"); n != 1 {
		t.Errorf("%v connections", n)
	}
}

//go:build lab

package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// siteWay is what lies between both sites and the relay. The sites' firewalls let nothing out but to proxies, or to one port.
type siteWay struct {
	name  string
	open  string                                          // what the firewalls let out; empty: to the proxies
	wan   uint16                                          // the only port of the relay that the proxies may reach
	proxy func(t *testing.T, x *tunnelRig) string         // starts a proxy and returns the keys of agent.proxy
	box   func(t *testing.T, x *tunnelRig) (clear func()) // puts something else into the way
	want  string                                          // the rung by which both are to be attached
	full  bool                                            // only in the full lab
}

// siteWays are the ways of TestTunnelSites, in an order in which what an agent remembers of one is no help with the next.
func siteWays() []siteWay {
	squid := func(port uint16, name string) func(t *testing.T, x *tunnelRig) string {
		return func(t *testing.T, x *tunnelRig) string {
			at := x.GW.squid(t, outside, port, name, "auth_param digest nonce_max_count 50\n")
			return loginKeys(t, "http://"+at.String(), "")
		}
	}
	dante := func(port uint16) func(t *testing.T, x *tunnelRig) string {
		return func(t *testing.T, x *tunnelRig) string {
			return loginKeys(t, "socks5://"+x.GW.dante(t, outside, port, true).String(), "")
		}
	}
	tiny := func(port uint16) func(t *testing.T, x *tunnelRig) string {
		return func(t *testing.T, x *tunnelRig) string {
			return loginKeys(t, "http://"+x.GW.tinyproxy(t, outside, port).String(), "")
		}
	}
	return []siteWay{
		{name: "UDP 443", open: "udp dport 443", want: "quic", full: true},
		{name: "port 443", open: "tcp dport 443", want: "tls", full: true},
		{name: "squid ntlm 443", wan: 443, proxy: squid(3130, "ntlm"), want: "connect"},
		{name: "squid basic 80", wan: 80, proxy: squid(3131, "basic"), want: "longlived"},
		{name: "dante 443", wan: 443, proxy: dante(3150), want: "socks5"},
		{name: "inspected", open: "tcp dport 443", box: inspected, want: "wss"},
		{name: "squid open 443", wan: 443, proxy: squid(3132, ""), want: "connect", full: true},
		{name: "squid basic 443", wan: 443, proxy: squid(3133, "basic"), want: "connect", full: true},
		{name: "squid digest 443", wan: 443, proxy: squid(3134, "digest"), want: "connect", full: true},
		{name: "squid negotiate 443", wan: 443, proxy: negotiating, want: "connect", full: true},
		{name: "squid digest 80", wan: 80, proxy: squid(3135, "digest"), want: "longlived", full: true},
		{name: "squid ntlm 80", wan: 80, proxy: squid(3136, "ntlm"), want: "longlived", full: true},
		{name: "tinyproxy 443", wan: 443, proxy: tiny(3140), want: "connect", full: true},
		{name: "tinyproxy 80", wan: 80, proxy: tiny(3141), want: "longlived", full: true},
		{name: "dante 80", wan: 80, proxy: dante(3151), want: "ws", full: true},
		{name: "port 80", open: "tcp dport 80", want: "ws", full: true},
	}
}

// loginKeys are the keys of agent.proxy for a proxy with alice's password.
func loginKeys(t *testing.T, proxy, more string) string {
	c := login(t, proxy)
	return fmt.Sprintf("url: %q, user: %s, password_file: %s, allow_basic: true%s", c.URL, c.User, c.PasswordFile, more)
}

// negotiating starts squid that wants Kerberos. The KDC is out of the agents' reach, so their cache has the proxy's ticket already.
func negotiating(t *testing.T, x *tunnelRig) string {
	need(t, "kvno")
	k := startKDC(t)
	at := x.GW.squid(t, outside, 3137, "negotiate", "")
	cmd := exec.Command("kvno", "-c", k.cache, proxyService)
	cmd.Env = append(os.Environ(), "KRB5_CONFIG="+k.config)
	out, err := cmd.CombinedOutput()
	must(t, string(out), err)
	return fmt.Sprintf("url: \"http://%s\", user: %s@%s, kerberos: {config: %s, cache: %s, principal: %s}", at, proxyUser, kerberosRealm, k.config, k.cache, proxyService)
}

// TestTunnelSites: two sites, closed but for one way, and the same in both: bytes, datagrams, ends of each kind, ssh and files.
func TestTunnelSites(t *testing.T) {
	c := tunnelConfig{More: webCertificate(t)}
	x := tunnelLab(t, c)
	ends, ssh := x.b.endings(t, 7002), x.sshd(t)
	for _, way := range siteWays() {
		if way.full && os.Getenv("EDGED_LAB_FULL") == "" {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			x.goBy(t, way, c)
			for _, e := range []*tunnelEnd{x.a, x.b} {
				e.comesBy(t, x, way.want)
			}
			if err := echoes(x.a.local(t, 7000), 4<<20); err != nil {
				t.Errorf("TCP: %v", err)
			}
			if err := x.a.datagrams(t, 50); err != nil {
				t.Errorf("UDP: %v", err)
			}
			if err := ends.endsKept(func() *net.TCPConn { return x.a.local(t, 7002) }); err != nil {
				t.Error(err)
			}
			if err := ssh.talk(t, 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

// goBy starts both agents anew with nothing but this way open.
func (x *tunnelRig) goBy(t *testing.T, way siteWay, c tunnelConfig) {
	t.Helper()
	if way.wan != 0 {
		x.GW.only(t, x.relay.IP, way.wan)
	}
	c.A, c.B = forwardsOfA, servicesOfB
	if way.proxy != nil {
		c.Agents = "proxy: {" + way.proxy(t, x) + "}\n"
	}
	for _, e := range []*tunnelEnd{x.a, x.b} {
		e.router.closeBut(t, or(way.open, "tcp dport 3128-3199"))
	}
	if way.box != nil {
		t.Cleanup(way.box(t, x))
	}
	x.a.section(t, x, c, x.b, c.A)
	x.b.section(t, x, c, x.a, c.B)
	x.Join(t)
	t.Cleanup(func() { x.a.kill(); x.b.kill() })
}

// only has a host reach no other port of an address than one.
func (h *Host) only(t *testing.T, to netip.Addr, port uint16) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("table ip labout\ndelete table ip labout\ntable ip labout {\n chain out {\n  type filter hook output priority 0\n"+
		"  ip daddr %v tcp dport != %d reject with tcp reset\n }\n}\n", to, port))
	must(t, "firewall", h.Do(func() error {
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// webCertificate gives the relay a certificate of the web, of an authority in a folder of its own.
func webCertificate(t *testing.T) string {
	c := newAuthority(t, t.TempDir()).issue(t, "web", []string{relayName})
	return fmt.Sprintf("tls: {certificates: [{cert: %s, key: %s}]}\n", c.Cert, c.Key)
}

// inspected puts a box into both sites' routers that ends TLS on port 443 with a certificate of its own, reads what it finds as
// HTTP, and sends that on in TLS of its own.
func inspected(t *testing.T, x *tunnelRig) (clear func()) {
	web := newAuthority(t, t.TempDir()).issue(t, "company", []string{relayName}, x.relay.IP)
	var undo []func()
	for _, e := range []*tunnelEnd{x.a, x.b} {
		undo = append(undo, e.router.inspect(t, web, x.relay.IP))
	}
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

// inspect starts the box at a router.
func (h *Host) inspect(t *testing.T, c *Certificates, to netip.Addr) (clear func()) {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp4", "192.0.2.1:8443")
		return err
	}))
	rules := func(text string) {
		t.Helper()
		cmd := exec.Command("nft", text)
		must(t, text, h.Do(cmd.Run))
	}
	rules("table ip inspect { chain pre { type nat hook prerouting priority -100; iifname \"home\" tcp dport 443 redirect to :8443; }; }")
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	must(t, "certificate", err)
	onward := &http.Transport{DialTLSContext: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		err = h.Do(func() error {
			conn, err = new(net.Dialer).DialContext(ctx, network, netip.AddrPortFrom(to, 443).String())
			return err
		})
		if err != nil {
			return nil, err
		}
		return tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}), nil
	}}
	quiet := zap.NewStdLog(zap.NewNop())
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: to.String()})
	proxy.Transport, proxy.ErrorLog = onward, quiet
	s := &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute, ErrorLog: quiet}
	go func() {
		_ = s.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}))
	}()
	return func() {
		_ = s.Close()
		rules("delete table ip inspect")
	}
}

// TestTunnelSitesControl: with the proxy that is the only way out not named to it, and inside what looks into TLS with rung tls alone,
// no agent gets out; and what ends look like through squid alone, without the tunnel.
func TestTunnelSitesControl(t *testing.T) {
	c := tunnelConfig{More: webCertificate(t)}
	x := tunnelLab(t, c)
	squid := x.GW.squid(t, outside, 3128, "", "")
	for name, way := range map[string]struct {
		open, rungs string
		box         func(t *testing.T, x *tunnelRig) (clear func())
	}{
		"proxy not named": {open: "tcp dport 3128-3199"},
		"inspected":       {open: "tcp dport 443", rungs: "rungs: [quic, tls]\n", box: inspected},
	} {
		t.Run(name, func(t *testing.T) {
			x.a.router.closeBut(t, way.open)
			if way.box != nil {
				t.Cleanup(way.box(t, x))
			}
			c.Agents = way.rungs
			x.a.section(t, x, c, x.b, forwardsOfA)
			x.a.start(t, x, "tunnel")
			t.Cleanup(x.a.kill)
			eventually(t, 60*time.Second, "it has tried", func() bool {
				out, err := x.a.edged(x, "tunnel", "status")
				return err == nil && strings.Contains(out, "not attached: ") && strings.Contains(out, "tls")
			})
			if rung := x.a.attachedBy(x); rung != "" {
				t.Errorf("attached by %s", rung)
			}
		})
	}
	t.Run("squid alone", func(t *testing.T) {
		plain := x.Outside("plain")
		plain.endings(t, 443)
		err := halfClosed(connected(t, x.GW, squid, netip.AddrPortFrom(plain.IP, 443)))
		t.Logf("squid alone: %v", err)
		if err == nil {
			t.Error("squid keeps half-closes: TestTunnelSites shows nothing")
		}
	})
}

// connected asks a proxy for a connection by CONNECT.
func connected(t *testing.T, from *Host, proxy, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	var conn net.Conn
	must(t, "dial", from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", proxy.String(), 10*time.Second)
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
	must(t, "CONNECT", err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect}) // the service speaks second: nothing is read too far
	must(t, "CONNECT", err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT: %s", resp.Status)
	}
	return conn.(*net.TCPConn)
}

// TestTunnelHop: each site has a relay of its own; what a asks for goes from relay to relay, and does so again after either was killed.
func TestTunnelHop(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{})
	ends := x.b.endings(t, 7002)
	second := x.end(t, x.Outside("relay2"), nil)
	second.configure(t, "networks: {outside: {addresses: [192.0.2.2]}}\nsip: {listen: [\"udp://outside:5060\"]}\n") // any that is valid
	keys := [2]string{}
	for i, e := range []*tunnelEnd{x.relay, second} {
		var err error
		keys[i], err = e.edged(x, "tunnel", "key", "--relay")
		must(t, "key", err)
	}
	users := writeFile(t, filepath.Join(x.Dir, "tunnel.users"), fmt.Sprintf("%s a\n%s b\n", x.a.id, x.b.id))
	x.relay.kill()
	for i, e := range []*tunnelEnd{x.relay, second} {
		other, known := [...]*tunnelEnd{second, x.relay}[i], [...]string{"", "  users_file: " + users + "\n"}[i] // the first has enrolled them
		e.configure(t, fmt.Sprintf("networks: {outside: {addresses: [%v], trusted: false}}\ntunnel:\n  listen: [\"https://outside:443\"]\n%s"+
			"  policy: [{from: a, to: b, services: [\"*\"]}]\n  peers: [{address: %v, id: %s}]\n", e.IP, known, other.IP, keys[1-i]))
		e.start(t, x, "run")
	}
	text, err := os.ReadFile(x.b.file())
	must(t, "configuration", err)
	moved := strings.ReplaceAll(strings.ReplaceAll(string(text), x.relay.IP.String(), second.IP.String()), keys[0], keys[1])
	must(t, "configuration", os.WriteFile(x.b.file(), []byte(moved), 0o600))
	x.Join(t)
	if n := second.attached(x); n != 1 || x.relay.attached(x) != 1 {
		t.Errorf("%d devices are at the second relay, want one at each", n)
	}
	passes := func() error {
		if err := echoes(x.a.local(t, 7000), 4<<20); err != nil {
			return fmt.Errorf("TCP: %w", err)
		}
		if err := x.a.datagrams(t, 20); err != nil {
			return fmt.Errorf("UDP: %w", err)
		}
		return ends.endsKept(func() *net.TCPConn { return x.a.local(t, 7002) })
	}
	eventually(t, 60*time.Second, "the relays have each other", func() bool { return x.a.reaches(7000) == nil })
	if err := passes(); err != nil {
		t.Error(err)
	}
	for _, e := range []*tunnelEnd{second, x.relay} {
		e.kill()
		e.start(t, x, "run")
		eventually(t, 90*time.Second, "all are back", func() bool { return x.a.reaches(7000) == nil })
		if err := passes(); err != nil {
			t.Errorf("after %s was killed: %v", e.Name, err)
		}
	}
}

// reaches tells whether an echo answers at a port of the site's own loopback.
func (e *tunnelEnd) reaches(port uint16) error {
	var conn net.Conn
	err := e.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return echoes(conn.(*net.TCPConn), 1000)
}

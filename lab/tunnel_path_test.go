//go:build lab

package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/groove"
	"edged.dev/edged/pkg/tunnel/proxydial"
)

// pathRig is a site inside whose gateway routes nothing: only proxies on the gateway lead out. The relay outside, whose
// sessions echo, and the device run in the test's process, with sockets of their hosts.
type pathRig struct {
	*Rig
	site, relay *Host
	relayKey    device.Key
	deviceKey   device.Key
	server      *carrier.Server
}

const relayName = "relay.example.org"

// newPathRig builds it; the relay's HTTP front is on httpPort, so that a case can put something before port 80.
func newPathRig(t *testing.T, httpPort uint16) *pathRig {
	t.Helper()
	r := &pathRig{Rig: lab(t)}
	r.site, r.relay = r.Inside("site"), r.Outside("relay")
	var err error
	r.relayKey, err = device.NewKey()
	must(t, "key", err)
	r.deviceKey, err = device.NewKey()
	must(t, "key", err)
	cfg, err := device.ServerTLS(r.relayKey, nil)
	must(t, "TLS", err)
	r.server = &carrier.Server{TLS: cfg, Session: func(_ context.Context, c *carrier.Carrier) {
		defer c.Close()
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	}}
	r.serve(t, httpPort)
	return r
}

// serve runs the relay until the test ends.
func (r *pathRig) serve(t *testing.T, httpPort uint16) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	carriage, err := groove.New(groove.Config{Polling: true, PerSource: 512}, groove.Deps{Tunnel: relayName,
		Virtual: func(ctx context.Context, c *groove.Conn) { r.server.ServeVirtual(ctx, c, carrier.RungOf(c.Mode)) }}, zap.NewNop())
	must(t, "groove", err)
	wg.Go(func() { _ = carriage.Run(ctx) })
	mux := http.NewServeMux()
	mux.Handle("/2.0/", carriage)
	mux.Handle("/", r.server.Handler(ctx))
	front := carrier.HTTPServer(mux)
	var tcp, web net.Listener
	var udp net.PacketConn
	must(t, "listen", r.relay.Do(func() (err error) {
		tcp, err = net.Listen("tcp", netip.AddrPortFrom(r.relay.IP, 443).String())
		if err == nil {
			web, err = net.Listen("tcp", netip.AddrPortFrom(r.relay.IP, httpPort).String())
		}
		if err == nil {
			udp, err = net.ListenPacket("udp", netip.AddrPortFrom(r.relay.IP, 443).String())
		}
		return err
	}))
	wg.Go(func() { _ = r.server.ServeQUIC(ctx, udp) })
	wg.Go(func() { _ = front.Serve(web) })
	context.AfterFunc(ctx, func() { front.Close(); tcp.Close() })
	wg.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.server.ServeConn(ctx, c) })
		}
	})
}

// dialer is the device's, with the sockets of host h.
func (r *pathRig) dialer(t *testing.T, h *Host, cfg proxydial.Config, rungs ...carrier.Rung) *carrier.Dialer {
	t.Helper()
	p, err := proxydial.New(cfg, zap.NewNop())
	must(t, "proxy", err)
	p.Getenv = func(string) string { return "" }
	p.TCP = func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = h.Do(func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	tls, err := device.ClientTLS(r.deviceKey, r.relayKey.ID(), "")
	must(t, "TLS", err)
	d := &carrier.Dialer{Relay: r.relay.IP.String(), Name: relayName, TLS: tls, Proxy: p, Rungs: rungs, Attempt: 20 * time.Second,
		UDP: func(context.Context) (pc net.PacketConn, err error) {
			err = h.Do(func() error {
				pc, err = net.ListenPacket("udp", ":0")
				return err
			})
			return pc, err
		},
		Probed: func(p carrier.Result) { t.Logf("%v by %s: %s, echo %v", p.Rung, p.Path, p.Outcome, p.RTT) }}
	return d
}

// login is the section of a proxy with alice's password.
func login(t *testing.T, proxy string) proxydial.Config {
	return proxydial.Config{URL: proxy, User: proxyUser, AllowBasic: true,
		PasswordFile: writeFile(t, filepath.Join(t.TempDir(), "password"), proxyPassword+"\n")}
}

// wantCarried dials, checks by which rung it went, and moves size octets there and back.
func wantCarried(t *testing.T, d *carrier.Dialer, want carrier.Rung, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := d.Dial(ctx)
	if err != nil {
		t.Errorf("%v: %v", want, err)
		return
	}
	defer c.Close()
	if c.Rung != want {
		t.Errorf("went by %v, want %v", c.Rung, want)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	data := make([]byte, size)
	_, _ = rand.Read(data)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.Write(data) })
	back := make([]byte, size)
	_, err = io.ReadFull(c, back)
	wg.Wait()
	if err != nil || !bytes.Equal(data, back) {
		t.Errorf("%v: the echo of %d octets: %v, equal %v", want, size, err, bytes.Equal(data, back))
	}
}

// TestTunnelPathDirect has an open network, and closed ones in which rung after rung is missing.
func TestTunnelPathDirect(t *testing.T) {
	r := newPathRig(t, 80)
	other := r.Outside("other")
	wantCarried(t, r.dialer(t, other, proxydial.Config{URL: "none"}), carrier.QUIC, 1<<20)
	for _, rung := range carrier.Rungs() {
		if rung != carrier.Connect && rung != carrier.SOCKS5 && rung != carrier.WSS {
			wantCarried(t, r.dialer(t, other, proxydial.Config{URL: "none"}, rung), rung, 1<<18)
		}
	}
	block := func(rule string) {
		t.Helper()
		must(t, "nft", other.Do(func() error {
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader("add table inet closed\nadd chain inet closed out { type filter hook output priority 0; }\nadd rule inet closed out " + rule + "\n")
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}))
	}
	block("udp dport 443 drop")
	wantCarried(t, r.dialer(t, other, proxydial.Config{URL: "none"}), carrier.TLS, 1<<18)
	block("tcp dport 443 drop")
	wantCarried(t, r.dialer(t, other, proxydial.Config{URL: "none"}), carrier.WS, 1<<18)
}

// TestTunnelPathControl shows that the site is closed: nothing gets out without a proxy.
func TestTunnelPathControl(t *testing.T) {
	r := newPathRig(t, 80)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if c, err := r.dialer(t, r.site, proxydial.Config{URL: "none"}).Dial(ctx); err == nil {
		c.Close()
		t.Errorf("got out by %v", c.Rung)
	}
}

// TestTunnelPathSquid logs in at squid in every way that it has, by CONNECT and by the plain requests of port 80.
func TestTunnelPathSquid(t *testing.T) {
	r := newPathRig(t, 80)
	for i, name := range squidLogins {
		t.Run(or(name, "open"), func(t *testing.T) {
			more := ""
			if name == "digest" {
				more = "auth_param digest nonce_max_count 50\n" // squid's default: KeepAlive and Polling need more
			}
			proxy := r.GW.squid(t, inside, uint16(3128+i), name, more)
			cfg := login(t, "http://"+proxy.String())
			if name == "negotiate" {
				k := startKDC(t)
				for how, krb := range map[string]proxydial.Kerberos{"cache": {Cache: k.cache}, "keytab": {Keytab: k.alice}, "password": {Password: true}} {
					cfg := cfg
					cfg.User = proxyUser + "@" + kerberosRealm
					krb.Config, krb.Principal = k.config, proxyService
					cfg.Kerberos = krb
					t.Log(how)
					wantCarried(t, r.dialer(t, r.site, cfg), carrier.Connect, 1<<18)
				}
				cfg.User, cfg.Kerberos = proxyUser+"@"+kerberosRealm, proxydial.Kerberos{Config: k.config, Cache: k.cache, Principal: proxyService}
			}
			wantCarried(t, r.dialer(t, r.site, cfg), carrier.Connect, 1<<20)
			for _, rung := range []carrier.Rung{carrier.LongLived, carrier.KeepAlive, carrier.Polling} {
				wantCarried(t, r.dialer(t, r.site, cfg, rung), rung, 4<<20)
			}
			wantCarried(t, r.dialer(t, r.site, cfg, carrier.WS, carrier.LongLived), carrier.LongLived, 1000) // squid takes Upgrade out
			if name != "" && name != "fake" && name != "negotiate" {
				wantHeld(t, r, cfg)
			}
		})
	}
}

// wantHeld tries a wrong password twice: the second time the proxy must not see it.
func wantHeld(t *testing.T, r *pathRig, cfg proxydial.Config) {
	t.Helper()
	cfg.PasswordFile = writeFile(t, filepath.Join(t.TempDir(), "password"), "wrong\n")
	d := r.dialer(t, r.site, cfg)
	d.NoDirect, d.Rungs = true, []carrier.Rung{carrier.Connect, carrier.SOCKS5}
	if c, err := d.Dial(t.Context()); !errors.Is(err, proxydial.ErrRefused) {
		t.Errorf("a wrong password: %v, %v", c, err)
	}
	if c, err := d.Dial(t.Context()); !errors.Is(err, proxydial.ErrHeld) {
		t.Errorf("again: %v, %v", c, err)
	}
}

// TestTunnelPathOthers has tinyproxy with Basic, and dante with and without a password, by 443 and by 80.
func TestTunnelPathOthers(t *testing.T) {
	r := newPathRig(t, 80)
	t.Run("tinyproxy", func(t *testing.T) {
		cfg := login(t, "http://"+r.GW.tinyproxy(t, inside, 3140).String())
		wantCarried(t, r.dialer(t, r.site, cfg), carrier.Connect, 1<<20)
		for _, rung := range []carrier.Rung{carrier.LongLived, carrier.KeepAlive, carrier.Polling} {
			wantCarried(t, r.dialer(t, r.site, cfg, rung), rung, 1<<18)
		}
		wantHeld(t, r, cfg)
	})
	for i, name := range []string{"dante", "dante with password"} {
		t.Run(name, func(t *testing.T) {
			cfg := login(t, "socks5://"+r.GW.dante(t, inside, uint16(3150+i), i == 1).String())
			if i == 0 {
				cfg = proxydial.Config{URL: cfg.URL}
			}
			wantCarried(t, r.dialer(t, r.site, cfg), carrier.SOCKS5, 1<<20)
			for _, rung := range []carrier.Rung{carrier.WS, carrier.LongLived, carrier.KeepAlive, carrier.Polling} {
				wantCarried(t, r.dialer(t, r.site, cfg, rung), rung, 1<<18)
			}
			if i == 1 {
				wantHeld(t, r, cfg)
			}
		})
	}
}

// TestTunnelRungsBehindBoxes has reverse proxies before the relay's port 80: what they break must be stepped over.
func TestTunnelRungsBehindBoxes(t *testing.T) {
	r := newPathRig(t, 8080)
	other := r.Outside("other")
	front, back := netip.AddrPortFrom(r.relay.IP, 80), netip.AddrPortFrom(r.relay.IP, 8080)
	for name, c := range map[string]struct {
		start func(t *testing.T)
		want  carrier.Rung
		bad   []carrier.Rung // must not be taken before KeepAlive
	}{
		"nginx":             {func(t *testing.T) { r.relay.nginx(t, front, back, true) }, carrier.KeepAlive, []carrier.Rung{carrier.WS, carrier.LongLived}},
		"nginx, no buffers": {func(t *testing.T) { r.relay.nginx(t, front, back, false) }, carrier.WS, nil},
		"haproxy":           {func(t *testing.T) { r.relay.haproxy(t, front, back, false) }, carrier.WS, []carrier.Rung{carrier.LongLived}},
		"haproxy, no delay": {func(t *testing.T) { r.relay.haproxy(t, front, back, true) }, carrier.WS, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.start(t)
			none := proxydial.Config{URL: "none"}
			wantCarried(t, r.dialer(t, other, none, carrier.WS, carrier.LongLived, carrier.KeepAlive, carrier.Polling), c.want, 1<<18)
			for _, bad := range c.bad {
				wantCarried(t, r.dialer(t, other, none, bad, carrier.KeepAlive), carrier.KeepAlive, 1<<18)
			}
		})
	}
}

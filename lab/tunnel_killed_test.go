//go:build lab

package lab

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/proxydial"
)

// TestTunnelRungsKilled kills carriers of each rung from below while a stream flows both ways: not a byte may be
// lost, and the stream must not notice. make soak-tunnel does it with 1 GiB and 100 kills, and with every login of squid.
func TestTunnelRungsKilled(t *testing.T) {
	r := newPathRig(t, 80)
	r.serveSessions(t)
	survives := func(name string, h *Host, cfg proxydial.Config, rung carrier.Rung) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := r.dialer(t, h, cfg, rung)
			if rung == carrier.WSS {
				d.PortTLS = webPort
			}
			r.wantSurvives(t, h, d)
		})
	}
	r.serveWeb(t)
	other, none := r.Outside("other"), proxydial.Config{URL: "none"}
	for _, rung := range []carrier.Rung{carrier.QUIC, carrier.TLS, carrier.WSS, carrier.WS, carrier.LongLived, carrier.KeepAlive, carrier.Polling} {
		survives(rung.String(), other, none, rung)
	}
	squid := login(t, "http://"+r.GW.squid(t, inside, 3128, "ntlm", "").String())
	rungs := []carrier.Rung{carrier.Connect, carrier.LongLived, carrier.KeepAlive}
	if soaking() {
		rungs = append(rungs, carrier.Polling)
	}
	for _, rung := range rungs {
		survives("squid ntlm "+rung.String(), r.site, squid, rung)
	}
	if soaking() {
		for i, name := range []string{"", "basic", "digest", "fake", "negotiate"} {
			survives("squid "+or(name, "open")+" connect", r.site, r.squidLogin(t, uint16(3130+i), name), carrier.Connect)
		}
	}
	tiny := login(t, "http://"+r.GW.tinyproxy(t, inside, 3140).String())
	survives("tinyproxy connect", r.site, tiny, carrier.Connect)
	dante := login(t, "socks5://"+r.GW.dante(t, inside, 3150, true).String())
	survives("dante socks5", r.site, dante, carrier.SOCKS5)
}

// TestTunnelRungsKilledControl: without a session above it, each way to kill a carrier ends what flows over it.
func TestTunnelRungsKilledControl(t *testing.T) {
	r := newPathRig(t, 80)
	other := r.Outside("other")
	for _, rung := range []carrier.Rung{carrier.QUIC, carrier.TLS} {
		for _, how := range []string{"rst", "fin", "hole"} {
			d := r.dialer(t, other, proxydial.Config{URL: "none"}, rung)
			socks := &sockets{host: other, next: []*Host{r.relay}}
			socks.watch(d)
			c, err := d.Dial(t.Context())
			must(t, "dial", err)
			echo := func(until time.Time) error {
				_ = c.SetDeadline(until)
				if _, err := c.Write([]byte("x")); err != nil {
					return err
				}
				_, err := io.ReadFull(c, make([]byte, 1))
				return err
			}
			must(t, "echo", echo(time.Now().Add(30*time.Second)))
			must(t, how, socks.kill(how, rung))
			if echo(time.Now().Add(2*time.Second)) == nil {
				t.Errorf("%v: the carrier lives after %s", rung, how)
			}
			c.Close()
		}
	}
}

// squidLogin starts squid with a login and returns what a device says there.
func (r *pathRig) squidLogin(t *testing.T, port uint16, name string) proxydial.Config {
	cfg := login(t, "http://"+r.GW.squid(t, inside, port, name, "").String())
	if name == "negotiate" {
		k := startKDC(t)
		cfg.User, cfg.Kerberos = proxyUser+"@"+kerberosRealm, proxydial.Kerberos{Config: k.config, Cache: k.cache, Principal: proxyService}
	}
	return cfg
}

// webPort is where serveWeb listens: 443 is the tunnel's TLS here.
const webPort = 8443

// serveWeb runs the relay's WebSockets within TLS of the web until the test ends.
func (r *pathRig) serveWeb(t *testing.T) {
	c := newAuthority(t, t.TempDir()).issue(t, "web", []string{relayName})
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	must(t, "certificate", err)
	var ln net.Listener
	must(t, "listen", r.relay.Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(r.relay.IP, webPort).String())
		return err
	}))
	ctx, cancel := context.WithCancel(context.Background())
	front := carrier.HTTPServer(r.server.Handler(ctx))
	front.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // WebSockets are HTTP/1.1
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = front.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}))
	}()
	t.Cleanup(func() { cancel(); _ = front.Close(); <-done })
}

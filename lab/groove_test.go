//go:build lab

package lab

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/internal/groovepeer"
)

// grooveName is the relay's name; its clients know it by no other.
const grooveName = "relay.example.org"

// grooveRig is an old relay inside that edged publishes, and a client outside.
type grooveRig struct {
	*Rig
	edge   *Edge
	client *Host
	web    netip.AddrPort // port 80
}

// newGroove starts edged; relays is the value of tunnel.groove.relays.
func newGroove(t *testing.T, relays string) *grooveRig {
	t.Helper()
	r := lab(t)
	onlyEdged(t, "the reference has no HTTP carriage")
	g := &grooveRig{Rig: r, client: r.Outside("client"), web: netip.AddrPortFrom(r.GW.IPOn(outside, 4), 80)}
	old := r.Inside("relay")
	old.grooveRelay(t)
	if relays == "" {
		relays = fmt.Sprintf("{%s: %q}", grooveName, old.Addr(4, 2492))
	}
	certs := newAuthority(t, r.Dir).issue(t, "edge", []string{"edge.example.org"}, g.web.Addr())
	g.edge = r.Edge(t, EdgeConfig{TLS: certs, Listen: []string{"tls://outside:443"}, More: "tunnel:\n" +
		"  listen: [\"http://outside:80\", \"groove://outside:2492\", \"groove://outside:443\"]\n  groove: {relays: " + relays + "}\n"})
	return g
}

// grooveRelay is a relay on 2492 that answers Connect for its own name and then echoes.
func (h *Host) grooveRelay(t *testing.T) {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp", h.Addr(4, 2492).String())
		return err
	}))
	var work sync.WaitGroup
	t.Cleanup(func() { ln.Close(); work.Wait() })
	work.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				t.Log("a connection reaches the relay")
				c.SetDeadline(time.Now().Add(2 * time.Minute))
				want := groovepeer.Connect("dpp://"+grooveName, false)
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
					return
				}
				_, _ = c.Write([]byte{2, 4, 0, 0})
				_, _ = io.Copy(c, c)
			})
		}
	})
}

// caller is the client, by way of addr: the edge, what stands before it, or a proxy.
func (g *grooveRig) caller(addr netip.AddrPort, proxied bool) groovepeer.Client {
	return groovepeer.Client{Relay: grooveName, Host: g.web.Addr().String(), Proxied: proxied, Patience: 10 * time.Second,
		Dial: func() (net.Conn, error) { return g.client.dial("tcp", addr) }}
}

// grooveTalk sends Connect and size octets, and wants the answer and the octets.
func grooveTalk(c io.ReadWriter, size int) error {
	data := make([]byte, size)
	_, _ = rand.Read(data)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(append(groovepeer.Connect("dpp://"+grooveName, false), data...))
		wrote <- err
	}()
	got := make([]byte, 4+size)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, append([]byte{2, 4, 0, 0}, data...)) {
		return errors.New("other octets came back")
	}
	return <-wrote
}

// grooveSize is how much is carried each way.
func grooveSize() int {
	if os.Getenv("EDGED_LAB_FULL") != "" {
		return 64 << 20
	}
	return 2 << 20
}

// ways are how the client reaches the relay.
func (g *grooveRig) ways(addr netip.AddrPort, proxied bool) map[string]func() error {
	long := func() (io.ReadWriteCloser, error) { return g.caller(addr, proxied).LongLived() }
	keep := func() (io.ReadWriteCloser, error) { return g.caller(addr, proxied).KeepAlive() }
	raw := func(port uint16) func() (io.ReadWriteCloser, error) {
		return func() (io.ReadWriteCloser, error) {
			c, err := g.client.dial("tcp", netip.AddrPortFrom(g.web.Addr(), port))
			if err != nil {
				return nil, err
			}
			return c, c.SetDeadline(time.Now().Add(time.Minute))
		}
	}
	out := map[string]func() error{}
	for name, dial := range map[string]func() (io.ReadWriteCloser, error){"LongLived": long, "KeepAlive": keep, "2492": raw(2492), "443": raw(443)} {
		out[name] = func() error {
			c, err := dial()
			if err != nil {
				return err
			}
			defer c.Close()
			return grooveTalk(c, grooveSize())
		}
	}
	return out
}

// TestGroove: an unmodified client of the carriage reaches the published relay by each way, several at once.
func TestGroove(t *testing.T) {
	g := newGroove(t, "")
	var work sync.WaitGroup
	for name, way := range g.ways(g.web, false) {
		for range 2 {
			work.Go(func() {
				if err := way(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	work.Wait()
	if n := g.edge.Metric("edged_groove_connections_total"); n != 8 {
		t.Errorf("%v connections are counted", n)
	}
	eventually(t, 30*time.Second, "all have ended", func() bool { return g.edge.Metric("edged_groove_connections") == 0 })
}

// TestGrooveControl: where the relay is not published the same clients reach nothing, which is counted.
func TestGrooveControl(t *testing.T) {
	g := newGroove(t, "{other.example.org: \"198.51.100.99:2492\"}")
	for name, way := range g.ways(g.web, false) {
		if err := way(); err == nil {
			t.Errorf("%s: the relay was reached", name)
		}
	}
	if n := g.edge.Metric("edged_groove_refused_total", `reason="relay"`); n < 4 {
		t.Errorf("%v refusals are counted", n)
	}
	for name, text := range map[string]string{"web": "GET / HTTP/1.0\r\n\r\n", "SSTP 1.4": "\x01\x40\x00\x01\x04\x00dpp://relay.example.org\x00"} {
		if err := g.client.dropped("tcp", netip.AddrPortFrom(g.web.Addr(), 2492), text); err != nil {
			t.Errorf("%s on 2492: %v", name, err)
		}
	}
}

// TestGrooveSquid: through squid as Debian configures it, but for who may use it.
func TestGrooveSquid(t *testing.T) {
	g := newGroove(t, "")
	at := g.GW.squid(t, outside, 3128, "", "")
	for _, name := range []string{"LongLived", "KeepAlive"} {
		if err := g.ways(at, true)[name](); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGrooveNginx: before the edge stands an nginx that buffers. It refuses LongLived's endless POST or, where it may be so
// long, waits for its end, which the time-out finds out; KeepAlive passes.
func TestGrooveNginx(t *testing.T) {
	g := newGroove(t, "")
	for name, more := range map[string]string{"refuses": "", "waits": "client_max_body_size 0;"} {
		front := g.Outside("front-" + name)
		at := front.Addr(4, 80)
		front.bufferingNginx(t, at, g.web, more)
		c := g.caller(at, false)
		c.Patience = 3 * time.Second
		if _, err := c.LongLived(); err == nil || name == "waits" && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: LongLived: %v", name, err)
		}
		s, mode, err := c.Climb()
		must(t, "climb", err)
		if mode != "KeepAlive" {
			t.Errorf("%s: %s passes", name, mode)
		}
		if err := grooveTalk(s, grooveSize()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
}

// bufferingNginx is a reverse proxy as Debian's nginx is by default, but for what more says.
func (h *Host) bufferingNginx(t *testing.T, at, to netip.AddrPort, more string) {
	t.Helper()
	need(t, "nginx")
	dir := openDir(t)
	conf := fmt.Sprintf("daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;\nevents {}\nhttp { access_log off;\n"+
		" client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;\n"+
		" server { listen %[2]s; %[4]s location / { proxy_pass http://%[3]s; } } }\n", dir, at, to, more)
	p := h.Start(t, h.Name, "nginx", "-p", dir, "-c", writeFile(t, filepath.Join(dir, "nginx.conf"), conf))
	h.listening(t, at, p)
}

// TestGrooveTunnel: two sites whose only way out is a squid that lets no tunnel through meet by LongLived.
func TestGrooveTunnel(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{Open: "tcp dport { 443, 3128 }", Agents: `proxy: {url: "http://198.51.100.1:3128"}`})
	x.GW.squid(t, outside, 3128, "", "")
	x.GW.noTLSTo(t, x.relay.IP)
	for _, e := range []*tunnelEnd{x.a, x.b} {
		e.router.closeBut(t, "tcp dport 3128") // the devices are enrolled
	}
	x.Join(t)
	for _, e := range []*tunnelEnd{x.a, x.b} {
		if rung := e.attachedBy(x); rung != "longlived" {
			t.Errorf("%s is attached by %q", e.Name, rung)
		}
	}
	if err := echoes(x.a.local(t, 7000), int64(grooveSize())); err != nil {
		t.Errorf("TCP: %v", err)
	}
	if err := x.a.refused(t, 7010); err != nil {
		t.Error(err)
	}
}

// noTLSTo has the host refuse what it would send to port 443 of another.
func (h *Host) noTLSTo(t *testing.T, to netip.Addr) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("table ip labout {\n chain out {\n  type filter hook output priority 0\n  ip daddr %v tcp dport 443 reject with tcp reset\n }\n}\n", to))
	must(t, "firewall", h.Do(func() error {
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

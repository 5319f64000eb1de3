package agent

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/relay"
)

func TestRoute(t *testing.T) {
	c := Config{
		Devices:      map[string]device.ID{"site-b": {1}},
		Applications: Applications{Routes: map[string]string{"mail.example.org:143": "site-b/imap", "mail.example.org": "site-b/web", "10.1.2.3": "site-b/ssh"}},
	}
	for _, x := range []struct {
		host string
		port uint16
		want string
	}{
		{"ssh.site-b.edged", 22, "site-b/ssh"}, {"SSH.Site-B.Edged.", 1, "site-b/ssh"}, {"mail.example.org", 143, "site-b/imap"},
		{"mail.example.org", 80, "site-b/web"}, {"10.1.2.3", 22, "site-b/ssh"}, {"ssh.site-c.edged", 22, ""}, {"site-b.edged", 22, ""},
		{"a.ssh.site-b.edged", 22, ""}, {"example.org", 443, ""}, {"", 0, ""},
	} {
		name, service, err := c.route(x.host, x.port)
		if x.want == "" {
			if !errors.Is(err, ErrNoRoute) {
				t.Errorf("%s: %s/%s, %v", x.host, name, service, err)
			}
			continue
		}
		if err != nil || name+"/"+service != x.want {
			t.Errorf("%s:%d: %s/%s, %v; want %s", x.host, x.port, name, service, err, x.want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{
		Relays: []Relay{{Address: "relay.example.org", ID: device.ID{1}}}, Devices: map[string]device.ID{"b": {2}},
		Services: map[string]Service{"ssh": {TCP: "127.0.0.1:22", Allow: []string{"b"}}},
		Forwards: []Forward{{Listen: Listen{Proto: "tcp"}, Device: "b", Service: "x"}}, PortHTTP: 80,
	}
	if err := good.Forwards[0].Listen.UnmarshalText([]byte("tcp://127.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"relays[0].id":                      func(c *Config) { c.Relays = []Relay{{Address: "x"}} },
		"relays[0].address":                 func(c *Config) { c.Relays = []Relay{{Address: "x:y", ID: device.ID{1}}} },
		"relays: at least one":              func(c *Config) { c.Relays = nil },
		"devices.b: needs an ID":            func(c *Config) { c.Devices = map[string]device.ID{"b": {}} },
		"services.ssh: needs either":        func(c *Config) { c.Services = map[string]Service{"ssh": {Allow: []string{"*"}}} },
		"services.ssh.allow: nobody":        func(c *Config) { c.Services = map[string]Service{"ssh": {TCP: "a:1"}} },
		"services.ssh.allow[0]":             func(c *Config) { c.Services = map[string]Service{"ssh": {TCP: "a:1", Allow: []string{"q"}}} },
		"services.ssh.tcp":                  func(c *Config) { c.Services = map[string]Service{"ssh": {TCP: "a", Allow: []string{"*"}}} },
		"forwards[0].device":                func(c *Config) { c.Forwards = []Forward{{Listen: good.Forwards[0].Listen, Device: "q", Service: "x"}} },
		"forwards[1].listen: tcp://127.0.0": func(c *Config) { c.Forwards = append(good.Forwards, good.Forwards[0]) },
		"applications.routes.x":             func(c *Config) { c.Applications.Routes = map[string]string{"x": "b"} },
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

// TestDialHostDatagrams: by its name a service of datagrams is a connection that keeps their borders and its deadlines, and
// ends with the other device's word; a service of bytes is none.
func TestDialHostDatagrams(t *testing.T) {
	target, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	p := newPair(t, everything(), map[string]Service{
		"echo": {UDP: target.LocalAddr().String(), Allow: []string{"a"}, Idle: time.Hour}, "bytes": {TCP: echoTCP(t), Allow: []string{"a"}},
	})
	var run sync.WaitGroup
	defer run.Wait()
	defer target.Close()
	run.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := target.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			target.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	c, err := p.a.DialHostDatagrams(timeout(t), "echo.b.edged", 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"one", strings.Repeat("x", 1200)} {
		if got := ask(t, c, text); got != text {
			t.Errorf("%.20q is answered by %.20q", text, got)
		}
	}
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after its deadline: %v", err)
	}
	var reset *mux.ResetError
	if _, err := p.a.DialHostDatagrams(timeout(t), "bytes.b.edged", 7); !errors.As(err, &reset) {
		t.Errorf("a service of bytes: %v", err)
	}
	if _, err := p.a.DialHostDatagrams(timeout(t), "example.org", 7); !errors.Is(err, ErrNoRoute) {
		t.Errorf("a name that leads nowhere: %v", err)
	}
	other, err := p.a.DialHostDatagrams(timeout(t), "echo.b.edged", 7)
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := other.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	p.relay.Reload(relay.Rules{Limits: relay.DefaultLimits()}) // which allows nothing
	c.SetReadDeadline(time.Time{})
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream was reset: %v", err)
	}
}

package agent

import (
	"errors"
	"strings"
	"testing"

	"edged.dev/edged/pkg/tunnel/device"
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

package ils

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(networks()); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for _, tc := range []struct {
		want string
		set  func(*Config)
	}{
		{`listen[0]: network "dmz" is not defined under networks`, func(c *Config) { c.Listen = []pinhole.Listen{{Proto: "tcp", Network: "dmz", Port: 389}} }},
		{"listen[1]: tcp://inside:389 is listed twice", func(c *Config) {
			c.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 389}, {Proto: "tcp", Network: "inside", Port: 389}}
		}},
		{"listen[0]: there is no server for it; set server, e.g. 198.51.100.30:389", func(c *Config) {
			c.Server, c.Listen = "", []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 389}}
		}},
		{`server: "ldap.example.org" is neither HOST:PORT nor builtin`, func(c *Config) { c.Server = "ldap.example.org" }},
		{`servers.dmz: network "dmz" is not defined under networks`, func(c *Config) { c.Servers = map[string]string{"dmz": Builtin} }},
		{`servers.inside: "x:0" is neither HOST:PORT nor builtin`, func(c *Config) { c.Servers = map[string]string{"inside": "x:0"} }},
		{"pool[0]: 2001:db8::1 is no IPv4 address of a host; entries hold no other", func(c *Config) { c.Pool = []netip.Addr{netip.MustParseAddr("2001:db8::1")} }},
		{"pool[1]: 192.0.2.1 is listed twice", func(c *Config) {
			c.Pool = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.1")}
		}},
		{"pool[0]: 192.0.2.1 is no address of the edge; list it under networks too, so that calls to it arrive", func(c *Config) {
			c.Pool = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		}},
		{"lifetime: 0s is not between 1s and 168h", func(c *Config) { c.Lifetime = 0 }},
		{"memory: 1ms is not between 1s and 168h", func(c *Config) { c.Memory = time.Millisecond }},
		{"idle: 200h0m0s is not between 1s and 168h", func(c *Config) { c.Idle = 200 * time.Hour }},
		{"max_message: 100 is not between 4096 and 16777216", func(c *Config) { c.MaxMessage = 100 }},
		{"ports.h323: 0 is no port", func(c *Config) { c.Ports.H323 = 0 }},
	} {
		c := DefaultConfig()
		c.Server = "198.51.100.30:389"
		tc.set(&c)
		err := c.Validate(networks())
		if err == nil || !slices.Contains(strings.Split(err.Error(), "\n"), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
}

package t120

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(loopback()); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	to := func(s string) map[string]netip.AddrPort {
		return map[string]netip.AddrPort{"inside": netip.MustParseAddrPort(s)}
	}
	for _, tc := range []struct {
		want string
		set  func(*Config)
	}{
		{`listen[0]: network "dmz" is not defined under networks`, func(c *Config) { c.Listen = []pinhole.Listen{{Proto: "tcp", Network: "dmz", Port: 1503}} }},
		{"listen[1]: tcp://inside:1503 is listed twice", func(c *Config) {
			c.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 1503}, {Proto: "tcp", Network: "inside", Port: 1503}}
		}},
		{"conferences.inside: 127.1.0.1:1503 is no ADDRESS:PORT of another host", func(c *Config) { c.Conferences = to("127.1.0.1:1503") }},
		{"conferences.Staff: write the name in lower case; case does not matter in calls", func(c *Config) {
			c.Conferences = map[string]netip.AddrPort{"Staff": netip.MustParseAddrPort("127.1.0.2:1503")}
		}},
		{"targets.inside: 127.2.0.2:0 is no ADDRESS:PORT of another host", func(c *Config) { c.Targets = to("127.2.0.2:0") }},
		{`targets.dmz: network "dmz" is not defined under networks`, func(c *Config) {
			c.Targets = map[string]netip.AddrPort{"dmz": netip.MustParseAddrPort("127.2.0.2:1503")}
		}},
		{`policy[0].conference: "[" is no pattern`, func(c *Config) { c.Policy = []Rule{{Conference: "["}} }},
		{`addresses: "blank" is not hide or pass`, func(c *Config) { c.Addresses = "blank" }},
		{"setup: 1h0m0s is not between 1s and 10m", func(c *Config) { c.Setup = time.Hour }},
		{"idle: 1ms is neither 0 nor at least 1s", func(c *Config) { c.Idle = time.Millisecond }},
	} {
		c := DefaultConfig()
		tc.set(&c)
		err := c.Validate(loopback())
		if err == nil || !slices.Contains(strings.Split(err.Error(), "\n"), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
}

package media

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

func TestConfigYAML(t *testing.T) {
	got := DefaultPinholeConfig()
	text := `
udp: 30000-30999
tcp: 31000-31001
per_owner: 8
idle: 90s
quarantine: 0s
allow_targets: {outside: [10.0.0.0/8, "2001:db8::/32"]}
`
	if err := yaml.UnmarshalWithOptions([]byte(text), &got, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	want := PinholeConfig{
		UDP: PortRange{30000, 30999}, TCP: PortRange{31000, 31001}, PerOwner: 8, Idle: 90 * time.Second,
		Firewall: FirewallNone,
		AllowTargets: map[string][]netip.Prefix{
			"outside": {netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")},
		},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	m := DefaultConfig()
	if err := yaml.UnmarshalWithOptions([]byte("{dscp: 0, latch: false}"), &m, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if d := DefaultConfig(); m != (Config{Datapath: d.Datapath, Pin: d.Pin}) {
		t.Errorf("%+v", m)
	}
}

func TestPortRange(t *testing.T) {
	for text, want := range map[string]string{
		"50000-59999": "50000-59999", " 1 - 2 ": "1-2", "7": "7-7",
		"": "", "a-b": "", "1-70000": "", "-": "", "1-2-3": "", "-5": "",
	} {
		var r PortRange
		got := ""
		if err := r.UnmarshalText([]byte(text)); err == nil {
			got = r.String()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestConfigFaults(t *testing.T) {
	good := DefaultPinholeConfig()
	if err := errors.Join(good.Validate(), DefaultConfig().Validate()); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	bad := PinholeConfig{
		UDP: PortRange{100, 50}, TCP: PortRange{0, 10}, Idle: time.Millisecond, Quarantine: -1,
		AllowTargets: map[string][]netip.Prefix{"outside": {{}, netip.MustParsePrefix("0.0.0.0/0")}},
	}
	want := []string{
		"pinholes.udp", "pinholes.tcp", "pinholes.per_owner", "pinholes.idle", "pinholes.quarantine",
		"pinholes.allow_targets.outside[0]", "pinholes.allow_targets.outside[1]",
	}
	var got []string
	for _, err := range bad.Validate().(interface{ Unwrap() []error }).Unwrap() {
		var f Fault
		if !errors.As(err, &f) || !strings.HasPrefix(err.Error(), f.Key+": ") {
			t.Errorf("%v is no fault with a key", err)
		}
		got = append(got, f.Key)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, dscp := range []int{-1, 64} {
		if err := (Config{DSCP: dscp, Datapath: DatapathUser}).Validate(); err == nil {
			t.Errorf("dscp %d is accepted", dscp)
		}
	}
	if err := (Config{Datapath: "fast"}).Validate(); err == nil {
		t.Error("an unknown datapath is accepted")
	}
	lost := DefaultPinholeConfig()
	lost.AllowTargets = map[string][]netip.Prefix{"dmz": {netip.MustParsePrefix("10.0.0.0/8")}}
	if _, err := New(lost, DefaultConfig(), testNetworks(), newHeldPath(), nil); err == nil {
		t.Error("targets of an unknown network are accepted")
	}
}

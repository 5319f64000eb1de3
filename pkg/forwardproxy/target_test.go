package forwardproxy

import (
	"testing"
)

func TestTarget(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"*.example.org:443", "*.example.org:443"},
		{"WWW.Example.org:443,5061", "www.example.org:443,5061"},
		{"*:443", "*:443"},
		{"192.0.2.0/24:1024-65535", "192.0.2.0/24:1024-65535"},
		{"192.0.2.1:*", "192.0.2.1:*"},
		{"[2001:db8::/32]:443", "[2001:db8::/32]:443"},
		{"[2001:db8::1]:443", "[2001:db8::1]:443"},
		{"udp/stun.example.org:3478", "udp/stun.example.org:3478"},
		{"", ""},
		{"example.org", ""},
		{":443", ""},
		{"example.org:", ""},
		{"example.org:0", ""},
		{"example.org:443-80", ""},
		{"example.org:65536", ""},
		{"example.org:443,", ""},
		{"2001:db8::1:443", ""},
		{"[2001:db8::1%eth0]:443", ""},
		{"[::ffff:192.0.2.1]:443", ""},
		{"192.0.2.1/24:443", ""},
		{"a.*.example.org:443", ""},
		{"*.:443", ""},
		{"exa mple.org:443", ""},
		{"tcp/example.org:443", ""},
	} {
		var x Target
		err := x.UnmarshalText([]byte(tc.text))
		switch {
		case tc.want == "" && err == nil:
			t.Errorf("%q was read as %s", tc.text, x)
		case tc.want != "" && (err != nil || x.String() != tc.want):
			t.Errorf("%q: %s, %v", tc.text, x, err)
		}
	}
}

func TestNamed(t *testing.T) {
	for _, tc := range []struct {
		item, host string
		want       bool
	}{
		{"*.example.org:1", "www.example.org", true},
		{"*.example.org:1", "a.b.example.org", true},
		{"*.example.org:1", "example.org", false},
		{"*.example.org:1", "notexample.org", false},
		{"*.example.org:1", "example.org.example.com", false},
		{"example.org:1", "example.org", true},
		{"example.org:1", "www.example.org", false},
		{"*:1", "192.0.2.1", true},
		{"*:1", "example.org", true},
		{"*.1:1", "192.0.2.1", false},
		{"192.0.2.1:1", "192.0.2.1", false}, // judged when it is dialled
	} {
		var x Target
		if err := x.UnmarshalText([]byte(tc.item)); err != nil {
			t.Fatal(err)
		}
		if got := x.named(tc.host); got != tc.want {
			t.Errorf("%s and %s: %v", tc.item, tc.host, got)
		}
	}
}

func TestReadHost(t *testing.T) {
	for in, want := range map[string]string{
		"WWW.Example.ORG.": "www.example.org", "192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:DB8::1": "2001:db8::1",
		"": "", ".": "", "fe80::1%lo": "", "a..b": "", "ex\x00ample": "", "exämple.org": "", "a b": "", "0x7f.0.0.1": "0x7f.0.0.1",
	} {
		if got, err := readHost(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"*.example.org:443", "udp/[2001:db8::/32]:1-2,3", "192.0.2.0/24:*", "*:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var x, y Target
		if x.UnmarshalText([]byte(s)) != nil {
			return
		}
		if err := y.UnmarshalText([]byte(x.String())); err != nil || x.String() != y.String() {
			t.Fatalf("%q: %s, then %s, %v", s, x, y, err)
		}
	})
}

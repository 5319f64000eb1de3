package rfc1350

import (
	"fmt"
	"strings"
	"testing"
)

// step is a packet of a side: "ok", "done", why it is dropped, or "fail " and why.
type step struct {
	from side
	b    []byte
	want string
}

func TestTransfer(t *testing.T) {
	read, write := ask(opRead, "a", "octet"), ask(opWrite, "a", "octet")
	big := ask(opRead, "a", "octet", "blksize", "1428", "tsize", "0", "windowsize", "4")
	for _, tt := range []struct {
		name    string
		request []byte
		max     int64
		steps   []step
		octets  int64
	}{
		{"get", read, 0, []step{
			{server, data(1, 512), "ok"}, {client, ack(1), "ok"}, {server, data(2, 10), "ok"}, {client, ack(1), "ok"}, {client, ack(2), "done"},
			{server, data(2, 10), "done"}, {client, ack(2), "done"},
		}, 522},
		{"get of a multiple of the block", read, 0, []step{
			{server, data(1, 512), "ok"}, {client, ack(1), "ok"}, {server, data(2, 0), "ok"}, {client, ack(2), "done"},
		}, 512},
		{"put", write, 0, []step{
			{client, data(1, 512), "unexpected"}, {server, ack(0), "ok"}, {client, data(1, 512), "ok"}, {server, ack(1), "ok"}, {client, data(1, 512), "ok"},
			{client, data(2, 1), "ok"}, {server, ack(2), "done"},
		}, 513},
		{"options", big, 0, []step{
			{server, oack("blksize", "1428", "tsize", "3000", "windowsize", "2"), "ok"}, {client, ack(0), "ok"},
			{server, data(1, 1428), "ok"}, {server, data(2, 1428), "ok"}, {client, ack(2), "ok"}, {server, data(3, 144), "ok"}, {client, ack(3), "done"},
		}, 3000},
		{"server takes no options", big, 0, []step{{server, data(1, 512), "ok"}, {client, ack(1), "ok"}, {server, data(2, 1428), "oversize"}, {server, data(2, 3), "ok"}, {client, ack(2), "done"}}, 515},
		{"client refuses the options", big, 0, []step{{server, oack("blksize", "1428"), "ok"}, {client, errorPacket(codeOptions, "no"), "done"}}, 0},
		{"option that was not asked", read, 0, []step{{server, oack("blksize", "1428"), "fail bad_option"}}, 0},
		{"larger blocks than asked", big, 0, []step{{server, oack("blksize", "2000"), "fail bad_option"}}, 0},
		{"no number", big, 0, []step{{server, oack("windowsize", "-1"), "fail bad_option"}}, 0},
		{"options after data", big, 0, []step{{server, data(1, 512), "ok"}, {server, oack("blksize", "1428"), "unexpected"}}, 512},
		{"wrong way", read, 0, []step{{server, data(1, 512), "ok"}, {client, data(1, 512), "unexpected"}, {server, ack(1), "unexpected"}, {client, oack(), "unexpected"}, {client, read, "malformed"}}, 512},
		{"error", read, 0, []step{{server, errorPacket(1, "not found"), "done"}}, 0},
		{"announced too large", big, 2000, []step{{server, oack("tsize", "2001"), "fail too_large"}}, 0},
		{"too large", read, 600, []step{{server, data(1, 512), "ok"}, {server, data(1, 512), "ok"}, {client, ack(1), "ok"}, {server, data(2, 89), "fail too_large"}}, 601},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := parseRequest(tt.request)
			if err != nil {
				t.Fatal(err)
			}
			x := newTransfer(r, tt.max)
			for i, s := range tt.steps {
				v := x.receive(s.from, s.b)
				got := v.drop
				switch {
				case v.fail != nil:
					got = "fail " + v.fail.reason
				case v.passes() && x.done:
					got = "done"
				case v.passes():
					got = "ok"
				}
				if got != s.want {
					t.Errorf("step %d: %s, want %s", i, got, s.want)
				}
			}
			if x.octets != tt.octets {
				t.Errorf("%d octets, want %d", x.octets, tt.octets)
			}
		})
	}
}

// TestLongFile: block numbers begin again after 65535, and all octets are counted.
func TestLongFile(t *testing.T) {
	r, err := parseRequest(ask(opRead, "a", "octet", "blksize", "8"))
	if err != nil {
		t.Fatal(err)
	}
	x := newTransfer(r, 0)
	x.receive(server, oack("blksize", "8"))
	for i := range 70000 {
		if v := x.receive(server, data(uint16(i+1), 8)); !v.passes() {
			t.Fatalf("block %d: %+v", i, v)
		}
	}
	if x.octets != 560000 || x.done {
		t.Errorf("%d octets", x.octets)
	}
}

func TestPolicy(t *testing.T) {
	for _, tt := range []struct {
		request []byte
		change  func(*Config)
		want    string
	}{
		{ask(opRead, "a.bin", "octet"), nil, ""},
		{ask(opRead, "/boot/a b.bin", "netascii"), nil, ""},
		{ask(opRead, "a", "mail"), nil, "mode"},
		{ask(opWrite, "a", "octet"), nil, "write"},
		{ask(opWrite, "a", "octet"), func(c *Config) { c.Write = true }, ""},
		{ask(opRead, "../a", "octet"), nil, "name"},
		{ask(opRead, `boot\..\..\a`, "octet"), nil, "name"},
		{ask(opRead, `boot\.. \a`, "octet"), nil, "name"},
		{ask(opRead, "a..b", "octet"), nil, ""},
		{ask(opRead, "a\x01", "octet"), nil, "name"},
		{ask(opRead, "a\xff", "octet"), nil, "name"},
		{ask(opRead, strings.Repeat("a", 256), "octet"), nil, "name"},
		{ask(opRead, "dir/Secret.CFG", "octet"), func(c *Config) { c.Deny = []string{"*.cfg"} }, "name"},
		{ask(opRead, "dir/secret.cfg. ", "octet"), func(c *Config) { c.Deny = []string{"*.cfg"} }, "name"},
		{ask(opRead, `pub\x.bin`, "octet"), func(c *Config) { c.Allow = []string{"pub/*"} }, ""},
		{ask(opRead, "x.bin", "octet"), func(c *Config) { c.Allow = []string{"pub/*"} }, "name"},
		{ask(opRead, "a/.. ./b", "octet"), nil, "name"},
		{ask(opRead, "a/.../b", "octet"), nil, "name"},
		{ask(opRead, "a.cfg::$DATA", "octet"), func(c *Config) { c.Deny = []string{"*.cfg"} }, "name"},
		{ask(opRead, "./secret//x", "octet"), func(c *Config) { c.Deny = []string{"secret/*"} }, "name"},
		{ask(opRead, `\secret\x`, "octet"), func(c *Config) { c.Deny = []string{"secret/*"} }, "name"},
		{ask(opRead, "secret. /x", "octet"), func(c *Config) { c.Deny = []string{"/Secret/*"} }, "name"},
		{ask(opRead, "secret/a/b", "octet"), func(c *Config) { c.Deny = []string{"secret/*"} }, "name"},
		{ask(opRead, "a.key/readme", "octet"), func(c *Config) { c.Deny = []string{"*.key"} }, ""},
		{ask(opRead, "pub/a/b", "octet"), func(c *Config) { c.Allow = []string{"pub/*"} }, "name"},
		{ask(opRead, "/pub/a", "octet"), func(c *Config) { c.Allow = []string{"pub/*"} }, ""},
	} {
		cfg := DefaultConfig()
		if tt.change != nil {
			tt.change(&cfg)
		}
		r, err := parseRequest(tt.request)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if f := cfg.refuses(r); f != nil {
			got = f.reason
		}
		if got != tt.want {
			t.Errorf("%q: %q, want %q", r.name, got, tt.want)
		}
	}
}

func TestServerText(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1:69", "192.0.2.1:6969": "192.0.2.1:6969", "2001:db8::1": "[2001:db8::1]:69", "[2001:db8::1]:70": "[2001:db8::1]:70", "host": "", "192.0.2.1:x": ""} {
		var s Server
		err := s.UnmarshalText([]byte(in))
		got, _ := s.MarshalText()
		if (err != nil) != (want == "") || err == nil && string(got) != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	if fmt.Sprint(DefaultConfig().Listen) != "[]" {
		t.Error("on by default")
	}
}

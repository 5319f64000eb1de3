package denylist

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
)

func target(t testing.TB, text string) Target {
	t.Helper()
	x, err := ParseTarget(text)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func open(t testing.TB, file string) *List {
	t.Helper()
	l, err := Open(file, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "192.0.2.7/24": "192.0.2.0/24", "2001:db8::1/56": "2001:db8::/56",
		"2001:DB8::1": "2001:db8::1", "fe80::1%eth0": "fe80::1", "user:Alice": "user:alice", "sip:Bob@Example.org": "user:bob@example.org",
		"bob@example.org": "user:bob@example.org", "SIPS:bob@example.org": "user:bob@example.org",
		"::ffff:192.0.2.7/120": "192.0.2.0/24", "::ffff:192.0.2.7/128": "192.0.2.7", "::ffff:0:0/96": "",
		"": "", "0.0.0.0/0": "", "::/0": "", "alice": "", "192.0.2.300": "", "user:": "", "user:a b": "", "192.0.2.0/33": "",
		"user:" + strings.Repeat("x", maxText): "", strings.Repeat("x", maxText-2) + "@x": "", "user:\xff": "", "user:\u009b2J": "",
	} {
		got, err := ParseTarget(text)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		if err == nil && target(t, got.String()) != got {
			t.Errorf("%q does not come back", text)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"192.0.2.7", "2001:db8::/56", "user:alice", "a@b", "sip:a@b", "10.0.0.0/8"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		x, err := ParseTarget(s)
		if err != nil {
			return
		}
		if again, err := ParseTarget(x.String()); err != nil || again != x {
			t.Errorf("%q is %v, and then %v, %v", s, x, again, err)
		}
	})
}

// TestOneBadBan: a ban that cannot be read costs itself, not all others.
func TestOneBadBan(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bans.json")
	const text = `[{"target":"192.0.2.7","since":"2026-01-01T00:00:00Z"},{"target":"nonsense"},7,{"target":"user:alice","since":"2026-01-01T00:00:00Z"}]`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if l := open(t, file); len(l.Bans()) != 2 || !l.Addr(netip.MustParseAddr("192.0.2.7")) || !l.User("alice@example.org") {
		t.Errorf("%+v", l.Bans())
	}
}

// TestBansEnd: who is on the list is shut out until its end, or until it is lifted.
func TestBansEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := open(t, "")
		a, near, other := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8:0:1::7")
		add := func(who string, d time.Duration) {
			if _, err := l.Add(target(t, who), d, "why", "test"); err != nil {
				t.Fatal(err)
			}
		}
		add("192.0.2.7", time.Minute)
		add("2001:db8::/56", 0)
		add("user:mallory", time.Minute)
		add("eve@example.org", time.Minute)
		mapped := netip.AddrFrom16(a.As16())
		if !l.Addr(a) || !l.Addr(mapped) || l.Addr(near) || !l.Addr(other) || l.Addr(netip.Addr{}) {
			t.Error("addresses")
		}
		if !l.User("Mallory") || !l.User("mallory@anywhere.example.org") || !l.User("eve@example.org") || l.User("eve@example.com") || l.User("eve") || l.User("") {
			t.Error("users")
		}
		if n := len(l.Bans()); n != 4 {
			t.Errorf("%d bans", n)
		}
		time.Sleep(time.Minute)
		if l.Addr(a) || l.User("mallory") || !l.Addr(other) || len(l.Bans()) != 1 {
			t.Error("after their end")
		}
		if had, err := l.Remove(target(t, "2001:db8::/56")); !had || err != nil || l.Addr(other) {
			t.Errorf("lifted: %v %v", had, err)
		}
		if had, _ := l.Remove(target(t, "192.0.2.7")); had {
			t.Error("lifted twice")
		}
	})
}

func TestRefusedBans(t *testing.T) {
	l := open(t, "")
	x := target(t, "192.0.2.7")
	if _, err := l.Add(x, -1, "", ""); err == nil {
		t.Error("a time below 0")
	}
	if _, err := l.Add(x, maxFor+1, "", ""); err == nil {
		t.Error("for ever and a day")
	}
	if _, err := l.Add(x, 0, strings.Repeat("x", maxText+1), ""); err == nil {
		t.Error("a long story")
	}
	if len(l.Bans()) != 0 {
		t.Error("somebody is banned")
	}
	var nobody *List
	if nobody.Addr(x.Net.Addr()) || nobody.User("x") || len(nobody.Bans()) != 0 {
		t.Error("a nil list is not empty")
	}
}

// TestListIsKept: over a restart, but for what has ended; a file that is none is set aside.
func TestListIsKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bans.json")
	l := open(t, file)
	for who, d := range map[string]time.Duration{"192.0.2.7": time.Hour, "user:mallory": 0, "198.51.100.0/24": time.Nanosecond} {
		if _, err := l.Add(target(t, who), d, "because", "me"); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	l = open(t, file)
	list := l.Bans()
	if len(list) != 2 || list[0].Why != "because" || list[0].By != "me" || !l.User("mallory") || !l.Addr(netip.MustParseAddr("192.0.2.7")) {
		t.Errorf("%+v", list)
	}
	if err := os.WriteFile(file, []byte(`[{"target":`), 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, file)
	if _, err := os.Stat(file + ".bad"); err != nil || len(l.Bans()) != 0 {
		t.Errorf("%v, %v", err, l.Bans())
	}
	if _, err := l.Add(target(t, "192.0.2.9"), 0, "", ""); err != nil || len(open(t, file).Bans()) != 1 {
		t.Errorf("after that: %v", err)
	}
}

// TestDoors: connections and datagrams of those who are shut out do not come through, those of others do.
func TestDoors(t *testing.T) {
	l := open(t, "")
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := l.Add(target(t, "127.0.0.66"), time.Hour, "", ""); err != nil {
		t.Fatal(err)
	}
	from := func(network, host string, to net.Addr) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
		if network == "udp4" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(host)}
		}
		c, err := d.Dial(network, to.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	bad, good := from("tcp4", "127.0.0.66", ln.Addr()), from("tcp4", "127.0.0.5", ln.Addr())
	c, err := l.Listener(ln).Accept()
	if err != nil || c.RemoteAddr().String() != good.LocalAddr().String() {
		t.Fatalf("%v %v", c, err)
	}
	defer c.Close()
	if _, err := bad.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("who is shut out sees %v, not a reset", err)
	}
	from("udp4", "127.0.0.66", pc.LocalAddr()).Write([]byte("bad"))
	from("udp4", "127.0.0.5", pc.LocalAddr()).Write([]byte("good"))
	b := make([]byte, 16)
	if n, _, err := l.PacketConn(pc).ReadFrom(b); err != nil || string(b[:n]) != "good" {
		t.Errorf("%q %v", b[:n], err)
	}
	for what, want := range map[string]float64{"connection": 1, "datagram": 1} {
		var m dto.Metric
		if err := l.drops.WithLabelValues(what).Write(&m); err != nil || m.GetCounter().GetValue() != want {
			t.Errorf("%s: %v %v", what, err, m.GetCounter())
		}
	}
}

// TestCut: the connections of who is banned end, whoever has made them; those of others and those that are spared do not.
func TestCut(t *testing.T) {
	l := open(t, "")
	ln, err := net.Listen("tcp4", "127.0.0.67:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pair := func(host string) (far, near net.Conn) {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}
		far, err := d.Dial("tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if near, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { far.Close(); near.Close() })
		return far, near
	}
	bad, _ := pair("127.0.0.68")
	good, near := pair("127.0.0.69")
	if _, err := l.Add(target(t, "127.0.0.68"), time.Hour, "", ""); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Cut(func(netip.AddrPort) bool { return true }); n != 0 || err != nil {
		t.Errorf("spared, yet %d were cut: %v", n, err)
	}
	if n, err := l.Cut(func(netip.AddrPort) bool { return false }); n != 1 || err != nil {
		t.Errorf("%d were cut: %v", n, err)
	}
	bad.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := bad.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("who is shut out reads on: %v", err)
	}
	near.Write([]byte("x"))
	if _, err := good.Read(make([]byte, 1)); err != nil {
		t.Errorf("another: %v", err)
	}
}

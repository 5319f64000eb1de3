package forwardproxy

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseConnect(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       connectRequest
		err        error
	}{
		{"communicator", "CONNECT sip.example.org:443 HTTP/1.0\r\nUser-Agent: Communicator\r\nProxy-Connection: Keep-Alive\r\nContent-Length: 0\r\n\r\n",
			connectRequest{host: "sip.example.org", port: 443, keep: true}, nil},
		{"curl", "CONNECT Example.ORG:443 HTTP/1.1\r\nHost: example.org:443\r\nProxy-Authorization: Basic YTpi\r\n\r\n",
			connectRequest{host: "example.org", port: 443, keep: true, login: "Basic YTpi"}, nil},
		{"libpurple", "CONNECT a:1 HTTP/1.1\r\nProxy-Authorization: Basic YTpi\r\nProxy-Authorization: NTLM TlRM\r\n\r\n",
			connectRequest{host: "a", port: 1, keep: true, login: "Basic YTpi"}, nil},
		{"ipv6", "CONNECT [2001:db8::1]:5061 HTTP/1.1\r\n\r\n", connectRequest{host: "2001:db8::1", port: 5061, keep: true}, nil},
		{"mapped", "CONNECT [::ffff:127.0.0.1]:443 HTTP/1.1\r\n\r\n", connectRequest{host: "127.0.0.1", port: 443, keep: true}, nil},
		{"close", "CONNECT a:1 HTTP/1.1\r\nConnection: close\r\n\r\n", connectRequest{host: "a", port: 1}, nil},
		{"old", "CONNECT a:1 HTTP/1.0\r\n\r\n", connectRequest{host: "a", port: 1}, nil},
		{"empty line before", "\r\nCONNECT a:1 HTTP/1.0\r\n\r\n", connectRequest{host: "a", port: 1}, nil},
		{"get", "GET http://example.org/ HTTP/1.1\r\n\r\n", connectRequest{keep: true}, errMethod},
		{"no port", "CONNECT example.org HTTP/1.1\r\n\r\n", connectRequest{}, errHost},
		{"port 0", "CONNECT example.org:0 HTTP/1.1\r\n\r\n", connectRequest{}, errHost},
		{"bare ipv6", "CONNECT 2001:db8::1:443 HTTP/1.1\r\n\r\n", connectRequest{}, errHost},
		{"bracketed name", "CONNECT [example.org]:443 HTTP/1.1\r\n\r\n", connectRequest{}, errHost},
		{"user in it", "CONNECT a@b:443 HTTP/1.1\r\n\r\n", connectRequest{}, errHost},
		{"version", "CONNECT a:1 HTTP/2.0\r\n\r\n", connectRequest{}, errForm},
		{"two spaces", "CONNECT  a:1 HTTP/1.1\r\n\r\n", connectRequest{}, errForm},
		{"folded", "CONNECT a:1 HTTP/1.1\r\nX: a\r\n b\r\n\r\n", connectRequest{}, errForm},
		{"no colon", "CONNECT a:1 HTTP/1.1\r\nX\r\n\r\n", connectRequest{}, errForm},
		{"body", "CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", connectRequest{}, errForm},
		{"chunks", "CONNECT a:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", connectRequest{}, errForm},
		{"bare feeds", "CONNECT a:1 HTTP/1.1\nX: y\n\r\n\r\n", connectRequest{}, errForm},
		{"nul", "CONNECT a:1 HTTP/1.1\r\nX: \x00\r\n\r\n", connectRequest{}, errForm},
	} {
		head, err := readHead(bufio.NewReaderSize(strings.NewReader(tc.text), 16))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		got, err := parseConnect(head)
		if !errors.Is(err, tc.err) || err == nil && got != tc.want || got.keep != tc.want.keep && errors.Is(err, errMethod) {
			t.Errorf("%s: %+v, %v", tc.name, got, err)
		}
	}
}

func TestReadHead(t *testing.T) {
	long := "CONNECT a:1 HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n"
	if _, err := readHead(bufio.NewReader(strings.NewReader(long))); !errors.Is(err, errLong) {
		t.Errorf("a long one: %v", err)
	}
	if _, err := readHead(bufio.NewReader(strings.NewReader("CONN"))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half of one: %v", err)
	}
	r := bufio.NewReader(strings.NewReader("CONNECT a:1 HTTP/1.1\r\n\r\n\x16\x03\x01"))
	if _, err := readHead(r); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "\x16\x03\x01" {
		t.Errorf("behind it: %q", rest)
	}
}

func FuzzConnect(f *testing.F) {
	for _, s := range []string{
		"CONNECT sip.example.org:443 HTTP/1.1\r\nProxy-Authorization: Basic YTpi\r\nContent-Length: 0\r\n\r\n",
		"CONNECT [2001:db8::1]:443 HTTP/1.0\r\nProxy-Connection: keep-alive\r\n\r\nrest", "GET / HTTP/1.1\r\n\r\n", "\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		head, err := readHead(bufio.NewReaderSize(bytes.NewReader(b), 64))
		if err != nil {
			return
		}
		if len(head) > maxHead {
			t.Fatalf("%d octets", len(head))
		}
		q, err := parseConnect(head)
		if err != nil {
			return
		}
		if again, err := readHost(q.host); err != nil || again != q.host || q.port == 0 {
			t.Fatalf("%+v, %v", q, err)
		}
		readBasic(q.login)
	})
}

func TestReadSOCKS(t *testing.T) {
	for _, tc := range []struct {
		name, octets string
		want         socksRequest
		err          error
	}{
		{"ipv4", "\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb", socksRequest{1, "192.0.2.1", 443}, nil},
		{"ipv6", "\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x01\xbb", socksRequest{1, "2001:db8::1", 443}, nil},
		{"mapped", "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x7f\x00\x00\x01\x01\xbb", socksRequest{1, "127.0.0.1", 443}, nil},
		{"name", "\x05\x03\x00\x03\x0bExample.org\x00\x50", socksRequest{3, "example.org", 80}, nil},
		{"empty name", "\x05\x01\x00\x03\x00\x00\x50", socksRequest{}, errHost},
		{"type", "\x05\x01\x00\x02", socksRequest{}, errAddress},
		{"version", "\x04\x01\x00\x01", socksRequest{}, errForm},
		{"short", "\x05\x01\x00\x01\xc0", socksRequest{}, io.ErrUnexpectedEOF},
		{"short name", "\x05\x01\x00\x03\xffa", socksRequest{}, io.ErrUnexpectedEOF},
	} {
		got, err := readSOCKS(strings.NewReader(tc.octets))
		if !errors.Is(err, tc.err) || err == nil && got != tc.want {
			t.Errorf("%s: %+v, %v", tc.name, got, err)
		}
	}
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte("\x05\x02\x00\x02\x01\x05alice\x06secret\x05\x01\x00\x03\x0bexample.org\x01\xbb"))
	f.Add([]byte("\x05\x01\x02\x01\x01a\x01b\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if _, err := readGreeting(r); err != nil {
			return
		}
		if _, _, err := readLogin(r); err != nil {
			return
		}
		q, err := readSOCKS(r)
		if err != nil {
			return
		}
		if again, err := readHost(q.host); err != nil || again != q.host {
			t.Fatalf("%+v, %v", q, err)
		}
	})
}

func TestSplitDatagram(t *testing.T) {
	for _, tc := range []struct {
		name, octets, host string
		port               uint16
		data               string
		err                error
	}{
		{"ipv4", "\x00\x00\x00\x01\xc0\x00\x02\x01\x0d\x96data", "192.0.2.1", 3478, "data", nil},
		{"name", "\x00\x00\x00\x03\x01a\x0d\x96", "a", 3478, "", nil},
		{"fragment", "\x00\x00\x01\x01\xc0\x00\x02\x01\x0d\x96data", "", 0, "", errFragment},
		{"reserved", "\x00\x01\x00\x01\xc0\x00\x02\x01\x0d\x96data", "", 0, "", errDatagram},
		{"type", "\x00\x00\x00\x02\xc0\x00\x02\x01\x0d\x96data", "", 0, "", errDatagram},
		{"short", "\x00\x00\x00\x04\xc0\x00\x02\x01\x0d\x96data", "", 0, "", errDatagram},
		{"port 0", "\x00\x00\x00\x01\xc0\x00\x02\x01\x00\x00data", "", 0, "", errHost},
	} {
		to, data, err := splitDatagram([]byte(tc.octets))
		if err == nil {
			var host string
			var port uint16
			if host, port, err = readDestination(to); err == nil && (host != tc.host || port != tc.port || string(data) != tc.data) {
				t.Errorf("%s: %s, %d, %q", tc.name, host, port, data)
			}
		}
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\xc0\x00\x02\x01\x0d\x96data"))
	f.Add([]byte("\x00\x00\x00\x03\x0bexample.org\x0d\x96data"))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, data, err := splitDatagram(b)
		if err != nil {
			return
		}
		if whole := append(append([]byte{0, 0, 0}, to...), data...); !bytes.Equal(whole, b) {
			t.Fatalf("%q", whole)
		}
		host, port, err := readDestination(to)
		if err != nil {
			return
		}
		a, err := netip.ParseAddr(host)
		if err != nil {
			return
		}
		at := netip.AddrPortFrom(a, port)
		if again, _, err := splitDatagram(appendSOCKS([]byte{0, 0, 0}, at)); err != nil {
			t.Fatalf("%v: %q, %v", at, again, err)
		} else if h, p, err := readDestination(again); err != nil || h != host || p != port {
			t.Fatalf("%v: %s %d, %v", at, h, p, err)
		}
	})
}

func TestUsers(t *testing.T) {
	u, err := ParseUsers("# people\nalice:secret:with colon\r\n\nbob: spaces \n")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, password string
		want           bool
	}{
		{"alice", "secret:with colon", true}, {"bob", " spaces ", true}, {"alice", "secret", false}, {"alice", "", false},
		{"carol", "secret", false}, {"", "", false}, {"bob", "secret:with colon", false},
	} {
		if got := u.check(tc.name, tc.password); got != tc.want {
			t.Errorf("%s with %q: %v", tc.name, tc.password, got)
		}
	}
	var nobody *Users
	if nobody.check("alice", "secret") {
		t.Error("nobody's users know alice")
	}
	for _, text := range []string{"alice", "alice:", ":secret", "a:b\na:c", strings.Repeat("a", 256) + ":b"} {
		if _, err := ParseUsers(text); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestReadBasic(t *testing.T) {
	for value, want := range map[string]string{
		"Basic " + base64.StdEncoding.EncodeToString([]byte("alice:se:cret")): "alice/se:cret",
		"basic  " + base64.StdEncoding.EncodeToString([]byte("alice:secret")): "alice/secret",
		"Basic !!": "", "Negotiate YWxpY2U6c2VjcmV0": "", "": "", "Basic " + base64.StdEncoding.EncodeToString([]byte("alice")): "",
	} {
		name, password, ok := readBasic(value)
		if ok != (want != "") || ok && name+"/"+password != want {
			t.Errorf("%q: %q, %q, %v", value, name, password, ok)
		}
	}
}

func TestGuesses(t *testing.T) {
	var g guesses
	source, now := netip.MustParseAddr("192.0.2.1"), time.Now()
	for range maxWrong {
		if g.locked(source, now) {
			t.Fatal("locked too early")
		}
		g.add(source, now)
	}
	if !g.locked(source, now) || g.locked(netip.MustParseAddr("192.0.2.2"), now) {
		t.Error("not locked, or another is")
	}
	if g.locked(source, now.Add(wrongTime)) {
		t.Error("locked for ever")
	}
	for i := range 2 * maxGuessers {
		g.add(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now)
	}
	if len(g.wrong) > maxGuessers {
		t.Errorf("%d sources are remembered", len(g.wrong))
	}
}

package groove

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sample is a GUID of [MS-GRVHENC]'s examples.
const sample = "hczn5kctbrpxfgkgxzqs6zmkp9uwvswszvs6f72"

func TestParseTarget(t *testing.T) {
	long := target{version: "2.0", relay: "relay.example.org", guid: sample, mode: LongLived, length: 2147479552}
	keep := target{version: "2.0", relay: "relay.example.org", guid: sample, mode: KeepAlive}
	for _, tc := range []struct {
		uri  string
		want target
		err  error
	}{
		{"/2.0/relay.example.org/" + sample + ",ConnType=LongLived,ContentLength=2147479552", long, nil},
		{"http://198.51.100.1:80/2.0/Relay.example.org/" + sample + ",ConnType=LongLived,ContentLength=2147479552,ID=8s", long, nil},
		{"HTTP://h/2.0/relay.example.org/" + sample + ",ConnType=KeepAlive,ID=8s", keep, nil},
		{"/2.0/relay.example.org/" + sample + ",ConnType=KeepAlive", keep, nil},
		{"/1.0/relay.example.org/" + sample + ",ConnType=KeepAlive", target{version: "1.0", relay: "relay.example.org"}, errVersion},
		{"/2.0/relay.example.org/" + sample + ",ConnType=Other", target{}, errURI},
		{"/2.0/relay.example.org/" + sample + ",ConnType=KeepAlive,ConnType=KeepAlive", target{}, errURI},
		{"/2.0/relay.example.org/" + sample + ",ConnType=KeepAlive,ContentLength=2147479552", target{}, errURI},
		{"/2.0/relay.example.org/" + sample + ",ConnType=LongLived", target{}, errURI},
		{"/2.0/relay.example.org/" + sample + ",ConnType=LongLived,ContentLength=4095", target{}, errURI},
		{"/2.0/relay.example.org/" + sample + ",ConnType=LongLived,ContentLength=2147483648", target{}, errURI},
		{"/2.0/relay.example.org/" + sample, target{}, errURI},
		{"/2.0/relay.example.org/" + sample[1:] + ",ConnType=KeepAlive", target{}, errURI},
		{"/2.0/relay.example.org/../" + sample + ",ConnType=KeepAlive", target{}, errURI},
		{"/2.0//" + sample + ",ConnType=KeepAlive", target{}, errURI},
		{"/2.0/relay.example.org", target{}, errNotGroove},
		{"/index.html", target{}, errNotGroove},
		{"/a/b/c", target{}, errNotGroove},
		{"ftp://h/2.0/r/" + sample + ",ConnType=KeepAlive", target{}, errNotGroove},
		{"http://h", target{}, errNotGroove},
		{"", target{}, errNotGroove},
		{"*", target{}, errNotGroove},
	} {
		got, err := parseTarget(tc.uri)
		if !errors.Is(err, tc.err) || err == nil && got != tc.want {
			t.Errorf("%s: %+v, %v", tc.uri, got, err)
		}
	}
}

func FuzzTarget(f *testing.F) {
	f.Add("/2.0/relay.example.org/" + sample + ",ConnType=LongLived,ContentLength=2147479552")
	f.Add("http://h:8080/2.0/r/" + sample + ",ConnType=KeepAlive,ID=1")
	f.Add("/2.0/r/" + sample + ",ConnType=Polling")
	f.Fuzz(func(t *testing.T, uri string) {
		got, err := parseTarget(uri)
		if err != nil {
			return
		}
		if again, err := parseTarget(got.String()); err != nil || again != got {
			t.Errorf("%q: %+v, then %+v, %v", uri, got, again, err)
		}
	})
}

func TestReadHead(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want head
		err  error
	}{
		{"GET /x HTTP/1.0\r\n\r\n", head{first: [3]string{"GET", "/x", "HTTP/1.0"}, length: -1}, nil},
		{"GET /x HTTP/1.1\nConnection: a, Close\n\n", head{first: [3]string{"GET", "/x", "HTTP/1.1"}, length: -1}, nil},
		{"POST /x HTTP/1.0\r\nConnection: Keep-Alive\r\ncontent-length: 22\r\n\r\n", head{first: [3]string{"POST", "/x", "HTTP/1.0"}, length: 22, persist: true}, nil},
		{
			"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nTransfer-Encoding: chunked\r\n\r\n",
			head{first: [3]string{"HTTP/1.1", "407", "Proxy Authentication Required"}, length: -1, persist: true, chunked: true, challenge: []string{"Basic realm=x"}}, nil,
		},
		{"HTTP/1.0 200\r\n\r\n", head{first: [3]string{"HTTP/1.0", "200"}, length: -1}, nil},
		{"GET /x\r\n\r\n", head{}, errMalformed},
		{"GET /x HTTP/2.0\r\n\r\n", head{}, errMalformed},
		{"GET /x HTTP/1.0\r\nContent-Length: -1\r\n\r\n", head{}, errMalformed},
		{"GET /x HTTP/1.0\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", head{}, errMalformed},
		{"GET /x HTTP/1.0\r\nno colon\r\n\r\n", head{}, errMalformed},
		{"GET /x HTTP/1.0\r\nA b: c\r\n\r\n", head{}, errMalformed},
		{"GET /x HTTP/1.0\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n", head{}, errTooLong},
		{"GET /" + strings.Repeat("x", maxHead) + " HTTP/1.0\r\n\r\n", head{}, errTooLong},
		{"GET /x HTTP/1.0\r\n" + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 9) + "\r\n", head{}, errTooLong},
	} {
		got, err := readHead(bufio.NewReaderSize(strings.NewReader(tc.in+"rest"), maxHead))
		if !errors.Is(err, tc.err) {
			t.Errorf("%.60q: %v", tc.in, err)
		}
		if err != nil {
			continue
		}
		if diff := cmp.Diff(tc.want, *got, cmp.AllowUnexported(head{}), cmpopts.IgnoreFields(head{}, "raw")); diff != "" || string(got.raw) != tc.in {
			t.Errorf("%.60q: %s", tc.in, diff)
		}
	}
}

func FuzzHead(f *testing.F) {
	f.Add([]byte("POST /x HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 22\r\n\r\n"))
	f.Add(response("200 OK", true, 22))
	f.Add(request("GET", "/x", "h", true, -1, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHead(bufio.NewReaderSize(bytes.NewReader(b), maxHead))
		if err == nil && (!bytes.HasPrefix(b, h.raw) || len(h.raw) > maxHead || h.length < -1) {
			t.Errorf("%+v", h)
		}
	})
}

// connectBytes makes a Connect.
func connectBytes(order binary.AppendByteOrder, relay string, token int) []byte {
	rest := append([]byte{1, 6, 0}, relay+"\x00\x01dpp://device.example.org\x00"...)
	rest = order.AppendUint16(rest, uint16(token))
	rest = append(rest, make([]byte, token)...)
	rest = append(rest, "Groove Client 4.2 2623\x00caps\x00"...)
	return append(order.AppendUint16([]byte{1}, uint16(len(rest)+3)), rest...)
}

func TestParseConnect(t *testing.T) {
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, token := range []int{0, 1, 5, 255, 256, 257, 2000} {
			b := connectBytes(order, "dpp://Relay.example.org:2492/x", token)
			c, more, err := ParseConnect(append(slices.Clone(b), "next"...))
			want := Connect{Minor: 6, Target: "dpp://Relay.example.org:2492/x", Sources: []string{"dpp://device.example.org"}, Product: "Groove Client 4.2 2623", Len: len(b)}
			if diff := cmp.Diff(want, c); diff != "" || more || err != nil || c.Relay() != "relay.example.org" {
				t.Errorf("%v, %d: %v, %v, %s", order, token, more, err, diff)
			}
			for n := range b {
				if c, more, err := ParseConnect(b[:n]); !more || err != nil {
					t.Fatalf("%v, %d, the first %d: %+v, %v", order, token, n, c, err)
				}
			}
			b[4] = 4
			if _, more, err := ParseConnect(b); more || err == nil {
				t.Errorf("version 1.4 is accepted")
			}
			b[4] = 5
			b[len(b)-1] = 'x'
			if _, _, err := ParseConnect(append(b, make([]byte, maxConnect)...)); err == nil {
				t.Errorf("%v, %d: a command without its end is accepted", order, token)
			}
		}
	}
	for _, b := range []string{"\x02", "GET / HTTP/1.0\r\n\r\n", "\x01\x00\x00\x01\x06\x00", strings.Repeat("\x01", 10_000)} {
		if _, more, err := ParseConnect([]byte(b)); more || err == nil {
			t.Errorf("%.20q is accepted", b)
		}
	}
}

func FuzzConnect(f *testing.F) {
	f.Add(connectBytes(binary.LittleEndian, "dpp://relay.example.org", 257))
	f.Add(connectBytes(binary.BigEndian, "relay.example.org", 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, more, err := ParseConnect(b)
		switch {
		case more && (len(b) >= maxConnect || err != nil):
			t.Errorf("more is wanted of %d, %v", len(b), err)
		case more || err != nil:
		case c.Len > len(b) || c.Len < minConnect || c.Target == "":
			t.Errorf("%+v", c)
		default:
			if again, more, err := ParseConnect(b[:c.Len]); more || err != nil || !cmp.Equal(again, c) {
				t.Errorf("alone: %+v, %v, %v", again, more, err)
			}
		}
	})
}

func TestChecksum(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want int32
	}{
		{"", 0}, {"a", 0}, {"ab", 99 * 2}, {"abc", 99*2 + 100*3}, {"a\xff", 0}, {"a\x80", -127 * 2}, {"\x00\x00", 2},
	} {
		if got := checksum([]byte(tc.in)); got != tc.want {
			t.Errorf("%q: %d, not %d", tc.in, got, tc.want)
		}
	}
}

func TestPollBody(t *testing.T) {
	good := "1.2\x00dpp://relay.example.org\x00" + sample + "\x007\x00198\x00ab"
	p, err := parsePollBody([]byte(good), false)
	if err != nil || p.seq != 7 || string(p.data) != "ab" || !sameRelay(p.relay, "Relay.example.org") || string(p.bytes()) != good {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{
		"", "1.2", strings.Replace(good, "1.2", "1.1", 1), strings.Replace(good, "198", "199", 1), strings.Replace(good, "\x007\x00", "\x00-1\x00", 1),
		strings.Replace(good, "\x007\x00", "\x004294967296\x00", 1), strings.Replace(good, sample, "short", 1), strings.Replace(good, "dpp", "d\x00p", 1), good + "c", good + strings.Repeat("\xff", maxBody),
	} {
		if p, err := parsePollBody([]byte(bad), false); err == nil {
			t.Errorf("%.80q: %+v", bad, p)
		}
	}
	full := pollBody{relay: "relay.example.org", guid: sample, seq: 1<<32 - 1, pace: &pace{maxPace, maxPace, maxRepetitions}}
	full.data = bytes.Repeat([]byte{0x80}, full.room())
	if b := full.bytes(); len(b) > maxBody {
		t.Errorf("a body of %d octets", len(b))
	}
}

func FuzzPollBody(f *testing.F) {
	f.Add([]byte("1.2\x00relay.example.org\x00"+sample+"\x000\x000\x00"), false)
	f.Add(pollBody{relay: "r", guid: sample, seq: 3, pace: pollPace(), data: []byte("data")}.bytes(), true)
	f.Fuzz(func(t *testing.T, b []byte, isResponse bool) {
		p, err := parsePollBody(b, isResponse)
		if err != nil {
			return
		}
		again, err := parsePollBody(p.bytes(), isResponse)
		if diff := cmp.Diff(p, again, cmp.AllowUnexported(pollBody{}, pace{})); err != nil || diff != "" {
			t.Errorf("%v, %s", err, diff)
		}
	})
}

func TestPace(t *testing.T) {
	p := &pace{min: time.Second, max: 5 * time.Second, repetitions: 2}
	interval, without := p.next(0, 0, true)
	var got []time.Duration
	for range 8 {
		got = append(got, interval/time.Second)
		interval, without = p.next(interval, without, false)
	}
	if want := []time.Duration{1, 1, 1, 2, 2, 4, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		c    Config
		want string
	}{
		{Config{}, ""},
		{Config{Relays: map[string]Backend{"relay.example.org": {"10.0.0.7", 2492}}, Idle: time.Hour, Establish: time.Minute, MaxConnections: 1}, ""},
		{Config{Relays: map[string]Backend{"Relay": {"10.0.0.7", 2492}}}, `relays.Relay: "Relay" is no host name in lower case`},
		{Config{MaxConnections: -1}, "max_connections: -1 is not within 0-65536; 0 is the default"},
		{Config{PerSource: 70_000}, "per_source: 70000 is not within 0-65536; 0 is the default"},
		{Config{Establish: time.Hour}, "establish: 1h0m0s is not within 1s-5m"},
		{Config{Idle: time.Second}, "idle: 1s is not within 1m-24h"},
	} {
		got := ""
		if err := tc.c.Validate(); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%+v: %s", tc.c, got)
		}
	}
	for text, want := range map[string]Backend{"relay.example.org:2492": {"relay.example.org", 2492}, "[2001:db8::1]:443": {"2001:db8::1", 443}, "10.0.0.7": {}, ":2492": {}, "h:0": {}, "h:x": {}} {
		var b Backend
		if err := b.UnmarshalText([]byte(text)); (err == nil) != (want != Backend{}) || b != want {
			t.Errorf("%s: %+v, %v", text, b, err)
		}
		if again, _ := want.MarshalText(); want != (Backend{}) && string(again) != text {
			t.Errorf("%s becomes %s", text, again)
		}
	}
}

package groove

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"edged.dev/edged/internal/groovepeer"
)

func (x *site) peer() groovepeer.Client {
	addr := x.http.Addr().String()
	return groovepeer.Client{Relay: "relay.example.org", Host: addr, Patience: patience, Dial: func() (net.Conn, error) { return net.Dial("tcp", addr) }}
}

// TestPeer: a client that shares no code with this package.
func TestPeer(t *testing.T) {
	x := newSite(t, nil)
	for mode, dial := range map[string]func() (io.ReadWriteCloser, error){
		"LongLived": func() (io.ReadWriteCloser, error) { return x.peer().LongLived() },
		"KeepAlive": func() (io.ReadWriteCloser, error) { return x.peer().KeepAlive() },
	} {
		t.Run(mode, func(t *testing.T) {
			c, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			sent := noise(1 << 20)
			go c.Write(sent)
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatal(err)
			}
		})
	}
}

// TestRaw: streams of SSTP go to the relay that their Connect names, in either byte order, and nothing else goes anywhere.
func TestRaw(t *testing.T) {
	x := newSite(t, nil)
	for _, tc := range []struct {
		first  string
		reason string // "" is carried
	}{
		{string(groovepeer.Connect("dpp://relay.example.org", false)), ""},
		{string(groovepeer.Connect("dpp://relay.example.org/", true)), ""},
		{string(groovepeer.Connect("relay.example.org", false)) + "and more", ""},
		{string(groovepeer.Connect("dpp://other.example.org", false)), "relay"},
		{"GET / HTTP/1.0\r\n\r\n", "not_connect"},
		{"\x01\x21\x00\x01\x05\x00" + strings.Repeat("x", 27), "not_connect"},
	} {
		c, err := net.Dial("tcp", x.raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		before := x.s.counted(t, "edged_groove_refused_total", tc.reason)
		io.WriteString(c, tc.first)
		got := make([]byte, len(tc.first))
		_, err = io.ReadFull(c, got)
		switch {
		case tc.reason == "" && (err != nil || string(got) != tc.first):
			t.Errorf("%q: %q, %v", tc.first, got, err)
		case tc.reason != "" && !errors.Is(err, syscall.ECONNRESET):
			t.Errorf("%q: %q, %v; want a reset", tc.first, got, err)
		case tc.reason != "":
			until(t, "it is counted", func() bool { return x.s.counted(t, "edged_groove_refused_total", tc.reason) == before+1 })
		}
	}
}

// say sends a text and returns what comes until the end; an end by a reset is none.
func (x *site) say(t *testing.T, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", x.http.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, text)
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%.60q: %v", text, err)
	}
	return string(b)
}

func post(guid, mode string, length string, body string) string {
	return "POST /2.0/relay.example.org/" + guid + ",ConnType=" + mode + " HTTP/1.0\r\nContent-Length: " + length + "\r\n\r\n" + body
}

// TestRefused: what breaks a rule ends at once, and is counted by its reason.
func TestRefused(t *testing.T) {
	x := newSite(t, nil)
	const long = "LongLived,ContentLength=2147479552"
	for _, tc := range []struct {
		text, want, reason string
		ended              bool // a virtual connection had begun
	}{
		{"GET /2.1/relay.example.org/" + sample + ",ConnType=KeepAlive HTTP/1.0\r\n\r\n", "HTTP/1.0 400 ", "version", false},
		{"GET /2.0/relay.example.org/" + sample + ",ConnType=None HTTP/1.0\r\n\r\n", "HTTP/1.0 400 ", "uri", false},
		{"GET /2.0/other.example.org/" + sample + ",ConnType=KeepAlive HTTP/1.0\r\n\r\n", "", "relay", false},
		{"PUT /2.0/relay.example.org/" + sample + ",ConnType=KeepAlive HTTP/1.0\r\n\r\n", "", "method", false},
		{"GET /2.0/relay.example.org/" + sample + ",ConnType=Polling HTTP/1.0\r\n\r\n", "", "method", false},
		{"GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 404 ", "not_groove", false},
		{"nonsense\r\n\r\n", "", "malformed_header", false},
		{"GET /" + strings.Repeat("x", 9000), "", "long_header", false},
		{strings.Replace(post(newToken(guidLen), "KeepAlive", "22", echo), "Content-Length: 22", "Transfer-Encoding: chunked", 1), "", "framing", false},
		{post(newToken(guidLen), "KeepAlive", "32769", ""), "", endOversized, true},
		{post(newToken(guidLen), "KeepAlive", "5", "hello"), "", endEcho, true},
		{post(newToken(guidLen), long, "2147479552", strings.ToLower(echo)), "", endEcho, true},
		{post(newToken(guidLen), long, "2147479552", echo+"early"), "", endEarly, true},
		{post(newToken(guidLen), long, "22", echo), "", endMismatch, true},
		{post(newToken(guidLen), "Polling", "5", "hello"), "", endBody, true},
	} {
		name := map[bool]string{false: "edged_groove_refused_total", true: "edged_groove_ended_total"}[tc.ended]
		before := x.s.counted(t, name, tc.reason)
		if got := x.say(t, tc.text); !strings.HasPrefix(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%.90q: %q", tc.text, got)
		}
		until(t, tc.reason+" is counted", func() bool { return x.s.counted(t, name, tc.reason) == before+1 })
	}
	if n := x.s.Open(); n != 0 {
		t.Errorf("%d are open", n)
	}
}

// TestReused: a GUID is good once, while its connection lives and for a while after.
func TestReused(t *testing.T) {
	x := newSite(t, nil)
	p := x.peer()
	p.GUID = newToken(guidLen)
	c, err := p.KeepAlive()
	if err != nil {
		t.Fatal(err)
	}
	if got := x.say(t, post(p.GUID, "LongLived,ContentLength=2147479552", "2147479552", echo)); got != "" {
		t.Errorf("%q", got)
	}
	if n := x.s.counted(t, "edged_groove_ended_total", endMismatch); n != 1 {
		t.Errorf("%v ended", n)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the first goes on")
	}
	if _, err := p.KeepAlive(); err == nil {
		t.Error("it can be used again")
	}
	if n := x.s.counted(t, "edged_groove_refused_total", endReused); n == 0 {
		t.Error("that is not counted")
	}
}

// TestSequence: each request of Polling has the next number.
func TestSequence(t *testing.T) {
	x := newSite(t, nil)
	p := pollBody{relay: "relay.example.org", guid: newToken(guidLen)}
	for i, tc := range []struct {
		seq  uint32
		data string
		want string // the end of the answer
	}{{0, "", "\x00"}, {0, "hello", "\x00"}, {1, " world", "\x00"}, {3, "x", ""}} {
		p.seq, p.data = tc.seq, []byte(tc.data)
		body := string(p.bytes())
		got := x.say(t, post(p.guid, "Polling", strconv.Itoa(len(body)), body))
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("request %d: %q", i, got)
		}
	}
	if n := x.s.counted(t, "edged_groove_ended_total", endSequence); n != 1 {
		t.Errorf("%v ended", n)
	}
}

// TestHalfOpen: those who begin connections and do not go on are bounded, and hinder nobody from elsewhere for long.
func TestHalfOpen(t *testing.T) {
	x := newSite(t, func(c *Config, _ *Deps) { c.Establish = time.Second })
	var held []net.Conn
	for range perSourceHalfOpen + 10 {
		c, err := net.Dial("tcp", x.http.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		if len(held)%2 == 0 {
			io.WriteString(c, "GET /2.0/relay.example.org/"+newToken(guidLen)+",ConnType=KeepAlive HTTP/1.0\r\n\r\n")
		} else {
			io.WriteString(c, post(newToken(guidLen), "LongLived,ContentLength=2147479552", "2147479552", echo))
		}
	}
	until(t, "too many are refused", func() bool { return x.s.counted(t, "edged_groove_refused_total", "half_open") == 10 })
	until(t, "the others end", func() bool {
		return x.s.counted(t, "edged_groove_ended_total", endEstablish) == perSourceHalfOpen
	})
	for _, c := range held {
		c.SetDeadline(time.Now().Add(patience))
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("%q", b)
		}
		c.Close()
	}
	c := x.dial(t, LongLived, "relay.example.org")
	echoed(t, c, []byte("hello"))
}

// TestLimits: no more connections than the configuration allows.
func TestLimits(t *testing.T) {
	x := newSite(t, func(c *Config, _ *Deps) { c.MaxConnections, c.PerSource = 2, 6 })
	a, b := x.dial(t, LongLived, "relay.example.org"), x.dial(t, KeepAlive, "relay.example.org")
	addr := x.http.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if c, err := Dial(ctx, LongLived, Target{Relay: "relay.example.org", Host: addr}, to(addr)); err == nil {
		t.Errorf("a third: %+v", c)
	}
	if n := x.s.counted(t, "edged_groove_refused_total", "max_connections"); n == 0 {
		t.Error("that is not counted")
	}
	echoed(t, a, []byte("hello"))
	echoed(t, b, []byte("hello"))
}

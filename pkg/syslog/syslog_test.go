package syslog

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// form is RFC 5424 §6 as far as it has no choices that are not used here.
var form = regexp.MustCompile(`^<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) ` +
	`(-|\[[!#-<>-\\^-~]{1,32}(?: [!#-<>-\\^-~]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*\])(?: (.*))?$`)

func sample() Message {
	return Message{
		Facility: 16, Severity: Info, Time: time.Date(2026, 1, 2, 3, 4, 5, 6789000, time.UTC), Host: "edge.example.org", App: "edged", PID: 7, Kind: "CDR",
		Body: "Grüße",
	}
}

func TestAppend(t *testing.T) {
	if got, want := string(Append(nil, sample())), "<134>1 2026-01-02T03:04:05.006789Z edge.example.org edged 7 CDR - Grüße"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	m := sample()
	m.Element, m.Params = "call@32473", []Param{{"from", `a "quoted" \ ]bracket`}, {"bad name]", "x"}, {"utf", "\xff"}}
	m.Host, m.Body = "", ""
	const want = `<134>1 2026-01-02T03:04:05.006789Z - edged 7 CDR [call@32473 from="a \"quoted\" \\ \]bracket" bad_name_="x" utf="?"]`
	if got := string(Append(nil, m)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	m.Body = strings.Repeat("ü", maxMessage)
	if b := Append([]byte("x"), m); len(b) > maxMessage+1 || !strings.HasSuffix(string(b), "ü") {
		t.Errorf("%d octets, the end is %q", len(b), b[len(b)-4:])
	}
}

// TestOneLine: a stranger's words neither end the line nor reach a terminal, and long ones do not cut structured data.
func TestOneLine(t *testing.T) {
	m := sample()
	m.Element, m.Params, m.Body = "call@32473", []Param{{"from", "a\r\n<134>1 forged\x1b[2J\u0085\x00\xff"}}, "b\nforged\u009b2J"
	const want = `<134>1 2026-01-02T03:04:05.006789Z edge.example.org edged 7 CDR [call@32473 from="a??<134>1 forged?[2J???"] b?forged?2J`
	if got := string(Append(nil, m)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	m.Params = nil
	for range 11 {
		m.Params = append(m.Params, Param{"x", strings.Repeat("]", maxMessage)})
	}
	if b := Append(nil, m); !form.Match(b) || len(b) > maxMessage {
		t.Errorf("%d octets, not of the form", len(b))
	}
}

// TestEndWithASlowReceiver: a receiver that reads slowly holds up the end for a moment, not for each message that waits.
func TestEndWithASlowReceiver(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := NewSender(Target{"tcp", ln.Addr().String()}, nil, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	m := sample()
	m.Body = strings.Repeat("x", maxMessage)
	s.Add(m)
	go func() { ended <- s.Serve(ctx) }()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const count = 1000 // of which the buffers of a connection hold few
	for range count {
		s.Add(m)
	}
	cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for late, b := time.After(30*time.Second), make([]byte, maxMessage); ; {
		select {
		case err := <-ended:
			if sent, _, dropped := s.Counts(); err != nil || sent+dropped != count+1 || dropped == 0 {
				t.Errorf("%d sent, %d dropped, %v", sent, dropped, err)
			}
			return
		case <-tick.C:
			conn.Read(b)
		case <-late:
			t.Fatal("it goes on for as long as the receiver likes")
		}
	}
}

// FuzzAppend: whatever the fields, the message has its form.
func FuzzAppend(f *testing.F) {
	f.Add("host", "app", "kind", "el", "name", "value", "body")
	f.Add("", "a b", "\x00", "é", "=", `"]\`, "\n")
	f.Fuzz(func(t *testing.T, host, app, kind, element, name, value, body string) {
		m := sample()
		m.Host, m.App, m.Kind, m.Element, m.Params, m.Body = host, app, kind, element[:min(len(element), 32)], []Param{{name, value}}, body
		if len(body) > 4096 {
			return
		}
		if b := Append(nil, m); !form.Match(b) {
			t.Errorf("%q", b)
		}
	})
}

func TestTarget(t *testing.T) {
	for text, want := range map[string]Target{
		"": {}, "unix:///dev/log": {"unix", "/dev/log"}, "udp://192.0.2.1": {"udp", "192.0.2.1:514"}, "tcp://logs.example.org:1514": {"tcp", "logs.example.org:1514"},
		"tls://[2001:db8::1]": {"tls", "[2001:db8::1]:6514"},
	} {
		var got, again Target
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		b, err := got.MarshalText()
		if err == nil {
			err = again.UnmarshalText(b)
		}
		if err != nil || again != want {
			t.Errorf("%q again: %+v, %v", b, again, err)
		}
	}
	for _, bad := range []string{"unix://dev/log", "udp://", "http://192.0.2.1", "udp://192.0.2.1/x", "tcp://192.0.2.1:0", "tcp://192.0.2.1:x", "192.0.2.1", "unix:"} {
		if err := new(Target).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// receive returns the messages that come to a stream, counted by their octets.
func receive(conn net.Conn, got chan<- string) {
	r := bufio.NewReader(conn)
	for {
		text, err := r.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(text, " "))
		if err != nil {
			got <- "no length: " + text
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		got <- string(b)
	}
}

func serve(t *testing.T, target string) *Sender {
	t.Helper()
	var to Target
	if err := to.UnmarshalText([]byte(target)); err != nil {
		t.Fatal(err)
	}
	s := NewSender(to, nil, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1) // one result
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func expect(t *testing.T, got <-chan string, body string) {
	t.Helper()
	select {
	case s := <-got:
		if !form.MatchString(s) || !strings.HasSuffix(s, " "+body) {
			t.Fatalf("got %q, want %q", s, body)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%q does not come", body)
	}
}

// TestDatagrams: a message is a datagram, by UDP and at a unix socket as /dev/log is.
func TestDatagrams(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	path := filepath.Join(t.TempDir(), "log")
	unix, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	for target, pc := range map[string]net.PacketConn{"udp://" + udp.LocalAddr().String(): udp, "unix://" + path: unix} {
		s := serve(t, target)
		for i := range 3 {
			m := sample()
			m.Body = fmt.Sprint("record ", i)
			s.Add(m)
			b := make([]byte, 4096)
			pc.SetReadDeadline(time.Now().Add(time.Minute))
			n, _, err := pc.ReadFrom(b)
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan string, 1)
			got <- string(b[:n])
			expect(t, got, m.Body)
		}
	}
}

// TestStreamComesBack: a receiver that hangs up between two messages gets the second one too, on a new connection.
func TestStreamComesBack(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conns, got := make(chan net.Conn, 4), make(chan string, 4)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns <- c
			go receive(c, got)
		}
	}()
	s := NewSender(Target{"tcp", ln.Addr().String()}, nil, zap.NewNop())
	c := &connection{sender: s, pause: firstPause}
	defer c.close()
	for i := range 3 {
		m := sample()
		m.Body = fmt.Sprint("record ", i)
		c.write(context.Background(), Append(nil, m))
		expect(t, got, m.Body)
		(<-conns).Close()
		<-c.gone
	}
	if sent, bytes, dropped := s.Counts(); sent != 3 || bytes == 0 || dropped != 0 {
		t.Errorf("%d sent, %d octets, %d dropped", sent, bytes, dropped)
	}
}

// TestQueueIsBounded: where nobody listens, messages are dropped and counted, and nothing waits for them.
func TestQueueIsBounded(t *testing.T) {
	s := NewSender(Target{"tcp", "127.0.0.1:9"}, nil, zap.NewNop())
	for range queueSize + 5 {
		s.Add(sample())
	}
	if _, _, dropped := s.Counts(); dropped != 5 {
		t.Errorf("%d dropped, want 5", dropped)
	}
}

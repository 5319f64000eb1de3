package h323

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
)

// tpkts splits a stream.
func tpkts(t testing.TB, data []byte) (out [][]byte) {
	t.Helper()
	var s tpkt.Splitter
	s.Push(data)
	for {
		p, ok, err := s.Next()
		if err != nil || !ok {
			return out
		}
		if len(p.Payload) > 0 {
			out = append(out, whole(p.Second, bytes.Clone(p.Payload)))
		}
	}
}

// TestDescribeCorpora: the messages of real stacks have names, and hiding keeps them what they are.
func TestDescribeCorpora(t *testing.T) {
	kinds := map[string]int{}
	describe := func(p Protocol, data []byte) {
		for _, b := range tpkts(t, data) {
			d := Describe(p, b)
			if d.Kind == "?" || d.Text == "" || !strings.HasPrefix(d.Summary, d.Kind) {
				t.Errorf("%s %x: %+v", p, b[:min(len(b), 40)], d)
			}
			if h := Hide(p, b); len(h) != len(b) || Describe(p, h).Kind != d.Kind {
				t.Errorf("hidden, %q is %q", d.Kind, Describe(p, h).Kind)
			}
			kinds[d.Kind]++
		}
	}
	for _, c := range recordedCalls(t) {
		for _, s := range c.from {
			describe(H225, s.Data)
		}
		for _, pair := range c.h245 {
			for _, s := range pair {
				describe(H245, s.Data)
			}
		}
	}
	for _, want := range []string{"SETUP", "CALL PROCEEDING", "ALERTING", "CONNECT", "RELEASE COMPLETE", "terminalCapabilitySet", "openLogicalChannel", "openLogicalChannelAck"} {
		if kinds[want] == 0 {
			t.Errorf("no %s in %v", want, kinds)
		}
	}
}

func setupMessage(t testing.TB) []byte {
	t.Helper()
	p, err := q931.Append(nil, q931.Setup, 7, false, []q931.Element{{ID: q931.Display, Contents: []byte("Alice")}, {ID: q931.CalledNumber, Contents: []byte("\x81123")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return whole(0, p)
}

// TestDescribe: what is not understood, or cut off, has a name as far as it goes.
func TestDescribe(t *testing.T) {
	setup := setupMessage(t)
	if d := Describe(H225, setup); d.Summary != "SETUP ? → 123" || d.To != "123" || !strings.Contains(d.Text, "display: Alice") {
		t.Errorf("%+v", d)
	}
	for _, c := range []struct {
		p    Protocol
		data string
		want string
	}{
		{H225, "\x03\x00\x00\x04", "keep-alive"}, {H225, "\x03\x00\x00\x30\x08\x02\x00\x07\x05\x7e\x00\x40", "SETUP"}, {H225, "", "keep-alive"},
		{H225, "\x03\x00\x00\x09\x08\x02\x00\x07\x44", "Q.931 0x44"}, {H245, "\x03\x00\x00\x05\xff", "?"}, {RAS, "\xff", "?"},
	} {
		if d := Describe(c.p, []byte(c.data)); d.Kind != c.want {
			t.Errorf("%s %q: %+v, want %s", c.p, c.data, d, c.want)
		}
	}
}

// TestManyInOne: of many messages in one TPKT some are named, and all are looked at for secrets.
func TestManyInOne(t *testing.T) {
	const count = 2 * maxPerTPKT
	d := Describe(H245, whole(0, bytes.Repeat([]byte("\x21\x80\x00"), count)))
	if n := strings.Count(d.Kind, "terminalCapabilitySetAck"); n != maxPerTPKT {
		t.Errorf("%d are named", n)
	}
	if n := strings.Count(d.Text, "sequenceNumber: 0"); n != count {
		t.Errorf("%d are looked at", n)
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add(byte(0), setupMessage(f))
	f.Add(byte(1), []byte("\x03\x00\x00\x07\x02\x10\x00"))
	if b, err := ras.Append(nil, ras.URQ); err == nil {
		f.Add(byte(2), b)
	}
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		p := []Protocol{H225, H245, RAS}[which%3]
		before := bytes.Clone(data)
		if d := Describe(p, data); d.Kind == "" || len(d.Text) > (maxLines+1)*2048 {
			t.Errorf("%+v", d)
		}
		if h := Hide(p, data); len(h) != len(data) || !bytes.Equal(before, data) {
			t.Error("hiding has changed what it was given, or the length")
		}
	})
}

// TestTrace: what comes and what is sent on is shown, under one name, and a refused call too.
func TestTrace(t *testing.T) {
	var mu sync.Mutex
	var got []string
	h := newHouse(t)
	h.server.mu.Lock()
	h.server.core.trace = func(m Traced) {
		mu.Lock()
		defer mu.Unlock()
		dir := map[bool]string{true: "out", false: "in"}[m.Out]
		got = append(got, strings.Join([]string{m.Network, dir, m.Kind, Describe(m.Protocol, m.Data).Kind}, " "))
		if m.Placed != (m.Out && m.Kind == "SETUP") || m.Call == "" || !m.Remote.IsValid() {
			t.Errorf("%+v", m)
		}
	}
	h.server.mu.Unlock()
	c := h.dial()
	if _, err := c.Write(framed(t, setup(t, 1, netip.MustParseAddrPort("127.0.9.70:1720"), "bob"))); err != nil {
		t.Fatal(err)
	}
	b := h.accept()
	receive(t, b)
	until(t, "it is traced", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(got, ", ") == "inside in SETUP SETUP, outside out SETUP SETUP"
	})
	closeBoth(c, b)
}

func closeBoth(conns ...net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

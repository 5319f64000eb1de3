package sipalg

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole/pinholetest"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// liveWorld has a registered phone, a call that is up, one that rings and a subscription.
func liveWorld(t testing.TB) *world {
	w := newWorld(t, func(c *Config) { c.IMURLs.Mode = "block" })
	w.withEditor(func(c Content) Verdict {
		return Verdict{Body: append([]byte("http://"), c.Body...), Type: "text/html", Refuse: len(c.Body) % 2 * 606, EchoBody: true}
	})
	w.showsIn = true // a fuzzer may write what it likes
	w.core.log = zap.NewNop()
	w.core.limits.MessagesPerSecond = 0
	alice, bob := w.alice(), w.bob()
	alice.register(bob)
	alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	a := alice.dial("sip:bob@example.com")
	a.send("INVITE", alice.sdp(4002))
	got := bob.expect("INVITE")
	bob.reply(got, bob.answered(got), 183, bob.sdp(6002))
	alice.dial("sip:bob@example.com").send("SUBSCRIBE", "", "Event: presence")
	return w
}

// FuzzCore gives the core one message of anybody, by either side and transport, with calls alive.
// Random texts of the edge are in the seeds by their names, so that a mutation may still belong to them.
func FuzzCore(f *testing.F) {
	w := liveWorld(f)
	for _, e := range w.log {
		if !e.toWho {
			f.Add([]byte(e.raw), uint8(len(e.who)))
		}
	}
	d := w.phone("carol", flow.TCP, "10.0.0.7:40000", "10.0.0.1:5060").dial("sip:bob@example.com")
	multi := withType("Content-Type: multipart/mixed;boundary=b\n", "x", "--b\r\nContent-Type: text/html\r\n\r\nwww.example.org\r\n--b--")
	for _, line := range []string{"ms-text-format: text/plain;ms-body=aGk=", sign("s1"), "Compression: LZ77-64K"} {
		f.Add([]byte(d.text("INVITE", sdpOf("10.0.0.7", 4000), line)), uint8(3))
		f.Add([]byte(d.text("NEGOTIATE", "", line)), uint8(3))
		f.Add([]byte(strings.Replace(d.text("MESSAGE", "", line), "Content-Length: 0\r\n\r\n", multi, 1)), uint8(3))
	}
	for _, name := range rfc4475 {
		raw, err := os.ReadFile(filepath.Join(repository(f), "..", "shared", "corpora", "sip-torture", "rfc4475-"+name.name+".dat"))
		if err == nil { // they are seeds where they are at hand
			f.Add(raw, uint8(0))
		}
	}
	flows := []flow.Flow{
		{Network: "inside", Proto: flow.UDP, Local: ap("10.0.0.1:5060"), Remote: ap("10.0.0.5:5062")},
		{Network: "outside", Proto: flow.UDP, Local: ap("198.51.100.1:5060"), Remote: ap("198.51.100.20:5060")},
		{Network: "outside", Proto: flow.TLS, Local: ap("198.51.100.1:5061"), Remote: ap("203.0.113.9:40000"), Conn: 99},
		{Network: "inside", Proto: flow.TCP, Local: ap("10.0.0.1:5060"), Remote: ap("10.0.0.7:40000"), Conn: 98},
	}
	f.Fuzz(func(t *testing.T, raw []byte, from uint8) {
		if len(raw) > 65535 {
			return
		}
		w := liveWorld(t)
		w.wild = true
		raw = w.renamed(raw)
		w.act(func() { w.core.Receive(w.now, flows[from&3], raw, &w.out) }, raw)
		w.queue = nil
		w.after(time.Second)
		w.act(func() { w.core.Receive(w.now, flows[from>>2&3], raw, &w.out) }, raw)
		w.queue = nil
		for len(w.queries) > 0 {
			w.answer(flow.Target{Network: "outside", Proto: flow.UDP, Addr: ap("203.0.113.80:5060")})
		}
		if n := len(w.core.client); n > 10 {
			t.Errorf("%d transactions", n)
		}
		if n := w.opener.Count(); n > 3*maxStreams {
			t.Errorf("%d pinholes", n)
		}
		w.ends[99], w.ends[98] = flows[2].Remote, flows[3].Remote
		for _, fl := range flows[2:] {
			w.do(func() { w.core.Closed(w.now, fl, &w.out) })
		}
		for _, s := range w.core.sessions {
			w.do(func() { w.core.hangup(s, "the test is over") })
		}
		w.nodes = nil
		w.after(6 * time.Minute)
		if c := w.core; len(c.client)+len(c.server)+len(c.sessions)+len(c.calls)+len(c.waiting)+w.opener.Count() != 0 {
			t.Errorf("left: %d and %d transactions, %d sessions, %d calls, %d look-ups, %d pinholes",
				len(c.client), len(c.server), len(c.sessions), len(c.calls), len(c.waiting), w.opener.Count())
		}
	})
}

// renamed puts the random texts of this world in the place of those of the world that the seeds are
// from: both have made the same messages in the same order.
func (w *world) renamed(raw []byte) []byte {
	var own []string
	for _, e := range w.log {
		own = append(own, random.FindAllString(e.raw, -1)...)
	}
	i := 0
	return random.ReplaceAllFunc(raw, func(old []byte) []byte {
		for range own {
			i++
			if c := own[i%len(own)]; len(c) == len(old) && c[0] == old[0] {
				return []byte(c)
			}
		}
		return old
	})
}

// FuzzRestore reads any journal: no panic, and what it says is written again as it was understood.
func FuzzRestore(f *testing.F) {
	w := liveWorld(f)
	var good bytes.Buffer
	if err := w.core.Snapshot(&good); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(append(good.Bytes(), `{"aor":"x","tok`...))
	f.Add([]byte(strings.ReplaceAll(good.String(), "10.0.0", "")))
	f.Add([]byte(`{"gone":true}` + "\n" + `{"aor":"a@b","token":"aaaaaaaaaaaaa","network":"inside","proto":"udp","at":"2026-01-01T00:00:00Z","expires":"2027-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"token":"aaaaaaaaaaaaa","network":"inside","proto":"udp","remote":"10.0.0.5:5060","at":"2026-01-01T00:00:00Z","expires":"2027-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		now := w.now
		nets := testNetworks()
		c := newTestCore(testConfig(nil), nets, pinholetest.New(nets, 50000), zap.NewNop())
		var out Output
		if err := c.Restore(now, bytes.NewReader(raw), &out); err != nil {
			return // a line longer than any we write
		}
		if len(c.bindings) > bytes.Count(raw, []byte("\n"))+1 || len(c.tokens) != len(c.aliases) {
			t.Errorf("%d bindings, %d aliases, %d tokens of %q", len(c.bindings), len(c.aliases), len(c.tokens), raw)
		}
		var a, b bytes.Buffer
		if err := c.Snapshot(&a); err != nil {
			t.Fatal(err)
		}
		d := newTestCore(testConfig(nil), nets, pinholetest.New(nets, 50000), zap.NewNop())
		if err := d.Restore(now, bytes.NewReader(a.Bytes()), &out); err != nil {
			t.Fatal(err)
		}
		if err := d.Snapshot(&b); err != nil {
			t.Fatal(err)
		}
		if sorted(a.String()) != sorted(b.String()) {
			t.Errorf("written\n%s\nread and written again\n%s", a.String(), b.String())
		}
		for _, bd := range c.bindings {
			out.reset()
			c.Receive(now, flow.Flow{Network: "outside", Proto: flow.UDP, Local: ap("198.51.100.1:5060"), Remote: ap("198.51.100.20:5060")},
				[]byte("MESSAGE sip:x~"+string(bd.alias.token[:])+"@198.51.100.1 SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.20;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: 1\r\nCSeq: 1 MESSAGE\r\n\r\n"), &out)
			for i := range out.items {
				var m sipmsg.Message
				if out.items[i].resolve == nil && out.items[i].record == nil && m.Parse(out.bytes(i)) != nil {
					t.Errorf("sent\n%s", out.bytes(i))
				}
			}
		}
		c.Tick(now.Add(400*24*time.Hour), &out)
	})
}

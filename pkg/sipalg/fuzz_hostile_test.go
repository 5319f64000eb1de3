package sipalg

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// FuzzHostileCore sends messages of live calls and registrations again, mutated, from either side, by
// either transport, with time passing and connections ending in between. Nothing panics, all that the
// edge sends parses, and in the end everything is forgotten.
func FuzzHostileCore(f *testing.F) {
	f.Add([]byte{0, 1, 0, 10, 2, 1, 'x', 1, 2, 0, 40, 3, 2, '%', '0'})
	f.Add([]byte{6, 5, 0, 0, 0, 0, 5, 9, 1, 0, 8, 1, ',', 7, 3, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		w := newWorld(t, nil)
		w.showsIn = true
		w.core.log = zap.NewNop()
		w.core.limits.MessagesPerSecond = 0
		alice, bob := w.alice(), w.phone("bob", flow.UDP, "198.51.100.20:5060", "198.51.100.1:5060")
		alice.register(bob)
		alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
		a := alice.dial("sip:bob@example.com")
		a.send("INVITE", alice.sdp(4002))
		alice.dial("sip:bob@example.com").send("SUBSCRIBE", "", "Event: presence")
		var seen []entry
		for _, e := range w.log {
			if !e.toWho {
				seen = append(seen, e)
			}
		}
		flows := []flow.Flow{
			{Network: "inside", Proto: flow.UDP, Local: ap("10.0.0.1:5060"), Remote: alice.addr},
			{Network: "outside", Proto: flow.UDP, Local: ap("198.51.100.1:5060"), Remote: bob.addr},
			{Network: "inside", Proto: flow.TCP, Local: ap("10.0.0.1:5060"), Remote: ap("10.0.0.7:40000"), Conn: 901},
			{Network: "outside", Proto: flow.TLS, Local: ap("198.51.100.1:5061"), Remote: ap("198.51.100.7:40000"), Conn: 902},
		}
		step := func(g func()) {
			w.out.reset()
			g()
			var m sipmsg.Message
			for i, it := range w.out.items {
				if it.record == nil && it.resolve == nil {
					// A 400 repeats what is wrong.
					if err := m.Parse(append([]byte(nil), w.out.bytes(i)...)); err != nil && m.Status() != 400 {
						t.Fatalf("the edge sends what does not parse: %v\n%s", err, w.out.bytes(i))
					}
				}
			}
			if n := w.core.ed.Conflicts(); n != 0 {
				t.Fatalf("%d conflicting edits", n)
			}
		}
		for n := 0; len(program) >= 6 && n < 64; n++ {
			op, which, at, del, ins := program[0], int(program[1]), int(program[2])<<8|int(program[3]), int(program[4]), int(program[5])%32
			program = program[6:]
			fl := flows[int(op)%len(flows)]
			switch {
			case op >= 250:
				w.now = w.now.Add(time.Duration(which) * time.Second)
				step(func() { w.core.Tick(w.now, &w.out) })
				continue
			case op >= 245 && fl.Conn != 0:
				step(func() { w.core.Closed(w.now, fl, &w.out) })
				continue
			}
			raw := []byte(seen[which%len(seen)].raw)
			at = min(at, len(raw))
			ins = min(ins, len(program))
			raw = append(append(append([]byte(nil), raw[:at]...), program[:ins]...), raw[min(at+del, len(raw)):]...)
			program = program[ins:]
			step(func() { w.core.Receive(w.now, fl, raw, &w.out) })
		}
		w.queries, w.queue = nil, nil
		for id := range w.core.waiting {
			step(func() { w.core.Resolved(w.now, id, nil, &w.out) })
		}
		for _, fl := range flows[2:] {
			step(func() { w.core.Closed(w.now, fl, &w.out) })
		}
		for id := range w.core.conns {
			step(func() { w.core.Closed(w.now, flow.Flow{Conn: id}, &w.out) })
		}
		for range 60 { // calls with sessions timers of hours end too
			w.now = w.now.Add(13 * time.Hour)
			step(func() { w.core.Tick(w.now, &w.out) })
		}
		c := w.core
		if n := len(c.client) + len(c.server) + len(c.sessions) + len(c.calls) + len(c.waiting) + len(c.carried) + w.opener.Count() + c.held; n != 0 {
			t.Errorf("left: %d client, %d server, %d sessions, %d calls, %d waiting, %d carried, %d pinholes, %d bytes",
				len(c.client), len(c.server), len(c.sessions), len(c.calls), len(c.waiting), len(c.carried), w.opener.Count(), c.held)
		}
	})
}

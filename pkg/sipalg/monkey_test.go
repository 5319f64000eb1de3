package sipalg

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// monkey is a phone that does what it likes with what it gets: answers, or not, or twice.
type monkey struct {
	*phone
	r       *rand.Rand
	peers   map[string]*peer // by Call-ID: calls that it began
	sent    map[string]*msg  // by Call-ID: its last INVITE
	got     map[string]*msg  // by Call-ID: the last INVITE to it
	dialogs []*peer
}

func (m *monkey) chance(percent int) bool { return m.r.IntN(100) < percent }

func (m *monkey) offer() string {
	switch m.r.IntN(8) {
	case 0:
		return ""
	case 1:
		return m.sdp(4000+2*m.r.IntN(500)) + "m=video 5000 RTP/AVP 31\r\n"
	case 2:
		return m.sdp(4000) + "a=inactive\r\n"
	case 3:
		return faxSDP(m.addr.Addr().String(), 4100)
	case 4:
		return sdpOf("10.0.0.99", 445) // not its own
	}
	return m.sdp(4000 + 2*m.r.IntN(500))
}

// act begins something, or does something about what came.
func (m *monkey) act(uri string) {
	if len(m.inbox) > 0 {
		i := m.r.IntN(len(m.inbox))
		got := m.inbox[i]
		m.inbox = slices.Delete(m.inbox, i, i+1)
		if got.method != "" {
			m.serve(got)
		} else {
			m.read(got)
		}
		return
	}
	switch {
	case m.chance(40):
		d := m.dial(uri)
		m.peers[d.callID] = d
		m.sent[d.callID] = d.send("INVITE", m.offer())
	case len(m.dialogs) > 0:
		i := m.r.IntN(len(m.dialogs))
		d := m.dialogs[i]
		switch m.r.IntN(5) {
		case 0, 1:
			d.send("BYE", "")
			m.dialogs = slices.Delete(m.dialogs, i, i+1)
		case 2:
			m.sent[d.callID] = d.send("INVITE", m.offer())
		case 3:
			d.send("UPDATE", m.offer())
		case 4:
			d.send("INFO", "")
		}
	}
}

// serve answers a request.
func (m *monkey) serve(req *msg) {
	id := req.get("Call-ID")
	inDialog := tagOf(req.get("To")) != ""
	switch {
	case m.chance(10) || req.method == "ACK":
	case req.method == "INVITE" && !inDialog:
		m.got[id] = req
		d := m.answered(req)
		status := []int{180, 183, 183, 200, 200, 200, 302, 404, 486, 503}[m.r.IntN(10)]
		body := ""
		if status == 183 || status == 200 {
			body = m.offer()
		}
		if status >= 300 {
			d = nil
		} else if status == 200 {
			m.dialogs = append(m.dialogs, d)
		}
		m.reply(req, d, status, body)
		if status < 200 || m.chance(10) {
			m.inbox = append(m.inbox, req) // more to come, perhaps of another branch
		}
	case req.method == "CANCEL":
		m.reply(req, nil, 200, "")
		if inv := m.got[id]; inv != nil {
			m.reply(inv, nil, 487, "")
		}
	default:
		body := ""
		if req.body != "" {
			body = m.offer()
		}
		m.reply(req, nil, []int{200, 200, 200, 481, 488, 491, 500}[m.r.IntN(7)], body, "Contact: "+m.contact())
	}
}

// read takes a response.
func (m *monkey) read(resp *msg) {
	id := resp.get("Call-ID")
	d, req := m.peers[id], m.sent[id]
	if req == nil || resp.cseq() != req.cseq() || d == nil || m.chance(10) {
		return
	}
	switch {
	case resp.status < 200:
		if m.chance(20) {
			d.cancel(req)
		}
	case resp.status < 300:
		up := *d
		up.learn(resp)
		up.send("ACK", map[bool]string{true: m.offer(), false: ""}[req.body == ""])
		m.dialogs = append(m.dialogs, &up)
	default:
		d.ackFail(req, resp)
	}
}

// TestMonkey: whatever phones do, the edge neither panics nor sends what does not parse, and when they
// have all gone nothing is left.
func TestMonkey(t *testing.T) {
	seeds, steps := uint64(60), 300
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			server, serverProto := "198.51.100.20:5060", flow.UDP
			w := newWorld(t, func(c *Config) {
				c.ICE = []ICEMode{"strip", "relay", "pass"}[seed%3]
				c.HideTopology = seed%5 != 0
				if seed%4 > 1 {
					serverProto = flow.TCP
					c.Domains["example.com"] = Domain{Network: "outside", Server: "tcp:" + server, Backups: []string{"udp:" + server}}
				}
			})
			w.showsIn = true // who names another's address gets it back
			w.core.log = zap.NewNop()
			w.core.limits.MessagesPerSecond = 0
			r := rand.New(rand.NewPCG(seed, 1))
			proto, port := flow.UDP, "5060"
			if seed%2 == 1 {
				proto, port = flow.TCP, "45060"
			}
			newMonkey := func(name, addr, edge string, proto flow.Proto) *monkey {
				return &monkey{phone: w.phone(name, proto, addr, edge), r: r, peers: map[string]*peer{}, sent: map[string]*msg{}, got: map[string]*msg{}}
			}
			alice := newMonkey("alice", "10.0.0.5:"+port, "10.0.0.1:5060", proto)
			bob := newMonkey("bob", server, "198.51.100.1:5060", serverProto)
			alice.register(bob.phone)
			aliceAs := registeredAs(w)
			for range steps {
				switch n := r.IntN(20); {
				case n < 9:
					alice.act([]string{"sip:bob@example.com", "sip:bob@example.com", "sip:bob@pending.example.org"}[r.IntN(3)])
				case n < 18:
					bob.act(aliceAs)
				case n == 18:
					w.after(time.Duration(r.IntN(8000)) * time.Millisecond)
				case r.IntN(10) == 0:
					w.hangUp([]netip.AddrPort{alice.addr, bob.addr}[r.IntN(2)])
				case len(w.queries) > 0 && r.IntN(2) == 0:
					w.answer([]flow.Target{{Network: "outside", Proto: serverProto, Addr: ap(server)}}[:r.IntN(2)]...)
				case r.IntN(10) == 0:
					w.opener.Fail(pinhole.ErrExhausted)
				default:
					w.opener.Fail(nil)
				}
			}
			if n := len(w.core.calls); n > len(w.core.sessions) {
				t.Errorf("%d chains of %d sessions", n, len(w.core.sessions))
			}
			w.opener.Fail(nil)
			for _, l := range w.opener.Leases() {
				l.Idle()
			}
			w.after(5 * time.Minute)
			for _, s := range w.core.sessions {
				w.do(func() { w.core.hangup(s, "the test is over") })
			}
			w.clean()
		})
	}
}

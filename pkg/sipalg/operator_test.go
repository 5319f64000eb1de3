package sipalg

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// operator has the core do what an operator asks for.
func (w *world) operator(f func(c *Core, out *Output)) {
	w.do(func() { f(w.core, &w.out) })
}

func (w *world) hangUpAll() (n int) {
	w.operator(func(c *Core, out *Output) { n = c.HangUp(w.now, func(*session) bool { return true }, out) })
	return n
}

// shut is a Denier of some.
type shut struct {
	addr netip.Addr
	user string
}

func (s shut) Addr(a netip.Addr) bool { return a == s.addr }

func (s shut) User(name string) bool { return s.user != "" && name == s.user }

// TestOperatorHangsUp: each side gets a BYE that is the other's next request in the dialog, by the route set that it gave.
func TestOperatorHangsUp(t *testing.T) {
	w := newWorld(t, nil)
	p := w.proxy("server", "198.51.100.20:5060", true)
	bob := w.phone("bob", flow.UDP, "198.51.100.77:5066", "198.51.100.20:5060")
	p.to["bob"] = bob.addr
	alice := w.alice()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4002)) // from then on both have a CSeq
	reinvite(a, b, alice.sdp(4004), bob.sdp(6002))
	passed := p.n
	if n := w.hangUpAll(); n != 1 {
		t.Fatalf("%d calls", n)
	}
	for _, end := range []struct{ p, other *peer }{{a, b}, {b, a}} {
		bye := end.p.p.expect("BYE")
		if bye.get("From") != end.other.local || bye.get("To") != end.p.local || bye.get("Call-ID") != a.callID {
			t.Errorf("not of this dialog (%s, %s):\n%s", end.p.local, end.other.local, bye.raw)
		}
		if want := fmt.Sprintf("%d BYE", end.other.cseq+1); bye.cseq() != want {
			t.Errorf("CSeq %s, not %s", bye.cseq(), want)
		}
		end.p.p.reply(bye, nil, 200, "")
	}
	if p.n != passed+1 {
		t.Errorf("%d requests went through the callee's recorded proxy, not 1", p.n-passed)
	}
	if len(w.records) != 1 || w.records[0].Reason != "hung up by operator" || w.records[0].Status != 200 {
		t.Errorf("records: %+v", w.records)
	}
	w.clean()
}

// TestOperatorHangsUpWhileItRings: CANCEL to who is called, and 487 to the caller.
func TestOperatorHangsUpWhileItRings(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	req := a.send("INVITE", alice.sdp(4000))
	got := bob.expect("INVITE")
	b := bob.answered(got)
	bob.reply(got, b, 180, "")
	alice.expect("180")
	w.hangUpAll()
	cancel := bob.expect("CANCEL")
	if cancel.all("Via")[0] != got.all("Via")[0] || cancel.cseq() != "1 CANCEL" {
		t.Errorf("it does not match its INVITE:\n%s", cancel.raw)
	}
	bob.reply(cancel, nil, 200, "")
	bob.reply(got, b, 487, "")
	bob.expect("ACK")
	a.ackFail(req, alice.expect("487"))
	if len(w.records) != 1 || w.records[0].Reason != "hung up by operator" || w.records[0].Status != 487 {
		t.Errorf("records: %+v", w.records)
	}
	w.after(time.Minute)
	w.clean()
}

// TestOperatorsCancelCrosses200: the answer is a call (RFC 3261 §9.1), and is hung up once it is acknowledged.
func TestOperatorsCancelCrosses200(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	a.send("INVITE", alice.sdp(4000))
	got := bob.expect("INVITE")
	b := bob.answered(got)
	bob.reply(got, b, 180, "")
	alice.expect("180")
	w.hangUpAll()
	cancel := bob.expect("CANCEL")
	bob.reply(got, b, 200, bob.sdp(6000))
	bob.reply(cancel, nil, 200, "")
	a.learn(alice.expect("200"))
	bob.nothing()
	a.send("ACK", "")
	bob.expect("ACK")
	for _, p := range []*phone{alice, bob} {
		p.reply(p.expect("BYE"), nil, 200, "")
	}
	if len(w.records) != 1 || w.records[0].Reason != "hung up by operator" {
		t.Errorf("records: %+v", w.records)
	}
	w.after(time.Minute)
	w.clean()
}

// TestOperatorsHangUpTwice: who presses the button twice, and while somebody changes the media, ends the call once.
func TestOperatorsHangUpTwice(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, _ := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	a.send("INVITE", alice.sdp(4002))
	bob.expect("INVITE")
	w.hangUpAll()
	w.hangUpAll()
	for _, p := range []*phone{alice, bob} {
		p.reply(p.expect("BYE"), nil, 200, "")
		p.nothing()
	}
	if len(w.records) != 1 || w.records[0].Reason != "hung up by operator" {
		t.Errorf("records: %+v", w.records)
	}
	w.after(time.Minute)
	w.clean()
}

// TestDenied: nothing of an address that is shut out is read; its calls end, at once for the edge.
func TestDenied(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	_, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	w.core.deny = shut{addr: bob.addr.Addr()}
	w.operator(func(c *Core, out *Output) { c.HangUp(w.now, c.shutOut, out) })
	alice.reply(alice.expect("BYE"), nil, 200, "")
	bob.expect("BYE")
	if len(w.records) != 1 {
		t.Fatalf("records: %+v", w.records)
	}
	b.send("MESSAGE", "")
	bob.nothing()
	alice.nothing()
	w.drops("banned_by_operator", 1)
	w.after(time.Minute)
	w.clean()
}

// TestDeniedUser: what a user who is shut out begins is refused, whatever address it comes from; others are served.
func TestDeniedUser(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	w.core.deny = shut{user: strings.TrimPrefix(aorOf(addrSpec(a.local)), "sip:")}
	if w.core.deny == (shut{}) {
		t.Fatalf("alice is %q", a.local)
	}
	req := a.send("INVITE", alice.sdp(4000))
	a.ackFail(req, alice.expect("403"))
	bob.nothing()
	w.drops("banned_user", 1)
	e := alice.dial("sip:bob@example.com")
	if e.local = strings.Replace(e.local, "sip:a", "sip:%61", 1); !strings.Contains(e.local, "%61") {
		t.Fatalf("alice is %q", e.local)
	}
	req = e.send("INVITE", alice.sdp(4000))
	e.ackFail(req, alice.expect("403"))
	bob.nothing()
	w.drops("banned_user", 2)
	g := alice.dial("sip:bob@example.com") // as if it were in a dialog
	for method, to := range map[string]string{"MESSAGE": g.remote + ";tag=none", "REGISTER": a.local} {
		g.remote = to
		w.put(alice.proto, alice.addr, alice.first, g.text(method, ""))
		alice.expect("403")
	}
	bob.nothing()
	w.drops("banned_user", 4)
	w.core.deny = shut{user: "somebody@else.example.org"}
	c, d := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	c.bye(d)
	w.after(time.Minute)
	w.clean()
}

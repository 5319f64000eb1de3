package sipalg

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// registrar answers REGISTER as RFC 3261 §10.3 says: it keeps Contacts by URI, grants what is asked up
// to an hour, and lists them all.
type registrar struct {
	*phone
	contacts []string // "<uri>;params" without expires
	grant    int      // seconds; 0 = as asked
	inHeader bool     // says the lifetime in Expires only
	seen     *msg
}

func (r *registrar) take() {
	r.w.t.Helper()
	req := r.expect("REGISTER")
	r.seen = req
	for _, c := range req.all("Contact") {
		if c == "*" {
			r.contacts = nil
			continue
		}
		uri := "<" + uriOf(c) + ">"
		for i, old := range r.contacts {
			if strings.HasPrefix(old, uri) {
				r.contacts = append(r.contacts[:i], r.contacts[i+1:]...)
				break
			}
		}
		exp := req.get("Expires")
		var keep []string
		for p := range strings.SplitSeq(strings.TrimPrefix(c[strings.Index(c, ">")+1:], ";"), ";") {
			if v, ok := strings.CutPrefix(p, "expires="); ok {
				exp = v
			} else if p != "" {
				keep = append(keep, p)
			}
		}
		if exp != "0" {
			r.contacts = append(r.contacts, strings.Join(append([]string{uri}, keep...), ";"))
		}
	}
	grant := r.grant
	if grant == 0 {
		grant = 3600
	}
	var lines []string
	for _, c := range r.contacts {
		if !r.inHeader {
			c += fmt.Sprintf(";expires=%d", grant)
		}
		lines = append(lines, "Contact: "+c)
	}
	if r.inHeader {
		lines = append(lines, fmt.Sprintf("Expires: %d", grant))
	}
	r.reply(req, nil, 200, "", lines...)
}

// signUp makes one dialog-like series of REGISTERs.
func (p *phone) signUp() *peer {
	d := p.dial("sip:example.com")
	d.remote, d.local = "<sip:"+p.name+"@example.com>", "<sip:"+p.name+"@example.com>;tag="+p.name+"-r"
	return d
}

func (r *registrar) call(contact string, p *phone) {
	r.w.t.Helper()
	b, a := r.phone.call(uriOf(contact), p, r.sdp(6000), p.sdp(4000))
	b.bye(a)
}

func TestFM05SeveralContacts(t *testing.T) {
	w := newWorld(t, nil)
	alice, r := w.alice(), &registrar{phone: w.bob()}
	d := alice.signUp()
	d.send("REGISTER", "", "Contact: <sip:alice@10.0.0.5:5062;ob>;q=0.7;+sip.instance=\"<urn:uuid:1>\";reg-id=1, \"Desk\" <sip:alice@10.0.0.5:5063>;q=0.3", "Contact: <mailto:alice@example.org>;q=0.1", "Expires: 600")
	r.take()
	got := alice.expect("200")
	want := []string{
		`<sip:alice@10.0.0.5:5062;ob>;q=0.7;+sip.instance="<urn:uuid:1>";reg-id=1;expires=3600`,
		`<sip:alice@10.0.0.5:5063>;q=0.3;expires=3600`, `<mailto:alice@example.org>;q=0.1;expires=3600`,
	}
	if c := got.all("Contact"); fmt.Sprint(c) != fmt.Sprint(want) {
		t.Errorf("Contacts came back as\n%s", strings.Join(c, "\n"))
	}
	if c := r.seen.all("Contact"); !strings.Contains(c[0], `;ob>;q=0.7;+sip.instance="<urn:uuid:1>";reg-id=1`) || !strings.HasPrefix(c[1], `"Desk" <sip:alice~`) || c[2] != "<mailto:alice@example.org>;q=0.1" {
		t.Errorf("the registrar saw\n%s", strings.Join(c, "\n"))
	}
	if n := len(w.core.bindings); n != 2 {
		t.Errorf("%d bindings", n)
	}
	r.call(r.contacts[0], alice)
	second := w.phone("alice", flow.UDP, "10.0.0.5:5063", "10.0.0.1:5060")
	r.call(r.contacts[1], second)
	// Without Contact it is a query: nothing changes.
	d.send("REGISTER", "")
	r.take()
	if c := alice.expect("200").all("Contact"); len(c) != 3 || len(w.core.bindings) != 2 {
		t.Errorf("after a query: %d Contacts, %d bindings", len(c), len(w.core.bindings))
	}
	// One goes, by its own parameter.
	d.send("REGISTER", "", "Contact: <sip:alice@10.0.0.5:5063>;expires=0")
	r.take()
	alice.expect("200")
	if n := len(w.core.bindings); n != 1 {
		t.Errorf("%d bindings after one was removed", n)
	}
	r.call(r.contacts[0], alice)
	d.send("REGISTER", "", "Contact: *", "Expires: 0")
	r.take()
	alice.expect("200")
	if n := len(w.core.bindings) + len(w.core.users); n != 0 {
		t.Errorf("%d bindings after *", n)
	}
	w.clean()
}

func TestFM05WhereTheLifetimeStands(t *testing.T) {
	for _, inHeader := range []bool{false, true} {
		w := newWorld(t, nil)
		alice, r := w.alice(), &registrar{phone: w.bob(), grant: 100, inHeader: inHeader}
		d := alice.signUp()
		d.send("REGISTER", "", "Contact: <sip:alice@10.0.0.5:5062>", "Expires: 600")
		r.take()
		got := alice.expect("200")
		if has := got.get("Expires") != ""; has != inHeader {
			t.Errorf("Expires is there: %v\n%s", has, got.raw)
		}
		w.after(99 * time.Second)
		r.call(r.contacts[0], alice)
		if n := len(w.core.bindings); n != 1 {
			t.Errorf("%d bindings before it expires", n)
		}
		w.after(2 * time.Second)
		if n := len(w.core.bindings); n != 0 {
			t.Errorf("%d bindings after it expired", n)
		}
		w.clean()
	}
}

// TestFM05TooBrief: 423 passes with its Min-Expires and changes nothing.
func TestFM05TooBrief(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	d := alice.signUp()
	d.send("REGISTER", "", "Contact: "+alice.contact(), "Expires: 5")
	req := bob.expect("REGISTER")
	bob.reply(req, nil, 423, "", "Min-Expires: 60")
	if got := alice.expect("423"); got.get("Min-Expires") != "60" || len(w.core.bindings) != 0 {
		t.Errorf("%s", got.raw)
	}
	w.clean()
}

// TestFM05Challenge: Digest passes byte for byte, both ways.
func TestFM05Challenge(t *testing.T) {
	w := newWorld(t, nil)
	alice, r := w.alice(), &registrar{phone: w.bob()}
	d := alice.signUp()
	d.send("REGISTER", "", "Contact: "+alice.contact())
	challenge := `WWW-Authenticate: Digest realm="example.com", nonce="abc==", qop="auth,auth-int", opaque=""`
	r.reply(r.expect("REGISTER"), nil, 401, "", challenge)
	if got := alice.expect("401"); !hasLine(got, challenge) {
		t.Errorf("%s", got.raw)
	}
	auth := `Authorization: Digest username="alice",realm="example.com",nonce="abc==",uri="sip:example.com",response="0",nc=00000001`
	d.send("REGISTER", "", "Contact: "+alice.contact(), auth)
	r.take()
	if !hasLine(r.seen, auth) || r.seen.ruri() != "sip:example.com" {
		t.Errorf("%s", r.seen.raw)
	}
	alice.expect("200")
	w.clean()
}

// TestFM05NewConnection: after a new connection the client has its token still, and is called by it.
func TestFM05NewConnection(t *testing.T) {
	w := newWorld(t, nil)
	alice, r := w.phone("alice", flow.TLS, "10.0.0.5:45001", "10.0.0.1:5061"), &registrar{phone: w.bob()}
	contact := "Contact: <sip:alice@10.0.0.5:45001;transport=tls>;reg-id=1"
	d := alice.signUp()
	d.send("REGISTER", "", contact, "Expires: 600")
	r.take()
	alice.expect("200")
	first := r.contacts[0]
	w.hangUp(alice.addr)
	again := w.phone("alice", flow.TLS, "10.0.0.5:45002", "10.0.0.1:5061")
	w.dead[alice.addr] = true
	d.p = again
	d.send("REGISTER", "", contact, "Expires: 600")
	r.take()
	again.expect("200")
	if len(r.contacts) != 1 || r.contacts[0] != first {
		t.Errorf("the registrar knows %q, first it was %q", r.contacts, first)
	}
	r.call(first, again)
	w.clean()
}

// TestFM05NATRebinding: a client behind a NAT is called at the address from which it registered last.
func TestFM05NATRebinding(t *testing.T) {
	for _, early := range []bool{false, true} {
		w := newWorld(t, func(c *Config) { c.EarlyRefresh = early })
		r := &registrar{phone: w.bob()}
		w.opener.Allow("inside", testNetworks()["inside"].Subnets[0])
		contact := "Contact: <sip:alice@192.168.7.2:5060>"
		alice := w.phone("alice", flow.UDP, "10.0.0.50:1024", "10.0.0.1:5060")
		d := alice.signUp()
		d.send("REGISTER", "", contact, "Expires: 600")
		r.take()
		alice.expect("200")
		w.after(10 * time.Second)
		moved := w.phone("alice", flow.UDP, "10.0.0.50:2048", "10.0.0.1:5060")
		w.dead[alice.addr] = true
		d.p = moved
		d.send("REGISTER", "", contact, "Expires: 600")
		r.take()
		moved.expect("200")
		r.call(r.contacts[0], moved)
		w.clean()
	}
}

// TestFM05SameUserTwice: two inside phones of one user are two Contacts, and each is called as itself.
func TestFM05SameUserTwice(t *testing.T) {
	w := newWorld(t, nil)
	r := &registrar{phone: w.bob()}
	desk := w.phone("alice", flow.UDP, "10.0.0.5:5060", "10.0.0.1:5060")
	sofa := w.phone("alice", flow.UDP, "10.0.0.6:5060", "10.0.0.1:5060")
	for _, p := range []*phone{desk, sofa} {
		p.signUp().send("REGISTER", "", "Contact: "+p.contact(), "Expires: 600")
		r.take()
		p.expect("200")
	}
	if len(r.contacts) != 2 || len(w.core.bindings) != 2 {
		t.Fatalf("%q, %d bindings", r.contacts, len(w.core.bindings))
	}
	r.call(r.contacts[0], desk)
	r.call(r.contacts[1], sofa)
	w.clean()
}

// TestFM05TwoLinesOneContact: two addresses-of-record may share a Contact; ending one keeps the other.
func TestFM05TwoLinesOneContact(t *testing.T) {
	w := newWorld(t, nil)
	alice, r := w.alice(), &registrar{phone: w.bob()}
	d := alice.signUp()
	d2 := alice.signUp()
	d2.remote, d2.local = "<sip:sales@example.com>", "<sip:sales@example.com>;tag=s"
	for _, x := range []*peer{d, d2} {
		x.send("REGISTER", "", "Contact: "+alice.contact(), "Expires: 3600")
		r.take()
		alice.expect("200")
	}
	contact := r.contacts[0]
	d2.send("REGISTER", "", "Contact: *", "Expires: 0")
	r.take()
	alice.expect("200")
	w.after(20 * time.Minute)
	r.call(contact, alice)
	w.clean()
}

// TestFM05HijackByNeighbour: whoever sends from the same address cannot pull a registered client's
// calls to himself without the registrar's consent.
func TestFM05HijackByNeighbour(t *testing.T) {
	w := newWorld(t, nil)
	r := &registrar{phone: w.bob()}
	alice := w.phone("alice", flow.TCP, "10.0.0.5:45001", "10.0.0.1:5060")
	alice.signUp().send("REGISTER", "", "Contact: "+alice.contact(), "Expires: 600")
	r.take()
	alice.expect("200")
	thief := w.phone("thief", flow.TCP, "10.0.0.5:45009", "10.0.0.1:5060")
	d := thief.signUp()
	d.remote = "<sip:alice@example.com>"
	d.send("REGISTER", "", "Contact: "+alice.contact(), "Expires: 600")
	r.reply(r.expect("REGISTER"), nil, 403, "")
	thief.expect("403")
	thief.dial("sip:x@example.com").send("OPTIONS", "", "Contact: "+alice.contact())
	r.reply(r.expect("OPTIONS"), nil, 200, "")
	thief.expect("200")
	r.call(r.contacts[0], alice)
	w.clean()
}

func TestEarlyRefresh(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.EarlyRefresh = true })
	alice, r := w.alice(), &registrar{phone: w.bob(), grant: 600}
	d := alice.signUp()
	contact := "Contact: " + alice.contact()
	d.send("REGISTER", "", contact, "Expires: 60")
	r.take()
	alice.expect("200")
	w.after(250 * time.Second)
	d.send("REGISTER", "", contact, "Expires: 60")
	r.nothing()
	if got := alice.expect("200"); got.get("Expires") != "350" || got.get("Contact") != alice.contact()+";expires=350" {
		t.Errorf("%s", got.raw)
	}
	// Half of the lifetime is over, another Contact, an end: these are the registrar's.
	w.after(100 * time.Second)
	d.send("REGISTER", "", contact, "Expires: 60")
	r.take()
	alice.expect("200")
	d.send("REGISTER", "", contact+", <sip:alice@10.0.0.5:5070>", "Expires: 60")
	r.take()
	alice.expect("200")
	d.send("REGISTER", "", contact+";expires=0")
	r.take()
	alice.expect("200")
	if n := len(w.core.bindings); n != 1 {
		t.Errorf("%d bindings", n)
	}
	w.clean()
}

// TestKeepalive: clients behind NAT are pinged while they are registered, others are not.
func TestKeepalive(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Keepalive = 25 * time.Second })
	r := &registrar{phone: w.bob(), grant: 600}
	alice := w.phone("alice", flow.UDP, "10.0.0.50:1024", "10.0.0.1:5060")
	near := w.phone("near", flow.UDP, "10.0.0.6:5060", "10.0.0.1:5060")
	alice.signUp().send("REGISTER", "", "Contact: <sip:alice@192.168.7.2:5060>", "Expires: 600")
	r.take()
	alice.expect("200")
	near.signUp().send("REGISTER", "", "Contact: "+near.contact(), "Expires: 600")
	r.take()
	near.expect("200")
	for range 3 {
		w.after(25 * time.Second)
		ping := alice.expect("OPTIONS")
		alice.reply(ping, nil, 200, "")
		if ping.ruri() != "sip:alice@192.168.7.2:5060" {
			t.Errorf("ping\n%s", ping.raw)
		}
	}
	near.nothing()
	// No answer: the edge tries more often (the NAT forgets sooner).
	w.after(25 * time.Second)
	w.after(33 * time.Second)
	alice.inbox = nil
	w.after(13 * time.Second)
	if len(alice.inbox) == 0 {
		t.Error("the interval was not made shorter")
	}
	w.clean()
}

// TestRedirectedRegister: the Contact of another home server leads there through the edge.
func TestRedirectedRegister(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	other := w.phone("home2", flow.UDP, "198.51.100.30:5060", "198.51.100.1:5060")
	d := alice.signUp()
	d.send("REGISTER", "", "Contact: "+alice.contact())
	bob.reply(bob.expect("REGISTER"), nil, 301, "", "Contact: <sip:198.51.100.30:5060>")
	got := alice.expect("301")
	to, _ := hostOf(t, uriOf(got.get("Contact")))
	if to != ap("10.0.0.1:5060") {
		t.Fatalf("alice would leave the edge for %s", got.get("Contact"))
	}
	d.target = uriOf(got.get("Contact"))
	d.send("REGISTER", "", "Contact: "+alice.contact())
	if req := other.expect("REGISTER"); req.ruri() != "sip:198.51.100.30:5060" {
		t.Errorf("%s", req.raw)
	}
	w.clean()
}

func TestJournal(t *testing.T) {
	w := newWorld(t, nil)
	r := &registrar{phone: w.bob()}
	var lines bytes.Buffer
	if err := w.core.Snapshot(&lines); err != nil {
		t.Fatal(err)
	}
	w.core.journal = func(b []byte) { lines.Write(b) }
	udp := w.alice()
	tcp := w.phone("carol", flow.TCP, "10.0.0.6:5060", "10.0.0.1:5060")
	gone := w.phone("gone", flow.UDP, "10.0.0.7:5060", "10.0.0.1:5060")
	for _, p := range []*phone{udp, tcp, gone} {
		p.signUp().send("REGISTER", "", "Contact: "+p.contact(), "Expires: 600")
		r.take()
		p.expect("200")
	}
	contacts := append([]string(nil), r.contacts...)
	r.contacts = nil
	gone.signUp().send("REGISTER", "", "Contact: "+gone.contact()+";expires=0")
	r.take()
	gone.expect("200")

	for _, torn := range []string{"", `{"aor":"torn@example.com","tok`, "\x00\x00\x00"} {
		t.Run(fmt.Sprintf("torn=%q", torn), func(t *testing.T) {
			w2 := newWorld(t, nil)
			r2 := &registrar{phone: w2.bob()}
			udp2, tcp2 := w2.alice(), w2.phone("carol", flow.TCP, "10.0.0.6:5060", "10.0.0.1:5060")
			w2.now = w.now.Add(100 * time.Second)
			if err := w2.core.Restore(w2.now, strings.NewReader(lines.String()+torn), &w2.out); err != nil {
				t.Fatal(err)
			}
			if n := len(w2.core.bindings); n != 2 {
				t.Fatalf("%d bindings restored", n)
			}
			var a, b bytes.Buffer
			if err := w2.core.Snapshot(&a); err != nil {
				t.Fatal(err)
			}
			r2.call(contacts[0], udp2)
			r2.call(contacts[1], tcp2) // its connection is gone: the edge dials it
			// A round trip gives the same.
			w3 := newWorld(t, nil)
			w3.now = w2.now
			if err := w3.core.Restore(w3.now, bytes.NewReader(a.Bytes()), &w3.out); err != nil {
				t.Fatal(err)
			}
			if err := w3.core.Snapshot(&b); err != nil {
				t.Fatal(err)
			}
			if sorted(a.String()) != sorted(b.String()) {
				t.Errorf("snapshots differ:\n%s\n%s", a.String(), b.String())
			}
			// The same client has the same token after the restart, and what is over is over.
			udp2.signUp().send("REGISTER", "", "Contact: "+udp2.contact(), "Expires: 600")
			r2.take()
			if got := udp2.expect("200"); got.get("Contact") != udp2.contact()+";expires=3600" || r2.contacts[0] != contacts[0] {
				t.Errorf("%s and %s\n%s", r2.contacts[0], contacts[0], got.raw)
			}
			w2.after(2 * time.Hour)
			if n := len(w2.core.bindings); n != 0 {
				t.Errorf("%d bindings after their end", n)
			}
		})
	}
}

func sorted(s string) string {
	l := strings.Split(s, "\n")
	for i := range l {
		for j := i; j > 0 && l[j] < l[j-1]; j-- {
			l[j], l[j-1] = l[j-1], l[j]
		}
	}
	return strings.Join(l, "\n")
}

// TestManyCallsOneConnection: what the edge remembers of a connection is bounded by what is live.
func TestManyCallsOneConnection(t *testing.T) {
	w := newWorld(t, nil)
	w.core.limits.MessagesPerSecond = 0
	pbx := w.phone("pbx", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
	bob := w.bob()
	for i := range 300 {
		pbx.extra = []string{fmt.Sprintf("Contact: <sip:line%d@10.0.0.5:5060;transport=tcp>", i)}
		a, b := pbx.call("sip:bob@example.com", bob, pbx.sdp(4000), bob.sdp(6000))
		a.bye(b)
	}
	w.after(10 * time.Minute)
	if n := len(w.core.aliases); n != 0 {
		t.Errorf("%d aliases", n)
	}
	for id, used := range w.core.conns {
		if used != nil && len(used.aliases) != 0 {
			t.Errorf("%d aliases are kept for connection %d", len(used.aliases), id)
		}
	}
	w.clean()
}

// TestAnswerToGoneConnection: the registrar's answer comes when the client's connection has ended. The
// client is not called down a dead connection, and the edge remembers nothing of it.
func TestAnswerToGoneConnection(t *testing.T) {
	w := newWorld(t, nil)
	alice, r := w.phone("alice", flow.TLS, "10.0.0.5:45001", "10.0.0.1:5061"), &registrar{phone: w.bob()}
	alice.signUp().send("REGISTER", "", "Contact: <sip:alice@x7f3.invalid;transport=tls>", "Expires: 600")
	w.hangUp(alice.addr)
	r.take()
	if n := len(w.core.conns); n != 0 {
		t.Errorf("%d connections are remembered", n)
	}
	r.dial(uriOf(r.contacts[0])).send("INVITE", r.sdp(6000))
	if got := r.expect("480"); got == nil {
		t.Error("no answer")
	}
	w.clean()
}

package sipalg

import (
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// lcs is a core whose server is reached by TCP, and a second server, to which the first one redirects.
func lcs(t *testing.T) (w *world, first, second *phone) {
	t.Helper()
	w = newWorld(t, func(c *Config) {
		c.Domains["example.com"] = Domain{Network: "outside", Server: "tcp:198.51.100.20:5060"}
	})
	w.dns["hs2.example.com"] = []flow.Target{{Network: "outside", Proto: flow.TCP, Addr: ap("198.51.100.21:5060")}}
	return w, w.phone("hs1", flow.TCP, "198.51.100.20:5060", "198.51.100.1:5060"), w.phone("hs2", flow.TCP, "198.51.100.21:5060", "198.51.100.1:5060")
}

// TestMicrosoftHomeServer: a client that follows a 301 by its host alone, and that is the edge, keeps its domain in
// the Request-URI. It comes to its home server with all that it sends, others do not, and when the home
// server is gone it comes to the first one again.
func TestMicrosoftHomeServer(t *testing.T) {
	for _, contact := range []string{"<sip:hs2.example.com:5060;transport=tcp>", "sip:hs2.example.com", "<sip:198.51.100.21>"} {
		w, hs1, hs2 := lcs(t)
		alice := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
		alice.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>;proxy=replace")
		hs1.reply(hs1.expect("REGISTER"), nil, 301, "", "Contact: "+contact)
		alice.expect("301")
		w.hangUp(alice.addr)

		alice = w.phone("alice", flow.TCP, "10.0.0.5:45063", "10.0.0.1:5060")
		alice.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45063;transport=tcp>;proxy=replace")
		hs1.nothing()
		req := hs2.expect("REGISTER")
		if req.ruri() != "sip:example.com" {
			t.Errorf("%s: Request-URI %s", contact, req.ruri())
		}
		hs2.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600", "Expires: 600")
		alice.expect("200")
		if len(w.core.bindings) != 1 {
			t.Errorf("%s: %d bindings", contact, len(w.core.bindings))
		}
		a, b := alice.call("sip:bob@example.com", hs2, alice.sdp(4000), hs2.sdp(6000))
		a.bye(b)

		carol := w.phone("carol", flow.TCP, "10.0.0.5:45070", "10.0.0.1:5060") // at the same host
		carol.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45070;transport=tcp>;proxy=replace")
		hs1.reply(hs1.expect("REGISTER"), nil, 403, "")
		carol.expect("403")

		w.hangUp(hs2.addr)
		w.refused[flow.Target{Network: "outside", Proto: flow.TCP, Addr: hs2.addr}] = true
		d := alice.signUp()
		d.send("REGISTER", "", "Contact: <sip:10.0.0.5:45063;transport=tcp>;proxy=replace")
		alice.expect("503")
		d.send("REGISTER", "", "Contact: <sip:10.0.0.5:45063;transport=tcp>;proxy=replace")
		hs1.reply(hs1.expect("REGISTER"), nil, 200, "")
		alice.expect("200")
		if len(w.core.homes) != 0 {
			t.Errorf("%s: %d homes", contact, len(w.core.homes))
		}
		w.clean()
	}
}

// TestMicrosoftHomeUnresolved: a home whose name is gone is forgotten.
func TestMicrosoftHomeUnresolved(t *testing.T) {
	w, hs1, _ := lcs(t)
	alice := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
	alice.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>")
	hs1.reply(hs1.expect("REGISTER"), nil, 301, "", "Contact: <sip:gone.example.com>")
	alice.expect("301")
	alice.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>")
	w.answer()
	alice.expect("503")
	alice.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>")
	hs1.expect("REGISTER")
	if len(w.core.homes) != 0 {
		t.Error("the home is kept")
	}
}

// TestMicrosoftHomeForgotten: a home ends half a day after its last use, and only configured servers give one.
func TestMicrosoftHomeForgotten(t *testing.T) {
	w, hs1, _ := lcs(t)
	alice := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
	alice.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>")
	hs1.reply(hs1.expect("REGISTER"), nil, 301, "", "Contact: <sip:hs2.example.com>")
	alice.expect("301")
	w.after(homeLife + time.Minute)
	if len(w.core.homes) != 0 {
		t.Error("the home is kept")
	}
	other := w.phone("other", flow.UDP, "198.51.100.40:5060", "198.51.100.1:5060")
	alice.signUp().to = alice.first
	d := alice.signUp()
	d.target = "sip:198.51.100.40"
	d.send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>")
	other.reply(other.expect("REGISTER"), nil, 301, "", "Contact: <sip:198.51.100.66>")
	alice.expect("301")
	if len(w.core.homes) != 0 {
		t.Error("a stranger has given a home")
	}
	w.clean()
}

// TestMicrosoftKeepAlive: the connection to the registrar is kept open as the client was told to do with its own;
// the pings end with the connection.
func TestMicrosoftKeepAlive(t *testing.T) {
	w, hs1, _ := lcs(t)
	alice := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
	d := alice.signUp()
	d.send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>", "ms-keep-alive: UAC;hop-hop=yes")
	req := hs1.expect("REGISTER")
	if !hasLine(req, "ms-keep-alive: UAC;hop-hop=yes") {
		t.Errorf("%s", req.raw)
	}
	const answer = "ms-keep-alive: UAS; tcp=no; hop-hop=yes; end-end=no; timeout=300"
	hs1.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=7200", "Expires: 7200", answer)
	if got := alice.expect("200"); !hasLine(got, answer) || got.get("Expires") != "7200" {
		t.Errorf("%s", got.raw)
	}
	w.after(1001 * time.Second)
	if len(w.pings) != 5 || w.pings[0].who != "hs1" || w.pings[0].at != 200*time.Second {
		t.Errorf("pings: %v", w.pings)
	}
	w.hangUp(hs1.addr)
	w.after(time.Hour)
	if len(w.pings) != 5 {
		t.Errorf("%d pings", len(w.pings))
	}
	w.clean()
}

// TestMicrosoftLostConnection: a client whose TCP connection has ended is dialled at that connection's own port
// while it is registered; one that used TLS never is.
func TestMicrosoftLostConnection(t *testing.T) {
	for _, c := range []struct {
		proto    flow.Proto
		edge     string
		register bool
		want     string
	}{
		{flow.TCP, "10.0.0.1:5060", true, ""}, {flow.TCP, "10.0.0.1:5060", false, "480"}, {flow.TLS, "10.0.0.1:5061", true, "480"},
	} {
		w := newWorld(t, nil)
		alice, bob := w.phone("alice", c.proto, "10.0.0.5:45062", c.edge), w.bob()
		if c.register {
			alice.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport="+c.proto.String()+";ms-opaque=1>;proxy=replace")
			req := bob.expect("REGISTER")
			bob.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600", "Expires: 600")
			alice.expect("200")
		}
		alice.extra = []string{"Contact: <sip:alice@example.com:45062;maddr=10.0.0.5;transport=" + c.proto.String() + ">;proxy=replace"}
		_, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
		w.hangUp(alice.addr)
		b.send("INFO", "")
		if c.want != "" {
			bob.expect(c.want)
			alice.nothing()
			if c.register {
				lostAndBack(t, w, alice, bob, b, c.edge)
			}
			continue
		}
		req := alice.expect("INFO")
		if req.ruri() != "sip:alice@example.com:45062;maddr=10.0.0.5;transport=tcp" {
			t.Errorf("%s", req.raw)
		}
		alice.reply(req, nil, 200, "")
		bob.expect("200")
	}
}

// lostAndBack: when the client has signed on again, by a new connection, its dialogs go on by that.
func lostAndBack(t *testing.T, w *world, alice, bob *phone, b *peer, edge string) {
	t.Helper()
	back := w.phone("alice", alice.proto, "10.0.0.5:45099", edge)
	back.signUp().send("REGISTER", "", "Contact: <sip:10.0.0.5:45099;transport=tls;ms-opaque=2>;proxy=replace")
	req := bob.expect("REGISTER")
	bob.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600", "Expires: 600")
	back.expect("200")
	b.send("INFO", "")
	if got := back.expect("INFO"); got.ruri() != "sip:alice@example.com:45062;maddr=10.0.0.5;transport=tls" {
		t.Errorf("%s", got.raw)
	}
	alice.nothing()
}

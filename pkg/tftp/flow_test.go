package tftp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tftp/invitation"
	"edged.dev/edged/pkg/tftp/msnftp"
)

func invite(cookie, lines string) string {
	return "Application-GUID: " + fileTransfer + "\r\nInvitation-Command: INVITE\r\nInvitation-Cookie: " + cookie + "\r\n" + lines
}

func accept(cookie, host string, port int) string {
	return fmt.Sprintf("Invitation-Command: ACCEPT\r\nInvitation-Cookie: %s\r\nIP-Address: %s\r\nPort: %d\r\nAuthCookie: 77\r\n", cookie, host, port)
}

const textFile = "Application-File: a.txt\r\nApplication-FileSize: 1000\r\n"

// say shows a body of one party to the other; words are SENDER RECEIVER FROM TO and flags.
func (w *world) say(words, body string) Verdict {
	return w.edit(strings.Fields(words), []byte(body))
}

// cancelled tells whether a verdict makes a CANCEL of a message.
func cancelled(v Verdict) bool {
	inv, err := invitation.Parse(v.Body)
	return v.Body != nil && err == nil && inv.Value(invitation.Command) == "CANCEL"
}

// TestAddresses: an invitation opens a pinhole to its sender's own address only, on a port on which clients listen.
func TestAddresses(t *testing.T) {
	for name, tt := range map[string]struct {
		words, host string
		port        int
		reason      string // "" if it is let through
		dials       string
	}{
		"its own":                      {"alice bob alice bob", "192.0.2.7", 6891, "", "192.0.2.7:6891"},
		"a neighbour":                  {"alice bob alice bob", "192.0.2.8", 6891, reasonTarget, ""},
		"the edge":                     {"alice bob alice bob", "192.0.2.1", 6891, reasonOwnAddress, ""},
		"the edge outside":             {"alice bob alice bob", "203.0.113.5", 6891, reasonOwnAddress, ""},
		"another service":              {"alice bob alice bob", "192.0.2.7", 3389, reasonPort, ""},
		"loopback":                     {"alice bob alice bob", "127.0.0.1", 6891, reasonTarget, ""},
		"nowhere":                      {"alice bob alice bob", "0.0.0.0", 6891, reasonTarget, ""},
		"a name":                       {"alice bob alice bob", "host.example.org", 6891, reasonAddress, ""},
		"a zone":                       {"alice bob alice bob", "fe80::1%25eth0", 6891, reasonAddress, ""},
		"outside":                      {"bob alice bob alice", "198.51.100.77", 6891, "", "198.51.100.77:6891"},
		"outside, behind a NAT":        {"bob alice bob alice", "10.1.2.3", 6891, "", "198.51.100.77:6891"},
		"outside, names the inside":    {"bob alice bob alice", "192.0.2.8", 6891, reasonTarget, ""},
		"outside, names loopback":      {"bob alice bob alice", "127.0.0.1", 6891, reasonTarget, ""},
		"server for a client":          {"server alice bob alice", "198.51.100.99", 6899, "", "198.51.100.99:6899"},
		"server, names the inside":     {"server alice bob alice", "192.0.2.8", 6891, reasonTarget, ""},
		"server, names loopback":       {"server alice bob alice", "127.0.0.1", 6891, reasonTarget, ""},
		"server, names multicast":      {"server alice bob alice", "224.0.0.1", 6891, reasonTarget, ""},
		"server, by its own address":   {"server alice bob alice", "198.51.100.20", 6891, "", "198.51.100.20:6891"},
		"server, routed inside":        {"server alice bob alice", "10.9.9.9", 6891, reasonTarget, ""},
		"outside, routed outside":      {"server alice bob alice", "203.0.113.99", 6891, "", "203.0.113.99:6891"},
		"server, names a mapped inner": {"server alice bob alice", "::ffff:192.0.2.8", 6891, reasonTarget, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.say(tt.words, invite("1", textFile))
			v := w.say(tt.words, accept("1", tt.host, tt.port))
			if tt.reason != "" {
				if !cancelled(v) || w.opener.Count() != 0 || w.e.count.denials[tt.reason] != 1 {
					t.Fatalf("%q, %d open, denials %v", v.Body, w.opener.Count(), w.e.count.denials)
				}
				return
			}
			if cancelled(v) || w.opener.Count() != 1 {
				t.Fatalf("%q, %d open", v.Body, w.opener.Count())
			}
			if got := w.opener.Leases()[0].Remote(pinhole.Near).Addr.String(); got != tt.dials {
				t.Errorf("dials %s, want %s", got, tt.dials)
			}
		})
	}
}

// TestEndedWhileRunning: the end of the dialog ends the transfer too.
func TestEndedWhileRunning(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
	near, listener := w.pair()
	defer listener.Close()
	far, dialler := w.pair()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- w.opener.Leases()[0].Connect(ctx, pinhole.Far, [2]net.Conn{near, far}) }()
	go play(dialler, "VER MSN_SECURE_FTP\r\n", "VER MSN_SECURE_FTP\r\n", "USR alice@example.org 77\r\n")
	for deadline := time.Now().Add(time.Minute); w.e.Running() != 1; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("it does not run")
		}
	}
	w.e.Ended("call-1")
	if w.opener.Count() != 0 || w.e.Running() != 0 || len(w.records) != 1 || w.records[0].Result != resultEnded {
		t.Fatalf("%d open, %+v", w.opener.Count(), w.records)
	}
	cancel() // as the relay does when a lease is closed
	<-served
	if len(w.records) != 1 {
		t.Fatalf("%+v", w.records)
	}
}

// TestNoAddressPasses: whatever kind of acceptance it is, none with an inside address gets through unedited.
func TestNoAddressPasses(t *testing.T) {
	for name, body := range map[string]string{
		"no port":       "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\nIP-Address: 192.0.2.7\r\nAuthCookie: 1\r\n",
		"no address":    "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\nPort: 6891\r\nIP-Address-Internal: 192.0.2.7\r\n",
		"no AuthCookie": "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\nIP-Address: 192.0.2.7\r\nPort: 6891\r\n",
		"no command":    "Invitation-Cookie: 1\r\nIP-Address: 192.0.2.7\r\nPort: 6891\r\nAuthCookie: 1\r\n",
		"other command": "Invitation-Command: HELLO\r\nInvitation-Cookie: 1\r\nIP-Address: 192.0.2.7\r\nPort: 6891\r\nAuthCookie: 1\r\n",
		"no cookie":     "Invitation-Command: ACCEPT\r\nIP-Address: 192.0.2.7\r\nPort: 6891\r\nAuthCookie: 1\r\n",
		"other cookie":  accept("2", "192.0.2.7", 6891),
		"twice":         accept("1", "192.0.2.7", 6891) + "IP-Address: 192.0.2.7\r\n",
	} {
		for _, signed := range []string{"", " signed"} {
			w := newWorld(t)
			w.say("alice bob alice bob"+signed, invite("1", textFile))
			v := w.say("alice bob alice bob"+signed, body)
			if v.Refuse == 0 && !cancelled(v) || v.Refuse != 0 && signed != "" {
				t.Errorf("%s%s: %+v", name, signed, v)
			}
			if w.opener.Count() != 0 {
				t.Errorf("%s%s: %d open", name, signed, w.opener.Count())
			}
		}
	}
}

// TestPolicy: sizes, users, directions and applications.
func TestPolicy(t *testing.T) {
	cfg := func(change func(*Config)) Config {
		c := DefaultConfig()
		c.Ports = clientPorts()
		change(&c)
		return c
	}
	audio := "Application-GUID: {02D3C01F-BF30-4825-A83A-DE7AF41648AA}\r\nInvitation-Command: INVITE\r\nInvitation-Cookie: 1\r\n"
	netMeeting := "Application-GUID: {44BBA842-CC51-11CF-AAFA-00AA00B6015C}\r\nInvitation-Command: INVITE\r\nInvitation-Cookie: 1\r\n"
	out, in := "alice bob alice bob", "bob alice bob alice"
	for name, tt := range map[string]struct {
		cfg         Config
		words, body string
		reason      string
	}{
		"size":          {cfg(func(c *Config) { c.MaxSize = 999 }), out, invite("1", textFile), reasonSize},
		"size fits":     {cfg(func(c *Config) { c.MaxSize = 1000 }), out, invite("1", textFile), ""},
		"size unknown":  {cfg(func(c *Config) { c.MaxSize = 1000 }), out, invite("1", "Application-File: a\r\n"), reasonSize},
		"size no size":  {cfg(func(*Config) {}), out, invite("1", "Application-File: a\r\nApplication-FileSize: -5\r\n"), reasonMalformed},
		"in only: out":  {cfg(func(c *Config) { c.Directions = In }), out, invite("1", textFile), reasonDirection},
		"in only: in":   {cfg(func(c *Config) { c.Directions = In }), in, invite("1", textFile), ""},
		"out only: in":  {cfg(func(c *Config) { c.Directions = Out }), in, invite("1", textFile), reasonDirection},
		"out only: out": {cfg(func(c *Config) { c.Directions = Out }), out, invite("1", textFile), ""},
		"user":          {cfg(func(c *Config) { c.Policy = []Rule{{From: "ALICE@*"}} }), out, invite("1", textFile), reasonUser},
		"first rule":    {cfg(func(c *Config) { c.Policy = []Rule{{To: "bob@*", Allow: true}, {From: "*"}} }), out, invite("1", textFile), ""},
		"last rule":     {cfg(func(c *Config) { c.Policy = []Rule{{To: "carol@*", Allow: true}, {From: "*"}} }), out, invite("1", textFile), reasonUser},
		"audio":         {cfg(func(*Config) {}), out, audio, reasonApplication},
		"no GUID":       {cfg(func(*Config) {}), out, "Invitation-Command: INVITE\r\nInvitation-Cookie: 1\r\n" + textFile, reasonApplication},
		"NetMeeting":    {cfg(func(*Config) {}), out, netMeeting, reasonApplication},
		"it is allowed": {cfg(func(c *Config) { c.GUIDs = []string{"{44bba842-cc51-11cf-aafa-00aa00b6015c}"} }), out, netMeeting, ""},
		"no name":       {cfg(func(*Config) {}), out, invite("1", ""), reasonName},
	} {
		if err := tt.cfg.Validate(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w := newWorld(t)
		if err := w.e.Reload(tt.cfg); err != nil {
			t.Fatal(err)
		}
		v := w.say(tt.words, tt.body)
		if refused := v.Refuse == 606; refused != (tt.reason != "") || tt.reason != "" && w.e.count.denials[tt.reason] != 1 {
			t.Errorf("%s: %+v, denials %v", name, v, w.e.count.denials)
		}
	}
}

// TestForeign: invitations of an allowed application pass as they are, their answers too.
func TestForeign(t *testing.T) {
	w := newWorld(t, "guids={44BBA842-CC51-11CF-AAFA-00AA00B6015C}")
	w.say("alice bob alice bob", "Application-GUID: {44BBA842-CC51-11CF-AAFA-00AA00B6015C}\r\nInvitation-Command: INVITE\r\nInvitation-Cookie: 1\r\n")
	v := w.say("bob alice bob alice", "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\nLaunch-Application: TRUE\r\nIP-Address: 198.51.100.77\r\n")
	if v.Body != nil || v.Refuse != 0 {
		t.Fatalf("%+v", v)
	}
}

// TestOtherTypes: what is no invitation is none of this package's business; one in another character set is refused.
func TestOtherTypes(t *testing.T) {
	w := newWorld(t)
	for mediaType, refused := range map[string]bool{
		"text/plain": false, "": false, "text/x-msmsgsinvites": true,
		"Text/X-MSMSGSINVITE": true, "text/x-msmsgsinvite ; charset=\"UTF-16\"": true, "text/x-msmsgsinvite;;;": true,
	} {
		v := w.e.Edit(w.now, Content{Type: []byte(mediaType), Body: []byte("I\x00n\x00v\x00")})
		if (v.Refuse != 0) != refused {
			t.Errorf("%q: %+v", mediaType, v)
		}
	}
}

// TestManyAtOnce: thirteen transfers run on eleven ports, as each gives its own back once it runs; twelve that
// nobody takes up get eleven ports, and give them back in time.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	offer := func(n int) Verdict {
		cookie := fmt.Sprint(n)
		w.say("alice bob alice bob", invite(cookie, textFile))
		return w.say("alice bob alice bob", accept(cookie, "192.0.2.7", 6891+n%11))
	}
	hold := make(chan struct{})
	var running sync.WaitGroup
	for n := range 13 {
		if v := offer(n); cancelled(v) {
			t.Fatalf("transfer %d got no port", n)
		}
		l := w.opener.Leases()[n]
		running.Go(func() {
			if err := w.join(l, "77", hold); err != nil {
				t.Error(err)
			}
		})
		for deadline := time.Now().Add(time.Minute); w.e.Running() != n+1; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("transfer %d does not run", n)
			}
		}
	}
	for n := range 12 {
		if v := offer(100 + n); cancelled(v) != (n == 11) {
			t.Fatalf("pending %d: %q", n, v.Body)
		}
	}
	w.now = w.now.Add(DefaultConfig().Pending)
	w.e.Tick(w.now)
	if w.opener.Count() != 13 || w.e.count.results[resultTimeout] != 11 || w.e.count.denials[reasonExhausted] != 1 {
		t.Fatalf("%d open, %v, %v", w.opener.Count(), w.e.count.results, w.e.count.denials)
	}
	if v := offer(200); cancelled(v) {
		t.Fatal("the ports have not come back")
	}
	close(hold)
	running.Wait()
	if w.e.count.results["completed"] != 13 || w.opener.Count() != 1 {
		t.Fatalf("%v, %d open", w.e.count.results, w.opener.Count())
	}
}

// TestSameCallID: clients of the same second have the same Call-ID and may have the same cookie.
func TestSameCallID(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.say("carol bob carol bob", invite("1", textFile))
	a := w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
	b := w.say("carol bob carol bob", accept("1", "192.0.2.8", 6891))
	if cancelled(a) || cancelled(b) || w.opener.Count() != 2 {
		t.Fatalf("%q, %q, %d open", a.Body, b.Body, w.opener.Count())
	}
	if v := w.say("dave bob dave bob", accept("1", "2001:db8:2::7", 6891)); !cancelled(v) {
		t.Fatal("somebody else answered")
	}
	w.e.Ended("call-1")
	if w.opener.Count() != 0 || len(w.e.byKey)+len(w.e.byCall)+len(w.e.byLocal)+len(w.e.perHost) != 0 {
		t.Fatalf("%d open, %v", w.opener.Count(), w.e.Transfers())
	}
}

// TestAgain: a message that comes again gets what it got; another address replaces the pinhole.
func TestAgain(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	a := w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
	b := w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
	if string(a.Body) != string(b.Body) || len(w.opener.Leases()) != 1 {
		t.Fatalf("%q then %q, %d leases", a.Body, b.Body, len(w.opener.Leases()))
	}
	w.say("alice bob alice bob", accept("1", "192.0.2.7", 6892))
	if w.opener.Count() != 1 || len(w.opener.Leases()) != 2 {
		t.Fatalf("%d open of %d", w.opener.Count(), len(w.opener.Leases()))
	}
	if err := w.join(w.opener.Leases()[0], "77", nil); err == nil {
		t.Fatal("the pinhole that was replaced still serves")
	}
	if w.opener.Count() != 1 {
		t.Fatal("the end of the first pinhole ended the second")
	}
}

// TestStranger: who does not know the cookie is refused, and the transfer still takes place.
func TestStranger(t *testing.T) {
	w := newWorld(t)
	w.say("alice server alice bob", invite("1", textFile))
	w.say("alice server alice bob", accept("1", "192.0.2.7", 6891))
	if err := w.join(w.opener.Leases()[0], "78", nil); !errors.Is(err, msnftp.ErrCookie) {
		t.Fatalf("a wrong cookie: %v", err)
	}
	if w.opener.Count() != 1 || w.e.count.refused["cookie"] != 1 || w.e.Running() != 0 {
		t.Fatalf("%d open, refused %v", w.opener.Count(), w.e.count.refused)
	}
	w.connect()
	if len(w.records) != 1 || w.records[0].Result != "completed" {
		t.Fatalf("%+v", w.records)
	}
}

// TestRecord: what is recorded when a transfer is over.
func TestRecord(t *testing.T) {
	w := newWorld(t, "max_size=1GiB")
	w.say("bob alice bob alice", invite("1", textFile))
	w.say("bob alice bob alice", accept("1", "198.51.100.77", 6891))
	views := w.e.Transfers()
	if len(views) != 1 || views[0].State != "listening" || views[0].Listener != "198.51.100.77:6891" || views[0].Edge != "192.0.2.1:6891" {
		t.Fatalf("%+v", views)
	}
	w.connect()
	want := Record{CallID: "call-1", From: "bob@example.org", To: "alice@example.org", File: "a.txt", Size: 1000, Started: w.now, Bytes: 134, Result: "completed"}
	if len(w.records) != 1 || w.records[0] != want {
		t.Fatalf("%+v", w.records)
	}
	if families, err := registry(t, w.e).Gather(); err != nil || len(families) != 4 {
		t.Fatalf("%d metrics, %v", len(families), err)
	}
}

// TestBounds: one host cannot fill the table, many can, and then nothing new is remembered.
func TestBounds(t *testing.T) {
	w := newWorld(t)
	for n := range maxPerHost + 10 {
		v := w.say("alice bob alice bob", invite(fmt.Sprint(n), textFile))
		if (v.Refuse != 0) != (n >= maxPerHost) {
			t.Fatalf("invitation %d: %+v", n, v)
		}
	}
	if v := w.say("carol bob carol bob", invite("1", textFile)); v.Refuse != 0 {
		t.Fatal("another host pays for it")
	}
	cfg := w.e.cfg
	cfg.MaxInvitations = maxPerHost + 1
	if err := w.e.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	if v := w.say("bob alice bob alice", invite("x", textFile)); v.Refuse == 0 {
		t.Fatal("the table has no bound")
	}
	w.now = w.now.Add(lifetime)
	w.e.Tick(w.now)
	if len(w.e.byKey)+len(w.e.byCall)+len(w.e.perHost) != 0 {
		t.Fatal("invitations outlive their time")
	}
	long := invite("1", textFile)
	if v := w.e.Edit(w.now, Content{Type: []byte("text/x-msmsgsinvite"), Body: []byte(long), CallID: strings.Repeat("x", maxKey)}); v.Refuse == 0 {
		t.Fatal("a Call-ID of any length is kept")
	}
}

// TestDrain: no new ones, the old ones go on.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.e.Drain()
	if v := w.say("alice bob alice bob", invite("2", textFile)); v.Refuse == 0 {
		t.Fatal("taken while draining")
	}
	if v := w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891)); cancelled(v) {
		t.Fatal("the old one was cancelled")
	}
}

// TestRefusal: the far end's refusal, with the invitation in it as it must be, forgets it.
func TestRefusal(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.say("bob alice alice bob status=606", invite("1", textFile))
	if len(w.e.byKey) != 0 {
		t.Fatalf("%+v", w.e.Transfers())
	}
}

// TestUnjoined: the listening client cannot be reached.
func TestUnjoined(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
	w.opener.Leases()[0].Request.Unjoined(net.ErrClosed)
	if w.opener.Count() != 0 || w.records[0].Result != resultUnreachable {
		t.Fatalf("%d open, %+v", w.opener.Count(), w.records)
	}
}

// FuzzEdit: nothing from the network panics, leaks a pinhole, or lets an inside address through in an acceptance.
func FuzzEdit(f *testing.F) {
	f.Add(invite("1", textFile), accept("1", "192.0.2.7", 6891), true)
	f.Add(invite("1", textFile), accept("1", "192.0.2.7", 6891)+"PortX: 11178\r\nPort-Internal: 1\r\nIP-Address-Internal: 192.0.2.7\r\n", false)
	f.Add(invite("1", "Application-File: a.exe\r\n"), "Invitation-Command: CANCEL\r\nInvitation-Cookie: 1\r\n", true)
	f.Add("", "IP-Address: 192.0.2.7\n", false)
	f.Fuzz(func(t *testing.T, first, second string, signed bool) {
		w := newWorld(t, "deny=exe")
		alice, bob := w.party("alice"), w.party("bob")
		for _, body := range []string{first, second} {
			v := w.e.Edit(w.now, Content{
				Type: []byte("text/x-msmsgsinvite"), Body: []byte(body), CallID: "c", From: uri("alice"), To: uri("bob"), Signed: signed, Sender: alice, Receiver: bob,
			})
			inv, err := invitation.Parse(v.Body)
			if v.Body != nil && (err != nil || inv.Value(invitation.IPAddress) == "192.0.2.7" || inv.Has(invitation.IPAddressInternal)) {
				t.Fatalf("%q became %q, %v", body, v.Body, err)
			}
		}
		w.e.Ended("c")
		if w.opener.Count() != 0 || len(w.e.byKey)+len(w.e.byCall)+len(w.e.byLocal)+len(w.e.perHost) != 0 {
			t.Fatal("something is left")
		}
	})
}

// TestHairpinNotForOthers: the edge's own address is taken for what it stands for only with the cookies that go with it.
func TestHairpinNotForOthers(t *testing.T) {
	w := newWorld(t)
	w.say("alice server alice bob", invite("1", textFile))
	w.say("alice server alice bob", accept("1", "192.0.2.7", 6891))
	w.say("bob carol bob carol call=2", invite("1", textFile))
	evil := strings.Replace(accept("1", "203.0.113.5", 6891), "77", "78", 1)
	if v := w.say("bob carol bob carol call=2", evil); !cancelled(v) {
		t.Fatalf("%q", v.Body)
	}
	if w.opener.Count() != 1 {
		t.Fatal("a stranger took the pinhole away")
	}
}

// TestCharset: how the media type may be written.
func TestCharset(t *testing.T) {
	for mediaType, want := range map[string]bool{
		"text/x-msmsgsinvite": true, "text/x-msmsgsinvite;": true, "text/x-msmsgsinvite; charset=UTF-8": true,
		"text/x-msmsgsinvite;charset=utf-8;": true, `TEXT/x-msmsgsinvite ; CHARSET="us-ascii"`: true, "text/x-msmsgsinvite; msgr=WAAt": true,
		"text/x-msmsgsinvite; charset=utf-16": false, "text/x-msmsgsinvite; charset=utf-8; charset=utf-16": false,
	} {
		if is, utf8 := isInvitation([]byte(mediaType)); !is || utf8 != want {
			t.Errorf("%q: %v, %v", mediaType, is, utf8)
		}
	}
}

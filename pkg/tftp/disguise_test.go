package tftp

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

// passes tells whether an invitation for a file gets through in a world that denies exe.
func passesFile(t *testing.T, body string) bool {
	t.Helper()
	w := newWorld(t, "deny=exe")
	v := w.say("alice bob alice bob", body)
	return v.Refuse == 0 && !cancelled(v)
}

// TestDisguisedNames: what some client or system reads as an .exe is one.
func TestDisguisedNames(t *testing.T) {
	for _, name := range []string{
		"a.exe", "a.EXE ", "a.exe.", "a.exe. .", "a.exe::$DATA", "a.exe:x", "a\u202etxt.exe", "a.\u200bexe", "a.ex\u00ade", "a\uff0eexe", "a.\uff45\uff58\uff45",
		"a\u2024exe", `"a.exe"`, `a.ex"e`, "'a.exe'", "a.exe;", "<a.exe>", "a.exe?", "a.e*xe", "a.exe|", "a%2eexe", "a.%65xe", "a.exe%20", "a.exe%00.txt", "a.exe%2e", "a.exe\u3164", "a.exe\u2800",
		".exe", "a.exe.txt", "a.exe\u00a0", "a.exe\u2028", "..\u2215a.exe", "%2e%2e%2fa.exe", "a.exe,", "a.\u24d4\u24e7\u24d4", "a.exe\t", "=?utf-8?q?a=2Eexe?=", "a&#46;exe", "a.exe&#32;",
	} {
		if passesFile(t, invite("1", "Application-File: "+name+"\r\nApplication-FileSize: 1\r\n")) {
			t.Errorf("%q passes", name)
		}
	}
	for _, name := range []string{"a.txt", "50%.txt", "100%25.txt", "it's.txt", "report (1).txt", "übung.txt", "日本語.txt", "a&b.txt", "a;b.txt", "exe", "a.exes", "a.e", "R&#38;D.txt", "a=b.txt"} {
		if !passesFile(t, invite("1", "Application-File: "+name+"\r\nApplication-FileSize: 1\r\n")) {
			t.Errorf("%q does not pass", name)
		}
	}
}

// TestDisguisedLines: an invitation that clients read in different ways is refused.
func TestDisguisedLines(t *testing.T) {
	good := invite("1", textFile)
	for name, body := range map[string]string{
		"LF within CRLF":       invite("1", "Application-File: a.txt\n.exe\r\nApplication-FileSize: 1\r\n"),
		"LF first":             "X: 1\n" + good,
		"a blank before colon": strings.Replace(good, "Application-File:", "Application-File: a.exe\r\nApplication-File :", 1),
		"case":                 strings.Replace(good, "Application-File:", "Application-File: a.exe\r\naPPLICATION-fILE:", 1),
		"folded":               strings.Replace(good, "a.txt", "a.txt\r\n .exe", 1),
		"folded by other":      strings.Replace(good, "a.txt", "a.txt\r\n\u00a0.exe", 1),
		"form feed first":      strings.Replace(good, "Application-File:", "Application-File: a.txt\r\n\fApplication-File:", 1),
		"no colon":             strings.Replace(good, "a.txt", "a.txt\r\n.exe", 1),
		"mark first":           strings.Replace("\ufeff"+good, "a.txt", "a.exe", 1),
		"UTF-16":               strings.ReplaceAll(good, "", "\x00"),
	} {
		if passesFile(t, body) {
			t.Errorf("%s: passes", name)
		}
	}
	for name, body := range map[string]string{
		"LF only": strings.ReplaceAll(good, "\r\n", "\n"), "no last end": strings.TrimSuffix(good, "\r\n"), "empty line last": good + "\r\n", "LF, empty last": strings.ReplaceAll(good, "\r\n", "\n") + "\n",
		"empty line first": "\r\n" + good,
	} {
		if !passesFile(t, body) {
			t.Errorf("%s: does not pass", name)
		}
	}
}

// TestDisguisedTypes: what clients take for an invitation is one; some look no further than its first letters.
func TestDisguisedTypes(t *testing.T) {
	body := []byte(invite("1", "Application-File: a.exe\r\nApplication-FileSize: 1\r\n"))
	for _, mediaType := range []string{
		"text/x-msmsgsinvite", "TEXT/X-MSMSGSINVITE", "text/x-msmsgsinvite;charset=UTF-16", "text/x-msmsgsinvite ; charset=\"utf-8\"", "text / x-msmsgsinvite",
		"text/x-msmsgsinvitex", "text/x-msmsgsinvite,text/plain", "text/x-msmsgsinvite charset=UTF-8", "text/x-msmsgsinvite;=", "text/x-msmsgsinvite\r\n ;charset=utf-8", "text/x-msmsgsinvite; charset=utf-8; charset=utf-7",
	} {
		w := newWorld(t, "deny=exe")
		v := w.e.Edit(w.now, Content{Type: []byte(mediaType), Body: body, CallID: "1", From: uri("alice"), To: uri("bob"), Sender: w.party("alice"), Receiver: w.party("bob")})
		if v.Refuse == 0 {
			t.Errorf("%q passes", mediaType)
		}
	}
}

// TestAddressAnywhere: no inside address gets out in whatever an invitation's command is.
func TestAddressAnywhere(t *testing.T) {
	const lines = "IP-Address: 192.0.2.7\r\nPort: 6891\r\nPortX: 11178\r\nIP-Address-Internal: 192.0.2.7\r\nAuthCookie: 77\r\n"
	for _, signed := range []string{"", " signed"} {
		for _, body := range []string{
			invite("1", textFile+lines),
			"Invitation-Command: CANCEL\r\nInvitation-Cookie: 1\r\nCancel-Code: REJECT\r\n" + lines,
			"Invitation-Command: REJECT\r\nInvitation-Cookie: 1\r\n" + lines,
		} {
			w := newWorld(t)
			w.say("alice bob alice bob"+signed, invite("1", textFile))
			v := w.say("alice bob alice bob"+signed, body)
			if v.Refuse == 0 && (v.Body == nil || strings.Contains(string(v.Body), "192.0.2.7")) {
				t.Errorf("%s:\n%s became\n%s", signed, body, v.Body)
			}
		}
	}
}

// TestAddressAnswered: an answer that repeats an invitation does not tell the edge's inside address.
func TestAddressAnswered(t *testing.T) {
	w := newWorld(t)
	w.say("bob alice bob alice", invite("1", textFile))
	v := w.say("bob alice bob alice", accept("1", "198.51.100.77", 6891))
	if !strings.Contains(string(v.Body), "192.0.2.1") {
		t.Fatalf("%q", v.Body)
	}
	for _, body := range []string{string(v.Body), string(v.Body) + "Port: 1\r\n"} {
		v := w.say("alice bob bob alice status=606", body)
		if v.Body == nil || strings.Contains(string(v.Body), "192.0.2.1") {
			t.Errorf("%q", v.Body)
		}
	}
}

// TestStrangers: who knows the names of an invitation is not thereby one of its parties.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
	if w.opener.Count() != 1 {
		t.Fatal("not open")
	}
	// Carol, a neighbour of alice, says that she is alice; and somebody outside that he is bob.
	for _, who := range []string{"carol bob alice bob", "dave alice bob alice", "carol bob alice bob signed"} {
		w.say(who, accept("1", w.party(strings.Fields(who)[0]).Addr.String(), 6891))
		w.say(who, "Invitation-Command: CANCEL\r\nInvitation-Cookie: 1\r\nCancel-Code: REJECT\r\n")
		w.say(who, invite("1", "Application-File: x\r\nApplication-FileSize: -1\r\n"))
		if l := w.opener.Leases(); w.opener.Count() != 1 || len(l) != 1 || l[0].Remote(pinhole.Near).Addr.String() != "192.0.2.7:6891" {
			t.Fatalf("%s: %d open, %d leases", who, w.opener.Count(), len(l))
		}
	}
	if v := w.say("bob alice bob alice", "Invitation-Command: CANCEL\r\nInvitation-Cookie: 1\r\nCancel-Code: REJECT\r\n"); v.Refuse != 0 || w.opener.Count() != 0 {
		t.Errorf("bob's own: %+v, %d open", v, w.opener.Count())
	}
}

// TestTwins: clients that were started in the same second use the same Call-IDs; the end of one's connection is not the other's.
func TestTwins(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.say("carol bob carol bob", invite("1", textFile))
	w.e.Lost("call-1", "sip:bob@example.org:5060", uri("carol"))
	if all := w.e.Transfers(); len(all) != 1 || all[0].From != "alice@example.org" {
		t.Errorf("%+v", all)
	}
	w.e.Lost("call-1", uri("alice"), uri("bob"))
	if all := w.e.Transfers(); len(all) != 0 {
		t.Errorf("%+v", all)
	}
}

// TestOtherKeys: keys that replace the receiver's would have the content check read something else than the receiver does.
func TestOtherKeys(t *testing.T) {
	keys := func(k string) string {
		return "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\nEncryption-Key: " + k + "\r\nHash-Key: " + k + "\r\n"
	}
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", textFile))
	w.say("bob alice bob alice", keys("QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"))
	if v := w.say("bob alice bob alice", keys("QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB")); v.Refuse != 0 || cancelled(v) {
		t.Errorf("the same again: %+v", v)
	}
	body := strings.TrimSuffix(accept("1", "192.0.2.7", 6891), "\r\n") + "\r\nEncryption-Key: QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJC\r\n"
	if v := w.say("alice bob alice bob", body); v.Refuse == 0 && !cancelled(v) || w.opener.Count() != 0 {
		t.Errorf("other keys: %q, %d open", v.Body, w.opener.Count())
	}
}

// TestSizeOfNothing: a file of no octets is not one of any size.
func TestSizeOfNothing(t *testing.T) {
	w := newWorld(t)
	w.say("alice bob alice bob", invite("1", "Application-File: a.txt\r\nApplication-FileSize: 0\r\n"))
	w.say("alice bob alice bob", accept("1", "192.0.2.7", 6891))
	w.connect() // of four octets
	if len(w.records) != 1 || w.records[0].Result != "too_large" {
		t.Errorf("%+v", w.records)
	}
}

// TestPolicySpelling: rules for users hold however their URIs are written.
func TestPolicySpelling(t *testing.T) {
	for _, in := range []string{
		"sip:mallory@example.org", "SIP:Mallory@Example.ORG", "sip:mallory@example.org:5060", "sip:m%61llory@example.org", "sip:mallory@example.org;transport=tcp", "sip:mallory@example.org.",
		"sip:mallory:secret@example.org", "sip:mallory;x=y@example.org", "<sip:mallory@example.org>", "im:mallory@example.org", "sip:mallory@example.org?x=y",
	} {
		if got := address(in); got != "mallory@example.org" {
			t.Errorf("%s: %s", in, got)
		}
	}
	for in, want := range map[string]string{"sip:a@[2001:db8::1]:5060": "a@[2001:db8::1]", "sip:a%40b@example.org": "a%40b@example.org", "tel:+15550100": "+15550100", "sip:example.org": "example.org", "sip:%zz@example.org": "%zz@example.org"} {
		if got := address(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestRoaming: who has a whole network of IPv6 outside has no more invitations than any other host.
func TestRoaming(t *testing.T) {
	w := newWorld(t)
	dave := w.party("dave")
	n := 0
	for i := range 2 * maxPerHost {
		b := dave.Addr.As16()
		b[15] = byte(i)
		dave.Addr = netip.AddrFrom16(b)
		c := Content{Type: []byte("text/x-msmsgsinvite"), Body: []byte(invite(strconv.Itoa(i), textFile)), CallID: "1", From: uri("dave"), To: uri("erin"), Sender: dave, Receiver: w.party("erin")}
		if w.e.Edit(w.now, c).Refuse == 0 {
			n++
		}
	}
	if n != maxPerHost {
		t.Errorf("%d invitations", n)
	}
}

package sipalg

import (
	"encoding/base64"
	"strconv"
	"strings"
	"testing"

	"edged.dev/edged/pkg/sipalg/flow"
)

// TestDisguisedDescriptions: however a session description is dressed, no inside address leaves in it: it is rewritten or its
// message is refused.
func TestDisguisedDescriptions(t *testing.T) {
	multi := func(heads ...string) string {
		var b strings.Builder
		for _, h := range heads {
			b.WriteString("--b\r\n" + h + "\r\n\r\nBODY\r\n")
		}
		return b.String() + "--b--\r\n"
	}
	for name, c := range map[string]struct{ lines, body string }{
		"no type":                {"", "BODY"},
		"blanks in the type":     {"Content-Type: application / sdp", "BODY"},
		"folded type":            {"Content-Type:\r\n application/sdp\r\n ;x=y", "BODY"},
		"capitals":               {"CONTENT-TYPE: APPLICATION/SDP; charset=utf-8", "BODY"},
		"compact":                {"c: Application/Sdp", "BODY"},
		"two types":              {"c: text/plain\r\nContent-Type: application/sdp", "BODY"},
		"two types, other order": {"Content-Type: application/sdp\r\nc: text/plain", "BODY"},
		"encoded in name":        {"Content-Type: application/sdp\r\nContent-Encoding: x-nothing", "BODY"},
		"empty encoding":         {"Content-Type: application/sdp\r\nContent-Encoding:", "BODY"},
		"unknown multipart":      {"Content-Type: multipart/x-other;boundary=b", multi("Content-Type: application/sdp")},
		"parallel":               {"Content-Type: multipart/parallel;boundary=b", multi("Content-Type: application/sdp")},
		"blanks in multipart":    {"Content-Type: multipart / mixed ; boundary=b", multi("Content-Type: application/sdp")},
		"quoted boundary":        {`Content-Type: multipart/mixed;boundary="\b"`, multi("Content-Type: application/sdp")},
		"no boundary":            {"Content-Type: multipart/mixed", multi("Content-Type: application/sdp")},
		"other boundary":         {"Content-Type: multipart/mixed;boundary=x", multi("Content-Type: application/sdp")},
		"two boundaries":         {"Content-Type: multipart/mixed;boundary=x;boundary=b", multi("Content-Type: application/sdp")},
		"blanks in a part":       {"Content-Type: multipart/mixed;boundary=b", multi("content-type : application / SDP")},
		"folded in a part":       {"Content-Type: multipart/mixed;boundary=b", multi("Content-Type:\r\n\tapplication/sdp;\r\n x=y")},
		"two types in a part":    {"Content-Type: multipart/mixed;boundary=b", multi("Content-Type: text/plain\r\nContent-Type: application/sdp")},
		"base64 that is not":     {"Content-Type: multipart/mixed;boundary=b", multi("Content-Type: application/sdp\r\nContent-Transfer-Encoding: base64")},
		"unknown encoding":       {"Content-Type: multipart/mixed;boundary=b", multi("Content-Type: application/sdp\r\nContent-Transfer-Encoding: x-none")},
		"two encodings":          {"Content-Type: multipart/mixed;boundary=b", multi("Content-Type: application/sdp\r\nContent-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: base64")},
		"second of two parts":    {"Content-Type: multipart/alternative;boundary=b", multi("Content-Type: application/sdp; x=y", "Content-Type: application/sdp")},
		"the gateway's own":      {"Content-Type: multipart/alternative;boundary=b", multi("Content-Type: application/sdp", "Content-Type: application/gw-sdp; x-bypassid=1")},
		"signed":                 {"Content-Type: multipart/signed;boundary=b", multi("Content-Type: application/sdp", "Content-Type: application/pkcs7-signature")},
		"signed in mixed":        {"Content-Type: multipart/mixed;boundary=c", "--c\r\nContent-Type: multipart/signed;boundary=b\r\n\r\n" + multi("Content-Type: application/sdp") + "--c--"},
		"LF only":                {"Content-Type: multipart/mixed;boundary=b", "--b\nContent-Type: application/sdp\n\nBODY\n--b--\n"},
		"cut short":              {"Content-Type: multipart/mixed;boundary=b", "--b\r\nContent-Type: application/sdp\r\n\r\nBODY"},
		"blanks after boundary":  {"Content-Type: multipart/mixed;boundary=b", "--b \t\r\nContent-Type: application/sdp\r\n\r\nBODY\r\n--b-- \r\n"},
		"after the last":         {"Content-Type: multipart/mixed;boundary=b", "--b\r\n\r\nhi\r\n--b--\r\n--b\r\nContent-Type: application/sdp\r\n\r\nBODY\r\n--b--\r\n"},
	} {
		for _, method := range []string{"INVITE", "MESSAGE", "INFO", "OPTIONS"} {
			t.Run(method+" "+name, func(t *testing.T) {
				w := newWorld(t, nil)
				w.wild = true
				alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
				head, _, _ := strings.Cut(alice.dial("sip:bob@example.com").text(method, ""), "Content-Length")
				body := strings.ReplaceAll(c.body, "BODY", strings.TrimSuffix(alice.sdp(4000), "\r\n"))
				if c.lines != "" {
					head += crlf(c.lines) + "\r\n"
				}
				w.put(alice.proto, alice.addr, alice.first, withLength(head, body))
				if len(bob.inbox) == 1 && method == "INVITE" && strings.Contains(bob.inbox[0].body, "10.0.0.5") {
					t.Error("an inside address left")
				}
			})
		}
	}
}

// withLength adds a body to the head of a message.
func withLength(head, body string) string {
	return strings.Replace(withType(head, "X", body), "Content-Type: X\r\n", "", 1)
}

// TestDisguisedAnswers: the same of answers that open nothing.
func TestDisguisedAnswers(t *testing.T) {
	for _, lines := range []string{"Content-Type: application/sdp", "Content-Type: application/sdp\r\nContent-Encoding: x", "c: application / sdp", "Content-Type: multipart/x;boundary=b\r\nContent-Encoding: x"} {
		w := newWorld(t, nil)
		w.wild = true
		alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
		d := alice.signUp()
		d.raw(d.text("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>"))
		reg := bob.expect("REGISTER")
		bob.reply(reg, nil, 200, "", "Contact: "+reg.get("Contact")+";expires=600", "Expires: 600")
		alice.expect("200")
		b := bob.dial(strings.Trim(reg.get("Contact"), "<>"))
		b.send("INVITE", bob.sdp(6000))
		req := alice.expect("INVITE")
		alice.reply(req, alice.answered(req), 488, "", lines+"\r\nContent-Length: "+strconv.Itoa(len(alice.sdp(4000)))+"\r\n\r\n"+alice.sdp(4000)+"\r\n")
		if got := bob.expect("488"); strings.Contains(got.raw, "10.0.0.5") {
			t.Errorf("%s", got.raw)
		}
	}
}

// TestOddLines: lines that hold an address lose it however they are written, or their description is refused.
func TestOddLines(t *testing.T) {
	for _, line := range []string{
		"a=rtcp:5000 IN IP4 10.0.0.5 ", "a=RTCP: 5000  IN IP4 10.0.0.5", "a=rtcp:5000\tin ip4 10.0.0.5", "a=rtcp :5000 IN IP4 10.0.0.5",
		"a=Candidate:1 1 UDP 1 10.0.0.5 5000 typ host", "a= candidate:1 1 UDP 1 10.0.0.5 5000 typ host ", "a=x-candidate:1 1 UDP 1 10.0.0.5 5000 typ host", "a=X-CANDIDATE-IPV6:1 1 UDP 1 ::ffff:10.0.0.5 1",
		"a=candidate:u 1 p UDP 0.8 10.0.0.5 5000 10.0.0.5", "a=candidate:u 1 p TCP 0.8 10.0.0.5 5000", "a=candidate:u 3 p UDP 0.8 10.0.0.5 5000", "a=candidate:x 10.0.0.5",
		"a=remote-candidates:1 10.0.0.5 5000", "a=alt:1 1 : x y 10.0.0.5 5000", "a=altc:1 IP4 10.0.0.5 5000",
		"c=IN  IP4\t10.0.0.5 ", "c= IN IP4 10.0.0.5", "c=IN IP4 10.0.0.5/1", "c=IN IP6 ::ffff:10.0.0.5", "c=in ip4 10.0.0.5", "c=IN IP4 10.0.0.5;x", "c=IN IP5 10.0.0.5", "c=10.0.0.5", "c=IN IP4 10.0.0.5\r\nc=IN IP4 10.0.0.5",
		"o=- 0 0 IN IP4 10.0.0.5", "a=path:msrp://10.0.0.5:5000/x;tcp", "m=x-ms-message 5060 sip null\r\nc=IN IP4 10.0.0.5", "m=x-odd 5 sip null\r\nc=IN IP4 10.0.0.5",
	} {
		for _, end := range []string{"\r\n", "\n", "\r"} {
			for _, ice := range []ICEMode{"strip", "relay"} {
				w := newWorld(t, func(c *Config) { c.ICE = ice })
				w.wild, w.showsIn = true, true
				alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
				head, _, _ := strings.Cut(alice.dial("sip:bob@example.com").text("INVITE", ""), "Content-Length")
				body := strings.ReplaceAll(alice.sdp(4000)+line+"\r\n", "\r\n", end)
				w.put(alice.proto, alice.addr, alice.first, withLength(head+"Content-Type: application/sdp\r\n", body))
				if len(bob.inbox) == 1 && strings.Contains(bob.inbox[0].body, "10.0.0.5") {
					t.Errorf("%s %q %q:\n%s", ice, end, line, bob.inbox[0].body)
				}
			}
		}
	}
}

// TestDisguisedContents: however an invitation is dressed, it is shown under its type, or its message is refused.
func TestDisguisedContents(t *testing.T) {
	const kind, text = "text/x-msmsgsinvite", "Invitation-Command: INVITE\r\n"
	coded := base64.StdEncoding.EncodeToString([]byte(text))
	for name, c := range map[string]struct{ lines, body string }{
		"plain":                  {"Content-Type: " + kind, text},
		"encoded in name":        {"Content-Type: " + kind + "\r\nContent-Encoding: gzip", text},
		"compact":                {"c: Text/X-MSMSGSINVITE ; charset=UTF-8\r\ne: x", text},
		"two types":              {"c: text/plain\r\nContent-Type: " + kind, text},
		"part":                   {"Content-Type: multipart/alternative;boundary=b", "--b\r\nContent-Type: " + kind + "\r\nContent-Encoding: x\r\n\r\n" + text + "--b--"},
		"part, unknown encoding": {"Content-Type: multipart/x;boundary=b", "--b\r\nContent-Type: " + kind + "\r\nContent-Transfer-Encoding: x\r\n\r\n" + text + "--b--"},
		"header":                 {"ms-text-format: " + kind + ";ms-body=" + coded, ""},
		"header, no parameter":   {"ms-text-format: " + kind + ",ms-body=" + coded, ""},
		"header, bad parameter":  {"MS-TEXT-FORMAT: " + kind + `;"x";=;ms-body=` + coded, ""},
		"header, another name":   {"Ms-Text-Format: " + kind + ";xms-body=" + coded + ";ms-body=aGk=", ""},
		"header, twice":          {"ms-text-format: " + kind + ";ms-body=aGk=;MS-Body = \"" + coded + `"`, ""},
		"header, a list":         {"ms-text-format: text/plain;ms-body=aGk=, " + kind + ";ms-body=" + coded, ""},
		"header, two":            {"ms-text-format: text/plain;ms-body=aGk=\r\nms-text-format: " + kind + ";ms-body=" + coded, ""},
		"header, folded":         {"ms-text-format:\r\n " + kind + ";\r\n ms-body=\r\n " + coded[:9] + "\r\n " + coded[9:], ""},
		"header, no padding":     {"ms-text-format: " + kind + ";ms-body=" + strings.TrimRight(coded, "="), ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
			e := w.withEditor(nil)
			head, _, _ := strings.Cut(alice.dial("sip:bob@example.com").text("MESSAGE", ""), "Content-Length")
			w.put(alice.proto, alice.addr, alice.first, withLength(head+crlf(c.lines)+"\r\n", c.body))
			for _, c := range e.take() {
				if strings.HasPrefix(strings.ToLower(string(c.Type)), kind) && strings.TrimSpace(string(c.Body)) == strings.TrimSpace(text) {
					return
				}
			}
			bob.nothing() // then it must have been refused
		})
	}
}

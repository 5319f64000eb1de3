package sipalg

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// editor is a ContentEditor of a test.
type editor struct {
	seen   []Content
	ended  []string
	lost   []string
	answer func(c Content) Verdict
}

func (e *editor) Edit(_ time.Time, c Content) Verdict {
	c.Type, c.Body = slices.Clone(c.Type), slices.Clone(c.Body)
	e.seen = append(e.seen, c)
	if e.answer == nil {
		return Verdict{}
	}
	return e.answer(c)
}

func (e *editor) Ended(callID string) { e.ended = append(e.ended, callID) }

func (e *editor) Lost(callID, one, other string) {
	e.lost = append(e.lost, callID+" "+one+" "+other)
}

// take returns the contents seen since the last call.
func (e *editor) take() []Content {
	seen := e.seen
	e.seen = nil
	return seen
}

// withEditor gives the world's core an editor.
func (w *world) withEditor(answer func(Content) Verdict) *editor {
	e := &editor{answer: answer}
	w.core.contents, w.edits = e, answer != nil
	return e
}

const ntlm = `Authorization: NTLM qop="auth", opaque="A1", realm="R", targetname="srv", crand="01", cnum="1", response="%s"`

// sign makes an NTLM header field with a signature of its own.
func sign(id string) string { return strings.ReplaceAll(ntlm, "%s", id) }

// instant sends an instant message within a dialog, or outside of all, and returns what arrives.
func (d *peer) instant(to *phone, contentType, body string, extra ...string) *msg {
	d.p.w.t.Helper()
	raw := d.text("MESSAGE", "", extra...)
	raw = strings.Replace(raw, "Content-Length: 0\r\n\r\n", "", 1)
	d.raw(withType(raw, contentType, body))
	return to.expect("MESSAGE")
}

// TestContentPlaces: bodies, parts and header fields are shown with what is known of them.
func TestContentPlaces(t *testing.T) {
	w := newWorld(t, nil)
	e := w.withEditor(nil)
	alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
	text := base64.StdEncoding.EncodeToString([]byte("hello"))
	multi := "--b1\r\nContent-Type: text/plain\r\n\r\none\r\n--b1\r\nContent-Type: application/sdp\r\n\r\n" + alice.sdp(4000) +
		"\r\n--b1\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\ntwo\r\n--b1--\r\n"
	steps := []struct {
		name, method, line, contentType, body string
		want                                  []Content
	}{
		{"outside of a dialog", "MESSAGE", "", "text/plain; charset=UTF-8", "hi",
			[]Content{{Type: []byte("text/plain; charset=UTF-8"), Body: []byte("hi")}}},
		{"parts", "MESSAGE", "", "multipart/mixed;boundary=b1", multi,
			[]Content{{Type: []byte("text/plain"), Body: []byte("one")}, {Type: []byte("text/html"), Body: []byte("two")}}},
		{"header field", "INFO", "ms-text-format: text/plain; charset=UTF-8;msgr=AA==;ms-body=" + text, "", "",
			[]Content{{Type: []byte("text/plain; charset=UTF-8;msgr=AA=="), Body: []byte("hello"), Header: true}}},
		{"broken base64", "INFO", "MS-Text-Format: text/plain;ms-body=" + text[:3] + "-" + strings.TrimRight(text[3:], "="), "", "",
			[]Content{{Type: []byte("text/plain"), Body: []byte("hello"), Header: true}}},
		{"other methods", "PUBLISH", "", "application/pidf+xml", "<presence/>", nil},
		{"a description", "MESSAGE", "", "application/sdp", alice.sdp(4000), nil},
		{"encoded", "MESSAGE", "Content-Encoding: gzip", "text/plain", "\x1f\x8b",
			[]Content{{Type: []byte("text/plain"), Body: []byte("\x1f\x8b")}}},
	}
	for _, s := range steps {
		d := alice.dial("sip:bob@example.com")
		var extra []string
		if s.line != "" {
			extra = []string{s.line}
		}
		raw := d.text(s.method, "", extra...)
		if s.body != "" {
			raw = withType(strings.Replace(raw, "Content-Length: 0\r\n\r\n", "", 1), s.contentType, s.body)
		}
		d.raw(raw)
		req := bob.expect(s.method)
		got := e.take()
		if len(got) != len(s.want) {
			t.Fatalf("%s: %d contents were shown", s.name, len(got))
		}
		for i, c := range got {
			want := s.want[i]
			want.Method, want.CallID, want.From, want.To = s.method, d.callID, "sip:alice@example.com", "sip:bob@example.com"
			want.Sender = ContentParty{Network: "inside", Addr: alice.addr.Addr(), Local: ap("10.0.0.1:1").Addr()}
			want.Receiver = ContentParty{Network: "outside", Addr: bob.addr.Addr(), Local: ap("198.51.100.1:1").Addr(), Trusted: true}
			if string(c.Type) != string(want.Type) || string(c.Body) != string(want.Body) {
				t.Errorf("%s: %s %q", s.name, c.Type, c.Body)
			}
			c.Type, c.Body, want.Type, want.Body = nil, nil, nil, nil
			if c.Sender != want.Sender || c.Receiver != want.Receiver || c.Header != want.Header || c.CallID != want.CallID ||
				c.From != want.From || c.To != want.To || c.Method != want.Method || c.Signed {
				t.Errorf("%s: %+v, want %+v", s.name, c, want)
			}
		}
		bob.reply(req, nil, 200, "")
		alice.expect("200")
	}
	w.drops("content_encoded", 1)
	w.clean()
}

// TestContentEdited: bodies, parts, header fields and their types are replaced, and nothing else.
func TestContentEdited(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	e := w.withEditor(func(c Content) Verdict {
		v := Verdict{Body: []byte("other " + string(c.Body)), Reason: "edited"}
		if strings.HasPrefix(string(c.Type), "text/x-msmsgsinvite") {
			v.Type = "text/plain"
		}
		return v
	})
	d := alice.dial("sip:bob@example.com")
	d.raw(d.text("INVITE", alice.sdp(4000), "ms-text-format: text/x-msmsgsinvite; charset=UTF-8;ms-body="+base64.StdEncoding.EncodeToString([]byte("file"))))
	req := bob.expect("INVITE")
	if want := "text/plain;ms-body=" + base64.StdEncoding.EncodeToString([]byte("other file")); req.get("ms-text-format") != want {
		t.Errorf("%s, want %s", req.get("ms-text-format"), want)
	}
	if !strings.Contains(req.body, "198.51.100.1") {
		t.Errorf("the description is not rewritten:\n%s", req.body)
	}
	b := bob.answered(req)
	bob.reply(req, b, 200, bob.sdp(6000), "ms-text-format: text/plain;ms-body=aGk=")
	got := alice.expect("200")
	if want := "text/plain;ms-body=" + base64.StdEncoding.EncodeToString([]byte("other hi")); got.get("ms-text-format") != want {
		t.Errorf("%s, want %s", got.get("ms-text-format"), want)
	}
	d.learn(got)
	d.send("ACK", "")
	bob.expect("ACK")
	in := d.instant(bob, "multipart/alternative;boundary=b1",
		"--b1\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\none\r\n--b1\r\nContent-Type: application/sdp\r\n\r\n"+alice.sdp(4000)+"\r\n--b1--\r\n")
	if want := "--b1\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nother one\r\n--b1\r\nContent-Type: application/sdp\r\n\r\nv=0"; !strings.HasPrefix(in.body, want) {
		t.Errorf("body:\n%s", in.body)
	}
	if strings.Contains(in.body, "10.0.0.5") {
		t.Errorf("the part with a description is not rewritten:\n%s", in.body)
	}
	bob.reply(in, nil, 200, "")
	alice.expect("200")
	in = d.instant(bob, "text/x-msmsgsinvite; charset=UTF-8", "x")
	if in.get("Content-Type") != "text/plain" || in.body != "other x" || in.get("Content-Length") != "7" {
		t.Errorf("%s", in.raw)
	}
	bob.reply(in, nil, 200, "")
	alice.expect("200")
	back := b.instant(alice, "text/plain", "y")
	if back.body != "other y" {
		t.Errorf("%s", back.raw)
	}
	alice.reply(back, nil, 200, "")
	bob.expect("200")
	d.bye(b)
	if len(e.ended) != 1 || e.ended[0] != d.callID {
		t.Errorf("ended: %v", e.ended)
	}
	w.drops("edited", 5)
	w.clean()
}

// TestContentRefused: a refusal goes back with its warning and the body, and nothing goes on; on a signed leg
// it would be lost, so the message goes on as the editor has left it.
func TestContentRefused(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
	w.withEditor(func(c Content) Verdict {
		v := Verdict{Refuse: 606, Warning: `309 edge.example.org "not here"`, EchoBody: true, Reason: "refused"}
		if c.Signed {
			v.Body = []byte("denied")
		}
		return v
	})
	d := alice.dial("sip:bob@example.com")
	d.raw(withType(strings.Replace(d.text("MESSAGE", ""), "Content-Length: 0\r\n\r\n", "", 1), "text/x-msmsgsinvite; charset=UTF-8", "Invitation-Command: INVITE\r\n"))
	got := alice.expect("606")
	if got.get("Warning") != `309 edge.example.org "not here"` || got.body != "Invitation-Command: INVITE\r\n" ||
		got.get("Content-Type") != "text/x-msmsgsinvite; charset=UTF-8" || got.get("Content-Length") != "28" {
		t.Errorf("%s", got.raw)
	}
	bob.nothing()
	d = alice.dial("sip:bob@example.com")
	d.raw(d.text("INVITE", alice.sdp(4000), "ms-text-format: text/plain;ms-body=aGk="))
	alice.expect("606")
	bob.nothing()
	if n := w.opener.Count(); n != 0 {
		t.Errorf("%d pinholes", n)
	}
	d = alice.dial("sip:bob@example.com")
	if in := d.instant(bob, "text/plain", "hi", sign("s1")); in.body != "denied" {
		t.Errorf("%s", in.raw)
	}
	d = alice.dial("sip:bob@example.com")
	if in := d.instant(bob, "text/plain", "this client has signed before"); in.body != "denied" {
		t.Errorf("%s", in.raw)
	}
	w.drops("refused", 4)
	w.clean()
}

// TestContentConnectionLost: the end of the connection by which contents came is told, once.
func TestContentConnectionLost(t *testing.T) {
	w := newWorld(t, nil)
	e := w.withEditor(nil)
	alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
	d := alice.dial("sip:bob@example.com")
	bob.reply(d.instant(bob, "text/plain", "hi"), nil, 200, "")
	alice.expect("200")
	w.hangUp(alice.addr)
	if want := d.callID + " sip:alice@example.com sip:bob@example.com"; len(e.lost) != 1 || e.lost[0] != want {
		t.Errorf("lost: %v", e.lost)
	}
	// Long after, nobody wants to know.
	d = alice.dial("sip:bob@example.com")
	bob.reply(d.instant(bob, "text/plain", "hi"), nil, 200, "")
	alice.expect("200")
	w.after(callLife + time.Minute)
	w.hangUp(alice.addr)
	if len(e.lost) != 1 {
		t.Errorf("lost: %v", e.lost)
	}
	w.clean()
}

// TestContentPartEncodings: a part in base64 or quoted-printable is shown as it is read, and encoded again.
func TestContentPartEncodings(t *testing.T) {
	for _, c := range []struct{ encoding, in, shown, out string }{
		{"base64", "aGkg\r\ndGhlcmU=", "hi there", base64.StdEncoding.EncodeToString([]byte("no"))},
		{"Quoted-Printable", "h=69 there=\r\n!", "hi there!", "no"},
		{"8bit", "hi", "hi", "no"},
		{"x-uuencode", "hi", "hi", "no"},
	} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		e := w.withEditor(func(Content) Verdict { return Verdict{Body: []byte("no")} })
		body := "--b\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: " + c.encoding + "\r\n\r\n" + c.in + "\r\n--b--\r\n"
		got := alice.dial("sip:bob@example.com").instant(bob, "multipart/mixed;boundary=b", body)
		if !strings.HasSuffix(got.body, "\r\n\r\n"+c.out+"\r\n--b--\r\n") {
			t.Errorf("%s: %s", c.encoding, got.body)
		}
		if seen := e.take(); c.shown == "" && len(seen) != 0 || c.shown != "" && (len(seen) != 1 || string(seen[0].Body) != c.shown) {
			t.Errorf("%s: %d contents", c.encoding, len(seen))
		}
	}
}

// answererFunc answers by a function.
type answererFunc func(Question) (Reply, bool)

func (f answererFunc) Answer(_ time.Time, q Question) (Reply, bool) { return f(q) }

// TestAnswered: a service of the edge answers in place of whom a request is for, with a body or without; what it does not
// answer, and what is signed, goes on.
func TestAnswered(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	var asked []Question
	reply, ok := Reply{Status: 200, Reason: "OK", Type: "application/a+xml", Body: []byte("<a/>\r\n")}, true
	w.core.answers = answererFunc(func(q Question) (Reply, bool) {
		q.Type, q.Body = bytes.Clone(q.Type), bytes.Clone(q.Body)
		asked = append(asked, q)
		return reply, ok
	})
	send := func(method, body string, extra ...string) {
		d := alice.dial("sip:bob@example.com")
		raw := d.text(method, "", extra...)
		if body != "" {
			raw = withType(strings.Replace(raw, "Content-Length: 0\r\n\r\n", "", 1), "application/q+xml; a=b", body)
		}
		w.put(flow.UDP, alice.addr, alice.first, raw)
	}
	send("SERVICE", "<q/>")
	got := alice.expect("200")
	if got.get("Content-Type") != "application/a+xml" || got.body != "<a/>\r\n" || got.get("Content-Length") != "6" {
		t.Errorf("answer %q", got.raw)
	}
	bob.nothing()
	if len(asked) != 1 || asked[0].Method != "SERVICE" || string(asked[0].Type) != "application/q+xml; a=b" || string(asked[0].Body) != "<q/>" ||
		asked[0].From != "sip:alice@example.com" || asked[0].Sender.Network != "inside" || asked[0].Sender.Addr != alice.addr.Addr() {
		t.Errorf("asked %+v", asked)
	}
	reply = Reply{Status: 400, Reason: "Bad Request"}
	send("SERVICE", "<q/>")
	alice.expect("400")
	ok = false
	for _, s := range []struct{ method, body, line string }{{"SERVICE", "<q/>", ""}, {"SERVICE", "", ""}, {"SERVICE", "<q/>", sign("s1")}} {
		ok = s.line != "" // that it would be answered makes no difference then
		var extra []string
		if s.line != "" {
			extra = []string{s.line}
		}
		send(s.method, s.body, extra...)
		req := bob.expect(s.method)
		bob.reply(req, nil, 200, "")
		alice.expect("200")
	}
	w.clean()
}

// TestServiceContent: answers to SERVICE are shown to the editor and edited.
func TestServiceContent(t *testing.T) {
	w := newWorld(t, nil)
	e := w.withEditor(func(c Content) Verdict {
		if c.Status == 0 {
			return Verdict{}
		}
		return Verdict{Body: []byte("<b/>")}
	})
	alice, bob := w.alice(), w.bob()
	alice.dial("sip:bob@example.com").send("SERVICE", "")
	req := bob.expect("SERVICE")
	raw := strings.Replace(bob.response(req, nil, 200, ""), "Content-Length: 0\r\n\r\n", "", 1)
	w.replyBy(bob.proto, bob.addr, withType(raw, "application/a+xml", "<a/>"))
	if got := alice.expect("200"); got.body != "<b/>" || got.get("Content-Length") != "4" {
		t.Errorf("%q", got.raw)
	}
	if seen := e.take(); len(seen) != 1 || seen[0].Method != "SERVICE" || seen[0].Status != 200 || seen[0].Sender.Network != "outside" {
		t.Errorf("%+v", seen)
	}
	w.clean()
}

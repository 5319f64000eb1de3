package sipalg

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edged.dev/edged/pkg/sipalg/flow"
)

// TestMicrosoftUDP: Windows Messenger 5 over UDP (RTC 1.2, 1.3): no branch, no rport, a Contact without a user at
// the port that it sends from.
func TestMicrosoftUDP(t *testing.T) {
	w := newWorld(t, nil)
	alice, server := w.phone("alice", flow.UDP, "10.0.0.5:10586", "10.0.0.1:5060"), w.bob()
	alice.old = true
	const contact = `Contact: <sip:10.0.0.5:10586>;methods="INVITE, MESSAGE, INFO, SUBSCRIBE, OPTIONS, BYE, CANCEL, NOTIFY, ACK, REFER"`
	alice.extra = []string{"User-Agent: RTC/1.3.5470 (Messenger 5.1.0701)"}
	d := alice.signUp()
	d.local = "<sip:alice@example.com>;tag=ca04c139;epid=4f2e395931"
	raw := d.text("REGISTER", "", contact, "Event: registration", "Allow-Events: presence")
	d.raw(raw)
	req := server.expect("REGISTER")
	if req.get("From") != d.local || req.get("Expires") != "" || strings.Contains(req.raw, "10.0.0.5") {
		t.Errorf("%s", req.raw)
	}
	d.raw(raw) // no answer yet: again
	server.nothing()
	server.reply(req, nil, 200, "", "Contact: "+req.get("Contact"), "Expires: 3600")
	if got := alice.expect("200"); got.get("Contact") != strings.TrimPrefix(contact, "Contact: ") || got.get("Expires") != "3600" {
		t.Errorf("%s", got.raw)
	}
	alice.extra = append(alice.extra, contact)
	im := "v=0\r\no=- 0 0 IN IP4 10.0.0.5\r\ns=session\r\nc=IN IP4 10.0.0.5\r\nt=0 0\r\nm=x-ms-message 5060 sip null\r\n"
	b, a := server.call(uriOf(req.get("Contact")), alice, server.sdp(6000), im)
	if n := w.opener.Count(); n != 0 { // a message line is no media
		t.Errorf("%d pinholes", n)
	}
	server.reply(a.instant(server, "text/plain; charset=UTF-8", "hi"), nil, 200, "")
	alice.expect("200")
	alice.reply(b.instant(alice, "text/plain; charset=UTF-8", "hello"), nil, 200, "")
	server.expect("200")
	a.bye(b)
	// It signs out, and its answer goes where it sends from.
	d.send("REGISTER", "", contact, "Expires: 0")
	out := server.expect("REGISTER")
	server.reply(out, nil, 200, "", "Expires: 0")
	alice.expect("200")
	if len(w.core.bindings) != 0 {
		t.Errorf("%d bindings", len(w.core.bindings))
	}
	w.clean()
}

// TestMicrosoftIMURI: im and pres URIs go where a sip URI of the host does.
func TestMicrosoftIMURI(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	for _, uri := range []string{"im:bob@example.com", "pres:bob@example.com", "IM:bob@example.com?subject=x"} {
		d := alice.dial(uri)
		d.remote = "<" + uri + ">"
		d.send("MESSAGE", "")
		req := bob.expect("MESSAGE")
		if req.ruri() != uri {
			t.Errorf("%s became %s", uri, req.ruri())
		}
		bob.reply(req, nil, 200, "")
		alice.expect("200")
	}
	alice.dial("im:bob@elsewhere.example.net").send("MESSAGE", "")
	if len(w.queries) != 1 || w.queries[0].server.Host != "elsewhere.example.net" || w.queries[0].server.Proto != 0 {
		t.Errorf("queries: %v", w.queries)
	}
}

// TestMicrosoftCorpus: requests as Microsoft's own programs wrote them pass, changed only where they must be.
func TestMicrosoftCorpus(t *testing.T) {
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "corpora")
	}
	files, _ := filepath.Glob(filepath.Join(dir, "ms-sip", "*.sip"))
	if len(files) == 0 {
		t.Skipf("SKIP: no corpus ms-sip in %s (set EDGED_CORPORA)", dir)
	}
	passed := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		raw = bytes.ReplaceAll(raw, []byte(";\r\n    maddr"), []byte(";maddr")) // the document breaks a line within a URI
		text := strings.TrimRight(crlf(string(raw)), "\r\n") + "\r\n\r\n"
		if strings.HasPrefix(text, "SIP/2.0") {
			continue
		}
		w := newWorld(t, func(c *Config) { c.Domains["*"] = Domain{Network: "outside", Server: "udp:198.51.100.20:5060"} })
		server := w.bob()

		alice := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
		w.put(flow.TCP, alice.addr, alice.first, text)
		method, _, _ := strings.Cut(text, " ")
		req := server.expect(method)
		server.reply(req, nil, 200, "", "Expires: 60")
		alice.expect("200")
		passed++
		w.drops("answer_unsigned", 0)
	}
	if passed < 4 {
		t.Errorf("%d requests passed", passed)
	}
}

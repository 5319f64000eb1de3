package sipalg

import (
	"encoding/base64"
	"strings"
	"testing"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/imfilter"
)

// TestIMLinks: what becomes of a link in a message, a part and an INVITE's text, by mode and by whether the sender
// signs.
func TestIMLinks(t *testing.T) {
	const text, safe = "see http://evil.example now", "see http://example.org now"
	for _, c := range []struct {
		mode          imfilter.Mode
		plain, signed string // what arrives; "" is a refusal
		counter       string
	}{
		{imfilter.Off, text, text, ""},
		{imfilter.Allow, text, text, "im_url_seen"},
		{imfilter.Defuse, "see _http://evil.example now", "see _http://evil.example now", "im_url_defused"},
		{imfilter.Block, "", string(imfilter.Notice(nil)), "im_url_blocked"},
	} {
		w := newWorld(t, func(cfg *Config) {
			cfg.IMURLs = imfilter.Config{Mode: c.mode, Allow: []string{"example.org"}, From: []string{"inside"}}
		})
		w.edits = true
		plain, signed := w.phone("plain", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.phone("signed", flow.TCP, "10.0.0.6:45062", "10.0.0.1:5060")
		bob := w.bob()
		for _, p := range []*phone{plain, signed} {
			want := c.plain
			var extra []string
			if p == signed {
				want, extra = c.signed, []string{sign("m1")}
			}
			post := func(contentType, body string, extra ...string) *msg {
				d := p.dial("sip:bob@example.com")
				raw := strings.Replace(d.text("MESSAGE", "", extra...), "Content-Length: 0\r\n\r\n", "", 1)
				d.raw(withType(raw, contentType, body))
				if want == "" && body != safe {
					if got := p.expect("606"); !strings.HasPrefix(got.get("Warning"), "309 ") {
						t.Errorf("%s", got.raw)
					}
					bob.nothing()
					return nil
				}
				req := bob.expect("MESSAGE")
				bob.reply(req, nil, 200, "")
				p.expect("200")
				return req
			}
			if got := post("text/plain; charset=UTF-8", text, extra...); got != nil && got.body != want {
				t.Errorf("%s: %q, want %q", c.mode, got.body, want)
			}
			if got := post("multipart/mixed;boundary=b", "--b\r\nContent-Type: text/plain\r\n\r\n"+text+"\r\n--b--\r\n"); got != nil && !strings.Contains(got.body, "\r\n\r\n"+want+"\r\n--b--") {
				t.Errorf("%s: %q, want %q", c.mode, got.body, want)
			}
			if got := post("text/plain", safe); got == nil || got.body != safe {
				t.Errorf("%s: an allowed link", c.mode)
			}
			d := p.dial("sip:bob@example.com")
			d.raw(d.text("INVITE", p.sdp(4000), "ms-text-format: text/plain; charset=UTF-8;ms-body="+base64.StdEncoding.EncodeToString([]byte(text))))
			if want == "" {
				p.expect("606")
				bob.nothing()
				continue
			}
			if got := bob.expect("INVITE").get("ms-text-format"); got != "text/plain; charset=UTF-8;ms-body="+base64.StdEncoding.EncodeToString([]byte(want)) {
				t.Errorf("%s: %s, want %q", c.mode, got, want)
			}
		}
		if c.counter != "" {
			w.drops(c.counter, 6)
		}
		w.clean()
	}
}

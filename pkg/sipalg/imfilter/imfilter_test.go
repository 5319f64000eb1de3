package imfilter

import (
	"bytes"
	"strings"
	"testing"
)

func TestLook(t *testing.T) {
	f := New(Config{Mode: Defuse, Allow: []string{"Example.org", "https://docs.example.net/public", "https://intra.example.net"}})
	for _, c := range []struct{ mediaType, in, want string }{
		{"text/plain; charset=UTF-8", "see http://evil.example/x and HTTPS://evil.example", "see _http://evil.example/x and _HTTPS://evil.example"},
		{"", "www.evil.example, ftp.evil.example; mailto:x@evil.example", "_www.evil.example, _ftp.evil.example; _mailto:x@evil.example"},
		{"text/plain", "no link: http and www. and file: x, 10:30, a.b, swww.x, http: //x", ""},
		{"text/plain", "_http://evil.example is none any more", ""},
		{"text/plain", "xhttp://evil.example (http://a,http://b)", "x_http://evil.example (_http://a,_http://b)"},
		{"text/plain", `file:\\server\share msnim:chat?x callto://x javascript:alert(1)`, `_file:\\server\share msnim:chat?x _callto://x _javascript:alert(1)`},
		{"text/plain", "http://example.org/x http://a.example.org:80 www.example.org user:pw@example.org", ""},
		{"text/plain", "http://example.org@evil.example http://example.org.evil.example http://evil.example/example.org http://evilexample.org",
			"_http://example.org@evil.example _http://example.org.evil.example _http://evil.example/example.org _http://evilexample.org"},
		{"text/plain", `http://evil.example\@example.org`, `_http://evil.example\@example.org`},
		{"text/plain", "https://docs.example.net/public/1 https://docs.example.net/secret https://intra.example.net/ https://intra.example.net.evil/",
			"https://docs.example.net/public/1 _https://docs.example.net/secret https://intra.example.net/ _https://intra.example.net.evil/"},
		{"text/html", `<a href="http://evil.example">x</a><img src=&#104;tt&#x70;&colon;//evil>`, `<a href="_http://evil.example">x</a><img src=_&#104;tt&#x70;&colon;//evil>`},
		{"text/html", `<a href="ht&#10;tp://evil">&amp;www.evil.example</a>`, `<a href="_ht&#10;tp://evil">&amp;_www.evil.example</a>`},
		{"text/rtf", `{\rtf1\ansi\cf1 http://evil.example\par www.evil.example}`, `{\rtf1\ansi\cf1 _http://evil.example\par _www.evil.example}`},
		{"text/rtf", `{\rtf1 \'68ttp://evil ht\b0 tp://evil \u104?ttp://evil}`, `{\rtf1 _\'68ttp://evil _ht\b0 tp://evil _\u104?ttp://evil}`},
		{"text / plain", "http://x", "_http://x"},
		{"text/html5", "&#104;ttp://x", "_&#104;ttp://x"},
		{"text/plain; charset=UTF-16LE", "h\x00t\x00t\x00p\x00:\x00/\x00/\x00x\x00", "_h\x00t\x00t\x00p\x00:\x00/\x00/\x00x\x00"},
		{"text/x-msmsgsinvite", "Application-Name: http://x", ""},
		{"application/x-ms-ink", "http://x", ""},
	} {
		got, n := f.Look([]byte(c.mediaType), []byte(c.in))
		if c.want == "" && (got != nil || n != 0) || c.want != "" && string(got) != c.want {
			t.Errorf("%s %q: %d\n%q, want\n%q", c.mediaType, c.in, n, got, c.want)
		}
		if n != len(c.want)-len(c.in) && c.want != "" {
			t.Errorf("%q: %d links", c.in, n)
		}
	}
}

func TestModes(t *testing.T) {
	if New(Config{}) != nil || New(Config{Mode: Off}) != nil {
		t.Error("a filter that is off")
	}
	f := New(Config{Mode: Block, From: []string{"outside"}})
	if f.Mode() != Block || !f.From("outside") || f.From("inside") || !New(Config{Mode: Allow}).From("inside") {
		t.Error("networks")
	}
	if got := string(Notice([]byte("text/rtf; x=y"))); !strings.HasPrefix(got, `{\rtf1`) || !strings.Contains(got, notice) {
		t.Error(got)
	}
	if got := string(Notice([]byte("text/html"))); got != notice {
		t.Error(got)
	}
}

func TestValidate(t *testing.T) {
	err := Config{Mode: "maybe", Allow: []string{"example.org", "*.example.org", "https://", "https://a b/"}, From: []string{"up"}}.Validate(nil)
	for _, want := range []string{"im_urls.mode", "im_urls.allow[1]", "im_urls.allow[2]", "im_urls.allow[3]", "im_urls.from[0]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault at %s in %v", want, err)
		}
	}
	if err := (Config{Mode: Defuse, Allow: []string{"example.org", "https://example.org:8443/x"}}).Validate(nil); err != nil {
		t.Error(err)
	}
}

// FuzzLook: what is defused has no link left and is otherwise what it was.
func FuzzLook(f *testing.F) {
	for _, s := range []string{"http://x www.x mailto:x", "<a href=&#104;ttp://x>", `{\rtf1 \u104?ttp://x\par\'77ww.x}`, "https://example.org/x"} {
		for k := range byte(3) {
			f.Add(k, []byte(s))
		}
	}
	fl := New(Config{Mode: Defuse, Allow: []string{"example.org"}})
	f.Fuzz(func(t *testing.T, k byte, text []byte) {
		mediaType := []byte([]string{"text/plain", "text/html", "text/rtf"}[k%3])
		before := bytes.Clone(text)
		out, n := fl.Look(mediaType, text)
		if !bytes.Equal(before, text) {
			t.Fatal("the text was changed")
		}
		if n == 0 {
			return
		}
		if len(out) != len(text)+n {
			t.Fatalf("%d links, %d bytes more", n, len(out)-len(text))
		}
		j := 0 // text is left where the underscores are taken out again
		for i := range out {
			if j < len(text) && out[i] == text[j] {
				j++
			} else if out[i] != '_' {
				t.Fatalf("%q became %q", text, out)
			}
		}
		if j != len(text) {
			t.Fatalf("%q became %q", text, out)
		}
		if again, left := fl.Look(mediaType, out); left != 0 {
			t.Fatalf("%q has %d links left: %q", out, left, again)
		}
	})
}

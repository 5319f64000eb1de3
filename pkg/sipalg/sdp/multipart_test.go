package sdp

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// ocs is the body of an OCS 2007 R2 caller: two descriptions, the first for old servers.
const ocs = "preamble 10.0.0.7\r\n" +
	"------=_NextPart_000_0010\r\n" +
	"Content-Type: application/sdp\r\n" +
	"Content-Transfer-Encoding: 7bit\r\n" +
	"Content-Disposition: session; handling=optional; ms-proxy-2007fallback\r\n" +
	"\r\n" +
	"o=- 0 0 IN IP4 10.0.0.7\r\ns=session\r\nc=IN IP4 10.0.0.7\r\nm=audio 31000 RTP/AVP 0\r\n\r\n" +
	"------=_NextPart_000_0010 \r\n" +
	"Content-Length: 95\r\n" +
	"content-type : application/SDP;\r\n charset=utf-8\r\n" +
	"\r\n" +
	"v=0\r\no=- 0 0 IN IP4 10.0.0.7\r\ns=session\r\nc=IN IP4 10.0.0.7\r\nt=0 0\r\nm=audio 31002 RTP/SAVP 0 8\r\n\r\n" +
	"------=_NextPart_000_0010--\r\nepilogue 10.0.0.7"

const ocsType = `multipart/alternative; type="a;b";boundary="----=_NextPart_000_0010"`

// mask replaces addresses as a rewrite would, by longer ones.
func mask(part, dst []byte) ([]byte, error) {
	return append(dst, bytes.ReplaceAll(part, []byte("10.0.0.7"), []byte("203.0.113.250"))...), nil
}

func TestRewriteBodyOCS(t *testing.T) {
	out, changed, err := RewriteBody([]byte("head"), []byte(ocsType), []byte(ocs), mask)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	inner := strings.TrimSuffix(strings.TrimPrefix(ocs, "preamble 10.0.0.7"), "epilogue 10.0.0.7")
	want := "headpreamble 10.0.0.7" + strings.ReplaceAll(inner, "10.0.0.7", "203.0.113.250") + "epilogue 10.0.0.7"
	want = strings.Replace(want, "Content-Length: 95", "Content-Length: 105", 1)
	if string(out) != want {
		t.Errorf("got:\n%s\nwant:\n%s", out, want)
	}
	same, changed, err := RewriteBody(nil, []byte(ocsType), []byte(ocs), func(p, dst []byte) ([]byte, error) { return append(dst, p...), nil })
	if err != nil || changed || string(same) != ocs {
		t.Errorf("identity: %v %v\n%s", changed, err, same)
	}
}

func TestRewriteBodyErrors(t *testing.T) {
	boom := errors.New("boom")
	out, changed, err := RewriteBody([]byte("head"), []byte(ocsType), []byte(ocs), func(_, dst []byte) ([]byte, error) { return dst, boom })
	if string(out) != "head" || changed || !errors.Is(err, boom) {
		t.Errorf("got %q %v %v", out, changed, err)
	}
}

// parts formats what EachPart yields.
func parts(contentType, body string) (list []string, reason string) {
	err := EachPart([]byte(contentType), []byte(body), func(p Part) bool {
		list = append(list, fmt.Sprintf("%d %s|%s|%s", p.Depth, mediaType(p.ContentType), p.Disposition, p.Body))
		return true
	})
	var e *Error
	if errors.As(err, &e) {
		reason = e.Reason
	}
	return list, reason
}

func TestEachPart(t *testing.T) {
	nest := func(depth int) (contentType, body string) {
		contentType, body = "application/sdp", "v=0"
		for i := range depth {
			b := fmt.Sprintf("b%d", i)
			contentType, body = "multipart/mixed;boundary="+b, "--"+b+"\r\nContent-Type: "+contentType+"\r\n\r\n"+body+"\r\n--"+b+"--"
		}
		return contentType, body
	}
	type2, body2 := nest(2)
	type5, body5 := nest(5)
	for _, c := range []struct {
		name, contentType, body string
		want                    []string
		reason                  string
	}{
		{"plain", "application/sdp", "v=0\r\n", []string{"0 application/sdp||v=0\r\n"}, ""},
		{"other", "text/plain", "hi", []string{"0 text/plain||hi"}, ""},
		{"encrypted is left whole", "multipart/encrypted;boundary=b", "--b\r\n\r\nx\r\n--b--", []string{"0 multipart/encrypted||--b\r\n\r\nx\r\n--b--"}, ""},
		{"LF, no last delimiter", "Multipart/Mixed; boundary=b", "--b\nContent-Disposition: render\n\nx\ny\n--b\n\nz", []string{"1 |render|x\ny", "1 ||z"}, ""},
		{"empty parts", "multipart/mixed;boundary=b", "--b\r\n--b\r\n\r\n\r\n--b--", []string{"1 ||", "1 ||"}, ""},
		{"boundary inside", "multipart/mixed;boundary=b", "--b\r\n\r\n--bc\r\n --b\r\n--b x\r\n--b--", []string{"1 ||--bc\r\n --b\r\n--b x"}, ""},
		{"nested", type2, body2, []string{"2 application/sdp||v=0"}, ""},
		{"too deep", type5, body5, nil, "too_deep"},
		{"no boundary", "multipart/mixed", "--b\r\n\r\nx", nil, "no_boundary"},
		{"long boundary", "multipart/mixed;boundary=" + strings.Repeat("b", 300), "", nil, "no_boundary"},
		{"no parts", "multipart/mixed;boundary=b", "v=0\r\nc=IN IP4 10.0.0.7\r\n", nil, "no_parts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, reason := parts(c.contentType, c.body)
			if !slices.Equal(got, c.want) || reason != c.reason {
				t.Errorf("got %q %q, want %q %q", got, reason, c.want, c.reason)
			}
		})
	}
}

func TestEachPartBounds(t *testing.T) {
	body := strings.Repeat("--b\r\n\r\nx\r\n", 40)
	if got, reason := parts("multipart/mixed;boundary=b", body); len(got) != maxParts || reason != "too_many_parts" {
		t.Errorf("%d parts, %q", len(got), reason)
	}
	n := 0
	err := EachPart([]byte("multipart/mixed;boundary=b"), []byte(body), func(Part) bool { n++; return n < 3 })
	if n != 3 || err != nil {
		t.Errorf("stopped after %d: %v", n, err)
	}
}

func TestEncodedPart(t *testing.T) {
	body := "--b\r\nContent-Type: application/sdp\r\nContent-Transfer-Encoding: base64\r\n\r\ndj0w\r\n--b--"
	_, _, err := RewriteBody(nil, []byte("multipart/mixed;boundary=b"), []byte(body), mask)
	var e *Error
	if !errors.As(err, &e) || e.Reason != "encoded_part" {
		t.Errorf("err = %v", err)
	}
}

// TestRewriteBodyNested corrects the lengths of the part and of the multipart around it.
func TestRewriteBodyNested(t *testing.T) {
	inner := "--i\r\nContent-Type: application/sdp\r\nContent-Length: 8\r\n\r\n10.0.0.7\r\n--i--"
	body := fmt.Sprintf("--o\r\nContent-Type: multipart/related;boundary=i\r\nContent-Length: %d\r\nX: y\r\n\r\n%s\r\n--o\r\nContent-Length: 8\r\n\r\n10.0.0.7\r\n--o--", len(inner), inner)
	out, _, err := RewriteBody(nil, []byte("multipart/mixed;boundary=o"), []byte(body), mask)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(body, "Content-Length: 8\r\n\r\n10.0.0.7", "Content-Length: 13\r\n\r\n203.0.113.250", 1)
	want = strings.Replace(want, fmt.Sprintf(": %d\r\nX", len(inner)), fmt.Sprintf(": %d\r\nX", len(inner)+6), 1)
	if string(out) != want {
		t.Errorf("got:\n%s\nwant:\n%s", out, want)
	}
}

// TestPreferred: of several descriptions that say the same the last one counts, else the first.
func TestPreferred(t *testing.T) {
	part := func(disposition, sdp string) string {
		return "--b\r\nContent-Type: application/sdp\r\n" + disposition + "\r\n" + sdp + "\r\n"
	}
	const fallback = "Content-Disposition: session; handling=optional; Ms-Proxy-2007Fallback\r\n"
	text := "--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
	for _, tt := range []struct {
		name, contentType, body, want string
		number                        int
	}{
		{"single", "application/sdp", "v=0", "v=0", 0},
		{"none", "text/plain", "v=0", "", -1},
		{"alternative", "multipart/alternative;boundary=b", part("", "v=1") + text + part("", "v=2") + "--b--", "v=2", 1},
		{"mixed", "multipart/mixed;boundary=b", text + part("", "v=1") + part("", "v=2") + "--b--", "v=1", 0},
		{"marked", "multipart/mixed;boundary=b", part(fallback, "v=1") + part("", "v=2") + text + "--b--", "v=2", 1},
		{"only a fallback", "multipart/mixed;boundary=b", part(fallback, "v=1") + text + "--b--", "v=1", 0},
	} {
		got, number, err := Preferred([]byte(tt.contentType), []byte(tt.body))
		if err != nil || string(got) != tt.want || number != tt.number {
			t.Errorf("%s: %q, %d, %v", tt.name, got, number, err)
		}
	}
	if _, number, err := Preferred([]byte("multipart/mixed"), nil); err == nil || number != -1 {
		t.Error("no error without a boundary")
	}
}

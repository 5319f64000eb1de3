package sdp

import (
	"bytes"
	"testing"
)

// TestEditParts: parts are replaced where they stand; descriptions, encoded parts and boundaries stay.
func TestEditParts(t *testing.T) {
	const inner = "--i\r\nContent-Type: text/html\r\n\r\nthree\r\n--i--\r\n"
	body := "preamble\r\n--b\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\none\r\n--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n" +
		"\r\n--b\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\r\nAAAA\r\n--b\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n" + inner + "--b--\r\nepilogue"
	want := "preamble\r\n--b\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\n[one]!\r\n--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n" +
		"\r\n--b\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\r\n[AAAA]!\r\n--b\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n" +
		"--i\r\nContent-Type: text/html\r\n\r\n[three]!\r\n--i--\r\n--b--\r\nepilogue"
	f := func(p Part) []byte { return append(append([]byte("["), p.Body...), "]!"...) }
	got, changed, err := EditParts(nil, []byte("multipart/mixed; boundary=b"), []byte(body), f)
	if err != nil || !changed || string(got) != want {
		t.Errorf("%v %v\n%s\nwant\n%s", changed, err, got, want)
	}
	got, changed, err = EditParts([]byte("x"), []byte("text/plain"), []byte("one"), func(Part) []byte { return nil })
	if err != nil || changed || string(got) != "xone" {
		t.Errorf("%q %v %v", got, changed, err)
	}
	if got, _, err := EditParts([]byte("x"), []byte("multipart/mixed; boundary=b"), []byte("none"), f); err == nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzEditParts(f *testing.F) {
	f.Add("multipart/mixed; boundary=b", []byte("--b\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\none\r\n--b--\r\n"))
	f.Add("multipart/alternative;boundary=\"b\"", []byte("--b\n\nx\n--b\nContent-Type: multipart/mixed;boundary=c\n\n--c\n\ny\n--c--\n--b--"))
	f.Add("text/plain", []byte("hello"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		var seen [][]byte
		same, changed, err := EditParts(nil, []byte(contentType), body, func(p Part) []byte {
			seen = append(seen, p.Body)
			return p.Body
		})
		if err != nil {
			return
		}
		if changed || !bytes.Equal(same, body) {
			t.Fatalf("%q became %q though every part stays", body, same)
		}
		total := 0
		for _, s := range seen {
			total += len(s)
		}
		if total > len(body) {
			t.Fatalf("%d bytes in parts of %d", total, len(body))
		}
	})
}

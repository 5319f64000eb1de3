package sipmsg

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// frames feeds chunks and returns what was found, one word per finding.
func frames(t testing.TB, f *Framer, chunks ...[]byte) (found []string, err error) {
	t.Helper()
	var buf []byte
	for _, c := range chunks {
		buf = append(buf, c...)
		for {
			n, kind, err := f.Next(buf)
			if err != nil {
				return found, err
			}
			if kind == KindIncomplete {
				if n != 0 {
					t.Fatalf("incomplete with n = %d", n)
				}
				break
			}
			switch kind {
			case KindPing:
				found = append(found, "ping")
			case KindCRLF:
				found = append(found, "crlf")
			default:
				found = append(found, string(buf[:n]))
			}
			buf = buf[n:]
		}
	}
	if len(buf) > 0 {
		found = append(found, fmt.Sprintf("%d left", len(buf)))
	}
	return found, nil
}

func bytewise(b []byte) [][]byte {
	var out [][]byte
	for i := range b {
		out = append(out, b[i:i+1])
	}
	return out
}

func TestFramerCuts(t *testing.T) {
	one := append(base("Content-Length: 9"), "\r\n\r\nbody\x00"...)
	two := append(base("l:\r\n 4"), "\xff\xfe\x00\n"...)
	all := slices.Concat(one, two, one)
	want := []string{string(one), string(two), string(one)}
	for i := range len(all) + 1 {
		got, err := frames(t, &Framer{}, all[:i], all[i:])
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("cut at %d: %v %q", i, err, got)
		}
	}
	if got, err := frames(t, &Framer{}, bytewise(all)...); err != nil || !slices.Equal(got, want) {
		t.Errorf("byte by byte: %v %q", err, got)
	}
	if got, err := frames(t, &Framer{}, all); err != nil || !slices.Equal(got, want) {
		t.Errorf("at once: %v %q", err, got)
	}
}

func TestFramerPings(t *testing.T) {
	msg := base("Content-Length: 0")
	m := string(msg)
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"\r\n\r\n" + m + "\r\n\r\n" + m + "\r\n\r\n", []string{"ping", m, "ping", m, "ping"}},
		{"\r\n" + m + "\r\n" + m + "\r\n", []string{"crlf", m, "crlf", m, "crlf"}},
		{"\r\n\r\n\r\n" + m, []string{"ping", "crlf", m}},
		{"\r\n\r\n\r\n\r\n", []string{"ping", "ping"}},
	} {
		got, err := frames(t, &Framer{}, []byte(c.in))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %v\n got %q\nwant %q", c.in, err, got, c.want)
		}
		// In pieces a ping shows as a CRLF and then a ping, so that a pong is never waited for.
		got, err = frames(t, &Framer{}, bytewise([]byte(c.in))...)
		got = slices.DeleteFunc(got, func(s string) bool { return s == "crlf" })
		want := slices.DeleteFunc(slices.Clone(c.want), func(s string) bool { return s == "crlf" })
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q byte by byte: %v\n got %q\nwant %q", c.in, err, got, want)
		}
	}
}

func TestFramerBig(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcde\n"), 60*1024/16)
	msg := append(base(fmt.Sprintf("Content-Length: %d", len(body))), body...)
	got, err := frames(t, &Framer{}, msg[:100], msg[100:5000], msg[5000:], base("l: 0"))
	if err != nil || len(got) != 2 || got[0] != string(msg) {
		t.Errorf("%v, %d found", err, len(got))
	}
}

func TestFramerErrors(t *testing.T) {
	for _, c := range []struct {
		in     []byte
		max    int
		status int
		reason string
	}{
		{base(), 0, 400, "missing_content_length"},
		{base("Content-Length: -1"), 0, 400, "bad_content_length"},
		{base("Content-Length: 1a"), 0, 400, "bad_content_length"},
		{base("Content-Length: 18446744073709551617"), 0, 400, "bad_content_length"},
		{base("Content-Length: 2147483648"), 0, 400, "bad_content_length"},
		{base("Content-Length: 1", "l: 2"), 0, 400, "content_length_differs"},
		{base("Content-Length: 65535"), 0, 513, "too_large"},
		{base("Content-Length: 600"), 700, 513, "too_large"},
		{append([]byte("OPTIONS "), bytes.Repeat([]byte("x"), 70000)...), 0, 513, "too_large"},
		{[]byte("\x16\x03\x01\x02\x00"), 0, 0, "garbage"},
		{[]byte("\x00"), 0, 0, "garbage"},
		{[]byte("\n"), 0, 0, "garbage"},
	} {
		f := Framer{Max: c.max}
		_, err := frames(t, &f, c.in)
		var e *Error
		if !errors.As(err, &e) || e.Status != c.status || e.Reason != c.reason {
			t.Errorf("%.60q: got %v, want %d %s", c.in, err, c.status, c.reason)
		}
		if _, _, again := f.Next([]byte("x")); !errors.Is(again, err) {
			t.Errorf("%.60q: then %v", c.in, again)
		}
	}
	f := Framer{Max: 700}
	if _, err := frames(t, &f, base("Content-Length: 400"), []byte(strings.Repeat("x", 400))); err != nil {
		t.Errorf("below the limit: %v", err)
	}
}

// TestFramerDribble hides an end of header fields in bytes that were looked at
// already: it is found only by a framer that looks at them again, for which a
// message that comes byte by byte costs the square of its length.
func TestFramerDribble(t *testing.T) {
	msg := base("X: "+strings.Repeat("y", 60000), "l: 0")
	trap := bytes.Clone(msg)
	copy(trap[1000:], "\r\n\r\n")
	var f Framer
	for i := 1; i < len(msg); i++ {
		buf := msg[:i]
		if i > 1010 {
			buf = trap[:i]
		}
		if _, kind, err := f.Next(buf); err != nil || kind != KindIncomplete {
			t.Fatalf("at %d: %v %v", i, kind, err)
		}
	}
	if n, kind, err := f.Next(msg); n != len(msg) || kind != KindMessage || err != nil {
		t.Errorf("%d %v %v", n, kind, err)
	}
}

package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestNames: what senders call their files is nobody's path, no option of a command, and nothing that a terminal obeys
// or shows in another order.
func TestNames(t *testing.T) {
	in := &inboxDir{dir: t.TempDir()}
	for escaped, want := range map[string]string{
		"..%2F..%2Fetc%2Fpasswd":   "passwd",
		"..%5C..%5Ca.txt":          "a.txt",
		".edged-inbox":             "edged-inbox",
		"..":                       "message-7",
		"":                         "message-7",
		"%zz":                      "message-7",
		"-rf":                      "rf",
		"a%0Ab%1B[2J":              "a_b_[2J",
		"a%C2%9B2Jb":               "a_2Jb",
		"a%E2%80%AEfdp.exe":        "a_fdp.exe",
		"%E4%BE%8B%C3%A9 x.txt":    "例é x.txt",
		"%FF%FE":                   "__",
		strings.Repeat("x", 300):   "message-7",
		"%2e%2e%2f.%2f-.-hidden":   "hidden",
		"C:%5CUsers%5Cx%5Cbla.doc": "bla.doc",
	} {
		if got := in.freeName(escaped, 7); got != want {
			t.Errorf("%q: %q, want %q", escaped, got, want)
		}
	}
}

// TestInboxAlone: two commands that fetch to one folder would write the same files.
func TestInboxAlone(t *testing.T) {
	in := &inboxDir{dir: t.TempDir(), client: &messagesClient{&http.Client{Transport: &fakeInbox{}}}, out: io.Discard, progress: io.Discard}
	alone, err := in.lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.run(t.Context(), false); err == nil || !strings.Contains(err.Error(), "another") {
		t.Errorf("a second one fetches: %v", err)
	}
	alone.Close()
	if err := in.run(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// lingering fails the first request but keeps reading its body, as an HTTP client may, while the second is on its way.
type lingering struct {
	first io.ReadCloser
	got   bytes.Buffer
}

func (l *lingering) RoundTrip(r *http.Request) (*http.Response, error) {
	if l.first == nil {
		l.first = r.Body
		return nil, errors.New("the connection is gone")
	}
	for n := int64(1000); n == 1000; {
		var err error
		if n, err = io.CopyN(&l.got, r.Body, 1000); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if _, err = io.CopyN(io.Discard, l.first, 10); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
}

// TestSendAgain: an attempt that failed takes nothing from the next one's text.
func TestSendAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text []byte
		for i := range 10_000 {
			text = append(text, byte(i), byte(i>>8))
		}
		o := sendOptions{to: []string{"site-b"}, file: filepath.Join(t.TempDir(), "file"), tries: time.Minute}
		if err := os.WriteFile(o.file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		l := &lingering{}
		if err := o.send(t.Context(), &messagesClient{&http.Client{Transport: l}}, io.Discard, io.Discard); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(l.got.Bytes(), text) {
			t.Errorf("%d of %d octets were sent, or others", l.got.Len(), len(text))
		}
	})
}

// TestSocketForMessages: a socket that nobody serves any more is replaced, a file that was named by mistake is not.
func TestSocketForMessages(t *testing.T) {
	dir := t.TempDir()
	file, left := filepath.Join(dir, "edged.yaml"), filepath.Join(dir, "messages.sock")
	if err := os.WriteFile(file, []byte("state: {}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(t.Context(), file); err == nil {
		t.Error("a file makes room for a socket")
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "state: {}" {
		t.Errorf("the file has %q, %v", text, err)
	}
	for range 2 {
		ln, err := listenUnix(t.Context(), left)
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		ln.Close()
	}
}

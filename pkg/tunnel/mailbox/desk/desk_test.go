package desk

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/mailbox"
	"edged.dev/edged/pkg/tunnel/mailbox/carry"
	"edged.dev/edged/pkg/tunnel/mailbox/letter"
)

// office is a relay with mailboxes, and desks at it.
type office struct {
	t      *testing.T
	server *carry.Server
	ln     net.Listener
	mu     sync.Mutex
	down   bool
	half   bool // streams end in the middle of what the relay sends
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := mailbox.Options{Config: mailbox.Default()}
	o.MinFree, o.MaxSize = 0, 8<<20
	store, err := mailbox.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &office{t: t, ln: ln, server: &carry.Server{
		Store: store, Allow: func(_, _ mailbox.Device) error { return nil }, Log: zap.NewNop(),
		Card: func(b []byte, d mailbox.Device) error { _, err := letter.ReadCard(b, d); return err },
	}}
}

var errDown = errors.New("no relay can be reached")

// site is a device's desk.
type site struct {
	*httptest.Server
	t *testing.T
}

// names are the devices that programs may name.
func names() []string { return []string{"alice", "bob", "carol"} }

func keyOf(t *testing.T, name string) *letter.Key {
	t.Helper()
	private := ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%-32s", name)))
	k, err := letter.NewKey(private.Public().(ed25519.PublicKey), func(b []byte) []byte { return ed25519.Sign(private, b) })
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (o *office) site(name, spool string) *site {
	o.t.Helper()
	k := keyOf(o.t, name)
	open := func(_ context.Context, head []byte) (carry.Stream, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.down {
			return nil, errDown
		}
		client, err := net.Dial("tcp", o.ln.Addr().String())
		if err != nil {
			return nil, err
		}
		server, err := o.ln.Accept()
		if err != nil {
			return nil, err
		}
		go o.server.Serve(context.Background(), head, server, k.Device())
		if o.half {
			return &half{client, 300_000}, nil
		}
		return client, nil
	}
	byName := make(map[string]mailbox.Device)
	byID := make(map[mailbox.Device]string)
	for _, n := range names() {
		byName[n], byID[keyOf(o.t, n).Device()] = keyOf(o.t, n).Device(), n
	}
	d, err := New(Deps{
		Device: k.Device(), Client: carry.NewClient(k, open), Spool: spool, Log: zap.NewNop(),
		Resolve: func(name string) (mailbox.Device, error) {
			if d, ok := byName[name]; ok {
				return d, nil
			}
			return mailbox.Device{}, errors.New("no such device")
		},
		Text: func(d mailbox.Device) string { return fmt.Sprintf("%x", d[:4]) },
		Name: func(d mailbox.Device) string { return byID[d] },
	})
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			o.t.Error(err)
		}
	})
	s := &site{httptest.NewServer(d), o.t}
	o.t.Cleanup(func() {
		s.Close()
		cancel()
		wg.Wait()
	})
	for { // until its key is published
		if b, err := o.server.Store.Published(k.Device()); err != nil || b != nil {
			return s
		}
	}
}

type half struct {
	net.Conn
	left int
}

func (h *half) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b[:min(len(b), max(h.left, 1))])
	if h.left -= n; h.left <= 0 {
		h.Close()
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *site) do(method, path string, body []byte) (*http.Response, []byte) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	answer, err := s.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer, b
}

func (s *site) want(code int, method, path string, body []byte) (*http.Response, []byte) {
	s.t.Helper()
	answer, b := s.do(method, path, body)
	if answer.StatusCode != code {
		s.t.Fatalf("%s %s: %s, %s", method, path, answer.Status, b)
	}
	return answer, b
}

func TestPrograms(t *testing.T) {
	o := newOffice(t)
	alice, bob := o.site("alice", t.TempDir()), o.site("bob", t.TempDir())
	o.site("carol", t.TempDir())
	alice.want(200, "POST", "/v1/messages?to=bob&to=carol&name=a%2Fb.txt", []byte("one"))
	alice.want(200, "POST", "/v1/messages?to=bob", []byte("two"))
	for i := range 2 {
		_, b := alice.want(200, "POST", "/v1/messages?to=bob&key=k", []byte("three"))
		var sent Sent
		if err := json.Unmarshal(b, &sent); err != nil || sent.Duplicate != (i == 1) {
			t.Errorf("%s, %v", b, err)
		}
	}
	after := "0"
	for _, want := range []string{"one", "two", "three"} {
		var seq string
		for range 2 { // whoever asks again gets it again
			answer, b := bob.want(200, "GET", "/v1/inbox?after="+after, nil)
			if string(b) != want || answer.Header.Get("Edged-From-Name") != "alice" {
				t.Fatalf("%q, %v", b, answer.Header)
			}
			if want == "one" && answer.Header.Get("Edged-Name") != "a%2Fb.txt" {
				t.Errorf("%v", answer.Header)
			}
			seq = answer.Header.Get("Edged-Seq")
		}
		after = seq
	}
	bob.want(204, "GET", "/v1/inbox?after="+after, nil)
	bob.want(204, "DELETE", "/v1/inbox?upto="+after, nil)
	bob.want(204, "GET", "/v1/inbox", nil)
	if _, b := bob.want(200, "GET", "/v1/status", nil); !strings.Contains(string(b), `"messages":0`) {
		t.Errorf("%s", b)
	}
	got := make(chan string)
	go func() {
		_, b := bob.do("GET", "/v1/inbox?wait=1m&after="+after, nil)
		got <- string(b)
	}()
	alice.want(200, "POST", "/v1/messages?to=bob", []byte("to who waits"))
	if text := <-got; text != "to who waits" {
		t.Errorf("%q", text)
	}
}

func TestLarge(t *testing.T) {
	o := newOffice(t)
	spool := t.TempDir()
	alice, bob := o.site("alice", t.TempDir()), o.site("bob", spool)
	large := bytes.Repeat([]byte("0123456789"), 200_000)
	alice.want(200, "POST", "/v1/messages?to=bob", large)
	o.mu.Lock()
	o.half = true
	o.mu.Unlock()
	tries := 0
	for ; ; tries++ { // each goes on where the last one was cut
		answer, b := bob.do("GET", "/v1/inbox", nil)
		if answer.StatusCode == 200 {
			if !bytes.Equal(b, large) {
				t.Fatalf("%d octets", len(b))
			}
			break
		}
		if tries > 20 {
			t.Fatalf("after %d tries: %s %s", tries, answer.Status, b)
		}
	}
	if tries < 3 {
		t.Errorf("nothing was cut: %d tries", tries)
	}
	kept, err := os.ReadDir(spool)
	if err != nil || len(kept) != 1 {
		t.Fatalf("%v, %v", kept, err)
	}
	answer, b := bob.want(200, "GET", "/v1/inbox", nil)
	if !bytes.Equal(b, large) {
		t.Error("the second time it is another")
	}
	bob.want(204, "DELETE", "/v1/inbox?upto="+answer.Header.Get("Edged-Seq"), nil)
	if kept, err := os.ReadDir(spool); err != nil || len(kept) != 0 {
		t.Errorf("%v, %v", kept, err)
	}
}

// TestForged has what is kept of a large message changed: programs do not see it.
func TestForged(t *testing.T) {
	o := newOffice(t)
	spool := t.TempDir()
	alice, bob := o.site("alice", t.TempDir()), o.site("bob", spool)
	alice.want(200, "POST", "/v1/messages?to=bob", make([]byte, 200_000))
	bob.want(200, "GET", "/v1/inbox", nil)
	files, err := filepath.Glob(filepath.Join(spool, "*.sealed"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1000] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if answer, b := bob.want(422, "GET", "/v1/inbox", nil); answer.Header.Get("Edged-Seq") == "" {
		t.Errorf("%s", b)
	}
	bob.want(200, "GET", "/v1/inbox", nil) // fetched anew
}

func TestFailures(t *testing.T) {
	o := newOffice(t)
	alice := o.site("alice", t.TempDir())
	o.site("bob", t.TempDir())
	for path, want := range map[string]int{
		"/v1/messages":                                          400,
		"/v1/messages?to=nobody":                                400,
		"/v1/messages?to=bob&ttl=x":                             400,
		"/v1/messages?to=bob&discard=x":                         400,
		"/v1/messages?to=bob&to=bob":                            400,
		"/v1/messages?to=carol":                                 404, // she was never there
		"/v1/messages?to=bob&key=" + strings.Repeat("k", 300):   400,
		"/v1/messages?to=bob&name=" + strings.Repeat("n", 5000): 400,
	} {
		alice.want(want, "POST", path, []byte("x"))
	}
	alice.want(413, "POST", "/v1/messages?to=bob", make([]byte, 9<<20))
	alice.want(400, "GET", "/v1/inbox?after=x", nil)
	alice.want(400, "GET", "/v1/inbox?wait=x", nil)
	alice.want(400, "DELETE", "/v1/inbox", nil)
	o.server.Allow = func(_, _ mailbox.Device) error { return errors.New("no rule allows it") }
	alice.want(403, "POST", "/v1/messages?to=bob", []byte("x"))
	o.mu.Lock()
	o.down = true
	o.mu.Unlock()
	for _, r := range [][2]string{{"POST", "/v1/messages?to=bob"}, {"GET", "/v1/inbox"}, {"DELETE", "/v1/inbox?upto=1"}, {"GET", "/v1/status"}} {
		alice.want(503, r[0], r[1], nil)
	}
}

// TestSlowProgram: a program whose text does not come holds up nobody else's message, small or large.
func TestSlowProgram(t *testing.T) {
	o := newOffice(t)
	alice := o.site("alice", t.TempDir())
	o.site("bob", t.TempDir())
	for _, size := range []int{1000, 1 << 20} {
		slow, err := net.Dial("tcp", alice.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		// The desk asks for the text when it reads it.
		fmt.Fprintf(slow, "POST /v1/messages?to=bob HTTP/1.1\r\nHost: agent\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", size)
		if _, err := io.ReadFull(slow, make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))); err != nil {
			t.Fatal(err)
		}
	}
	alice.want(200, "POST", "/v1/messages?to=bob", []byte("small"))
	alice.want(200, "POST", "/v1/messages?to=bob", make([]byte, 1<<20))
}

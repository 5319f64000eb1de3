package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
)

// mailRelay is a relay with mailboxes, on an address that no other process uses.
type mailRelay struct {
	*testDaemon
	t   *testing.T
	at  string
	dir string
	id  string
}

// config writes the configuration of a relay for these devices, called site-a, site-b…
func (r *mailRelay) config(devices ...device.ID) string {
	r.t.Helper()
	pid := os.Getpid()
	r.at, r.dir = fmt.Sprintf("127.77.%d.%d", pid>>8&255, pid&255), r.t.TempDir()
	users := ""
	for i, id := range devices {
		users += fmt.Sprintf("%s site-%c\n", id, 'a'+i)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "users"), []byte(users), 0o600); err != nil {
		r.t.Fatal(err)
	}
	k, _, err := device.LoadOrCreateKey(filepath.Join(r.dir, "tunnel", relayKeyFile))
	if err != nil {
		r.t.Fatal(err)
	}
	r.id = k.ID().String()
	return fmt.Sprintf(`admin: {listen: '127.0.0.1:0'}
state: {dir: %s}
networks: {outside: {addresses: [%s]}}
tunnel:
  listen: ['https://outside:14443']
  users_file: %s/users
  policy: [{from: site-a, to: "*", services: [mailbox]}]
  mailbox: {min_free: 0, max_size: 64MiB}
`, r.dir, r.at, r.dir)
}

func newMailRelay(t *testing.T, devices ...device.ID) *mailRelay {
	t.Helper()
	r := &mailRelay{t: t}
	r.testDaemon = startDaemon(t, r.config(devices...))
	return r
}

// agentDir makes a state folder with a key.
func agentDir(t *testing.T) (string, device.ID) {
	t.Helper()
	dir, err := os.MkdirTemp("", "edged") // short: the socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k, _, err := device.LoadOrCreateKey(filepath.Join(dir, "tunnel", "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	return dir, k.ID()
}

// agent runs an agent, and waits until it is attached.
func (r *mailRelay) agent(dir string, devices map[string]device.ID) *messagesClient {
	r.t.Helper()
	names := make([]string, 0, len(devices))
	for name, id := range devices {
		names = append(names, fmt.Sprintf("%s: %s", name, id))
	}
	d := startDaemon(r.t, fmt.Sprintf("admin: {listen: '127.0.0.1:0'}\nstate: {dir: %s}\nagent: {relays: [{address: '%s:14443', id: %s}], rungs: [tls], devices: {%s}}\n",
		dir, r.at, r.id, strings.Join(names, ", ")))
	until(r.t, "attached", func() bool {
		body, err := d.get(context.Background(), "/api/v1/tunnels")
		return err == nil && bytes.Contains(body, []byte(`"attached": true`)) || bytes.Contains(body, []byte(`"attached":true`))
	})
	path := filepath.Join(dir, "tunnel", "messages.sock")
	return &messagesClient{&http.Client{Transport: &http.Transport{
		ExpectContinueTimeout: time.Minute,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// TestMailboxes sends files from one site to another by way of a relay, all of the product's own parts.
func TestMailboxes(t *testing.T) {
	aDir, a := agentDir(t)
	bDir, b := agentDir(t)
	r := newMailRelay(t, a, b)
	devices := map[string]device.ID{"site-a": a, "site-b": b}
	alice, bob := r.agent(aDir, devices), r.agent(bDir, devices)
	files := t.TempDir()
	large := make([]byte, 3<<20)
	rand.Read(large)
	write := func(name string, data []byte) string {
		file := filepath.Join(files, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	var out bytes.Buffer
	send := func(c *messagesClient, to, file string, again bool) error {
		o := sendOptions{to: []string{to}, file: file, again: again, tries: 20 * time.Second}
		return o.send(t.Context(), c, &out, io.Discard)
	}
	until(t, "bob's key is published", func() bool {
		err := send(alice, "site-b", write("empty.txt", nil), false)
		return err == nil
	})
	for _, again := range []bool{false, false, true} {
		if err := send(alice, "site-b", write("large.bin", large), again); err != nil {
			t.Fatal(err)
		}
	}
	if err := send(bob, "site-a", write("x", nil), false); err == nil || !strings.Contains(err.Error(), "no rule lets") {
		t.Errorf("against the policy: %v", err)
	}
	if err := send(alice, "site-b", write("huge", make([]byte, 65<<20)), false); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("too large: %v", err)
	}
	var list []mailboxView
	body, err := r.get(t.Context(), "/api/v1/mailboxes")
	if err == nil {
		err = json.Unmarshal(body, &list)
	}
	// large.bin is written anew before each sending: whether its time of change differs is the file system's business.
	if err != nil || len(list) != 1 || list[0].Device != "site-b" || list[0].Messages < 3 || list[0].Oldest == nil {
		t.Fatalf("%s, %v", body, err)
	}
	in := &inboxDir{dir: filepath.Join(t.TempDir(), "in"), client: bob, out: &out, progress: io.Discard}
	if err := in.run(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"empty.txt": {}, "large.bin": large, "large (1).bin": large} {
		if got, err := os.ReadFile(filepath.Join(in.dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d octets, %v", name, len(got), err)
		}
	}
	if err := send(alice, "site-b", write("last", nil), false); err != nil {
		t.Fatal(err)
	}
	if body, err := r.ask(t.Context(), http.MethodDelete, "/api/v1/mailboxes?device=site-b"); err != nil || !strings.Contains(string(body), `"messages":1`) {
		t.Errorf("%s, %v", body, err)
	}
	if _, err := r.ask(t.Context(), http.MethodDelete, "/api/v1/mailboxes?device=nobody"); err == nil {
		t.Error("a device that is not there is purged")
	}
	if _, err := listenUnix(t.Context(), filepath.Join(aDir, "tunnel", "messages.sock")); err == nil {
		t.Error("a second agent takes the first one's socket")
	}
	metrics, err := r.get(t.Context(), "/metrics")
	if err != nil || !bytes.Contains(metrics, []byte("edged_mailbox_purged_total 1\n")) || !bytes.Contains(metrics, []byte("edged_mailbox_bytes 0\n")) {
		t.Errorf("%v: %s", err, metrics)
	}
}

// TestRelayKilled has the relay's process killed again and again while a program leaves messages for a device, whose own
// program reads some of them at the same time. Each that was acknowledged arrives once, in order.
func TestRelayKilled(t *testing.T) {
	aDir, a := agentDir(t)
	bDir, b := agentDir(t)
	r := &mailRelay{t: t}
	file := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(file, []byte(r.config(a, b)), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.Command("edged", "run", "--config", file) // this test binary: see TestMain
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	relay := start()
	kill := func() {
		if err := relay.Process.Kill(); err != nil {
			t.Error(err)
		}
		relay.Wait() // it was killed
	}
	t.Cleanup(func() { kill() })
	devices := map[string]device.ID{"site-a": a, "site-b": b}
	alice, bob := r.agent(aDir, devices), r.agent(bDir, devices)
	messages, each := 60, 25
	if os.Getenv("EDGED_LAB_FULL") != "" {
		messages, each = 20_000, 500
	}
	in := &inboxDir{dir: t.TempDir(), client: bob, out: io.Discard, progress: io.Discard}
	end := time.Now().Add(10 * time.Minute)
	retry := func(what string, do func() error) {
		t.Helper()
		for {
			err := do()
			if err == nil {
				return
			}
			if time.Now().After(end) || !errors.Is(err, errLater) && !strings.Contains(err.Error(), "has not published") {
				t.Fatalf("%s: %v", what, err)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	for i := range messages {
		if i%each == each-1 {
			kill()
			relay = start()
		}
		path := fmt.Sprintf("/v1/messages?to=site-b&name=%06d&key=%d", i, i)
		retry(path, func() error {
			answer, err := alice.do(t.Context(), http.MethodPost, path, 5, strings.NewReader(fmt.Sprintf("%05d", i)))
			if err != nil {
				return err
			}
			return answer.Body.Close()
		})
		if i == messages/2 {
			retry("inbox", func() error { return in.run(t.Context(), false) })
		}
	}
	kill()
	relay = start()
	retry("inbox", func() error { return in.run(t.Context(), false) })
	list, err := filepath.Glob(filepath.Join(in.dir, "0*"))
	if err != nil || len(list) != messages {
		t.Fatalf("%d of %d messages are there, %v", len(list), messages, err)
	}
	var last time.Time
	for i, file := range list { // by name
		text, err := os.ReadFile(file)
		st, serr := os.Stat(file)
		if err != nil || serr != nil || string(text) != fmt.Sprintf("%05d", i) || st.ModTime().Before(last) {
			t.Fatalf("%s: %q, %v %v", file, text, err, serr)
		}
		last = st.ModTime()
	}
}

// fakeInbox gives the same message again and again, whatever is acknowledged.
type fakeInbox struct{ seq, gets int }

func (f *fakeInbox) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == "/v1/status" {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
	}
	answer := &http.Response{StatusCode: http.StatusNoContent, Header: http.Header{}, Body: http.NoBody, Request: r}
	if r.Method == http.MethodGet {
		if f.gets--; f.gets < 0 {
			return answer, nil
		}
		answer.StatusCode, answer.ContentLength, answer.Body = http.StatusOK, 4, io.NopCloser(strings.NewReader("text"))
		answer.Header.Set("Edged-Seq", fmt.Sprint(f.seq))
		answer.Header.Set("Edged-Store", "s")
		answer.Header.Set("Edged-Name", "..%2F..%2Fa%1Bb.txt")
	}
	return answer, nil
}

// TestInboxOnce has a message come again after each way in which the command may have been stopped.
func TestInboxOnce(t *testing.T) {
	dir := t.TempDir()
	run := func(seq, gets int) {
		t.Helper()
		in := &inboxDir{dir: dir, client: &messagesClient{&http.Client{Transport: &fakeInbox{seq, gets}}}, out: io.Discard, progress: io.Discard}
		if err := in.run(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(dir, "a_b*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	run(5, 3)
	if n := count(); n != 1 {
		t.Fatalf("a message that comes three times makes %d files", n)
	}
	write := func(st inboxState) {
		t.Helper()
		b, err := json.Marshal(st)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, inboxFile), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(inboxState{Store: "s", Done: 4, Next: 5, Name: "a_b.txt"}) // stopped after the file had its name
	if run(5, 1); count() != 1 {
		t.Error("it is put there again")
	}
	write(inboxState{Store: "s", Done: 5, Next: 6, Name: "a_b (1).txt"}) // stopped before
	if err := os.WriteFile(filepath.Join(dir, inboxPart), []byte("te"), 0o600); err != nil {
		t.Fatal(err)
	}
	if run(6, 1); count() != 2 {
		t.Error("it is lost")
	}
	if _, err := os.Stat(filepath.Join(dir, inboxPart)); !errors.Is(err, os.ErrNotExist) {
		t.Error("a part is left")
	}
}

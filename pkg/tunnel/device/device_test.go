package device

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newKey(t *testing.T) Key {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestIDText(t *testing.T) {
	id := newKey(t).ID()
	text := id.String()
	if len(text) != 63 || strings.Count(text, "-") != 7 {
		t.Fatalf("%q is not 8 groups of 7", text)
	}
	for _, s := range []string{text, strings.ToUpper(text), strings.ReplaceAll(text, "-", "")} {
		if got, err := ParseID(s); err != nil || got != id {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for i := range text { // one character mistyped
		if text[i] == '-' {
			continue
		}
		wrong := byte('a')
		if text[i] == wrong {
			wrong = 'b'
		}
		if _, err := ParseID(text[:i] + string(wrong) + text[i+1:]); err == nil {
			t.Errorf("character %d is wrong and nobody notices", i)
		}
	}
	for _, s := range []string{"", text[:62], text + "a", strings.Repeat("-", 1000), strings.Replace(text, text[:1], "1", 1)} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func FuzzID(f *testing.F) {
	f.Add(ID{}.String())
	f.Add("aaaaaaa-bbbbbbb")
	f.Add(strings.Repeat("2", 27) + "\r" + strings.Repeat("2", 28))
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseID(text)
		if err != nil {
			return
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Fatalf("%q: %v, %v", text, again, err)
		}
	})
}

func TestKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "device.key")
	k, made, err := LoadOrCreateKey(file)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	again, made, err := LoadOrCreateKey(file)
	if err != nil || made || again.ID() != k.ID() {
		t.Fatalf("another key: %v, %v", made, err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.WriteFile(file+"2", []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(file + "2"); err == nil {
		t.Error("a file without a key is taken")
	}
}

// handshake returns who each side says the other is.
func handshake(t *testing.T, server, client *tls.Config) (atServer, atClient ID, err error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a pipe without room would hold an alert back
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	deadline := time.Now().Add(time.Minute)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	s, c := tls.Server(a, server), tls.Client(b, client)
	var errs [2]error
	var wg sync.WaitGroup
	wg.Go(func() {
		if errs[0] = s.Handshake(); errs[0] != nil {
			a.Close()
		}
	})
	if errs[1] = c.Handshake(); errs[1] != nil {
		b.Close()
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return ID{}, ID{}, err
	}
	atServer, err = PeerID(s.ConnectionState())
	if err != nil {
		return ID{}, ID{}, err
	}
	atClient, err = PeerID(c.ConnectionState())
	return atServer, atClient, err
}

func TestTLS(t *testing.T) {
	relay, agent, stranger := newKey(t), newKey(t), newKey(t)
	server, err := ServerTLS(relay, func(id ID) error {
		if id != agent.ID() {
			return errors.New("not admitted")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	config := func(c *tls.Config, err error) *tls.Config {
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	atServer, atClient, err := handshake(t, server, config(ClientTLS(agent, relay.ID(), "relay.example.org")))
	if err != nil || atServer != agent.ID() || atClient != relay.ID() {
		t.Fatalf("server sees %v, client sees %v: %v", atServer, atClient, err)
	}
	web := config(ClientTLS(agent, relay.ID(), ""))
	web.NextProtos = []string{"h2"}
	bare := config(ClientTLS(agent, relay.ID(), ""))
	bare.Certificates = nil
	old := config(ClientTLS(agent, relay.ID(), ""))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, client := range map[string]*tls.Config{
		"another relay": config(ClientTLS(agent, stranger.ID(), "")), "a stranger": config(ClientTLS(stranger, relay.ID(), "")),
		"no certificate": bare, "TLS 1.2": old, "another protocol": web, "a device of the inner protocol": config(EndClientTLS(agent, relay.ID())),
	} {
		if _, _, err := handshake(t, server, client); err == nil {
			t.Errorf("%s: the handshake succeeds", name)
		}
	}
	if _, _, err := handshake(t, config(EndServerTLS(relay, agent.ID())), config(EndClientTLS(agent, relay.ID()))); err != nil {
		t.Errorf("end to end: %v", err)
	}
	if _, _, err := handshake(t, config(EndServerTLS(relay, stranger.ID())), config(EndClientTLS(agent, relay.ID()))); err == nil {
		t.Error("end to end: a caller whom the relay has not named is taken")
	}
}

func TestDevices(t *testing.T) {
	a, b := newKey(t).ID(), newKey(t).ID()
	text := "# sites\n" + a.String() + " site-a branch,sip\n\n" + b.String() + " site-b # no group\n"
	list, err := ParseDevices([]byte(text))
	if err != nil || len(list) != 2 || list[0].Name != "site-a" || len(list[0].Groups) != 2 || list[1].ID != b || list[1].Groups != nil {
		t.Fatalf("%+v, %v", list, err)
	}
	for bad, want := range map[string]string{
		a.String() + "\n":                                        "line 1: not ID",
		"\n" + a.String() + " Site\n":                            "line 2: ",
		"abc site\n":                                             "line 1: a device ID has",
		a.String() + " x\n" + a.String() + " y\n":                "stands twice",
		a.String() + " x\n" + b.String() + " x\n":                "two devices are called x",
		a.String() + " x a,,b\n":                                 "group: a name is needed",
		a.String() + " x a b\n":                                  "line 1: not ID",
		a.String() + " " + strings.Repeat("x", 64) + "\n":        "at most 63",
		a.String() + " x " + strings.Repeat("g,", 100) + "g\n":   "more than 64 groups",
		a.String() + " -x\n" + "q z\n" + b.String() + " site-\n": "line 2: ",
	} {
		if _, err := ParseDevices([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", bad, err, want)
		}
	}
	var r Registry
	if err := r.Replace(list); err != nil {
		t.Fatal(err)
	}
	if d, ok := r.Lookup(b); !ok || d.Name != "site-b" {
		t.Error("not found by ID")
	}
	if d, ok := r.Named("site-a"); !ok || d.ID != a {
		t.Error("not found by name")
	}
	if _, ok := r.Named("nobody"); ok {
		t.Error("nobody is found")
	}
	if err := r.Replace(append(list, list[0])); err == nil || len(r.List()) != 2 {
		t.Error("a faulty list replaces a good one")
	}
}

func FuzzDevices(f *testing.F) {
	f.Add([]byte(ID{}.String() + " name group,other # comment\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseDevices(text)
		if err != nil {
			return
		}
		var lines strings.Builder
		for _, d := range list {
			lines.WriteString(d.line())
		}
		again, err := ParseDevices([]byte(lines.String()))
		if err != nil || len(again) != len(list) {
			t.Fatalf("%q: %v", lines.String(), err)
		}
	})
}

func TestPolicy(t *testing.T) {
	a, b, c := Device{Name: "a", Groups: []string{"branch"}}, Device{Name: "b", Groups: []string{"centre"}}, Device{Name: "c"}
	p := Policy{{From: "branch", To: "centre", Services: []string{"ssh"}}, {From: "b", To: "*", Services: []string{"sip", "rtp"}}, {From: "c", To: "c", Services: []string{"*"}}}
	for _, x := range []struct {
		from, to Device
		service  string
		want     bool
	}{
		{a, b, "ssh", true}, {a, b, "sip", false}, {b, a, "ssh", false}, {b, a, "sip", true}, {b, c, "rtp", true},
		{a, c, "ssh", false}, {c, c, "anything", true}, {c, b, "ssh", false}, {a, b, "*", false},
	} {
		if got := p.Allows(x.from, x.to, x.service); got != x.want {
			t.Errorf("%s -> %s %s: %v", x.from.Name, x.to.Name, x.service, got)
		}
	}
	if (Policy{}).Allows(a, b, "ssh") {
		t.Error("no rule lets something pass")
	}
	for _, r := range []Rule{{}, {From: "a", To: "b"}, {From: "A", To: "b", Services: []string{"x"}}, {From: "a", To: "b", Services: []string{"x y"}}} {
		if r.Validate() == nil {
			t.Errorf("%+v is valid", r)
		}
	}
}

func TestTokens(t *testing.T) {
	dir, relay, now := t.TempDir(), newKey(t).ID(), time.Unix(1_800_000_000, 0)
	s, err := OpenStore(filepath.Join(dir, "tunnel"))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := s.Add(relay, "site-b", []string{"branch"}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if read, err := ParseToken(tok.String()); err != nil || read != tok {
		t.Fatalf("%v: %v", tok, err)
	}
	kept, err := os.ReadFile(filepath.Join(dir, "tunnel", tokensFile))
	if err != nil || strings.Contains(string(kept), tok.String()[:20]) {
		t.Errorf("the file holds the secret: %s %v", kept, err)
	}
	var known Registry
	id := newKey(t).ID()
	if _, err := s.Redeem([secretBytes]byte{1}, id, &known, now); !errors.Is(err, ErrToken) {
		t.Errorf("a guessed token: %v", err)
	}
	if _, err := s.Redeem(tok.Secret, id, &known, now.Add(time.Hour)); !errors.Is(err, ErrToken) {
		t.Errorf("an expired token: %v", err)
	}
	if err := known.Replace([]Device{{ID: relay, Name: "site-b"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Redeem(tok.Secret, id, &known, now); !errors.Is(err, ErrTaken) {
		t.Errorf("a name that is taken: %v", err)
	}
	if n, err := s.Waiting(now); n != 1 || err != nil {
		t.Errorf("%d tokens wait, %v", n, err)
	}
	redeemAtOnce(t, s, tok)
	list, err := s.Devices()
	if err != nil || len(list) != 1 || list[0].Name != "site-b" || list[0].Groups[0] != "branch" {
		t.Fatalf("%+v, %v", list, err)
	}
	if found, err := s.Remove("site-b"); !found || err != nil {
		t.Error(found, err)
	}
	if list, _ := s.Devices(); len(list) != 0 {
		t.Errorf("%+v are left", list)
	}
	for _, text := range []string{"", ".", "aaaa." + relay.String(), tok.String() + "a", strings.Repeat("a", 32)} {
		if _, err := ParseToken(text); err == nil {
			t.Errorf("%q is taken for a token", text)
		}
	}
}

// TestWaitingSeesChanges: the file of tokens is read again when it has changed, by whomever, and not otherwise.
func TestWaitingSeesChanges(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	dir := filepath.Join(t.TempDir(), "tunnel")
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	for want := range 3 {
		for range 2 {
			if n, err := s.Waiting(now); n != want || err != nil {
				t.Errorf("%d tokens wait, want %d: %v", n, want, err)
			}
		}
		if _, err := other.Add(newKey(t).ID(), fmt.Sprintf("site-%d", want), nil, now, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Waiting(now.Add(2 * time.Hour)); n != 0 || err != nil {
		t.Errorf("%d tokens wait for ever: %v", n, err)
	}
	if err := os.WriteFile(filepath.Join(dir, tokensFile), []byte("damaged\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Waiting(now); err == nil {
		t.Error("a damaged file is not noticed")
	}
	if err := os.Remove(filepath.Join(dir, tokensFile)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Waiting(now); n != 0 || err != nil {
		t.Errorf("%d tokens wait without a file, %v", n, err)
	}
}

// redeemAtOnce has many devices show the same token; one may get in.
func redeemAtOnce(t *testing.T, s *Store, tok Token) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 8 {
		id := newKey(t).ID()
		wg.Go(func() {
			_, err := s.Redeem(tok.Secret, id, &Registry{}, time.Unix(1_800_000_000, 0))
			if err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			} else if !errors.Is(err, ErrToken) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("a one-time token was good for %d devices", won)
	}
}

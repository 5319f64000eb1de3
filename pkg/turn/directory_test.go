package turn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// book is a directory that counts the questions.
type book struct {
	mu    sync.Mutex
	asked map[string]int
	gate  chan struct{} // closed: answers come
}

func (b *book) Password(ctx context.Context, name string) (string, bool, error) {
	b.mu.Lock()
	b.asked[name]++
	b.mu.Unlock()
	select {
	case <-b.gate:
	case <-ctx.Done():
		return "", false, ctx.Err()
	}
	switch name {
	case "carol":
		return "her password", true, nil
	case "dave":
		return hashedPrefix + fmt.Sprintf("%x", longTermKey("dave", testRealm, "his")), true, nil
	case "broken":
		return "", false, errors.New("out of order")
	}
	return "", false, nil
}

func (b *book) times(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[name]
}

// TestDirectory: users that only a directory knows log in, on streams at once and on UDP when they repeat their request; it is
// asked once. Who is nobody's gets a challenge, and no user of the configuration is asked for.
func TestDirectory(t *testing.T) {
	d := &book{asked: map[string]int{}, gate: make(chan struct{})}
	close(d.gate)
	b := serve(t, func(_ *Config, deps *Deps) { deps.Directory = d })
	for _, transport := range []string{"tcp", "tls", "udp"} {
		for name, password := range map[string]string{"carol": "her password", "dave": "his"} {
			r := b.raw(transport, name, password)
			eventually(t, name+" logs in by "+transport, func() bool {
				if r.asked(allocate) == 438 || r.nonce == "" {
					return false
				}
				return len(b.s.list()) > 0
			})
			if code := r.asked(refresh); code != 0 {
				t.Errorf("%s by %s: %d", name, transport, code)
			}
			r.do(refresh, func(w *composer) { w.uint32(attrLifetime, 0) })
		}
	}
	if d.times("carol") != 1 || d.times("dave") != 1 {
		t.Errorf("asked %v", d.asked)
	}
	r := b.raw("tcp", "nobody", "x")
	r.asked(allocate)
	if code := r.asked(allocate); code != 401 || d.times("nobody") != 1 {
		t.Errorf("nobody: %d, asked %d times", code, d.times("nobody"))
	}
	r = b.raw("tcp", testUser, "wrong")
	r.asked(allocate)
	if code := r.asked(allocate); code != 401 || d.times(testUser) != 0 {
		t.Errorf("wrong password: %d, asked %d times", code, d.times(testUser))
	}
}

// TestDirectoryBounds: questions are few, repeated requests ask none, and what could not be learned is asked again.
func TestDirectoryBounds(t *testing.T) {
	d := &book{asked: map[string]int{}, gate: make(chan struct{})}
	a := newAsking(d, testRealm, nopLog())
	now := time.Now()
	var waits []*entry
	for i := range 2 * maxAsking {
		_, _, wait := a.lookup(fmt.Sprint("user", i), now)
		if _, _, again := a.lookup(fmt.Sprint("user", i), now); again != wait || (wait == nil) != (i >= maxAsking) {
			t.Fatalf("question %d: %v, then %v", i, wait, again)
		}
		if wait != nil {
			waits = append(waits, wait)
		}
	}
	close(d.gate)
	for _, w := range waits {
		<-w.done
	}
	if known, key, _ := a.lookup("user0", time.Now()); !known || key != nil {
		t.Error("that there is no such user is not known")
	}
	if known, _, wait := a.lookup("user0", time.Now().Add(2*nobodyTime)); known || wait == nil {
		t.Error("and is believed for ever")
	}
	for range 2 {
		_, _, wait := a.lookup("broken", time.Now())
		<-wait.done
	}
	if d.times("broken") != 2 {
		t.Errorf("asked %d times for what could not be learned", d.times("broken"))
	}
	for i := range maxKnown + 10 {
		_, _, wait := a.lookup(fmt.Sprint("many", i), time.Now())
		if wait != nil {
			<-wait.done
		}
	}
	if n := len(a.names); n > maxKnown {
		t.Errorf("%d names are remembered", n)
	}
}

package firewall

import (
	"context"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"
)

// TestPinholes: what is open is in its set with a timeout, what was closed is not; a table that somebody removed comes back.
func TestPinholes(t *testing.T) {
	namespace(t)
	r := someRules()
	r.Guard = true
	if err := Apply(r); err != nil {
		t.Fatal(err)
	}
	p, done := NewPinholes(r, zap.NewNop()), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	go func() {
		defer close(done)
		runtime.LockOSThread() // the namespace is the thread's
		if err := netns.Set(here); err != nil {
			t.Error(err)
			return
		}
		p.Serve(ctx)
	}()
	defer func() { cancel(); <-done }()
	holds := func(texts ...string) {
		t.Helper()
		var table string
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
			table = run(t, "", "nft", "list", "ruleset")
			missing := false
			for _, text := range texts {
				want, gone := strings.CutPrefix(text, "no ")
				missing = missing || strings.Contains(table, want) == gone
			}
			if !missing {
				return
			}
		}
		t.Fatalf("not %q:\n%s", texts, table)
	}
	four, six := Port{"udp", netip.MustParseAddrPort("192.0.2.1:50000")}, Port{"tcp", netip.MustParseAddrPort("[2001:db8::1]:40000")}
	p.Set(four, true)
	p.Set(six, true)
	holds("192.0.2.1 . udp . 50000 timeout 1m expires", "2001:db8::1 . tcp . 40000 timeout 1m expires")
	p.Set(six, false)
	holds("192.0.2.1 . udp . 50000", "no 2001:db8::1 . tcp")
	if err := p.update(true); err != nil {
		t.Errorf("renewed: %v", err)
	}
	if err := Remove(r.Config); err != nil {
		t.Fatal(err)
	}
	p.Set(six, true)
	holds("192.0.2.1 . udp . 50000", "2001:db8::1 . tcp . 40000", "tproxy")
	if p.Len() != 2 {
		t.Errorf("%d are open", p.Len())
	}
}

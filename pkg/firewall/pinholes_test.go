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
	k, err := NewKeeper(r, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	k.every = 50 * time.Millisecond
	p, done, applied := k.Pinholes(), make(chan struct{}), make(chan struct{})
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
		if err := k.Serve(ctx, func() { close(applied) }); err != nil {
			t.Error(err)
		}
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
	<-applied
	four, six := Port{"udp", netip.MustParseAddrPort("192.0.2.1:50000")}, Port{"tcp", netip.MustParseAddrPort("[2001:db8::1]:40000")}
	p.Set(four, true)
	p.Set(six, true)
	holds("192.0.2.1 . udp . 50000 timeout 1m expires", "2001:db8::1 . tcp . 40000 timeout 1m expires")
	p.Set(six, false)
	holds("192.0.2.1 . udp . 50000", "no 2001:db8::1 . tcp")
	for _, command := range []string{"nft delete table inet edged", "nft flush chain inet edged prerouting", "ip rule del fwmark 0x6564"} {
		repairs := k.State().Repairs
		run(t, "", strings.Fields(command)...)
		for end := time.Now().Add(30 * time.Second); k.State().Repairs == repairs; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("not mended: %s", command)
			}
		}
		holds("192.0.2.1 . udp . 50000", "tproxy")
		if rules := run(t, "", "ip", "rule"); strings.Count(rules, "0x6564") != 1 {
			t.Errorf("after %s: %s", command, rules)
		}
	}
	p.Set(six, true)
	holds("192.0.2.1 . udp . 50000", "2001:db8::1 . tcp . 40000", "tproxy")
	if p.Len() != 2 {
		t.Errorf("%d are open", p.Len())
	}
	if f, err := Read(); err != nil || f.Pinholes != [2]int{1, 1} || f.Rules != r.count() || len(f.Counted) != 7 {
		t.Errorf("%+v, %v", f, err)
	}
	for i := range 2 {
		if err := k.Off(); err != nil {
			t.Fatalf("off, time %d: %v", i, err)
		}
	}
	p.Set(four, false)
	for len(p.wake) > 0 {
		runtime.Gosched()
	}
	k.kernel.Lock()   // what was woken has looked
	k.kernel.Unlock() //nolint:staticcheck // there is nothing to do but to wait
	if rest := state(t); strings.Contains(rest, "edged") || strings.Contains(rest, "0x6564") || !k.State().Off {
		t.Errorf("taken off: %s", rest)
	}
	if _, err := Read(); err == nil {
		t.Error("what is not there was read")
	}
	if err := k.On(); err != nil {
		t.Fatal(err)
	}
	holds("no 192.0.2.1 . udp . 50000", "2001:db8::1 . tcp . 40000", "tproxy")
}

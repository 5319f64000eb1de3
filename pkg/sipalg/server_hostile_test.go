package sipalg

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole/pinholetest"
)

// TestHostileJournal: the journal is made short while registrations come in, loses none of them, and
// takes lines after its end without harm.
func TestHostileJournal(t *testing.T) {
	dir := t.TempDir()
	nets := testNetworks()
	s, err := New(testConfig(nil), Deps{Networks: nets, Opener: pinholetest.New(nets, 50000), StateDir: dir}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	line := func(i int) []byte { return []byte(fmt.Sprintf(`{"aor":"u%d@example.com","gone":true}`+"\n", i)) }
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 3 * maxJournal {
				s.mu.Lock()
				s.core.journal(line(w*1000000 + i))
				s.mu.Unlock()
				if i%5000 == 0 {
					s.journal.compact(s)
				}
			}
		})
	}
	writers.Wait()
	s.mu.Lock()
	s.core.journal([]byte(`{"aor":"last@example.com","gone":true}` + "\n"))
	s.mu.Unlock()
	got, err := os.ReadFile(filepath.Join(dir, "registrations.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(got), "\n"); n > 5*maxJournal || !strings.Contains(string(got), "last@") || !strings.Contains(string(got[:200]), "secret") {
		t.Errorf("%d lines", n)
	}
	if err := s.journal.close(s); err != nil {
		t.Error(err)
	}
	s.core.journal(line(0))
}

// TestHostileSweep: a large table of aliases is emptied in turns that do not hold up calls.
func TestHostileSweep(t *testing.T) {
	w := newWorld(t, nil)
	for i := range maxAliases / 4 {
		w.core.now = w.now
		w.core.aliasBy("outside", netip.Addr{}, fmt.Appendf(nil, "sip:%d@example.net", i))
	}
	worst := time.Duration(0)
	for range 200 {
		w.now = w.now.Add(sweepEvery)
		start := time.Now()
		w.do(func() { w.core.Tick(w.now, &w.out) })
		worst = max(worst, time.Since(start))
	}
	t.Logf("the longest turn takes %v", worst)
	if n := len(w.core.aliases); n != 0 {
		t.Errorf("%d aliases left", n)
	}
}

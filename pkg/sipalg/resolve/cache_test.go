package resolve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// script is the DNS as a test wants it.
type script struct {
	asked atomic.Int64
	ttl   time.Duration
	err   error
}

func (s *script) ask(_ context.Context, name string, _ uint16) ([]dns.RR, time.Duration, error) {
	s.asked.Add(1)
	if s.err != nil {
		return nil, s.ttl, s.err
	}
	rr, err := dns.NewRR(name + " A 192.0.2.1")
	return []dns.RR{rr}, s.ttl, err
}

func TestCacheTimes(t *testing.T) {
	for _, c := range []struct {
		name string
		ttl  time.Duration
		err  error
		want time.Duration // for which nothing is asked again
	}{
		{"as long as it says", time.Minute, nil, time.Minute},
		{"but not for ever", 1000 * time.Hour, nil, 24 * time.Hour},
		{"not at all", 0, nil, 0},
		{"a denial", time.Minute, ErrNotFound, time.Minute},
		{"a denial, not for long", time.Hour, ErrNotFound, 5 * time.Minute},
		{"a failure", 0, ErrUnavailable, retry},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{ttl: c.ttl, err: c.err}
				cc := newCache(Config{}.withDefaults(), s.ask)
				get := func() {
					t.Helper()
					if _, err := cc.get(t.Context(), "x.example.org", dns.TypeA); !errors.Is(err, c.err) {
						t.Errorf("error %v, want %v", err, c.err)
					}
				}
				get()
				if c.want > 0 {
					time.Sleep(c.want - time.Nanosecond)
					get()
					if n := s.asked.Load(); n != 1 {
						t.Errorf("asked %d times before %v", n, c.want)
					}
				}
				time.Sleep(time.Nanosecond)
				get()
				if n := s.asked.Load(); n != 2 {
					t.Errorf("asked %d times after %v, want 2", n, c.want)
				}
			})
		})
	}
}

// While no server answers, what was known serves on for an hour (RFC 8767), without a question for each use.
func TestCacheStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{ttl: time.Minute}
		cc := newCache(Config{}.withDefaults(), s.ask)
		cc.get(t.Context(), "x.example.org", dns.TypeA)
		s.err = ErrUnavailable
		start := time.Now()
		var err error
		for err == nil {
			time.Sleep(time.Second)
			_, err = cc.get(t.Context(), "x.example.org", dns.TypeA)
		}
		if d := time.Since(start); !errors.Is(err, ErrUnavailable) || d < time.Hour || d > time.Hour+2*time.Minute {
			t.Errorf("served for %v, then %v", d, err)
		}
		if n := s.asked.Load(); n > 130 {
			t.Errorf("asked %d times in an hour", n)
		}
	})
}

func TestCacheBound(t *testing.T) {
	s := &script{ttl: time.Hour}
	cc := newCache(Config{CacheSize: 100}.withDefaults(), s.ask)
	for i := range 1000 {
		if _, err := cc.get(t.Context(), fmt.Sprintf("h%d.example.org", i), dns.TypeA); err != nil {
			t.Fatal(err)
		}
	}
	if len(cc.entries) != 100 {
		t.Errorf("%d entries, want 100", len(cc.entries))
	}
}

func TestCacheFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		cc := newCache(Config{}.withDefaults(), func(context.Context, string, uint16) ([]dns.RR, time.Duration, error) {
			<-release
			return nil, 0, ErrNotFound
		})
		errs := make(chan error, maxFlights+10)
		for i := range maxFlights + 10 {
			go func() {
				_, err := cc.get(t.Context(), fmt.Sprintf("h%d.example.org", i), dns.TypeA)
				errs <- err
			}()
		}
		synctest.Wait()
		for range 10 {
			if err := <-errs; !errors.Is(err, ErrUnavailable) {
				t.Errorf("error %v, want ErrUnavailable", err)
			}
		}
		if len(errs) != 0 {
			t.Errorf("%d more came back, want %d to wait", len(errs), maxFlights)
		}
		close(release)
		synctest.Wait()
	})
}

func srv(t testing.TB, priority, weight int, target string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(fmt.Sprintf("_sip._udp.example.org. SRV %d %d 5060 %s.", priority, weight, target))
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func TestOrder(t *testing.T) {
	list := []dns.RR{srv(t, 2, 10, "d"), srv(t, 1, 60, "a"), srv(t, 1, 0, "b"), srv(t, 1, 40, "c"), srv(t, 0, 0, "first")}
	for _, c := range []struct {
		picks []int
		want  string
	}{
		{[]int{0, 0, 0}, "[first b a c d]"}, // 0 is weight 0's only chance
		{[]int{1, 0}, "[first a b c d]"},
		{[]int{60, 1}, "[first a c b d]"},
		{[]int{61, 60}, "[first c a b d]"},
		{[]int{100, 0}, "[first c b a d]"},
	} {
		r := New(Config{Pick: func(int) (n int) {
			if len(c.picks) > 0 {
				n, c.picks = c.picks[0], c.picks[1:]
			}
			return n
		}})
		var got []string
		for _, rr := range r.order(list) {
			got = append(got, rr.Target[:len(rr.Target)-1])
		}
		if diff := cmp.Diff(c.want, fmt.Sprint(got)); diff != "" {
			t.Error(diff)
		}
	}
}

// Weights are kept to: 3:1 comes out as 3:1.
func TestOrderWeights(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	r := New(Config{Pick: rng.IntN})
	list := []dns.RR{srv(t, 0, 30, "a"), srv(t, 0, 10, "b")}
	first := 0
	for range 10000 {
		if r.order(list)[0].Target == "a." {
			first++
		}
	}
	if first < 7300 || first > 7700 {
		t.Errorf("weight 30 of 40 came first in %d of 10000", first)
	}
}

func TestWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	synctest.Test(t, func(t *testing.T) {
		w := watch(path, parseHosts)
		if h := w.get(); len(h) != 0 {
			t.Errorf("a missing file says %v", h)
		}
		for i, text := range []string{"192.0.2.1 a\n", "192.0.2.1 a b\n"} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if h := w.get(); len(h) != i {
				t.Errorf("the file was looked at too soon: %v", h)
			}
			time.Sleep(look + time.Nanosecond)
			if h := w.get(); len(h) != i+1 {
				t.Errorf("the file says %v, want %d names", h, i+1)
			}
		}
		os.Remove(path)
		time.Sleep(look + time.Nanosecond)
		if h := w.get(); len(h) != 0 {
			t.Errorf("a removed file says %v", h)
		}
	})
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("192.0.2.1 a b # c\n::1 localhost\n"))
	f.Add([]byte("fe80::1%lo x\n\t\n#"))
	f.Fuzz(func(t *testing.T, text []byte) {
		hosts, _ := parseHosts(bytes.NewReader(text))
		for name, list := range hosts {
			if len(list) == 0 || len(list) > maxRecords {
				t.Errorf("%q has %d addresses", name, len(list))
			}
		}
	})
}

// FuzzAnswer puts arbitrary answers to the code that follows aliases and orders records.
func FuzzAnswer(f *testing.F) {
	for _, text := range []string{"x.example.org. CNAME x.example.org.", "x.example.org. SRV 0 0 0 .", `x.example.org. NAPTR 1 1 "s" "SIP+D2U" "" .`, "x.example.org. A 192.0.2.1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m := new(dns.Msg)
		m.SetQuestion("x.example.org.", dns.TypeSRV)
		m.Answer = []dns.RR{rr}
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	r := New(Config{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		m := new(dns.Msg)
		if m.Unpack(wire) != nil {
			return
		}
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeNAPTR} {
			records, _, links, _ := follow(m, "x.example.org.", typ)
			if links > maxAlias+1 || len(records) > maxRecords {
				t.Fatalf("%d links, %d records", links, len(records))
			}
			if n := len(r.order(records)); typ == dns.TypeSRV && n != len(records) {
				t.Fatalf("%d of %d records ordered", n, len(records))
			}
			r.fromNAPTR(Query{}, records)
			for _, rr := range records {
				address(rr)
			}
		}
		denied(m)
	})
}

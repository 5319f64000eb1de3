package demophone

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// tapAt binds a free UDP port of a loopback address.
func tapAt(t *testing.T, addr string, allowed ...string) *Tap {
	t.Helper()
	pc, err := net.ListenPacket("udp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	var hosts []netip.Addr
	for _, a := range allowed {
		hosts = append(hosts, netip.MustParseAddr(a))
	}
	return NewTap(pc, hosts...)
}

// running serves until the test ends.
func running(t *testing.T, serve func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := serve(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func startRegistrar(t *testing.T, tap *Tap) *Registrar {
	t.Helper()
	r, err := NewRegistrar("example.org", tap, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	running(t, r.Serve)
	return r
}

func startPhone(t *testing.T, user string, tap *Tap, proxy netip.AddrPort, media string) *Phone {
	t.Helper()
	cfg := Config{User: user, Domain: "example.org", Proxy: proxy, MediaSource: netip.MustParseAddr(media)}
	p, err := New(cfg, tap, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	running(t, p.Serve)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := p.Register(ctx, time.Minute)
	if err != nil || got != time.Minute {
		t.Fatalf("registered %s for %v: %v", user, got, err)
	}
	return p
}

func TestPhonesCallEachOther(t *testing.T) {
	const alice, bob, reg = "127.31.0.1", "127.31.0.2", "127.31.0.9"
	r := startRegistrar(t, tapAt(t, reg, alice, bob))
	a := startPhone(t, "alice", tapAt(t, alice, reg, bob), r.tap.Addr(), bob)
	b := startPhone(t, "bob", tapAt(t, bob, reg, alice), r.tap.Addr(), alice)

	for i, pair := range [][2]*Phone{{a, b}, {b, a}, {a, b}} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c, err := pair[0].Call(ctx, pair[1].cfg.User)
			if err != nil {
				t.Fatal(err)
			}
			far := pair[1].Find(c.ID)
			if far == nil {
				t.Fatal("the callee does not know the call")
			}
			eventually(t, "20 verified frames each way", func() bool {
				return c.Stats().Verified >= 20 && far.Stats().Verified >= 20
			})
			hangUp := c
			if i == 2 {
				hangUp = far // the callee ends the last call
			}
			if err := hangUp.Hangup(ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the end at both sides", func() bool { return c.Ended() && far.Ended() })
			for _, st := range []StreamStats{c.Stats(), far.Stats()} {
				if st.Wrong+st.Refused != 0 || st.Jitter <= 0 {
					t.Errorf("stats: %+v", st)
				}
			}
		})
	}
}

func TestCallsThatAreRefused(t *testing.T) {
	const alice, bob, reg = "127.32.0.1", "127.32.0.2", "127.32.0.9"
	r := startRegistrar(t, tapAt(t, reg, alice, bob))
	a := startPhone(t, "alice", tapAt(t, alice, reg, bob), r.tap.Addr(), bob)
	b := startPhone(t, "bob", tapAt(t, bob, reg), r.tap.Addr(), alice)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := a.Call(ctx, "nobody"); err == nil || ctx.Err() != nil {
		t.Errorf("a call to nobody: %v", err)
	}
	// Bob hears the registrar only: a call that does not come from there gets no answer.
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.CallAt(short, "bob", b.tap.Addr()); err == nil {
		t.Error("a call from a refused host was answered")
	}
	eventually(t, "bob's refusal", func() bool { return b.tap.Refused(netip.MustParsePrefix("127.32.0.1/32")) > 0 })
	if len(b.Calls()) != 0 {
		t.Error("bob heard a host that he must not hear")
	}
	if err := a.register0(ctx); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.Contact("alice"); ok {
		t.Error("alice is still registered")
	}
}

// register0 removes the registration.
func (p *Phone) register0(ctx context.Context) error {
	_, err := p.Register(ctx, 0)
	return err
}

func TestKeepRegisteredRefreshes(t *testing.T) {
	const alice, reg = "127.33.0.1", "127.33.0.9"
	r := startRegistrar(t, tapAt(t, reg, alice))
	a := startPhone(t, "alice", tapAt(t, alice, reg), r.tap.Addr(), reg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.KeepRegistered(ctx, 2*time.Second); err != nil {
			t.Errorf("keep registered: %v", err)
		}
	})
	registers := func() (n int) {
		kept, _ := r.tap.Messages()
		for _, m := range kept {
			if !m.Sent && strings.HasPrefix(string(m.Data), "REGISTER ") {
				n++
			}
		}
		return n
	}
	eventually(t, "the first registration and two refreshes", func() bool { return registers() >= 4 })
	cancel()
	wg.Wait()
}

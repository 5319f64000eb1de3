package uplink

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/mux"
)

// far is a relay over pipes.
type far struct {
	mu       sync.Mutex
	down     bool
	better   bool // Better has something
	dials    []time.Time
	sessions []*mux.Session
	conns    []net.Conn
	serving  sync.WaitGroup
}

var errDown = errors.New("down")

func (f *far) Dial(ctx context.Context) (*Carrier, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials = append(f.dials, time.Now())
	if f.down {
		return nil, errDown
	}
	return f.carrierLocked(ctx, "tls"), nil
}

func (f *far) Better(ctx context.Context, _ *Carrier) (*Carrier, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.better {
		return nil, nil
	}
	f.better = false
	return f.carrierLocked(ctx, "quic"), nil
}

func (f *far) carrierLocked(ctx context.Context, rung string) *Carrier {
	x, y := net.Pipe()
	f.conns = append(f.conns, y)
	f.serving.Go(func() {
		s, resumed, err := mux.Server(context.WithoutCancel(ctx), y, f.find, mux.Config{})
		if err == nil && !resumed {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.sessions = append(f.sessions, s)
		}
	})
	return &Carrier{Conn: x, Rung: rung, Path: "direct"}
}

func (f *far) find(id mux.ID) *mux.Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sessions {
		if s.ID() == id {
			return s
		}
	}
	return nil
}

// run runs an uplink in a bubble; the relays' sessions are ended with it.
func run(t *testing.T, test func(u *Uplink), cfg Config, relays ...*far) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var dialers []Dialer
		for _, f := range relays {
			dialers = append(dialers, f)
		}
		u := New(dialers, cfg, zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			u.Run(ctx, func(_ context.Context, s *mux.Session) { <-s.Done() })
		})
		synctest.Wait()
		test(u)
		cancel()
		running.Wait()
		for _, f := range relays {
			f.serving.Wait()
			for _, s := range f.sessions {
				s.Close(mux.CodeInternal)
			}
		}
	})
}

func TestNextRelay(t *testing.T) {
	first, second := &far{down: true}, &far{}
	run(t, func(u *Uplink) {
		if st := u.State(); !st.Attached || st.Relay != 1 || st.Sessions != 1 {
			t.Errorf("%+v", st)
		}
	}, Config{}, first, second)
}

// TestBackoff: attempts become rarer, up to a bound, and the first success is used at once.
func TestBackoff(t *testing.T) {
	f := &far{down: true}
	run(t, func(u *Uplink) {
		time.Sleep(10 * time.Minute)
		f.mu.Lock()
		n, last := len(f.dials), f.dials[len(f.dials)-1].Sub(f.dials[len(f.dials)-2])
		f.down = false
		f.mu.Unlock()
		if n < 10 || n > 60 || last < 15*time.Second || last > 45*time.Second {
			t.Errorf("%d attempts in ten minutes, the last after %v", n, last)
		}
		if st := u.State(); st.Attached || st.Failures != n || st.LastError != errDown.Error() {
			t.Errorf("%+v", st)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := u.Session(ctx); err != nil {
			t.Error(err)
		}
	}, Config{}, f)
}

// TestResume: the session outlives its connection.
func TestResume(t *testing.T) {
	f := &far{}
	run(t, func(u *Uplink) {
		before := u.Current()
		f.mu.Lock()
		f.conns[0].Close()
		f.mu.Unlock()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if st := u.State(); u.Current() != before || !st.Attached || st.Resumes != 1 || st.Sessions != 1 {
			t.Errorf("%+v", st)
		}
	}, Config{}, f)
}

// TestImprove: a better way is taken when there is one, by the same session.
func TestImprove(t *testing.T) {
	f := &far{}
	run(t, func(u *Uplink) {
		before := u.Current()
		f.mu.Lock()
		f.better = true
		f.mu.Unlock()
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if st := u.State(); u.Current() != before || st.Rung != "quic" || st.Sessions != 1 {
			t.Errorf("%+v", st)
		}
	}, Config{}, f)
}

// TestReplaced: who is ended because another has the same key stays away for a while.
func TestReplaced(t *testing.T) {
	f := &far{}
	run(t, func(u *Uplink) {
		f.mu.Lock()
		s := f.sessions[0]
		f.mu.Unlock()
		s.Close(mux.CodeCrossedConnections)
		time.Sleep(25 * time.Second)
		if u.Current() != nil {
			t.Error("back within half a minute")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if u.Current() == nil {
			t.Error("not back after two minutes")
		}
	}, Config{}, f)
}

// TestRefusing: a relay that takes sessions only to end them is asked ever more rarely, and the next one is tried.
func TestRefusing(t *testing.T) {
	f := &far{}
	run(t, func(u *Uplink) {
		ended := 0
		for range 600 {
			f.mu.Lock()
			all := f.sessions
			f.mu.Unlock()
			for ; ended < len(all); ended++ {
				all[ended].Close(mux.CodeTryLater)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if ended < 10 || ended > 60 {
			t.Errorf("%d sessions in ten minutes", ended)
		}
	}, Config{}, f)
}

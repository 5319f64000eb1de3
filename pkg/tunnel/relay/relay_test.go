package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/streamhead"
)

// bench is a relay with devices a and b, whose sessions run over pipes: authentication is others' business.
type bench struct {
	*Relay
	t     *testing.T
	store *device.Store
	ids   map[string]device.ID
}

func newBench(t *testing.T, limits Limits) *bench {
	t.Helper()
	b := &bench{t: t, ids: map[string]device.ID{"a": {1}, "b": {2}, "other": {3}}}
	registry := &device.Registry{}
	if err := registry.Replace([]device.Device{{ID: b.ids["a"], Name: "a"}, {ID: b.ids["b"], Name: "b"}}); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.store, err = device.OpenStore(filepath.Join(t.TempDir(), "tunnel")); err != nil {
		t.Fatal(err)
	}
	b.Relay = New(Rules{device.Policy{{From: "a", To: "b", Services: []string{"x"}}}, limits}, Deps{
		Registry: registry, Store: b.store, Peers: map[device.ID]bool{{9}: true},
		Enrolled: func(d device.Device) error { return registry.Replace(append(registry.List(), d)) },
	}, zap.NewNop())
	return b
}

// attached begins a session of a device.
func (b *bench) attached(id device.ID) (*mux.Session, error) {
	b.t.Helper()
	x, y := net.Pipe()
	go b.Session(b.t.Context(), y, id, Via{Rung: "tls"})
	return mux.Client(b.t.Context(), x, mux.Config{})
}

func (b *bench) mustAttach(id device.ID) *mux.Session {
	b.t.Helper()
	s, err := b.attached(id)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close(mux.CodeClosed) })
	return s
}

// ask opens a stream with a head and returns the code of the refusal; -1 if there was none.
func ask(t *testing.T, s *mux.Session, head []byte, datagrams bool) mux.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := s.Open(ctx, head, mux.OpenOptions{Datagrams: datagrams})
	var reset *mux.ResetError
	if errors.As(err, &reset) {
		return reset.Code
	}
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
	return ^mux.Code(0)
}

func headOf(t *testing.T, h streamhead.Head) []byte {
	t.Helper()
	b, err := h.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestHostileHeads: what a device must not say is refused, and its session lives on.
func TestHostileHeads(t *testing.T) {
	b := newBench(t, DefaultLimits())
	s := b.mustAttach(b.ids["a"])
	good := streamhead.Head{Kind: streamhead.Open, Peer: b.ids["b"], Service: "x"}
	for name, c := range map[string]struct {
		head      []byte
		datagrams bool
		want      mux.Code
	}{
		"nothing":          {nil, false, mux.CodeProtocol},
		"garbage":          {[]byte("GET / HTTP/1.1"), false, mux.CodeProtocol},
		"an offer":         {headOf(t, streamhead.Head{Kind: streamhead.Offer, Peer: b.ids["b"], Service: "x"}), false, mux.CodeProtocol},
		"a hop":            {headOf(t, streamhead.Head{Kind: streamhead.Hop, Peer: b.ids["b"], Caller: b.ids["a"], Service: "x"}), false, mux.CodeProtocol},
		"another kind":     {[]byte{16}, false, mux.CodeNoSuchService},
		"not allowed":      {headOf(t, streamhead.Head{Kind: streamhead.Open, Peer: b.ids["b"], Service: "y"}), false, mux.CodeLockedOut},
		"nobody":           {headOf(t, streamhead.Head{Kind: streamhead.Open, Peer: b.ids["other"], Service: "x"}), false, mux.CodeLockedOut},
		"itself":           {headOf(t, streamhead.Head{Kind: streamhead.Open, Peer: b.ids["a"], Service: "x"}), false, mux.CodeLockedOut},
		"datagrams unsaid": {headOf(t, good), true, mux.CodeProtocol},
		"away":             {headOf(t, good), false, mux.CodeOffline},
	} {
		if got := ask(t, s, c.head, c.datagrams); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestHopOnlyOnce: what came from another relay is not passed on, and a relay may ask for nothing of its own.
func TestHopOnlyOnce(t *testing.T) {
	b := newBench(t, DefaultLimits())
	s := b.mustAttach(device.ID{9})
	hop := streamhead.Head{Kind: streamhead.Hop, Peer: b.ids["b"], Caller: b.ids["a"], Service: "x"}
	if got := ask(t, s, headOf(t, hop), false); got != mux.CodeOffline {
		t.Errorf("a hop for who is away: %v", got)
	}
	hop.Caller = b.ids["other"]
	if got := ask(t, s, headOf(t, hop), false); got != mux.CodeLockedOut {
		t.Errorf("a hop of a stranger: %v", got)
	}
	if got := ask(t, s, headOf(t, streamhead.Head{Kind: streamhead.Open, Peer: b.ids["b"], Service: "x"}), false); got != mux.CodeProtocol {
		t.Errorf("a relay that opens for itself: %v", got)
	}
}

func TestStrangers(t *testing.T) {
	b := newBench(t, DefaultLimits())
	if _, err := b.attached(b.ids["other"]); err == nil {
		t.Error("a session for a device that is not known")
	}
	if b.Admit(b.ids["other"]) == nil {
		t.Error("a stranger finishes the handshake though no token waits")
	}
	if _, err := b.store.Add(device.ID{7}, "new", nil, time.Now(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if now := time.Now(); !b.tokensWait(now) || b.tokensWait(now.Add(2*time.Hour)) {
		t.Error("a new token is not noticed, or for ever")
	}
	if err := errors.Join(b.Admit(b.ids["a"]), b.Admit(device.ID{9})); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t, Limits{Streams: 4, Opens: 3, Sessions: 1})
	s := b.mustAttach(b.ids["a"])
	away := headOf(t, streamhead.Head{Kind: streamhead.Open, Peer: b.ids["b"], Service: "x"})
	later := 0
	for range 40 {
		if ask(t, s, away, false) == mux.CodeTryLater {
			later++
		}
	}
	if later < 20 {
		t.Errorf("%d of 40 streams at once were too many for 3 a second", later)
	}
	second, err := b.attached(b.ids["b"])
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-second.Done():
	case <-time.After(time.Minute):
		t.Error("two devices where one may be attached")
	}
	again := b.mustAttach(b.ids["a"]) // the same device needs no further place
	select {
	case <-s.Done():
	case <-time.After(time.Minute):
		t.Error("two sessions of one device")
	}
	if ask(t, again, nil, false) != mux.CodeProtocol {
		t.Error("the newer session does not live")
	}
}

func TestEnrol(t *testing.T) {
	b := newBench(t, DefaultLimits())
	token, err := b.store.Add(device.ID{7}, "other", nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Admit(b.ids["other"]); err != nil {
		t.Errorf("a token waits, and the new device is refused: %v", err)
	}
	show := func(secret []byte) string {
		x, y := net.Pipe()
		go b.Enrol(t.Context(), y, b.ids["other"], Via{})
		x.SetDeadline(time.Now().Add(time.Minute))
		if _, err := x.Write(secret); err != nil {
			t.Error(err)
		}
		text, _ := io.ReadAll(x)
		return string(text)
	}
	if got := show(make([]byte, len(token.Secret))); got != string([]byte{BadToken}) {
		t.Errorf("a guess: %q", got)
	}
	if got := show(token.Secret[:]); got != "\x00\x05other" {
		t.Errorf("the token: %q", got)
	}
	if got := show(token.Secret[:]); got != string([]byte{BadToken}) {
		t.Errorf("the token again: %q", got)
	}
	b.mustAttach(b.ids["other"])
}

func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bucket{}
		if b.take(1<<40, time.Now()) != 0 || !b.try(time.Now()) {
			t.Error("without a rate there is a limit")
		}
		b.set(1000)
		if d := b.take(500, time.Now()); d != 0 {
			t.Errorf("within the first second: wait %v", d)
		}
		if d := b.take(1500, time.Now()); d != time.Second {
			t.Errorf("a second's worth too much: wait %v", d)
		}
		if b.try(time.Now()) {
			t.Error("nothing is left, and there is something")
		}
		time.Sleep(1100 * time.Millisecond)
		if !b.try(time.Now()) {
			t.Error("a second later there is nothing")
		}
	})
}

// TestDatagramsOverBudget: datagrams that are dropped cost nobody anything: a device that is flooded has its own
// bandwidth again as soon as the flood is over, as has who floods.
func TestDatagramsOverBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := &bucket{}, &bucket{}
		from.set(1000)
		to.set(1000)
		passed := 0
		for range 10_000 {
			if affords([]*bucket{from, to}, 1000, time.Now()) {
				passed++
			}
		}
		if passed == 0 || passed > 3 {
			t.Errorf("%d s worth of datagrams passed at once", passed)
		}
		time.Sleep(3 * time.Second)
		for name, b := range map[string]*bucket{"from": from, "to": to} {
			if d := b.take(500, time.Now()); d != 0 {
				t.Errorf("%s: wait %v after the flood", name, d)
			}
		}
		to.take(10_000, time.Now())
		if affords([]*bucket{from, to}, 1, time.Now()) || from.take(400, time.Now()) != 0 {
			t.Error("what the one cannot take is taken from the other")
		}
	})
}

// TestNameOfAnother: a session's name is the device's choice. That of another's session gains nothing, and costs that
// one nothing.
func TestNameOfAnother(t *testing.T) {
	b := newBench(t, DefaultLimits())
	victim := b.mustAttach(b.ids["a"])
	waitFor(t, func() bool { return len(b.Tunnels()) == 1 })
	b.mu.Lock()
	mine := b.sessions[victim.ID()]
	b.mu.Unlock()
	x, y := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Session(t.Context(), y, b.ids["b"], Via{Rung: "tls"})
	}()
	hello := make([]byte, 8+44) // HELLO of version 1, new, epoch 1
	hello[0], hello[3], hello[8], hello[9], hello[8+23] = 1, 44, 1, 1, 1
	id := victim.ID()
	copy(hello[12:], id[:])
	if _, err := x.Write(hello); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, x) }() // ends with the pipe
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("the session of that name goes on")
		x.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sessions[victim.ID()] != mine || mine == nil {
		t.Error("the session that was there is not found any more")
	}
}

// TestRulesChangeMeanwhile: rules that change while a stream is opened hold for it, those that change while a device
// attaches for that.
func TestRulesChangeMeanwhile(t *testing.T) {
	b := newBench(t, DefaultLimits())
	from, to := b.mustAttach(b.ids["a"]), b.mustAttach(b.ids["b"])
	waitFor(t, func() bool { return len(b.Tunnels()) == 2 })
	ended := make(chan error, 1)
	go func() {
		s, err := from.Open(t.Context(), headOf(t, streamhead.Head{Kind: streamhead.Open, Peer: b.ids["b"], Service: "x"}), mux.OpenOptions{})
		if err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		ended <- err
	}()
	in, err := to.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.Reload(Rules{nil, DefaultLimits()})
	in.Accept()
	select {
	case err := <-ended:
		if reset := (*mux.ResetError)(nil); !errors.As(err, &reset) || reset.Code != mux.CodeLockedOut {
			t.Errorf("the stream ended by %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the stream is there though no rule lets it")
	}

	x, y := net.Pipe()
	go b.Session(t.Context(), y, b.ids["a"], Via{Rung: "tls"}) // waits for HELLO
	waitFor(t, func() bool {                                   // it has asked who that is
		x.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		n, _ := x.Write([]byte{1})
		return n == 1
	})
	x.SetWriteDeadline(time.Time{})
	if err := b.deps.Registry.Replace(nil); err != nil {
		t.Fatal(err)
	}
	b.Reload(Rules{nil, DefaultLimits()})
	late, err := mux.Client(t.Context(), &skipsFirst{Conn: x}, mux.Config{})
	if err == nil {
		select {
		case <-late.Done():
		case <-time.After(time.Minute):
			t.Error("a device that was removed is attached")
		}
	}
}

// skipsFirst does not write its first octet, which was written before.
type skipsFirst struct {
	net.Conn
	once bool
}

func (s *skipsFirst) Write(b []byte) (int, error) {
	if s.once {
		return s.Conn.Write(b)
	}
	s.once = true
	n, err := s.Conn.Write(b[1:])
	return n + 1, err
}

func waitFor(t *testing.T, is func() bool) {
	t.Helper()
	for late := time.After(time.Minute); !is(); {
		select {
		case <-late:
			t.Fatal("it does not come about")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestDenied: a device that is shut out loses its session and gets no other, though it is known.
func TestDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, DefaultLimits())
		var out atomic.Bool
		b.deps.Deny = func(d device.Device) bool { return out.Load() && d.Name == "a" }
		a := b.mustAttach(b.ids["a"])
		other := b.mustAttach(b.ids["b"])
		synctest.Wait()
		if n := b.Expel(); n != 0 {
			t.Errorf("%d of nobody", n)
		}
		out.Store(true)
		if n := b.Expel(); n != 1 {
			t.Errorf("%d sessions ended", n)
		}
		synctest.Wait()
		if a.Err() == nil || other.Err() != nil {
			t.Errorf("sessions: %v, %v", a.Err(), other.Err())
		}
		if err := b.Admit(b.ids["a"]); err == nil {
			t.Error("who is shut out is admitted")
		}
		if _, err := b.attached(b.ids["a"]); err == nil {
			t.Error("who is shut out has a session")
		}
	})
}

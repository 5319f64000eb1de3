package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
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
	if now := time.Now(); b.tokensWait(now.Add(-tokensFresh/2)) || !b.tokensWait(now.Add(2*tokensFresh)) {
		t.Error("a new token is noticed before the file is read again, or never")
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

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/demophone"
)

// Stage holds the phones and the registrar of a plan. Its methods may be called concurrently.
type Stage struct {
	plan              Plan
	registrar         *demophone.Registrar
	alice, carol, bob *demophone.Phone
	taps              map[string]*demophone.Tap
	// patience bounds each step; tests of failures shorten it.
	patience time.Duration

	mu   sync.Mutex
	legs []leg
	// direct is the comparison without an edge.
	direct demophone.StreamStats
	tell   func(text string)
}

// leg is one call of the story, with both of its ends.
type leg struct {
	from, to string
	inward   bool
	near     *demophone.Call
	far      *demophone.Call
}

// New binds the sockets of the plan. tell is called with a line for each thing that happens.
func New(plan Plan, log *zap.Logger, tell func(text string)) (*Stage, error) {
	s := &Stage{plan: plan, taps: make(map[string]*demophone.Tap), patience: patience, tell: tell}
	outside := []netip.Addr{plan.EdgeOutside.Addr(), plan.Registrar.Addr(), plan.Bob.Addr()}
	inside := []netip.Addr{plan.EdgeInside.Addr()}
	err := errors.Join(
		s.tap("registrar", plan.Registrar, outside), s.tap("bob", plan.Bob, outside),
		s.tap("alice", plan.Alice, inside), s.tap("carol", plan.Carol, inside))
	if err == nil {
		err = s.hosts(log)
	}
	if err != nil {
		for _, t := range s.taps {
			t.Close()
		}
		return nil, err
	}
	return s, nil
}

func (s *Stage) tap(name string, at netip.AddrPort, allowed []netip.Addr) error {
	c, err := bind(at)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.taps[name] = demophone.NewTap(c, allowed...)
	return nil
}

func (s *Stage) hosts(log *zap.Logger) error {
	var errs [4]error
	phone := func(name string, proxy, edge netip.AddrPort, err *error) *demophone.Phone {
		cfg := demophone.Config{User: name, Domain: Domain, Proxy: proxy, MediaSource: edge.Addr()}
		var p *demophone.Phone
		p, *err = demophone.New(cfg, s.taps[name], log.Named(name))
		return p
	}
	s.alice = phone("alice", s.plan.EdgeInside, s.plan.EdgeInside, &errs[0])
	s.carol = phone("carol", s.plan.EdgeInside, s.plan.EdgeInside, &errs[1])
	s.bob = phone("bob", s.plan.Registrar, s.plan.EdgeOutside, &errs[2])
	s.registrar, errs[3] = demophone.NewRegistrar(Domain, s.taps["registrar"], log.Named("registrar"))
	return errors.Join(errs[:]...)
}

// Serve runs the phones and the registrar until ctx ends, then closes their sockets.
func (s *Stage) Serve(ctx context.Context) error {
	serve := []func(context.Context) error{s.alice.Serve, s.carol.Serve, s.bob.Serve, s.registrar.Serve}
	errs := make([]error, len(serve))
	var wg sync.WaitGroup
	for i, f := range serve {
		wg.Go(func() { errs[i] = f(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Row describes a call and its two streams, for a table.
type Row struct {
	From, To string
	// State is "talking" or "ended".
	State string
	// Age is the time since the answer, or the length of an ended call.
	Age time.Duration
	// There is the audio from the caller as the callee heard it, Back the other direction.
	There, Back demophone.StreamStats
	// SentThere and SentBack count the packets sent in each direction.
	SentThere, SentBack int
}

// Rows returns all calls so far, in order.
func (s *Stage) Rows() []Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := make([]Row, 0, len(s.legs))
	for _, l := range s.legs {
		near, far := l.near.Stats(), l.far.Stats()
		r := Row{From: l.from, To: l.to, State: "talking", Age: l.near.Length(),
			There: far, Back: near, SentThere: near.Sent, SentBack: far.Sent}
		if l.near.Ended() {
			r.State = "ended"
		}
		rows = append(rows, r)
	}
	return rows
}

func (s *Stage) phone(name string) *demophone.Phone {
	return map[string]*demophone.Phone{"alice": s.alice, "carol": s.carol, "bob": s.bob}[name]
}

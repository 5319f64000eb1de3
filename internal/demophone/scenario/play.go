package scenario

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"edged.dev/edged/internal/demophone"
)

const (
	// patience bounds a registration, a call's answer and a BYE.
	patience = 10 * time.Second
	// registration is the lifetime that phones ask for.
	registration = time.Hour
	// silence is how long a call without the edge may go unanswered before it counts as impossible.
	silence = time.Second
	// settle bounds the wait for packets that are under way when talking stops.
	settle = 2 * time.Second
	// directFrames is the number of frames (20 ms each) of the comparison without an edge.
	directFrames = 40
)

// Prove shows that there is no other way between the two networks than the edge: phones of one
// call the other's directly and get no answer.
func (s *Stage) Prove(ctx context.Context) []Check {
	s.tell("alice calls bob directly, and bob calls alice: neither must hear the other")
	var wg sync.WaitGroup
	var outward, inward error
	var direct demophone.StreamStats
	var directErr error
	short, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	wg.Go(func() { _, outward = s.alice.CallAt(short, "bob", s.plan.Bob) })
	wg.Go(func() { _, inward = s.bob.CallAt(short, "alice", s.plan.Alice) })
	wg.Go(func() {
		limit, cancel := context.WithTimeout(ctx, s.patience)
		defer cancel()
		direct, directErr = demophone.Direct(limit, s.plan.Alice.Addr(), directFrames)
	})
	wg.Wait()
	s.mu.Lock()
	s.direct = direct
	s.mu.Unlock()
	var refusedByBob, refusedByAlice int
	wait(ctx, s.patience, func() bool {
		refusedByBob, refusedByAlice = s.taps["bob"].Refused(s.plan.Inside), s.taps["alice"].Refused(s.plan.Outside)
		return refusedByBob > 0 && refusedByAlice > 0
	})
	checks := []Check{{Name: "no way around the edge",
		OK:     outward != nil && inward != nil && refusedByBob > 0 && refusedByAlice > 0,
		Detail: fmt.Sprintf("direct calls unanswered; bob refused %d packets, alice %d", refusedByBob, refusedByAlice)}}
	if directErr != nil {
		checks = append(checks, Check{Name: "comparison without an edge", Detail: directErr.Error()})
	}
	return checks
}

// Register registers bob at the registrar, and alice and carol through the edge.
func (s *Stage) Register(ctx context.Context) []Check {
	var checks []Check
	for _, name := range []string{"bob", "alice", "carol"} {
		limit, cancel := context.WithTimeout(ctx, s.patience)
		granted, err := s.phone(name).Register(limit, registration)
		cancel()
		contact, known := s.registrar.Contact(name)
		want := s.plan.EdgeOutside.Addr()
		if name == "bob" {
			want = s.plan.Bob.Addr()
		}
		c := Check{Name: name + " is registered", OK: err == nil && known && contact.Addr() == want && granted > 0,
			Detail: fmt.Sprintf("the registrar reaches %s at %v for %v", name, contact, granted)}
		if err != nil {
			c.Detail = err.Error()
		}
		s.tell(c.Name + ": " + c.Detail)
		checks = append(checks, c)
	}
	return checks
}

// KeepRegistered refreshes all registrations until ctx ends or one of them fails.
func (s *Stage) KeepRegistered(ctx context.Context) error {
	phones := []*demophone.Phone{s.bob, s.alice, s.carol}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(phones))
	var wg sync.WaitGroup
	for i, p := range phones {
		wg.Go(func() {
			defer cancel()
			errs[i] = p.KeepRegistered(ctx, registration)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Talk makes the calls of one act at the same time, lets them talk for the given time, ends them
// and judges them.
func (s *Stage) Talk(ctx context.Context, talk time.Duration, pairs ...[2]string) []Check {
	checks := make([]Check, len(pairs))
	var wg sync.WaitGroup
	for i, pair := range pairs {
		wg.Go(func() { checks[i] = s.one(ctx, talk, pair[0], pair[1], i%2 == 1) })
	}
	wg.Wait()
	return checks
}

// one makes one call. The callee ends it if farEnds is set, else the caller.
func (s *Stage) one(ctx context.Context, talk time.Duration, from, to string, farEnds bool) Check {
	c := Check{Name: from + " calls " + to}
	l, err := s.dial(ctx, from, to)
	if err != nil {
		c.Detail = err.Error()
		s.tell(c.Name + ": " + c.Detail)
		return c
	}
	s.tell(fmt.Sprintf("%s: answered after %v; %s hears %s at %v", c.Name, l.near.Setup.Round(10*time.Microsecond), from, to, l.near.Media))
	wait(ctx, talk, func() bool { return false })
	wait(ctx, s.patience, func() bool { return l.spoken(talk) }) // a busy machine starts late
	l.near.Quiet()
	l.far.Quiet()
	wait(ctx, settle, func() bool {
		a, b := l.near.Stats(), l.far.Stats()
		return a.Received >= b.Sent && b.Received >= a.Sent
	})
	c.OK, c.Detail = s.judge(l, talk)
	ender := l.near
	if farEnds {
		ender = l.far
	}
	limit, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	err = ender.Hangup(limit)
	wait(limit, s.patience, func() bool { return l.near.Ended() && l.far.Ended() })
	if err != nil || !l.near.Ended() || !l.far.Ended() {
		c.OK, c.Detail = false, fmt.Sprintf("the call did not end at both sides: %v; %s", err, c.Detail)
	}
	s.tell(c.Name + ": " + c.Detail)
	return c
}

// spoken tells whether both have sent as much as talk should bring at least.
func (l leg) spoken(talk time.Duration) bool {
	least := int(talk/(20*time.Millisecond)) * wantFrames / 100
	return l.near.Stats().Sent >= least && l.far.Stats().Sent >= least
}

func (s *Stage) dial(ctx context.Context, from, to string) (leg, error) {
	limit, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	near, err := s.phone(from).Call(limit, to)
	if err != nil {
		return leg{}, err
	}
	far := s.phone(to).Find(near.ID)
	if far == nil {
		err := near.Hangup(limit)
		return leg{}, errors.Join(errors.New("somebody else answered"), err)
	}
	l := leg{from: from, to: to, inward: from == "bob", near: near, far: far}
	s.mu.Lock()
	s.legs = append(s.legs, l)
	s.mu.Unlock()
	return l, nil
}

// wait returns when ok does, when d is over, or when ctx ends.
func wait(ctx context.Context, d time.Duration, ok func() bool) {
	limit := time.NewTimer(d)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-tick.C:
		}
	}
}

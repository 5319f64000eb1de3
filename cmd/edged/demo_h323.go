package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"edged.dev/edged/internal/demophone/scenario"
	"edged.dev/edged/internal/h323phone"
)

// The demo's H.323 calls: between hosts on which SIP phones live already, on another port.

const (
	// demoPatience bounds what one H.323 call of the demo may take to be set up and heard.
	demoPatience = 20 * time.Second
	// demoFrames is how many packets of audio each side must hear, 20 ms each.
	demoFrames = 25
)

// demoH323Port is that of call signalling: 1720, or beside it as that of SIP is.
func demoH323Port(p scenario.Plan) uint16 { return p.EdgeInside.Port() - 5060 + 1720 }

// demoH323Config is the section of the edge's configuration.
func demoH323Config(p scenario.Plan) string {
	port := demoH323Port(p)
	return fmt.Sprintf(`h323:
  listen: ["tcp://inside:%[1]d", "tcp://outside:%[1]d"]
  aliases: {alice: "%[2]s:%[1]d", bob: "%[3]s:%[1]d"}
`, port, p.Alice.Addr(), p.Bob.Addr())
}

// demoH323Calls are the calls, each way and in each of the usual modes.
func demoH323Calls() []demoH323Call {
	fast := h323phone.Mode{FastStart: true}
	fastTunnelled := h323phone.Mode{FastStart: true, Tunnelling: true}
	return []demoH323Call{
		{"slow start", false, h323phone.Mode{}, h323phone.Mode{}},
		{"fast start", true, fast, fast},
		{"fast start, tunnelled", false, fastTunnelled, fastTunnelled},
		{"T.120", false, h323phone.Mode{T120: true}, h323phone.Mode{}},
	}
}

type demoH323Call struct {
	name string
	// inward: bob, who is outside, calls alice.
	inward         bool
	caller, callee h323phone.Mode
}

// h323 makes the calls one after the other.
func (d *demo) h323(ctx context.Context) (checks []scenario.Check) {
	d.screen.line("H.323: alice and bob call each other with slow and fast start, and share a T.120 channel\n")
	for _, c := range demoH323Calls() {
		name, far := "alice calls bob", "bob"
		if c.inward {
			name, far = "bob calls alice", "alice"
		}
		detail, err := c.run(ctx, d.plan, far)
		check := scenario.Check{Name: fmt.Sprintf("H.323, %s: %s", c.name, name), OK: err == nil, Detail: detail}
		if err != nil {
			check.Detail = err.Error()
		}
		checks = append(checks, check)
	}
	return checks
}

// run sets the call up, waits until both have heard each other, and hangs up.
func (c demoH323Call) run(ctx context.Context, p scenario.Plan, called string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	port := demoH323Port(p)
	from, to, edge := p.Alice.Addr(), p.Bob.Addr(), p.EdgeInside.Addr()
	if c.inward {
		from, to, edge = to, from, p.EdgeOutside.Addr()
	}
	callee, err := h323phone.Listen(netip.AddrPortFrom(to, port), called, c.callee)
	if err != nil {
		return "", err
	}
	defer func() { _ = callee.Close() }()
	caller, err := h323phone.Listen(netip.AddrPortFrom(from, 0), "caller", c.caller)
	if err != nil {
		return "", err
	}
	defer func() { _ = caller.Close() }()
	var taken *h323phone.Call
	var takenErr error
	var taking sync.WaitGroup
	taking.Go(func() { taken, takenErr = callee.Accept(ctx) })
	made, err := caller.Call(ctx, netip.AddrPortFrom(edge, port), called)
	if err != nil {
		cancel()
	}
	_ = callee.Close() // who was not called waits no longer
	taking.Wait()
	for _, call := range []*h323phone.Call{made, taken} {
		if call != nil {
			defer func() { _ = call.Close() }()
		}
	}
	if err := errors.Join(err, takenErr); err != nil {
		return "", fmt.Errorf("not set up: %w", err)
	}
	return c.listen(ctx, made, taken)
}

// listen waits until both have heard enough, and the T.120 channel is open if there is to be one.
func (c demoH323Call) listen(ctx context.Context, made, taken *h323phone.Call) (string, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		a, wrongA := made.Heard()
		b, wrongB := taken.Heard()
		switch {
		case wrongA+wrongB > 0:
			return "", fmt.Errorf("%d packets were not the other's", wrongA+wrongB)
		case a >= demoFrames && b >= demoFrames && (!c.caller.T120 || isOpen(made.Data()) && isOpen(taken.Data())):
			if err := made.Hangup(); err != nil {
				return "", err
			}
			return fmt.Sprintf("heard %d and %d packets, none wrong", a, b), taken.Ended(ctx)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("heard %d and %d packets: %w", a, b, ctx.Err())
		case <-tick.C:
		}
	}
}

// isOpen tells whether a channel that is closed when something has happened is closed.
func isOpen(happened <-chan struct{}) bool {
	select {
	case <-happened:
		return true
	default:
		return false
	}
}

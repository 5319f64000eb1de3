package firewall

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Keeper keeps rules in the kernel for a daemon: applied while it runs, applied again where somebody has removed them,
// and left out when asked to. All methods may be called concurrently.
type Keeper struct {
	rules    Rules
	log      *zap.Logger
	pinholes *Pinholes // nil without Guard
	every    time.Duration

	kernel sync.Mutex // one changes the rules at a time

	mu    sync.Mutex // guards what follows
	state State
}

// State says how the rules are doing, as far as the daemon knows without asking the kernel.
type State struct {
	// Off says that somebody has had the rules removed, and that they stay so.
	Off bool
	// Applied is when they were last put in place; Error is why that, or the last look at them, failed; nil: it did not.
	Applied time.Time
	Error   error
	// Applies counts how often they were put in place, Repairs how often of these because they were not whole.
	Applies, Repairs, Failures uint64
}

// NewKeeper checks the rules; nothing is applied before Serve.
func NewKeeper(rules Rules, log *zap.Logger) (*Keeper, error) {
	if err := rules.Validate(); err != nil {
		return nil, err
	}
	k := &Keeper{rules: rules, log: log, every: renewal}
	if rules.Guard {
		k.pinholes = newPinholes()
	}
	return k, nil
}

// Pinholes returns the ports that are open for a while, nil if the rules have no Guard.
func (k *Keeper) Pinholes() *Pinholes { return k.pinholes }

// State returns how the rules are doing.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Serve applies the rules, calls applied, keeps them until ctx ends, and removes them. It returns an error if they cannot be
// applied at first; later that is logged and tried again.
func (k *Keeper) Serve(ctx context.Context, applied func()) error {
	if err := k.On(); err != nil {
		return err
	}
	applied()
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	var wake chan struct{} // nil: never
	if k.pinholes != nil {
		wake = k.pinholes.wake
	}
	for {
		select {
		case <-ctx.Done():
			k.kernel.Lock()
			defer k.kernel.Unlock()
			return Remove(k.rules.Config)
		case <-wake:
			k.step(k.tell)
		case <-tick.C:
			k.step(k.look)
		}
	}
}

// step does something with rules that are in place; where they are not any more, they are applied again.
func (k *Keeper) step(do func() error) {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	if k.State().Off {
		return
	}
	err := do()
	if err == nil {
		k.note(func(s *State) { s.Error = nil })
		return
	}
	k.log.Warn("the rules are not whole: they are applied again", zap.Error(err))
	if err = k.apply(); err != nil {
		k.log.Error("the rules are not applied", zap.Error(err))
		return
	}
	k.note(func(s *State) { s.Repairs++ })
}

func (k *Keeper) note(change func(*State)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.state)
}

// tell brings the sets up to date.
func (k *Keeper) tell() error { return k.pinholes.update(false) }

// look finds out whether all is there that was applied, and renews what has a timeout.
func (k *Keeper) look() error {
	added, err := route(k.rules)
	if err != nil {
		return err
	}
	if added {
		k.note(func(s *State) { s.Repairs++ })
		k.log.Warn("the policy routing was gone: it is there again")
	}
	f, err := Read()
	if err != nil {
		return err
	}
	if f.Rules != k.rules.count() {
		return fmt.Errorf("nftables: table inet %s has %d rules of %d", TableName, f.Rules, k.rules.count())
	}
	if k.pinholes == nil {
		return nil
	}
	return k.pinholes.update(true)
}

// apply puts all in place.
func (k *Keeper) apply() error {
	err := Apply(k.rules)
	if err == nil && k.pinholes != nil {
		err = k.pinholes.update(true)
	}
	k.note(func(s *State) {
		if s.Error = err; err != nil {
			s.Failures++
			return
		}
		s.Applied, s.Off = time.Now(), false
		s.Applies++
	})
	return err
}

// On applies the rules, also after Off.
func (k *Keeper) On() error {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	return k.apply()
}

// Off removes the rules, and leaves it so until On.
func (k *Keeper) Off() error {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	err := Remove(k.rules.Config)
	k.note(func(s *State) {
		if s.Error = err; err == nil {
			s.Off = true
		}
	})
	return err
}

// errAbsent says that there is no table.
var errAbsent = errors.New("nftables: there is no table inet " + TableName)

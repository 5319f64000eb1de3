package firewall

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
)

const (
	// lifetime is how long a pinhole stays in its set if nobody renews it: after the daemon was killed.
	lifetime = time.Minute
	// renewal is how often those that are open are renewed.
	renewal = lifetime / 3
	// atOnce bounds the ports of one transaction.
	atOnce = 500
)

// Pinholes are the ports that are open, which a [Keeper] has in the sets of its table. The methods may be called concurrently; Set
// does not wait for the kernel.
type Pinholes struct {
	wake chan struct{} // of size 1

	mu      sync.Mutex
	open    map[Port]bool
	changed map[Port]bool // is not yet in the set, or not yet out of it
}

func newPinholes() *Pinholes {
	return &Pinholes{wake: make(chan struct{}, 1), open: map[Port]bool{}, changed: map[Port]bool{}}
}

// Set has packets for a port marked, or not any more.
func (p *Pinholes) Set(port Port, open bool) {
	p.mu.Lock()
	if open {
		p.open[port] = true
	} else {
		delete(p.open, port)
	}
	p.changed[port] = true
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Len counts the ports that are open.
func (p *Pinholes) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open)
}

// update tells the kernel what has changed, or all that is open.
func (p *Pinholes) update(all bool) error {
	p.mu.Lock()
	todo := p.changed
	p.changed = map[Port]bool{}
	if all {
		maps.Copy(todo, p.open)
	}
	open := make(map[Port]bool, len(todo))
	for port := range todo {
		open[port] = p.open[port]
	}
	p.mu.Unlock()
	for some := range slices.Chunk(slices.Collect(maps.Keys(todo)), atOnce) {
		if err := send(some, open); err != nil {
			return err
		}
	}
	return nil
}

// send is one transaction. Each port is added, so that there is something to delete, deleted, and added anew if it is open:
// only that renews its timeout on every kernel.
func send(ports []Port, open map[Port]bool) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	for _, f := range sides() {
		var every, fresh []nftables.SetElement
		for _, port := range f.only(ports) {
			x := element(port)
			x.Timeout = lifetime
			every = append(every, x)
			if open[port] {
				fresh = append(fresh, x)
			}
		}
		set := f.set(table, pinholesSet)
		for _, step := range []struct {
			do   func(*nftables.Set, []nftables.SetElement) error
			list []nftables.SetElement
		}{{conn.SetAddElements, every}, {conn.SetDeleteElements, every}, {conn.SetAddElements, fresh}} {
			if len(step.list) == 0 {
				continue
			}
			if err := step.do(set, step.list); err != nil {
				return fmt.Errorf("nftables: set %s: %w", set.Name, err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: pinholes: %w", explain(err))
	}
	return nil
}

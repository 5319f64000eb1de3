package link

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Packets carries datagrams between the two devices, and nobody else reads, makes or repeats one. Send must not wait and leaves b
// to the caller; what Receive returns is the caller's. One Receive runs at a time.
type Packets interface {
	Send(b []byte) error
	Receive(ctx context.Context) ([]byte, error)
}

// Interface is the kernel's side: each Read returns one IP packet, each Write is one. Close ends both. [Tun] is one.
type Interface interface {
	io.ReadWriteCloser
}

// Why packets are dropped, as the reason label of metrics.
const (
	dropMalformed = "malformed"
	dropSource    = "source"      // not the address of the end that it comes from
	dropTarget    = "destination" // not the other's: router solicitations and the like
	dropDown      = "down"        // no carrier
	dropSend      = "send"
	dropWrite     = "write"
)

// Link is one end of a wire. Its methods may be called concurrently.
type Link struct {
	cfg Config
	tun Interface
	log *zap.Logger

	// newest is the carrier that packets leave by, nil while the wire is cut.
	newest atomic.Pointer[carrier]
	// packets and octets went out (0) and came in (1).
	packets, octets [2]atomic.Uint64

	mu       sync.Mutex // guards what follows
	carriers []*carrier
	changed  chan struct{} // closed, and made anew, when carriers change
	drops    map[[2]string]uint64
	attached uint64 // carriers so far
}

// carrier is a way to the other end.
type carrier struct{ Packets }

// New returns an end for a valid configuration.
func New(cfg Config, tun Interface, log *zap.Logger) *Link {
	return &Link{cfg: cfg.Completed(), tun: tun, log: log, changed: make(chan struct{}), drops: make(map[[2]string]uint64)}
}

// Up tells whether there is a way to the other end.
func (l *Link) Up() bool { return l.newest.Load() != nil }

// Run takes the kernel's packets until ctx ends; then it closes the interface and returns nil. An error says that the interface has
// gone before.
func (l *Link) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { l.tun.Close() })()
	b := make([]byte, maxMTU+size6)
	for {
		n, err := l.tun.Read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			l.tun.Close()
			return fmt.Errorf("link %s: %w", l.cfg.Name, err)
		}
		if why := l.leaves(b[:n]); why != "" {
			l.drop("out", why)
		}
	}
}

// leaves sends a packet of the kernel's to the other end; "" or why it was dropped.
func (l *Link) leaves(b []byte) string {
	from, to, ok := ends(b)
	switch {
	case !ok:
		return dropMalformed
	case !slices.Contains(l.cfg.Peer, to):
		return dropTarget
	case !slices.Contains(l.cfg.Addresses, from):
		return dropSource
	}
	c := l.newest.Load()
	if c == nil {
		return dropDown
	}
	if c.Send(b) != nil { // its Receive ends too, if that is for good
		return dropSend
	}
	l.packets[0].Add(1)
	l.octets[0].Add(uint64(len(b)))
	return ""
}

// Carry uses p until its end, which it returns, or that of ctx. The newest of several is sent by; from all is received.
func (l *Link) Carry(ctx context.Context, p Packets) error {
	c := &carrier{p}
	l.attach(c, true)
	defer l.attach(c, false)
	for {
		b, err := p.Receive(ctx)
		if err != nil {
			return err
		}
		if why := l.arrives(b); why != "" {
			l.drop("in", why)
		}
	}
}

// attach adds a carrier, or takes it away.
func (l *Link) attach(c *carrier, on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := len(l.carriers) > 0
	if on {
		l.carriers = append(l.carriers, c)
		l.attached++
	} else {
		l.carriers = slices.DeleteFunc(l.carriers, func(x *carrier) bool { return x == c })
	}
	var newest *carrier
	if n := len(l.carriers); n > 0 {
		newest = l.carriers[n-1]
	}
	l.newest.Store(newest)
	close(l.changed)
	l.changed = make(chan struct{})
	if up := newest != nil; up != was {
		l.log.Info("link changed", zap.String("link", l.cfg.Name), zap.Bool("up", up))
	}
}

// arrives gives a packet of the other end's to the kernel; "" or why it was dropped.
func (l *Link) arrives(b []byte) string {
	from, to, ok := ends(b)
	switch {
	case !ok || len(b) > maxMTU:
		return dropMalformed
	case !slices.Contains(l.cfg.Peer, from):
		return dropSource
	case !slices.Contains(l.cfg.Addresses, to):
		return dropTarget
	}
	if _, err := l.tun.Write(b); err != nil {
		return dropWrite
	}
	l.packets[1].Add(1)
	l.octets[1].Add(uint64(len(b)))
	return ""
}

func (l *Link) drop(direction, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drops[[2]string{direction, reason}]++
}

const (
	// tryEvery is how long the next try waits after a failure, doubled up to tryMost, and the first for the other end's.
	tryEvery = time.Second
	tryMost  = 32 * time.Second
	// steady is how long a carrier lasts that is no failure.
	steady = 5 * time.Second
)

// Keep calls try whenever there is no carrier, until ctx ends: at once if first, else after the other end had its time to, so that
// as a rule there is one carrier and not two. try reaches the other end and calls [Link.Carry]; it returns when that has ended.
func (l *Link) Keep(ctx context.Context, first bool, try func(context.Context) error) {
	tries := 1
	if first {
		tries = 0
	}
	for failed := 0; l.down(ctx); {
		if !l.rest(ctx, pause(tries+failed)) {
			continue // ctx has ended, or the other end was quicker
		}
		began := time.Now()
		err := try(ctx)
		if failed++; time.Since(began) >= steady {
			failed = 0
		}
		l.log.Debug("carrier of link ended", zap.String("link", l.cfg.Name), zap.Error(err))
	}
}

// pause returns how long to wait before the n-th try.
func pause(n int) time.Duration {
	if n == 0 {
		return 0
	}
	d := min(tryEvery<<min(n-1, 10), tryMost)
	return d + rand.N(d/2)
}

// down waits until there is no carrier; false if ctx has ended.
func (l *Link) down(ctx context.Context) bool {
	for {
		l.mu.Lock()
		up, changed := len(l.carriers) > 0, l.changed
		l.mu.Unlock()
		if ctx.Err() != nil || !up {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// rest waits; false if a carrier came, or ctx ended, meanwhile.
func (l *Link) rest(ctx context.Context, d time.Duration) bool {
	l.mu.Lock()
	changed := l.changed
	up := len(l.carriers) > 0
	l.mu.Unlock()
	if up {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-t.C:
		return true
	}
	return false
}

// Info is what is known of a link.
type Info struct {
	Name      string       `json:"name"`
	Interface string       `json:"interface"`
	Device    string       `json:"device"`
	Addresses []netip.Addr `json:"addresses"`
	Peer      []netip.Addr `json:"peer"`
	Up        bool         `json:"up"`
	// Carriers are now, CarriersTotal all so far.
	Carriers      int    `json:"carriers"`
	CarriersTotal uint64 `json:"carriers_total"`
	// PacketsOut and so on are IP packets and their octets.
	PacketsOut uint64 `json:"packets_out"`
	PacketsIn  uint64 `json:"packets_in"`
	BytesOut   uint64 `json:"bytes_out"`
	BytesIn    uint64 `json:"bytes_in"`
}

// Info returns what is known now.
func (l *Link) Info() Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Info{
		Name: l.cfg.Name, Interface: l.cfg.Interface(), Device: l.cfg.Device, Addresses: l.cfg.Addresses, Peer: l.cfg.Peer,
		Up: len(l.carriers) > 0, Carriers: len(l.carriers), CarriersTotal: l.attached,
		PacketsOut: l.packets[0].Load(), PacketsIn: l.packets[1].Load(), BytesOut: l.octets[0].Load(), BytesIn: l.octets[1].Load(),
	}
}

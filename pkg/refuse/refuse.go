// Package refuse keeps ports that nobody shall use: it answers nothing, and says who tried.
//
// It is no firewall. What it listens on is refused with a log line; a port on which nobody listens is refused by the
// kernel, silently. A TCP connection has to be accepted before it can be reset, so that a scan calls the port open.
//
//	connection ─► reset ───┐
//	datagram   ─► dropped ─┴─► counted by port and source, logged once a minute and source
package refuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

const (
	// logEvery is how often one source at one port is logged at most.
	logEvery = time.Minute
	// maxSources bounds how many sources are remembered, of all ports; the oldest is forgotten first.
	maxSources = 1024
	// rest is how long a socket waits after an error, e.g. when descriptors have run out.
	rest = 100 * time.Millisecond
)

// Attempts are what one source has tried at one port.
type Attempts struct {
	// Port is the port's name, e.g. "tcp://outside:135".
	Port   string     `json:"port"`
	Source netip.Addr `json:"source"`
	Count  uint64     `json:"count"`
	First  time.Time  `json:"first"`
	Last   time.Time  `json:"last"`

	logged time.Time
}

// Refuser refuses what comes to its ports. Its methods may be called by any goroutine.
type Refuser struct {
	total *prometheus.CounterVec
	log   *zap.Logger
	now   func() time.Time

	mu       sync.Mutex
	attempts map[source]*Attempts
}

type source struct {
	port string
	addr netip.Addr
}

// New returns a refuser without ports.
func New(log *zap.Logger) *Refuser {
	return &Refuser{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_blocked_total", Help: "Connections and datagrams to ports that are blocked.",
		}, []string{"port"}),
		log: log, now: time.Now, attempts: map[source]*Attempts{},
	}
}

// ServeListener resets what ln accepts until ctx ends; port names it in logs and metrics.
func (r *Refuser) ServeListener(ctx context.Context, port string, ln net.Listener) error {
	r.total.WithLabelValues(port)
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if end, err := r.failed(ctx, port, err); end {
				return err
			}
			continue
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		conn.Close()
		r.note(port, conn.RemoteAddr())
	}
}

// ServePacket drops what comes to conn until ctx ends; port names it in logs and metrics.
func (r *Refuser) ServePacket(ctx context.Context, port string, conn net.PacketConn) error {
	r.total.WithLabelValues(port)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := make([]byte, 1) // the rest of the datagram is cut off
	for {
		_, from, err := conn.ReadFrom(b)
		if err != nil {
			if end, err := r.failed(ctx, port, err); end {
				return err
			}
			continue
		}
		r.note(port, from)
	}
}

// failed tells whether an error ends a port, and if so what is to be returned.
func (r *Refuser) failed(ctx context.Context, port string, err error) (end bool, out error) {
	switch {
	case ctx.Err() != nil:
		return true, nil
	case errors.Is(err, net.ErrClosed):
		return true, fmt.Errorf("blocked %s: %w", port, err)
	}
	r.log.Warn("blocked port not read", zap.String("port", port), zap.Error(err))
	select {
	case <-ctx.Done():
		return true, nil
	case <-time.After(rest):
		return false, nil
	}
}

// note counts an attempt, and logs it unless that source has been logged at that port just now.
func (r *Refuser) note(port string, from net.Addr) {
	r.total.WithLabelValues(port).Inc()
	ap, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return
	}
	key, now := source{port, ap.Addr().Unmap()}, r.now()
	r.mu.Lock()
	a := r.attempts[key]
	if a == nil {
		r.makeRoomLocked()
		a = &Attempts{Port: port, Source: key.addr, First: now}
		r.attempts[key] = a
	}
	a.Count++
	a.Last = now
	say := now.Sub(a.logged) >= logEvery
	if say {
		a.logged = now
	}
	count := a.Count
	r.mu.Unlock()
	if say {
		r.log.Info("blocked", zap.String("port", port), zap.Stringer("source", ap), zap.Uint64("attempts", count))
	}
}

// makeRoomLocked forgets the source that has been quiet for longest when there are too many.
func (r *Refuser) makeRoomLocked() {
	if len(r.attempts) < maxSources {
		return
	}
	var oldest source
	for key, a := range r.attempts {
		if o := r.attempts[oldest]; o == nil || a.Last.Before(o.Last) {
			oldest = key
		}
	}
	delete(r.attempts, oldest)
}

// Attempts lists who tried, the latest first.
func (r *Refuser) Attempts() []Attempts {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Attempts, 0, len(r.attempts))
	for _, a := range r.attempts {
		list = append(list, *a)
	}
	slices.SortFunc(list, func(a, b Attempts) int { return b.Last.Compare(a.Last) })
	return list
}

// Describe implements [prometheus.Collector].
func (r *Refuser) Describe(ch chan<- *prometheus.Desc) { r.total.Describe(ch) }

// Collect implements [prometheus.Collector].
func (r *Refuser) Collect(ch chan<- prometheus.Metric) { r.total.Collect(ch) }

var _ prometheus.Collector = (*Refuser)(nil)

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

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

const (
	// logEvery is how often one source at one port is logged at most.
	logEvery = time.Minute
	// maxSources bounds how many sources are remembered, of all ports; the oldest is forgotten first.
	maxSources = 1024
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
	err := gate.Accept(ctx, ln, func(conn net.Conn) {
		gate.Reset(conn)
		r.note(port, conn.RemoteAddr())
	}, func(err error) { r.unread(port, err) })
	if err != nil {
		return fmt.Errorf("blocked %s: %w", port, err)
	}
	return nil
}

// ServePacket drops what comes to conn until ctx ends; port names it in logs and metrics.
func (r *Refuser) ServePacket(ctx context.Context, port string, conn net.PacketConn) error {
	r.total.WithLabelValues(port)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := make([]byte, 1) // the rest of the datagram is cut off
	for {
		_, from, err := conn.ReadFrom(b)
		switch {
		case err == nil:
			r.note(port, from)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("blocked %s: %w", port, err)
		default:
			r.unread(port, err)
			gate.Rest(ctx)
		}
	}
}

func (r *Refuser) unread(port string, err error) {
	r.log.Warn("blocked port not read", zap.String("port", port), zap.Error(err))
}

// note counts an attempt, and logs it unless that source has been logged at that port just now.
func (r *Refuser) note(port string, from net.Addr) {
	r.total.WithLabelValues(port).Inc()
	ap := pinhole.AddrPortOf(from)
	key, now := source{port, ap.Addr()}, r.now()
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

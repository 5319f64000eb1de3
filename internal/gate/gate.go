// Package gate takes connections in for the servers of TCP protocols: it bounds how many there are, in all and of one
// source, refuses new ones while a server drains, survives a lack of descriptors, and waits for the end of those that it
// has let in. It reads and writes nothing, and knows no protocol. [Accept] is the loop alone, for who admits otherwise.
//
//	listener ─► Gate.Serve ─► admitted? ── no ──► refused(why), closed
//	                             └── yes ─► serve(ctx, conn) on its own goroutine ─► closed, counted out
package gate

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"edged.dev/edged/pkg/pinhole"
)

// Why a connection is refused, as the reason label of metrics.
const (
	Connections = "connections" // the limit of all or of one source
	Draining    = "draining"
)

// Gate counts connections. Its methods may be called concurrently.
type Gate struct {
	limit int

	mu        sync.Mutex // guards what follows
	perSource int
	open      int
	sources   map[netip.Addr]int
	draining  bool
}

// New returns a gate for at most limit connections at one time, and perSource of one address; 0 = no limit of that.
func New(limit, perSource int) *Gate {
	return &Gate{limit: limit, perSource: perSource, sources: make(map[netip.Addr]int)}
}

// SetPerSource changes the limit of one source for new connections; 0 = none.
func (g *Gate) SetPerSource(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.perSource = n
}

// Drain has new connections refused; those that are open go on.
func (g *Gate) Drain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.draining = true
}

// Drains tells whether new connections are refused.
func (g *Gate) Drains() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.draining
}

// Open returns how many connections there are.
func (g *Gate) Open() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// Serve accepts connections on ln until ctx ends and all of them have ended; then it returns nil. Each is given to
// serve, with a context that ends with ctx, and closed when that returns. refused is told why one was not let in.
func (g *Gate) Serve(ctx context.Context, ln net.Listener, serve func(context.Context, net.Conn), refused func(why string)) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return Accept(ctx, ln, func(conn net.Conn) {
		source := pinhole.AddrPortOf(conn.RemoteAddr()).Addr()
		if why := g.Enter(source); why != "" {
			refused(why)
			conn.Close()
			return
		}
		work.Go(func() {
			defer g.Leave(source)
			defer conn.Close()
			serve(ctx, conn)
		})
	}, func(error) {})
}

// Enter counts a connection of a source in that [Gate.Serve] has not accepted, or returns why it is refused. Who was let in
// must Leave.
func (g *Gate) Enter(source netip.Addr) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.limit > 0 && g.open >= g.limit, g.perSource > 0 && g.sources[source] >= g.perSource:
		return Connections
	case g.draining:
		return Draining
	}
	g.open++
	g.sources[source]++
	return ""
}

// Leave counts a connection out.
func (g *Gate) Leave(source netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if g.sources[source]--; g.sources[source] <= 0 {
		delete(g.sources, source)
	}
}

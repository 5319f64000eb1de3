package sharedport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

// Limits of connections of which it is not known yet what they are.
const (
	defaultWait = 3 * time.Second
	maxPending  = 1024
)

// Match is which connections a listener gets.
type Match struct {
	Class Class
	// Names are server names, each a host name in lower case or "*." and one, which stands for one label more.
	// Empty: those of the class that no other listener names.
	Names []string
}

// Port is a TCP port that services share.
type Port struct {
	ln        net.Listener
	wait      time.Duration
	perSource atomic.Int64
	count     *Counters
	log       *zap.Logger

	// names and defaults are complete before Serve.
	names    map[string]*listener
	defaults map[Class]*listener
	parts    []*listener

	said gate.Said // who was refused

	mu      sync.Mutex // guards what follows
	pending int
	sources map[netip.Addr]int
}

// New returns a port on a listener of TCP connections, which it owns. One source may have perSource of which it is not
// known yet what they are; 0 = no limit of its own. The counters may be those of other ports too.
func New(ln net.Listener, perSource int, count *Counters, log *zap.Logger) *Port {
	p := &Port{
		ln: ln, wait: defaultWait, count: count, log: log, names: map[string]*listener{}, defaults: map[Class]*listener{},
		sources: map[netip.Addr]int{},
	}
	p.SetPerSource(perSource)
	return p
}

// SetPerSource changes the limit of one source, for new connections.
func (p *Port) SetPerSource(n int) { p.perSource.Store(int64(n)) }

// Listener returns the listener of what matches. Call it before Serve. A name, or the rest of a class,
// that another listener has already is an error.
func (p *Port) Listener(m Match) (net.Listener, error) {
	l := &listener{addr: p.ln.Addr(), conns: make(chan net.Conn), done: make(chan struct{})}
	if len(m.Names) == 0 {
		if p.defaults[m.Class] != nil {
			return nil, fmt.Errorf("share %v: %s has two defaults", l.addr, m.Class)
		}
		p.defaults[m.Class] = l
	}
	for _, n := range m.Names {
		if p.names[n] != nil {
			return nil, fmt.Errorf("share %v: %s is named twice", l.addr, n)
		}
		p.names[n] = l
	}
	p.parts = append(p.parts, l)
	return l, nil
}

// Serve hands connections out until ctx ends; then it closes the port. Its listeners are closed by their owners, whose
// own end may be a little later, or when the port fails. Connections that were handed out are their owners' too.
func (p *Port) Serve(ctx context.Context) error {
	var open sync.WaitGroup
	defer open.Wait()
	err := gate.Accept(ctx, p.ln, func(conn net.Conn) { p.accepted(ctx, conn, &open) }, func(err error) {
		p.log.Warn("connection not accepted", zap.Stringer("listener", p.ln.Addr()), zap.Error(err))
	})
	if err != nil {
		for _, l := range p.parts {
			l.end()
		}
		return fmt.Errorf("share %v: %w", p.ln.Addr(), err)
	}
	return nil
}

// accepted has a connection looked at, if there is room.
func (p *Port) accepted(ctx context.Context, conn net.Conn, open *sync.WaitGroup) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		conn.Close()
		return
	}
	source, most := pinhole.AddrPortOf(tcp.RemoteAddr()).Addr(), int(p.perSource.Load())
	p.mu.Lock()
	room := p.pending < maxPending && (most == 0 || p.sources[source] < most)
	if room {
		p.pending++
		p.sources[source]++
	}
	p.mu.Unlock()
	if !room {
		p.refuse(tcp, source, First{}, "limit")
		return
	}
	open.Go(func() { p.serve(ctx, tcp, source) })
}

// serve hands one connection to whom it is for.
func (p *Port) serve(ctx context.Context, c *net.TCPConn, source netip.Addr) {
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	first, err := Peek(c, p.wait)
	stop()
	p.mu.Lock()
	p.pending--
	if p.sources[source]--; p.sources[source] == 0 {
		delete(p.sources, source)
	}
	p.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		gate.Reset(c)
	case errors.Is(err, io.EOF):
		p.refuse(c, source, first, "ended")
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.refuse(c, source, first, "silent")
	case err != nil:
		p.refuse(c, source, first, "error")
	default:
		p.hand(ctx, c, source, first)
	}
}

func (p *Port) hand(ctx context.Context, c *net.TCPConn, source netip.Addr, first First) {
	l := p.find(first)
	if l == nil {
		p.refuse(c, source, first, "not_served")
		return
	}
	select {
	case l.conns <- c:
		p.count.passed(first.Class)
	case <-l.done:
		p.refuse(c, source, first, "closed")
	case <-ctx.Done():
		gate.Reset(c)
	}
}

// find returns the listener of a connection, nil if none wants it.
func (p *Port) find(f First) *listener {
	if f.Class == TLS && f.Name != "" {
		if l := p.names[f.Name]; l != nil {
			return l
		}
		if _, parent, ok := strings.Cut(f.Name, "."); ok && p.names["*."+parent] != nil {
			return p.names["*."+parent]
		}
	}
	return p.defaults[f.Class]
}

// refuse resets a connection, counts it and, for each source once in a while, logs it.
func (p *Port) refuse(c *net.TCPConn, source netip.Addr, f First, why string) {
	gate.Reset(c)
	p.count.refused(f.Class, why)
	if p.said.Again(source, time.Now()) {
		p.log.Info("connection refused", zap.Stringer("listener", p.ln.Addr()), zap.Stringer("source", source),
			zap.String("class", string(f.Class)), zap.String("server_name", f.Name), zap.String("reason", why))
	}
}

// listener is a service's part of a port.
type listener struct {
	addr  net.Addr
	conns chan net.Conn // unbuffered: a connection is somebody's at any time
	once  sync.Once
	done  chan struct{}
}

// Accept waits for a connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, fmt.Errorf("accept %v: %w", l.addr, net.ErrClosed)
	}
}

// Close ends Accept. The port stays open for the others.
func (l *listener) Close() error {
	l.end()
	return nil
}

func (l *listener) end() { l.once.Do(func() { close(l.done) }) }

// Addr returns the port's address.
func (l *listener) Addr() net.Addr { return l.addr }

var _ net.Listener = (*listener)(nil)

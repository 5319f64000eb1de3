package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"edged.dev/edged/pkg/splice"
)

const (
	dialTimeout = 10 * time.Second
	// acceptRest is how long a listener waits when descriptors have run out.
	acceptRest = 100 * time.Millisecond
	// logEvery is how often a source that is not allowed is logged at most, maxLogged how many are remembered for that.
	logEvery  = time.Minute
	maxLogged = 4096
)

// Reasons for which a connection is refused or ended, as metrics name them.
const (
	notAllowed  = "not_allowed"
	limited     = "max_connections"
	sourceLimit = "per_source"
	draining    = "draining"
	dialFailed  = "dial"
	endedIdle   = "idle"
	endedReset  = "reset"
	endedStop   = "stopped"
	endedOrder  = "closed"
	clientTLS   = "client_tls"
	targetTLS   = "target_tls"
)

// Kernel carries connections that need not be seen, where it can.
type Kernel interface {
	// Carry has the kernel carry what connects to listen, under the rule's policy but for per_source, until
	// the Carried is closed. The caller listens there too, for what the kernel leaves alone.
	Carry(r Rule, listen netip.AddrPort) (Carried, error)
}

// Carried is a rule at one address in the kernel.
type Carried interface {
	// Figures may be called at any time.
	Figures() (Figures, error)
	// Drain has the kernel leave new connections to the listener; those that are open go on.
	Drain() error
	Close() error
}

// Figures are what a path did for a rule.
type Figures struct {
	// Why says why the path carries nothing, "" if it does.
	Why string
	// Open are connections now, Total all so far.
	Open  int
	Total uint64
	// Bytes came from clients (0) and from the target (1).
	Bytes [2]uint64
	// Refused are packets or connections that were not let through, by reason.
	Refused map[string]uint64
}

// Deps are what a forwarder works with.
type Deps struct {
	Joiner *splice.Joiner
	// Kernel is nil if there is none.
	Kernel Kernel
	// TLS is needed by rules that terminate it.
	TLS TLSConfigs
	// PerSource is the limit for rules without their own; 0 = none.
	PerSource int
}

// Forwarder forwards by its rules.
type Forwarder struct {
	deps      Deps
	rules     []*rule
	perSource atomic.Int64
	draining  atomic.Bool
	log       *zap.Logger
}

// rule is a Rule at work.
type rule struct {
	Rule
	mu sync.Mutex
	// open are the connections of user space, sources how many of one address.
	open    map[*connection]struct{}
	sources map[netip.Addr]int
	total   uint64
	bytes   [2]uint64 // of connections that have ended
	refused map[string]uint64
	ended   map[string]uint64
	// logged is when a source was last said to be not allowed.
	logged map[netip.Addr]time.Time
	// carried are the rule's parts in the kernel; why says why there are none.
	carried []Carried
	why     string
}

type connection struct {
	client   netip.AddrPort
	begun    time.Time
	counters splice.Counters
}

// New returns a forwarder for rules that are valid.
func New(rules []Rule, deps Deps, log *zap.Logger) *Forwarder {
	f := &Forwarder{deps: deps, log: log}
	f.SetPerSource(deps.PerSource)
	for _, r := range rules {
		f.rules = append(f.rules, &rule{
			Rule: r.Completed(), open: map[*connection]struct{}{}, sources: map[netip.Addr]int{},
			refused: map[string]uint64{}, ended: map[string]uint64{}, logged: map[netip.Addr]time.Time{}, why: r.whyUser(),
		})
	}
	return f
}

// unread tells whether nobody need look at what passes.
func (r Rule) unread() bool { return len(r.SNI) == 0 && r.TLS != TLSTerminate }

// whyUser says why the kernel does not carry a rule that it has not been asked about.
func (r Rule) whyUser() string {
	if !r.unread() {
		return "TLS is looked at in user space"
	}
	return "via is user"
}

// SetPerSource changes the limit of rules without their own, for new connections; 0 = none.
func (f *Forwarder) SetPerSource(n int) { f.perSource.Store(int64(n)) }

// Drain has new connections refused; those that are open go on.
func (f *Forwarder) Drain() {
	f.draining.Store(true)
	for _, r := range f.rules {
		r.mu.Lock()
		carried := slices.Clone(r.carried)
		r.mu.Unlock()
		for _, c := range carried {
			f.drain(r, c)
		}
	}
}

// drain has the kernel begin no connections of a rule any more.
func (f *Forwarder) drain(r *rule, c Carried) {
	if err := c.Drain(); err != nil {
		f.log.Error("the kernel goes on to accept", zap.String("forward", r.Name), zap.Error(err))
	}
}

// Open returns how many connections there are, on either path.
func (f *Forwarder) Open() int {
	n := 0
	for _, r := range f.rules {
		s := r.snapshot()
		n += s.user.Open + s.kernel.Open
	}
	return n
}

// ServeListener forwards what ln accepts by the rule of that name, until ctx ends; then it resets
// what is open. A rule may have several listeners.
func (f *Forwarder) ServeListener(ctx context.Context, name string, ln net.Listener) error {
	i := slices.IndexFunc(f.rules, func(r *rule) bool { return r.Name == name })
	if i < 0 {
		return fmt.Errorf("forward %s: no such rule", name)
	}
	r := f.rules[i]
	if at, err := netip.ParseAddrPort(ln.Addr().String()); err == nil && r.unread() && r.Via != ViaUser {
		if c := f.carry(r, at); c != nil {
			defer f.drop(r, c)
		}
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			open.Go(func() { f.serve(ctx, r, conn) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("forward %s: %w", name, err)
		default:
			f.log.Warn("connection not accepted", zap.String("forward", name), zap.Error(err))
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(acceptRest):
			}
		}
	}
}

// carry asks the kernel to carry the rule; nil if it does not.
func (f *Forwarder) carry(r *rule, listen netip.AddrPort) Carried {
	err := errors.New("this machine has no kernel path")
	var c Carried
	if f.deps.Kernel != nil {
		c, err = f.deps.Kernel.Carry(r.Rule, netip.AddrPortFrom(listen.Addr().Unmap(), listen.Port()))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.why = err.Error()
		level := zap.InfoLevel
		if r.Via == ViaKernel {
			level = zap.WarnLevel
		}
		f.log.Log(level, "the kernel does not carry a forward, user space does", zap.String("forward", r.Name), zap.Error(err))
		return nil
	}
	r.carried, r.why = append(r.carried, c), ""
	if f.draining.Load() {
		f.drain(r, c)
	}
	return c
}

// drop takes a rule out of the kernel.
func (f *Forwarder) drop(r *rule, c Carried) {
	if err := c.Close(); err != nil {
		f.log.Warn("a forward stays in the kernel", zap.String("forward", r.Name), zap.Error(err))
	}
}

// serve carries one connection from its admission to its end.
func (f *Forwarder) serve(ctx context.Context, r *rule, conn net.Conn) {
	c := &connection{begun: time.Now()}
	c.client, _ = netip.ParseAddrPort(conn.RemoteAddr().String())
	c.client = netip.AddrPortFrom(c.client.Addr().Unmap(), c.client.Port())
	if why := f.admit(r, c); why != "" {
		reset(conn)
		f.log.Log(r.levelOf(why, c.client.Addr(), c.begun), "connection refused", zap.String("forward", r.Name), zap.Stringer("client", c.client), zap.String("reason", why))
		return
	}
	reason, err := f.connect(ctx, r, c, conn)
	r.release(c, reason)
	f.log.Debug("connection ended", zap.String("forward", r.Name), zap.Stringer("client", c.client),
		zap.Duration("lasted", time.Since(c.begun)), zap.Uint64("bytes_from_client", c.counters.Bytes(0)),
		zap.Uint64("bytes_from_target", c.counters.Bytes(1)), zap.String("reason", reason), zap.Error(err))
}

// levelOf returns how loud a refusal is: who is not on the allow-list is an operator's business, once in a while.
func (r *rule) levelOf(why string, source netip.Addr, now time.Time) zapcore.Level {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, known := r.logged[source]; why != notAllowed || known && now.Sub(last) < logEvery {
		return zap.DebugLevel
	}
	if len(r.logged) >= maxLogged {
		clear(r.logged)
	}
	r.logged[source] = now
	return zap.InfoLevel
}

// admit enters a connection, or returns why it is refused.
func (f *Forwarder) admit(r *rule, c *connection) (why string) {
	most := r.PerSource
	if most == 0 {
		most = int(f.perSource.Load())
	}
	source := c.client.Addr()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !slices.ContainsFunc(r.Allow, func(p netip.Prefix) bool { return p.Contains(source.WithZone("")) }):
		why = notAllowed
	case f.draining.Load():
		why = draining
	case len(r.open) >= r.MaxConnections:
		why = limited
	case most > 0 && r.sources[source] >= most:
		why = sourceLimit
	default:
		r.open[c] = struct{}{}
		r.sources[source]++
		r.total++
		return ""
	}
	r.refused[why]++
	return why
}

func (r *rule) release(c *connection, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
	source := c.client.Addr()
	if r.sources[source]--; r.sources[source] == 0 {
		delete(r.sources, source)
	}
	r.bytes[0] += c.counters.Bytes(0)
	r.bytes[1] += c.counters.Bytes(1)
	r.ended[reason]++
}

// connect joins the client with the target, and returns how that ended.
func (f *Forwarder) connect(ctx context.Context, r *rule, c *connection, conn net.Conn) (reason string, err error) {
	client := conn
	if r.TLS == TLSTerminate {
		if client, err = f.accept(ctx, r, conn); err != nil {
			reset(conn)
			return clientTLS, err
		}
	}
	d := net.Dialer{Timeout: dialTimeout}
	target, err := d.DialContext(ctx, "tcp", r.To.String())
	if err != nil {
		reset(conn)
		return dialFailed, err
	}
	if r.TLS == TLSTerminate {
		secure, err := f.dialled(ctx, r, target)
		if err != nil {
			reset(target)
			reset(conn)
			return targetTLS, err
		}
		target = secure
	}
	err = f.deps.Joiner.Join(ctx, client, target, splice.Options{Idle: r.Idle, Counters: &c.counters}).Err
	switch {
	case err == nil:
		return endedOrder, nil
	case errors.Is(err, splice.ErrIdle):
		return endedIdle, err
	case ctx.Err() != nil || errors.Is(err, splice.ErrClosed):
		return endedStop, err
	}
	return endedReset, err
}

// reset closes a connection so that its peer sees an error and not an orderly end.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

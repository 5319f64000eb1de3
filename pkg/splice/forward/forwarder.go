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

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
	"edged.dev/edged/pkg/splice"
)

const dialTimeout = 10 * time.Second

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
	said gate.Said // who is not allowed

	mu sync.Mutex // guards what follows
	// open are the connections of user space, sources how many of one address.
	open    map[*connection]struct{}
	sources map[netip.Addr]int
	total   uint64
	bytes   [2]uint64 // of connections that have ended
	refused map[string]uint64
	ended   map[string]uint64
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
			refused: map[string]uint64{}, ended: map[string]uint64{}, why: r.whyUser(),
		})
	}
	return f
}

// unread tells whether nobody need look at what passes.
func (r Rule) unread() bool {
	return len(r.SNI)+len(r.Classes) == 0 && r.TLS != TLSTerminate && !r.SendProxy
}

// whyUser says why the kernel does not carry a rule that it has not been asked about.
func (r Rule) whyUser() string {
	switch {
	case len(r.SNI) > 0 || r.TLS == TLSTerminate:
		return "TLS is looked at in user space"
	case !r.unread():
		return "first bytes are read and written in user space"
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
	if at := pinhole.AddrPortOf(ln.Addr()); at.IsValid() && r.unread() && r.Via != ViaUser {
		if c := f.carry(r, at); c != nil {
			defer f.drop(r, c)
		}
	}
	var open sync.WaitGroup
	defer open.Wait()
	err := gate.Accept(ctx, ln, func(conn net.Conn) {
		open.Go(func() { f.serve(ctx, r, conn) })
	}, func(err error) {
		f.log.Warn("connection not accepted", zap.String("forward", name), zap.Error(err))
	})
	if err != nil {
		return fmt.Errorf("forward %s: %w", name, err)
	}
	return nil
}

// carry asks the kernel to carry the rule; nil if it does not.
func (f *Forwarder) carry(r *rule, listen netip.AddrPort) Carried {
	err := errors.New("this machine has no kernel path")
	var c Carried
	if f.deps.Kernel != nil {
		c, err = f.deps.Kernel.Carry(r.Rule, listen)
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
	c := &connection{client: pinhole.AddrPortOf(conn.RemoteAddr()), begun: time.Now()}
	if why := f.admit(r, c); why != "" {
		gate.Reset(conn)
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
	if why == notAllowed && r.said.Again(source, now) {
		return zap.InfoLevel
	}
	return zap.DebugLevel
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
			gate.Reset(conn)
			return clientTLS, err
		}
	}
	d := net.Dialer{Timeout: dialTimeout}
	target, err := d.DialContext(ctx, "tcp", r.To.String())
	if err != nil {
		gate.Reset(conn)
		return dialFailed, err
	}
	if r.SendProxy { // it fits into an empty buffer: nobody waits here
		if _, err = target.Write(sharedport.ProxyHeader(c.client, pinhole.AddrPortOf(conn.LocalAddr()))); err != nil {
			gate.Reset(target)
			gate.Reset(conn)
			return dialFailed, err
		}
	}
	if r.TLS == TLSTerminate {
		secure, err := f.dialled(ctx, r, target)
		if err != nil {
			gate.Reset(target)
			gate.Reset(conn)
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

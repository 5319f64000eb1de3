// Package sipalg is the SIP application-level gateway: a record-routing,
// transaction-stateful proxy (RFC 3261 §16-17, RFC 6026) between networks that cannot
// reach each other, which puts the edge's own addresses in the place of those in Via,
// Contact and session descriptions. It is no B2BUA: Call-ID, CSeq, From, To, tags,
// Expires and status are never changed, because others sign them.
//
//	transport ──► Server.Receive ──► Core.Receive ──► Output ──► transport
//	                                  │ asks pinhole.Opener for leases
//
// [Core] is the inner half: no socket, goroutine or clock. This file and the packages
// transport and resolve are the only ones with I/O.
package sipalg

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/transport"
)

// Deps are what the server needs from others.
type Deps struct {
	Networks pinhole.Networks
	Opener   pinhole.Opener
	// Conferences grants the pinholes of T.120 data conferences, on the listeners of their relay; nil: without one
	// their m= lines are rejected. An error that wraps [pinhole.ErrNetwork] says that there is none on a network.
	Conferences pinhole.Opener
	Limits      Limits
	// TLS may be nil where no TLS or WSS is used.
	TLS transport.TLSSource
	// Resolve finds the addresses of a name on a network, best first (RFC 3263; proto and port are 0
	// where the URI leaves them open); nil where only addresses occur.
	Resolve func(ctx context.Context, network string, proto flow.Proto, host string, port uint16) ([]flow.Target, error)
	// RouteTo names the network by which an address is reached, "" if none; nil: only subnets count.
	RouteTo func(netip.Addr) string
	// Fingerprint is that of the relay's certificate, as a=fingerprint has it; needed for the media profile dtls-srtp.
	Fingerprint string
	// StateDir keeps the registrations over a restart; empty: they are lost.
	StateDir string
	// Listeners is how many listeners will be served: messages wait until all are, so that none finds
	// the way out missing. 0: none waits.
	Listeners int
	// Contents looks at what messages carry besides session descriptions; nil: it passes.
	Contents ContentEditor
	// Answers answers requests in place of whom they are for; nil: all go on.
	Answers Answerer
	// Deny says who is shut out; nil: nobody.
	Deny Denier
	// Record is called at the end of each call, on any goroutine; it may be nil.
	Record func(Record)
	// Trace is shown each message that has come, and each that was handed to a socket, on any goroutine; it must not
	// keep raw, nor block; nil: nobody looks.
	Trace func(f flow.Flow, out bool, raw []byte)
}

// Server drives a [Core] with sockets, goroutines and a clock. All methods may be called concurrently.
type Server struct {
	deps      Deps
	log       *zap.Logger
	transport *transport.Transport
	journal   *journal
	outputs   sync.Pool
	wake      chan struct{}   // of size 1: the next timer is earlier than before
	lookups   chan struct{}   // of maxLookups: names being resolved
	ready     chan struct{}   // closed when all listeners are served
	ctx       context.Context //nolint:containedctx // the server's own life, no request's
	stop      context.CancelFunc
	work      sync.WaitGroup
	gate      sync.Mutex // nothing is added to work once ctx has ended

	mu     sync.Mutex // guards what follows
	core   *Core
	wakeAt time.Time
	idle   []silence
}

// maxLookups bounds the names that are resolved at once; each waits at most for the resolver's timeouts.
const maxLookups = 64

// New checks the configuration and returns a server without listeners. Registrations in
// deps.StateDir are read back.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	s := &Server{deps: deps, log: log, wake: make(chan struct{}, 1), ready: make(chan struct{}), lookups: make(chan struct{}, maxLookups)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.outputs.New = func() any { return new(Output) }
	s.core = NewCore(cfg, deps.Limits, deps.Networks, deps.Opener, deps.RouteTo, log)
	s.core.idle, s.core.contents, s.core.conferences = s.mediaIdle, deps.Contents, deps.Conferences
	s.core.fingerprint, s.core.answers, s.core.deny = deps.Fingerprint, deps.Answers, deps.Deny
	s.transport = transport.New(transportConfig(cfg, deps.Limits), deps.Networks, deps.TLS, s, log)
	s.work.Go(func() {
		if s.transport.WaitServing(s.ctx, deps.Listeners) == nil {
			close(s.ready)
		}
	})
	if deps.StateDir != "" {
		j, err := openJournal(deps.StateDir, s.core, log)
		if err != nil {
			return nil, err
		}
		s.journal = j
		s.core.journal = j.append
	}
	return s, nil
}

func transportConfig(cfg Config, l Limits) transport.Config {
	return transport.Config{PerSource: cmp.Or(l.Connections, 1<<20), Dscp: cfg.DSCP, Origins: cfg.Origins}
}

// ServePacket serves SIP over UDP on pc, which is bound on the named network, until ctx ends.
func (s *Server) ServePacket(ctx context.Context, network string, pc net.PacketConn) error {
	s.addListener(network, flow.UDP, pc.LocalAddr())
	return s.transport.ServePacket(ctx, network, pc)
}

// ServeListener serves SIP over TCP, TLS, WS or WSS on ln, a TCP listener bound on the named network,
// until ctx ends.
func (s *Server) ServeListener(ctx context.Context, network string, proto flow.Proto, ln net.Listener) error {
	s.addListener(network, proto, ln.Addr())
	return s.transport.Serve(ctx, network, proto, ln)
}

func (s *Server) addListener(network string, proto flow.Proto, a net.Addr) {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return // not an internet socket
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.AddListener(network, proto, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
}

// Ready is closed when all of Deps.Listeners are served.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run runs the timers until ctx ends. Call it beside the Serve methods, once.
func (s *Server) Run(ctx context.Context) error {
	s.do(func(c *Core, out *Output) { c.Begin(time.Now(), out) })
	tick := time.NewTimer(time.Hour)
	defer tick.Stop()
	for {
		s.do(func(c *Core, out *Output) {
			now := time.Now()
			for _, w := range s.idle {
				c.MediaIdle(now, w, out)
			}
			s.idle = s.idle[:0]
			c.Tick(now, out)
		})
		s.journal.compact(s)
		s.mu.Lock()
		s.wakeAt = cmpTime(s.core.Next(), time.Now().Add(time.Minute))
		wait := time.Until(s.wakeAt)
		s.mu.Unlock()
		tick.Reset(max(wait, 0))
		select {
		case <-ctx.Done():
			s.gate.Lock()
			s.stop()
			s.gate.Unlock()
			s.work.Wait()
			return s.journal.close(s)
		case <-tick.C:
		case <-s.wake:
		}
	}
}

func cmpTime(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// do runs f with the lock held and then does what it wants done.
func (s *Server) do(f func(c *Core, out *Output)) {
	out := s.outputs.Get().(*Output)
	out.reset()
	s.mu.Lock()
	f(s.core, out)
	next := s.core.Next()
	early := !next.IsZero() && next.Before(s.wakeAt)
	if early {
		s.wakeAt = next
	}
	s.mu.Unlock()
	if early {
		s.poke()
	}
	s.perform(out)
	s.outputs.Put(out)
}

func (s *Server) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Receive implements [transport.Handler].
func (s *Server) Receive(f flow.Flow, raw []byte) {
	select {
	case <-s.ready:
	case <-s.ctx.Done():
		return
	}
	s.trace(f, false, raw)
	s.do(func(c *Core, out *Output) { c.Receive(time.Now(), f, raw, out) })
}

// Closed implements [transport.Handler].
func (s *Server) Closed(f flow.Flow) {
	s.do(func(c *Core, out *Output) { c.Closed(time.Now(), f, out) })
}

// Verified implements [transport.Verifier]. Certificates of the time of LCS may have their name in the subject
// only.
func (s *Server) Verified(f flow.Flow, cert *x509.Certificate) {
	bare := len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.URIs) == 0
	covers := func(name string) bool {
		return cert.VerifyHostname(name) == nil || bare && strings.EqualFold(cert.Subject.CommonName, name)
	}
	s.do(func(c *Core, out *Output) { c.Verified(time.Now(), f, covers, out) })
}

// spawn runs f on a goroutine of its own, unless the server is about to end.
func (s *Server) spawn(f func()) {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.ctx.Err() == nil {
		s.work.Go(f)
	}
}

// mediaIdle leaves word of a silent pinhole: the relay calls it, perhaps while the core calls the relay.
func (s *Server) mediaIdle(w silence) {
	s.spawn(func() {
		s.mu.Lock()
		s.idle = append(s.idle, w)
		s.mu.Unlock()
		s.poke()
	})
}

// perform does what the core wants done, without the lock.
func (s *Server) perform(out *Output) {
	for i := range out.items {
		it := &out.items[i]
		switch {
		case it.record != nil:
			if s.deps.Record != nil {
				s.deps.Record(*it.record)
			}
		case it.resolve != nil:
			s.lookup(*it.resolve)
		case it.target != nil:
			id, data := it.tx, out.bytes(i) // which is a transaction's own
			s.transport.SendTo(*it.target, data, func(f flow.Flow, err error) {
				if err == nil {
					s.trace(f, true, data)
				}
				s.sent(id, f, err)
			})
		default:
			s.trace(it.flow, true, out.bytes(i)) // before the answer can come
			if err := s.transport.Send(it.flow, out.bytes(i)); err != nil {
				s.log.Debug("not sent", zap.Stringer("peer", it.flow.Remote), zap.Error(err))
				s.sent(it.tx, it.flow, err)
			}
		}
	}
}

func (s *Server) trace(f flow.Flow, out bool, raw []byte) {
	if s.deps.Trace != nil {
		s.deps.Trace(f, out, raw)
	}
}

func (s *Server) sent(id uint64, f flow.Flow, err error) {
	if id != 0 {
		s.do(func(c *Core, out *Output) { c.Sent(time.Now(), id, f, err, out) })
	}
}

// lookup resolves a name on a goroutine of its own and brings the answer to the core.
func (s *Server) lookup(q query) {
	s.spawn(func() {
		var targets []flow.Target
		select {
		case s.lookups <- struct{}{}:
			targets = s.resolve(q)
			<-s.lookups
		case <-s.ctx.Done():
		}
		s.do(func(c *Core, out *Output) { c.Resolved(time.Now(), q.id, targets, out) })
	})
}

func (s *Server) resolve(q query) (targets []flow.Target) {
	if s.deps.Resolve == nil {
		return nil
	}
	targets, err := s.deps.Resolve(s.ctx, q.network, q.server.Proto, q.server.Host, q.server.Port)
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Warn("name not resolved", zap.String("name", q.server.Host), zap.Error(err))
	}
	return targets
}

// Reload takes the live keys of the section: domains, access, scanners, ban, ice and the intervals.
// Listen must be unchanged.
func (s *Server) Reload(cfg Config, limits Limits) error {
	if err := cfg.Validate(s.deps.Networks); err != nil {
		return err
	}
	s.transport.SetLimits(transportConfig(cfg, limits))
	s.do(func(c *Core, out *Output) {
		c.Configure(cfg, limits)
		c.Begin(time.Now(), out)
	})
	return nil
}

// Drain makes the server refuse new calls with 503; those that are up go on.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.draining = true
}

// Calls lists the live calls, oldest first.
func (s *Server) Calls() []CallInfo {
	s.mu.Lock()
	list := s.core.Calls()
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b CallInfo) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID)) })
	return list
}

// Registrations lists the registered Contacts by address-of-record.
func (s *Server) Registrations() []RegistrationInfo {
	s.mu.Lock()
	list := s.core.Registrations()
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b RegistrationInfo) int {
		return cmp.Or(cmp.Compare(a.AOR, b.AOR), cmp.Compare(a.Contact, b.Contact))
	})
	return list
}

// Collector returns the metrics of SIP and of its transports.
func (s *Server) Collector() prometheus.Collector { return collector{s} }

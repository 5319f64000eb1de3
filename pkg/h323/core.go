package h323

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/gatekeeper"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
	"edged.dev/edged/pkg/h323/rasrelay"
	"edged.dev/edged/pkg/pinhole"
)

// ConnID names a signalling connection.
type ConnID uint64

// Reasons for which calls are refused or messages dropped: labels of metrics.
const (
	refusedUnknown     = "unknown_party"
	refusedLoop        = "loop"
	refusedUnreachable = "no_route"
	refusedLimit       = "limit"
	refusedSigned      = "signed"
	refusedDial        = "dial_failed"
	refusedMedia       = "pinhole"
	refusedTimeout     = "no_answer"
	refusedMalformed   = "malformed"
	hungUp             = "hung up by operator"
	droppedMalformed   = "malformed"
	droppedNoCall      = "no_call"
	droppedQueue       = "queue_full"
	droppedEdit        = "edit_failed"
	droppedTunnelled   = "h460_17"
)

// The bounds of what a peer can make the core keep.
const (
	maxQueued   = 32 // messages that wait for a connection
	maxLegCalls = 64 // calls on one connection
)

// The times of a call.
const (
	// answerTime is how long a Setup may stay unanswered (T301 is three minutes at least).
	answerTime = 5 * time.Minute
	// lingerTime is how long the connections of a released call stay, for what is still under way.
	lingerTime = 3 * time.Second
	// idleTime is how long a connection may stay on which there is no call.
	idleTime = time.Minute
)

// Deps are what the core needs from others.
type Deps struct {
	Networks pinhole.Networks
	Opener   pinhole.Opener
	// RouteTo names the network by which an address is reached, "" if none; nil: only subnets count.
	RouteTo func(netip.Addr) string
	// Directory knows more called parties than the configuration; it may be nil.
	Directory Directory
	// T120 speaks on the connections of T.120 channels; nil: they are copied.
	T120 func(ctx context.Context, conns [2]net.Conn, moved func(pinhole.Side, int))
	// Record is called at the end of each call, on any goroutine; it may be nil.
	Record func(Record)
	// Trace is shown every message as it came and as it was sent, perhaps with a lock held; it must not block. It may be nil.
	Trace func(Traced)
	// Connections bounds the signalling connections that one host has made; 0 = no limit.
	Connections int
}

// Core is the inner half. Its methods must not be called concurrently.
type Core struct {
	cfg       Config
	nets      pinhole.Networks
	opener    pinhole.Opener
	routeTo   func(netip.Addr) string
	directory Directory
	log       *zap.Logger
	// serve speaks on the H.245 connections of a call, t120 on those of T.120.
	serve func(*call) func(context.Context, [2]net.Conn, func(pinhole.Side, int))
	t120  func(context.Context, [2]net.Conn, func(pinhole.Side, int))

	// gatekeeper is the built-in one, outer what passes RAS on to another; nil where there is none.
	gatekeeper *gatekeeper.Gatekeeper
	outer      *rasrelay.Relay
	// enter speaks on the connections that come through the door of an endpoint.
	enter func(network [2]string) func(context.Context, [2]net.Conn, func(pinhole.Side, int))

	aliases  map[string]netip.AddrPort
	prefixes []prefix

	legs    map[ConnID]*leg
	calls   map[*call]struct{}
	sources map[netip.Addr]int // calls of a calling host
	// forwards are callers that a Facility has sent elsewhere.
	forwards map[netip.Addr]forward
	last     ConnID // of a connection that the core asked for
	// rings are the endpoints behind a NAT that were told of a call, by its identifier; seq numbers what tells them.
	rings    map[h225.ID]*ring
	seq      uint16
	draining bool

	signalling *h225.Codec
	discovery  *ras.Codec
	edited     []byte // what signalling has written last
	control    controlCodec
	addrs      []h245.Address
	counts     counts

	// trace is Deps.Trace, traced the call of the message that is handled, "" outside of one.
	trace     func(Traced)
	traced    string
	rasTraces *rasTracer
}

// Output is what the core wants done, in this order.
type Output struct {
	Actions []Action
	Records []Record
}

// Action is one thing to do with a connection.
type Action struct {
	Kind ActionKind
	Conn ConnID
	// Data of a Send is a whole TPKT.
	Data []byte
	// Network and Target of a Dial or Ring.
	Network string
	Target  netip.AddrPort
}

// ActionKind tells what to do.
type ActionKind uint8

const (
	// Send writes Data.
	Send ActionKind = iota
	// Dial connects to Target from Network's own address; Core.Dialed tells the outcome.
	Dial
	// Close closes the connection once everything was written.
	Close
	// Ring sends Data to Target as a datagram, by the RAS listener of Network.
	Ring
)

// leg is a signalling connection.
type leg struct {
	id      ConnID
	network string
	// local is the edge's end: what the peer connected to, or what the edge dialled from.
	local, remote netip.AddrPort
	up            bool
	queued        [][]byte // until it is up
	calls         map[callKey]*call
	closing       bool
	idle          time.Time // since when it has no call
	// partner is the connection beyond, where that was made before the first Setup; nil if it was not.
	partner *leg
}

// callKey finds a call on a connection: the call reference, and whether the edge's end allocated it.
type callKey struct {
	ref  uint16
	ours bool
}

// NewCore returns a core without connections. The configuration must be valid.
func NewCore(cfg Config, deps Deps, log *zap.Logger) *Core {
	c := &Core{
		cfg: cfg, nets: deps.Networks, opener: deps.Opener, routeTo: deps.RouteTo, directory: deps.Directory, t120: deps.T120, log: log,
		legs: make(map[ConnID]*leg), calls: make(map[*call]struct{}), sources: make(map[netip.Addr]int), forwards: make(map[netip.Addr]forward),
		rings:      make(map[h225.ID]*ring),
		signalling: h225.NewCodec(), discovery: ras.NewCodec(), control: newControlCodec(), counts: newCounts(),
		trace: deps.Trace, rasTraces: newRASTracer(),
	}
	c.compile()
	switch {
	case len(cfg.RAS) == 0:
	case cfg.Gatekeeper.IsValid():
		c.outer = rasrelay.New(c.relaying())
	default:
		c.gatekeeper = gatekeeper.New(c.gatekeeping())
	}
	return c
}

// gatekeeping says what the built-in gatekeeper allows.
func (c *Core) gatekeeping() gatekeeper.Config {
	return gatekeeper.Config{
		ID: c.cfg.GatekeeperID, Lifetime: c.cfg.Lifetime, MaxEndpoints: c.cfg.MaxEndpoints, PerHost: c.cfg.PerSource,
		MayRegister: c.mayRegister, MayLocate: c.mayLocate,
		Reachable: func(network, alias string) bool {
			_, known := c.static(alias)
			_, passes := c.cfg.Default[network]
			return known || passes || c.directory != nil
		},
		Signalling: c.own, RAS: c.ownRAS,
	}
}

// mayRegister tells whether endpoints of a network may register.
func (c *Core) mayRegister(network string) bool {
	return slices.Contains(c.cfg.Register, network) || len(c.cfg.Register) == 0 && c.nets[network].Trusted
}

// mayLocate tells whether a host is told where endpoints are.
func (c *Core) mayLocate(network string, host netip.Addr) bool {
	if len(c.cfg.LRQ) == 0 {
		return c.nets[network].Trusted
	}
	return slices.ContainsFunc(c.cfg.LRQ, func(n Neighbour) bool { return n.is(network, host) })
}

// ownRAS returns the RAS listener of a network for a peer's family, as it is advertised.
func (c *Core) ownRAS(network string, peer netip.Addr) netip.AddrPort {
	return c.public(network, peer, c.cfg.RAS, rasPort)
}

// Datagram takes a RAS message that arrived at the edge's socket local; false: there is nothing to send.
func (c *Core) Datagram(now time.Time, network string, local, from netip.AddrPort, b []byte) (rasrelay.Datagram, bool) {
	d, ok := c.datagram(now, network, local, from, b)
	c.traceRAS(network, local, from, b, d, ok)
	return d, ok
}

func (c *Core) datagram(now time.Time, network string, local, from netip.AddrPort, b []byte) (rasrelay.Datagram, bool) {
	switch {
	case c.outer != nil:
		return c.outer.Handle(now, network, local, from, b)
	case c.gatekeeper != nil:
		reply := c.gatekeeper.Handle(now, network, from, b)
		return rasrelay.Datagram{Local: local, Network: network, To: from, Data: reply}, reply != nil
	}
	return rasrelay.Datagram{}, false
}

// Reload takes over a valid configuration; calls in progress keep what they have.
func (c *Core) Reload(cfg Config) {
	c.cfg = cfg
	c.compile()
}

// firstDialed is the first identifier that the core gives to connections of its own.
const firstDialed ConnID = 1 << 63

// Accept tells of a connection that a peer made. Its identifier is below 1<<63.
func (c *Core) Accept(now time.Time, id ConnID, network string, local, remote netip.AddrPort) {
	c.legs[id] = &leg{id: id, network: network, local: local, remote: remote, up: true, idle: now, calls: make(map[callKey]*call)}
}

// Dialed tells that a connection is up, and from where, or why not.
func (c *Core) Dialed(now time.Time, id ConnID, local netip.AddrPort, err error, out *Output) {
	l := c.legs[id]
	if l == nil {
		return
	}
	if err != nil {
		c.log.Info("called party not reached", zap.Stringer("target", l.remote), zap.Error(err))
		for _, call := range l.calls {
			c.refuse(now, call, refusedDial, out)
		}
		delete(c.legs, id)
		return
	}
	l.up, l.local = true, local
	for _, b := range l.queued {
		c.said(l, b)
		out.send(id, b)
	}
	l.queued = nil
}

// Closed tells that a connection has ended.
func (c *Core) Closed(now time.Time, id ConnID, out *Output) {
	l := c.legs[id]
	if l == nil {
		return
	}
	delete(c.legs, id)
	for key, call := range l.calls {
		delete(l.calls, key)
		c.legGone(now, call, l, out)
	}
	if l.partner != nil {
		l.partner.partner = nil
		c.closeLeg(l.partner, out)
	}
}

// Message handles one message: the payload of a TPKT, and the second octet of its header.
func (c *Core) Message(now time.Time, id ConnID, p tpkt.Packet, out *Output) {
	l := c.legs[id]
	if l == nil || l.closing {
		return
	}
	if len(p.Payload) == 0 {
		c.keepAlive(l, p, out)
		return
	}
	m, err := c.signalling.Decode(p.Payload)
	if err != nil {
		c.counts.drop(droppedMalformed)
		c.log.Info("call signalling not understood", zap.Stringer("from", l.remote), zap.Error(err))
		return
	}
	c.counts.message(m.Type)
	key := callKey{m.CallRef, m.FromDest}
	call := l.calls[key]
	c.heard(l, m, call, p)
	defer func() { c.traced = "" }()
	if call != nil && call.released && m.Type == q931.Setup && !m.FromDest {
		// The next call on the connection may have the number of the last.
		delete(l.calls, key)
		call.legs[call.side(l)] = nil
		c.end(now, call, out)
		call = nil
	}
	switch {
	case call != nil:
		c.relay(now, call, call.side(l), m, p.Second, out)
	case m.Type == q931.Setup && !m.FromDest:
		c.setup(now, l, m, p.Second, out)
	case c.meet(l, m, out):
	case tunnelsRAS(m):
		c.counts.drop(droppedTunnelled)
		c.closeLeg(l, out)
	case m.Type == q931.ReleaseComplete, m.CallRef == 0: // the global call reference: of the connection, which ends here
		c.counts.drop(droppedNoCall)
	default:
		c.counts.drop(droppedNoCall)
		c.sendTo(l, c.release(m, reasonInvalid), out)
	}
}

// keepAlive passes an empty TPKT on to the other ends of the connection's calls.
func (c *Core) keepAlive(l *leg, p tpkt.Packet, out *Output) {
	b, err := tpkt.Append(nil, p.Second, nil)
	if err != nil {
		return
	}
	done := make(map[*leg]bool)
	for _, call := range l.calls {
		if o := call.legs[call.side(l).Other()]; o != nil && !done[o] && o.up {
			done[o] = true
			out.send(o.id, b)
		}
	}
}

// sendTo sends a payload, or keeps it until the connection is up.
func (c *Core) sendTo(l *leg, payload []byte, out *Output) { c.sendPacket(l, 0, payload, out) }

func (c *Core) sendPacket(l *leg, second byte, payload []byte, out *Output) {
	if l == nil || l.closing || payload == nil {
		return
	}
	b, err := tpkt.Append(make([]byte, 0, len(payload)+4), second, payload)
	switch {
	case err != nil:
		c.counts.drop(droppedEdit)
	case l.up:
		c.said(l, b)
		out.send(l.id, b)
	case len(l.queued) >= maxQueued:
		c.counts.drop(droppedQueue)
	default:
		l.queued = append(l.queued, b)
	}
}

func (o *Output) send(id ConnID, b []byte) {
	o.Actions = append(o.Actions, Action{Kind: Send, Conn: id, Data: b})
}

// dial asks for a connection.
func (c *Core) dial(to destination, out *Output) *leg {
	if c.last < firstDialed {
		c.last = firstDialed
	}
	c.last++
	l := &leg{id: c.last, network: to.network, remote: to.addr, calls: make(map[callKey]*call)}
	bind, _, err := c.nets.Local(to.network, pinhole.FamilyOf(to.addr.Addr()))
	if err == nil {
		l.local = netip.AddrPortFrom(bind, 0)
	}
	c.legs[l.id] = l
	out.Actions = append(out.Actions, Action{Kind: Dial, Conn: l.id, Network: to.network, Target: to.addr})
	return l
}

// closeLeg closes a connection that has no call any more.
func (c *Core) closeLeg(l *leg, out *Output) {
	if l == nil || l.closing || len(l.calls) > 0 {
		return
	}
	l.closing = true
	c.closeLeg(l.partner, out)
	out.Actions = append(out.Actions, Action{Kind: Close, Conn: l.id})
}

// Tick ends what has waited for too long. Call it about every second.
func (c *Core) Tick(now time.Time, out *Output) {
	for call := range c.calls {
		if !call.until.IsZero() && !now.Before(call.until) {
			c.expired(now, call, out)
		}
	}
	c.ringAgain(now, out)
	if c.gatekeeper != nil {
		for _, p := range c.gatekeeper.Probes() {
			out.Actions = append(out.Actions, Action{Kind: Ring, Network: p.Network, Target: p.To, Data: p.Data})
		}
	}
	for _, l := range c.legs {
		if l.up && !l.closing && len(l.calls) == 0 && l.partner == nil && now.Sub(l.idle) >= idleTime {
			c.closeLeg(l, out)
		}
	}
	if c.outer != nil {
		c.outer.Sweep(now)
	}
}

// Drain refuses new calls from now on.
func (c *Core) Drain() { c.draining = true }

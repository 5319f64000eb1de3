// Package rasrelay brings endpoints and a gatekeeper together that cannot reach each other (H.225.0 RAS): endpoints
// take the edge for their gatekeeper, the gatekeeper takes the edge for each of the endpoints. It answers
// only what it cannot pass on, and is no gatekeeper itself.
//
//	endpoint ─► edge ─► gatekeeper   own addresses become the edge's, numbers are made unique
//	endpoint ◄─ edge ◄─ gatekeeper   matched by number and sender; the gatekeeper's addresses become the edge's
//	RRQ ─► a door: a port of the edge's at which the gatekeeper calls this endpoint
//	ACF ─► a route: where the Setup with this callIdentifier goes
//
// It does no I/O, has no clock, and must not be called concurrently.
package rasrelay

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/ras"
)

// Outcomes of datagrams, as labels of metrics.
const (
	Passed        = "passed"
	Refused       = "refused" // answered by a reject of the edge's own
	Malformed     = "malformed"
	NotAllowed    = "not_allowed"    // the network's endpoints may not register
	NotRegistered = "not_registered" // of an endpoint that is not known, or to one
	Unmatched     = "unmatched"      // a reply to nothing
	Signed        = "signed"         // H.235: not to be changed
	Limit         = "limit"
	Address       = "address" // an endpoint names what is not its own
)

// The bounds of what peers can make the relay keep, and the times.
const (
	maxPending     = 8192 // requests that wait for a reply
	maxPendingHost = 256  // of one endpoint's host
	maxRoutes      = 16384
	maxAliases     = 32
	// replyTime is how long a reply may take. Endpoints ask again after 3-5 s (H.225.0 §7.19).
	replyTime = 20 * time.Second
	// maxDelay is the longest that a RequestInProgress asks for.
	maxDelay = 65535 * time.Millisecond
	// routeTime is how long an admitted caller may take to call.
	routeTime = time.Minute
	// defaultLife is the lifetime of a registration of which the gatekeeper says nothing, as in the Linux helper.
	defaultLife = 300 * time.Second
	// grace is how much longer than the gatekeeper the relay keeps a registration.
	grace      = 10 * time.Second
	sweepEvery = time.Second
)

// Door is a port of the edge's at which an endpoint is called.
type Door interface {
	// Addr is what the gatekeeper is told.
	Addr() netip.AddrPort
	Close()
}

// Config says who may use the relay, and what the edge's addresses are.
type Config struct {
	// Gatekeeper is the real one, on Network.
	Gatekeeper netip.AddrPort
	Network    string
	// MaxEndpoints bounds the registrations, PerHost those of one host.
	MaxEndpoints, PerHost int
	// RefuseSigned drops what an H.235 signature covers; else it passes unchanged.
	RefuseSigned func() bool
	// MayRegister tells whether endpoints of a network may register.
	MayRegister func(network string) bool
	// MayLocate tells whether the LRQ of a host is passed on.
	MayLocate func(network string, host netip.Addr) bool
	// Signalling and RAS return the edge's own addresses on a network, for peers of a host's family.
	Signalling, RAS func(network string, peer netip.Addr) netip.AddrPort
	// Own tells whether an address is the edge's.
	Own func(netip.Addr) bool
	// Open opens a door for an endpoint that takes calls at an address; an error says that it may not.
	Open func(network string, host netip.Addr, signalling netip.AddrPort) (Door, error)
}

// Relay passes messages on.
type Relay struct {
	cfg   Config
	codec *ras.Codec
	table table
	// gatekeepers are the ports of the gatekeeper's host that are believed: the configured one, and that of its GCF.
	ports map[uint16]bool
	ras   netip.AddrPort // where requests go

	pending map[uint16]*pending
	byOrig  map[origin]uint16
	perHost map[netip.Addr]int
	asked   map[origin]time.Time // requests of the gatekeeper that endpoints have still to answer
	routes  map[routeKey]route
	seq     uint16
	swept   time.Time
	// Outcomes counts datagrams by outcome.
	Outcomes map[string]uint64
}

// origin names a request by who sent it.
type origin struct {
	peer netip.AddrPort
	seq  uint16
}

// pending is a request of an endpoint's on its way.
type pending struct {
	origin
	kind    ras.Kind
	network string
	local   netip.AddrPort
	until   time.Time
	ep      *endpoint
	call    h225.ID
	conf    h225.ID
	answer  bool // an ARQ of the called party
}

// Datagram is something to send.
type Datagram struct {
	// Local is the edge's socket; if it is not valid, one on Network.
	Local   netip.AddrPort
	Network string
	To      netip.AddrPort
	Data    []byte
}

// New returns a relay with which nobody is registered.
func New(cfg Config) *Relay {
	return &Relay{
		cfg: cfg, codec: ras.NewCodec(), table: newTable(), ras: cfg.Gatekeeper, ports: map[uint16]bool{cfg.Gatekeeper.Port(): true},
		pending: make(map[uint16]*pending), byOrig: make(map[origin]uint16), perHost: make(map[netip.Addr]int),
		asked: make(map[origin]time.Time), routes: make(map[routeKey]route), Outcomes: make(map[string]uint64),
		// Whoever can send in the gatekeeper's name must not know what numbers are on their way.
		seq: uint16(rand.Uint32()),
	}
}

// received is a message on its way through the relay.
type received struct {
	*ras.Message
	now     time.Time
	network string
	local   netip.AddrPort
	from    netip.AddrPort
	signed  bool
}

// Handle takes a datagram that arrived at the edge's socket local; false: there is nothing to send.
func (r *Relay) Handle(now time.Time, network string, local, from netip.AddrPort, datagram []byte) (Datagram, bool) {
	m, err := r.codec.Decode(datagram)
	if err != nil || m.Kind == "" {
		return r.drop(Malformed)
	}
	r.sweep(now)
	in := received{m, now, network, local, from, m.Protection() == h225.Signed}
	if in.signed {
		r.Outcomes[Signed]++
		if r.cfg.RefuseSigned() {
			return Datagram{}, false
		}
	}
	if network == r.cfg.Network && from.Addr() == r.cfg.Gatekeeper.Addr() && r.ports[from.Port()] {
		if isReply(m.Kind) {
			return r.reply(in)
		}
		return r.ask(in)
	}
	if !r.cfg.MayRegister(network) && m.Kind != ras.LRQ {
		return r.drop(NotAllowed)
	}
	if _, asked := r.asked[origin{from, m.SeqNum()}]; asked && (isReply(m.Kind) || m.Kind == ras.IRR) {
		return r.answered(in)
	}
	if isReply(m.Kind) {
		return r.drop(Unmatched)
	}
	return r.request(in)
}

func (r *Relay) drop(why string) (Datagram, bool) {
	r.Outcomes[why]++
	return Datagram{}, false
}

// isReply tells whether a message answers a request. An IRR may be either.
func isReply(k ras.Kind) bool {
	switch k {
	case ras.RIP, ras.RAC, ras.IACK, ras.INAK, ras.SCR, ras.XRS:
		return true
	}
	return strings.HasSuffix(string(k), "Confirm") || strings.HasSuffix(string(k), "Reject")
}

// answers tells whether a message of a kind answers a request of another (H.225.0 §7.6).
func answers(reply, request ras.Kind) bool {
	switch reply {
	case ras.RIP, ras.XRS:
		return true
	case ras.RAC:
		return request == ras.RAI
	case ras.IACK, ras.INAK:
		return request == ras.IRR
	case ras.SCR:
		return request == ras.SCI
	}
	what, ok := strings.CutSuffix(string(request), "Request")
	return ok && (string(reply) == what+"Confirm" || string(reply) == what+"Reject")
}

// request passes a request of an endpoint on to the gatekeeper.
func (r *Relay) request(in received) (Datagram, bool) {
	ep, refusal := r.requester(in)
	if refusal != "" {
		return r.refuse(in, refusal)
	}
	p := &pending{origin: origin{in.from, in.SeqNum()}, kind: in.Kind, network: in.network, local: in.local, until: in.now.Add(replyTime), ep: ep}
	p.call, _ = in.CallID()
	p.conf, _ = in.ConferenceID()
	p.answer = isAnswer(in)
	seq, ok := r.number(p, in.signed)
	if !ok {
		return r.drop(Limit)
	}
	if ep != nil {
		ep.heard = in.now
		if p.call != (h225.ID{}) {
			r.table.noteCall(p.call, ep, in.now)
		}
	}
	if in.signed {
		return r.send(Datagram{Network: r.cfg.Network, To: r.ras}, nil)
	}
	return r.send(Datagram{Network: r.cfg.Network, To: r.ras}, r.toGatekeeper(in, ep, seq))
}

// requester returns whose request it is; of one that is not registered, how it is refused.
func (r *Relay) requester(in received) (*endpoint, string) {
	switch in.Kind {
	case ras.LRQ:
		if !r.cfg.MayLocate(in.network, in.from.Addr()) {
			return nil, NotAllowed
		}
		return nil, ""
	case ras.GRQ, ras.NSM:
		return nil, ""
	case ras.RRQ:
		return r.registering(in)
	}
	ep := r.table.byID[in.EndpointID()]
	if ep == nil || ep.host != in.from.Addr() {
		return nil, NotRegistered
	}
	return ep, ""
}

// registering returns the endpoint of an RRQ: a known one, or a new one with a door.
func (r *Relay) registering(in received) (*endpoint, string) {
	ep := r.table.byID[in.EndpointID()]
	if ep != nil && ep.host != in.from.Addr() {
		ep = nil
	}
	if in.KeepAlive() {
		if ep == nil {
			return nil, NotRegistered
		}
		return ep, ""
	}
	at, ok := h225CallAddress(in)
	if !ok {
		return nil, Address
	}
	if known := r.table.byAddr[at]; known != nil {
		ep = known
	}
	if ep == nil || ep.signalling != at {
		if len(r.table.byAddr) >= r.cfg.MaxEndpoints || r.table.hosts[in.from.Addr()] >= r.cfg.PerHost {
			return nil, Limit
		}
		door, err := r.cfg.Open(in.network, in.from.Addr(), at)
		if err != nil {
			return nil, Address
		}
		// Until the gatekeeper has confirmed it, it lives no longer than the request.
		ep = &endpoint{host: in.from.Addr(), network: in.network, signalling: at, door: door, until: in.now.Add(replyTime)}
		r.table.add(ep)
	}
	ep.local, ep.ras, ep.offered = in.local, rasAddress(in), terminalAliases(in)
	return ep, ""
}

// refuse answers a request that cannot be passed on, so that the endpoint registers anew.
func (r *Relay) refuse(in received, why string) (Datagram, bool) {
	r.Outcomes[why]++
	reason := map[string]string{NotRegistered: "fullRegistrationRequired", Address: "invalidCallSignalAddress", Limit: "resourceUnavailable"}[why]
	kind, fields := ras.RRJ, []per.Field{per.F("protocolIdentifier", per.Identifier(protocolID))}
	switch in.Kind {
	case ras.RRQ:
	case ras.ARQ:
		kind, fields, reason = ras.ARJ, nil, "callerNotRegistered"
	case ras.DRQ:
		kind, fields, reason = ras.DRJ, nil, "notRegistered"
	case ras.URQ:
		kind, fields, reason = ras.URJ, nil, "notCurrentlyRegistered"
	default:
		return Datagram{}, false
	}
	fields = append(fields, per.F("requestSeqNum", per.Number(int64(max(in.SeqNum(), 1)))),
		per.F("rejectReason", per.Alternative(reason, per.Nothing())))
	b, err := ras.Append(nil, kind, fields...)
	if err != nil {
		return r.drop(Malformed)
	}
	r.Outcomes[Refused]++
	return Datagram{Local: in.local, Network: in.network, To: in.from, Data: b}, true
}

// protocolID is H.225.0 version 4.
const protocolID = "0.0.8.2250.0.4"

// number gives a request a number that no other request on its way has. A request that is sent again keeps its own;
// a signed one cannot change it.
func (r *Relay) number(p *pending, signed bool) (uint16, bool) {
	if seq, again := r.byOrig[p.origin]; again && r.pending[seq].kind == p.kind {
		p.until = maxTime(p.until, r.pending[seq].until)
		r.pending[seq] = p
		return seq, true
	} else if again {
		r.forget(seq)
	}
	if len(r.pending) >= maxPending || r.perHost[p.peer.Addr()] >= maxPendingHost {
		return 0, false
	}
	seq := p.seq
	if !signed {
		for r.seq++; r.seq == 0 || r.pending[r.seq] != nil; r.seq++ {
		}
		seq = r.seq
	} else if r.pending[seq] != nil {
		return 0, false
	}
	r.pending[seq], r.byOrig[p.origin] = p, seq
	r.perHost[p.peer.Addr()]++
	return seq, true
}

func maxTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (r *Relay) forget(seq uint16) {
	p := r.pending[seq]
	if p == nil {
		return
	}
	delete(r.pending, seq)
	delete(r.byOrig, p.origin)
	if r.perHost[p.peer.Addr()]--; r.perHost[p.peer.Addr()] <= 0 {
		delete(r.perHost, p.peer.Addr())
	}
}

// reply passes a reply of the gatekeeper on to who has asked.
func (r *Relay) reply(in received) (Datagram, bool) {
	seq := in.SeqNum()
	p := r.pending[seq]
	if p == nil || !answers(in.Kind, p.kind) || in.signed && seq != p.seq {
		return r.drop(Unmatched)
	}
	to := Datagram{Local: p.local, Network: p.network, To: p.peer}
	if in.Kind == ras.RIP {
		delay := time.Duration(in.Tree.Int(in.Tree.Child(in.Body, "delay"))) * time.Millisecond
		p.until = in.now.Add(min(delay, maxDelay) + replyTime)
	} else {
		r.forget(seq)
		r.learn(in, p)
	}
	if in.signed {
		return r.send(to, nil)
	}
	return r.send(to, r.toEndpoint(in, p.network, p.peer.Addr(), p.ep, p.seq))
}

// ask passes a request of the gatekeeper on to the endpoint that it is meant for.
func (r *Relay) ask(in received) (Datagram, bool) {
	ep := r.table.byID[in.EndpointID()]
	if id, ok := in.CallID(); ep == nil && ok {
		ep = r.table.ofCall(id)
	}
	if ep == nil && in.EndpointID() == "" {
		ep = r.table.quietest()
	}
	if ep == nil {
		return r.drop(NotRegistered)
	}
	if len(r.asked) >= maxPending {
		return r.drop(Limit)
	}
	r.asked[origin{ep.ras, in.SeqNum()}] = in.now.Add(replyTime)
	if in.Kind == ras.URQ {
		ep.until = in.now.Add(replyTime)
	}
	to := Datagram{Local: ep.local, Network: ep.network, To: ep.ras}
	if in.signed {
		return r.send(to, nil)
	}
	return r.send(to, r.toEndpoint(in, ep.network, ep.host, ep, in.SeqNum()))
}

// answered passes an endpoint's answer on to the gatekeeper. The number is the gatekeeper's own.
func (r *Relay) answered(in received) (Datagram, bool) {
	if in.Kind != ras.RIP {
		delete(r.asked, origin{in.from, in.SeqNum()})
	}
	ep := r.table.byRAS[in.from]
	if ep == nil {
		return r.drop(NotRegistered)
	}
	ep.heard = in.now
	to := Datagram{Network: r.cfg.Network, To: r.ras}
	if in.Kind == ras.UCF {
		defer r.table.remove(ep)
	}
	if in.signed {
		return r.send(to, nil)
	}
	return r.send(to, r.toGatekeeper(in, ep, in.SeqNum()))
}

// send finishes a datagram after its edits.
func (r *Relay) send(d Datagram, failed error) (Datagram, bool) {
	b, err := r.codec.Apply(nil)
	if failed != nil || err != nil {
		return r.drop(Malformed)
	}
	d.Data = b
	r.Outcomes[Passed]++
	return d, true
}

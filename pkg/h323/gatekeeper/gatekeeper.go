// Package gatekeeper is the small gatekeeper that is built into the edge (H.225.0 RAS, H.323 §7.2): endpoints
// find it, register their aliases, and ask it before each call. It routes all
// calls by the edge (gatekeeper-routed), which then finds the called party in its table.
// It has no zones, no bandwidth management beyond a number, and speaks to no other gatekeeper but by LRQ.
//
//	datagram ─► Gatekeeper.Handle ─► reply
//	Setup, alias ─► Gatekeeper.Lookup ─► where the endpoint takes calls
//
// It does no I/O, has no clock, and must not be called concurrently.
package gatekeeper

import (
	"net/netip"
	"strings"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

// Outcomes of requests, as labels of metrics.
const (
	Malformed   = "malformed"
	Unknown     = "unknown_message"
	Confirmed   = "confirmed"
	Rejected    = "rejected"
	NotOurs     = "other_gatekeeper"
	OutOfLimits = "limit"
	NotAllowed  = "not_allowed"
)

// protocolID is H.225.0 version 4.
const protocolID = "0.0.8.2250.0.4"

// Config says what the gatekeeper allows.
type Config struct {
	// ID is its gatekeeperIdentifier; requests for another one are left alone.
	ID string
	// Lifetime of a registration in seconds or more; endpoints may ask for less.
	Lifetime time.Duration
	// MaxEndpoints bounds the registrations, PerHost those of one host.
	MaxEndpoints, PerHost int
	// MayRegister tells whether endpoints of a network may register.
	MayRegister func(network string) bool
	// MayLocate tells whether a host is told where endpoints are (LRQ); others get no answer.
	MayLocate func(network string, host netip.Addr) bool
	// Reachable tells whether a called alias leads anywhere although nobody has registered it: a static
	// entry, or a network to which calls go by default.
	Reachable func(network, alias string) bool
	// Signalling and RAS return the edge's own addresses on a network, for peers of a host's family.
	Signalling, RAS func(network string, peer netip.Addr) netip.AddrPort
}

// Gatekeeper answers requests.
type Gatekeeper struct {
	cfg   Config
	codec *ras.Codec
	table *table
	// Outcomes counts the requests by outcome.
	Outcomes map[string]uint64
	probes   []Probe
	seq      uint16 // of the last probe
}

// New returns a gatekeeper with which nobody is registered.
func New(cfg Config) *Gatekeeper {
	return &Gatekeeper{cfg: cfg, codec: ras.NewCodec(), table: newTable(), Outcomes: make(map[string]uint64)}
}

// request is one message on its way through the gatekeeper.
type request struct {
	*ras.Message
	now     time.Time
	network string
	from    netip.AddrPort
}

// Handle answers a datagram; nil if there is nothing to say.
func (g *Gatekeeper) Handle(now time.Time, network string, from netip.AddrPort, datagram []byte) []byte {
	m, err := g.codec.Decode(datagram)
	if err != nil {
		g.Outcomes[Malformed]++
		return nil
	}
	g.table.sweep(now)
	if id := m.GatekeeperID(); id != "" && id != g.cfg.ID && (m.Kind == ras.GRQ || m.Kind == ras.LRQ) {
		g.Outcomes[NotOurs]++
		return nil
	}
	r := request{m, now, network, from}
	if kind := refusalOf(m.Kind); kind != "" && needs(r) {
		return g.reply(r, kind, []per.Field{protocol(), g.identifier(), per.F("rejectReason", per.Alternative("neededFeatureNotSupported", per.Nothing()))})
	}
	if e := g.table.byID[m.EndpointID()]; e != nil && e.host == from.Addr() {
		e.asks = 0 // it is there
	}
	kind, fields := g.answer(r)
	if kind == "" {
		return nil
	}
	return g.reply(r, kind, fields)
}

// reply encodes an answer and counts it.
func (g *Gatekeeper) reply(r request, kind ras.Kind, fields []per.Field) []byte {
	b, err := ras.Append(nil, kind, append([]per.Field{per.F("requestSeqNum", per.Number(int64(max(r.SeqNum(), 1))))}, fields...)...)
	if err != nil {
		g.Outcomes[Malformed]++ // an echo of something that cannot be encoded
		return nil
	}
	if strings.HasSuffix(string(kind), "Reject") {
		g.Outcomes[Rejected]++
	} else {
		g.Outcomes[Confirmed]++
	}
	return b
}

// refusalOf returns how a request is refused whose sender needs what the gatekeeper has not; "" for others than those of
// discovery and registration.
func refusalOf(k ras.Kind) ras.Kind {
	switch k {
	case ras.GRQ:
		return ras.GRJ
	case ras.RRQ:
		return ras.RRJ
	}
	return ""
}

// needs tells whether the sender cannot do without a feature that the gatekeeper has not (H.225.0 §7.2.5): all but
// H.460.18, and H.460.19, which is for calls. Features that are only supported or desired, such as H.460.17, .23, .24 and .26, are
// declined by not being in the answer.
func needs(r request) bool {
	for _, f := range r.Features(nil) {
		if f.Field == "neededFeatures" && f.ID != signallingTraversal && f.ID != mediaTraversal {
			return true
		}
	}
	return false
}

// answer returns the reply to a request, "" for none.
func (g *Gatekeeper) answer(r request) (ras.Kind, []per.Field) {
	switch r.Kind {
	case ras.GRQ:
		return g.discover(r)
	case ras.RRQ:
		return g.register(r)
	case ras.URQ:
		return g.unregister(r)
	case ras.ARQ:
		return g.admit(r)
	case ras.BRQ:
		return g.bandwidth(r)
	case ras.DRQ:
		return g.disengage(r)
	case ras.LRQ:
		return g.locate(r)
	case ras.RAI:
		return ras.RAC, []per.Field{protocol()}
	case ras.IRR:
		if r.Tree.Int(r.Tree.Child(r.Body, "needResponse")) != 0 {
			return ras.IACK, nil
		}
	case ras.SCR: // an endpoint has heard of a call, and will connect
	default:
		g.Outcomes[Unknown]++
	}
	return "", nil
}

func protocol() per.Field { return per.F("protocolIdentifier", per.Identifier(protocolID)) }

func (g *Gatekeeper) identifier() per.Field {
	return per.F("gatekeeperIdentifier", per.Text(g.cfg.ID))
}

func reject(k ras.Kind, reason string, more ...per.Field) (ras.Kind, []per.Field) {
	return k, append(more, per.F("rejectReason", per.Alternative(reason, per.Nothing())))
}

// discover answers a GRQ.
func (g *Gatekeeper) discover(r request) (ras.Kind, []per.Field) {
	if !g.cfg.MayRegister(r.network) {
		return reject(ras.GRJ, "terminalExcluded", protocol(), g.identifier())
	}
	return ras.GCF, append([]per.Field{
		protocol(), g.identifier(), per.F("rasAddress", h245.CallAddress(g.cfg.RAS(r.network, r.from.Addr()))),
	}, traversalServer(traverses(r))...)
}

// register answers an RRQ: a new registration, or one that only is to live on.
func (g *Gatekeeper) register(r request) (ras.Kind, []per.Field) {
	if !g.cfg.MayRegister(r.network) {
		return reject(ras.RRJ, "undefinedReason", protocol(), g.identifier())
	}
	life := g.cfg.Lifetime
	if asked, ok := r.TimeToLive(); ok && asked > 0 {
		life = min(life, max(asked, minLifetime))
	}
	if r.KeepAlive() {
		e := g.table.byID[r.EndpointID()]
		if e == nil || e.host != r.from.Addr() {
			return reject(ras.RRJ, "fullRegistrationRequired", protocol(), g.identifier())
		}
		if e.traversal {
			life, e.ras = min(life, traversalLife), r.from // its NAT may have forgotten the last port
		}
		e.until = r.now.Add(life)
		return g.registered(r, e, life)
	}
	behind := traverses(r)
	signalling, ok := CallAddress(r.Message, r.from)
	if behind {
		// Nobody can connect to it: it is known by where it asks from.
		signalling, ok, life = r.from, true, min(life, traversalLife)
	}
	if !ok {
		return reject(ras.RRJ, "invalidCallSignalAddress", protocol(), g.identifier())
	}
	e := &endpoint{host: r.from.Addr(), network: r.network, signalling: signalling, ras: r.from, until: r.now.Add(life), traversal: behind}
	for _, a := range r.Aliases(nil) {
		if a.Field == "terminalAlias" && a.Text != "" && len(e.aliases) < maxAliases {
			e.aliases = append(e.aliases, fold(a.Text))
		}
	}
	switch taken, full := g.enter(r, e); {
	case taken != "":
		return ras.RRJ, []per.Field{protocol(), g.identifier(), per.F("rejectReason", per.Alternative("duplicateAlias", per.Elements(h225.H323ID(taken))))}
	case full:
		g.Outcomes[OutOfLimits]++
		return reject(ras.RRJ, "resourceUnavailable", protocol(), g.identifier())
	}
	return g.registered(r, e, life)
}

// enter registers an endpoint, unless another one has one of its aliases. If that is of the same host, which may be the same
// endpoint after it was started again, it is asked whether it is still there.
func (g *Gatekeeper) enter(r request, e *endpoint) (taken string, full bool) {
	for range maxAliases + 1 {
		taken, rival, full := g.table.add(e, r.EndpointID(), g.cfg.MaxEndpoints, g.cfg.PerHost)
		switch {
		case taken == "":
			return "", full
		case !rival.gone(r.now):
			if rival.host == e.host {
				g.probe(r.now, rival)
			}
			return taken, false
		}
		g.table.remove(rival)
	}
	return "", true
}

// Probe is a request to an endpoint, for the caller to send.
type Probe struct {
	Network string
	To      netip.AddrPort
	Data    []byte
}

// Probes returns what is to be sent since it was last called.
func (g *Gatekeeper) Probes() []Probe {
	p := g.probes
	g.probes = nil
	return p
}

// probe asks an endpoint whether it is still there (H.225.0 §7.15: IRQ). Whatever it says answers that.
func (g *Gatekeeper) probe(now time.Time, e *endpoint) {
	if len(g.probes) >= maxProbes {
		return
	}
	g.seq++
	b, err := ras.Append(nil, ras.IRQ, per.F("requestSeqNum", per.Number(int64(max(g.seq, 1)))), per.F("callReferenceValue", per.Number(0)))
	if err != nil {
		return // it will be asked at the next try
	}
	if e.asks++; e.asks == 1 {
		e.asked = now
	}
	g.probes = append(g.probes, Probe{e.network, e.ras, b})
}

// CallAddress returns where the sender of an RRQ takes calls. It must be its own host; one that is behind a NAT names
// a private address, and is called at the host that it is seen at.
func CallAddress(m *ras.Message, from netip.AddrPort) (netip.AddrPort, bool) {
	first := netip.AddrPort{}
	for _, a := range m.Addresses(nil) {
		if a.Field != h245.CallSignalAddress || a.AddrPort.Port() == 0 {
			continue
		}
		if a.AddrPort.Addr() == from.Addr() {
			return a.AddrPort, true
		}
		if !first.IsValid() {
			first = a.AddrPort
		}
	}
	if !first.IsValid() || !first.Addr().IsPrivate() && !first.Addr().IsUnspecified() && !first.Addr().IsLoopback() {
		return first, false
	}
	return netip.AddrPortFrom(from.Addr(), first.Port()), true
}

func (g *Gatekeeper) registered(r request, e *endpoint, life time.Duration) (ras.Kind, []per.Field) {
	f := []per.Field{
		protocol(), g.identifier(),
		per.F("callSignalAddress", per.Elements(h245.CallAddress(g.cfg.Signalling(r.network, r.from.Addr())))),
		per.F("endpointIdentifier", per.Text(e.id)),
		per.F("timeToLive", per.Number(int64(life/time.Second))),
		per.F("willRespondToIRR", per.Truth(false)),
	}
	return ras.RCF, append(f, traversalServer(e.traversal)...)
}

// unregister answers a URQ.
func (g *Gatekeeper) unregister(r request) (ras.Kind, []per.Field) {
	e := g.table.byID[r.EndpointID()]
	if e == nil {
		e = g.table.at(r.from.Addr(), r.Aliases(nil))
	}
	if e == nil || e.host != r.from.Addr() {
		return reject(ras.URJ, "notCurrentlyRegistered")
	}
	g.table.remove(e)
	return ras.UCF, nil
}

// admit answers an ARQ: the call goes by the edge.
func (g *Gatekeeper) admit(r request) (ras.Kind, []per.Field) {
	e := g.table.byID[r.EndpointID()]
	if e == nil || e.host != r.from.Addr() {
		return reject(ras.ARJ, "callerNotRegistered")
	}
	answering := r.Tree.Int(r.Tree.Child(r.Body, "answerCall")) != 0
	if !answering && !g.reachable(r) {
		return reject(ras.ARJ, "calledPartyNotRegistered")
	}
	return ras.ACF, []per.Field{
		per.F("bandWidth", per.Number(max(r.Tree.Int(r.Tree.Child(r.Body, "bandWidth")), minBandwidth))),
		per.F("callModel", per.Alternative("gatekeeperRouted", per.Nothing())),
		per.F("destCallSignalAddress", h245.CallAddress(g.cfg.Signalling(r.network, r.from.Addr()))),
		per.F("willRespondToIRR", per.Truth(false)), per.F("uuiesRequested", noUUIEs()),
	}
}

// minBandwidth is granted whatever is asked for, in 100 bit/s: some endpoints ask for nothing.
const minBandwidth = 1280

// reachable tells whether a called party can be reached: by an alias, or by an address.
func (g *Gatekeeper) reachable(r request) bool {
	for _, a := range r.Aliases(nil) {
		if a.Field != "destinationInfo" || a.Text == "" {
			continue
		}
		if _, ok := g.Lookup(r.now, a.Text); ok || g.cfg.Reachable(r.network, a.Text) {
			return true
		}
	}
	for _, a := range r.Addresses(nil) {
		if a.Field == h245.DestCallSignalAddress {
			return true
		}
	}
	return g.cfg.Reachable(r.network, "")
}

func noUUIEs() per.Value {
	names := []string{
		"setup", "callProceeding", "connect", "alerting", "information", "releaseComplete", "facility", "progress", "empty",
		"status", "statusInquiry", "setupAcknowledge", "notify",
	}
	f := make([]per.Field, len(names))
	for i, n := range names {
		f[i] = per.F(n, per.Truth(false))
	}
	return per.Fields(f...)
}

// bandwidth answers a BRQ: what is asked for is granted.
func (g *Gatekeeper) bandwidth(r request) (ras.Kind, []per.Field) {
	want := r.Tree.Int(r.Tree.Child(r.Body, "bandWidth"))
	if e := g.table.byID[r.EndpointID()]; e == nil || e.host != r.from.Addr() {
		return reject(ras.BRJ, "notBound", per.F("allowedBandWidth", per.Number(0)))
	}
	return ras.BCF, []per.Field{per.F("bandWidth", per.Number(want))}
}

// disengage answers a DRQ.
func (g *Gatekeeper) disengage(r request) (ras.Kind, []per.Field) {
	if e := g.table.byID[r.EndpointID()]; e == nil || e.host != r.from.Addr() {
		return reject(ras.DRJ, "notRegistered")
	}
	return ras.DCF, nil
}

// locate answers an LRQ.
func (g *Gatekeeper) locate(r request) (ras.Kind, []per.Field) {
	if !g.cfg.MayLocate(r.network, r.from.Addr()) {
		g.Outcomes[NotAllowed]++ // else whoever asks learns who is registered
		return "", nil
	}
	for _, a := range r.Aliases(nil) {
		if a.Field != "destinationInfo" || a.Text == "" {
			continue
		}
		if _, ok := g.Lookup(r.now, a.Text); ok {
			return ras.LCF, []per.Field{
				per.F("callSignalAddress", h245.CallAddress(g.cfg.Signalling(r.network, r.from.Addr()))),
				per.F("rasAddress", h245.CallAddress(g.cfg.RAS(r.network, r.from.Addr()))),
			}
		}
	}
	return reject(ras.LRJ, "requestDenied")
}

// Lookup returns where the endpoint with an alias takes calls.
func (g *Gatekeeper) Lookup(now time.Time, alias string) (netip.AddrPort, bool) {
	e := g.table.byAlias[fold(alias)]
	if e == nil || now.After(e.until) {
		return netip.AddrPort{}, false
	}
	return e.signalling, true
}

// Registration describes an endpoint.
type Registration struct {
	ID         string         `json:"id"`
	Aliases    []string       `json:"aliases"`
	Network    string         `json:"network"`
	Signalling netip.AddrPort `json:"signalling"`
	// Door is where another gatekeeper calls it; not valid with the built-in one.
	Door    netip.AddrPort `json:"door,omitzero"`
	Expires time.Time      `json:"expires"`
}

// Registrations lists the endpoints, in no order.
func (g *Gatekeeper) Registrations() []Registration {
	out := make([]Registration, 0, len(g.table.byID))
	for _, e := range g.table.byID {
		out = append(out, Registration{ID: e.id, Aliases: e.aliases, Network: e.network, Signalling: e.signalling, Expires: e.until})
	}
	return out
}

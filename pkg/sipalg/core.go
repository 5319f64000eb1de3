package sipalg

import (
	"crypto/rand"
	"hash/maphash"
	mrand "math/rand/v2"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/imfilter"
	"edged.dev/edged/pkg/sipalg/sdp"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// Core is the inner half of the SIP ALG: message in, who sent it, now → messages out, leases asked.
// It has no socket, goroutine or clock and is not safe for concurrent use; [Server] drives it.
//
//	Receive ─► guard ─► request ─► route ─► forward ─► Output
//	                └─► response ─► transaction ─► forward ─► Output
type Core struct {
	cfg     Config
	limits  Limits
	domains map[string]*domain
	nets    pinhole.Networks
	opener  pinhole.Opener
	// conferences grants pinholes for T.120; nil if there is no relay for it.
	conferences pinhole.Opener

	locals  []*local
	routeTo func(netip.Addr) string
	log     *zap.Logger
	seed    maphash.Seed
	secret  []byte
	random  *mrand.ChaCha8

	now    time.Time
	out    *Output
	timers timers
	sweep  timer

	client   map[uint64]*tx // by the id in our branch
	server   map[uint64]*tx // by serverKey, chained by tx.chain
	sessions map[uint64]*session
	calls    map[uint64]*session // by hash of the Call-ID, chained by session.chain
	aliases  map[string]*alias
	tokens   map[token]*alias
	bindings map[string]*binding // by AOR and token
	users    map[string][]*binding
	conns    map[uint64]*connection // that are alive and were heard; nil where nothing more is known
	carried  map[uint64]*tx         // by connection: what was sent on by it, chained by tx.connNext
	held     int                    // bytes of the received requests of all transactions
	waiting  map[uint64]*tx         // by query id
	homes    map[homeKey]*home
	credits  map[uint64][]byte // credentials of CANCELs, by transaction
	lookups  map[uint64]*upstream
	servers  map[netip.Addr]bool // that are configured or have proved to be a peer
	peers    map[netip.Addr]int  // connections of verified peers
	sources  map[netip.Addr]*source
	drops    map[string]uint64
	count    counters
	draining bool
	// journal and idle are set by the outer half: a binding has changed or is gone; a session's
	// pinhole is silent (called on a goroutine of the relay).
	journal func(line []byte)
	idle    func(silence)
	// contents is set by the outer half too; nil: contents pass.
	contents ContentEditor
	deny     Denier           // set by the outer half too; nil: nobody is shut out
	answers  Answerer         // set by the outer half too; nil: every request goes on
	urls     *imfilter.Filter // nil: links pass
	// fingerprint is that of the relay's certificate, set by the outer half.
	fingerprint string

	// Scratch, valid within one call.
	m, m2  sipmsg.Message
	ed     sipmsg.Editor
	sdp    sdp.Session
	keyBuf []byte
	buf    []byte
	buf2   []byte
	body   []byte
	sdpBuf []byte
	places []sdp.Placement
	denied refusal
}

// counters are shown as metrics.
type counters struct {
	requests, responses map[string]uint64 // by method, by class
	calls, answered     uint64
	failed              map[string]uint64
}

// local is a listener as it is written into messages.
type local struct {
	network        string
	proto          flow.Proto
	bind           netip.AddrPort
	public         netip.AddrPort
	hostport       string // public address
	transportParam string // ";transport=tcp", empty for UDP
	via            string // "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK"
	route          string // "<sip:192.0.2.1:5060;transport=tcp;lr"
}

// NewCore returns a core without listeners. routeTo names the network by which an address is
// reached; it may be nil if all networks have subnets.
func NewCore(cfg Config, limits Limits, nets pinhole.Networks, opener pinhole.Opener, routeTo func(netip.Addr) string, log *zap.Logger) *Core {
	c := &Core{
		limits: limits, nets: nets, opener: opener, routeTo: routeTo, log: log,
		seed: maphash.MakeSeed(), secret: make([]byte, 32),
		client: map[uint64]*tx{}, server: map[uint64]*tx{}, sessions: map[uint64]*session{}, calls: map[uint64]*session{},
		aliases: map[string]*alias{}, tokens: map[token]*alias{}, bindings: map[string]*binding{}, users: map[string][]*binding{},
		conns: map[uint64]*connection{}, homes: map[homeKey]*home{}, peers: map[netip.Addr]int{}, credits: map[uint64][]byte{}, carried: map[uint64]*tx{}, waiting: map[uint64]*tx{}, lookups: map[uint64]*upstream{}, sources: map[netip.Addr]*source{}, drops: map[string]uint64{},
		count: counters{requests: map[string]uint64{}, responses: map[string]uint64{}, failed: map[string]uint64{}},
	}
	rand.Read(c.secret)
	c.random = mrand.NewChaCha8([32]byte(c.secret))
	rand.Read(c.secret)
	c.journal, c.idle = func([]byte) {}, func(silence) {}
	c.Configure(cfg, limits)
	c.sweep.fire = (*Core).sweepAll
	return c
}

// AddListener tells the core of a listener. Requests leave by the first one of a network,
// protocol and family.
func (c *Core) AddListener(network string, proto flow.Proto, bind netip.AddrPort) {
	pub := addrPort(c.nets[network].Public(bind.Addr()), bind.Port())
	l := &local{network: network, proto: proto, bind: bind, public: pub, hostport: pub.String()}
	if proto != flow.UDP {
		l.transportParam = ";transport=" + proto.String()
	}
	l.via = "Via: SIP/2.0/" + proto.Via() + " " + l.hostport + ";branch=" + branchMagic
	l.route = "<sip:" + l.hostport + l.transportParam + ";lr"
	c.locals = append(c.locals, l)
}

// localOf returns the listener that f came in by, or the one of its network and protocol.
func (c *Core) localOf(f flow.Flow) *local {
	for _, l := range c.locals {
		if l.proto == f.Proto && l.network == f.Network && l.bind == f.Local {
			return l
		}
	}
	return c.localFor(f.Network, f.Proto, f.Remote.Addr())
}

// localFor returns the listener from which requests to a peer leave; of another protocol if the
// network has none of this one, nil if it has none of the family.
func (c *Core) localFor(network string, p flow.Proto, remote netip.Addr) *local {
	var other *local
	for _, l := range c.locals {
		if l.network != network || l.bind.Addr().Is4() != remote.Unmap().Is4() {
			continue
		}
		if l.proto == p {
			return l
		}
		if other == nil {
			other = l
		}
	}
	return other
}

// ownHost tells whether a URI's host is one of the edge's addresses.
func (c *Core) ownHost(host []byte) bool {
	a, ok := parseAddr(host)
	return ok && c.nets.Own(a)
}

// ownURI tells whether host and port are one of the edge's listeners, and which.
func (c *Core) ownURI(u sipmsg.URI) *local {
	a, ok := parseAddr(u.Host)
	if !ok {
		return nil
	}
	proto := uriProto(u)
	port := uriPort(u, proto)
	var found *local
	for _, l := range c.locals {
		if (l.public.Addr() == a || l.bind.Addr() == a) && l.public.Port() == port {
			if proto == 0 && l.proto == flow.UDP || l.proto == proto {
				return l
			}
			if found == nil {
				found = l
			}
		}
	}
	return found
}

func (c *Core) begin(now time.Time, out *Output) {
	c.now, c.out = now, out
	if c.sweep.index == 0 {
		c.start(&c.sweep, sweepEvery)
	}
}

// Receive takes one message that came by f. raw is not kept.
func (c *Core) Receive(now time.Time, f flow.Flow, raw []byte, out *Output) {
	c.begin(now, out)
	if reason := c.refuse(f); reason != "" {
		c.drop(reason)
		return
	}
	c.noteConn(f)
	if err := c.m.Parse(raw); err != nil {
		c.malformed(f, err)
		return
	}
	if c.overlong() {
		c.drop("overlong")
		return
	}
	if c.m.IsRequest() {
		c.count.requests[methodLabel(c.m.Method())]++
		c.request(f)
		return
	}
	c.count.responses[statusClass(c.m.Status())]++
	c.response(f)
}

// Closed takes note that a stream connection has ended: what waited for it fails or finds another way.
func (c *Core) Closed(now time.Time, f flow.Flow, out *Output) {
	c.begin(now, out)
	c.closeConn(f)
	var lost []*tx
	for t := c.carried[f.Conn]; t != nil; t = t.connNext {
		lost = append(lost, t)
	}
	for _, t := range lost {
		if t.state < txCompleted {
			c.nextTarget(t, 503)
		}
	}
}

// Sent takes the outcome of an item with a target: the flow by which it was sent, or the error.
func (c *Core) Sent(now time.Time, id uint64, f flow.Flow, err error, out *Output) {
	c.begin(now, out)
	t := c.client[id]
	if t == nil || t.state >= txCompleted {
		return
	}
	if err != nil {
		c.log.Debug("next hop cannot be reached", zap.Stringer("target", t.target.Addr), zap.Error(err))
		c.nextTarget(t, 503)
		return
	}
	c.sentBy(t, f)
}

func (c *Core) drop(reason string) { c.drops[reason]++ }

func (c *Core) sweepAll() {
	c.sweepAliases()
	c.sweepSources()
	c.sweepCalls()
	c.sweepHomes()
	c.start(&c.sweep, sweepEvery)
}

// newID returns an unguessable non-zero number: branches and session tokens must not be forged by
// somebody who is not on the path.
func (c *Core) newID() uint64 { return c.random.Uint64() | 1 }

// methodLabel bounds what a stranger can make of a metric's label.
func methodLabel(m string) string {
	switch m {
	case "INVITE", "ACK", "BYE", "CANCEL", "REGISTER", "OPTIONS", "PRACK", "UPDATE", "REFER", "MESSAGE", "SUBSCRIBE",
		"NOTIFY", "PUBLISH", "INFO", "BENOTIFY", "SERVICE", "NEGOTIATE":
		return m
	}
	return "other"
}

// Next returns when the next timer is due, the zero time if none runs.
func (c *Core) Next() time.Time {
	if len(c.timers) == 0 {
		return time.Time{}
	}
	return c.timers[0].when
}

package turn

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

const (
	// maxPeers bounds the peers of one CreatePermission.
	maxPeers = 16
	// Lifetimes of allocations (RFC 8656 §7.2): the least, and the most.
	minLifetime = 600
	maxLifetime = 3600
)

// session is what the guard remembers between two reads of pion at one socket.
type session struct {
	// pending has been opened for the request that pion was given last.
	pending *allocation
	probe   [12]byte // transaction ID of the request that asks pion for its nonce
	m       message  // what is handled, so that not every one is made anew
	buf     [maxControl]byte
}

// settle ends an allocation that pion was asked for and has not made.
func (n *session) settle() {
	if n.pending != nil && !n.pending.live.Load() {
		n.pending.close()
	}
	n.pending = nil
}

// control handles a STUN message of a client. What it returns is for pion; nil: nothing is.
func (s *Server) control(o origin, b []byte, n *session) []byte {
	m := &n.m
	if why := m.parse(b); why != "" {
		s.count.drop(why)
		return nil
	}
	switch {
	case m.class == request && m.method == binding:
		s.bindingRequest(o, m)
	case m.class == request:
		return s.request(o, m, n)
	case m.class == indication && m.method == sendData:
		s.fromSend(o, m)
	case m.class == indication && m.method == binding: // a keep-alive
	default:
		s.count.drop("unexpected")
	}
	return nil
}

// answer is a response to one request.
type answer struct {
	s   *Server
	o   origin
	m   *message
	key []byte // nil as long as the client has not proved who it is
}

func (r answer) send(w *composer) {
	if err := r.o.to.reply(r.o.client, w.sign(r.key).fingerprint(r.m.fingerprint).b); err != nil {
		r.s.count.drop("send")
	}
}

// compose begins the answer; what it holds most often fits the buffer.
func (r answer) compose(c class) *composer {
	return compose(make([]byte, 0, 192), c, r.m.method, r.m.txid())
}

// refuse answers with an error.
func (r answer) refuse(code int) []byte {
	r.s.count.request(r.m.method, code)
	r.send(r.compose(failure).errorCode(code, phrase(code)))
	return nil
}

// challenge answers with a nonce: 401, or 438 if the client's is old. It says no more than that, and only so often.
func (r answer) challenge(code int) []byte {
	if !r.s.challenge.Allow(r.o.client.Addr()) {
		r.s.count.suppressed.Inc()
		return nil
	}
	r.s.count.request(r.m.method, code)
	text := "" // the answer to a few octets with a forged source is no longer than it must be
	if r.m.integrity > 0 {
		text = phrase(code)
	}
	w := r.compose(failure).errorCode(code, text)
	r.send(w.text(attrNonce, r.s.nonces.make(r.o.client, time.Now())).text(attrRealm, r.s.cfg.Realm))
	return nil
}

// unknown answers 420 to attributes that have to be understood, and are not.
func (r answer) unknown(list []uint16) []byte {
	if r.key == nil && !r.s.challenge.Allow(r.o.client.Addr()) {
		r.s.count.suppressed.Inc()
		return nil
	}
	r.s.count.request(r.m.method, 420)
	var types []byte
	for _, t := range list {
		types = binary.BigEndian.AppendUint16(types, t)
	}
	r.send(r.compose(failure).errorCode(420, "").attr(attrUnknown, types))
	return nil
}

// request authenticates a request and applies the rules of its method.
func (s *Server) request(o origin, m *message, n *session) []byte {
	r := answer{s: s, o: o, m: m}
	if m.method.String() == "other" || m.method == sendData {
		s.count.drop("unexpected")
		return nil
	}
	user, code := r.authenticate()
	switch code {
	case 0:
	case unanswered:
		s.count.drop("user_asked_for")
		return nil
	default:
		return r.challenge(code)
	}
	if list := m.unknown(understood); len(list) > 0 { // DONT-FRAGMENT is one of them
		return r.unknown(list)
	}
	if o.authenticated != nil {
		o.authenticated()
	}
	a := s.find(o.tuple)
	switch {
	case m.method == allocate:
		return r.allocate(a, user, n)
	case m.method == connectionBind:
		return r.connectionBind(a, user)
	case a == nil:
		return r.refuse(437)
	case a.user != user:
		return r.refuse(441)
	}
	a.setKey(r.key)
	switch m.method {
	case refresh:
		return r.refresh(a)
	case createPermission:
		return r.createPermission(a)
	case channelBind:
		return r.channelBind(a)
	}
	return r.connect(a)
}

// unanswered stands for the code of a request that gets no answer now.
const unanswered = -1

// authenticate finds out who has signed the request, and with which key (RFC 8489 §9.2.4); a code that is not 0
// says what the client is to be challenged with.
func (r *answer) authenticate() (user string, code int) {
	s, m := r.s, r.m
	if m.integrity == 0 {
		return "", 401
	}
	if !s.nonces.valid(m.get(attrNonce), r.o.client, time.Now()) {
		return "", 438
	}
	name, why := string(m.get(attrUsername)), "realm"
	if len(name) <= maxUsername && string(m.get(attrRealm)) == s.cfg.Realm {
		keys, known := s.lookup(r.o, name, m.method, time.Now())
		if !known {
			return "", unanswered
		}
		for _, c := range keys {
			if s.deps.Deny != nil && s.deps.Deny.User(c.user) {
				s.authFailed(r.o, name, "banned")
				return "", 401
			}
			if m.signedWith(c.key) {
				r.key = c.key
				return c.user, 0
			}
		}
		why = "user" // that nobody has, or whose time is over
		if len(keys) > 0 {
			why = "password"
		}
	}
	s.authFailed(r.o, name, why)
	return "", 401
}

// authFailed counts, and logs once in a while for one source: for fail2ban and its like.
func (s *Server) authFailed(o origin, name, why string) {
	s.count.authFailures.WithLabelValues(why).Inc()
	if s.count.logAuth.Allow(o.client.Addr()) {
		s.log.Warn("authentication failed", zap.Stringer("client", o.client), zap.ByteString("user", []byte(name[:min(len(name), 64)])))
	}
}

// allocate opens what the request asks for (RFC 8656 §7.2); what relays TCP pion keeps.
func (r answer) allocate(a *allocation, user string, n *session) []byte {
	m := r.m
	if a != nil {
		if a.txid == m.txid() && a.user == user { // the answer was lost
			if !a.tcp {
				return r.allocated(a)
			}
			return r.toEngine(a, func(w *composer) *composer { return w.attr(attrRequestedProto, m.get(attrRequestedProto)) })
		}
		return r.refuse(437)
	}
	d := demand{user: user, key: r.key, txid: m.txid(), token: m.get(attrReservationToken)}
	if code := r.demand(&d); code != 0 {
		return r.refuse(code)
	}
	a, err := r.s.open(r.o, d)
	switch {
	case errors.Is(err, errQuota):
		return r.refuse(486)
	case err != nil:
		return r.refuse(508)
	}
	if !a.tcp {
		if !a.hold(lifetime(m)) {
			a.close()
			return r.refuse(508)
		}
		return r.allocated(a)
	}
	n.pending = a
	return r.toEngine(a, func(w *composer) *composer {
		return w.attr(attrRequestedProto, m.get(attrRequestedProto)).attr(attrRequestedFamily, []byte{a.familyNumber(), 0, 0, 0}).
			uint32(attrLifetime, lifetime(m))
	})
}

// demand reads an Allocate request; 0 or the code of what is wrong with it.
func (r answer) demand(d *demand) int {
	m := r.m
	proto := m.get(attrRequestedProto)
	switch {
	case proto == nil:
		return 400
	case proto[0] == 6 && !r.o.stream:
		return 400 // RFC 6062 §5.1
	case proto[0] == 6 && r.s.cfg.TCP && r.s.deps.Streams != nil:
		d.tcp = true
	case proto[0] != 17:
		return 442
	}
	even := m.get(attrEvenPort)
	if d.token != nil && (even != nil || m.has(attrRequestedFamily)) || d.tcp && (even != nil || d.token != nil) {
		return 400 // RFC 8656 §7.2, RFC 6062 §5.1
	}
	d.even, d.pair = even != nil, even != nil && even[0]&0x80 != 0
	switch f := m.get(attrRequestedFamily); {
	case f == nil:
		// RFC 8656 §7.2 says IPv4; of a client that came by IPv6 browsers expect what it came by.
		d.family = pinhole.FamilyOf(r.o.local.Addr())
		if _, _, err := r.s.deps.Networks.Local(r.o.ep.relay, d.family); err != nil {
			d.family = pinhole.IPv4
		}
	case f[0] == 1:
		d.family = pinhole.IPv4
	case f[0] == 2:
		d.family = pinhole.IPv6
	default:
		return 440
	}
	if d.token != nil {
		d.family = r.s.reservedFamily([8]byte(d.token))
	}
	if d.token == nil || d.family == pinhole.AnyFamily {
		if _, _, err := r.s.deps.Networks.Local(r.o.ep.relay, d.family); err != nil {
			return 440
		}
	}
	return 0
}

// reservedFamily returns the family of a held port, AnyFamily if there is none.
func (s *Server) reservedFamily(token [8]byte) pinhole.Family {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.reserved[token]; r != nil {
		return pinhole.FamilyOf(r.port.Local().Addr.Addr())
	}
	return pinhole.AnyFamily
}

// lifetime returns for how many seconds the request may have the allocation: 600 if it says nothing.
func lifetime(m *message) uint32 {
	v := m.get(attrLifetime)
	if v == nil {
		return minLifetime
	}
	return min(max(binary.BigEndian.Uint32(v), minLifetime), maxLifetime)
}

func (r answer) refresh(a *allocation) []byte {
	if f := r.m.get(attrRequestedFamily); f != nil && (f[0] == 2) != (a.family == pinhole.IPv6) {
		return r.refuse(443)
	}
	seconds := lifetime(r.m)
	if v := r.m.get(attrLifetime); v != nil && binary.BigEndian.Uint32(v) == 0 {
		seconds = 0
	}
	if !a.tcp {
		return r.refreshed(a, seconds)
	}
	return r.toEngine(a, func(w *composer) *composer { return w.uint32(attrLifetime, seconds) })
}

// judge checks the peers of a request, all before any is permitted; 0 or the code of what is wrong.
func (r answer) judge(a *allocation, peers []netip.AddrPort) int {
	for _, p := range peers {
		switch {
		case !p.IsValid():
			return 400
		case p.Addr().Is6() != (a.family == pinhole.IPv6):
			return 443
		}
		if why := r.s.peers.Permission(p.Addr()); why != "" {
			r.s.count.denied(why)
			return 403
		}
	}
	if fresh, have := a.more(peers); have+fresh > r.s.quota.Load().Permissions {
		r.s.count.quota("permissions")
		return 508
	}
	return 0
}

func (r answer) createPermission(a *allocation) []byte {
	var peers []netip.AddrPort
	for _, attr := range r.m.attrs {
		if attr.typ != attrXORPeerAddress {
			continue
		}
		if len(peers) == maxPeers {
			return r.refuse(508)
		}
		if p := xorAddress(attr.val, r.m.txid()); !slices.Contains(peers, p) {
			peers = append(peers, p)
		}
	}
	if len(peers) == 0 {
		return r.refuse(400)
	}
	if code := r.judge(a, peers); code != 0 {
		return r.refuse(code)
	}
	if !a.tcp {
		return r.permitted(a, peers)
	}
	return r.toEngine(a, func(w *composer) *composer {
		for _, p := range peers {
			w.address(attrXORPeerAddress, p, true)
		}
		return w
	})
}

func (r answer) channelBind(a *allocation) []byte {
	number := r.m.get(attrChannelNumber)
	peer := xorAddress(r.m.get(attrXORPeerAddress), r.m.txid())
	if number == nil || !peer.IsValid() || a.tcp {
		return r.refuse(400)
	}
	// RFC 8656 §12 keeps numbers from 0x5000 on for later; clients of RFC 5766 use them.
	if n := binary.BigEndian.Uint16(number); n < 0x4000 || n > 0x7FFE {
		return r.refuse(400)
	}
	if code := r.judge(a, []netip.AddrPort{peer}); code != 0 {
		return r.refuse(code)
	}
	if why := r.s.peers.Packet(peer); why != "" {
		r.s.count.denied(why)
		return r.refuse(403)
	}
	return r.bound(a, number, peer)
}

func (r answer) connect(a *allocation) []byte {
	peer := xorAddress(r.m.get(attrXORPeerAddress), r.m.txid())
	if !a.tcp || !peer.IsValid() {
		return r.refuse(400)
	}
	if peer.Addr().Is6() != (a.family == pinhole.IPv6) {
		return r.refuse(443)
	}
	if why := r.s.peers.Connect(peer); why != "" {
		r.s.count.denied(why)
		return r.refuse(403)
	}
	return r.toEngine(a, func(w *composer) *composer { return w.address(attrXORPeerAddress, peer, true) })
}

// connectionBind joins this connection to one of a peer (RFC 6062 §5.4). The ID must be of the same user.
func (r answer) connectionBind(a *allocation, user string) []byte {
	id := r.m.get(attrConnectionID)
	if id == nil || a != nil || !r.o.stream {
		return r.refuse(400)
	}
	s := r.s
	s.mu.RLock()
	of := s.joins[binary.BigEndian.Uint32(id)]
	s.mu.RUnlock()
	if of == nil || of.user != user || of.from.ep != r.o.ep {
		return r.refuse(400)
	}
	of.setKey(r.key)
	return r.toEngine(of, func(w *composer) *composer { return w.attr(attrConnectionID, id) })
}

// toEngine composes the request anew for pion: what the guard has read and judged, signed for pion with pion's nonce.
func (r answer) toEngine(a *allocation, add func(*composer) *composer) []byte {
	w := add(compose(make([]byte, 0, 512), request, r.m.method, r.m.txid()))
	return w.text(attrUsername, a.id).text(attrRealm, r.s.cfg.Realm).text(attrNonce, r.o.ep.nonce()).sign(r.key).b
}

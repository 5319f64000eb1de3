package ils

import (
	"net/netip"
	"strconv"
	"sync"
	"time"

	"edged.dev/edged/pkg/ils/ber"
	"edged.dev/edged/pkg/pinhole"
)

const (
	// maxPending bounds the operations of one connection whose answers are awaited.
	maxPending = 512
	// maxTTL bounds the lifetime that a registration may ask for.
	maxTTL = 24 * time.Hour
)

// side tells on which side of the edge a party of the connection is.
type side struct {
	network string
	inside  bool // a trusted network: its addresses mean nothing outside
}

// sealing says how much of the stream can be read.
type sealing uint8

const (
	readable    sealing = iota
	sealed              // TLS, or SASL with a layer: what follows passes as it is
	neverSealed         // the built-in directory, which speaks neither
	maybe               // SASL has succeeded: a message that does not begin like one is sealed (RFC 4513 §5.2.1)
)

// pending is an operation whose answer is awaited.
type pending struct {
	op      byte
	ils     bool
	reg     registration // of Add and Modify
	refresh bool         // of a search or an extended operation: reg.ttl anew for reg.names[0]
	hits    int          // entries that a search has brought
	hit     string       // the last of ours among them
}

// session reads and edits both directions of one LDAP connection. It does no I/O. Its methods may be called
// concurrently.
type session struct {
	cfg        *Config
	nets       pinhole.Networks
	reg        *Registry
	count      *counters
	host       netip.Addr // the client's address as seen
	client     side
	server     side
	serverless bool // the built-in directory: it lies inside

	mu      sync.Mutex // guards what follows
	state   sealing
	pending map[int32]*pending
}

// opaque tells whether a message that begins with first is to pass unread, with all that follows it.
func (s *session) opaque(first byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == maybe && first != ber.Sequence {
		s.state = sealed
	}
	return s.state == sealed
}

// seal has everything pass unread from here on.
func (s *session) seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != neverSealed {
		s.state = sealed
	}
}

// sealing returns why nothing may pass unread; nil if it may. What an outside client writes into an inside directory
// must be read: the registry learns from that directory's answers who may be called.
func (s *session) sealing() error {
	if !s.client.inside && s.server.inside {
		return errSealed
	}
	return nil
}

// request reads a message of the client and returns it as the server is to see it: raw itself if nothing
// changes.
func (s *session) request(raw []byte) ([]byte, error) {
	m, err := parse(raw)
	if err != nil {
		return nil, err
	}
	s.count.message(m.op.Tag)
	switch m.op.Tag {
	case opBind:
		return raw, s.bind(m)
	case opAdd:
		f, err := m.attributes()
		return s.write(m, f, err)
	case opModify:
		f, err := m.modifications()
		return s.write(m, f, err)
	case opDelete:
		return raw, s.delete(m)
	case opCompare:
		f, err := m.assertion()
		if mine, err := s.mine(f, err); !mine {
			return raw, err
		}
		return s.edit(m, f, s.toServer)
	case opSearch:
		return s.search(m)
	case opExtended:
		return raw, s.extended(m)
	case opAbandon:
		s.abandon(m)
	}
	return raw, nil
}

// mine tells whether a message belongs to a directory of calls. err is what reading it brought.
func (s *session) mine(f facts, err error) (bool, error) {
	mine := f.ils || s.cfg.Dedicated
	if err == nil && mine && f.over {
		err = errValues
	}
	return mine && err == nil, err
}

// await notes an operation whose answer matters.
func (s *session) await(id int32, p *pending) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) >= maxPending {
		return errPending
	}
	if s.pending == nil {
		s.pending = map[int32]*pending{}
	}
	s.pending[id] = p
	return nil
}

// answered takes back what is awaited under id.
func (s *session) answered(id int32) *pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending[id]
	delete(s.pending, id)
	return p
}

func (s *session) bind(m message) error {
	w := ber.Walk(m.raw, m.op)
	_, ok := w.Expect(ber.Integer)
	_, ok2 := w.Expect(ber.OctetString)
	auth, ok3 := w.Next()
	if !ok || !ok2 || !ok3 {
		return errMalformed
	}
	if auth.Tag != 0xa3 { // simple, or one of Microsoft's own: no layer follows
		return nil
	}
	return s.await(m.id, &pending{op: opBind})
}

// write handles Add and Modify: both may say where a user is.
func (s *session) write(m message, f facts, err error) ([]byte, error) {
	if !s.client.inside && s.server.inside {
		switch {
		case f.oids:
			return nil, errForeign
		case err != nil:
			return nil, err
		case f.over:
			return nil, errValues
		}
		// Of any directory's entry: a later change may make a user's of it.
		return s.edit(m, f, s.fromOutside)
	}
	if mine, err := s.mine(f, err); !mine {
		return m.raw, err
	}
	names := f.names(m.raw)
	if s.client.inside && len(names) > 0 {
		p := &pending{op: m.op.Tag, ils: true, reg: registration{names: names, ports: s.ports(m.raw, f), ttl: f.ttl(m.raw)}}
		for _, v := range f.each(m.raw, kindAddr) {
			if a, _, ok := parseAddr(v); ok && (s.isInside(a) || s.nets.Own(a)) {
				p.reg.host = s.host // never a third host: that would open it to calls from outside
				if a != s.host {
					s.count.drop("other_host")
				}
			}
		}
		if p.reg.host.IsValid() {
			s.reg.claimPublic(names[0])
		}
		if err := s.await(m.id, p); err != nil {
			return nil, err
		}
	}
	return s.edit(m, f, s.toServer)
}

// ports returns the ports of calls that an entry names. A list of protocols says what the ports of the same
// index are for; the well-known ones speak for themselves.
func (s *session) ports(raw []byte, f facts) (out [2]uint16) {
	protos := f.each(raw, kindProto)
	for i, v := range f.each(raw, kindPort) {
		if port, ok := parsePort(v); ok {
			out[protocolOf(port, protos, i)] = port
		}
	}
	return out
}

func protocolOf(port uint16, protos [][]byte, i int) Protocol {
	switch {
	case port == portH323:
		return H323
	case port == portT120, i < len(protos) && (string(protos[i]) == "T120" || string(protos[i]) == "t120"):
		return T120
	}
	return H323
}

// ttl returns the lifetime that the values ask for, 0 if none does.
func (f facts) ttl(raw []byte) time.Duration {
	for _, u := range []struct {
		k kind
		d time.Duration
	}{{kindTTL, time.Minute}, {kindSeconds, time.Second}} {
		for _, v := range f.each(raw, u.k) {
			if n, err := strconv.ParseUint(string(v[:min(len(v), 10)]), 10, 32); err == nil && n > 0 {
				return min(time.Duration(n)*u.d, maxTTL)
			}
		}
	}
	return 0
}

func (s *session) delete(m message) error {
	dn := m.op.Of(m.raw)
	name := foldName(commonName(dn))
	if !s.client.inside || name == "" || !s.cfg.Dedicated && !isILSName(dn) {
		return nil
	}
	return s.await(m.id, &pending{op: opDelete, reg: registration{names: []string{name}}})
}

// search notes what the answer is needed for, and turns addresses of the filter round. A lifetime in a
// filter is a refresh ([MS-TAIL] 3.5.4: (&(objectClass=RTPerson)(cn=…)(sttl=10))).
func (s *session) search(m message) ([]byte, error) {
	f, _, err := m.search()
	if mine, err := s.mine(f, err); !mine {
		return m.raw, err
	}
	p := &pending{op: opSearch, ils: true}
	if names := f.names(m.raw); s.client.inside && len(names) > 0 {
		p.reg = registration{names: names, ttl: f.ttl(m.raw)}
		p.refresh = len(f.each(m.raw, kindTTL))+len(f.each(m.raw, kindSeconds)) > 0
	}
	if err := s.await(m.id, p); err != nil {
		return nil, err
	}
	return s.edit(m, f, s.toServer)
}

// extended notes StartTLS (RFC 4511 §4.14) and the refresh of RFC 2589 §4.1.
func (s *session) extended(m message) error {
	w := ber.Walk(m.raw, m.op)
	name, ok := w.Expect(0x80)
	if !ok {
		return errMalformed
	}
	switch string(name.Of(m.raw)) {
	case oidStartTLS:
		if err := s.sealing(); err != nil && !s.serverless {
			return err // already here: what comes with the request could not be told from what comes after
		}
		return s.await(m.id, &pending{op: opExtended})
	case oidRefresh:
		value, _ := w.Expect(0x81)
		dn, ttl := refreshOf(value.Of(m.raw))
		if cn := foldName(commonName(dn)); cn != "" && s.client.inside && (s.cfg.Dedicated || isILSName(dn)) {
			return s.await(m.id, &pending{op: opSearch, refresh: true, reg: registration{names: []string{cn}, ttl: ttl}})
		}
	}
	return nil
}

// refreshOf reads SEQUENCE { entryName [0], requestTtl [1] } (RFC 2589 §4.1).
func refreshOf(value []byte) (dn []byte, ttl time.Duration) {
	top, err := ber.Next(value, 0, len(value))
	if err != nil {
		return nil, 0
	}
	w := ber.Walk(value, top)
	name, ok := w.Expect(0x80)
	sec, ok2 := w.Expect(0x81)
	n, fits := ber.Int(sec.Of(value))
	if !ok || !ok2 || !fits || n < 0 {
		return nil, 0
	}
	return name.Of(value), min(time.Duration(n)*time.Second, maxTTL)
}

func (s *session) abandon(m message) {
	if id, ok := ber.Int(m.op.Of(m.raw)); ok {
		s.answered(id)
	}
}

// response reads a message of the server and returns it as the client is to see it.
func (s *session) response(raw []byte) ([]byte, error) {
	m, err := parse(raw)
	if err != nil {
		return nil, err
	}
	s.count.message(m.op.Tag)
	switch m.op.Tag {
	case opEntry:
		return s.entry(m)
	case opBindResponse, opSearchDone, opModifyResponse, opAddResponse, opDeleteResponse, opExtendedDone:
		s.finish(m)
	}
	return raw, nil
}

// finish does what waited for an operation's success. saslBindInProgress (14) awaits another bind.
func (s *session) finish(m message) {
	p, code := s.answered(m.id), m.result()
	if p == nil || code != 0 {
		return
	}
	switch {
	case p.op == opBind:
		s.mu.Lock()
		s.state = max(s.state, maybe)
		s.mu.Unlock()
	case p.op == opExtended:
		s.seal()
	case p.op == opDelete:
		s.reg.remove(p.reg.names[0])
	case p.op == opAdd, p.op == opModify:
		if !s.reg.register(p.reg) && p.reg.host.IsValid() {
			s.count.drop("not_registered")
		}
	case p.refresh:
		s.reg.refresh(p.reg.names[0], p.reg.ttl)
	case p.hits == 1 && p.hit != "" && !s.client.inside:
		s.reg.resolve(s.host, p.hit)
	}
}

package msturn

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"edged.dev/edged/internal/gate"
)

// Bounds of one allocation.
const (
	maxPermissions = 64
	// permissionLife is how long a peer may answer after the client has last sent to it.
	permissionLife = 5 * time.Minute
	minLifetime    = time.Minute
	// lifetime is what a client gets that does not say ([MS-TURN] §3.3.2 leaves it to the server).
	lifetime    = 10 * time.Minute
	maxLifetime = time.Hour
	// version is the highest one of MS-VERSION that is served: the later ones sign with SHA-256 and have IPv6.
	version = 2
)

// tuple names a client: where its messages come to, and from. On is comparable: a socket, or a connection.
type tuple struct {
	on     any
	client netip.AddrPort
}

// Peers judges to whom packets are relayed: "" or why not. Its methods may be called concurrently.
type Peers interface {
	// Permission judges an address, Packet where a packet is to go.
	Permission(netip.Addr) string
	Packet(netip.AddrPort) string
	// Relay says that an own address became a relay port, or is none any more.
	Relay(at netip.AddrPort, on bool)
}

// core decides what messages do. It has no sockets; what is to be done is in its verdicts.
type core struct {
	users *users
	peers Peers
	kbits int // a second for each user, both directions; 0 = any
	// challenge tells whether a source that has not signed may be answered once more.
	challenge func(netip.Addr) bool
	maxUser   int

	mu      sync.RWMutex // guards what follows
	allocs  map[tuple]*allocation
	perUser map[string]*account
	// draining refuses new allocations.
	draining bool
}

// account is what a user has.
type account struct {
	allocations int // with those whose port is being opened; guarded by core.mu

	mu   sync.Mutex
	free time.Time // when all that was relayed would have passed at the user's rate
}

// burst is how much more than its rate a user may have relayed at once.
const burst = time.Second

// spend tells whether n octets more are within the rate.
func (c *core) spend(now time.Time, a *account, n int) bool {
	if c.kbits == 0 {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.free.Before(now) {
		a.free = now
	}
	if a.free.Sub(now) > burst {
		return false
	}
	a.free = a.free.Add(time.Duration(n*8) * time.Millisecond / time.Duration(c.kbits))
	return true
}

// allocation is one client's relay port. What has no lock is not changed.
type allocation struct {
	tuple   tuple
	user    string
	account *account
	name    string // as signed
	key     []byte
	relay   netip.AddrPort // as advertised
	connect [20]byte
	out     outlet // its ports

	mu      sync.Mutex // guards what follows
	window  window
	until   time.Time
	active  netip.AddrPort
	chosen  [16]byte // transaction that chose it
	allowed map[netip.Addr]time.Time
	// waiting are those who wait for a permission; closed and emptied with each new one.
	waiting chan struct{}
}

// await waits until a peer may send; false if that does not happen in time, or end is closed before.
func (a *allocation) await(peer netip.Addr, end <-chan struct{}) bool {
	timeout := time.NewTimer(awaitTime)
	defer timeout.Stop()
	for {
		a.mu.Lock()
		if time.Now().Before(a.allowed[peer]) {
			a.mu.Unlock()
			return true
		}
		if a.waiting == nil {
			a.waiting = make(chan struct{})
		}
		next := a.waiting
		a.mu.Unlock()
		select {
		case <-next:
		case <-end:
			return false
		case <-timeout.C:
			return false
		}
	}
}

// outlet is the relay port of an allocation: it sends to peers.
type outlet interface {
	send(to netip.AddrPort, b []byte) error
	// until moves the time at which it closes itself.
	until(t time.Time)
	Close() error
}

// verdict is what to do about a message.
type verdict struct {
	// mine is false if the message is not of this protocol.
	mine bool
	// reply goes back to the client.
	reply []byte
	// drop is why nothing is done, for the counters.
	drop string
	// grant asks for a port; then opened has the answer to request.
	grant   *allocation
	request message
	// from, to, data: what is sent to a peer.
	from *allocation
	to   netip.AddrPort
	data []byte
	// end closes an allocation.
	end *allocation
}

func dropped(reason string) verdict          { return verdict{mine: true, drop: reason} }
func answered(b []byte, drop string) verdict { return verdict{mine: true, reply: b, drop: drop} }

// receive judges what came from a client. bare says that it is data without a header (a frame of a stream says
// so); on UDP that shows by its form.
func (c *core) receive(now time.Time, from tuple, b []byte, bare bool) verdict {
	a := c.of(from)
	if bare || !IsMessage(b) {
		return c.bare(a, b)
	}
	m, err := decode(b)
	if err != nil {
		return dropped("malformed")
	}
	if a != nil && !a.alive(now) {
		a = nil
	}
	switch m.kind {
	case allocateRequest:
		return c.allocate(now, from, a, &m)
	case sendRequest:
		return c.send(now, a, &m)
	case setActiveRequest:
		return c.setActive(now, from, a, &m)
	}
	return dropped("unexpected")
}

// of returns the allocation of a client, nil if it has none.
func (c *core) of(from tuple) *allocation {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.allocs[from]
}

func (a *allocation) alive(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return now.Before(a.until)
}

// bare sends data to the active peer.
func (c *core) bare(a *allocation, b []byte) verdict {
	if a == nil {
		return verdict{}
	}
	a.mu.Lock()
	to := a.active
	a.mu.Unlock()
	if !to.IsValid() {
		return verdict{} // perhaps of another protocol, from the same socket
	}
	if why := c.peers.Packet(to); why != "" {
		return dropped("peer_" + why)
	}
	return verdict{mine: true, from: a, to: to, data: b}
}

// refuse answers with an error that is not signed, which whoever forges sources could have sent to others: its rate is bounded.
func (c *core) refuse(now time.Time, from tuple, m *message, code int, reason string) verdict {
	if !c.challenge(from.client.Addr()) {
		return dropped("challenge_limit")
	}
	k := allocateError
	if m.kind == setActiveRequest {
		k = setActiveError
	}
	r := begin(k, m.id).failure(code, reason)
	if code == 401 || code == 438 {
		r = r.bytes(attrRealm, []byte(c.users.realm)).bytes(attrNonce, c.users.nonce(from.client.Addr(), now))
	}
	return answered(r.number(attrVersion, version).finish(), "")
}

// allocate grants a port, or prolongs the one that is there.
func (c *core) allocate(now time.Time, from tuple, a *allocation, m *message) verdict {
	switch {
	case m.integrity == 0 || len(m.username) == 0:
		return c.refuse(now, from, m, 401, "Unauthorized")
	case a != nil && m.sequence != nil && a.known(m): // its number stands for the nonce
	case !c.users.fresh(m.nonce, from.client.Addr(), now):
		return c.refuse(now, from, m, 438, "Stale Nonce")
	}
	if a != nil {
		return c.refresh(now, from, a, m)
	}
	name := string(m.username)
	for _, k := range c.users.lookup(name, now) {
		if !m.signed(k.key) {
			continue
		}
		if m.unknown != 0 {
			r := begin(allocateError, m.id).failure(420, "Unknown Attribute")
			return answered(r.bytes(attrUnknown, []byte{byte(m.unknown >> 8), byte(m.unknown)}).sign(k.key), "unknown_attribute")
		}
		return c.grant(now, from, m, k, name)
	}
	v := c.refuse(now, from, m, 401, "Unauthorized")
	if v.drop == "" {
		v.drop = "unauthorized"
	}
	return v
}

// known tells whether a message is of the allocation's user and connection; whether it is fresh is asked once it is
// known to be signed.
func (a *allocation) known(m *message) bool {
	return string(m.username) == a.name && m.sequence.connection == a.connect
}

func (c *core) grant(now time.Time, from tuple, m *message, k candidate, name string) verdict {
	life, ok := lifeOf(m)
	if !ok { // the end of what is not there
		return answered(c.allocated(now, m, from, &allocation{key: k.key, tuple: from}, 0), "")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return answered(begin(allocateError, m.id).failure(486, "Draining").sign(k.key), gate.Draining)
	}
	acc := c.perUser[k.user]
	if acc == nil {
		acc = &account{}
		c.perUser[k.user] = acc
	}
	if acc.allocations >= c.maxUser {
		return answered(begin(allocateError, m.id).failure(486, "Allocation Quota Reached").sign(k.key), "quota")
	}
	acc.allocations++
	return verdict{mine: true, request: *m, grant: &allocation{
		tuple: from, user: k.user, account: acc, name: name, key: k.key, until: now.Add(life), allowed: map[netip.Addr]time.Time{},
	}}
}

// lifeOf returns the lifetime that a message gets; ok is false if it asks for the end.
func lifeOf(m *message) (d time.Duration, ok bool) {
	switch {
	case !m.hasLifetime:
		return lifetime, true
	case m.lifetime == 0:
		return 0, false
	}
	return min(max(time.Duration(m.lifetime)*time.Second, minLifetime), maxLifetime), true
}

// opened takes the port that a verdict has asked for, or nil and why there is none, and returns the answer. If
// the client has one by now, that of an earlier copy of the message, keep is false and the port is to be closed.
func (c *core) opened(now time.Time, m *message, a *allocation, failed error) (answer []byte, keep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failed != nil {
		c.releaseLocked(a.user)
		return begin(allocateError, m.id).failure(486, "Allocation Quota Reached").sign(a.key), false
	}
	if old := c.allocs[a.tuple]; old != nil && old.alive(now) {
		c.releaseLocked(a.user)
		return nil, false
	}
	if old := c.allocs[a.tuple]; old != nil {
		c.releaseLocked(old.user) // over, and not yet closed
	}
	c.allocs[a.tuple] = a
	return c.allocated(now, m, a.tuple, a, a.until.Sub(now)), true
}

func (c *core) releaseLocked(user string) {
	if acc := c.perUser[user]; acc != nil {
		if acc.allocations--; acc.allocations <= 0 {
			delete(c.perUser, user)
		}
	}
}

// ended forgets an allocation whose port is closed.
func (c *core) ended(a *allocation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.allocs[a.tuple] == a {
		delete(c.allocs, a.tuple)
		c.releaseLocked(a.user)
	}
}

// open counts the allocations.
func (c *core) open() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.allocs)
}

// allocated is the answer to Allocate ([MS-TURN] §3.3.5.1).
func (c *core) allocated(now time.Time, m *message, from tuple, a *allocation, life time.Duration) []byte {
	r := begin(allocateOK, m.id).number(attrVersion, version)
	if a.relay.IsValid() {
		r = r.sequence(sequence{connection: a.connect}).addr(attrMappedAddress, a.relay).xorAddr(attrXorMapped, from.client)
	}
	return r.number(attrLifetime, uint32(life.Round(time.Second)/time.Second)).bytes(attrRealm, []byte(c.users.realm)).
		bytes(attrNonce, c.users.nonce(from.client.Addr(), now)).sign(a.key)
}

// refresh prolongs or ends an allocation.
func (c *core) refresh(now time.Time, from tuple, a *allocation, m *message) verdict {
	if string(m.username) != a.name || !m.signed(a.key) {
		return c.refuse(now, from, m, 441, "Wrong Credentials")
	}
	life, ok := lifeOf(m)
	if !ok {
		return verdict{mine: true, reply: c.allocated(now, m, from, a, 0), end: a}
	}
	a.mu.Lock()
	if m.sequence != nil && a.known(m) {
		a.window.accept(m.sequence.number) // a copy of a request gets its answer again
	}
	a.until = now.Add(life)
	a.mu.Unlock()
	a.out.until(now.Add(life))
	return answered(c.allocated(now, m, from, a, life), "")
}

// fresh tells whether a signed message is no copy: by its number, or by its nonce if it has none.
func (c *core) freshLocked(now time.Time, a *allocation, m *message) bool {
	if m.sequence == nil {
		return c.users.fresh(m.nonce, a.tuple.client.Addr(), now)
	}
	return m.sequence.connection == a.connect && a.window.accept(m.sequence.number)
}

// send relays DATA to a peer, who may answer from now on. There is no answer ([MS-TURN] §3.3.5.2).
func (c *core) send(now time.Time, a *allocation, m *message) verdict {
	switch {
	case a == nil:
		return dropped("no_allocation")
	case string(m.username) != a.name || !m.signed(a.key):
		return dropped("unauthorized")
	case m.data == nil || !m.dest.IsValid() || m.unknown != 0:
		return dropped("malformed")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !c.freshLocked(now, a, m) {
		return dropped("replay")
	}
	if why := c.admitLocked(now, a, m.dest); why != "" {
		return dropped(why)
	}
	return verdict{mine: true, from: a, to: m.dest, data: m.data}
}

// admitLocked judges a peer, and lets it answer.
func (c *core) admitLocked(now time.Time, a *allocation, to netip.AddrPort) string {
	if to.Addr().Is4() != a.relay.Addr().Is4() {
		return "peer_family"
	}
	if why := c.peers.Permission(to.Addr()); why != "" {
		return "peer_" + why
	}
	if why := c.peers.Packet(to); why != "" {
		return "peer_" + why
	}
	if _, there := a.allowed[to.Addr()]; !there && len(a.allowed) >= maxPermissions {
		for peer, until := range a.allowed {
			if !now.Before(until) {
				delete(a.allowed, peer)
			}
		}
		if len(a.allowed) >= maxPermissions {
			return "permission_limit"
		}
	}
	a.allowed[to.Addr()] = now.Add(permissionLife)
	if a.waiting != nil {
		close(a.waiting)
		a.waiting = nil
	}
	return ""
}

// setActive chooses the peer with whom data goes bare from now on ([MS-TURN] §3.3.5.3: before it is answered).
func (c *core) setActive(now time.Time, from tuple, a *allocation, m *message) verdict {
	switch {
	case a == nil:
		return c.refuse(now, from, m, 437, "No Binding")
	case string(m.username) != a.name || !m.signed(a.key):
		return c.refuse(now, from, m, 401, "Unauthorized")
	}
	fail := func(code int, reason, drop string) verdict {
		return answered(begin(setActiveError, m.id).failure(code, reason).sign(a.key), drop)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	done := begin(setActiveOK, m.id).number(attrVersion, version)
	switch {
	case a.chosen == m.id && a.active == m.dest: // the answer was lost
		return answered(done.sign(a.key), "")
	case m.unknown != 0 || !m.dest.IsValid():
		return fail(400, "Bad Request", "malformed")
	case !c.freshLocked(now, a, m):
		return dropped("replay")
	}
	if why := c.admitLocked(now, a, m.dest); why != "" {
		return fail(403, "Forbidden", why)
	}
	a.active, a.chosen = m.dest, m.id
	return answered(done.sign(a.key), "")
}

// fromPeer tells what to do with data of a peer: the client gets b, which is bare or a Data-Indication; b is nil
// if the peer may not send.
func (a *allocation) fromPeer(now time.Time, peer netip.AddrPort, data []byte) (b []byte, bare bool) {
	a.mu.Lock()
	active, until := a.active, a.allowed[peer.Addr()]
	a.mu.Unlock()
	if active == peer {
		return data, true
	}
	if !now.Before(until) {
		return nil, false
	}
	return indication(peer, data), false
}

// indication is a Data-Indication.
func indication(peer netip.AddrPort, data []byte) []byte {
	var id [16]byte // answers nothing
	binary.BigEndian.PutUint64(id[:], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	return begin(dataIndication, id).addr(attrRemote, peer).bytes(attrData, data).finish()
}

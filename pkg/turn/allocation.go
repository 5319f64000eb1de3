package turn

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// reservationTime is how long the neighbour of an even port is held (RFC 8656 §7.2).
const reservationTime = 30 * time.Second

// tuple names a client: the 5-tuple of RFC 8656 §3.2, of which the server's side is one of our sockets.
type tuple struct {
	client, local netip.AddrPort
	stream        bool
}

// origin is where a frame came from and answers go.
type origin struct {
	tuple
	ep *endpoint
	to replier
	// authenticated is told of a request that is signed rightly; may be nil.
	authenticated func()
}

// replier sends one frame to the client at an address.
type replier interface {
	reply(to netip.AddrPort, frame []byte) error
}

// channel is a bound one.
type channel struct {
	number uint16
	peer   netip.AddrPort
	to     *net.UDPAddr // where datagrams for the peer go
	life   term
}

// allocation is what a client has. Of one that relays TCP pion has one as well, which makes and ends this one's permissions.
type allocation struct {
	s      *Server
	id     string // pion's user ID, if it relays TCP
	from   origin
	user   string
	txid   [12]byte // of the request that made it
	tcp    bool
	family pinhole.Family
	began  time.Time
	// port is where peers send datagrams; listener where they connect. One of them is set.
	port     pinhole.Port
	listener net.Listener
	relayed  netip.AddrPort // as the client is told
	// token is of the neighbour that is held, zero if none is.
	token [8]byte
	// What may pass a second, to peers and to the client.
	octetRate, packetRate [2]budget

	// granted is for how many seconds the request that made it was answered.
	granted uint32

	live   atomic.Bool // the client is told of it
	closed sync.Once

	mu       sync.RWMutex // guards what follows
	key      []byte
	life     term
	perms    map[netip.Addr]*term // pion ends those that have no term
	byNumber map[uint16]*channel
	byPeer   map[netip.AddrPort]*channel
	octets   [2]uint64 // of TCP connections that have ended
}

// reservation is the held neighbour of an even port.
type reservation struct {
	port  pinhole.Port
	user  string
	timer *time.Timer
}

// find returns the allocation of a client, nil if there is none.
func (s *Server) find(t tuple) *allocation {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.allocs[t]
}

// demand is what an Allocate request asks for.
type demand struct {
	user       string
	key        []byte
	txid       [12]byte
	tcp        bool
	family     pinhole.Family
	even, pair bool
	token      []byte // of a reservation, nil if none
}

// Codes of refused allocations (RFC 8656 §7.2).
var (
	errQuota    = errors.New("quota")
	errCapacity = errors.New("capacity")
)

// open makes an allocation: quota first, then the port. The error wraps errQuota or errCapacity.
func (s *Server) open(o origin, d demand) (*allocation, error) {
	a := &allocation{
		s: s, from: o, user: d.user, key: d.key, txid: d.txid, tcp: d.tcp, family: d.family, began: time.Now(),
	}
	if d.tcp {
		a.id = rand.Text()
	}
	q := s.quota.Load()
	a.octetRate = [2]budget{newBudget(q.Bandwidth), newBudget(q.Bandwidth)}
	a.packetRate = [2]budget{newBudget(q.Packets), newBudget(q.Packets)}
	if err := s.enter(a); err != nil {
		return nil, err
	}
	if err := a.bind(d); err != nil {
		s.leave(a)
		s.log.Info("no relay port", zap.String("user", d.user), zap.Stringer("client", o.client), zap.Error(err))
		return nil, errors.Join(errCapacity, err)
	}
	s.eachAddress(a, true)
	return a, nil
}

// enter counts an allocation in and enters it into the tables.
func (s *Server) enter(a *allocation) error {
	q := s.quota.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return errCapacity
	case s.perUser[a.user] >= q.PerUser:
		s.count.quota("per_user")
		return errQuota
	case len(s.allocs) >= q.Allocations:
		s.count.quota("allocations")
		return errCapacity
	}
	s.allocs[a.from.tuple] = a
	if a.id != "" {
		s.byID[a.id] = a
	}
	s.perUser[a.user]++
	return nil
}

func (s *Server) leave(a *allocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.allocs[a.from.tuple] != a {
		return
	}
	delete(s.allocs, a.from.tuple)
	delete(s.byID, a.id)
	if s.perUser[a.user]--; s.perUser[a.user] <= 0 {
		delete(s.perUser, a.user)
	}
	for id, of := range s.joins {
		if of == a {
			delete(s.joins, id)
		}
	}
}

// bind gets the relay port.
func (a *allocation) bind(d demand) error {
	ctx, s := context.Background(), a.s
	if d.tcp {
		at, public, err := s.deps.Networks.Local(a.from.ep.relay, d.family)
		if err != nil {
			return err
		}
		if a.listener, err = s.deps.Streams.Listen(ctx, at); err != nil {
			return err
		}
		a.relayed = netip.AddrPortFrom(public, pinhole.AddrPortOf(a.listener.Addr()).Port())
		return nil
	}
	if d.token != nil {
		r := s.takeReservation([8]byte(d.token), d.user)
		if r == nil {
			return pinhole.ErrExhausted
		}
		a.port, a.relayed = r.port, r.port.Local().Addr
		return nil
	}
	port, err := s.deps.Ports.OpenPort(ctx, pinhole.PortRequest{
		Owner: "turn " + d.user, Label: "turn " + a.from.client.String(), Network: a.from.ep.relay, Family: d.family,
		Even: d.even, Pair: d.pair, Ports: [2]uint16{s.cfg.Ports.First, s.cfg.Ports.Last}, Client: a.from.client,
	})
	if err != nil {
		return err
	}
	a.port, a.relayed = port, port.Local().Addr
	if !d.pair {
		return nil
	}
	next, err := port.Next(ctx)
	if err != nil {
		port.Close()
		return err
	}
	copy(a.token[:], rand.Text())
	s.reserve(a.token, next, d.user)
	return nil
}

func (s *Server) reserve(token [8]byte, port pinhole.Port, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved[token] = &reservation{port, user, time.AfterFunc(reservationTime, func() {
		if r := s.takeReservation(token, user); r != nil {
			r.port.Close()
		}
	})}
}

// takeReservation returns what is held for a user under a token, once.
func (s *Server) takeReservation(token [8]byte, user string) *reservation {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.reserved[token]
	if r == nil || r.user != user {
		return nil
	}
	delete(s.reserved, token)
	r.timer.Stop()
	return r
}

// eachAddress tells the policy that the relay port's addresses, bound and advertised, are peers' or no more.
func (s *Server) eachAddress(a *allocation, on bool) {
	s.peers.Relay(a.relayed, on)
	if bound := s.boundOf(a.relayed); bound != a.relayed {
		s.peers.Relay(bound, on)
	}
}

// boundOf returns the bound address of an advertised one of ours; others as they are.
func (s *Server) boundOf(at netip.AddrPort) netip.AddrPort {
	if a, ok := s.bound[at.Addr()]; ok {
		return netip.AddrPortFrom(a, at.Port())
	}
	return at
}

// advertisedOf returns the advertised address of a bound one of ours; others as they are.
func (s *Server) advertisedOf(at netip.AddrPort) netip.AddrPort {
	if a, ok := s.advertised[at.Addr()]; ok {
		return netip.AddrPortFrom(a, at.Port())
	}
	return at
}

// close gives everything back. It may be called again, by timers and by pion's callbacks.
func (a *allocation) close() {
	a.closed.Do(func() {
		a.s.leave(a)
		a.s.eachAddress(a, false)
		a.stopTerms()
		octets := a.traffic()
		if a.port != nil {
			a.port.Close()
		} else {
			a.listener.Close()
		}
		a.s.count.ended(a, octets)
		if !a.live.Load() {
			return
		}
		if e := a.s.log.Check(zap.InfoLevel, "allocation ended"); e != nil {
			e.Write(zap.String("user", a.user), zap.Stringer("client", a.from.client), zap.String("transport", a.from.ep.scheme),
				zap.Stringer("relayed", a.relayed), zap.Duration("duration", time.Since(a.began)),
				zap.Uint64("octets_from_client", octets[0].Bytes), zap.Uint64("octets_from_peers", octets[1].Bytes))
		}
	})
}

// traffic returns what came from the client and from peers so far.
func (a *allocation) traffic() [2]pinhole.StreamStats {
	if a.port != nil {
		return a.port.Stats()
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	return [2]pinhole.StreamStats{{Bytes: a.octets[0]}, {Bytes: a.octets[1]}}
}

func (a *allocation) setKey(key []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.key = key
}

func (a *allocation) getKey() []byte {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.key
}

// permitted tells whether there is a permission for an address.
func (a *allocation) permitted(peer netip.Addr) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, ok := a.perms[peer]
	return ok
}

// more tells how many of the addresses have no permission yet, and how many there are.
func (a *allocation) more(peers []netip.AddrPort) (fresh, have int) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, p := range peers {
		if _, ok := a.perms[p.Addr()]; !ok {
			fresh++
		}
	}
	return fresh, len(a.perms)
}

func (a *allocation) channelTo(peer netip.AddrPort) *channel {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.byPeer[peer]
}

func (a *allocation) channelOf(number uint16) *channel {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.byNumber[number]
}

// channelsTo returns the channels to peers at an address.
func (a *allocation) channelsTo(peer netip.Addr) (out []*channel) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, c := range a.byNumber {
		if c.peer.Addr() == peer {
			out = append(out, c)
		}
	}
	return out
}

// AllocationInfo is one allocation in the document "turn" of the API.
type AllocationInfo struct {
	User        string         `json:"user"`
	Client      netip.AddrPort `json:"client"`
	Transport   string         `json:"transport"` // udp, tcp, tls or dtls
	Relayed     netip.AddrPort `json:"relayed"`
	Protocol    string         `json:"protocol"` // udp or tcp
	Seconds     int            `json:"seconds"`
	Permissions int            `json:"permissions"`
	Channels    int            `json:"channels"`
	FromClient  uint64         `json:"octets_from_client"`
	FromPeers   uint64         `json:"octets_from_peers"`
}

// Allocations lists what there is.
func (s *Server) Allocations() []AllocationInfo {
	out := []AllocationInfo{}
	for _, a := range s.list() {
		octets := a.traffic()
		info := AllocationInfo{
			User: strings.ToValidUTF8(a.user, "?"), Client: a.from.client, Transport: a.from.ep.scheme, Relayed: a.relayed, Protocol: "udp",
			Seconds: int(time.Since(a.began).Seconds()), FromClient: octets[0].Bytes, FromPeers: octets[1].Bytes,
		}
		if a.tcp {
			info.Protocol = "tcp"
		}
		a.mu.RLock()
		info.Permissions, info.Channels = len(a.perms), len(a.byNumber)
		a.mu.RUnlock()
		out = append(out, info)
	}
	return out
}

func (s *Server) list() []*allocation {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*allocation, 0, len(s.allocs))
	for _, a := range s.allocs {
		if a.live.Load() {
			out = append(out, a)
		}
	}
	return out
}

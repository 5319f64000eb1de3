package turn

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v5"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// nonceRenewal is how often pion is asked for a nonce; it takes them for an hour.
const nonceRenewal = 20 * time.Minute

// start makes pion's server for a UDP socket or for a listener; one of the two is nil.
func (ep *endpoint) start(front *packetFront, handed *handover) error {
	cfg := turn.ServerConfig{
		Realm: ep.s.cfg.Realm, AuthHandler: ep.s.authenticated, LoggerFactory: quiet{ep.s.log},
		// Of a request for 3,600 s pion makes its default; what is asked for less it takes as it is.
		AllocationLifetime: maxLifetime * time.Second,
		EventHandler: turn.EventHandler{
			OnAllocationCreated: ep.s.created, OnAllocationDeleted: ep.s.deleted,
			OnPermissionCreated: ep.s.permissionCreated, OnPermissionDeleted: ep.s.permissionDeleted,
		},
	}
	if front != nil {
		cfg.PacketConnConfigs = []turn.PacketConnConfig{{PacketConn: front, RelayAddressGenerator: generator{ep.s}}}
	} else {
		cfg.ListenerConfigs = []turn.ListenerConfig{{Listener: handed, RelayAddressGenerator: generator{ep.s}}}
	}
	_, err := turn.NewServer(cfg)
	return err
}

// authenticated gives pion the key of a request: the guard has checked it already. The name in it is the allocation's ID.
func (s *Server) authenticated(ra *turn.RequestAttributes) (string, []byte, bool) {
	s.mu.RLock()
	a := s.byID[ra.Username]
	s.mu.RUnlock()
	if a == nil {
		return "", nil, false
	}
	return a.id, a.getKey(), true
}

// probe returns a request that pion answers with a nonce, if there is none that is young enough; else nil.
func (ep *endpoint) probe(n *session) []byte {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if time.Since(ep.asked) < nonceRenewal && ep.engine != "" {
		return nil
	}
	rand.Read(n.probe[:])
	return compose(n.buf[:0], request, allocate, n.probe).b
}

// probed takes pion's answer to a probe, and tells whether it was one.
func (ep *endpoint) probed(n *session, b []byte) bool {
	const allocateFailure = 0x0113 // others may be sent while somebody else reads
	if len(b) < headerSize || binary.BigEndian.Uint16(b) != allocateFailure || n.probe == [12]byte{} || [12]byte(b[8:20]) != n.probe {
		return false
	}
	var m message
	if m.parse(b) == "" && m.get(attrNonce) != nil {
		ep.mu.Lock()
		ep.engine, ep.asked = string(m.get(attrNonce)), time.Now()
		ep.mu.Unlock()
	}
	n.probe = [12]byte{}
	return true
}

func (ep *endpoint) nonce() string {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return ep.engine
}

// amend returns pion's answer as the client gets it: signed where pion does not.
func (s *Server) amend(t tuple, b []byte) []byte {
	if !isSTUN(b) {
		return b
	}
	var m message
	if m.parse(b) != "" {
		return b
	}
	if code := m.get(attrErrorCode); m.class == failure && len(code) >= 4 {
		s.count.request(m.method, int(code[2])*100+int(code[3]))
	} else if m.class == success {
		s.count.request(m.method, 0)
	}
	switch {
	case m.method == connectionBind && m.class == success:
		a := s.joined(m.get(attrConnectionID), nil)
		if a == nil {
			return b
		}
		return compose(nil, success, connectionBind, m.txid()).attr(attrConnectionID, m.get(attrConnectionID)).sign(a.getKey()).b
	case m.method == connect && m.class == success, m.method == connectionAttempt:
		s.joined(m.get(attrConnectionID), s.find(t))
	}
	return b
}

// joined notes whose connection an ID is, if a is given, and returns whose it is.
func (s *Server) joined(id []byte, a *allocation) *allocation {
	if len(id) != 4 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := binary.BigEndian.Uint32(id)
	if a != nil {
		s.joins[n] = a
	}
	return s.joins[n]
}

// generator gives pion the relay ports that the guard has opened.
type generator struct{ s *Server }

var errNoAllocation = errors.New("no allocation of the guard's")

// Validate implements [turn.RelayAddressGenerator].
func (generator) Validate() error { return nil }

func (g generator) get(id string) *allocation {
	g.s.mu.RLock()
	defer g.s.mu.RUnlock()
	return g.s.byID[id]
}

// AllocatePacketConn implements [turn.RelayAddressGenerator]; pion is asked for none.
func (generator) AllocatePacketConn(turn.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	return nil, nil, errNoAllocation
}

// AllocateListener implements [turn.RelayAddressGenerator].
func (g generator) AllocateListener(c turn.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	a := g.get(c.UserID)
	if a == nil || a.listener == nil {
		return nil, nil, errNoAllocation
	}
	return relayListener{a}, net.TCPAddrFromAddrPort(a.relayed), nil
}

// AllocateConn implements [turn.RelayAddressGenerator].
func (g generator) AllocateConn(c turn.AllocateConnConfig) (net.Conn, error) {
	a := g.get(c.UserID)
	if a == nil || a.listener == nil {
		return nil, errNoAllocation
	}
	return a.dial(pinhole.AddrPortOf(c.RemoteAddr))
}

// Callbacks of pion. Their addresses are those that it was given: the client's and the socket's.

func (s *Server) of(src, dst net.Addr) *allocation {
	_, stream := src.(*net.TCPAddr)
	return s.find(tuple{pinhole.AddrPortOf(src), pinhole.AddrPortOf(dst), stream})
}

func (s *Server) created(src, dst net.Addr, _, _, _ string, _ net.Addr, _ int) {
	if a := s.of(src, dst); a != nil {
		s.began(a)
	}
}

func (s *Server) deleted(src, dst net.Addr, _, userID, _ string) {
	if a := s.of(src, dst); a != nil && a.id == userID {
		a.close()
	}
}

func (s *Server) permissionCreated(src, dst net.Addr, _, _, _ string, _ net.Addr, peer net.IP) {
	a, addr := s.of(src, dst), addrOf(peer)
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.permitLocked(addr, nil)
}

func (s *Server) permissionDeleted(src, dst net.Addr, _, _, _ string, _ net.Addr, peer net.IP) {
	a, addr := s.of(src, dst), addrOf(peer)
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.perms, addr)
}

// carry has the relay move a channel by itself: of UDP clients, without a limit of octets or packets, to peers that are not the edge.
func (a *allocation) carry(c *channel) {
	front, ok := a.from.to.(*packetFront)
	if !ok || a.octetRate[0].limited() || a.packetRate[0].limited() || a.s.deps.Networks.Own(c.peer.Addr()) {
		return
	}
	err := a.port.Bind(pinhole.Channel{Number: c.number, Client: a.from.client, Front: front.conn, Peer: c.peer})
	if err != nil && !errors.Is(err, pinhole.ErrNotCarried) {
		a.s.log.Debug("the relay does not carry the channel", zap.Error(err))
	}
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// txid returns a transaction ID for an indication of ours.
func (s *Server) txid() (id [12]byte) {
	rand.Read(id[:])
	return id
}

// quiet has pion log for debugging only: the guard logs what matters.
type quiet struct{ log *zap.Logger }

// NewLogger implements [logging.LoggerFactory].
func (q quiet) NewLogger(string) logging.LeveledLogger { return q }

func (quiet) Trace(string)          {}
func (quiet) Tracef(string, ...any) {}
func (quiet) Debug(string)          {}
func (quiet) Debugf(string, ...any) {}
func (quiet) Info(string)           {}
func (quiet) Infof(string, ...any)  {}
func (q quiet) Warn(text string)    { q.log.Debug("pion", zap.String("text", text)) }
func (q quiet) Error(text string)   { q.log.Debug("pion", zap.String("text", text)) }

// Warnf implements [logging.LeveledLogger].
func (q quiet) Warnf(format string, args ...any) { q.Warn(fmt.Sprintf(format, args...)) }

// Errorf implements [logging.LeveledLogger].
func (q quiet) Errorf(format string, args ...any) { q.Error(fmt.Sprintf(format, args...)) }

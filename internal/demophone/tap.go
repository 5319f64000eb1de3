package demophone

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// maxTapped bounds the number of messages that a tap keeps.
const maxTapped = 4096

// Message is a datagram that passed a tap.
type Message struct {
	At   time.Time
	Peer netip.AddrPort
	// Sent is true for what the tap's owner sent, false for what it received.
	Sent bool
	Data []byte
}

// Tap is a packet socket that hears only some hosts, as a host without a route to the others
// would, and that keeps a copy of what passed. On loopback every address reaches every other,
// so without it two "networks" there would be one.
type Tap struct {
	net.PacketConn
	allowed []netip.Addr
	// reading is closed once somebody reads.
	reading chan struct{}
	begin   sync.Once

	mu       sync.Mutex
	messages []Message
	skipped  int
	refused  map[netip.Addr]int
}

// NewTap returns a tap around pc that hears the allowed hosts only.
func NewTap(pc net.PacketConn, allowed ...netip.Addr) *Tap {
	return &Tap{PacketConn: pc, allowed: allowed, reading: make(chan struct{}), refused: make(map[netip.Addr]int)}
}

// Addr returns the socket's own address.
func (t *Tap) Addr() netip.AddrPort { return addrPort(t.LocalAddr()) }

// ReadFrom returns the next datagram of an allowed host.
func (t *Tap) ReadFrom(b []byte) (int, net.Addr, error) {
	t.begin.Do(func() { close(t.reading) })
	for {
		n, from, err := t.PacketConn.ReadFrom(b)
		if err != nil {
			return n, from, err
		}
		if peer := addrPort(from); t.hears(peer.Addr()) {
			t.keep(Message{At: time.Now(), Peer: peer, Data: slices.Clone(b[:n])})
			return n, from, nil
		}
	}
}

// WriteTo sends a datagram. Nothing is refused here: who may be reached is for the receivers to say.
func (t *Tap) WriteTo(b []byte, to net.Addr) (int, error) {
	t.keep(Message{At: time.Now(), Peer: addrPort(to), Sent: true, Data: slices.Clone(b)})
	n, err := t.PacketConn.WriteTo(b, to)
	if err != nil {
		return n, fmt.Errorf("send to %v: %w", to, err)
	}
	return n, nil
}

// hears tells whether a host is allowed, and counts it if not.
func (t *Tap) hears(host netip.Addr) bool {
	if slices.Contains(t.allowed, host) {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.refused[host]; known || len(t.refused) < maxTapped {
		t.refused[host]++
	}
	return false
}

func (t *Tap) keep(m Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.messages) == maxTapped {
		t.skipped++
		return
	}
	t.messages = append(t.messages, m)
}

// Messages returns what passed, in order, and how many messages were not kept.
func (t *Tap) Messages() (kept []Message, skipped int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.messages), t.skipped
}

// Refused returns the number of datagrams refused from hosts within the prefix.
func (t *Tap) Refused(from netip.Prefix) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for host, count := range t.refused {
		if from.Contains(host) {
			n += count
		}
	}
	return n
}

// addrPort returns a UDP address without its 4-in-6 form; the zero value for other kinds.
func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

package media

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// A path may hand packets to a carrier that the relay's own goroutines do not see, such as the kernel.
// What it moved is then told to the counters now and then, and RTP is followed by the carrier alone, also
// for packets that it leaves to the path: each of the two would take the other's packets for lost.

// carrier is what a Path with a second way to move packets implements too.
type carrier interface {
	// Refresh tells the counters what was carried since it was last called, and promises the carrier
	// that somebody looks after its flows. The relay calls it before it looks for idle leases.
	Refresh()
	// Carries names what moves the packets that arrive at s, and says why it is nothing faster ("" if it is).
	Carries(s *Socket) (path, why string)
}

// channelCarrier is what a Path implements whose carrier can move what channels of TURN carry.
type channelCarrier interface {
	// BindChannel says what happens to packets that arrive at s from the flow's source: those that begin with the channel's
	// number, or, for the number 0, all. UnbindChannel ends it; then the counters know what was moved. The relay calls them
	// with its lock held.
	BindChannel(s *Socket, number uint16, f *Flow)
	UnbindChannel(f *Flow)
	// CarriesChannel is as Carries.
	CarriesChannel(f *Flow) (path, why string)
}

// occupier is what a Path implements whose carrier may still have flows of an earlier run of the daemon.
type occupier interface {
	// Occupied tells whether such a flow uses the UDP address: no lease gets it. The relay asks with
	// its lock held.
	Occupied(local netip.AddrPort) bool
}

// Carried is what another carrier has moved since it was last told.
type Carried struct {
	Packets, Bytes uint64
	// Last is when the last packet came, the zero value for never.
	Last time.Time
	// Received and Lost count RTP packets as [RFC 3550] appendix A does; Lost may fall.
	Received, Lost int64
	// Jitter is the interarrival jitter now, 0 if not known.
	Jitter time.Duration
}

// away is what other carriers counted.
type away struct {
	received, lost atomic.Int64
	jitter         atomic.Int64 // ns
}

// The values of follower.
const (
	atHome uint32 = iota
	// handedOver: the carrier follows RTP.
	handedOver
	// returned: the next packet is the first of a new run.
	returned
)

// IsRTP tells whether RTP is expected, so that only what looks like RTP may be carried unread.
func (c *Counters) IsRTP() bool { return c.kind == rtpStream }

// IsRTCP tells whether RTCP is expected, which must be read.
func (c *Counters) IsRTCP() bool { return c.kind == rtcpStream }

// HandOver says that a carrier follows RTP from now on, or that it has ended to.
func (c *Counters) HandOver(on bool) {
	if on {
		c.follower.Store(handedOver)
	} else {
		c.follower.CompareAndSwap(handedOver, returned)
	}
}

// Add counts what was carried.
func (c *Counters) Add(d Carried) {
	c.packets.Add(d.Packets)
	c.bytes.Add(d.Bytes)
	c.away.received.Add(d.Received)
	c.away.lost.Add(d.Lost)
	if d.Jitter > 0 {
		c.away.jitter.Store(int64(d.Jitter))
	}
	if d.Last.IsZero() {
		return
	}
	for at := int64(d.Last.Sub(*c.epoch)); ; {
		last := c.last.Load()
		if at <= last || c.last.CompareAndSwap(last, at) {
			return
		}
	}
}

// receiveRTP counts an RTP packet unless a carrier does.
func (c *Counters) receiveRTP(at int64, b []byte) {
	switch c.follower.Load() {
	case handedOver:
		return
	case returned:
		if c.follower.CompareAndSwap(returned, atHome) {
			c.rtp.pause()
		}
	}
	c.rtp.receive(at, b)
}

// quality returns what was received and lost of RTP, and the jitter, of all carriers.
func (c *Counters) quality() (received, lost int64, jitter time.Duration) {
	jitter = c.rtp.jitterTime()
	if away := time.Duration(c.away.jitter.Load()); away > 0 && (jitter == 0 || c.follower.Load() == handedOver) {
		jitter = away
	}
	return c.rtp.total() + c.away.received.Load(), c.rtp.lost() + c.away.lost.Load(), jitter
}

// carriedLocked says what moves the packets of side s, and why it is nothing faster.
func (l *lease) carriedLocked(sock *Socket) (path, why string) {
	if c, ok := l.relay.path.(carrier); ok && sock != nil {
		return c.Carries(sock)
	}
	return "user", ""
}

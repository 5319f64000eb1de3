package media

import (
	"sync/atomic"
	"time"
)

// Reason says why a packet was not relayed.
type Reason uint8

const (
	// UnknownSource: the packet came from a host or port that is not the confirmed one.
	UnknownSource Reason = iota
	// NoPeer: the other side's address is not known, or not confirmed, yet.
	NoPeer
	// TooBig: the datagram does not fit what the other side's family can carry.
	TooBig
	// Congested: the socket or the interface had no room.
	Congested
	// SendError: the kernel refused to send for another reason (no route, a filter).
	SendError
	// ReceiveQueue: the socket's receive queue was full, as the path was too slow. Such a packet was not
	// Received; whose it was is not known, so the socket's first flow has it.
	ReceiveQueue
	// BadSRTP: where SRTP begins or ends at the edge, the packet does not bear the protection of its peer's keys, was seen
	// before, is no RTP or RTCP, or is of one more source than a stream may have.
	BadSRTP
	// BadCheck: STUN where ICE ends at the edge that bears no credentials of the peer.
	BadCheck
	numReasons
)

// String returns the reason as the label of a metric.
func (r Reason) String() string {
	return [...]string{"unknown_source", "no_peer", "too_big", "congested", "send_error", "receive_queue", "bad_srtp", "bad_check"}[r]
}

// Counters counts what arrives at one socket for one lease. One goroutine at a time writes packets
// into it (Receive, Unreachable); anybody may read.
type Counters struct {
	// These, which every packet needs, are together to be in one cache line.
	epoch          *time.Time
	packets, bytes atomic.Uint64
	// last is when the last packet came, in ns since epoch, 0 for never.
	last atomic.Int64
	rtp  *rtpStats
	kind streamKind
	// follower says who follows RTP, see offload.go.
	follower atomic.Uint32
	// srtp says how the packets are changed, nil: not at all.
	srtp atomic.Pointer[conversion]

	away        away
	rtcp        *rtcpTimes
	dropped     [numReasons]atomic.Uint64
	unreachable atomic.Uint64
	// firstRefused and lastRefused bound the ICMP errors since the last packet, as last.
	firstRefused, lastRefused atomic.Int64
}

// streamKind tells how much of a packet the counters read.
type streamKind uint8

const (
	opaque streamKind = iota
	rtpStream
	rtcpStream
)

// Receive counts packet b that came at time now from the confirmed source.
func (c *Counters) Receive(now time.Time, b []byte) {
	at := int64(now.Sub(*c.epoch))
	c.packets.Add(1)
	c.bytes.Add(uint64(len(b)))
	c.last.Store(at)
	if c.kind == opaque || len(b) < 8 || b[0]>>6 != 2 {
		return
	}
	// RFC 5761 §4: with rtcp-mux, packet types 192-223 are RTCP.
	if b[1] >= 192 && b[1] <= 223 {
		c.rtcp.receive(at, b)
	} else if c.kind == rtpStream && len(b) >= 12 {
		c.receiveRTP(at, b)
	}
}

// Warm reads what Receive will read, to bring it into the cache; the value means nothing.
func (c *Counters) Warm() int {
	n := int(c.packets.Load())
	if c.rtp != nil {
		n += int(c.rtp.received.Load())
	}
	return n
}

// Drop counts n packets that were not relayed.
func (c *Counters) Drop(r Reason, n int) { c.dropped[r].Add(uint64(n)) }

// Unreachable counts an ICMP error that answered a packet sent to this peer.
func (c *Counters) Unreachable(now time.Time) {
	at := int64(now.Sub(*c.epoch))
	c.unreachable.Add(1)
	if first := c.firstRefused.Load(); first == 0 || c.last.Load() > first {
		c.firstRefused.Store(at)
	}
	c.lastRefused.Store(at)
}

// gone tells whether the peer has answered with ICMP errors only, for two seconds or more.
func (c *Counters) gone() bool {
	first := c.firstRefused.Load()
	return first > c.last.Load() && c.lastRefused.Load()-first >= int64(2*time.Second)
}

func (c *Counters) totalDropped() (n uint64) {
	for i := range c.dropped {
		n += c.dropped[i].Load()
	}
	return n
}

// undelivered counts the packets of a confirmed source that were received and did not leave.
func (c *Counters) undelivered() (n uint64) {
	for _, r := range [...]Reason{NoPeer, TooBig, Congested, SendError} {
		n += c.dropped[r].Load()
	}
	return n
}

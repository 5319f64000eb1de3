package fastpath

import (
	"time"
)

// The flags of tcp.h.
const (
	connAnswer = 1 << iota
	connSYN
	connOpen
	connFIN
	connRST
	connCounted
)

// How long a connection may be silent in each state. RFC 5382 REQ-5 asks for 2 hours and 4 minutes where it is
// established, and 4 minutes else; SYN floods and ports in short supply ask for less where nothing is lost: a
// handshake that comes to nothing, and the end.
const (
	openingTime    = 30 * time.Second
	idleTime       = 2*time.Hour + 4*time.Minute
	halfClosedTime = 4 * time.Minute
	closingTime    = 15 * time.Second
	resetTime      = 10 * time.Second
	// halfTime is how long half an entry is left alone: the program may be about to write the other.
	halfTime = 2 * time.Second
)

// The states of a connection, as ForwardConnection has them.
const (
	stateOpening     = "opening"
	stateEstablished = "established"
	stateHalfClosed  = "half closed"
	stateClosing     = "closing"
	stateReset       = "reset"
)

// reasons are the counters of tcp.h, in its order; the first handedUp of them are of SYNs that went up.
const (
	reasons  = 16
	handedUp = 11
)

func reasonName(i int) string {
	return [reasons]string{
		"denied", "limit", "half_open", "no_port", "no_way", "odd", "ttl", "mtu", "device", "user_space", "full",
		"device", "odd", "ttl", "mtu", "no_way",
	}[i]
}

// conn is a connection as it was last seen: from the client, and from the target.
type conn struct {
	forward *Forward
	port    uint16 // of From
	have    [2]bool
	keys    [2]tcTuple
	values  [2]tcConn
}

// last returns when the last packet passed, on the program's clock, in ns.
func (c *conn) last() uint64 { return max(c.values[0].Last, c.values[1].Last) }

func (c *conn) state() string {
	client, target := c.values[0].Flags, c.values[1].Flags
	switch {
	case (client|target)&connRST != 0:
		return stateReset
	case client&target&connFIN != 0:
		return stateClosing
	case client&connOpen == 0 || target&connOpen == 0:
		return stateOpening
	case (client|target)&connFIN != 0:
		return stateHalfClosed
	}
	return stateEstablished
}

// patience returns how long the connection may be silent.
func (c *conn) patience() time.Duration {
	if !c.have[0] || !c.have[1] {
		return halfTime
	}
	switch c.state() {
	case stateReset:
		return resetTime
	case stateClosing:
		return closingTime
	case stateOpening:
		return openingTime
	case stateHalfClosed:
		return min(halfClosedTime, c.forward.rule.Idle)
	}
	return c.forward.rule.Idle
}

// over tells whether it has been silent for too long.
func (c *conn) over(now uint64) bool {
	return now > c.last() && now-c.last() > uint64(c.patience())
}

// client returns the client's address and ours, which the way to it depends on.
func (c *conn) client() tcClient {
	to := &c.values[1].To
	return tcClient{Client: to.Dst, Local: to.Src}
}

// from tells which direction a value is of: 0 is from the client.
func (v *tcConn) from() int {
	if v.Flags&connAnswer != 0 {
		return 1
	}
	return 0
}

// portOf returns the port of From that a direction belongs to.
func portOf(k *tcTuple, v *tcConn) uint16 {
	if v.from() == 0 {
		return hostPort(v.To.Sport)
	}
	return hostPort(k.Dport)
}

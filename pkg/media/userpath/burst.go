package userpath

import "golang.org/x/sys/unix"

// Video comes in bursts. The kernel can join a burst on arrival (UDP_GRO), which spares most of the cost of
// receiving it; where each packet comes alone it would only cost. So a socket is asked to join when it has
// been seen bursty for some time, and no longer when it has not been for a longer one.
const (
	// burst packets in one round are one; few packets are none.
	burst, few = 8, 4
	// joinAfter and partAfter are numbers of rounds in a row.
	joinAfter, partAfter = 16, 256
)

// follow decides whether the kernel may join the packets of e, of which some have come in this round.
func (l *loop) follow(e *entry, packets int) {
	if e.socket.Shared != nil {
		return // what is joined may belong to several leases
	}
	if e.merging && e.single {
		l.merge(e, false)
		return
	}
	if hold := e.merging && packets < few || !e.merging && packets >= burst && !e.single; !hold {
		e.streak = 0
		return
	}
	e.streak++
	if !e.merging && e.streak == joinAfter || e.merging && e.streak == partAfter {
		l.merge(e, !e.merging)
	}
}

func (l *loop) merge(e *entry, on bool) {
	value := 0
	if on {
		value = 1
	}
	// A kernel that does not know it (before Linux 5.0) goes on as before.
	_ = unix.SetsockoptInt(e.socket.FD, unix.SOL_UDP, unix.UDP_GRO, value)
	e.merging, e.streak = on, 0
	l.path.merges.Add(1)
}

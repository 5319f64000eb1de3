package media

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/splice"
)

// TCP pinholes. Both ends listen. A connection from an allowed host at one side is joined with a
// dial to the other side's declared address, or, if that peer only dials (port 0 or 9), with the next
// connection that arrives over there.
const (
	// maxJoins bounds the connections of one lease, joined and waiting.
	maxJoins = 8
	// waitTime is how long a connection waits for its other half.
	waitTime    = 30 * time.Second
	dialTimeout = 10 * time.Second
)

// Joiner moves the bytes of two connections that nobody reads; *splice.Joiner is one.
type Joiner interface {
	// Join owns both connections. It returns once both have ended, or ctx has.
	Join(ctx context.Context, a, b net.Conn, o splice.Options) splice.Result
}

// JoinWith has the relay's TCP pinholes joined by j; goroutines copy without it. It must be called before Serve.
func (r *Relay) JoinWith(j Joiner) { r.joiner = j }

// WatchPorts has f called of each port that is taken and that is free again, before the taker knows of it. It is called with the relay's mutex held and must
// not wait. WatchPorts must be called before any port is taken.
func (r *Relay) WatchPorts(f func(tcp bool, port netip.AddrPort, open bool)) { r.watch = f }

// watchPorts tells who watches, if anybody does.
func (r *Relay) watchPorts(tcp bool, first netip.AddrPort, count uint16, open bool) {
	if r.watch == nil {
		return
	}
	for i := range count {
		r.watch(tcp, netip.AddrPortFrom(first.Addr(), first.Port()+i), open)
	}
}

// listener accepts the connections of an end.
type listener struct {
	ln    *net.TCPListener
	relay *Relay
	end   *end
	done  chan struct{} // closed by close
}

// joins are the connections of a lease, guarded by the relay's mutex but for the counters.
type joins struct {
	lease  *lease
	ctx    context.Context //nolint:containedctx // ends the dials of the lease, which outlive any call
	cancel context.CancelFunc
	// admitting are connections that the owner of the lease reads, in the order of their coming.
	admitting []*caller
	// accepted says that an end has had its connection, where it may have but one.
	accepted [2]bool
	waiting  [2][]waiter
	joined   []*join
	// dialing counts connections whose other half is being dialled.
	dialing int
	bytes   [2]atomic.Uint64
	refused [2]atomic.Uint64
	last    atomic.Int64
}

type waiter struct {
	half
	until time.Time
}

// half is a connection, and what is to be read and written in its stead: an owner may have read some of it.
type half struct {
	tcp  *net.TCPConn
	conn net.Conn
}

// join is a pair of connections, indexed by side.
type join struct {
	conn [2]half
	// cancel ends it.
	cancel context.CancelFunc
	// counters and last are what the joiner, or the lease's owner, says of it.
	counters splice.Counters
	last     atomic.Int64
}

// moved returns when the last byte came, in the relay's time.
func (p *join) moved(epoch time.Time) int64 {
	return max(p.last.Load(), int64(p.counters.Last().Sub(epoch)))
}

func newJoins(l *lease) *joins {
	ctx, cancel := context.WithCancel(context.Background())
	return &joins{lease: l, ctx: ctx, cancel: cancel}
}

// listen binds the TCP port of an end and starts to accept.
func (r *Relay) listen(e *end, port uint16) error {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.bound, port)))
	if err != nil {
		return resourceError(err)
	}
	e.tcp = &listener{ln: ln, relay: r, end: e, done: make(chan struct{})}
	r.work.Go(e.tcp.accept)
	return nil
}

func (n *listener) close() {
	close(n.done)
	n.ln.Close()
}

func (n *listener) accept() {
	for {
		conn, err := n.ln.AcceptTCP()
		switch {
		case err == nil:
			n.relay.arrived(n.end, conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Out of descriptors: try again when some may have been closed.
			n.relay.log.Warn("media connection not accepted", zap.Error(err))
			select {
			case <-n.done:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// arrived finds the lease that an accepted connection belongs to.
func (r *Relay) arrived(e *end, conn *net.TCPConn) {
	from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	host := from.Addr().Unmap()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range slices.Backward(e.members) {
		if s := l.sideLocked(e); l.mayConnectLocked(s, host) {
			l.tcp.calledLocked(s, host, conn)
			return
		}
	}
	if len(e.members) > 0 {
		l := e.members[0]
		l.tcp.refused[l.sideLocked(e)].Add(1)
	}
	reset(conn)
}

// mayConnectLocked tells whether a host may be the peer at s.
func (l *lease) mayConnectLocked(s pinhole.Side, host netip.Addr) bool {
	rem := l.remote[s]
	switch {
	case rem.Addr.IsValid():
		return host == rem.Addr.Addr() || l.relay.cfg.Latch && host == rem.Source
	case l.req.Admit == nil:
		return false
	case rem.Source.IsValid():
		return host == rem.Source
	}
	name := l.relay.nets.Of(host)
	return name == "" || name == l.req.Networks[s]
}

func (l *lease) sideLocked(e *end) pinhole.Side {
	if l.ends[pinhole.Near] == e {
		return pinhole.Near
	}
	return pinhole.Far
}

// reset closes a connection so that its peer sees an error and not an orderly end.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}

// roomLocked tells whether the lease may have one more connection.
func (j *joins) roomLocked() bool {
	return !j.lease.closed && len(j.joined)+j.dialing+len(j.waiting[0])+len(j.waiting[1]) < maxJoins
}

func (j *joins) arrivedLocked(s pinhole.Side, c half) {
	if !j.roomLocked() || j.accepted[s] {
		j.refused[s].Add(1)
		reset(c.tcp)
		return
	}
	if j.lease.req.Once {
		j.accepted[s] = true
		j.dismissLocked(s)
		j.lease.relay.freeEndLocked(j.lease.ends[s])
	}
	o := s.Other()
	if target, ok := j.targetLocked(o); ok {
		j.dialLocked(s, c, target)
	} else if len(j.waiting[o]) > 0 {
		w := j.waiting[o][0]
		j.waiting[o] = j.waiting[o][1:]
		j.joinLocked(s, c, w.half)
	} else {
		j.waiting[s] = append(j.waiting[s], waiter{c, time.Now().Add(waitTime)})
	}
}

// targetLocked returns where the peer at s listens. Port 9 (discard) says that it only dials (RFC 4145 §4.1).
func (j *joins) targetLocked(s pinhole.Side) (netip.AddrPort, bool) {
	a := j.lease.remote[s].Addr
	return a, j.lease.reachable[s] && a.IsValid() && a.Port() != 0 && a.Port() != 9
}

// declared dials for the connections that were waiting for an address.
func (j *joins) declared() {
	for _, s := range []pinhole.Side{pinhole.Near, pinhole.Far} {
		target, ok := j.targetLocked(s.Other())
		if !ok {
			continue
		}
		for _, w := range j.waiting[s] {
			j.dialLocked(s, w.half, target)
		}
		j.waiting[s] = nil
	}
}

func (j *joins) dialLocked(s pinhole.Side, c half, target netip.AddrPort) {
	j.dialing++
	bound := j.lease.ends[s.Other()].bound
	j.lease.relay.work.Go(func() { j.dial(s, c, bound, target) })
}

func (j *joins) dial(s pinhole.Side, c half, bound netip.Addr, target netip.AddrPort) {
	d := net.Dialer{Timeout: dialTimeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(bound, 0))}
	to := net.JoinHostPort(target.Addr().String(), strconv.Itoa(int(target.Port())))
	out, err := d.DialContext(j.ctx, "tcp", to)
	r := j.lease.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	j.dialing--
	switch {
	case err != nil:
		j.refused[s].Add(1)
		r.log.Info("media connection not joined", zap.String("label", j.lease.req.Label),
			zap.Stringer("target", target), zap.Error(err))
		reset(c.tcp)
		j.unjoinedLocked(err)
	case j.lease.closed:
		reset(c.tcp)
		out.Close()
	default:
		tcp := out.(*net.TCPConn)
		j.joinLocked(s, c, half{tcp, tcp})
	}
}

// unjoinedLocked tells the owner that a connection got no other half, unless he has ended the lease himself.
func (j *joins) unjoinedLocked(err error) {
	if tell := j.lease.req.Unjoined; tell != nil && !j.lease.closed {
		j.lease.relay.work.Go(func() { tell(err) })
	}
}

func (j *joins) joinLocked(s pinhole.Side, c, other half) {
	p := &join{}
	p.conn[s], p.conn[s.Other()] = c, other
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(j.ctx)
	j.joined = append(j.joined, p)
	j.progress(p, s, 0)
	j.lease.relay.work.Go(func() { j.run(ctx, p) })
}

// run joins the connections until both have ended, or lets the lease's owner do it.
func (j *joins) run(ctx context.Context, p *join) {
	defer p.cancel()
	r := j.lease.relay
	if serve := j.lease.req.Serve; serve != nil {
		serve(ctx, [2]net.Conn{p.conn[0].conn, p.conn[1].conn}, func(from pinhole.Side, n int) { j.progress(p, from, int64(n)) })
		p.conn[0].tcp.Close()
		p.conn[1].tcp.Close()
	} else {
		// Idle pairs are the sweep's business, as those of an owner are.
		r.joiner.Join(ctx, p.conn[0].conn, p.conn[1].conn, splice.Options{Counters: &p.counters})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range j.bytes {
		j.bytes[s].Add(p.counters.Bytes(s))
	}
	j.last.Store(max(j.last.Load(), p.moved(r.epoch)))
	j.joined = slices.DeleteFunc(j.joined, func(q *join) bool { return q == p })
}

func (j *joins) progress(p *join, s pinhole.Side, n int64) {
	now := int64(time.Since(j.lease.relay.epoch))
	j.bytes[s].Add(uint64(n))
	j.last.Store(now)
	p.last.Store(now)
}

// sweepLocked ends the connections that stood still, or waited for their other half, for too long.
func (j *joins) sweepLocked(now time.Time) {
	at := int64(now.Sub(j.lease.relay.epoch))
	for _, p := range j.joined {
		if at-p.moved(j.lease.relay.epoch) >= int64(j.lease.req.Idle) {
			j.endLocked(p, reset)
		}
	}
	for s := range j.waiting {
		j.waiting[s] = slices.DeleteFunc(j.waiting[s], func(w waiter) bool {
			if now.Before(w.until) {
				return false
			}
			reset(w.tcp)
			j.refused[s].Add(1)
			j.unjoinedLocked(errAlone)
			return true
		})
	}
}

// close ends all connections; their goroutines end by themselves.
func (j *joins) close() {
	j.cancel()
	for s := range j.waiting {
		for _, w := range j.waiting[s] {
			reset(w.tcp)
		}
		j.waiting[s] = nil
		j.dismissLocked(pinhole.Side(s))
	}
	for _, p := range j.joined {
		j.endLocked(p, func(c *net.TCPConn) { c.Close() })
	}
}

// endLocked ends a pair. Its owner, if it has one, need not look at the context while it reads.
func (j *joins) endLocked(p *join, end func(*net.TCPConn)) {
	p.cancel()
	if j.lease.req.Serve != nil {
		end(p.conn[0].tcp)
		end(p.conn[1].tcp)
	}
}

// latestLocked returns when the last byte came.
func (j *joins) latestLocked() time.Time {
	epoch, last := j.lease.relay.epoch, j.last.Load()
	for _, p := range j.joined {
		last = max(last, p.moved(epoch))
	}
	return epoch.Add(time.Duration(last))
}

func (j *joins) receivedLocked(s pinhole.Side) (bytes, dropped uint64) {
	bytes = j.bytes[s].Load()
	for _, p := range j.joined {
		bytes += p.counters.Bytes(int(s))
	}
	return bytes, j.refused[s].Load()
}

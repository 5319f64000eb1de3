package media

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// A lease's owner may read what a caller says before anything else happens (Request.Admit). Anybody who reaches
// the port can make him do so, and be slow: each has a deadline, a host has few, and if a lease has
// too many the one that has been at it for longest gives way. So whoever is expected, and speaks at once, gets in.
const (
	admitTime = 20 * time.Second
	// maxAdmitting bounds the callers that a lease reads at once, at both ends.
	maxAdmitting = 16
	// maxAdmittingHost bounds those of one host: one, and its second try.
	maxAdmittingHost = 2
)

// errAlone says that the other half of a connection did not come.
var errAlone = errors.New("the other end did not connect in time")

// caller is a connection that the lease's owner reads. It is guarded by the relay's mutex.
type caller struct {
	side pinhole.Side
	host netip.Addr
	conn *net.TCPConn
	// gone says that it is not to be joined whatever it proves.
	gone bool
}

// calledLocked takes a connection of a host that may connect at s.
func (j *joins) calledLocked(s pinhole.Side, host netip.Addr, conn *net.TCPConn) {
	if j.lease.req.Admit == nil {
		j.arrivedLocked(s, half{conn, conn})
		return
	}
	same := 0
	for _, c := range j.admitting {
		if c.host == host {
			same++
		}
	}
	if !j.roomLocked() || j.accepted[s] || same >= maxAdmittingHost {
		j.refused[s].Add(1)
		reset(conn)
		return
	}
	if len(j.admitting) >= maxAdmitting {
		j.refused[j.admitting[0].side].Add(1)
		j.dropLocked(j.admitting[0])
	}
	c := &caller{side: s, host: host, conn: conn}
	j.admitting = append(j.admitting, c)
	j.lease.relay.work.Go(func() { j.admit(c) })
}

// admit has the lease's owner read a connection, and joins it if it may be.
func (j *joins) admit(c *caller) {
	ctx, cancel := context.WithTimeout(j.ctx, admitTime)
	defer cancel()
	var conn net.Conn = c.conn
	err := c.conn.SetDeadline(time.Now().Add(admitTime))
	if err == nil {
		conn, err = j.lease.req.Admit(ctx, c.side, c.conn)
	}
	if err == nil {
		err = c.conn.SetDeadline(time.Time{})
	}
	r := j.lease.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case c.gone:
	case err != nil:
		j.refused[c.side].Add(1)
		r.log.Info("media connection not admitted", zap.String("label", j.lease.req.Label),
			zap.Stringer("host", c.host), zap.Error(err))
		j.dropLocked(c)
	case !j.lease.mayConnectLocked(c.side, c.host):
		// Another host has been declared meanwhile.
		j.refused[c.side].Add(1)
		j.dropLocked(c)
	default:
		j.forgetLocked(c)
		j.arrivedLocked(c.side, half{c.conn, conn})
	}
}

// dropLocked resets a caller, whose reading then ends by itself.
func (j *joins) dropLocked(c *caller) {
	c.gone = true
	reset(c.conn)
	j.forgetLocked(c)
}

func (j *joins) forgetLocked(c *caller) {
	j.admitting = slices.DeleteFunc(j.admitting, func(o *caller) bool { return o == c })
}

// dismissLocked resets the callers of a side, as the one expected has come or nobody is any more.
func (j *joins) dismissLocked(s pinhole.Side) {
	for _, c := range slices.Clone(j.admitting) {
		if c.side == s {
			j.dropLocked(c)
		}
	}
}

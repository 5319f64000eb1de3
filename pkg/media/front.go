package media

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

const (
	// frontInbox and portInbox bound the bytes that wait for whoever reads a front, or a port.
	frontInbox = 4 << 20
	portInbox  = 256 << 10
	// frontBuffer is what a front's receive queue should hold: all clients share it.
	frontBuffer = 4 << 20
)

// conn is a socket that the path reads: a net.PacketConn of what belongs to no channel.
type conn struct {
	Channels
	sock *Socket
	// life keeps the descriptor from being closed, and used again by others, while something is sent.
	life   sync.RWMutex
	closed bool
}

func (c *conn) open(s *Socket, limit int, counters *Counters) {
	c.sock, c.counters = s, counters
	c.inbox.init(limit)
	c.peers.Store(&[]*Flow{})
	s.Channels = &c.Channels
}

// strays is the flow of what belongs to no channel.
func (c *conn) strays() []*Flow { return []*Flow{{Counters: c.counters, Out: c.sock}} }

// end makes the methods fail; the socket is still to be deleted. It returns false if that was done before.
func (c *conn) end() bool {
	c.life.Lock()
	defer c.life.Unlock()
	if c.closed {
		return false
	}
	c.closed = true
	c.inbox.close()
	return true
}

func (c *conn) isClosed() bool {
	c.life.RLock()
	defer c.life.RUnlock()
	return c.closed
}

// ReadFrom reads what belongs to no channel. A datagram that is longer than b is cut.
func (c *conn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.inbox.get(b)
	if err != nil {
		return 0, nil, &net.OpError{Op: "read", Net: "udp", Source: c.LocalAddr(), Err: err}
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo sends a datagram. It does not wait: a full queue is an error.
func (c *conn) WriteTo(b []byte, to net.Addr) (int, error) {
	sa := SockaddrOf(pinhole.AddrPortOf(to))
	if !sa.Valid() || sa.v4() != c.sock.Local.Addr().Is4() {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Addr: to, Err: unix.EAFNOSUPPORT}
	}
	c.life.RLock()
	defer c.life.RUnlock()
	err := net.ErrClosed
	if !c.closed {
		err = sendTo(c.sock.FD, b, &sa)
	}
	if err != nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Addr: to, Err: err}
	}
	return len(b), nil
}

// LocalAddr returns the bound address.
func (c *conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.sock.Local) }

// SetDeadline is SetReadDeadline: writes do not wait.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline ends reads at t; the zero time never does.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.inbox.setDeadline(t)
	return nil
}

// SetWriteDeadline changes nothing: writes do not wait.
func (*conn) SetWriteDeadline(time.Time) error { return nil }

// front is a socket to which clients send.
type front struct {
	conn
	relay *Relay
	// lost counts what could not be kept, or sent.
	lost Counters
	// bound are the channels of clients here, guarded by the relay's mutex.
	bound map[channelKey]*binding
}

// Front takes the socket of a listener over: the path reads it from now on.
func (r *Relay) Front(c net.PacketConn) (net.PacketConn, error) {
	udp, ok := c.(*net.UDPConn)
	if !ok {
		return c, nil
	}
	local := pinhole.AddrPortOf(udp.LocalAddr())
	if local.Addr().IsUnspecified() {
		return c, nil // what is sent would not leave from where the client has sent to
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("front: %w", pinhole.ErrClosed)
	}
	fd, err := takeOver(udp, local.Addr().Is4(), r.cfg.DSCP)
	if err != nil {
		return nil, fmt.Errorf("front: %w", err)
	}
	r.nextID++
	f := &front{relay: r, bound: make(map[channelKey]*binding)}
	f.lost.epoch = &r.epoch
	f.open(&Socket{FD: fd, Local: local, Lease: r.nextID}, frontInbox, &f.lost)
	f.clients = newChannelTable()
	if err := r.path.Set(f.sock, f.strays()); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("front: %w", err)
	}
	r.fronts[f] = struct{}{}
	// The descriptor is ours: as long as Go had one too it would look at each packet that comes.
	_ = udp.Close()
	return f, nil
}

// takeOver returns a descriptor of a socket, which has the options that the path expects.
func takeOver(udp *net.UDPConn, v4 bool, dscp int) (fd int, err error) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return -1, err
	}
	control := func(d uintptr) {
		if fd, err = unix.FcntlInt(d, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			err = resourceError(os.NewSyscallError("fcntl", err))
			return
		}
		if err = setOptions(fd, v4, dscp); err != nil {
			unix.Close(fd)
			return
		}
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, frontBuffer) != nil {
			// Without the privilege it is as much as the machine lets everybody have.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, frontBuffer)
		}
	}
	if e := raw.Control(control); e != nil {
		return -1, e
	}
	return fd, err
}

// Close ends the channels of clients here, and the socket.
func (f *front) Close() error {
	r := f.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	return f.closeLocked()
}

func (f *front) closeLocked() error {
	if !f.end() {
		return net.ErrClosed
	}
	for _, b := range f.bound {
		b.port.unbindLocked(b)
	}
	delete(f.relay.fronts, f)
	f.relay.path.Delete(f.sock)
	f.relay.totals.addFront(f)
	return nil
}

// sendTo sends a datagram without waiting.
func sendTo(fd int, b []byte, to *Sockaddr) error {
	var sa unix.Sockaddr
	a := to.AddrPort()
	if to.v4() {
		sa = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	var err error
	for range 2 { // the first time, the error may be that of an earlier packet (ICMP)
		if err = unix.Sendto(fd, b, unix.MSG_DONTWAIT, sa); err == nil || err == unix.EAGAIN {
			break
		}
	}
	return os.NewSyscallError("sendto", err)
}

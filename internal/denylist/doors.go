package denylist

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

// Listener returns ln without the connections of those who are shut out: they are reset.
func (l *List) Listener(ln net.Listener) net.Listener {
	if l == nil {
		return ln
	}
	return door{ln, l}
}

type door struct {
	net.Listener
	list *List
}

// Accept implements [net.Listener].
func (d door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil || !d.list.Refuses(pinhole.AddrPortOf(c.RemoteAddr()).Addr()) {
			return c, err
		}
		gate.Reset(c)
	}
}

// Refuses tells whether a connection from an address is shut out, and counts it if it is: for listeners that are no
// [net.Listener].
func (l *List) Refuses(a netip.Addr) bool {
	if !l.Addr(a) {
		return false
	}
	l.refused("connection")
	return true
}

// PacketConn returns pc without the datagrams of those who are shut out. It is for services that need no more of it
// than [net.PacketConn] has.
func (l *List) PacketConn(pc net.PacketConn) net.PacketConn {
	if l == nil {
		return pc
	}
	return packetDoor{pc, l}
}

type packetDoor struct {
	net.PacketConn
	list *List
}

// ReadFrom implements [net.PacketConn].
func (d packetDoor) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := d.PacketConn.ReadFrom(b)
		if err != nil || !d.list.Addr(pinhole.AddrPortOf(from).Addr()) {
			return n, from, err
		}
		d.list.refused("datagram")
	}
}

// Cut ends the TCP connections of this process with those who are shut out, whoever has them and whoever has made them,
// but for those to a local address that spare says are not the services'. It returns how many there were.
//
// It goes through the process's own descriptors, so that an open connection costs nothing until somebody is banned. Each
// is duplicated before it is looked at: its number may be another's a moment later, what the duplicate is cannot change.
func (l *List) Cut(spare func(local netip.AddrPort) bool) (n int, err error) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if l.cut(fd, spare) {
			n++
		}
	}
	return n, nil
}

func (l *List) cut(fd int, spare func(netip.AddrPort) bool) bool {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(own) //nolint:errcheck // a duplicate
	if kind, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		return false
	}
	peer, err := unix.Getpeername(own)
	if err != nil || !l.Addr(addrOf(peer).Addr()) {
		return false
	}
	if local, err := unix.Getsockname(own); err != nil || spare(addrOf(local)) {
		return false
	}
	return unix.Shutdown(own, unix.SHUT_RDWR) == nil
}

// addrOf returns the address of an internet socket, not valid for others.
func addrOf(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

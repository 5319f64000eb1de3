package userpath

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
)

// maxErrors bounds the ICMP errors that are read from a socket per round.
const maxErrors = 16

// readErrors reads ICMP errors from the socket's error queue, and tells whether that has emptied it.
func (l *loop) readErrors(e *entry) (empty bool) {
	for range maxErrors {
		var name media.Sockaddr
		hdr := unix.Msghdr{Name: &name.Raw[0], Namelen: uint32(len(name.Raw)), Control: &l.control[0]}
		hdr.SetControllen(len(l.control))
		_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(e.socket.FD),
			uintptr(unsafe.Pointer(&hdr)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno != 0 {
			// Also clears an error that has no message in the queue.
			_, _ = unix.GetsockoptInt(e.socket.FD, unix.SOL_SOCKET, unix.SO_ERROR)
			return true
		}
		control := l.control[:min(int(hdr.Controllen), len(l.control))]
		name.Len = hdr.Namelen
		if unreachable(control) {
			l.refused(e, &name)
		}
	}
	return false
}

// refused counts the error at the flow whose peer could not be reached.
func (l *loop) refused(e *entry, peer *media.Sockaddr) {
	if c := e.socket.Channels; c != nil {
		c.Unreachable(l.now)
		return
	}
	for _, f := range e.flows.Load().all {
		if f.Owns(peer) {
			f.Counters.Unreachable(l.now)
			return
		}
	}
}

// unreachable tells whether control messages hold a struct sock_extended_err {errno u32, origin,
// type, code, pad u8, ...} with an ICMP error that says that the peer can not be reached.
func unreachable(control []byte) bool {
	for m, rest, ok := nextControl(control); ok; m, rest, ok = nextControl(rest) {
		isErr := m.is(unix.IPPROTO_IP, unix.IP_RECVERR) || m.is(unix.IPPROTO_IPV6, unix.IPV6_RECVERR)
		if isErr && len(m.data) >= 8 {
			errno, origin := unix.Errno(binary.NativeEndian.Uint32(m.data)), m.data[4]
			return (origin == unix.SO_EE_ORIGIN_ICMP || origin == unix.SO_EE_ORIGIN_ICMP6) &&
				(errno == unix.ECONNREFUSED || errno == unix.EHOSTUNREACH || errno == unix.ENETUNREACH)
		}
	}
	return false
}

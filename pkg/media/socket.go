package media

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// Socket is a bound UDP socket. The relay makes it; the path reads, writes and closes it.
type Socket struct {
	// FD is the non-blocking file descriptor.
	FD int
	// Local is the bound address.
	Local netip.AddrPort
	// Lease is a number that the sockets of one lease share: a path may use it to keep them together.
	Lease uint64
	// Shared finds the flows of a socket that several leases share; nil: what was Set is all there is. What is Set for a
	// shared socket is one flow for what belongs to no lease.
	Shared *Shared
	// Channels finds the flows of a socket at which TURN's channels begin or end; nil: there are none. What is Set for it
	// is one flow for what belongs to no channel.
	Channels *Channels
}

// Sockaddr is a socket address as the kernel writes it (sockaddr_in, sockaddr_in6), so that the
// hot path compares and sends it as it is. The zero value is no address.
type Sockaddr struct {
	Raw [unix.SizeofSockaddrInet6]byte
	// Len is the length in use: 0, 16 or 28.
	Len uint32
}

// SockaddrOf returns a as the kernel writes it; zones are not kept.
func SockaddrOf(a netip.AddrPort) Sockaddr {
	var s Sockaddr
	if !a.IsValid() {
		return s
	}
	binary.BigEndian.PutUint16(s.Raw[2:], a.Port())
	if ip := a.Addr().Unmap(); ip.Is4() {
		binary.NativeEndian.PutUint16(s.Raw[:], unix.AF_INET)
		b := ip.As4()
		copy(s.Raw[4:], b[:])
		s.Len = unix.SizeofSockaddrInet4
	} else {
		binary.NativeEndian.PutUint16(s.Raw[:], unix.AF_INET6)
		b := ip.As16()
		copy(s.Raw[8:], b[:])
		s.Len = unix.SizeofSockaddrInet6
	}
	return s
}

// AddrPort returns the address, the zero value if there is none.
func (s *Sockaddr) AddrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.Raw[2:])
	switch binary.NativeEndian.Uint16(s.Raw[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.Raw[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.Raw[8:24])).Unmap(), port)
	}
	return netip.AddrPort{}
}

// Equal tells whether family, port and address are the same; flow label and scope do not count.
func (s *Sockaddr) Equal(o *Sockaddr) bool {
	if binary.NativeEndian.Uint64(s.Raw[:]) != binary.NativeEndian.Uint64(o.Raw[:]) {
		// IPv6 has its flow label in the second half of these 8 bytes.
		if binary.NativeEndian.Uint32(s.Raw[:]) != binary.NativeEndian.Uint32(o.Raw[:]) ||
			binary.NativeEndian.Uint16(s.Raw[:]) != unix.AF_INET6 {
			return false
		}
	}
	return binary.NativeEndian.Uint16(s.Raw[:]) == unix.AF_INET ||
		binary.NativeEndian.Uint64(s.Raw[8:]) == binary.NativeEndian.Uint64(o.Raw[8:]) &&
			binary.NativeEndian.Uint64(s.Raw[16:]) == binary.NativeEndian.Uint64(o.Raw[16:])
}

func (s *Sockaddr) v4() bool { return binary.NativeEndian.Uint16(s.Raw[:]) == unix.AF_INET }

// Valid tells whether there is an address.
func (s *Sockaddr) Valid() bool { return s.Len != 0 }

// bindUDP returns a non-blocking socket bound to local that marks what it sends with dscp (0-63),
// queues ICMP errors, and tells with a packet how many it had no room for. Running out of descriptors or memory is an error that wraps ErrExhausted.
func bindUDP(local netip.AddrPort, dscp int) (int, error) {
	v4 := local.Addr().Is4()
	domain := unix.AF_INET6
	if v4 {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, resourceError(os.NewSyscallError("socket", err))
	}
	if !v4 {
		err = os.NewSyscallError("setsockopt IPV6_V6ONLY", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err == nil {
		err = setOptions(fd, v4, dscp)
	}
	if err != nil {
		unix.Close(fd)
		return -1, resourceError(err)
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(local.Port()), Addr: local.Addr().As16()}
	if v4 {
		sa = &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return -1, resourceError(os.NewSyscallError("bind", err))
	}
	return fd, nil
}

func setOptions(fd int, v4 bool, dscp int) error {
	type option struct {
		level, name, value int
		what               string
	}
	// A relay does not know what path a packet came by: it lets routers fragment (no DF), as the
	// sender's own packets may have been fragments.
	opts := []option{
		{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscp << 2, "IPV6_TCLASS"},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1, "IPV6_RECVERR"},
	}
	if v4 {
		opts = []option{
			{unix.IPPROTO_IP, unix.IP_TOS, dscp << 2, "IP_TOS"},
			{unix.IPPROTO_IP, unix.IP_RECVERR, 1, "IP_RECVERR"},
			{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT, "IP_MTU_DISCOVER"},
		}
	}
	opts = append(opts, option{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1, "SO_RXQ_OVFL"})
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt "+o.what, err)
		}
	}
	return nil
}

// resourceError makes an error that says "come back later" wrap ErrExhausted.
func resourceError(err error) error {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ENOSPC} {
		if errors.Is(err, e) {
			return fmt.Errorf("out of file descriptors or socket memory: %w: %w", err, pinhole.ErrExhausted)
		}
	}
	return err
}

func closeSocket(s *Socket) {
	if s != nil {
		unix.Close(s.FD)
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// storedPrefix begins the names of sockets that this daemon has left with systemd (FDSTORE=1), for the one after it.
const storedPrefix = "stored-"

// handedSockets are listeners that systemd holds: those of socket units, and those that the daemon before this one has
// left with it, so that no connection is refused while none runs (sd_listen_fds(3), sd_notify(3)). A listener of the
// configuration gets the one that is bound to its address; a socket unit may say for which service it is by
// FileDescriptorName=. A nil *handedSockets has none.
type handedSockets struct {
	mu   sync.Mutex
	free map[socketPlace]handedSocket
	// opened are the listeners that systemd does not hold yet.
	opened map[socketPlace]syscall.Conn
}

// socketPlace is tcp or udp, and the address to which a socket is bound.
type socketPlace struct {
	proto string
	at    netip.AddrPort
}

func (p socketPlace) String() string { return p.proto + "://" + p.at.String() }

// stored returns the name under which systemd keeps a socket: printable, without colons.
func (p socketPlace) stored() string {
	return storedPrefix + p.proto + "-" + strings.NewReplacer(":", "_", "[", "", "]", "").Replace(p.at.String())
}

type handedSocket struct {
	name string
	file *os.File
}

// fits tells whether a service may have the socket. Names that nobody has chosen fit all.
func (s handedSocket) fits(service string) bool {
	return s.name == service || s.name == "unknown" || strings.HasPrefix(s.name, storedPrefix) ||
		strings.HasPrefix(s.name, "LISTEN_FD_") || strings.HasSuffix(s.name, ".socket")
}

const (
	firstPassed = 3    // SD_LISTEN_FDS_START
	maxPassed   = 1024 // sockets
)

// passedSockets returns the sockets that systemd has passed to this process, with their names, and takes the variables that
// say so out of the environment. first is firstPassed. A number that is no socket is not touched: where the variables are
// another's, as in a container they may be, it is a file of this process itself.
func passedSockets(first int, log *zap.Logger) (files []*os.File) {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	count, bad := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, key := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(key) // cannot fail here
	}
	if err != nil || bad != nil || pid != os.Getpid() {
		return nil
	}
	if count > maxPassed {
		log.Warn("LISTEN_FDS says more sockets than there may be", zap.Int("sockets", count), zap.Int("limit", maxPassed))
		count = maxPassed
	}
	strangers := 0
	for i := range max(count, 0) {
		fd, name := first+i, "LISTEN_FD_"+strconv.Itoa(firstPassed+i)
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			strangers++
			continue
		}
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	if strangers > 0 {
		log.Warn("LISTEN_FDS counts what is no socket", zap.Int("sockets", len(files)), zap.Int("others", strangers))
	}
	return files
}

// takeHanded takes files as passedSockets returns them. What is no bound socket of TCP that listens, or of UDP, is
// closed, with a line in the log.
func takeHanded(files []*os.File, log *zap.Logger) *handedSockets {
	h := &handedSockets{free: map[socketPlace]handedSocket{}, opened: map[socketPlace]syscall.Conn{}}
	for _, f := range files {
		at, err := placeOf(f)
		if _, twice := h.free[at]; err == nil && twice {
			err = fmt.Errorf("another one is bound to %v", at)
		}
		if err != nil {
			log.Warn("a socket that systemd has handed over is of no use", zap.String("name", f.Name()), zap.Error(err))
			f.Close()
			continue
		}
		h.free[at] = handedSocket{f.Name(), f}
	}
	return h
}

// placeOf returns where a socket is bound.
func placeOf(f *os.File) (socketPlace, error) {
	fd := int(f.Fd())
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return socketPlace{}, fmt.Errorf("no socket: %w", err)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return socketPlace{}, err
	}
	var p socketPlace
	switch {
	case kind == unix.SOCK_STREAM && listens == 1:
		p.proto = "tcp"
	case kind == unix.SOCK_DGRAM:
		p.proto = "udp"
	default:
		return socketPlace{}, errors.New("neither a listener of TCP (Accept=no) nor a socket of UDP")
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return socketPlace{}, err
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		p.at = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		p.at = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	default:
		return socketPlace{}, errors.New("no socket of IPv4 or IPv6")
	}
	return p, nil
}

// take returns the socket at a place, nil if there is none. It is the caller's then.
func (h *handedSockets) take(service string, at socketPlace) (*os.File, error) {
	if h == nil {
		return nil, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.free[at]
	if !ok {
		return nil, nil
	}
	if !s.fits(service) {
		return nil, fmt.Errorf("%v is handed over by systemd for %q, not for %s (FileDescriptorName=)", at, s.name, service)
	}
	delete(h.free, at)
	return s.file, nil
}

// listenTCP opens a listener, or takes the one that systemd holds. service is the section of the configuration.
func (h *handedSockets) listenTCP(ctx context.Context, service string, at netip.AddrPort, lc *net.ListenConfig) (net.Listener, error) {
	place := socketPlace{"tcp", at}
	f, err := h.take(service, place)
	if err != nil {
		return nil, err
	}
	if f == nil {
		ln, err := lc.Listen(ctx, "tcp", at.String())
		if c, ok := ln.(syscall.Conn); err == nil && ok {
			h.remember(place, c)
		}
		return ln, err
	}
	defer f.Close() // what is made of it is a copy
	ln, err := net.FileListener(f)
	if err == nil {
		if err = applyControl(lc, ln, place); err != nil {
			ln.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%v, handed over by systemd: %w", place, err)
	}
	return ln, nil
}

// listenUDP is listenTCP for UDP.
func (h *handedSockets) listenUDP(ctx context.Context, service string, at netip.AddrPort, lc *net.ListenConfig) (net.PacketConn, error) {
	place := socketPlace{"udp", at}
	f, err := h.take(service, place)
	if err != nil {
		return nil, err
	}
	if f == nil {
		pc, err := lc.ListenPacket(ctx, "udp", at.String())
		if c, ok := pc.(syscall.Conn); err == nil && ok {
			h.remember(place, c)
		}
		return pc, err
	}
	defer f.Close()
	pc, err := net.FilePacketConn(f)
	if err == nil {
		if err = applyControl(lc, pc, place); err != nil {
			pc.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%v, handed over by systemd: %w", place, err)
	}
	return pc, nil
}

// applyControl gives a socket the options that one that is opened here has.
func applyControl(lc *net.ListenConfig, s any, at socketPlace) error {
	c, ok := s.(syscall.Conn)
	if lc.Control == nil || !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	network := at.proto + "4"
	if at.at.Addr().Is6() {
		network = at.proto + "6"
	}
	return lc.Control(network, at.at.String(), raw)
}

func (h *handedSockets) remember(at socketPlace, c syscall.Conn) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened[at] = c
}

// settle leaves copies of the daemon's listeners with systemd, which holds them while no daemon runs, as long as the unit is
// to run at all. What was handed over and nobody wants is closed: of that which an earlier daemon has left systemd is told
// to do the same.
func (h *handedSockets) settle(log *zap.Logger) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for at, s := range h.free {
		if strings.HasPrefix(s.name, storedPrefix) {
			notify(log, "FDSTOREREMOVE=1\nFDNAME="+s.name)
		} else {
			log.Warn("systemd has handed over a socket that is no listener of the configuration", zap.String("name", s.name), zap.Stringer("listener", at))
		}
		s.file.Close()
	}
	for at, c := range h.opened {
		raw, err := c.SyscallConn()
		if err == nil {
			var sent error
			err = raw.Control(func(fd uintptr) {
				sent = notifyFile("FDSTORE=1\nFDPOLL=0\nFDNAME="+at.stored(), int(fd))
			})
			err = errors.Join(err, sent)
		}
		if err != nil {
			log.Warn("a listener could not be left with systemd", zap.Stringer("listener", at), zap.Error(err))
		}
	}
	clear(h.free)
	clear(h.opened)
}

package pathtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is the environment variable that tells the run of a test binary that it has a network namespace of
// its own, which is the gateway.
const Namespace = "EDGED_PATH_TEST_NAMESPACE"

// Main is what TestMain of a path's package calls: as root it runs all tests again in a new network namespace,
// with a loopback device that is up; else right here, where what needs one is skipped.
func Main(m *testing.M) {
	if err := loopbackUp(); err != nil {
		fmt.Fprintln(os.Stderr, "no loopback device:", err)
	}
	if os.Getenv(Namespace) != "" || os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), Namespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is the thread's
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "SKIPPED what needs a network namespace:", err)
		os.Exit(m.Run())
	}
	os.Exit(0)
}

// loopbackUp switches the loopback device of a new namespace on.
func loopbackUp() error {
	if os.Getenv(Namespace) != "1" {
		return nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// host is a network namespace behind one of the gateway's devices.
type host struct {
	t        *testing.T
	ns       netns.NsHandle
	dev, own string // the gateway's device, and the host's
}

// newHost makes a namespace and joins it to the gateway by the device dev.
func newHost(t *testing.T, dev string) *host {
	t.Helper()
	h := &host{t: t, dev: dev, own: "eth0"}
	Within(t, -1, func() {
		var err error
		h.ns, err = netns.New()
		must(t, err)
	})
	t.Cleanup(func() { h.ns.Close() })
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: h.own, PeerNamespace: netlink.NsFd(h.ns)}
	must(t, netlink.LinkAdd(v))
	t.Cleanup(func() { _ = netlink.LinkDel(v) })
	return h
}

// address gives the device of the namespace addresses, and switches it on.
func address(t *testing.T, dev string, list ...string) {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	must(t, err)
	for _, a := range list {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(t, netlink.AddrAdd(l, addr))
	}
	must(t, netlink.LinkSetUp(l))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Within runs f on a thread that is in the namespace, or, if ns is negative, in one that f makes.
func Within(t *testing.T, ns netns.NsHandle, f func()) {
	t.Helper()
	done, ok := make(chan struct{}), false
	go func() {
		defer close(done)
		// The thread is not unlocked: it ends with the goroutine.
		runtime.LockOSThread()
		if ns >= 0 {
			if err := netns.Set(ns); err != nil {
				t.Error(err)
				return
			}
		}
		f()
		ok = true
	}()
	<-done
	if !ok {
		t.FailNow()
	}
}

// TXChecksums switches the checksum offload of a device (ethtool -K DEV tx on|off): without it packets leave the
// host with complete checksums, which the receiver verifies, and a burst is cut before it leaves.
func TXChecksums(dev string, on bool) error { return ethtool(dev, unix.ETHTOOL_STXCSUM, on) }

// GRO switches receive offload, with which a veth takes what XDP sends it.
func GRO(dev string, on bool) error { return ethtool(dev, unix.ETHTOOL_SGRO, on) }

func ethtool(dev string, cmd uint32, on bool) error {
	value := struct{ cmd, data uint32 }{cmd: cmd}
	if on {
		value.data = 1
	}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:], dev)
	ifr.data = unsafe.Pointer(&value)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return errno
	}
	return nil
}

// listen returns a socket of the host that tells how packets came, nil if the port is taken.
func (h *host) listen(at netip.AddrPort) *net.UDPConn {
	h.t.Helper()
	var conn *net.UDPConn
	Within(h.t, h.ns, func() { conn = listen(h.t, at) })
	if conn == nil {
		return nil
	}
	if at.Addr().Is4() {
		set(h.t, conn, unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		set(h.t, conn, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	} else {
		set(h.t, conn, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		set(h.t, conn, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	}
	return conn
}

func set(t *testing.T, conn *net.UDPConn, level, name, value int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { must(t, unix.SetsockoptInt(int(fd), level, name, value)) }))
}

// packet is what a socket received.
type packet struct {
	data     []byte
	from     netip.AddrPort
	ttl, tos byte
}

func receive(conn *net.UDPConn, deadline time.Time) (packet, error) {
	buf, control := make([]byte, 1<<16), make([]byte, 256)
	if err := conn.SetReadDeadline(deadline); err != nil {
		return packet{}, err
	}
	n, nc, _, from, err := conn.ReadMsgUDPAddrPort(buf, control)
	if err != nil {
		return packet{}, err
	}
	got := packet{data: buf[:n], from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	msgs, err := unix.ParseSocketControlMessage(control[:nc])
	for _, m := range msgs {
		switch v := m.Data[0]; {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS:
			got.tos = v
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS:
			got.tos = byte(binary.NativeEndian.Uint32(m.Data))
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT:
			got.ttl = byte(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return got, err
}

// wire is a raw socket at a host's device.
type wire struct {
	t     *testing.T
	fd    int
	index int
	mac   [6]byte
	// gateway is the address of the other end.
	gateway [6]byte
}

func openWire(t *testing.T, ns netns.NsHandle, own string) *wire {
	t.Helper()
	w := &wire{t: t, fd: -1}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	Within(t, ns, func() {
		l, err := netlink.LinkByName(own)
		must(t, err)
		w.index, w.mac = l.Attrs().Index, [6]byte(l.Attrs().HardwareAddr)
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		must(t, err)
		must(t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: w.index}))
	})
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// wire returns a socket that sends to the gateway.
func (h *host) wire() *wire {
	h.t.Helper()
	w := openWire(h.t, h.ns, h.own)
	l, err := netlink.LinkByName(h.dev)
	must(h.t, err)
	w.gateway = [6]byte(l.Attrs().HardwareAddr)
	return w
}

func (w *wire) send(frames ...[]byte) {
	w.t.Helper()
	for _, f := range frames {
		must(w.t, unix.Sendto(w.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}))
	}
}

// Audit counts the UDP packets that came to a device, those whose checksums are wrong, and those longer than the
// MTU.
type Audit struct {
	Packets, Bad, Long atomic.Int64
	mtu                int
	mu                 sync.Mutex
	worst              string
}

// Watch begins to read and judge every UDP packet that comes to the device own of a namespace, where nothing
// longer than mtu may come, until the test ends.
func Watch(t *testing.T, ns netns.NsHandle, own string, mtu int) *Audit {
	t.Helper()
	a, w := &Audit{mtu: mtu}, openWire(t, ns, own)
	must(t, unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	must(t, unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000}))
	var end atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<17)
		for !end.Load() {
			n, from, err := unix.Recvfrom(w.fd, buf, 0)
			if err != nil {
				continue
			}
			if at, ok := from.(*unix.SockaddrLinklayer); ok && at.Pkttype == unix.PACKET_HOST {
				a.judge(buf[:n])
			}
		}
	}()
	t.Cleanup(func() {
		end.Store(true)
		<-done
	})
	return a
}

func (a *Audit) judge(b []byte) {
	ok, udp := Sound(b)
	if !udp {
		return
	}
	a.Packets.Add(1)
	if !ok {
		a.Bad.Add(1)
		a.mu.Lock()
		a.worst = fmt.Sprintf("%x", b[:min(len(b), 100)])
		a.mu.Unlock()
	}
	if len(b)-14 > a.mtu {
		a.Long.Add(1)
	}
}

// Faults says what was wrong, "" if nothing was.
func (a *Audit) Faults() string {
	if a.Bad.Load()+a.Long.Load() == 0 {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprintf("%d packets: %d bad, %d longer than %d: %s", a.Packets.Load(), a.Bad.Load(), a.Long.Load(), a.mtu, a.worst)
}

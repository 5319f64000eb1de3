package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = time.Minute

// place is a network namespace of its own, gone with the test.
type place struct {
	t  *testing.T
	ns netns.NsHandle
}

func newPlace(t *testing.T) place {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: network namespaces need root")
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Skipf("SKIPPED: network namespaces: %v", err)
	}
	ns, err := netns.New()
	if back := netns.Set(home); back != nil {
		t.Fatal(back) // the thread stays locked
	}
	runtime.UnlockOSThread()
	home.Close()
	if err != nil {
		t.Skipf("SKIPPED: network namespaces: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return place{t, ns}
}

// do runs fn in the namespace; sockets that it makes belong there.
func (p place) do(fn func() error) error {
	p.t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		p.t.Fatal(err)
	}
	defer home.Close()
	if err := netns.Set(p.ns); err != nil {
		p.t.Fatal(err)
	}
	err = fn()
	if back := netns.Set(home); back != nil {
		p.t.Fatal(back)
	}
	runtime.UnlockOSThread()
	return err
}

// queue is a carrier that keeps what has not been received, far more than a stream of the tunnel does.
type queue struct{ in, out chan []byte }

func (q queue) Send(b []byte) error {
	select {
	case q.out <- bytes.Clone(b):
	default: // full: as on any network
	}
	return nil
}

func (q queue) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-q.in:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// wired are two namespaces with a link between them.
type wired struct {
	at   [2]place
	cfg  [2]Config
	cut  context.CancelFunc // of the carrier
	stop func() error
}

func newWired(t *testing.T) *wired {
	t.Helper()
	w := &wired{at: [2]place{newPlace(t), newPlace(t)}}
	near := testConfig()
	far := near
	far.Addresses, far.Peer = near.Peer, near.Addresses
	w.cfg = [2]Config{near, far}
	x, y := make(chan []byte, 4096), make(chan []byte, 4096)
	ctx, cancel := context.WithCancel(context.Background())
	carrying, cut := context.WithCancel(ctx)
	w.cut = cut
	ended := make(chan error, 4)
	for i, q := range []queue{{x, y}, {y, x}} {
		var tun *Tun
		err := w.at[i].do(func() (err error) {
			tun, err = OpenTun(w.cfg[i])
			return err
		})
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EPERM) {
			t.Skipf("SKIPPED: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		l := New(w.cfg[i], tun, zap.NewNop())
		go func() { ended <- l.Run(ctx) }()
		go func() {
			l.Carry(carrying, q)
			ended <- nil
		}()
	}
	w.stop = func() error {
		cancel()
		return errors.Join(<-ended, <-ended, <-ended, <-ended)
	}
	t.Cleanup(cancel)
	return w
}

// TestTun: TCP and UDP of both families cross a link between two namespaces whole, and nothing does once it is cut.
func TestTun(t *testing.T) {
	w := newWired(t)
	for i, network := range []string{"4", "6"} {
		to := netip.AddrPortFrom(w.cfg[1].Addresses[i], 5060)
		w.stream(t, "tcp"+network, to)
		w.datagrams(t, "udp"+network, to)
	}
	w.cut()
	var conn net.Conn
	err := w.at[0].do(func() (err error) {
		d := net.Dialer{Timeout: time.Second}
		conn, err = d.Dial("tcp4", netip.AddrPortFrom(w.cfg[1].Addresses[0], 5060).String())
		return err
	})
	if err == nil {
		conn.Close()
		t.Error("the link is cut, and TCP connects")
	}
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	for i := range w.at {
		err := w.at[i].do(func() error {
			_, err := net.InterfaceByName(w.cfg[i].Interface())
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "no such network interface") {
			t.Errorf("the interface is left: %v", err)
		}
	}
}

// stream sends 4 MiB and wants them back.
func (w *wired) stream(t *testing.T, network string, to netip.AddrPort) {
	t.Helper()
	var ln net.Listener
	if err := w.at[1].do(func() (err error) {
		ln, err = net.Listen(network, to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	var c net.Conn
	if err := w.at[0].do(func() (err error) {
		c, err = net.DialTimeout(network, to.String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	sent := bytes.Repeat([]byte(network+" over a link "), 4<<20/16)
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s: %d octets of %d, %v", network, len(got), len(sent), err)
	}
}

// datagrams sends one as long as the link takes in one piece, and one longer that must not be fragmented: the kernel says so.
func (w *wired) datagrams(t *testing.T, network string, to netip.AddrPort) {
	t.Helper()
	var far net.PacketConn
	var near net.Conn
	if err := w.at[1].do(func() (err error) {
		far, err = net.ListenPacket(network, to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	level, option, value, head := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, size4+8
	if network == "udp6" {
		level, option, value, head = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, size6+8
	}
	if err := w.at[0].do(func() (err error) {
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) })
			return errors.Join(err, cerr)
		}}
		near, err = d.Dial(network, to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	whole := bytes.Repeat([]byte{7}, DefaultMTU-head)
	if _, err := near.Write(append(whole, 8)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("%s: longer than the MTU: %v", network, err)
	}
	if _, err := near.Write(whole); err != nil {
		t.Error(err)
	}
	b := make([]byte, 2000)
	far.SetReadDeadline(time.Now().Add(patience))
	n, from, err := far.ReadFrom(b)
	if err != nil || !bytes.Equal(b[:n], whole) || from.String() != near.LocalAddr().String() {
		t.Errorf("%s: %d octets from %v, %v", network, n, from, err)
	}
}

// TestTunTaken: an interface that an administrator has made and set up is used as it is; a second user of it is refused.
func TestTunTaken(t *testing.T) {
	p := newPlace(t)
	err := p.do(func() error {
		made := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: testConfig().Interface()}, Mode: netlink.TUNTAP_MODE_TUN, Flags: unix.IFF_NO_PI}
		if err := netlink.LinkAdd(made); err != nil {
			return err
		}
		for range 2 { // by one daemon, and after its end by the next
			tun, err := OpenTun(testConfig())
			if err != nil {
				return err
			}
			tun.Close()
		}
		first, err := OpenTun(testConfig())
		if err != nil {
			return err
		}
		defer first.Close()
		second, err := OpenTun(testConfig())
		if err == nil {
			second.Close()
			t.Error("one interface has two links")
		}
		return nil
	})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EPERM) {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

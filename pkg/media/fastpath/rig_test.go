package fastpath

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/media/userpath"
	"edged.dev/edged/pkg/pinhole"
)

// patience is how long what must come may take on a busy machine.
const patience = 20 * time.Second

// host is a network namespace behind one of the gateway's devices.
type host struct {
	t     *testing.T
	ns    netns.NsHandle
	nl    *netlink.Handle
	dev   string // the gateway's
	own   string // the host's
	addrs [2]netip.Addr
}

// rig is a relay between two hosts, on the gateway that this process is.
//
//	near 192.0.2.2 ── near0 192.0.2.1 │ relay │ 198.51.100.1 far0 ── 198.51.100.2 far
//	     2001:db8:1::2  2001:db8:1::1            2001:db8:2::1  2001:db8:2::2
type rig struct {
	t     *testing.T
	hosts [2]*host
	path  *Path
	relay *media.Relay
	// ports and idle are used by serve; their zero values are the defaults.
	ports media.PortRange
	idle  time.Duration
	// want is what is to carry calls.
	want string
	// counting says that the kernel counts runs of programs.
	counting bool
}

const (
	near = pinhole.Near
	far  = pinhole.Far
	dscp = 46
)

// rigOptions says what is to carry calls; without a word, tc.
type rigOptions struct {
	options
	xdp bool
}

// newXDPRig makes a rig whose devices carry media by XDP, and whose hosts make whole checksums and take what
// XDP sends them.
func newXDPRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, rigOptions{xdp: true})
	for _, h := range r.hosts {
		pathtest.Within(t, h.ns, func() {
			must(t, pathtest.TXChecksums(h.own, false))
			must(t, pathtest.GRO(h.own, true))
		})
	}
	return r
}

func newRig(t *testing.T, o rigOptions) *rig {
	t.Helper()
	r := newHosts(t)
	if o.xdp {
		r.want = "xdp"
	}
	r.serve(Pin{}, o.options)
	return r
}

// newHosts makes a rig without a relay.
func newHosts(t *testing.T) *rig {
	t.Helper()
	needKernel(t)
	r := &rig{t: t, want: "tc"}
	r.hosts[near] = newHost(t, "near0", "192.0.2.", "2001:db8:1::")
	r.hosts[far] = newHost(t, "far0", "198.51.100.", "2001:db8:2::")
	return r
}

func gatewayNetworks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: gatewayAddrs("192.0.2.1", "2001:db8:1::1"), Trusted: true},
		"outside": {Addresses: gatewayAddrs("198.51.100.1", "2001:db8:2::1")},
	}
}

// serve runs a relay until the test ends, or the function returned is called.
func (r *rig) serve(pin Pin, o options) (end func()) {
	t, nets := r.t, gatewayNetworks()
	t.Helper()
	user, err := userpath.New(1)
	must(t, err)
	r.path, err = newPath(user, Config{Networks: nets, DSCP: dscp, Pin: pin, Idle: r.idle, XDP: r.want == "xdp"}, zaptest.NewLogger(t), o)
	must(t, err)
	ports, cfg := media.DefaultPinholeConfig(), media.DefaultConfig()
	ports.Quarantine = 0
	if r.ports != (media.PortRange{}) {
		ports.UDP = r.ports
	}
	cfg.DSCP = dscp
	r.relay, err = media.New(ports, cfg, nets, r.path, zaptest.NewLogger(t))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.relay.Serve(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
	})
	t.Cleanup(end)
	return end
}

func gatewayAddrs(list ...string) (addrs []netip.Addr) {
	for _, a := range list {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newHost makes a namespace and joins it to the gateway: .1 is the gateway, .2 the host, .66 a second
// address of the same host.
func newHost(t *testing.T, dev, net4, net6 string) *host {
	t.Helper()
	h := &host{t: t, dev: dev, own: "eth0"}
	h.addrs = [2]netip.Addr{netip.MustParseAddr(net4 + "2"), netip.MustParseAddr(net6 + "2")}
	pathtest.Within(t, -1, func() {
		var err error
		h.ns, err = netns.New()
		must(t, err)
	})
	t.Cleanup(func() { h.ns.Close() })
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: h.own, PeerNamespace: netlink.NsFd(h.ns)}
	must(t, netlink.LinkAdd(v))
	t.Cleanup(func() { _ = netlink.LinkDel(v) })
	var err error
	h.nl, err = netlink.NewHandleAt(h.ns)
	must(t, err)
	t.Cleanup(h.nl.Close)
	here, err := netlink.NewHandle()
	must(t, err)
	t.Cleanup(here.Close)
	addresses(t, here, dev, net4+"1/24", net6+"1/64")
	addresses(t, h.nl, h.own, net4+"2/24", net6+"2/64", net4+"66/24")
	lo, err := here.LinkByName("lo")
	must(t, err)
	must(t, here.LinkSetUp(lo))
	return h
}

func addresses(t *testing.T, nl *netlink.Handle, dev string, list ...string) {
	t.Helper()
	l, err := nl.LinkByName(dev)
	must(t, err)
	for _, a := range list {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		must(t, nl.AddrAdd(l, addr))
	}
	must(t, nl.LinkSetUp(l))
}

// peer is a host's socket that tells how packets came.
type peer struct {
	t    *testing.T
	conn *net.UDPConn
}

// packet is what a peer received.
type packet struct {
	data     []byte
	from     netip.AddrPort
	ttl, tos int
}

func (h *host) peer(ip netip.Addr, options ...int) *peer {
	h.t.Helper()
	p := &peer{t: h.t}
	pathtest.Within(h.t, h.ns, func() {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err != nil {
			h.t.Error(err)
			return
		}
		p.conn = conn
	})
	if p.conn == nil {
		h.t.FailNow()
	}
	h.t.Cleanup(func() { p.conn.Close() })
	if ip.Is4() {
		p.set(unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		p.set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	} else {
		p.set(unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		p.set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	}
	return p
}

func (p *peer) set(level, name, value int) {
	p.t.Helper()
	raw, err := p.conn.SyscallConn()
	must(p.t, err)
	must(p.t, raw.Control(func(fd uintptr) { must(p.t, unix.SetsockoptInt(int(fd), level, name, value)) }))
}

func (p *peer) addr() netip.AddrPort {
	a := p.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (p *peer) send(to netip.AddrPort, b []byte) {
	p.t.Helper()
	_, err := p.conn.WriteToUDPAddrPort(b, to)
	must(p.t, err)
}

func (p *peer) receive() packet {
	p.t.Helper()
	got, err := p.read(time.Now().Add(patience))
	must(p.t, err)
	return got
}

func (p *peer) read(deadline time.Time) (packet, error) {
	buf, control := make([]byte, 1<<16), make([]byte, 256)
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return packet{}, err
	}
	n, nc, _, from, err := p.conn.ReadMsgUDPAddrPort(buf, control)
	if err != nil {
		return packet{}, err
	}
	got := packet{data: buf[:n], from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	msgs, err := unix.ParseSocketControlMessage(control[:nc])
	for _, m := range msgs {
		switch v := int(m.Data[0]); {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT:
			got.ttl = v
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS:
			got.tos = v
		}
	}
	return got, err
}

// call is a lease between two peers.
type call struct {
	*rig
	lease pinhole.Lease
	peers [2]*peer
	local [2]netip.AddrPort
	seq   [2]uint16
}

// call opens and declares a lease; families are 4 or 6 for each side.
func (r *rig) call(kind pinhole.Kind, families ...pinhole.Family) *call {
	r.t.Helper()
	req := pinhole.Request{Owner: "test", Label: r.t.Name(), Kind: kind, Networks: [2]string{"inside", "outside"}}
	if len(families) == 0 {
		families = []pinhole.Family{pinhole.IPv4, pinhole.IPv4}
	}
	copy(req.Families[:], families)
	lease, err := r.relay.Open(context.Background(), req)
	must(r.t, err)
	c := &call{rig: r, lease: lease}
	for s := range c.peers {
		c.peers[s] = r.hosts[s].peer(r.hosts[s].addrs[families[s]/5])
		at := c.peers[s].addr()
		must(r.t, lease.Declare(pinhole.Side(s), pinhole.Remote{Addr: at, Source: at.Addr()}))
		c.local[s] = lease.Local(pinhole.Side(s)).Addr
	}
	return c
}

// rtp returns the next packet of side s: 160 bytes of G.711.
func (c *call) rtp(s pinhole.Side) []byte {
	b := make([]byte, 172)
	b[0] = 0x80
	c.seq[s]++
	binary.BigEndian.PutUint16(b[2:], c.seq[s])
	binary.BigEndian.PutUint32(b[4:], 160*uint32(c.seq[s]))
	b[11] = byte(s) + 1
	for i := 12; i < len(b); i++ {
		b[i] = byte(int(c.seq[s]) * i)
	}
	return b
}

// pass sends b from side s and expects it at the other.
func (c *call) pass(s pinhole.Side, b []byte) packet {
	c.t.Helper()
	c.peers[s].send(c.local[s], b)
	got := c.peers[s.Other()].receive()
	if string(got.data) != string(b) {
		c.t.Fatalf("side %d sent %d bytes, %d others came", s, len(b), len(got.data))
	}
	if got.from != c.local[s.Other()] {
		c.t.Fatalf("it came from %s, want %s", got.from, c.local[s.Other()])
	}
	return got
}

// info returns the description of the call's lease.
func (c *call) info() media.Info {
	c.t.Helper()
	c.path.Refresh()
	for _, i := range c.relay.Pinholes() {
		if i.Ends[0].Local == c.local[0] {
			return i
		}
	}
	c.t.Fatal("the lease is closed")
	return media.Info{}
}

// waitPath waits until the call is carried by the path.
func (c *call) waitPath(want string) {
	c.t.Helper()
	var last media.Info
	for end := time.Now().Add(patience); time.Now().Before(end); pause() {
		if last = c.info(); last.Path == want {
			return
		}
	}
	c.t.Fatalf("carried by %q, not %q: %+v", last.Path, want, last)
}

// offload brings the call into the kernel.
func (c *call) offload() {
	c.t.Helper()
	c.pass(near, c.rtp(near))
	c.pass(far, c.rtp(far))
	c.waitPath(c.want)
}

func pause() { <-time.After(2 * time.Millisecond) }

// moved returns how many packets the kernel has carried from side s.
func (c *call) moved(s pinhole.Side) uint64 {
	c.t.Helper()
	var v tcFlow
	k := keyOf(c.local[s])
	must(c.t, c.path.kern.objs.Flows.Lookup(&k, &v))
	return v.Packets
}

// datagrams returns how many UDP packets the gateway's sockets have got. The first thread of
// the process may be one that went into a host's namespace.
func datagrams(t *testing.T) (n int) {
	t.Helper()
	for _, f := range []struct{ file, key string }{{"/proc/thread-self/net/snmp", "Udp:"}, {"/proc/thread-self/net/snmp6", "Udp6InDatagrams"}} {
		text, err := os.ReadFile(f.file)
		must(t, err)
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			var v int
			if fields[0] == f.key {
				if _, err := fmt.Sscan(fields[1], &v); err == nil {
					n += v
				}
			}
		}
	}
	return n
}

// socket returns the RTP socket of the call's side s. The path's lock must be held.
func (r *rig) socket(c *call, s pinhole.Side) *media.Socket {
	for sock := range r.path.streams {
		if sock.Local == c.local[s] {
			return sock
		}
	}
	r.t.Fatal("no such socket")
	return nil
}

// slot returns the place of the way that packets from side s take.
func (r *rig) slot(c *call, s pinhole.Side) uint32 {
	r.path.mu.Lock()
	defer r.path.mu.Unlock()
	return r.path.streams[r.socket(c, s)].forth.slot
}

// attached returns how many devices have the program.
func (r *rig) attached() int {
	r.path.mu.Lock()
	defer r.path.mu.Unlock()
	return len(r.path.kern.devices)
}

// programsAt returns how many tcx programs a device has at its ingress.
func programsAt(dev string) (int, error) {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return 0, err
	}
	got, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return 0, err
	}
	return len(got.Programs), nil
}

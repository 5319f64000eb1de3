package pathtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

const (
	dscp = 46
	// mtu is that of the far device, if it is another than the near one.
	mtu = 1400
)

// layout says where the two peers of a call are.
type layout struct {
	name string
	// devices of the gateway, networks of the call; prefixes (of /24 and /64) and last bytes are the peers'.
	devices, networks [2]string
	prefixes          [2][2]string
	last              [2]int
}

func layouts() []layout {
	inside, outside := [2]string{"192.0.2.", "2001:db8:1::"}, [2]string{"198.51.100.", "2001:db8:2::"}
	return []layout{
		{"two interfaces", [2]string{"near0", "far0"}, [2]string{"inside", "outside"}, [2][2]string{inside, outside}, [2]int{2, 2}},
		{"one interface", [2]string{"near0", "near0"}, [2]string{"inside", "outside"}, [2][2]string{inside, outside}, [2]int{2, 2}},
		{"hairpin", [2]string{"near0", "near0"}, [2]string{"inside", "inside"}, [2][2]string{inside, inside}, [2]int{2, 3}},
	}
}

func (l layout) addr(s pinhole.Side, family pinhole.Family, last int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprint(l.prefixes[s][family/5], last))
}

// edge is a relay on the gateway, which the namespace of this process is, with hosts around it: .1 is the
// gateway, .66 a host that takes no part in any call.
type edge struct {
	layout
	t     *testing.T
	d     Driver
	hosts [2]*host
	path  media.Path
	relay *media.Relay
}

func newEdge(t *testing.T, d Driver, l layout) *edge {
	t.Helper()
	e := &edge{t: t, d: d, layout: l}
	nets := pinhole.Networks{}
	for s := range e.hosts {
		if e.hosts[s] = e.hosts[0]; s == 0 || l.devices[s] != l.devices[0] {
			e.hosts[s] = newHost(t, l.devices[s])
		}
		own := pinhole.Network{Trusted: l.networks[s] == "inside"}
		var ours, theirs []string
		for i, prefix := range l.prefixes[s] {
			bits := []string{"/24", "/64"}[i]
			own.Addresses = append(own.Addresses, netip.MustParseAddr(prefix+"1"))
			ours = append(ours, prefix+"1"+bits)
			theirs = append(theirs, fmt.Sprint(prefix, l.last[s], bits), prefix+"66"+bits)
		}
		if s == 1 && l.prefixes[0] == l.prefixes[1] {
			ours, theirs = nil, []string{theirs[0], theirs[2]}
		}
		nets[l.networks[s]] = own
		h := e.hosts[s]
		address(t, h.dev, ours...)
		Within(t, h.ns, func() {
			address(t, h.own, theirs...)
			must(t, TXChecksums(h.own, false))
			must(t, GRO(h.own, true))
		})
		must(t, TXChecksums(h.dev, false)) // what leaves is whole, as on a cable
	}
	if l.devices[0] != l.devices[1] {
		dev, err := netlink.LinkByName(l.devices[far])
		must(t, err)
		must(t, netlink.LinkSetMTU(dev, mtu))
	}
	e.serve(nets)
	return e
}

func (e *edge) serve(nets pinhole.Networks) {
	e.path = e.d.Path(e.t, Setup{Networks: nets, DSCP: dscp})
	pin, cfg := media.DefaultPinholeConfig(), media.DefaultConfig()
	pin.Quarantine, pin.PerOwner, cfg.DSCP = 0, 1024, dscp
	var err error
	e.relay, err = media.New(pin, cfg, nets, e.path, zaptest.NewLogger(e.t))
	must(e.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.relay.Serve(ctx) }()
	e.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			e.t.Errorf("serve: %v", err)
		}
	})
}

// needEdge skips the test where there is no network namespace.
func needEdge(t *testing.T) {
	if os.Getenv(Namespace) == "" {
		t.Skip("SKIPPED: needs root, for network namespaces; and pathtest.Main as TestMain")
	}
}

// who is a socket of a host.
type who struct {
	side pinhole.Side
	role role
}

type role int

const (
	nobody  role = iota
	peerRTP      // what is declared
	peerRTCP
	another  // another port of the same host
	stranger // another host
)

// stream is a call that runs.
type stream struct {
	*edge
	families [2]pinhole.Family
	lease    pinhole.Lease
	local    [2]pinhole.Local
	socks    map[who]*net.UDPConn
	seq      [2]uint16
	// want is what must have been counted so far.
	want [2]tally
}

type tally struct {
	packets, bytes uint64
	dropped        map[string]uint64
}

// open opens a lease, and sockets for everybody; nothing is declared yet.
func (e *edge) open(t *testing.T, kind pinhole.Kind, families [2]pinhole.Family) *stream {
	t.Helper()
	// Sockets end with this test, the hosts later.
	own := *e
	own.t = t
	for s := range own.hosts {
		h := *e.hosts[s]
		h.t, own.hosts[s] = t, &h
	}
	c := &stream{edge: &own, families: families, socks: make(map[who]*net.UDPConn)}
	lease, err := e.relay.Open(context.Background(), pinhole.Request{
		Owner: "suite", Label: t.Name(), Kind: kind, Networks: e.networks, Families: families,
	})
	must(t, err)
	t.Cleanup(func() { lease.Close() })
	c.lease = lease
	for _, s := range []pinhole.Side{near, far} {
		c.local[s], c.want[s].dropped = lease.Local(s), map[string]uint64{}
		h, at := c.hosts[s], e.addr(s, families[s], e.last[s])
		c.socks[who{s, peerRTP}], c.socks[who{s, peerRTCP}] = h.pair(at)
		c.socks[who{s, another}] = h.listen(netip.AddrPortFrom(at, 0))
		c.socks[who{s, stranger}] = h.listen(netip.AddrPortFrom(e.addr(s, families[s], 66), 0))
	}
	return c
}

// pair returns sockets at two neighbouring ports, the first even.
func (h *host) pair(at netip.Addr) (first, second *net.UDPConn) {
	h.t.Helper()
	for range 200 {
		first = h.listen(netip.AddrPortFrom(at, 0))
		if a := addrOf(first); a.Port()%2 == 0 {
			if second = h.listen(netip.AddrPortFrom(at, a.Port()+1)); second != nil {
				return first, second
			}
		}
		first.Close()
	}
	h.t.Fatalf("no pair of ports at %s", at)
	return nil, nil
}

// remote is what the peer's own signalling would declare.
func (c *stream) remote(s pinhole.Side) pinhole.Remote {
	a := addrOf(c.socks[who{s, peerRTP}])
	return pinhole.Remote{Addr: a, Source: a.Addr()}
}

func (c *stream) declare(s pinhole.Side, r pinhole.Remote) {
	c.t.Helper()
	must(c.t, c.lease.Declare(s, r))
}

// rtp returns the next packet of side s, with that many bytes of which 12 are the header.
func (c *stream) rtp(s pinhole.Side, size int) []byte {
	c.seq[s]++
	return rtpPacket(c.seq[s], byte(s)+1, size)
}

func rtpPacket(seq uint16, ssrc byte, size int) []byte {
	b := make([]byte, max(size, 12))
	for i := range b {
		b[i] = byte((int(seq)+7)*i + i>>8)
	}
	copy(b, []byte{0x80, 0, byte(seq >> 8), byte(seq), 0, 0, 0, 0, 0, 0, 0, ssrc})
	binary.BigEndian.PutUint32(b[4:], 160*uint32(seq))
	return b[:size]
}

// info returns the description of the stream's lease, false if it is closed.
func (c *stream) info() (media.Info, bool) {
	if p, ok := c.path.(interface{ Refresh() }); ok {
		p.Refresh()
	}
	for _, i := range c.relay.Pinholes() {
		if i.Ends[0].Local == c.local[0].Addr {
			return i, true
		}
	}
	return media.Info{}, false
}

// settle waits until the path itself carries both directions.
func (c *stream) settle() {
	c.t.Helper()
	var last media.Info
	for end := time.Now().Add(patience); time.Now().Before(end); pause() {
		if last, _ = c.info(); last.Path == c.d.Name() {
			return
		}
	}
	c.t.Fatalf("carried by %q, not %q: %+v", last.Path, c.d.Name(), last)
}

// check waits until the counters are as they must be; what was heard is counted before.
func (c *stream) check(what string) {
	c.t.Helper()
	var last media.Info
	for end := time.Now().Add(patience); time.Now().Before(end); pause() {
		var open bool
		if last, open = c.info(); open && c.counted(near, &last) && c.counted(far, &last) {
			return
		}
	}
	c.t.Fatalf("%s: want %+v, counted\n%+v\n%+v", what, c.want, last.Ends[near].Stats, last.Ends[far].Stats)
}

func (c *stream) counted(s pinhole.Side, i *media.Info) bool {
	st, want := i.Ends[s].Stats, c.want[s]
	return st.Packets == want.packets && st.Bytes == want.bytes && st.Lost == 0 && maps.Equal(st.Dropped, want.dropped)
}

// hear reads the next packet of a socket, which must be b from the edge's address.
func (c *stream) hear(what string, at who, from netip.AddrPort, b []byte) packet {
	c.t.Helper()
	got, err := receive(c.socks[at], time.Now().Add(patience))
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	if !bytes.Equal(got.data, b) {
		c.t.Fatalf("%s: %d bytes came (%x), want %d (%x)", what, len(got.data), got.data[:min(16, len(got.data))], len(b), b[:min(16, len(b))])
	}
	if got.from != from {
		c.t.Fatalf("%s: it came from %s, want %s", what, got.from, from)
	}
	return got
}

// quiet fails if anybody has heard more than was read.
func (c *stream) quiet() {
	c.t.Helper()
	for at, conn := range c.socks {
		if got, err := receive(conn, time.Now().Add(time.Millisecond)); err == nil {
			c.t.Errorf("%v heard %d bytes too many: %x", at, len(got.data), got.data[:min(16, len(got.data))])
		}
	}
}

// segment has the socket cut what it sends into packets of that size (UDP_SEGMENT); 0 means no longer.
func (c *stream) segment(at who, size int) {
	set(c.t, c.socks[at], unix.SOL_UDP, unix.UDP_SEGMENT, size)
}

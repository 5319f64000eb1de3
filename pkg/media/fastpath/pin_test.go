package fastpath

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/media/userpath"
	"edged.dev/edged/pkg/pinhole"
)

// bpffs mounts a bpffs of the test's own, and returns a folder on it that does not exist yet.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Skipf("SKIPPED: no bpffs: %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return filepath.Join(dir, "edged")
}

// script is what a daemon in a process of its own is told.
type script struct {
	Pin    Pin
	Clsact bool
	// Want is what is to carry the calls, tc or xdp.
	Want string
	// Nobody runs it as nobody, with the two capabilities that it needs.
	Nobody bool
	Ports  media.PortRange
	// Calls are the peers' addresses, near and far.
	Calls [][2]netip.AddrPort
	// Forward is a rule for TCP, if there is one.
	Forward *ForwardRule
}

// daemonScript holds a script, for the process that TestDaemon is run in.
const daemonScript = "EDGED_FASTPATH_TEST_DAEMON"

// TestDaemon is a daemon that other tests start and kill. It prints the calls' addresses, and a line once
// the kernel carries them all; it ends when its input does.
func TestDaemon(t *testing.T) {
	text := os.Getenv(daemonScript)
	if text == "" {
		t.Skip("run by other tests")
	}
	var s script
	must(t, json.Unmarshal([]byte(text), &s))
	r := &rig{t: t, ports: s.Ports, want: s.Want}
	r.serve(s.Pin, options{clsact: s.Clsact})
	var local [][2]netip.AddrPort
	for _, peers := range s.Calls {
		l, err := r.relay.Open(context.Background(), pinhole.Request{Owner: "test", Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}})
		must(t, err)
		var at [2]netip.AddrPort
		for side, a := range peers {
			must(t, l.Declare(pinhole.Side(side), pinhole.Remote{Addr: a, Source: a.Addr()}))
			at[side] = l.Local(pinhole.Side(side)).Addr
		}
		local = append(local, at)
	}
	must(t, json.NewEncoder(os.Stdout).Encode(local))
	carried := func() (n int) {
		for _, i := range r.relay.Pinholes() {
			if i.Path == s.Want {
				n++
			}
		}
		return n
	}
	for carried() < len(s.Calls) {
		pause()
	}
	if s.Forward != nil {
		f, err := r.path.Forward(*s.Forward)
		must(t, err)
		(&tcpRig{rig: r, forward: f}).wait("in force", func(s ForwardStats) bool { return s.Why == "" })
	}
	_, err := os.Stdout.WriteString("carried\n")
	must(t, err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// victim is a daemon in a process of its own, and its calls.
type victim struct {
	cmd   *exec.Cmd
	calls []*call
}

// kill ends it at once, as a crash does.
func (v *victim) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

// daemon starts a daemon with n calls that the kernel carries.
func (r *rig) daemon(s script, n int) *victim {
	t := r.t
	t.Helper()
	v := &victim{}
	s.Want = r.want
	for range n {
		c := &call{rig: r}
		for side := range c.peers {
			c.peers[side] = r.hosts[side].peer(r.hosts[side].addrs[0])
		}
		v.calls = append(v.calls, c)
		s.Calls = append(s.Calls, [2]netip.AddrPort{c.peers[0].addr(), c.peers[1].addr()})
	}
	text, err := json.Marshal(s)
	must(t, err)
	// Not by its name: it may stand where nobody else may look.
	v.cmd = exec.Command("/proc/self/exe", "-test.run=^TestDaemon$", "-test.v=false")
	if s.Nobody {
		v.cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
			AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_BPF},
		}
	}
	v.cmd.Env = append(os.Environ(), inNamespace+"=1", daemonScript+"="+string(text))
	v.cmd.Stderr = os.Stderr
	_, err = v.cmd.StdinPipe()
	must(t, err)
	out, err := v.cmd.StdoutPipe()
	must(t, err)
	must(t, v.cmd.Start())
	t.Cleanup(v.kill)
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	must(t, err)
	var local [][2]netip.AddrPort
	if err := json.Unmarshal(line, &local); err != nil {
		rest, _ := io.ReadAll(lines)
		t.Fatalf("the daemon says %s%s", line, rest)
	}
	for i, c := range v.calls {
		c.local = local[i]
		c.pass(near, c.rtp(near))
		c.pass(far, c.rtp(far))
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "carried\n" {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return v
}

// both runs a test with either kind of attachment.
func both(t *testing.T, f func(t *testing.T, clsact bool)) {
	t.Run("tcx", func(t *testing.T) { f(t, false) })
	t.Run("clsact", func(t *testing.T) { f(t, true) })
}

// eventually waits for what must come.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); pause() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// TestKilled: media goes on when the daemon is killed; the next one takes the flows over without losing a
// packet, keeps their source lock and their ports, and ends them when they are silent.
func TestKilled(t *testing.T) {
	both(t, func(t *testing.T, clsact bool) {
		r := newHosts(t)
		pin := Pin{Folder: bpffs(t), Name: "a"}
		// Room for 8 RTP pairs.
		r.ports = media.PortRange{First: 50000, Last: 50015}
		v := r.daemon(script{Pin: pin, Clsact: clsact, Ports: r.ports}, 3)
		v.kill()
		for _, c := range v.calls {
			for range 20 {
				c.pass(near, c.rtp(near))
				c.pass(far, c.rtp(far))
			}
		}
		r.idle = 3 * time.Second
		before := datagrams(t)
		end := r.serve(pin, options{clsact: clsact})
		if n := r.path.Adopted(); n != 6 {
			t.Fatalf("%d flows adopted, want 6", n)
		}
		for _, c := range v.calls {
			c.pass(near, c.rtp(near))
			c.pass(far, c.rtp(far))
		}
		if n := datagrams(t) - before; n != 0 {
			t.Errorf("%d packets came to sockets", n)
		}
		r.injected(v.calls[0])
		r.portsAvoided(v.calls)
		// One call goes on, and keeps its other direction too.
		eventually(t, "silent flows end", func() bool {
			v.calls[0].pass(near, v.calls[0].rtp(near))
			return r.path.Adopted() == 2
		})
		v.calls[0].pass(far, v.calls[0].rtp(far))
		eventually(t, "the last flow ends", func() bool { return r.path.Adopted() == 0 })
		r.call(pinhole.RTP).offload()
		end()
		wantClean(t, pin)
	})
}

// TestKilledXDP: the same with XDP before tc; and a daemon without XDP takes over from one with it, and back.
func TestKilledXDP(t *testing.T) {
	r := newHosts(t)
	for _, h := range r.hosts {
		pathtest.Within(t, h.ns, func() {
			must(t, pathtest.TXChecksums(h.own, false))
			must(t, pathtest.GRO(h.own, true))
		})
	}
	r.want = "xdp"
	pin := Pin{Folder: bpffs(t), Name: "a"}
	v := r.daemon(script{Pin: pin}, 1)
	v.kill()
	c := v.calls[0]
	for i, want := range []string{"xdp", "tc", "xdp"} {
		r.want = want
		path, next := r.adopter(pin)
		if path.String() != want || path.Adopted() != 2 {
			t.Errorf("%d: %s has adopted %d flows, want %s and 2", i, path, path.Adopted(), want)
		}
		for range 5 {
			c.pass(near, c.rtp(near))
			c.pass(far, c.rtp(far))
		}
		next()
	}
	_, err := Detach(pin.Folder, false)
	must(t, err)
	wantClean(t, pin)
}

// TestKilledNobody: daemons that are not root, but have the two capabilities and a folder of their own, pin and
// adopt as well.
func TestKilledNobody(t *testing.T) {
	both(t, func(t *testing.T, clsact bool) {
		r := newHosts(t)
		s := script{Pin: Pin{Folder: bpffs(t), Name: "a"}, Clsact: clsact, Nobody: true}
		for dir := filepath.Dir(s.Pin.Folder); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			must(t, os.Chmod(dir, 0o755))
		}
		must(t, os.Mkdir(s.Pin.Folder, 0o700))
		must(t, os.Chown(s.Pin.Folder, 65534, 65534))
		first := r.daemon(s, 1)
		first.kill()
		c := first.calls[0]
		c.pass(near, c.rtp(near))
		next := r.daemon(s, 0)
		// A daemon that had not adopted them would remove unknown flows at its first look, after a second.
		for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); pause() {
			c.pass(near, c.rtp(near))
			c.pass(far, c.rtp(far))
		}
		list, err := Inspect(s.Pin.Folder)
		must(t, err)
		if len(list) != 1 || !list[0].Live || len(list[0].Flows) != 2 || len(list[0].Devices) != 2 {
			t.Errorf("%+v", list)
		}
		next.kill()
		_, err = Detach(s.Pin.Folder, false)
		must(t, err)
		wantClean(t, s.Pin)
	})
}

// adopter starts a path that ends as a crash does: without detaching or unpinning anything.
func (r *rig) adopter(pin Pin) (p *Path, crash func()) {
	r.t.Helper()
	user, err := userpath.New(1)
	must(r.t, err)
	p, err = newPath(user, Config{Networks: gatewayNetworks(), Pin: pin, XDP: r.want == "xdp"}, zaptest.NewLogger(r.t), options{})
	must(r.t, err)
	return p, func() {
		for _, d := range p.kern.devices {
			for _, l := range []link.Link{d.link, d.xdp} {
				if l != nil {
					must(r.t, l.Close())
				}
			}
		}
		must(r.t, errors.Join(p.kern.objs.Close(), p.kern.xdp.Close(), p.kern.pins.instance.Close()))
	}
}

// injected checks that a stranger is not heard by either side of an adopted call.
func (r *rig) injected(c *call) {
	r.t.Helper()
	evil := r.hosts[far].peer(netip.MustParseAddr("198.51.100.66"))
	for range 10 {
		evil.send(c.local[far], c.rtp(far))
	}
	c.pass(far, c.rtp(far)) // the next packet that comes is the peer's own
	if got, err := evil.read(time.Now().Add(time.Millisecond)); err == nil {
		r.t.Errorf("the stranger heard %d bytes", len(got.data))
	}
}

// portsAvoided takes all ports that there are: none is one that an adopted flow uses.
func (r *rig) portsAvoided(calls []*call) {
	r.t.Helper()
	used := make(map[netip.AddrPort]bool)
	for _, c := range calls {
		used[c.local[near]], used[c.local[far]] = true, true
	}
	var leases []pinhole.Lease
	for {
		l, err := r.relay.Open(context.Background(), pinhole.Request{Owner: "test", Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}})
		if errors.Is(err, pinhole.ErrExhausted) {
			break
		}
		must(r.t, err)
		leases = append(leases, l)
		for _, s := range []pinhole.Side{near, far} {
			if at := l.Local(s).Addr; used[at] {
				r.t.Errorf("%v is given to a new call", at)
			}
		}
	}
	if len(leases) != 8-len(calls) {
		r.t.Errorf("%d new calls, want %d", len(leases), 8-len(calls))
	}
	for _, l := range leases {
		l.Close()
	}
}

// wantClean checks that nothing is pinned or attached.
func wantClean(t *testing.T, pin Pin) {
	t.Helper()
	if left := entries(pin.Folder); len(left) != 0 {
		t.Errorf("left in the folder: %v", left)
	}
	name, err := instanceName(pin.Name)
	must(t, err)
	filters, err := filtersOf(handleOf(name))
	must(t, err)
	if len(filters) != 0 {
		t.Errorf("left filters: %v", filters)
	}
	eventually(t, "no program is attached", func() bool { return attachedTo(t, "near0") == 0 && attachedTo(t, "far0") == 0 })
}

// TestKilledUnpinned is the negative control: without pins the flows end with the daemon, as links do.
func TestKilledUnpinned(t *testing.T) {
	r := newHosts(t)
	v := r.daemon(script{}, 1)
	v.kill()
	c := v.calls[0]
	eventually(t, "the program is detached", func() bool { return attachedTo(t, "near0") == 0 })
	for range 5 {
		_, _ = c.peers[near].conn.WriteToUDPAddrPort(c.rtp(near), c.local[near])
	}
	if got, err := c.peers[far].read(time.Now().Add(300 * time.Millisecond)); err == nil {
		t.Errorf("%d bytes came although nothing was pinned", len(got.data))
	}
}

// TestTwoDaemons: a second daemon of the same name works unpinned, one of another name with pins of its own.
func TestTwoDaemons(t *testing.T) {
	r := newHosts(t)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	v := r.daemon(script{Pin: pin}, 1)
	for _, name := range []string{"a", "b"} {
		user, err := userpath.New(1)
		must(t, err)
		p, err := newPath(user, Config{Networks: gatewayNetworks(), Pin: Pin{Folder: pin.Folder, Name: name}}, zaptest.NewLogger(t), options{})
		must(t, err)
		if pinned := p.kern.pins != nil; pinned != (name == "b") {
			t.Errorf("%s is pinned: %v", name, pinned)
		}
		if n := p.Adopted(); n != 0 {
			t.Errorf("%s has adopted %d flows", name, n)
		}
		must(t, p.kern.close())
	}
	c := v.calls[0]
	c.pass(near, c.rtp(near))
	if left := entries(pin.Folder); len(left) != 1 {
		t.Errorf("pinned: %v", left)
	}
}

// TestOtherLayout: what a daemon with other maps has left is not adopted, but removed.
func TestOtherLayout(t *testing.T) {
	both(t, func(t *testing.T, clsact bool) {
		r := newHosts(t)
		pin := Pin{Folder: bpffs(t), Name: "a"}
		v := r.daemon(script{Pin: pin, Clsact: clsact}, 1)
		v.kill()
		name, err := instanceName(pin.Name)
		must(t, err)
		instance := filepath.Join(pin.Folder, name)
		layouts := entries(instance)
		if len(layouts) != 1 {
			t.Fatalf("%v", layouts)
		}
		must(t, os.Rename(filepath.Join(instance, layouts[0]), filepath.Join(instance, "000000000000")))
		end := r.serve(pin, options{clsact: clsact})
		if n := r.path.Adopted(); n != 0 {
			t.Errorf("%d flows adopted", n)
		}
		if left := entries(instance); len(left) != 1 || left[0] != layouts[0] {
			t.Errorf("layouts %v, want %v", left, layouts)
		}
		eventually(t, "one program is attached", func() bool { return clsact || attachedTo(t, "near0") == 1 })
		r.call(pinhole.RTP).offload()
		end()
		wantClean(t, pin)
	})
}

// TestPinFails: where the program cannot be pinned it works all the same.
func TestPinFails(t *testing.T) {
	r := newHosts(t)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	name, err := instanceName(pin.Name)
	must(t, err)
	spec, err := loadTc()
	must(t, err)
	// No map can be pinned where a folder stands that is not empty.
	must(t, os.MkdirAll(filepath.Join(pin.Folder, name, layoutOf(spec), tcMapFlows, "x"), 0o700))
	end := r.serve(pin, options{})
	if r.path.kern.pins != nil {
		t.Error("it is pinned")
	}
	r.call(pinhole.RTP).offload()
	end()
	wantClean(t, pin)
}

// TestDeviceRemoved: what was attached to a device that is not configured any more is removed, flows too.
func TestDeviceRemoved(t *testing.T) {
	both(t, func(t *testing.T, clsact bool) {
		r := newHosts(t)
		pin := Pin{Folder: bpffs(t), Name: "a"}
		v := r.daemon(script{Pin: pin, Clsact: clsact}, 1)
		v.kill()
		user, err := userpath.New(1)
		must(t, err)
		nets := pinhole.Networks{"inside": {Addresses: gatewayAddrs("192.0.2.1"), Trusted: true}}
		p, err := newPath(user, Config{Networks: nets, Pin: pin}, zaptest.NewLogger(t), options{clsact: clsact})
		must(t, err)
		if n := p.Adopted(); n != 0 {
			t.Errorf("%d flows adopted", n)
		}
		must(t, p.kern.each(func(k tcKey, _ *tcFlow) { t.Errorf("flow left at %v", k.addr()) }))
		eventually(t, "nothing is attached to far0", func() bool { return attachedTo(t, "far0") == 0 })
		filters, err := filtersOf(p.kern.handle)
		must(t, err)
		if clsact && len(filters) != 1 {
			t.Errorf("filters: %v", filters)
		}
		must(t, p.kern.close())
		wantClean(t, pin)
	})
}

// TestAdoptedWay: adopted flows follow a neighbour that gets another address, and a peer whose packets come by
// another device.
func TestAdoptedWay(t *testing.T) {
	r := newHosts(t)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	v := r.daemon(script{Pin: pin}, 1)
	v.kill()
	r.serve(pin, options{})
	c := v.calls[0]
	c.pass(near, c.rtp(near))
	h := r.hosts[far]
	l, err := h.nl.LinkByName(h.own)
	must(t, err)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	must(t, h.nl.LinkSetHardwareAddr(l, mac))
	dev, err := netlink.LinkByName(h.dev)
	must(t, err)
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: dev.Attrs().Index, IP: h.addrs[0].AsSlice(), HardwareAddr: mac, State: netlink.NUD_REACHABLE,
	}))
	arrives := func() bool {
		c.peers[near].send(c.local[near], c.rtp(near))
		_, err := c.peers[far].read(time.Now().Add(50 * time.Millisecond))
		return err == nil
	}
	eventually(t, "the new neighbour is used", arrives)
	r.move(h)
	eventually(t, "the packets to the other device pass", arrives)
	eventually(t, "the packets from the other device pass", func() bool {
		c.peers[far].send(c.local[far], c.rtp(far))
		_, err := c.peers[near].read(time.Now().Add(50 * time.Millisecond))
		return err == nil
	})
	if c.moved(far) == 0 {
		t.Error("not carried by the kernel")
	}
}

// move connects a host to the gateway by a second device, and routes its address there.
func (r *rig) move(h *host) {
	t := r.t
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other0"}, PeerName: "eth1", PeerNamespace: netlink.NsFd(h.ns)}
	must(t, netlink.LinkAdd(v))
	t.Cleanup(func() { _ = netlink.LinkDel(v) })
	here, err := netlink.NewHandle()
	must(t, err)
	defer here.Close()
	// An address that is configured, so that the device gets the program.
	far0, err := here.LinkByName(h.dev)
	must(t, err)
	moved, err := netlink.ParseAddr("2001:db8:2::1/64")
	must(t, err)
	must(t, here.AddrDel(far0, moved))
	addresses(t, here, "other0", "2001:db8:2::1/64")
	addresses(t, h.nl, "eth1", "192.0.2.130/32")
	other, err := netlink.LinkByName("other0")
	must(t, err)
	own, err := h.nl.LinkByName("eth1")
	must(t, err)
	gw := netip.MustParseAddr("198.51.100.1")
	must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: other.Attrs().Index, Dst: netlink.NewIPNet(h.addrs[0].AsSlice()), Scope: netlink.SCOPE_LINK}))
	must(t, h.nl.RouteReplace(&netlink.Route{LinkIndex: own.Attrs().Index, Dst: netlink.NewIPNet(gw.AsSlice()), Scope: netlink.SCOPE_LINK}))
}

// TestInspect: what a killed daemon has left is shown, and removed; what a live one holds only by force.
func TestInspect(t *testing.T) {
	both(t, func(t *testing.T, clsact bool) {
		r := newHosts(t)
		pin := Pin{Folder: bpffs(t), Name: "a"}
		if list, err := Inspect(pin.Folder); err != nil || len(list) != 0 {
			t.Fatalf("before there is anything: %v, %v", list, err)
		}
		v := r.daemon(script{Pin: pin, Clsact: clsact}, 1)
		c := v.calls[0]
		c.pass(near, c.rtp(near))
		inspect := func() State {
			t.Helper()
			list, err := Inspect(pin.Folder)
			must(t, err)
			if len(list) != 1 {
				t.Fatalf("%d instances", len(list))
			}
			return list[0]
		}
		s := inspect()
		if !s.Live || !s.Here || !s.Readable || s.LeaseSeconds < 1 || s.LeaseSeconds > leaseTime.Seconds() || len(s.Programs) == 0 {
			t.Errorf("%+v", s)
		}
		kind := map[bool]string{false: "tcx", true: "clsact"}[clsact]
		if len(s.Devices) != 2 || s.Devices[0].Attached != kind || s.Devices[1].Attached != kind || s.Devices[0].Name == "" {
			t.Errorf("devices %+v", s.Devices)
		}
		want := FlowState{Local: c.local[near], Peer: c.peers[near].addr(), Out: c.local[far], To: c.peers[far].addr()}
		found := false
		for _, f := range s.Flows {
			if f.Local == want.Local {
				found = f.Peer == want.Peer && f.Out == want.Out && f.To == want.To && f.Packets == 1 && f.Bytes == 172 && f.IdleSeconds < 60
			}
		}
		if len(s.Flows) != 2 || !found {
			t.Errorf("flows %+v, want one like %+v", s.Flows, want)
		}
		if removed, err := Detach(pin.Folder, false); !errors.Is(err, ErrLive) || len(removed) != 0 {
			t.Errorf("a live daemon's: %v, %v", removed, err)
		}
		c.pass(near, c.rtp(near))
		v.kill()
		if inspect().Live {
			t.Error("a killed daemon lives")
		}
		removed, err := Detach(pin.Folder, false)
		must(t, err)
		if len(removed) != 1 || removed[0] != s.Instance {
			t.Errorf("removed %v", removed)
		}
		wantClean(t, pin)
	})
}

// TestDamagedPin: what is no link where one should be is named, all else is shown, and it goes with the rest.
func TestDamagedPin(t *testing.T) {
	r := newHosts(t)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	v := r.daemon(script{Pin: pin}, 1)
	v.kill()
	list, err := Inspect(pin.Folder)
	must(t, err)
	bad := filepath.Join(list[0].Folder, list[0].Layout, "tcx_99")
	must(t, os.Mkdir(bad, 0o700))
	after, err := Inspect(pin.Folder)
	must(t, err)
	if s := after[0]; len(s.Damaged) != 1 || s.Damaged[0] != bad || len(s.Devices) != 2 || len(s.Flows) != len(list[0].Flows) {
		t.Errorf("%+v", s)
	}
	removed, err := Detach(pin.Folder, false)
	must(t, err)
	if len(removed) != 1 {
		t.Errorf("removed %v", removed)
	}
	wantClean(t, pin)
}

// TestDetachForced: with force even a live daemon loses its programs; it goes on in user space.
func TestDetachForced(t *testing.T) {
	both(t, func(t *testing.T, clsact bool) {
		r := newHosts(t)
		pin := Pin{Folder: bpffs(t), Name: "a"}
		end := r.serve(pin, options{clsact: clsact})
		c := r.call(pinhole.RTP)
		c.offload()
		_, err := Detach(pin.Folder, true)
		must(t, err)
		wantClean(t, pin)
		before := datagrams(t)
		c.pass(near, c.rtp(near))
		if datagrams(t) == before {
			t.Error("the packet did not come to a socket")
		}
		end()
		wantClean(t, pin)
	})
}

// TestForget: a daemon that is told to stay in user space removes what it left in the kernel.
func TestForget(t *testing.T) {
	both(t, func(t *testing.T, clsact bool) {
		r := newHosts(t)
		pin := Pin{Folder: bpffs(t), Name: "a"}
		must(t, Forget(pin)) // there is nothing
		v := r.daemon(script{Pin: pin, Clsact: clsact}, 1)
		v.kill()
		must(t, Forget(Pin{Folder: pin.Folder, Name: "b"}))
		if len(entries(pin.Folder)) != 1 {
			t.Error("another daemon's pins are removed")
		}
		must(t, Forget(pin))
		wantClean(t, pin)
	})
}

// TestForgotten: what a daemon has left and never come back for is removed by others, later.
func TestForgotten(t *testing.T) {
	r := newHosts(t)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	v := r.daemon(script{Pin: pin}, 1)
	spec, err := loadTc()
	must(t, err)
	c, err := readClock()
	must(t, err)
	const later = uint64(forgottenAfter + time.Minute)
	for _, tt := range []struct {
		name string
		now  uint64
		left int
	}{
		{"while it lives", c.ns + later, 1}, {"at once", c.ns, 1}, {"later", c.ns + later, 0},
	} {
		clearForgotten(pin.Folder, spec, tt.now)
		if got := len(entries(pin.Folder)); got != tt.left {
			t.Errorf("%s: %d instances, want %d", tt.name, got, tt.left)
		}
		v.kill()
	}
	wantClean(t, pin)
}

// TestDiagnose: the rig's own devices can carry media, other addresses cannot.
func TestDiagnose(t *testing.T) {
	newHosts(t)
	nets := gatewayNetworks()
	worst := func(list []Finding) Level {
		for _, l := range []Level{Fail, Warn} {
			for _, f := range list {
				if f.Level == l {
					t.Logf("%+v", f)
					return l
				}
			}
		}
		return OK
	}
	if got := worst(Diagnose(Config{Networks: nets, Pin: Pin{Folder: bpffs(t)}}, true)); got != OK {
		t.Errorf("%s, want ok", got)
	}
	if got := worst(Diagnose(Config{Networks: nets}, true)); got != Warn {
		t.Errorf("without pins: %s, want warn", got)
	}
	nets["dmz"] = pinhole.Network{Addresses: gatewayAddrs("203.0.113.1")}
	for wanted, want := range map[bool]Level{true: Fail, false: Warn} {
		if got := worst(Diagnose(Config{Networks: nets, Pin: Pin{Folder: bpffs(t)}}, wanted)); got != want {
			t.Errorf("an address without a device: %s, want %s", got, want)
		}
	}
}

// TestVersion: kernels of distributions have much behind their numbers.
func TestVersion(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.18.44": {6, 18}, "5.10.0-28-amd64": {5, 10}, "6.6-rc1": {6, 6}, "4.19.0+": {4, 19}, "7": {7, 0}, "": {0, 0},
	} {
		if major, minor := version(release); [2]int{major, minor} != want {
			t.Errorf("%q is read as %d.%d", release, major, minor)
		}
	}
}

// attachedTo returns how many tcx programs a device has at its ingress.
func attachedTo(t *testing.T, dev string) int {
	t.Helper()
	n, err := programsAt(dev)
	must(t, err)
	return n
}

// TestFates: which flows of an earlier run are kept.
func TestFates(t *testing.T) {
	const second = uint64(time.Second)
	now := 1000 * second
	at := netip.MustParseAddrPort
	flow := func(last uint64, change func(*tcFlow)) tcFlow {
		v := route{
			from: at("192.0.2.2:4000"), in: at("192.0.2.1:50000"), out: at("198.51.100.1:50002"), to: at("198.51.100.2:4000"),
		}.value(true, 46)
		v.Device, v.Last = 3, last
		if change != nil {
			change(&v)
		}
		return v
	}
	back := route{
		from: at("198.51.100.2:4000"), in: at("198.51.100.1:50002"), out: at("192.0.2.1:50000"), to: at("192.0.2.2:4000"),
	}.value(true, 46)
	for _, tt := range []struct {
		name    string
		key     netip.AddrPort
		flow    tcFlow
		reverse uint64 // when the other direction had its last packet, 0: there is none
		want    string
	}{
		{"in use", at("192.0.2.1:50000"), flow(now-second, nil), 0, ""},
		{"at the same moment", at("192.0.2.1:50000"), flow(now, nil), 0, ""},
		{"later than now", at("192.0.2.1:50000"), flow(now+second, nil), 0, ""},
		{"just before the end", at("192.0.2.1:50000"), flow(now-60*second+1, nil), 0, ""},
		{"silent", at("192.0.2.1:50000"), flow(now-60*second, nil), 0, fateIdle},
		{"silent since the machine started", at("192.0.2.1:50000"), flow(0, nil), 0, fateIdle},
		{"one direction is silent", at("192.0.2.1:50000"), flow(0, nil), now - second, ""},
		{"both are silent", at("192.0.2.1:50000"), flow(0, nil), now - 61*second, fateIdle},
		{"address is gone", at("192.0.2.9:50000"), flow(now, nil), 0, fateAddress},
		{"the other address is gone", at("192.0.2.1:50000"), flow(now, func(v *tcFlow) { v.NewSrcHead, v.NewSrc = headAndLast(netip.MustParseAddr("198.51.100.9")) }), 0, fateAddress},
		{"device is gone", at("192.0.2.1:50000"), flow(now, func(v *tcFlow) { v.Device = 4 }), 0, fateDevice},
		{"no such way", at("192.0.2.1:50000"), flow(now, func(v *tcFlow) { v.Hop = maxWays }), 0, fateWay},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := keyOf(tt.key)
			s := survey{
				flows: map[tcKey]tcFlow{k: tt.flow}, now: now, idle: time.Minute,
				own:     gatewayAddrs("192.0.2.1", "198.51.100.1"),
				devices: map[int]*device{3: {}},
			}
			if tt.reverse > 0 {
				back.Last = tt.reverse
				s.flows[keyOf(at("198.51.100.1:50002"))] = back
			}
			if got := s.fate(k); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// TestLayout: the name of the layout changes with anything that another program would misread.
func TestLayout(t *testing.T) {
	spec := func() *ebpf.CollectionSpec {
		s, err := loadTc()
		must(t, err)
		return s
	}
	want := layoutOf(spec())
	if got := layoutOf(spec()); got != want || strings.Contains(got, ".") {
		t.Fatalf("%q, then %q", want, got)
	}
	value := func(s *ebpf.CollectionSpec) *btf.Struct {
		return btf.UnderlyingType(s.Maps["flows"].Value).(*btf.Struct)
	}
	for name, change := range map[string]func(*ebpf.CollectionSpec){
		"size of a map":       func(s *ebpf.CollectionSpec) { s.Maps["flows"].MaxEntries++ },
		"type of a map":       func(s *ebpf.CollectionSpec) { s.Maps["flows"].Type = ebpf.LRUHash },
		"a map more":          func(s *ebpf.CollectionSpec) { s.Maps["more"] = s.Maps["hops"] },
		"size of a value":     func(s *ebpf.CollectionSpec) { s.Maps["hops"].ValueSize += 4 },
		"name of a field":     func(s *ebpf.CollectionSpec) { value(s).Members[1].Name = "else" },
		"order of fields":     func(s *ebpf.CollectionSpec) { m := value(s).Members; m[1].Name, m[2].Name = m[2].Name, m[1].Name },
		"place of a variable": func(s *ebpf.CollectionSpec) { s.Variables["lease_until"].Offset += 8 },
		"name of a variable": func(s *ebpf.CollectionSpec) {
			s.Variables["x"] = s.Variables["lease_until"]
			delete(s.Variables, "lease_until")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec()
			change(s)
			if layoutOf(s) == want {
				t.Error("the same layout")
			}
		})
	}
}

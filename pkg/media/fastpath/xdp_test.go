package fastpath

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/pinhole"
)

func newTCRig(t *testing.T) *rig { return newRig(t, rigOptions{}) }

// rigs runs a test for each program.
func rigs(t *testing.T, run func(*testing.T, func(*testing.T) *rig)) {
	needKernel(t)
	t.Run("tc", func(t *testing.T) { run(t, newTCRig) })
	t.Run("xdp", func(t *testing.T) { run(t, newXDPRig) })
}

// runs returns how often the program of tc ran, from the first call on.
func (r *rig) runs() uint64 {
	r.t.Helper()
	if !r.counting {
		c, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
		must(r.t, err)
		r.t.Cleanup(func() { must(r.t, c.Close()) })
		r.counting = true
	}
	st, err := r.path.kern.objs.Relay.Stats()
	must(r.t, err)
	return st.RunCount
}

// TestFewPrivileges: CAP_NET_ADMIN and CAP_BPF are enough for both programs; without CAP_PERFMON the kernel is
// strict about pointers.
func TestFewPrivileges(t *testing.T) {
	if os.Getenv(inNamespace) == "few" {
		k, err := loadPinned(nil, 0, true)
		must(t, err)
		must(t, k.noXDP)
		must(t, k.close())
		return
	}
	needKernel(t)
	runtime.LockOSThread() // Pdeathsig is the thread's
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestFewPrivileges$", "-test.count=1")
	cmd.Env = append(os.Environ(), inNamespace+"=few")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL,
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_BPF},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestRefusesXDP: what keeps XDP from a device.
func TestRefusesXDP(t *testing.T) {
	const all = xdpBasic | xdpRedirect
	eth := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 2, Name: "eth0", EncapType: "ether"}}
	vlan := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Index: 3, Name: "eth0.5", ParentIndex: 2, EncapType: "ether"}, VlanId: 5}
	other := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Index: 4, Name: "eth1.5", ParentIndex: 9, EncapType: "ether"}, VlanId: 5}
	for _, tt := range []struct {
		name string
		l    netlink.Link
		can  uint64
		all  []netlink.Link
		want string
	}{
		{"a driver that can", eth, all, []netlink.Link{eth, other}, ""},
		{"one that cannot send as well", eth, all, []netlink.Link{eth}, ""},
		{"a driver that cannot", eth, 0, nil, "no native XDP"},
		{"one that cannot redirect", eth, xdpBasic, nil, "no native XDP"},
		{"a VLAN", vlan, all, []netlink.Link{eth, vlan}, "it is a VLAN"},
		{"a device below a VLAN", eth, all, []netlink.Link{eth, vlan}, "it carries the VLAN eth0.5"},
	} {
		got := ""
		if err := refusesXDP(tt.l, tt.can, tt.all); err != nil {
			got = err.Error()
		}
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	if err := errors.Join(ethernet(vlan, false), noVRF(vlan)); err != nil {
		t.Errorf("tc refuses a VLAN: %v", err)
	}
}

// TestXDPElsewhere: where XDP cannot be used tc carries, and says why.
func TestXDPElsewhere(t *testing.T) {
	t.Run("the way out", func(t *testing.T) {
		r := newXDPRig(t)
		pathtest.Within(t, r.hosts[far].ns, func() { must(t, pathtest.GRO(r.hosts[far].own, false)) })
		r.want = "mixed" // back it still is XDP
		c := r.call(pinhole.RTP)
		c.offload()
		c.pass(near, c.rtp(near))
		if e := c.info().Ends[near]; e.Path != "tc" || !strings.Contains(e.Why, "GRO") {
			t.Errorf("%+v", e)
		}
		if c.moved(near) != 1 {
			t.Errorf("%d carried", c.moved(near))
		}
	})
	t.Run("another program", func(t *testing.T) {
		needKernel(t)
		other := newEntry(t, "xdp")
		r := newHosts(t)
		l, err := netlink.LinkByName(r.hosts[near].dev)
		must(t, err)
		at, err := link.AttachXDP(link.XDPOptions{Program: other.k.xdp, Interface: l.Attrs().Index, Flags: link.XDPDriverMode})
		must(t, err)
		defer at.Close()
		r.want = "xdp"
		r.serve(Pin{}, options{})
		r.want = "tc"
		for s := range r.hosts {
			pathtest.Within(t, r.hosts[s].ns, func() { must(t, pathtest.GRO(r.hosts[s].own, true)) })
		}
		c := r.call(pinhole.RTP)
		c.pass(near, c.rtp(near))
		c.pass(far, c.rtp(far))
		c.waitPath("mixed")
		if e := c.info().Ends[near]; e.Path != "tc" || !strings.Contains(e.Why, "another XDP program") {
			t.Errorf("%+v", e)
		}
	})
}

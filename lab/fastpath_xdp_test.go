//go:build lab

package lab

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// ethtool sets features of a device in a namespace.
func (r *Rig) ethtool(ns, dev string, args ...string) {
	r.t.Helper()
	if _, err := exec.LookPath("ethtool"); err != nil {
		r.t.Skip("SKIPPED: no ethtool")
	}
	line := append([]string{"netns", "exec", ns, "ethtool", "-K", dev}, args...)
	if out, err := exec.Command("ip", line...).CombinedOutput(); err != nil {
		r.t.Fatalf("ethtool -K %s %v: %v: %s", dev, args, err, out)
	}
}

// forXDP makes the rig's devices such that XDP can carry media between them.
func (s *scene) forXDP() {
	s.Helper()
	// A veth sends what XDP redirects to it if the other end has GRO on.
	s.rig.ethtool(s.rig.id+"-sw", "p1lan", "gro", "on")
	s.rig.ethtool(s.rig.id+"-sw", "p1wan", "gro", "on")
	for _, h := range s.rig.hosts[1:] {
		s.rig.ethtool(h.ns, "eth0", "tx", "off") // as behind a cable
	}
}

// wantPath waits until the only call is carried by a path.
func (s *scene) wantPath(path string) {
	s.Helper()
	var c carried
	if !until(10*time.Second, func() bool {
		c = s.carried()
		return len(c.Pinholes) == 1 && c.Pinholes[0].Path == path
	}) {
		s.Fatalf("not carried by %s: %+v", path, c)
	}
}

// TestFastPathXDP: with `datapath: xdp` network drivers carry a call, and go on while the daemon is stopped.
func TestFastPathXDP(t *testing.T) {
	onlyEdged(t, "the reference has no kernel module here")
	s := newScene(t, plan{Edge: EdgeConfig{More: "media: {datapath: xdp}\n"}})
	s.needKernelPath(t)
	s.forXDP()
	a, _ := s.call()
	s.hearEachOther(300 * time.Millisecond)
	s.wantPath("xdp")
	s.edge.proc.Signal(syscall.SIGSTOP)
	before := s.rig.GW.datagrams(t)
	const stopped = 2 * time.Second
	s.va.Forget()
	s.vb.Forget()
	pass(stopped)
	s.nothingLost(t)
	if n := s.rig.GW.datagrams(t) - before; n != 0 {
		t.Errorf("%d packets came to the gateway's sockets", n)
	}
	s.edge.proc.Signal(syscall.SIGCONT)
	s.hearEachOther(300 * time.Millisecond)
	for i, e := range s.carried().Pinholes[0].Ends {
		if e.Stats.Lost != 0 {
			t.Errorf("end %d: %+v", i, e.Stats)
		}
	}
	a.Bye(s.bob)
	s.edge.Clean(t)
}

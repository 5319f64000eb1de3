package fastpath

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
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

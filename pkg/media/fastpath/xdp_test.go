package fastpath

import (
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

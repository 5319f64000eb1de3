//go:build lab

package lab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMain bounds how many rigs run at a time, and cleans up after runs that were killed.
func TestMain(m *testing.M) {
	if text := os.Getenv(h323Variable); text != "" {
		os.Exit(runH323Phone(text))
	}
	if text := os.Getenv(gatekeeperVariable); text != "" {
		os.Exit(runH323Gatekeeper(text))
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = f.Value.Set("3")
	}
	sweep()
	code := m.Run()
	_ = os.RemoveAll(filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d", prefix, os.Getpid())))
	os.Exit(code)
}

// tools are the programs without which no case can run.
var tools = []string{"ip", "nft", "tcpdump", "sipp", "baresip", "kamailio", "rtpengine", "svmap", "svwar"}

// lab begins a case: it skips where the machine cannot run it, and builds a rig.
func lab(t *testing.T) *Rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: the lab makes network namespaces and needs root")
	}
	for _, name := range tools {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
		}
	}
	t.Parallel()
	return newRig(t)
}

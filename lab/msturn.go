//go:build lab

package lab

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// nicecli compiles the agent once per run.
var nicecli = sync.OnceValues(func() (string, error) {
	flags, err := exec.Command("pkg-config", "--cflags", "--libs", "nice").Output()
	if err != nil {
		return "", fmt.Errorf("pkg-config: %w", err)
	}
	bin := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d", prefix, os.Getpid()), "nicecli")
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		return "", err
	}
	args := append([]string{"-O1", "-o", bin, "libnice/nicecli.c"}, strings.Fields(string(flags))...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc: %w: %s", err, out)
	}
	return bin, nil
})

// niceLab begins a case with libnice's agents.
func niceLab(t *testing.T) *Rig {
	t.Helper()
	onlyEdged(t, "it knows nothing of Microsoft's TURN")
	r := lab(t)
	if _, err := nicecli(); err != nil {
		t.Skipf("SKIPPED: libnice's agent cannot be built (Debian packages: lab/packages.txt): %v", err)
	}
	return r
}

// iceAgent is an agent of Communicator's kind: libnice.
type iceAgent struct {
	proc *Proc
}

// Nice starts an agent without relay.
func (h *Host) Nice(t testing.TB, name, transport string) *iceAgent {
	t.Helper()
	return h.nice(t, name, "host", transport)
}

// NiceRelayed starts an agent all of whose media goes by an MS-TURN server; transport is udp, tcp or tls (pseudo-TLS).
func (h *Host) NiceRelayed(t testing.TB, name, transport string, server netip.Addr, port uint16, user, password string) *iceAgent {
	t.Helper()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	return h.nice(t, name, "relay", transport, server.String(), fmt.Sprint(port), b64(user), b64(password))
}

func (h *Host) nice(t testing.TB, name string, args ...string) *iceAgent {
	t.Helper()
	bin, err := nicecli()
	must(t, "build nicecli", err)
	return &iceAgent{h.Start(t, name, append([]string{bin}, args...)...)}
}

// gathered waits until the agent knows all its candidates.
func (a *iceAgent) gathered(t testing.TB) *iceAgent {
	t.Helper()
	a.proc.Logged(t, 30*time.Second, "gathered")
	return a
}

// lines returns what the agent has said that begins so.
func (a *iceAgent) lines(prefix string) (found []string) {
	b, err := os.ReadFile(a.proc.Log)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, prefix) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// relayed lists the agent's candidates that are relay ports.
func (a *iceAgent) relayed() []string {
	return slices.DeleteFunc(a.lines("cand "), func(line string) bool { return !strings.HasPrefix(line, "cand 3 ") })
}

func (a *iceAgent) do(format string, args ...any) {
	fmt.Fprintf(a.proc.stdin, format+"\n", args...)
}

// meet tells each of two agents the other's candidates, and lets them check.
func meet(a, b *iceAgent) {
	for _, x := range [][2]*iceAgent{{a, b}, {b, a}} {
		for _, line := range append(x[1].lines("ufrag "), x[1].lines("cand ")...) {
			x[0].do("%s", strings.Replace(line, "ufrag ", "remote ", 1))
		}
	}
	b.do("check")
	a.do("check")
}

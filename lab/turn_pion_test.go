//go:build lab

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// pionclient compiles the client once per run.
var pionclient = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d", prefix, os.Getpid()), "pionclient")
	out, err := exec.Command("go", "-C", "pionclient", "build", "-o", bin, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// TestTURNPion: two peer connections of pion/webrtc, both on this one server, have a data channel by each transport; and none with
// a wrong password.
func TestTURNPion(t *testing.T) {
	onlyEdged(t, "the reference has no TURN")
	r := lab(t)
	bin, err := pionclient()
	if err != nil {
		t.Skipf("SKIPPED: the client cannot be built: %v", err)
	}
	v4 := r.GW.IPOn(outside, 4)
	certs := newAuthority(t, r.Dir).issue(t, "edge", []string{"turn.example.org"}, v4)
	e := r.Edge(t, EdgeConfig{TLS: certs, More: "turn:\n  listen: [\"udp://outside:3478\", \"tcp://outside:3478\", \"tls://outside:443\", \"dtls://outside:443\"]\n" +
		"  realm: example.org\n  users: {alice: secret}\n"})
	h := r.Outside("pion")
	run := func(name, url, password string) error {
		return h.Start(t, name, "env", "SSL_CERT_FILE="+certs.CA, bin, url, "alice", password).Wait(60 * time.Second)
	}
	for transport, url := range map[string]string{
		"udp":  "turn:%s:3478?transport=udp",
		"tcp":  "turn:%s:3478?transport=tcp",
		"tls":  "turns:%s:443?transport=tcp",
		"dtls": "turns:%s:443?transport=udp",
	} {
		if err := run(transport, fmt.Sprintf(url, v4), "secret"); err != nil {
			t.Errorf("%s: %v", transport, err)
		}
		if n := e.Metric("edged_turn_allocations_total", `transport="`+transport+`"`); n != 2 {
			t.Errorf("%s: %v allocations", transport, n)
		}
	}
	if err := run("wrong", fmt.Sprintf("turn:%s:3478?transport=udp", v4), "wrong"); err == nil {
		t.Error("relayed with a wrong password")
	}
}

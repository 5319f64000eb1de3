//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// turnRig is an edge that serves TURN, a client of coturn's and a peer that echoes, both outside.
type turnRig struct {
	*Rig
	edge         *Edge
	client, peer *Host
}

// turnSection serves every transport; peers are in networks for documentation, which nobody may reach by default.
const turnSection = `turn:
  listen: ["udp://outside:3478", "tcp://outside:3478", "tls://outside:5349", "dtls://outside:5349"]
  realm: example.org
  users: {alice: secret}
  quota: {per_user: 200}
  peers: {allow: [%s]}
`

func newTURNRig(t *testing.T, allow string, more string) *turnRig {
	r := lab(t)
	onlyEdged(t, "the reference has no TURN")
	for _, name := range []string{"turnutils_uclient", "turnutils_peer", "turnutils_natdiscovery"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian package coturn)", err)
		}
	}
	tr := &turnRig{Rig: r, client: r.Outside("client"), peer: r.Outside("peer")}
	must(t, "secret", os.WriteFile(r.Dir+"/turn.secret", []byte("one\n"), 0o644))
	ca := newAuthority(t, r.Dir)
	certs := ca.issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(outside, 4))
	tr.edge = r.Edge(t, EdgeConfig{TLS: certs, More: fmt.Sprintf(turnSection, allow) + more})
	p := tr.peer.Start(t, "peer", "turnutils_peer", "-L", tr.peer.IP.String(), "-L", tr.peer.IP6.String(), "-p", "3480")
	eventually(t, 10*time.Second, "the peer listens", func() bool { return tr.peer.listens(t, 3480) || !p.Alive() })
	return tr
}

// uclient runs coturn's client; it returns how many messages it sent, how many came back, and what it printed.
func (tr *turnRig) uclient(t *testing.T, name string, server, peer netip.Addr, port string, args ...string) (sent, received int, out string) {
	t.Helper()
	argv := append([]string{"turnutils_uclient", "-u", "alice", "-w", "secret", "-e", peer.String(), "-r", "3480", "-n", "20", "-m", "3", "-l", "170", "-z", "20", "-p", port}, args...)
	p := tr.client.Start(t, name, append(argv, server.String())...)
	err := p.Wait(60 * time.Second)
	b, _ := os.ReadFile(p.Log)
	out = string(b)
	m := regexp.MustCompile(`tot_send_msgs=(\d+), tot_recv_msgs=(\d+)`).FindAllStringSubmatch(out, -1)
	if err != nil || len(m) == 0 {
		return 0, 0, fmt.Sprintf("%v\n%s", err, tail(p.Log, 1500))
	}
	last := m[len(m)-1]
	sent, _ = strconv.Atoi(last[1])
	received, _ = strconv.Atoi(last[2])
	return sent, received, tail(p.Log, 1500)
}

// TestTURNClients: coturn's client by every transport, by channels and by Send indications, over both families, to UDP peers
// and by TCP relaying: nothing is lost. (-c: without RTCP's second allocation.)
func TestTURNClients(t *testing.T) {
	tr := newTURNRig(t, `198.51.100.0/24, "2001:db8::/32"`, "")
	v4, v6 := tr.GW.IPOn(outside, 4), tr.GW.IPOn(outside, 6)
	t.Run("matrix", func(t *testing.T) {
		for _, c := range []struct {
			name         string
			server, peer netip.Addr
			port         string
			args         string
		}{
			{"udp channels", v4, tr.peer.IP, "3478", "-c"},
			{"udp send", v4, tr.peer.IP, "3478", "-c -s"},
			{"udp rtp and rtcp", v4, tr.peer.IP, "3478", ""},
			{"tcp channels", v4, tr.peer.IP, "3478", "-c -t"},
			{"tcp send", v4, tr.peer.IP, "3478", "-c -t -s"},
			{"tls channels", v4, tr.peer.IP, "5349", "-c -t -S"},
			{"tls send", v4, tr.peer.IP, "5349", "-c -t -S -s"},
			{"dtls channels", v4, tr.peer.IP, "5349", "-c -S"},
			{"dtls send", v4, tr.peer.IP, "5349", "-c -S -s"},
			{"dtls over ipv6", v6, tr.peer.IP6, "5349", "-c -x -S"},
			{"tcp relay", v4, tr.peer.IP, "3478", "-T -m 1"},
			{"tcp relay over tls", v4, tr.peer.IP, "5349", "-T -S -m 1"},
			{"client to client", v4, tr.peer.IP, "3478", "-y -c"},
			{"client to client, tcp", v4, tr.peer.IP, "3478", "-y -c -t"},
			{"ipv6", v6, tr.peer.IP6, "3478", "-c -x"},
			{"ipv6 send", v6, tr.peer.IP6, "3478", "-c -x -s"},
			{"ipv4 to ipv6", v4, tr.peer.IP6, "3478", "-c -x"},
			{"ipv4 to ipv6, tcp", v4, tr.peer.IP6, "3478", "-c -x -t"},
			{"random disconnects", v4, tr.peer.IP, "3478", "-c -G"},
		} {
			t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
				t.Parallel() // coturn's client waits most of the time
				sent, received, out := tr.uclient(t, strings.ReplaceAll(c.name, " ", "-"), c.server, c.peer, c.port, strings.Fields(c.args)...)
				if sent == 0 || sent != received {
					t.Errorf("%d sent, %d received:\n%s", sent, received, out)
				}
			})
		}
	})
	if n := tr.edge.Metric("edged_turn_relayed_packets_total", `direction="to_client"`); n < 100 && !t.Failed() {
		t.Errorf("%v packets relayed to clients by the metrics", n)
	}
	if n := tr.edge.Metric("edged_turn_dropped_total", `reason="not_stun"`); n != 0 {
		t.Errorf("%v datagrams of coturn's client are no STUN", n)
	}
}

// TestTURNDenied is the control of the matrix: with the default policy the same client gets nothing to the same peer, since its
// address is not public; and nobody gets anything with a wrong password.
func TestTURNDenied(t *testing.T) {
	tr := newTURNRig(t, "", "")
	v4 := tr.GW.IPOn(outside, 4)
	if _, received, out := tr.uclient(t, "denied", v4, tr.peer.IP, "3478", "-c"); received != 0 || !strings.Contains(out, "403") {
		t.Errorf("%d received from a peer that is denied:\n%s", received, out)
	}
	if _, received, out := tr.uclient(t, "wrong", v4, tr.peer.IP, "3478", "-c", "-w", "wrong"); received != 0 || strings.Contains(out, "403") {
		t.Errorf("%d received with a wrong password:\n%s", received, out)
	}
	if tr.edge.Metric("edged_turn_permissions_denied_total", `reason="special_address"`) == 0 || tr.edge.Metric("edged_turn_auth_failures_total") == 0 {
		t.Error("not counted")
	}
}

// TestTURNSelf: "edged turn credential" and "edged turn test" on the gateway; a secret that changes counts at once.
func TestTURNSelf(t *testing.T) {
	tr := newTURNRig(t, "", "  secret_file: turn.secret\n")
	run := func(name string, args ...string) (string, error) {
		t.Helper()
		bin, err := edgedBinary()
		must(t, "build edged", err)
		p := tr.GW.Start(t, name, append([]string{bin, "turn", "--config", tr.edge.file}, args...)...)
		err = p.Wait(60 * time.Second)
		b, _ := os.ReadFile(p.Log)
		return string(b), err
	}
	out, err := run("test", "test", "--tls-name", "edge.example.org")
	if err != nil || strings.Count(out, ": ok, 12 packets") != 8 || strings.Contains(out, "warning") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = run("credential", "credential", "--user", "dave")
	m := regexp.MustCompile(`username +(\S+)\ncredential +(\S+)`).FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v: %s", err, out)
	}
	works := func(name string) bool {
		_, err := run(name, "test", "--user", m[1], "--password", m[2], "udp://"+tr.GW.IPOn(outside, 4).String()+":3478")
		return err == nil
	}
	if !works("before") {
		t.Error("the credential is refused")
	}
	must(t, "secret", os.WriteFile(tr.Dir+"/turn.secret", []byte("another\n"), 0o644))
	eventually(t, 20*time.Second, "the secret is read again", func() bool {
		b, _ := os.ReadFile(tr.edge.proc.Log)
		return strings.Contains(string(b), "files read again")
	})
	if works("after") {
		t.Error("a credential of a secret that is gone is taken")
	}
}

// TestTURNDiscovery: coturn's NAT behaviour discovery finds no NAT, and one that is there; without alternate_port it learns nothing.
func TestTURNDiscovery(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no TURN")
	if _, err := exec.LookPath("turnutils_natdiscovery"); err != nil {
		t.Skipf("SKIPPED: %v (Debian package coturn)", err)
	}
	second := netip.MustParseAddr(nets4[outside] + "2")
	r.ip("-n %s addr add %s/24 dev wan", r.GW.ns, second)
	open := r.Outside("open")
	home, _ := r.BehindNAT("home")
	config := func(port string) EdgeConfig {
		return EdgeConfig{Outside: []netip.Addr{second}, More: "turn:\n  listen: [\"udp://outside:3478\"]\n  realm: example.org\n  users: {alice: secret}\n" + port}
	}
	e := r.Edge(t, config("  alternate_port: 3479\n"))
	discover := func(h *Host, name string) string {
		t.Helper()
		p := h.Start(t, name, "turnutils_natdiscovery", "-m", "-f", "-p", "3478", r.GW.IPOn(outside, 4).String())
		if err := p.Wait(60 * time.Second); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b, _ := os.ReadFile(p.Log)
		return string(b)
	}
	var plain, behind string
	var work sync.WaitGroup
	work.Go(func() { plain = discover(open, "open") })
	work.Go(func() { behind = discover(home, "home") })
	work.Wait()
	if !strings.Contains(plain, "NAT with Endpoint Independent Mapping") && !strings.Contains(plain, "No NAT detected") || !strings.Contains(plain, "Endpoint Independent Filtering") {
		t.Errorf("a host without NAT: %s", plain)
	}
	if !strings.Contains(behind, "Address and Port Dependent Filtering") {
		t.Errorf("a host behind NAT: %s", behind)
	}
	e.proc.Stop(syscall.SIGTERM)
	must(t, "configuration", os.WriteFile(e.file, []byte(config("").yaml(r)), 0o600))
	e.Start(t)
	if out := discover(open, "off"); strings.Contains(out, "Filtering!") {
		t.Errorf("without alternate_port: %s", out)
	}
}

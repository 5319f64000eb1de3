//go:build lab

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// EdgeConfig is what a case may vary of edged's configuration.
type EdgeConfig struct {
	Listen   []string     // more of sip.listen
	Domains  string       // lines of sip.domains
	SIP      string       // more lines of the section sip
	Outside  []netip.Addr // more addresses of the network outside
	Pinholes string       // the value of pinholes, "{udp: 50000-51999}" if empty
	More     string       // more sections
	TLS      *Certificates
	Roles    []string // profiles, which say what sip.listen is
	Drain    string   // of SIGTERM, 1s if empty
	Token    string   // admin.token
	Sections string   // all sections but log, admin and state; then nothing above but Drain counts
}

// Edge is a running edged, or the reference in its place.
type Edge struct {
	rig    *Rig
	proc   *Proc
	file   string
	config EdgeConfig
	http   *http.Client
	runs   int
	isRef  bool
}

// reference tells whether the run is to prove the rig with Kamailio and rtpengine (EDGED_LAB_EDGE=reference).
func reference() bool { return os.Getenv("EDGED_LAB_EDGE") == "reference" }

// unprivileged tells whether edged is to run as nobody, without any capability (EDGED_LAB_UNPRIVILEGED=1).
func unprivileged() bool { return os.Getenv("EDGED_LAB_UNPRIVILEGED") != "" }

// Edge writes the configuration and starts edged on the gateway; it is ready when the call returns.
func (r *Rig) Edge(t testing.TB, c EdgeConfig) *Edge {
	t.Helper()
	e := &Edge{rig: r, file: filepath.Join(r.Dir, "edged.yaml")}
	if reference() {
		e.isRef, e.proc = true, r.Reference(t)
		return e
	}
	e.config = c
	must(t, "state", os.MkdirAll(filepath.Join(r.Dir, "state"), 0o700)) // as systemd's StateDirectory does
	must(t, "configuration", os.WriteFile(e.file, []byte(c.yaml(r)), 0o600))
	e.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, _, _ string) (conn net.Conn, err error) {
			err = r.GW.Do(func() error {
				conn, err = net.DialTimeout("tcp4", "127.0.0.1:9060", 3*time.Second)
				return err
			})
			return conn, err
		},
	}}
	e.Start(t)
	return e
}

// Start runs edged, again after a Kill.
func (e *Edge) Start(t testing.TB) {
	t.Helper()
	bin, err := edgedBinary()
	must(t, "build edged", err)
	e.runs++
	argv := []string{bin, "run", "--config", e.file, "--drain", or(e.config.Drain, "1s")}
	if unprivileged() {
		e.giveAway(t)
		argv = append(strings.Fields("setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs --pdeathsig KILL"), argv...)
	}
	e.proc = e.rig.GW.Start(t, fmt.Sprintf("edged-%d", e.runs), argv...)
	eventually(t, 20*time.Second, "edged is ready", func() bool {
		if !e.proc.Alive() {
			return true
		}
		code, _ := e.get("/readyz")
		return code == http.StatusOK
	})
	if !e.proc.Alive() {
		t.Fatalf("edged ended: %v\n%s", e.proc.err, tail(e.proc.Log, 3000))
	}
}

// giveAway lets the user nobody read and write what edged needs.
func (e *Edge) giveAway(t testing.TB) {
	t.Helper()
	files := []string{e.file}
	if e.config.TLS != nil {
		files = append(files, e.config.TLS.Cert, e.config.TLS.Key, e.config.TLS.CA)
	}
	state := filepath.Join(e.rig.Dir, "state")
	must(t, "state", filepath.WalkDir(state, func(path string, _ os.DirEntry, err error) error {
		files = append(files, path)
		return err
	}))
	for _, f := range files {
		must(t, "give away", os.Chown(f, 65534, 65534))
	}
	// A service would have CAP_NET_BIND_SERVICE for the ports below 1024.
	must(t, "give away", e.rig.GW.writeSysctl("net/ipv4/ip_unprivileged_port_start", "0"))
	for _, dir := range []string{e.rig.Dir, filepath.Dir(e.rig.Dir)} { // testing makes them for root alone
		must(t, "give away", os.Chmod(dir, 0o755))
	}
}

// Reload writes a changed configuration and makes edged read it.
func (e *Edge) Reload(t testing.TB, c EdgeConfig) {
	t.Helper()
	must(t, "configuration", os.WriteFile(e.file, []byte(c.yaml(e.rig)), 0o600))
	e.proc.Signal(syscall.SIGHUP)
}

// Kill ends edged at once, as a crash does.
func (e *Edge) Kill() { e.proc.Stop(syscall.SIGKILL) }

func (c EdgeConfig) yaml(r *Rig) string {
	var b strings.Builder
	gw := r.GW
	fmt.Fprintf(&b, "log: {level: debug}\nadmin: {listen: 127.0.0.1:9060, token: %q}\nstate: {dir: %s}\n", c.Token, filepath.Join(r.Dir, "state"))
	if c.Sections != "" {
		return b.String() + c.Sections
	}
	fmt.Fprintf(&b, "networks:\n  inside: {addresses: [%q, %q], subnets: [%s0/24, %q], trusted: true}\n",
		gw.IPOn(inside, 4), gw.IPOn(inside, 6), nets4[inside], nets6[inside]+"/64")
	own := []string{gw.IPOn(outside, 4).String(), gw.IPOn(outside, 6).String()}
	for _, a := range c.Outside {
		own = append(own, a.String())
	}
	fmt.Fprintf(&b, "  outside: {addresses: [%s], trusted: false}\n", `"`+strings.Join(own, `", "`)+`"`)
	if c.Pinholes == "" {
		c.Pinholes = "{udp: 50000-51999}"
	}
	fmt.Fprintf(&b, "pinholes: %s\n", c.Pinholes)
	if path := os.Getenv("EDGED_LAB_DATAPATH"); path != "" && !strings.Contains(c.More, "media:") {
		fmt.Fprintf(&b, "media: {datapath: %s}\n", path)
	}
	listen := []string{"udp://inside:5060", "tcp://inside:5060", "udp://outside:5060", "tcp://outside:5060"}
	listen = append(listen, c.Listen...)
	if c.TLS != nil {
		fmt.Fprintf(&b, "tls: {certificates: [{cert: %s, key: %s}], client_ca: %s}\n", c.TLS.Cert, c.TLS.Key, c.TLS.CA)
		listen = append(listen, "tls://inside:5061", "tls://outside:5061")
	}
	if len(c.Roles) > 0 {
		fmt.Fprintf(&b, "profiles: [%s]\nsip:\n  domains:\n%s%s%s", strings.Join(c.Roles, ", "), indent(c.Domains, "    "), indent(c.SIP, "  "), c.More)
		return b.String()
	}
	fmt.Fprintf(&b, "sip:\n  listen: [\"%s\"]\n  domains:\n%s%s%s", strings.Join(listen, `", "`), indent(c.Domains, "    "), indent(c.SIP, "  "), c.More)
	return b.String()
}

func indent(lines, by string) string {
	if lines == "" {
		return ""
	}
	return by + strings.ReplaceAll(strings.TrimRight(lines, "\n"), "\n", "\n"+by) + "\n"
}

// edgedBinary builds the daemon once per run; EDGED_LAB_BINARY names one that is built already.
var edgedBinary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("EDGED_LAB_BINARY"); bin != "" {
		return bin, nil
	}
	bin := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d", prefix, os.Getpid()), "edged")
	out, err := exec.Command("go", "build", "-o", bin, "../cmd/edged").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func (e *Edge) get(path string) (int, []byte) {
	req, err := http.NewRequest(http.MethodGet, "http://127.0.0.1:9060"+path, http.NoBody)
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Authorization", "Bearer "+e.config.Token)
	resp, err := e.http.Do(req)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<24))
	return resp.StatusCode, b
}

// Count returns the length of the list that /api/v1/NAME holds, -1 if it cannot be read.
func (e *Edge) Count(name string) int {
	code, b := e.get("/api/v1/" + name)
	var doc map[string]json.RawMessage
	if code != http.StatusOK || json.Unmarshal(b, &doc) != nil {
		return -1
	}
	var list []json.RawMessage
	if json.Unmarshal(doc[name], &list) != nil {
		return -1
	}
	return len(list)
}

// Metric returns the sum of a metric's samples whose labels contain all of the texts given.
func (e *Edge) Metric(name string, labels ...string) float64 {
	_, b := e.get("/metrics")
	sum := 0.0
lines:
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(rest, l) {
				continue lines
			}
		}
		var v float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:], &v); err == nil {
			sum += v
		}
	}
	return sum
}

// Clean fails the test unless no call and no pinhole is left within 10 s.
func (e *Edge) Clean(t testing.TB) {
	t.Helper()
	if e.isRef {
		return
	}
	if !until(10*time.Second, func() bool { return e.Count("calls") == 0 && e.Count("pinholes") == 0 }) {
		_, pinholes := e.get("/api/v1/pinholes")
		t.Errorf("left over: %d calls, %d pinholes: %s", e.Count("calls"), e.Count("pinholes"), pinholes)
	}
}

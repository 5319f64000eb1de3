//go:build lab

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tunnelRig is two sites, each behind a router that hides it and lets it dial out to few ports, and a relay between them.
// Both sites have the same private addresses, as such sites do.
//
//	site a ─ closed firewall, NAT ─┐            ┌─ closed firewall, NAT ─ site b
//	 192.0.2.2                     ├── relay ───┤                         192.0.2.2
type tunnelRig struct {
	*Rig
	bin   string
	relay *tunnelEnd
	a, b  *tunnelEnd
}

// tunnelEnd is a host where edged runs, as a relay or an agent, with a folder of its own.
type tunnelEnd struct {
	*Host
	router *Host // nil at the relay
	dir    string
	id     string // the device's
	runs   int
	proc   *Proc
}

// tunnelConfig is what a case may vary.
type tunnelConfig struct {
	Open   string // what the sites' firewalls let out: a list of nft's, e.g. "tcp dport 443"; empty: that
	Policy string // of the relay; empty: a may reach everything of b
	Relay  string // more lines of the section tunnel
	More   string // more sections of the relay
	Agents string // more lines of the section agent, at both
	A, B   string // more lines of the section agent
}

// newTunnelRig builds the networks, starts the relay, and enrols both sites through their firewalls by tokens. Their
// agents are started by Join.
func newTunnelRig(t testing.TB, r *Rig, c tunnelConfig) *tunnelRig {
	t.Helper()
	x := &tunnelRig{Rig: r}
	var err error
	x.bin, err = edgedBinary()
	must(t, "build edged", err)
	x.relay = x.end(t, r.Outside("relay"), nil)
	for name, at := range map[string]**tunnelEnd{"a": &x.a, "b": &x.b} {
		host, router := r.BehindNAT(name)
		router.closeBut(t, or(c.Open, "tcp dport 443"))
		*at = x.end(t, host, router)
	}
	x.relay.configure(t, fmt.Sprintf("networks: {outside: {addresses: [%v], trusted: false}}\ntunnel:\n"+
		"  listen: [\"https://outside:443\", \"quic://outside:443\", \"http://outside:80\"]\n  policy: %s\n%s%s",
		x.relay.IP, or(c.Policy, `[{from: a, to: b, services: ["*"]}]`), indent(c.Relay, "  "), c.More))
	x.relay.start(t, x, "run")
	x.enrol(t, x.a)
	x.enrol(t, x.b)
	x.a.section(t, x, c, x.b, c.A)
	x.b.section(t, x, c, x.a, c.B)
	return x
}

func (x *tunnelRig) end(t testing.TB, h, router *Host) *tunnelEnd {
	t.Helper()
	e := &tunnelEnd{Host: h, router: router, dir: filepath.Join(x.Dir, "tunnel-"+h.Name)}
	must(t, "folder", os.MkdirAll(filepath.Join(e.dir, "state"), 0o700))
	return e
}

// closeBut makes a router forward nothing but what its inside begins and the list allows; it counts what it drops.
func (h *Host) closeBut(t testing.TB, open string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table ip closed {}\nflush table ip closed\ntable ip closed {\n chain forward {\n  type filter hook forward priority 0; policy drop\n" +
		"  ct state established accept\n  iifname \"home\" " + open + " accept\n  counter drop\n }\n}\n")
	must(t, "firewall", h.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// shut makes a router forward nothing at all, not even what is open.
func (h *Host) shut(t testing.TB) {
	t.Helper()
	cmd := exec.Command("nft", "insert rule ip closed forward counter drop")
	must(t, "firewall", h.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// configure writes the end's configuration.
func (e *tunnelEnd) configure(t testing.TB, sections string) {
	t.Helper()
	text := fmt.Sprintf("log: {level: debug}\nadmin: {listen: 127.0.0.1:9060}\nstate: {dir: %s}\n%s", filepath.Join(e.dir, "state"), sections)
	must(t, "configuration", os.WriteFile(e.file(), []byte(text), 0o600))
}

func (e *tunnelEnd) file() string { return filepath.Join(e.dir, "edged.yaml") }

// edged runs one command in the end's namespace and returns what it prints.
func (e *tunnelEnd) edged(x *tunnelRig, args ...string) (string, error) {
	cmd := exec.Command(x.bin, append(args, "--config", e.file())...)
	var out []byte
	err := e.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("edged %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// start starts edged and waits until it is ready.
func (e *tunnelEnd) start(t testing.TB, x *tunnelRig, command string) {
	t.Helper()
	e.runs++
	e.proc = e.Start(t, fmt.Sprintf("edged-%s-%d", e.Name, e.runs), x.bin, command, "--config", e.file())
	e.proc.Logged(t, 30*time.Second, `"msg":"ready"`)
}

// kill ends edged at once.
func (e *tunnelEnd) kill() { e.proc.Stop(syscall.SIGKILL) }

// enrol has the relay make a token, and the site show it.
func (x *tunnelRig) enrol(t testing.TB, e *tunnelEnd) {
	t.Helper()
	token, err := x.relay.edged(x, "tunnel", "token", e.Name)
	must(t, "token", err)
	e.configure(t, "")
	_, err = e.edged(x, "tunnel", "enrol", "--relay", x.relay.IP.String(), token)
	must(t, "enrol", err)
	e.configure(t, "networks: {home: {addresses: [192.0.2.2]}}\nsip: {listen: [\"udp://home:5060\"]}\n") // any that is valid
	e.id, err = e.edged(x, "tunnel", "key")
	must(t, "key", err)
}

// section writes a site's section agent. Its device c is nobody's.
func (e *tunnelEnd) section(t testing.TB, x *tunnelRig, c tunnelConfig, other *tunnelEnd, more string) {
	t.Helper()
	relay, err := x.relay.edged(x, "tunnel", "key", "--relay")
	must(t, "key", err)
	e.configure(t, fmt.Sprintf("agent:\n  relays: [{address: %v, id: %s}]\n  devices: {%s: %s, c: %s}\n%s%s",
		x.relay.IP, relay, other.Name, other.id, relay, indent(c.Agents, "  "), indent(more, "  ")))
}

// Join starts both agents and waits until both are attached.
func (x *tunnelRig) Join(t testing.TB) {
	t.Helper()
	for _, e := range []*tunnelEnd{x.a, x.b} {
		e.start(t, x, "tunnel")
	}
	for _, e := range []*tunnelEnd{x.a, x.b} {
		eventually(t, 30*time.Second, e.Name+" is attached", func() bool { return e.attachedBy(x) != "" })
	}
}

// attachedBy returns the rung by which an agent is attached, "" if it is not.
func (e *tunnelEnd) attachedBy(x *tunnelRig) string {
	out, err := e.edged(x, "tunnel", "status")
	_, rest, ok := strings.Cut(out, " by ")
	if err != nil || !ok {
		return ""
	}
	rung, _, _ := strings.Cut(rest, " ")
	return rung
}

// comesBy wants the agent attached by rung. On a busy machine a lesser way may win at first; a better one is looked for after 15 s.
func (e *tunnelEnd) comesBy(t *testing.T, x *tunnelRig, rung string) {
	t.Helper()
	if !until(time.Minute, func() bool { return e.attachedBy(x) == rung }) {
		t.Errorf("%s is attached by %q, not by %q", e.Name, e.attachedBy(x), rung)
	}
}

// attached returns how many devices the relay shows.
func (e *tunnelEnd) attached(x *tunnelRig) int {
	out, err := e.edged(x, "tunnel", "status")
	if err != nil {
		return -1
	}
	return strings.Count(out, "\na ") + strings.Count(out, "\nb ")
}

// local connects to a port of the site's own loopback, where its agent listens.
func (e *tunnelEnd) local(t testing.TB, port uint16) *net.TCPConn {
	t.Helper()
	var conn net.Conn
	must(t, "dial", e.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String(), 10*time.Second)
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.TCPConn)
}

// Command idle measures what many agents cost a relay that only wait: the memory of the relay's process, and how long it
// takes until all are attached, at first and again after the relay was killed and started anew (a storm of reconnects).
// The relay is edged itself; the agents are uplinks as edged's agents have them, with a device key each, over TLS from
// addresses of loopback, in a few processes of this program: one has not descriptors enough for all.
//
//	idle ─┬─ edged run (tunnel.users_file: N devices)
//	      ├─ idle -agents: N/4 uplinks ─┐
//	      └─ ...                        ┴─► 127.0.0.1
//
// The times hold for agents and relay on the same processors: each handshake is paid for twice there. It needs no root.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

type options struct {
	n, processes, storms int
	patience, idle       time.Duration
	binary               string
}

func main() {
	o := options{}
	flag.IntVar(&o.n, "n", 10000, "agents")
	flag.IntVar(&o.processes, "processes", 4, "processes of agents")
	flag.IntVar(&o.storms, "storms", 1, "how often the relay is killed")
	flag.DurationVar(&o.patience, "patience", 10*time.Minute, "how long to wait for all")
	flag.DurationVar(&o.idle, "idle", 5*time.Minute, "how long they only wait, before the memory is read again: Go's collector comes by every two minutes then")
	flag.StringVar(&o.binary, "edged", filepath.Join("bin", "edged"), "edged `binary`")
	first := flag.Int("agents", -1, "be a process of agents, the `first` of which has this number")
	flag.Parse()
	run := func() error { return bench(o) }
	if *first >= 0 {
		run = func() error { return agents(*first, o.n) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench/tunnel/idle:", err)
		os.Exit(1)
	}
}

// group is a process of agents.
type group struct {
	cmd      *exec.Cmd
	ids      []string
	say      func(string) error
	attached atomic.Int64 // since the relay was started last
	failures atomic.Int64 // sessions that the relay did not take, attempts that it did not answer
	reasons  atomic.Pointer[string]
}

func bench(o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-idle")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var groups []*group
	defer func() {
		for _, g := range groups {
			_ = g.cmd.Process.Kill()
			_ = g.cmd.Wait()
		}
	}()
	users := &strings.Builder{}
	for i := range o.processes {
		g, err := startGroup(i*(o.n/o.processes), o.n/o.processes)
		if err != nil {
			return err
		}
		groups = append(groups, g)
		for j, id := range g.ids {
			fmt.Fprintf(users, "%s agent-%d-%d\n", id, i, j)
		}
	}
	r := &relay{binary: o.binary, dir: dir}
	if err := r.configure(users.String()); err != nil {
		return err
	}
	return r.measure(o, groups)
}

// measure has all attach, once and after each storm.
func (r *relay) measure(o options, groups []*group) error {
	defer r.kill()
	for storm := range o.storms + 1 {
		r.kill()
		for _, g := range groups {
			g.attached.Store(0)
			g.failures.Store(0)
		}
		began := time.Now()
		if err := r.start(); err != nil {
			return err
		}
		listens := time.Now()
		if storm == 0 {
			fmt.Printf("relay without agents: %d MiB\n", r.memory("VmRSS"))
			began = time.Now()
		}
		for _, g := range groups {
			if err := g.say(fmt.Sprintf("go %s %s %d %d", r.at, r.id, began.UnixNano(), listens.UnixNano())); err != nil {
				return err
			}
		}
		n, failures := wait(groups, o.n/o.processes*o.processes, o.patience)
		what := "all attached"
		if storm > 0 {
			what = "storm after the relay was killed: all attached again"
		}
		fmt.Printf("%s: %d of %d after %.1f s, %d failed attempts of a relay that runs; relay %d MiB (at most %d)\n", what, n, o.n, time.Since(began).Seconds(), failures, r.memory("VmRSS"), r.memory("VmHWM"))
		r.tell(groups)
		if n < o.n/o.processes*o.processes {
			return fmt.Errorf("%d agents are not attached", o.n-n)
		}
		<-time.After(o.idle)
		fmt.Printf("%v later: relay %d MiB\n", o.idle, r.memory("VmRSS"))
	}
	return nil
}

// tell prints why attempts have failed, as both sides see it.
func (r *relay) tell(groups []*group) {
	for _, g := range groups {
		if why := g.reasons.Load(); why != nil && *why != "" {
			fmt.Println("  failed:", *why)
		}
	}
	fmt.Println("  refused by the relay:", r.refused())
}

// wait waits until n agents are attached, and returns how many are and how many attempts have failed.
func wait(groups []*group, n int, patience time.Duration) (attached, failures int) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		attached, failures = 0, 0
		for _, g := range groups {
			attached, failures = attached+int(g.attached.Load()), failures+int(g.failures.Load())
		}
		if attached >= n {
			break
		}
	}
	return attached, failures
}

// startGroup starts a process of n agents and reads their IDs.
func startGroup(first, n int) (*group, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	g := &group{cmd: exec.Command(self, "-agents", strconv.Itoa(first), "-n", strconv.Itoa(n))}
	g.cmd.Stderr = os.Stderr
	in, err := g.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	g.say = func(s string) error { _, err := fmt.Fprintln(in, s); return err }
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for len(g.ids) < n && lines.Scan() {
		g.ids = append(g.ids, lines.Text())
	}
	if len(g.ids) < n {
		return nil, fmt.Errorf("the process of agents has made %d of %d keys", len(g.ids), n)
	}
	go func() {
		for lines.Scan() {
			var attached, failures int64
			var reasons string
			if n, _ := fmt.Sscan(lines.Text(), &attached, &failures, &reasons); n >= 2 {
				g.attached.Store(attached)
				g.failures.Store(failures)
				g.reasons.Store(&reasons)
			}
		}
	}()
	return g, nil
}

// relay is edged as a relay.
type relay struct {
	binary, dir string
	at, id      string
	admin       string // address
	cmd         *exec.Cmd
}

// configure writes the relay's files and makes its key.
func (r *relay) configure(users string) error {
	ports := [2]string{}
	for i := range ports {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer func() { _ = ln.Close() }()
		_, ports[i], err = net.SplitHostPort(ln.Addr().String())
		if err != nil {
			return err
		}
	}
	r.at, r.admin = "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[1]
	if err := os.WriteFile(filepath.Join(r.dir, "tunnel.users"), []byte(users), 0o600); err != nil {
		return err
	}
	conf := fmt.Sprintf("log: {level: error}\nadmin: {listen: \"127.0.0.1:%s\"}\nstate: {dir: %s/state}\nnetworks: {outside: {addresses: [127.0.0.1]}}\npinholes: {udp: 61000-61999, tcp: 62000-62999}\n"+
		"tunnel: {listen: [\"https://outside:%s\"], users_file: tunnel.users, policy: [{from: \"*\", to: \"*\", services: [echo]}]}\n", ports[1], r.dir, ports[0])
	if err := os.WriteFile(filepath.Join(r.dir, "edged.yaml"), []byte(conf), 0o600); err != nil {
		return err
	}
	out, err := exec.Command(r.binary, "tunnel", "key", "--relay", "--config", filepath.Join(r.dir, "edged.yaml")).Output()
	r.id = strings.TrimSpace(string(out))
	return err
}

// start starts the relay and waits for its port.
func (r *relay) start() error {
	r.cmd = exec.Command(r.binary, "run", "--config", filepath.Join(r.dir, "edged.yaml"))
	r.cmd.Stdout, r.cmd.Stderr = os.Stderr, os.Stderr
	if err := r.cmd.Start(); err != nil {
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1500 {
		if c, err := net.Dial("tcp", r.at); err == nil {
			return c.Close()
		}
		<-tick.C
	}
	return errors.New("the relay does not listen")
}

// kill ends the relay, if it runs.
func (r *relay) kill() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
}

// refused returns how many connections the relay has refused, by reason.
func (r *relay) refused() string {
	answer, err := http.Get("http://" + r.admin + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	var list []string
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		name, n, _ := strings.Cut(lines.Text(), " ")
		if _, why, ok := strings.Cut(name, "_refused_total{reason="); ok && strings.HasPrefix(name, "edged_tunnel_") && n != "0" {
			list = append(list, strings.Trim(why, "\"}")+" "+n)
		}
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// memory returns a line of the relay's status in MiB, -1 if there is none.
func (r *relay) memory(line string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		return -1
	}
	_, rest, _ := strings.Cut(string(b), line+":")
	kib := 0
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return -1
	}
	return kib >> 10
}

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// warmUp is how many calls go before those that count.
const warmUp = 100

// errNoHelper says that the kernel has none.
var errNoHelper = errors.New("this kernel has no nf_conntrack_h323")

// rig is the three namespaces.
type rig struct {
	client, gw, server string
	dir, binary        string
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// newRig makes the namespaces; dir is for the configuration.
func newRig(binary, dir string) (*rig, error) {
	id := strconv.Itoa(os.Getpid())
	r := &rig{client: "bh-cli-" + id, gw: "bh-gw-" + id, server: "bh-srv-" + id, dir: dir, binary: binary}
	for _, ns := range []string{r.client, r.gw, r.server} {
		if err := errors.Join(command("ip", "netns", "add", ns), command("ip", "-n", ns, "link", "set", "lo", "up")); err != nil {
			return nil, errors.Join(err, r.close())
		}
	}
	for _, l := range [][4]string{{r.client, "lan", clientIP, nearIP}, {r.server, "wan", serverIP, farIP}} {
		err := errors.Join(
			command("ip", "link", "add", "eth0", "netns", l[0], "type", "veth", "peer", "name", l[1], "netns", r.gw),
			command("ip", "-n", l[0], "addr", "add", l[2]+"/24", "dev", "eth0"), command("ip", "-n", l[0], "link", "set", "eth0", "up"),
			command("ip", "-n", r.gw, "addr", "add", l[3]+"/24", "dev", l[1]), command("ip", "-n", r.gw, "link", "set", l[1], "up"),
			command("ip", "-n", l[0], "route", "add", "default", "via", l[3]))
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
	}
	return r, nil
}

func (r *rig) close() error {
	var errs []error
	for _, ns := range []string{r.client, r.gw, r.server} {
		if _, err := os.Stat("/run/netns/" + ns); err == nil {
			errs = append(errs, command("ip", "netns", "del", ns))
		}
	}
	return errors.Join(errs...)
}

// edged measures the daemon on one core.
func (r *rig) edged(o options) (res result, err error) {
	file := filepath.Join(r.dir, "edged.yaml")
	conf := fmt.Sprintf(`log: {level: error}
admin: {listen: "127.0.0.1:9060"}
state: {dir: ""}
networks:
  inside:  {addresses: [%s], subnets: [192.0.2.0/24], trusted: true}
  outside: {addresses: [%s]}
pinholes: {udp: 20000-64999, tcp: 10000-19999, per_owner: 10000}
media: {datapath: user}
h323: {listen: ["tcp://inside:1720"], aliases: {server: %s}, per_source: 10000}
`, nearIP, farIP, serverIP)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return res, err
	}
	daemon := exec.Command("ip", "netns", "exec", r.gw, "taskset", "-c", "1", r.binary, "run", "--config", file, "--drain", "0s")
	daemon.Env, daemon.Stderr = append(os.Environ(), "GOMAXPROCS=1"), os.Stderr
	if err := daemon.Start(); err != nil {
		return res, err
	}
	defer func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	}()
	if err := r.listening(); err != nil {
		return res, err
	}
	if _, err := r.measure(nearIP+":1720", 0, warmUp, o.parallel); err != nil {
		return res, err
	}
	before, err := cpuTime(daemon.Process.Pid)
	if err != nil {
		return res, err
	}
	if res, err = r.measure(nearIP+":1720", warmUp, o.calls, o.parallel); err != nil {
		return res, err
	}
	after, err := cpuTime(daemon.Process.Pid)
	res.CPU = float64((after - before).Microseconds()) / float64(o.calls)
	return res, err
}

// listening waits until the gateway takes connections from the client.
func (r *rig) listening() error {
	for end := time.Now().Add(callTime); ; {
		out, err := exec.Command("ip", "netns", "exec", r.gw, "ss", "-Hltn", "sport", "=", ":1720").Output()
		if err == nil && strings.Contains(string(out), ":1720") {
			return nil
		}
		if time.Now().After(end) {
			return errors.New("edged does not listen")
		}
		<-time.After(50 * time.Millisecond)
	}
}

// cpuTime returns what a process has used (proc(5), stat).
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err, err2) // USER_HZ is 100
}

// helper measures the kernel's connection tracking helper with NAT.
func (r *rig) helper(o options) (res result, err error) {
	rules := `table ip bench {
 ct helper q931 { type "Q.931" protocol tcp; }
 chain pre { type filter hook prerouting priority -150; tcp dport 1720 ct helper set "q931"; }
 chain post { type nat hook postrouting priority 100; oifname "wan" masquerade; }
}
`
	cmd := exec.Command("ip", "netns", "exec", r.gw, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return res, fmt.Errorf("%w: %s", errNoHelper, strings.TrimSpace(string(out)))
	}
	forward := func(v string) error {
		return command("ip", "netns", "exec", r.gw, "sysctl", "-qw", "net.ipv4.ip_forward="+v)
	}
	defer func() {
		err = errors.Join(err, forward("0"), command("ip", "netns", "exec", r.gw, "nft", "delete", "table", "ip", "bench"))
	}()
	if err := forward("1"); err != nil {
		return res, err
	}
	target := net.JoinHostPort(serverIP, "1720")
	if _, err := r.measure(target, 0, warmUp, o.parallel); err != nil {
		return res, err
	}
	return r.measure(target, warmUp, o.calls, o.parallel)
}

// measure runs server and client, whose calls are numbered from first on: the kernel takes no address again that it
// still expects.
func (r *rig) measure(target string, first, calls, parallel int) (res result, err error) {
	self, err := os.Executable()
	if err != nil {
		return res, err
	}
	server := exec.Command("ip", "netns", "exec", r.server, "taskset", "-c", "0", self)
	server.Env, server.Stderr = append(os.Environ(), loadEnv+"=server"), os.Stderr
	in, err := server.StdinPipe()
	if err != nil {
		return res, err
	}
	out, err := server.StdoutPipe()
	if err != nil {
		return res, err
	}
	if err := server.Start(); err != nil {
		return res, err
	}
	lines := bufio.NewScanner(out)
	lines.Scan() // ready
	client := exec.Command("ip", "netns", "exec", r.client, "taskset", "-c", "0", self)
	client.Env, client.Stderr = append(os.Environ(), fmt.Sprintf("%s=client %s %d %d %d", loadEnv, target, first, calls, parallel)), os.Stderr
	said, err := client.Output()
	in.Close()
	lines.Scan()
	err = errors.Join(err, server.Wait())
	if err != nil {
		return res, err
	}
	var counted [2]int64
	if err := errors.Join(json.Unmarshal(said, &res), json.Unmarshal(lines.Bytes(), &counted)); err != nil {
		return res, err
	}
	res.Rewritten = int(counted[1])
	return res, nil
}

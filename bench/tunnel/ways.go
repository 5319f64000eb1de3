package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// way is one of those that are measured.
type way struct {
	name, entry string
	procs       []*exec.Cmd // whose CPU counts, with their children
}

// cpu returns the time that the processes and their children have used (proc(5)), to 10 ms.
func (w *way) cpu() (sum time.Duration, err error) {
	for _, p := range w.procs {
		pids := []string{strconv.Itoa(p.Process.Pid)}
		for len(pids) > 0 {
			pid := pids[0]
			children, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children") // none, or it has just ended
			pids = append(pids[1:], strings.Fields(string(children))...)
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil {
				return 0, err
			}
			f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
			for _, i := range []int{11, 12, 13, 14} { // utime, stime, and those of children that have ended
				ticks, err := strconv.Atoi(f[i])
				if err != nil {
					return 0, err
				}
				sum += time.Duration(ticks) * 10 * time.Millisecond
			}
		}
	}
	return sum, nil
}

// builder starts processes, and ends them.
type builder struct {
	dir          string
	binary, base string // base: the other one, or empty
	only         string // names of ways; empty: all
	sink         *sink
	procs        []*exec.Cmd
}

func (b *builder) stop() {
	for _, p := range b.procs {
		_ = p.Process.Kill() // it may have ended
		_ = p.Wait()
	}
}

func (b *builder) start(name string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(b.dir, fmt.Sprintf("log-%d", len(b.procs))))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.procs = append(b.procs, cmd)
	return cmd, nil
}

// inMux is a limit that nothing here reaches: where bandwidth is limited, streams stay in the session.
const inMux = "  limits: {bandwidth: 1000000000000}\n"

// ways starts all.
func (b *builder) ways() ([]*way, error) {
	var out []*way
	for _, one := range []struct {
		name string
		make func() (*way, error)
	}{
		{"tcp", func() (*way, error) { return &way{name: "tcp", entry: b.sink.Addr().String()}, nil }},
		{"bulk", func() (*way, error) { return b.edged("bulk", b.binary, "") }},
		{"in-mux", func() (*way, error) { return b.edged("in-mux", b.binary, inMux) }},
		{"bulk-base", func() (*way, error) { return b.edged("bulk-base", b.base, "") }},
		{"in-mux-base", func() (*way, error) { return b.edged("in-mux-base", b.base, inMux) }},
		{"stunnel", b.stunnel},
		{"haproxy", b.haproxy},
		{"ssh", b.ssh},
	} {
		if strings.HasSuffix(one.name, "-base") && b.base == "" {
			continue
		}
		if b.only != "" && !slices.Contains(strings.Split(b.only, ","), one.name) {
			continue
		}
		w, err := one.make()
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintln(os.Stderr, "left out:", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := until(w.entry, passes); err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		out = append(out, w)
	}
	return out, nil
}

// ready waits until something listens.
func ready(at string) error { return until(at, func(net.Conn) error { return nil }) }

// passes tells whether a connection is led to the sink: an agent resets those that come before it has reached its relay.
func passes(c net.Conn) error {
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// until dials until a connection is as wanted.
func until(at string, wanted func(net.Conn) error) error {
	end, tick := time.After(30*time.Second), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("tcp", at)
		if err == nil {
			err = errors.Join(wanted(c), c.Close())
		}
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-end:
			return err
		}
	}
}

// port returns one that is free.
func port() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "0"
	}
	defer ln.Close()
	_, p, _ := net.SplitHostPort(ln.Addr().String())
	return p
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// userHZ is the unit of CPU times in /proc/PID/stat, fixed by the kernel's ABI.
const userHZ = 100

// group is a started program with all processes that it forks: they share a process group.
type group struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	log  *os.File
}

// start runs a command in a process group of its own; its output goes to a file of the rig.
func (r *rig) start(name string, cmd *exec.Cmd) (*group, error) {
	f, err := os.OpenFile(filepath.Join(r.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), f.Close())
	}
	g := &group{name: name, cmd: cmd, done: make(chan struct{}), log: f}
	go func() {
		_ = cmd.Wait() // how it ended shows in exited
		close(g.done)
	}()
	return g, nil
}

// stop ends the whole group and waits for its leader. It may be called again.
func (g *group) stop() {
	signal := func(s syscall.Signal) { _ = syscall.Kill(-g.cmd.Process.Pid, s) } // it may have ended before
	signal(syscall.SIGTERM)
	limit := time.NewTimer(5 * time.Second)
	defer limit.Stop()
	select {
	case <-g.done:
	case <-limit.C:
	}
	signal(syscall.SIGKILL)
	<-g.done
	_ = g.log.Close() // closed already, if this is the second time
}

// exited returns an error with the end of the log if the leader has ended.
func (g *group) exited() error {
	select {
	case <-g.done:
		text, _ := os.ReadFile(g.log.Name()) // without a log, the name must do
		return fmt.Errorf("%s ended: %s", g.name, tail(string(text), 600))
	default:
		return nil
	}
}

func tail(s string, n int) string { return strings.TrimSpace(s[max(0, len(s)-n):]) }

// usage is what a group has used so far and holds now.
type usage struct {
	cpu time.Duration
	// memory is the proportional set size in bytes: shared pages are counted once.
	memory int64
	// files is the number of open descriptors.
	files int
}

// usage adds up all processes of the group.
func (g *group) usage() (usage, error) {
	var sum usage
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return sum, fmt.Errorf("processes: %w", err)
	}
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		// The name in parentheses may hold anything; the fields after it do not.
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(f) < 13 || f[2] != strconv.Itoa(g.cmd.Process.Pid) {
			continue
		}
		user, err1 := strconv.ParseInt(f[11], 10, 64)
		system, err2 := strconv.ParseInt(f[12], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return sum, fmt.Errorf("%s: %w", file, err)
		}
		sum.cpu += time.Duration(user+system) * time.Second / userHZ
		sum.memory += pss(filepath.Dir(file))
		fds, _ := os.ReadDir(filepath.Join(filepath.Dir(file), "fd")) // gone if it ended
		sum.files += len(fds)
	}
	return sum, nil
}

// pss reads the proportional set size in bytes of the process at /proc/PID.
func pss(dir string) int64 {
	text, _ := os.ReadFile(filepath.Join(dir, "smaps_rollup")) // gone if it ended
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb * 1024
		}
	}
	return 0
}

// pause waits for d unless ctx ends before.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

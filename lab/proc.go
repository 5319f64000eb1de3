//go:build lab

package lab

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Proc is a process inside a host's namespace. Its output goes to DIR/NAME.log.
type Proc struct {
	Name  string
	Log   string
	cmd   *exec.Cmd
	done  chan struct{} // closed when the process has ended
	err   error         // valid after done
	stdin io.WriteCloser
}

// Start runs a program in the host's namespace. When the test ends it is stopped, and if the
// test failed the end of its log is shown.
func (h *Host) Start(t testing.TB, name string, argv ...string) *Proc {
	t.Helper()
	return h.start(t, name, nil, argv...)
}

// start is Start of a program that gets files as its descriptors 3, 4, ...
func (h *Host) start(t testing.TB, name string, files []*os.File, argv ...string) *Proc {
	t.Helper()
	argv = append(slices.Clone(h.by), argv...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.ExtraFiles = h.dir, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return h.launch(t, name, cmd)
}

// launch starts a command in the host's namespace.
func (h *Host) launch(t testing.TB, name string, cmd *exec.Cmd) *Proc {
	t.Helper()
	p := &Proc{Name: name, Log: filepath.Join(h.dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, name, err)
	defer func() { _ = out.Close() }()
	fmt.Fprintf(out, "# ip netns exec %s %s\n", h.ns, strings.Join(cmd.Args, " "))
	cmd.Stdout, cmd.Stderr = out, out
	p.stdin, err = cmd.StdinPipe()
	must(t, name, err)
	must(t, name, h.Do(cmd.Start))
	go p.wait()
	t.Cleanup(func() {
		p.Stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("%s:\n%s", name, tail(p.Log, 4000))
		}
	})
	return p
}

func (p *Proc) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// Signal sends sig to the process alone.
func (p *Proc) Signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// Stop sends sig to the process, and SIGKILL to what is left of its group after 5 s.
func (p *Proc) Stop(sig syscall.Signal) {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Wait returns how the process ended; if it has not within d it is stopped.
func (p *Proc) Wait(d time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(d):
		p.Stop(syscall.SIGTERM)
		return fmt.Errorf("%s still ran after %v", p.Name, d)
	}
}

// Alive tells whether the process runs.
func (p *Proc) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Logged waits until the process has printed text.
func (p *Proc) Logged(t testing.TB, d time.Duration, text string) {
	t.Helper()
	eventually(t, d, p.Name+" prints "+text, func() bool {
		b, err := os.ReadFile(p.Log)
		return err == nil && bytes.Contains(b, []byte(text)) || !p.Alive()
	})
	if !p.Alive() {
		t.Fatalf("%s ended: %v", p.Name, p.err)
	}
}

// tail returns the last n bytes of a log, without the running line that baresip draws during a call.
func tail(name string, n int) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	b = regexp.MustCompile(`\[\d+:\d+:\d+\] +audio=[^)]*\) *\r?`).ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), nil)
	return string(b[max(0, len(b)-n):])
}

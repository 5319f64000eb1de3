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

	"edged.dev/edged/bench/veth"
)

// way is one of those that are measured.
type way struct {
	name, entry string      // a TCP port of the near place
	datagrams   string      // a UDP port there, if it carries them
	procs       []*exec.Cmd // whose CPU counts, with their children
}

// place is where one end of the ways is.
type place struct {
	ns string // the namespace; "": this one
	ip string // where others listen for the other place
}

// within runs f there; sockets that it makes stay there.
func (p place) within(f func() error) error {
	if p.ns == "" {
		return f()
	}
	return veth.Within(p.ns, f)
}

// command is exec.Command there.
func (p place) command(name string, args ...string) *exec.Cmd {
	if p.ns == "" {
		return exec.Command(name, args...)
	}
	return exec.Command("ip", append([]string{"netns", "exec", p.ns, name}, args...)...)
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
	dir, binary string
	base        string // another binary, or empty
	only        string // names of ways; empty: all
	sink        *sink
	near, far   place
	echo        string // where far answers datagrams; "": nobody does
	procs       []*exec.Cmd
}

func newBuilder(o options, near, far place) (b *builder, err error) {
	b = &builder{base: o.base, only: o.only, near: near, far: far}
	if b.binary, err = filepath.Abs(o.binary); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "bench-tunnel"); err != nil {
		return nil, err
	}
	if b.sink, err = newSink(far); err != nil {
		return nil, errors.Join(err, b.stop())
	}
	return b, nil
}

func (b *builder) stop() error {
	for _, p := range b.procs {
		_ = p.Process.Kill() // it may have ended
		_ = p.Wait()
	}
	return os.RemoveAll(b.dir)
}

func (b *builder) start(at place, name string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(b.dir, fmt.Sprintf("log-%d", len(b.procs))))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := at.command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.procs = append(b.procs, cmd)
	return cmd, nil
}

// wayMaker makes one of the ways.
type wayMaker struct {
	name string
	make func() (*way, error)
}

// inMux is a limit that nothing here reaches: where bandwidth is limited, streams stay in the session.
const inMux = "  limits: {bandwidth: 1000000000000}\n"

// ways starts those that are wanted.
func (b *builder) ways(makers []wayMaker) ([]*way, error) {
	var out []*way
	for _, one := range makers {
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
		if err := b.near.until(w.entry, passes); err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		out = append(out, w)
	}
	return out, nil
}

func (b *builder) plain() (*way, error) {
	return &way{name: "tcp", entry: b.sink.Addr().String(), datagrams: b.echo}, nil
}

// ready waits until something listens.
func (p place) ready(at string) error { return p.until(at, func(net.Conn) error { return nil }) }

// passes tells whether a connection is led to the sink: an agent resets those that come before it has reached its relay.
func passes(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	return err
}

// until dials until a connection is as wanted.
func (p place) until(at string, wanted func(net.Conn) error) error {
	end, tick := time.After(30*time.Second), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		c, err := p.dial(at)
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

// dial connects from there.
func (p place) dial(to string) (c net.Conn, err error) {
	err = p.within(func() error {
		c, err = net.Dial("tcp", to)
		return err
	})
	return c, err
}

// port returns one of the place's loopback that is free.
func (p place) port() string {
	free := "0"
	_ = p.within(func() error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			_, free, err = net.SplitHostPort(ln.Addr().String())
			ln.Close()
		}
		return err
	})
	return free
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/userpath"
	"edged.dev/edged/pkg/pinhole"
)

// serveRelay is the relay under test, without signalling. It opens and declares leases, prints their
// near ports as one line of JSON, and then prints the number of allocations so far for each line
// that it reads; at the end of its input it ends.
func serveRelay(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	path, err := userpath.New(0)
	if err != nil {
		return err
	}
	nets := pinhole.Networks{
		"in":  {Addresses: []netip.Addr{netip.MustParseAddr(gwInAddr)}, Trusted: true},
		"out": {Addresses: []netip.Addr{netip.MustParseAddr(gwOutAddr)}},
	}
	pin := media.DefaultPinholeConfig()
	pin.PerOwner, pin.UDP = 65536, media.PortRange{First: 20000, Last: 59999}
	r, err := media.New(pin, media.DefaultConfig(), nets, path, zap.NewNop())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	ports, err := openLeases(ctx, r, n)
	if err != nil {
		cancel()
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(ports); err != nil {
		cancel()
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println(m.Mallocs)
	}
	cancel()
	return <-done
}

func openLeases(ctx context.Context, r *media.Relay, n int) ([]uint16, error) {
	var ports []uint16
	for i := range n {
		l, err := r.Open(ctx, pinhole.Request{Owner: "bench", Networks: [2]string{"in", "out"}})
		if err != nil {
			return nil, err
		}
		for s, host := range []string{genAddr, sinkAddr} {
			a := netip.AddrPortFrom(netip.MustParseAddr(host), uint16(firstPort+2*i))
			if err := l.Declare(pinhole.Side(s), pinhole.Remote{Addr: a, Source: a.Addr()}); err != nil {
				return nil, err
			}
		}
		ports = append(ports, l.Local(pinhole.Near).Addr.Port())
	}
	return ports, nil
}

// relayProcess is the program above, running in the gateway.
type relayProcess struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	where []uint16
}

// command runs a program in the gateway on its core.
func (r *rig) command(name string, args ...string) *exec.Cmd {
	all := append([]string{"netns", "exec", r.gw, "nice", "-n", strconv.Itoa(nice), "taskset", "-c", strconv.Itoa(gwCPU), name}, args...)
	return exec.Command("ip", all...)
}

func (r *rig) startRelay(streams int) (gateway, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &relayProcess{cmd: r.command(self, "relay", strconv.Itoa(streams))}
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := p.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.where)
	}
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("relay did not start: %w", err)
	}
	return p, nil
}

func (p *relayProcess) ports() []uint16 { return p.where }

// pid is that of the relay itself: ip, nice and taskset have replaced themselves by it.
func (p *relayProcess) pid() int { return p.cmd.Process.Pid }

func (p *relayProcess) mallocs() (uint64, bool) {
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		return 0, false
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(line[:len(line)-1], 10, 64)
	return n, err == nil
}

func (p *relayProcess) stop() {
	p.in.Close()
	// Its exit code says nothing that the trial has not said.
	_ = p.cmd.Wait()
}

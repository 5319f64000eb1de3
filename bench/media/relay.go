package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
	"edged.dev/edged/pkg/media/userpath"
	"edged.dev/edged/pkg/pinhole"
)

// opened is the first line of the relay process: the ports of its leases, or why there are none.
type opened struct {
	Near, Far []uint16
	// Unavailable says why this machine does not have the path.
	Unavailable string
}

// state is its answer to every line that it reads.
type state struct {
	Mallocs uint64
	// Heard is how many leases know both peers; Carried counts the near ends by their path, Why is why one
	// of them has nothing faster.
	Heard   int
	Carried map[string]int
	Why     string
}

// serveRelay is the relay under test, without signalling: its arguments are the path (user, tc, xdp), the
// number of streams and their kind (rtp, or who sends by TURN: client, peer). It ends at the end of its input.
func serveRelay(args []string) error {
	if len(args) != 3 {
		return errors.New("relay: want PATH STREAMS KIND")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	out := json.NewEncoder(os.Stdout)
	r, err := newRelay(args[0])
	if err != nil {
		return out.Encode(opened{Unavailable: err.Error()})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	var first opened
	if args[2] == kindRTP {
		first, err = openLeases(ctx, r, n)
	} else {
		first, err = openChannels(ctx, r, n, args[2] == kindPeer)
	}
	if err == nil {
		err = out.Encode(first)
	}
	for in := bufio.NewScanner(os.Stdin); err == nil && in.Scan(); {
		err = out.Encode(stateOf(r, in.Text() == "all"))
	}
	cancel()
	return errors.Join(err, <-done)
}

func newRelay(datapath string) (*media.Relay, error) {
	cfg := media.DefaultConfig()
	cfg.Datapath = datapath
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	nets := pinhole.Networks{
		"in":  {Addresses: []netip.Addr{netip.MustParseAddr(gwInAddr)}, Trusted: true},
		"out": {Addresses: []netip.Addr{netip.MustParseAddr(gwOutAddr)}},
	}
	user, err := userpath.New(0)
	if err != nil {
		return nil, err
	}
	var path media.Path = user
	if datapath != media.DatapathUser {
		if path, err = fastpath.New(user, fastpath.Config{Networks: nets, DSCP: cfg.DSCP, XDP: datapath == media.DatapathXDP}, zap.NewNop()); err != nil {
			return nil, err
		}
	}
	pin := media.DefaultPinholeConfig()
	pin.PerOwner, pin.UDP = 65536, media.PortRange{First: 20000, Last: 59999}
	return media.New(pin, cfg, nets, path, zap.NewNop())
}

func openLeases(ctx context.Context, r *media.Relay, n int) (opened, error) {
	var o opened
	for i := range n {
		l, err := r.Open(ctx, pinhole.Request{Owner: "bench", Networks: [2]string{"in", "out"}})
		if err != nil {
			return o, err
		}
		for s, host := range []string{genAddr, sinkAddr} {
			a := netip.AddrPortFrom(netip.MustParseAddr(host), peerPort(i))
			if err := l.Declare(pinhole.Side(s), pinhole.Remote{Addr: a, Source: a.Addr()}); err != nil {
				return o, err
			}
		}
		o.Near = append(o.Near, l.Local(pinhole.Near).Addr.Port())
		o.Far = append(o.Far, l.Local(pinhole.Far).Addr.Port())
	}
	return o, nil
}

func stateOf(r *media.Relay, all bool) state {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s := state{Mallocs: m.Mallocs, Carried: make(map[string]int)}
	if !all {
		return s
	}
	for _, i := range r.Pinholes() {
		if i.Kind == "port" || i.Ends[pinhole.Near].Latched.IsValid() && i.Ends[pinhole.Far].Latched.IsValid() {
			s.Heard++
		}
		s.Carried[i.Ends[pinhole.Near].Path]++
		if i.Ends[pinhole.Near].Why != "" {
			s.Why = i.Ends[pinhole.Near].Why
		}
	}
	return s
}

// relayProcess is the program above, running in the gateway.
type relayProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// errUnavailable says that this machine, or this edged, has no such path.
var errUnavailable = errors.New("not available")

func relayIn(datapath string) func(r *rig, k caseKey) (*gateway, error) {
	return func(r *rig, k caseKey) (*gateway, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		p := &relayProcess{cmd: r.command(self, "relay", datapath, strconv.Itoa(k.streams), k.kind)}
		p.cmd.Stderr = os.Stderr
		if p.in, err = p.cmd.StdinPipe(); err != nil {
			return nil, err
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		p.out = json.NewDecoder(out)
		if err := p.cmd.Start(); err != nil {
			return nil, err
		}
		g, err := p.open(datapath, k.streams)
		if err != nil {
			p.stop()
			return nil, fmt.Errorf("relay: %w", err)
		}
		return g, nil
	}
}

func (p *relayProcess) open(datapath string, streams int) (*gateway, error) {
	var o opened
	if err := p.out.Decode(&o); err != nil {
		return nil, err
	}
	if o.Unavailable != "" {
		return nil, fmt.Errorf("%w: %s", errUnavailable, o.Unavailable)
	}
	return &gateway{
		addr: netip.MustParseAddr(gwInAddr), ports: o.Near, far: o.Far,
		// ip, chrt and taskset have replaced themselves by the relay.
		pid: p.cmd.Process.Pid,
		mallocs: func() (uint64, error) {
			s, err := p.ask("mallocs")
			return s.Mallocs, err
		},
		ready: func() (bool, string, error) {
			s, err := p.ask("all")
			why := fmt.Sprintf("%d of %d streams heard, carried by %v %s", s.Heard, streams, s.Carried, s.Why)
			return s.Heard == streams && s.Carried[datapath] == streams, why, err
		},
		stop: p.stop,
	}, nil
}

func (p *relayProcess) ask(what string) (s state, err error) {
	if _, err := io.WriteString(p.in, what+"\n"); err != nil {
		return s, fmt.Errorf("relay: %w", err)
	}
	if err := p.out.Decode(&s); err != nil {
		return s, fmt.Errorf("relay: %w", err)
	}
	return s, nil
}

func (p *relayProcess) stop() {
	p.in.Close()
	// Its exit code says nothing that the trial has not said.
	_ = p.cmd.Wait()
}

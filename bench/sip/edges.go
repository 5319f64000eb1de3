package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

//go:embed testbed/kamailio.cfg
var kamailioConfig string

//go:embed testbed/edged.yaml
var edgedConfig string

// contender is a product that does the edge's job.
type contender struct {
	name string
	// start returns its running process groups.
	start func(ctx context.Context, r *rig) ([]*group, error)
}

// edge is a running contender with the callee behind it.
type edge struct {
	contender
	groups []*group
	callee *group
}

// launch starts the callee and a contender and waits until a call passes.
func (r *rig) launch(ctx context.Context, c contender) (*edge, error) {
	e := &edge{contender: c}
	if err := e.begin(ctx, r); err != nil {
		return nil, err
	}
	return e, nil
}

// begin starts what the edge consists of, or stops it all.
func (e *edge) begin(ctx context.Context, r *rig) error {
	callee, err := r.callee(ctx)
	if err != nil {
		return err
	}
	e.callee = callee
	e.groups, err = e.start(ctx, r)
	if err == nil {
		err = r.ready(ctx, e)
	}
	if err != nil {
		e.stop()
		return fmt.Errorf("%s: %w", e.name, err)
	}
	return nil
}

// again stops all and starts it anew, so that an overload leaves nothing behind.
func (e *edge) again(ctx context.Context, r *rig) error {
	e.stop()
	return e.begin(ctx, r)
}

// ready tries single calls until one passes.
func (r *rig) ready(ctx context.Context, e *edge) error {
	p, err := newProbe(r)
	if err != nil {
		return err
	}
	defer p.close()
	for range 40 {
		if _, err = p.call(250 * time.Millisecond); err == nil {
			return nil
		}
		for _, g := range e.groups {
			if err := g.exited(); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(fmt.Errorf("no call passed within 10 s: %w", err), ctx.Err())
}

func (e *edge) stop() {
	e.callee.stop()
	for _, g := range e.groups {
		g.stop()
	}
}

// usage adds up all processes of the contender.
func (e *edge) usage() (usage, error) {
	var sum usage
	if err := e.callee.exited(); err != nil {
		return sum, err
	}
	for _, g := range e.groups {
		if err := g.exited(); err != nil {
			return sum, err
		}
		u, err := g.usage()
		if err != nil {
			return sum, err
		}
		sum.cpu, sum.memory, sum.files = sum.cpu+u.cpu, sum.memory+u.memory, sum.files+u.files
	}
	return sum, nil
}

// fill replaces the names of the rig's addresses in a configuration and writes it to a file.
func (r *rig) fill(name, text string) (string, error) {
	text = strings.NewReplacer("INSIDE", insideIP, "OUTSIDE", outsideIP, "CALLER", callerIP, "CALLEE", calleeIP).Replace(text)
	file := filepath.Join(r.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("configuration: %w", err)
	}
	return file, nil
}

func startKamailio(ctx context.Context, r *rig) ([]*group, error) {
	media, err := r.start("rtpengine", r.command(ctx, r.gateway, r.edgeCPU, "rtpengine", "--foreground", "--log-stderr",
		"--log-level=3", "--table=-1", "--interface=inside/"+insideIP, "--interface=outside/"+outsideIP,
		"--listen-ng=127.0.0.1:2223", "--port-min=20000", "--port-max=59999",
		// By default the ports of an ended call stay open for 30 s: at 200 calls/s more than 20,000 sockets.
		"--delete-delay=0"))
	if err != nil {
		return nil, err
	}
	file, err := r.fill("kamailio.cfg", kamailioConfig)
	if err != nil {
		return []*group{media}, err
	}
	sip, err := r.start("kamailio", r.command(ctx, r.gateway, r.edgeCPU, "kamailio", "-f", file, "-DD", "-E", "-Y", r.dir,
		"-m", "1024", "-M", "16")) // MiB; with the default of 64 it answers 500 above some 500 calls/s
	if err != nil {
		return []*group{media}, err
	}
	return []*group{sip, media}, nil
}

// startEdged returns the start function for a binary.
func startEdged(binary string) func(context.Context, *rig) ([]*group, error) {
	return func(ctx context.Context, r *rig) ([]*group, error) {
		file, err := r.fill("edged.yaml", edgedConfig)
		if err != nil {
			return nil, err
		}
		g, err := r.start("edged", r.command(ctx, r.gateway, r.edgeCPU, binary, "run", "--config", file))
		if err != nil {
			return nil, err
		}
		return []*group{g}, nil
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"edged.dev/edged/internal/demophone/scenario"
)

// demoOptions are the flags of `edged demo`.
type demoOptions struct {
	seconds    int
	keep       bool
	showConfig bool
	verbose    bool
}

func newDemoCmd() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show real calls through an edge on this machine; needs no root and no packages",
		Long: "Demo starts the daemon on loopback addresses between two networks that hear nobody but\n" +
			"their own hosts and the edge. Built-in phones register, call each other in both\n" +
			"directions, and verify every frame of audio. Exit code 0: all checks passed.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.seconds < 1 || o.seconds > 3600 {
				return fmt.Errorf("--seconds %d is not in 1-3600", o.seconds)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return runDemo(ctx, cmd.OutOrStdout(), o)
		},
	}
	cmd.Flags().IntVar(&o.seconds, "seconds", 4, "talking time of each of the three acts")
	cmd.Flags().BoolVar(&o.keep, "keep", false, "afterwards keep the edge and a call running until interrupted")
	cmd.Flags().BoolVar(&o.showConfig, "show-config", false, "print the edge's configuration and exit")
	cmd.Flags().BoolVar(&o.verbose, "verbose", false, "print the daemon's log")
	return cmd
}

// runDemo plays the scenario with the daemon in this process.
func runDemo(ctx context.Context, w io.Writer, o demoOptions) error {
	plan, err := scenario.NewPlan()
	if err != nil {
		return err
	}
	if o.showConfig {
		_, err := io.WriteString(w, demoConfig(plan))
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	screen := newDemoScreen(w)
	level := zap.NewAtomicLevelAt(zap.WarnLevel)
	if o.verbose {
		level.SetLevel(zap.DebugLevel)
	}
	log := newLogger(screen, "text", level)
	stage, err := scenario.New(plan, log.Named("demo"), screen.line)
	if err != nil {
		return err
	}
	ended := make(chan error, 2) // one result each of the stage and the daemon
	running.Go(func() { ended <- stage.Serve(ctx) })
	edge, err := startDemoEdge(ctx, &running, ended, plan, log, level)
	if err != nil {
		return err
	}
	d := &demo{plan: plan, stage: stage, edge: edge, screen: screen, options: o}
	return d.play(ctx, ended)
}

// startDemoEdge runs the daemon as `edged run` would and returns once it takes calls.
func startDemoEdge(ctx context.Context, running *sync.WaitGroup, ended chan<- error, plan scenario.Plan, log *zap.Logger, level zap.AtomicLevel) (*apiClient, error) {
	cfg, err := parseConfig("demo.yaml", []byte(demoConfig(plan)))
	if err != nil {
		return nil, fmt.Errorf("the demo's own configuration: %w", err)
	}
	ready, failed := make(chan struct{}), make(chan error, 1)
	running.Go(func() {
		err := runDaemon(ctx, runOptions{config: cfg, log: log, level: level, ready: func(net.Addr) { close(ready) }})
		failed <- err
		ended <- err
	})
	select {
	case <-ready:
		return dialAdmin(cfg.Admin), nil
	case err := <-failed:
		return nil, fmt.Errorf("the edge did not start: %w", errors.Join(err, ctx.Err()))
	}
}

// demoConfig returns the edge's configuration, as a user would write it.
func demoConfig(p scenario.Plan) string {
	return fmt.Sprintf(`# The edge of "edged demo": two networks on loopback addresses.
admin:    {listen: "%[8]s"}
state:    {dir: ""}                    # a demo has nothing to remember
networks:
  inside:  {addresses: [%[1]s], subnets: [%[2]s], trusted: true}
  outside: {addresses: [%[3]s], subnets: [%[4]s], trusted: false}
sip:
  listen: ["udp://inside:%[5]d", "udp://outside:%[5]d"]
  domains:
    %[6]s: {network: outside, server: "udp:%[7]s"}
`, p.EdgeInside.Addr(), p.Inside, p.EdgeOutside.Addr(), p.Outside, p.EdgeInside.Port(), scenario.Domain, p.Registrar, p.Admin) + demoH323Config(p)
}

// demo is one run.
type demo struct {
	plan    scenario.Plan
	stage   *scenario.Stage
	edge    *apiClient
	screen  *demoScreen
	options demoOptions

	mu sync.Mutex
	// now and peak are what the edge said of itself last, and at most.
	now, peak edgeCounts
}

// play runs the acts and prints the verdict. ended brings the end of a part that should go on.
func (d *demo) play(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		select {
		case err := <-ended:
			cancel(fmt.Errorf("the edge or the phones ended: %w", err))
		case <-ctx.Done():
		}
	})
	d.screen.line(d.introduction())
	checks := d.watched(ctx, d.acts)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err := d.verdict(checks)
	if d.options.keep {
		d.screen.line("The edge stays, with a call from alice to bob, until you press Ctrl-C.\n")
		d.watched(ctx, d.linger)
	}
	return err
}

// watched does something while the table is shown.
func (d *demo) watched(ctx context.Context, f func(context.Context) []scenario.Check) []scenario.Check {
	show, cancel := context.WithCancel(ctx)
	var drawing sync.WaitGroup
	drawing.Go(func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-show.Done():
				return
			case <-tick.C:
			}
			now, err := d.look(show)
			if err == nil {
				d.screen.table(d.stage.Rows(), now)
			}
		}
	})
	checks := f(ctx)
	cancel()
	drawing.Wait()
	return checks
}

// acts tells the story.
func (d *demo) acts(ctx context.Context) []scenario.Check {
	talk := time.Duration(d.options.seconds) * time.Second
	checks := d.stage.Prove(ctx)
	checks = append(checks, d.stage.Register(ctx)...)
	for _, act := range [][][2]string{
		{{"alice", "bob"}},
		{{"bob", "carol"}},
		{{"alice", "bob"}, {"bob", "alice"}, {"carol", "bob"}},
	} {
		checks = append(checks, d.stage.Talk(ctx, talk, act...)...)
	}
	checks = append(checks, d.h323(ctx)...)
	checks = append(checks, d.stage.Privacy()...)
	return append(checks, d.leftovers(ctx))
}

func (d *demo) introduction() string {
	p := d.plan
	return fmt.Sprintf(`edged demo: real calls through an edge, all on this machine

  inside %-18v                                    outside %v
  alice  %-15v ──┐                                  ┌── registrar %v
  carol  %-15v ──┴── %11v EDGE %-11v ──┴── bob       %v

Each phone hears only the edge and the hosts of its own network.

`, p.Inside, p.Outside, p.Alice.Addr(), p.Registrar.Addr(), p.Carol.Addr(), p.EdgeInside.Addr(), p.EdgeOutside.Addr(), p.Bob.Addr())
}

// verdict prints the checks and the figures.
func (d *demo) verdict(checks []scenario.Check) error {
	d.mu.Lock()
	now := d.now
	d.mu.Unlock()
	d.screen.table(d.stage.Rows(), now)
	d.screen.freeze()
	bad := 0
	var b strings.Builder
	b.WriteString("\nVerdict\n")
	for _, c := range checks {
		word := "PASS"
		if !c.OK {
			word, bad = "FAIL", bad+1
		}
		fmt.Fprintf(&b, "  %s  %s: %s\n", word, c.Name, c.Detail)
	}
	b.WriteString(d.figures())
	fmt.Fprintf(&b, "\n%d checks passed, %d failed\n", len(checks)-bad, bad)
	b.WriteString(d.further())
	d.screen.line(b.String())
	if bad > 0 {
		return fmt.Errorf("demo: %d of %d checks failed", bad, len(checks))
	}
	return nil
}

func (d *demo) figures() string {
	t := d.stage.Timing()
	us := func(v time.Duration) time.Duration { return v.Round(10 * time.Microsecond) }
	return fmt.Sprintf(`Delay (a busy machine adds its own; these figures judge nothing)
  audio, phone to phone: median %v, p99 %v in the worst call; without an edge %v, %v
  INVITE through the edge: median %v, longest %v of %d
`, us(t.AudioP50), us(t.AudioP99), us(t.DirectP50), us(t.DirectP99), us(t.SignallingP50), us(t.SignallingMax), t.N)
}

// further says where to look next.
func (d *demo) further() string {
	at := strings.TrimPrefix(d.edge.base, "http://")
	self := os.Args[0]
	return fmt.Sprintf(`
Look further
  %[1]s demo --show-config            the edge's whole configuration
  %[1]s demo --keep                   leaves a call running; then, in another terminal:
    %[1]s calls --admin %[2]s --watch
    %[1]s status --admin %[2]s
    curl http://%[2]s/metrics
    sudo tcpdump -nAi lo udp port %[3]d   both sides of every message
`, self, at, d.plan.EdgeInside.Port())
}

// linger keeps a call between alice and bob until ctx ends.
func (d *demo) linger(ctx context.Context) (checks []scenario.Check) {
	var refreshing sync.WaitGroup
	defer refreshing.Wait()
	refreshing.Go(func() {
		if err := d.stage.KeepRegistered(ctx); err != nil {
			d.screen.line("a registration ended: " + err.Error())
		}
	})
	again := time.NewTicker(time.Second) // so that a call that cannot be made is not tried without a pause
	defer again.Stop()
	for ctx.Err() == nil {
		checks = d.stage.Talk(ctx, 10*time.Minute, [2]string{"alice", "bob"})
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
	return checks
}

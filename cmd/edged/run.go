package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"edged.dev/edged/internal/denylist"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/trace"
)

func newRunCmd() *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: "Run starts the services that the configuration names and logs to stderr.\n" +
			"SIGHUP reloads the configuration. SIGTERM and SIGINT drain: no new calls are taken,\n" +
			"and the daemon ends with the last call or after --drain; a second one ends it at once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := configFile(cmd)
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			return runLogged(cmd, cfg, func() (*config, error) { return loadConfig(file) }, drain)
		},
	}
	cmd.Flags().DurationVar(&drain, "drain", 10*time.Second, "longest time to wait for calls to end on SIGTERM")
	return cmd
}

// runLogged runs a daemon in the foreground, with the signals of the process.
func runLogged(cmd *cobra.Command, cfg *config, load func() (*config, error), drain time.Duration) error {
	level := zap.NewAtomicLevel()
	setLevel(level, cfg.Log.Level)
	log := newLogger(cmd.ErrOrStderr(), cfg.Log.Format, level)
	signals := make(chan os.Signal, 4) // a signal that comes while another is handled is kept
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	return runDaemon(context.Background(), runOptions{config: cfg, load: load, log: log, level: level, drain: drain, signals: signals,
		handed: takeHanded(passedSockets(firstPassed, log), log)})
}

// runOptions is what a daemon is started with; only config and log are needed.
type runOptions struct {
	config *config
	// load reads the configuration again on SIGHUP.
	load  func() (*config, error)
	log   *zap.Logger
	level zap.AtomicLevel
	drain time.Duration
	// signals brings SIGHUP, SIGTERM and SIGINT; nil: the daemon ends with ctx only.
	signals <-chan os.Signal
	// handed are the listeners that systemd holds.
	handed *handedSockets
	// ready is called once all sockets are open, with the admin listener's address (nil: none).
	ready func(admin net.Addr)
}

// runDaemon builds the services, serves until ctx ends or a signal says so, and returns
// when everything has ended.
func runDaemon(ctx context.Context, o runOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := makeStateDir(o.config.State.Dir); err != nil {
		return err
	}
	if err := lookForRivals(o.config, o.log); err != nil {
		return err
	}
	admin, err := listenAdmin(ctx, o.config.Admin)
	if err != nil {
		return fmt.Errorf("admin.listen: %w", err)
	}
	ph := &phase{}
	drains := make(chan time.Duration, 1)
	services, re, err := assemble(ctx, o, admin, ph, drains)
	if err != nil {
		if admin != nil {
			admin.Close()
		}
		return err
	}
	ended := serveAll(ctx, services)
	if waitReady(ctx, services, ended) {
		ph.set("")
		o.handed.settle(o.log)
		announce(o, admin)
	}
	err = supervise(ctx, o, re, ph, services, ended, drains)
	cancel()
	for range cap(ended) {
		if e := <-ended; e != nil && err == nil {
			err = e
		}
	}
	o.log.Info("stopped")
	return err
}

// assemble builds everything that serves: the table's services, the admin listener (nil: none)
// that shows them, and the watchdog that asks them.
func assemble(ctx context.Context, o runOptions, admin net.Listener, ph *phase, drains chan time.Duration) ([]*service, *reloader, error) {
	build := readBuildInfo()
	reg, events := newRegistry(build), newEventBroker()
	certs, err := loadCertificates(o.config.TLS, o.config.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("tls: %w", err)
	}
	certs.warn(time.Now(), o.log)
	store := newTLSStore(certs, o.config.SIP.ClientCertificates, o.config.SIP.OptionalClientCertificates)
	reg.MustRegister(newCertificateMetrics(store))
	traces := &callTraces{ring: trace.New(int(o.config.Trace.Memory))}
	traces.ring.ReadWith(h323Reader{})
	reg.MustRegister(newTraceMetrics(traces.ring))
	bans, err := denylist.Open(bansFile(o.config), o.log.Named("bans"))
	if err != nil {
		return nil, nil, fmt.Errorf("state.dir: %w", err)
	}
	reg.MustRegister(bans)
	captures := newMediaCaptures(o.config, traces, events, reg, o.log.Named("capture"))
	deps := &serviceDeps{cfg: o.config, log: o.log, reg: reg, tls: store, events: events, traces: traces, captures: captures, bans: bans, handed: o.handed}
	services, err := buildServices(ctx, deps)
	if err != nil {
		return nil, nil, err
	}
	re := &reloader{
		load: o.load, services: services, tls: store, level: o.level, log: o.log, metrics: newReloadMetrics(reg),
		events: events, running: o.config, state: reloadState{LoadedAt: time.Now().UTC()},
	}
	alive := func() { askAll(services) }
	all := append(slices.Clone(services), &service{name: "watchdog",
		serve: func(ctx context.Context) error { return feedWatchdog(ctx, alive, o.log) }})
	certFilesNow := certFiles(o.config)
	all = append(all, &service{name: "certificates",
		serve: func(ctx context.Context) error { return re.watchCertificates(ctx, certFilesNow, certWatchEvery) }})
	if admin != nil {
		shown := views(services, statusView(build, ph, re, services))
		shown["ports"] = func() any { return re.config().explain() }
		ctl := &control{
			reload: re.reload, busy: func() int { return busy(services) }, drains: drains, limit: o.drain,
		}
		op := &operator{bans: bans, services: services, own: o.config.networks(), admin: pinhole.AddrPortOf(admin.Addr())}
		does := actions(services)
		maps.Copy(does, ctl.actions())
		maps.Copy(does, op.actions())
		does["POST /api/v1/calls/{id}/capture"] = captures.serve
		shown["certificates"], shown["bans"] = store.certificatesView, op.view
		d := adminDeps{
			Token: o.config.Admin.Token, Registry: reg, Events: events, Ready: ph.notReady, Alive: alive,
			Views: shown, Pages: traces.pages(), Actions: does, Audit: &audit{log: o.log.Named("audit"), events: events},
		}
		served, err := adminServices(d, admin, o.log.Named("admin"))
		if err != nil {
			return nil, nil, err
		}
		all = append(all, served...)
	}
	return all, re, nil
}

// adminServices are the admin listener and the console on it.
func adminServices(d adminDeps, ln net.Listener, log *zap.Logger) ([]*service, error) {
	pages, err := newConsole(d, log.Named("console"))
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	h := withConsole(d.Token, pages, adminHandler(d))
	return []*service{
		{name: "admin", serve: func(ctx context.Context) error { return serveAdmin(ctx, ln, h, log) }},
		{name: "console", serve: pages.Run},
	}, nil
}

func makeStateDir(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state.dir: %w", err)
	}
	return nil
}

// waitReady returns true once all services take calls, false if one has ended before.
func waitReady(ctx context.Context, services []*service, ended chan error) bool {
	for _, s := range services {
		if s.ready == nil {
			continue
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return false
		case err := <-ended:
			ended <- err // the caller counts all results
			return false
		}
	}
	return true
}

// announce says that the daemon takes calls.
func announce(o runOptions, ln net.Listener) {
	var addr net.Addr
	at := ""
	if ln != nil {
		addr, at = ln.Addr(), ln.Addr().String()
	}
	o.log.Info("ready", zap.String("version", version), zap.String("admin", at))
	notify(o.log, daemon.SdNotifyReady)
	if o.ready != nil {
		o.ready(addr)
	}
}

// serveAll starts every service. The channel has room for one result of each.
func serveAll(ctx context.Context, services []*service) chan error {
	ended := make(chan error, len(services))
	for _, s := range services {
		go func() {
			err := s.serve(ctx)
			if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
				err = nil // its listener is of the shared ports, which have ended a moment before it
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", s.name, err)
			}
			ended <- err
		}()
	}
	return ended
}

// supervise handles signals until the daemon is to end. It returns an error if a service ended by itself.
func supervise(ctx context.Context, o runOptions, re *reloader, ph *phase, services []*service, ended chan error, drains <-chan time.Duration) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- err // the caller counts all results
			if err == nil && ctx.Err() == nil {
				err = fmt.Errorf("a service ended by itself")
			}
			return err
		case o.drain = <-drains:
			o.log.Info("draining", zap.Duration("limit", o.drain), zap.Int("calls", busy(services)))
			drainAll(ctx, o, ph, services)
			return nil
		case sig := <-o.signals:
			if sig == syscall.SIGHUP {
				notifyReloading(o.log)
				re.reload()
				notify(o.log, daemon.SdNotifyReady)
				continue
			}
			o.log.Info("draining", zap.Stringer("signal", sig), zap.Duration("limit", o.drain), zap.Int("calls", busy(services)))
			drainAll(ctx, o, ph, services)
			return nil
		}
	}
}

func busy(services []*service) int {
	n := 0
	for _, s := range services {
		if s.busy != nil {
			n += s.busy()
		}
	}
	return n
}

// askAll returns once every service has answered.
func askAll(services []*service) {
	for _, s := range services {
		if s.alive != nil {
			s.alive()
		}
	}
}

package main

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sharedport"
)

// reloader replaces the running configuration by the file's, as far as that is possible while calls live.
type reloader struct {
	load     func() (*config, error)
	services []*service
	tls      *tlsStore
	level    zap.AtomicLevel
	log      *zap.Logger
	metrics  reloadMetrics
	events   *eventBroker

	mu      sync.Mutex
	running *config
	state   reloadState
}

// reloadState is the part "config" of /api/v1/status.
type reloadState struct {
	LoadedAt time.Time `json:"loaded_at"`
	// Error says why the last reload was refused, "" if it was not.
	Error string `json:"error,omitempty"`
	// RestartRequired are the keys of the file that differ from what runs.
	RestartRequired []string `json:"restart_required,omitempty"`
}

func (r *reloader) snapshot() reloadState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// config returns what runs. It is not changed any more.
func (r *reloader) config() *config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running
}

// reloadOutcome is what came of a reload.
type reloadOutcome struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	// Changed are the live keys that are in force with other values now, RestartRequired those of the file that are not.
	Changed         []string `json:"changed"`
	RestartRequired []string `json:"restart_required"`
}

// reload reads the whole file first; if anything is wrong with it, what runs stays.
func (r *reloader) reload() reloadOutcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.running
	if err := r.reloadLocked(); err != nil {
		r.state.Error = err.Error()
		r.metrics.successful.Set(0)
		r.log.Error("reload refused, the old configuration stays", zap.Error(err))
		r.events.publish("reload", map[string]any{"ok": false, "error": err.Error()})
		return reloadOutcome{Error: err.Error(), Changed: []string{}, RestartRequired: append([]string{}, r.state.RestartRequired...)}
	}
	now := time.Now()
	r.metrics.loaded(now)
	r.state.LoadedAt, r.state.Error = now.UTC(), ""
	r.log.Info("configuration reloaded")
	r.events.publish("reload", map[string]any{"ok": true, "restart_required": r.state.RestartRequired})
	return reloadOutcome{
		OK: true, RestartRequired: append([]string{}, r.state.RestartRequired...),
		Changed: append([]string{}, changedKeys(reflect.ValueOf(*before), reflect.ValueOf(*r.running), "")...),
	}
}

func (r *reloader) reloadLocked() error {
	next, err := r.load()
	if err != nil {
		return err
	}
	certs, err := loadCertificates(next.TLS, next.dir)
	if err != nil {
		return err
	}
	live := withLiveKeys(r.running, next)
	if err := r.giveServices(live); err != nil {
		return err
	}
	certs.warn(time.Now(), r.log)
	r.tls.current.Store(certs)
	setLevel(r.level, live.Log.Level)
	r.running = live
	r.state.RestartRequired = changedKeys(reflect.ValueOf(*live), reflect.ValueOf(*next), "")
	for _, key := range r.state.RestartRequired {
		r.log.Warn("restart required: " + key)
	}
	return nil
}

// giveServices has all services take over a configuration, or none: a file that it names may have gone since it was checked,
// and then those that have taken it get back what ran.
func (r *reloader) giveServices(live *config) error {
	for i, s := range r.services {
		if s.reload == nil {
			continue
		}
		err := s.reload(live)
		if err == nil {
			continue
		}
		for _, before := range r.services[:i] {
			if before.reload == nil {
				continue
			}
			if back := before.reload(r.running); back != nil {
				r.log.Error("the old configuration was not taken back", zap.String("service", before.name), zap.Error(back))
			}
		}
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// withLiveKeys returns the running configuration with those keys of next that may
// change while calls live. docs/operations.md lists them.
func withLiveKeys(running, next *config) *config {
	c := *running
	c.Log.Level = next.Log.Level
	c.TLS = next.TLS
	c.Limits = next.Limits
	c.Shared = liveShared(running.Shared, next)
	c.SIP = next.SIP
	c.SIP.Listen, c.SIP.DSCP, c.SIP.ClientCertificates = running.SIP.Listen, running.SIP.DSCP, running.SIP.ClientCertificates
	c.SIP.Transparent = running.SIP.Transparent
	c.SIP.OptionalClientCertificates = running.SIP.OptionalClientCertificates
	c.H323 = next.H323
	c.H323.Listen, c.H323.RAS, c.H323.GatekeeperID = running.H323.Listen, running.H323.RAS, running.H323.GatekeeperID
	c.H323.Gatekeeper, c.H323.Discovery, c.H323.Transparent = running.H323.Gatekeeper, running.H323.Discovery, running.H323.Transparent
	c.H323.Lifetime, c.H323.MaxEndpoints = running.H323.Lifetime, running.H323.MaxEndpoints
	c.TFTP = next.TFTP
	c.TFTP.Ports, c.TFTP.Trivial = running.TFTP.Ports, running.TFTP.Trivial
	c.TURN = next.TURN
	c.TURN.Listen, c.TURN.Realm, c.TURN.Relay, c.TURN.TCP = running.TURN.Listen, running.TURN.Realm, running.TURN.Relay, running.TURN.TCP
	c.TURN.Peers, c.TURN.Challenges, c.TURN.Bindings = running.TURN.Peers, running.TURN.Challenges, running.TURN.Bindings
	c.TURN.AlternatePort, c.TURN.Ports, c.TURN.UsersURL = running.TURN.AlternatePort, running.TURN.Ports, running.TURN.UsersURL
	c.Proxy = next.Proxy
	c.Proxy.Listen, c.Proxy.MaxConnections, c.Proxy.Associations = running.Proxy.Listen, running.Proxy.MaxConnections, running.Proxy.Associations
	c.Tunnel.UsersFile, c.Tunnel.Policy = next.Tunnel.UsersFile, next.Tunnel.Policy
	c.Tunnel.Limits.Opens, c.Tunnel.Limits.Bandwidth = next.Tunnel.Limits.Opens, next.Tunnel.Limits.Bandwidth
	c.Agent.Devices, c.Agent.Services, c.Agent.Applications.Routes = next.Agent.Devices, next.Agent.Services, next.Agent.Applications.Routes
	return &c
}

// liveShared returns the running ports that services share, with the live keys of next.
func liveShared(running []sharedport.Config, next *config) []sharedport.Config {
	out := slices.Clone(running)
	for i, s := range out {
		if n, at := next.sharedSection(s.Listen); at >= 0 {
			n.Silent, n.SilentNames = s.Silent, s.SilentNames
			out[i] = n
		}
	}
	return out
}

// changedKeys lists the keys in which two configurations differ, sections taken apart.
func changedKeys(a, b reflect.Value, key string) []string {
	if a.Kind() != reflect.Struct || isText(a.Type()) {
		if reflect.DeepEqual(a.Interface(), b.Interface()) {
			return nil
		}
		return []string{key}
	}
	var keys []string
	for i := range a.NumField() {
		if k := yamlKey(a.Type().Field(i)); k != "" {
			keys = append(keys, changedKeys(a.Field(i), b.Field(i), join(key, k))...)
		}
	}
	slices.Sort(keys)
	return keys
}

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"edged.dev/edged/internal/denylist"
	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/groove"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/proxydial"
	"edged.dev/edged/pkg/tunnel/relay"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// tunnelWatch is how often the files of devices are looked at.
const tunnelWatch = 2 * time.Second

// Names of files in tunnelDir.
const (
	relayKeyFile  = "relay.key"
	deviceKeyFile = "device.key"
	waysFile      = "ways.json"
)

// tunnelDir is where the tunnel keeps keys, tokens and devices.
func (c *config) tunnelDir() string { return filepath.Join(c.State.Dir, "tunnel") }

// relayKeyFile returns the file of the relay's key.
func (c *config) relayKeyFile() string {
	if c.Tunnel.KeyFile != "" {
		return within(c.dir, c.Tunnel.KeyFile)
	}
	return filepath.Join(c.tunnelDir(), relayKeyFile)
}

// deviceKeyFile returns the file of the agent's key.
func (c *config) deviceKeyFile() string {
	if c.Agent.KeyFile != "" {
		return within(c.dir, c.Agent.KeyFile)
	}
	return filepath.Join(c.tunnelDir(), deviceKeyFile)
}

// loadKey reads a key file, or makes it.
func loadKey(file string, log *zap.Logger) (device.Key, error) {
	k, made, err := device.LoadOrCreateKey(file)
	if err != nil {
		return k, fmt.Errorf("key_file: %w", err)
	}
	if made {
		log.Info("key made", zap.String("file", file), zap.Stringer("id", k.ID()))
	}
	return k, nil
}

// tunnelService is the relay, and what it is fed by.
type tunnelService struct {
	key      device.Key
	relay    *relay.Relay
	registry *device.Registry
	store    *device.Store // nil without state.dir
	carriers *carrier.Server
	groove   *groove.Server
	bans     *denylist.List
	log      *zap.Logger
	requests *handedOver // of HTTP
	peers    []*uplink.Uplink
	mail     *mailService // nil without mailboxes
	state    atomic.Pointer[tunnelState]
	loading  sync.Mutex // one read of the files at a time, until it is taken over
}

// tunnelState is what runs.
type tunnelState struct {
	cfg   *config
	stamp string // of the files of devices, to see that they have changed
}

// buildTunnel builds the relay and opens its listeners.
func buildTunnel(ctx context.Context, d *serviceDeps) (*service, error) {
	t := &tunnelService{registry: &device.Registry{}, bans: d.bans, log: d.log.Named("tunnel"), requests: newHandedOver()}
	if err := t.open(d.cfg); err != nil {
		return nil, err
	}
	if err := t.load(d.cfg); err != nil {
		return nil, err
	}
	if err := t.build(d.cfg, d.joiner); err != nil {
		return nil, err
	}
	if err := t.buildGroove(d); err != nil {
		return nil, errors.Join(err, t.mail.close())
	}
	if t.mail != nil {
		d.reg.MustRegister(t.mail)
	}
	var list []pinhole.Listen
	for _, l := range d.cfg.Tunnel.Listen {
		list = append(list, l.Transport())
	}
	socks, err := d.bindShared(ctx, "tunnel.listen[%d]", list, false)
	if err != nil {
		return nil, errors.Join(err, t.mail.close())
	}
	d.reg.MustRegister(t.relay.Collector(), newCarrierMetrics(t.carriers), t.groove)
	return &service{
		serve: func(ctx context.Context) error { return t.serve(ctx, d.cfg, socks) },
		alive: func() { t.relay.Open() }, reload: t.reload, drain: func() {
			t.relay.Drain()
			t.groove.Drain()
		}, busy: func() int { return t.relay.Open() + t.groove.Busy() }, expel: func() int { return t.relay.Expel() + t.carriers.Expel(t.bans.Addr) },
		status: func() any {
			return map[string]any{"id": t.key.ID(), "devices": len(t.relay.Tunnels()), "streams": t.relay.Open(), "groove": t.groove.Busy(), "listeners": socks.names()}
		},
		views: map[string]func() any{"tunnels": t.view(d), "mailboxes": t.mail.view}, actions: t.mail.actions(),
	}, nil
}

// view returns what shows the relay and, if there is one in this process, the agent.
func (t *tunnelService) view(d *serviceDeps) func() any {
	return func() any {
		v := tunnelsView{Tunnels: t.relay.Tunnels(), Streams: t.relay.Streams()}
		if d.agent != nil {
			d.agent(&v)
		}
		return v
	}
}

// open reads the key and opens the store.
func (t *tunnelService) open(c *config) (err error) {
	if c.State.Dir != "" {
		if t.store, err = device.OpenStore(c.tunnelDir()); err != nil {
			return fmt.Errorf("state.dir: %w", err)
		}
	}
	t.key, err = loadKey(c.relayKeyFile(), t.log)
	return err
}

// build makes the relay, and what authenticates connections for it.
func (t *tunnelService) build(c *config, joiner *splice.Joiner) error {
	var ups []relay.Upstream
	for i, p := range c.Tunnel.Peers {
		up, err := t.peer(p)
		if err != nil {
			return fmt.Errorf("peers[%d]: %w", i, err)
		}
		t.peers, ups = append(t.peers, up), append(ups, up)
	}
	mail, err := openMail(t, c)
	if err != nil {
		return err
	}
	t.mail = mail
	t.relay = relay.New(c.Tunnel.Rules(), relay.Deps{
		Other:    t.mail.streams(),
		Registry: t.registry, Store: t.store, Peers: c.Tunnel.PeerIDs(), Upstreams: ups,
		Enrolled: func(device.Device) error { return t.load(nil) }, Joiner: joiner, Deny: t.denies,
	}, t.log)
	secure, err := device.ServerTLS(t.key, t.relay.Admit)
	if err != nil {
		return err
	}
	t.carriers = &carrier.Server{TLS: secure, Session: taken(t.relay.Session), Enrol: taken(t.relay.Enrol), Bulk: t.bulk, Deny: t.bans.Refuses, Log: t.log}
	return nil
}

// denies tells whether a device is banned, by its name or its ID.
func (t *tunnelService) denies(x device.Device) bool {
	return t.bans.User(x.Name) || t.bans.User(x.ID.String())
}

// bulk gives the relay a carrier that came with a ticket.
func (t *tunnelService) bulk(ctx context.Context, c *carrier.Carrier, ticket [16]byte) {
	id, err := device.PeerID(c.PeerState())
	if err != nil {
		c.Close()
		return
	}
	t.relay.Bulk(ctx, c, id, ticket)
}

// taken gives the relay what a carrier is.
func taken(take func(context.Context, net.Conn, device.ID, relay.Via)) func(context.Context, *carrier.Carrier) {
	return func(ctx context.Context, c *carrier.Carrier) {
		id, err := device.PeerID(c.PeerState())
		if err != nil {
			c.Close()
			return
		}
		take(ctx, c.Conn, id, relay.Via{Rung: c.Rung.String(), Path: c.Path, Remote: c.RemoteAddr().String()})
	}
}

// peer returns what dials another relay.
func (t *tunnelService) peer(p relay.Peer) (*uplink.Uplink, error) {
	direct, err := proxydial.New(proxydial.Config{URL: "none"}, t.log)
	if err != nil {
		return nil, err
	}
	d, err := newRungs(t.key, p.Address, p.ID, t.log)
	if err != nil {
		return nil, err
	}
	d.Rungs, d.Proxy = []carrier.Rung{carrier.TLS}, direct
	return uplink.New([]uplink.Dialer{&rungs{d: d}}, uplink.Config{Mux: mux.Config{Logger: t.log}}, t.log.Named("peer")), nil
}

// load reads the files of devices, for the configuration or, if that is nil, for the one that runs.
func (t *tunnelService) load(c *config) error {
	t.loading.Lock()
	defer t.loading.Unlock()
	if c == nil {
		c = t.state.Load().cfg
	}
	return t.loadLocked(c)
}

func (t *tunnelService) loadLocked(c *config) error {
	now := &tunnelState{c, t.stamp(c)}
	list, err := readTunnelUsers(c)
	if err != nil {
		return err
	}
	if t.store != nil {
		enrolled, err := t.store.Devices()
		if err != nil {
			return err
		}
		list = append(list, enrolled...)
	}
	if err := t.registry.Replace(list); err != nil {
		return fmt.Errorf("users_file and the enrolled devices: %w", err)
	}
	t.state.Store(now)
	return nil
}

// stamp tells whether a file of devices has changed.
func (t *tunnelService) stamp(c *config) string {
	text := ""
	if c.Tunnel.UsersFile != "" {
		text = stampOf(within(c.dir, c.Tunnel.UsersFile))
	}
	if t.store != nil {
		text += " " + stampOf(t.store.File())
	}
	return text
}

// readTunnelUsers reads the file of devices that the section names.
func readTunnelUsers(c *config) ([]device.Device, error) {
	if c.Tunnel.UsersFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(within(c.dir, c.Tunnel.UsersFile))
	var list []device.Device
	if err == nil {
		list, err = device.ParseDevices(text)
	}
	if err != nil {
		return nil, pinhole.Fault{Key: "users_file", Text: err.Error()}
	}
	return list, nil
}

func (t *tunnelService) reload(c *config) error {
	t.loading.Lock()
	defer t.loading.Unlock()
	return t.reloadLocked(c)
}

func (t *tunnelService) reloadLocked(c *config) error {
	if err := t.loadLocked(c); err != nil {
		return err
	}
	t.relay.Reload(c.Tunnel.Rules())
	return nil
}

// watch takes over files of devices that have changed, until ctx ends.
func (t *tunnelService) watch(ctx context.Context) error {
	return watchFiles(ctx, tunnelWatch, t.log.With(zap.String("files", "devices")), func() (now, used string) {
		state := t.state.Load()
		return t.stamp(state.cfg), state.stamp
	}, func() error {
		t.loading.Lock() // so that a configuration that is reloaded at the same time is not replaced by the one before it
		defer t.loading.Unlock()
		return t.reloadLocked(t.state.Load().cfg)
	})
}

const (
	// tidyEvery is how often it is looked whether a storm of handshakes is over.
	tidyEvery = 5 * time.Second
	// manyHandshakes leave 25 MiB behind, 50 KiB each.
	manyHandshakes = 500
)

// tidy gives the memory that many handshakes took back to the system when none is under way any more, until ctx ends. Of
// itself Go keeps most of it: what waits allocates too little to be collected.
func (t *tunnelService) tidy(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for tidied := uint64(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if n, busy := t.carriers.Greeted(); !busy && n-tidied >= manyHandshakes {
			debug.FreeOSMemory()
			tidied = n
		}
	}
}

// serve serves all listeners until ctx ends, and waits for the sessions.
func (t *tunnelService) serve(ctx context.Context, c *config, socks sockets) error {
	beside := []func(context.Context) error{t.watch, t.tidy, t.serveHTTP, t.groove.Run}
	for _, up := range t.peers {
		beside = append(beside, func(ctx context.Context) error {
			return up.Run(ctx, func(_ context.Context, s *mux.Session) { <-s.Done() })
		})
	}
	err := socks.serve(ctx, func(ctx context.Context, s socket) error {
		switch c.Tunnel.Listen[s.item].Proto {
		case relay.QUIC:
			return t.carriers.ServeQUIC(ctx, s.udp)
		case relay.HTTP:
			return t.groove.ServeListener(ctx, s.tcp)
		case relay.Groove:
			return t.groove.ServeRaw(ctx, s.tcp)
		}
		return t.accept(ctx, s.tcp, t.secured)
	}, beside...)
	t.relay.Wait()
	return errors.Join(err, t.mail.close())
}

// accept serves the connections of a listener.
func (t *tunnelService) accept(ctx context.Context, ln net.Listener, serve func(context.Context, net.Conn)) error {
	var open sync.WaitGroup
	defer open.Wait()
	return gate.Accept(ctx, ln, func(conn net.Conn) {
		open.Go(func() { serve(ctx, conn) })
	}, func(err error) {
		t.log.Warn("connection not accepted", zap.Stringer("listener", ln.Addr()), zap.Error(err))
	})
}

// secured serves a connection to a port of https: one whose TLS has ended at a shared port is the web's.
func (t *tunnelService) secured(ctx context.Context, conn net.Conn) {
	if _, web := conn.(interface{ ConnectionState() tls.ConnectionState }); web {
		t.requests.hand(conn)
		return
	}
	t.carriers.ServeConn(ctx, conn)
}

// serveHTTP serves the requests of the web until ctx ends.
func (t *tunnelService) serveHTTP(ctx context.Context) error {
	server := carrier.HTTPServer(t.orGroove(t.carriers.Handler(ctx)))
	server.BaseContext = func(net.Listener) context.Context { return ctx }
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		_ = t.requests.Close()
		return server.Close()
	})
	g.Go(func() error {
		if err := server.Serve(t.requests); ctx.Err() == nil {
			return err
		}
		return nil
	})
	return g.Wait()
}

// handedOver is a listener whose connections somebody else has accepted.
type handedOver struct {
	conns chan net.Conn // unbuffered: a connection is somebody's at any time
	once  sync.Once
	done  chan struct{}
}

func newHandedOver() *handedOver {
	return &handedOver{conns: make(chan net.Conn), done: make(chan struct{})}
}

// hand gives a connection to who accepts, or closes it if nobody does any more.
func (h *handedOver) hand(conn net.Conn) {
	select {
	case h.conns <- conn:
	case <-h.done:
		conn.Close()
	}
}

// Accept waits for a connection.
func (h *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handedOver) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr returns no address: connections come from several listeners.
func (h *handedOver) Addr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPort{}) }

// tunnelMatches returns what a TCP listener of the tunnel gets of a shared port.
func (c *config) tunnelMatches(l relay.Listen) []sharedport.Match {
	switch l.Proto {
	case relay.HTTP:
		return []sharedport.Match{matchOf(sharedport.OverTCP, sharedport.HTTP)}
	case relay.Groove:
		return []sharedport.Match{matchOf(sharedport.OverTCP, sharedport.Groove)}
	}
	out := []sharedport.Match{matchOf(sharedport.OverTCP, sharedport.Tunnel)}
	if len(c.TLS.Certificates) > 0 {
		out = append(out, matchOf(sharedport.OverTLS, sharedport.HTTP))
	}
	return out
}

// validateTunnel adds what concerns other sections too.
func (c *config) validateTunnel(l *faultList) {
	*l = append(*l, sectionFaults("tunnel", c.Tunnel.Validate(c.networks()))...)
	*l = append(*l, sectionFaults("agent", c.Agent.Validate())...)
	if len(c.Tunnel.Listen) > 0 && c.State.Dir == "" && c.Tunnel.KeyFile == "" {
		l.add("tunnel.key_file", "is needed: state.dir is empty")
	}
	if len(c.Agent.Relays) > 0 && c.State.Dir == "" && c.Agent.KeyFile == "" {
		l.add("agent.key_file", "is needed: state.dir is empty")
	}
	if len(c.Tunnel.Listen) == 0 {
		return
	}
	if _, err := readTunnelUsers(c); err != nil {
		*l = append(*l, sectionFaults("tunnel", err)...)
	}
}

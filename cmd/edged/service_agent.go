package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/denylist"
	"edged.dev/edged/pkg/forwardproxy"
	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tunnel/agent"
	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/proxydial"
	"edged.dev/edged/pkg/tunnel/relay"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// rungs is a ladder as an uplink sees it.
type rungs struct {
	d   *carrier.Dialer
	now *carrier.Carrier // the last one
}

// Dial implements [uplink.Dialer].
func (r *rungs) Dial(ctx context.Context) (*uplink.Carrier, error) {
	return r.took(r.d.Dial(ctx))
}

// Better implements [uplink.Dialer].
func (r *rungs) Better(ctx context.Context, _ *uplink.Carrier) (*uplink.Carrier, error) {
	if r.now == nil {
		return nil, nil
	}
	return r.took(r.d.Better(ctx, r.now))
}

// Network names the network that the host is in.
func (r *rungs) Network() string { return r.d.Where() }

func (r *rungs) took(c *carrier.Carrier, err error) (*uplink.Carrier, error) {
	if err != nil || c == nil {
		return nil, err
	}
	r.now = c
	return &uplink.Carrier{Conn: c.Conn, Rung: c.Rung.String(), Path: c.Path}, nil
}

// dialBulk returns what dials the relay of an uplink's session by the way that the session has come.
func dialBulk(up *uplink.Uplink, dialers []uplink.Dialer) func(context.Context, bulk.Ticket) (bulk.Carrier, error) {
	return func(ctx context.Context, ticket bulk.Ticket) (bulk.Carrier, error) {
		st := up.State()
		like := &carrier.Carrier{Path: st.Path}
		if !st.Attached {
			return nil, carrier.ErrNoBulk
		}
		if err := like.Rung.UnmarshalText([]byte(st.Rung)); err != nil {
			return nil, err
		}
		r, ok := dialers[st.Relay].(*rungs)
		if !ok {
			return nil, carrier.ErrNoBulk
		}
		c, err := r.d.DialBulk(ctx, like, ticket)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// newRungs returns what dials a relay; it still needs a proxy's dialer.
func newRungs(key device.Key, address string, id device.ID, log *zap.Logger) (*carrier.Dialer, error) {
	host, port, err := uplink.HostPort(address)
	if err != nil {
		return nil, err
	}
	name := host
	if net.ParseIP(host) != nil {
		name = ""
	}
	secure, err := device.ClientTLS(key, id, name)
	if err != nil {
		return nil, err
	}
	return &carrier.Dialer{Relay: host, TLS: secure, PortTLS: port, PortQUIC: port, Log: log}, nil
}

// siteProxy returns the dialer for the proxy of the site. File names are relative to the configuration's folder.
func siteProxy(c *config, log *zap.Logger) (*proxydial.Dialer, error) {
	p := c.Agent.Proxy
	for _, file := range []*string{&p.PasswordFile, &p.CAFile, &p.Kerberos.Keytab, &p.Kerberos.Cache, &p.Kerberos.Config} {
		if *file != "" {
			*file = within(c.dir, *file)
		}
	}
	if p.PAC != "" && !strings.Contains(p.PAC, "://") {
		p.PAC = within(c.dir, p.PAC)
	}
	return proxydial.New(p, log)
}

// agentDialers returns what dials each of the agent's relays.
func agentDialers(c *config, key device.Key, probed *probeMetrics, log *zap.Logger) ([]uplink.Dialer, error) {
	proxy, err := siteProxy(c, log)
	if err != nil {
		return nil, err
	}
	var memory *carrier.Memory
	if c.State.Dir != "" {
		memory = carrier.OpenMemory(c.tunnelDir() + "/" + waysFile)
	}
	var out []uplink.Dialer
	for i, r := range c.Agent.Relays {
		d, err := newRungs(key, r.Address, r.ID, log)
		if err != nil {
			return nil, fmt.Errorf("relays[%d]: %w", i, err)
		}
		d.Proxy, d.Memory, d.PortHTTP, d.Probed = proxy, memory, c.Agent.PortHTTP, probed.observe
		if len(c.Agent.Rungs) > 0 {
			d.Rungs = c.Agent.Rungs
		}
		out = append(out, &rungs{d: d})
	}
	return out, nil
}

// buildAgent builds the agent and opens the ports of its forwards.
func buildAgent(ctx context.Context, d *serviceDeps) (*service, error) {
	log := d.log.Named("agent")
	if d.cfg.State.Dir != "" {
		if _, err := device.OpenStore(d.cfg.tunnelDir()); err != nil { // which makes the folder
			return nil, fmt.Errorf("state.dir: %w", err)
		}
	}
	key, err := loadKey(d.cfg.deviceKeyFile(), log)
	if err != nil {
		return nil, err
	}
	probed := newProbeMetrics()
	dialers, err := agentDialers(d.cfg, key, probed, log)
	if err != nil {
		return nil, err
	}
	up := uplink.New(dialers, uplink.Config{Mux: mux.Config{Logger: log}}, log)
	a := agent.New(d.cfg.Agent, agent.Deps{Key: key, Uplink: up, Bulk: dialBulk(up, dialers), Handlers: linkHandlers(d.links)}, log)
	socks, err := bindForwards(ctx, d.handed, d.cfg.Agent.Forwards)
	if err != nil {
		return nil, err
	}
	apps, err := newApplications(ctx, d.handed, d.cfg.Agent.Applications, a, d.bans, log)
	if err != nil {
		socks.close()
		return nil, err
	}
	desk, err := openDesk(ctx, d.cfg, key, a, log)
	if err != nil {
		socks.close()
		apps.open.close()
		return nil, err
	}
	socks.guard(d.bans, true)
	apps.open.guard(d.bans, false)
	d.reg.MustRegister(a.Collector(), probed.results)
	status := func() *agentStatus { return newAgentStatus(d.cfg, key, up.State(), socks) }
	d.agent = func(v *tunnelsView) { v.Agent, v.Neighbours = status(), askNeighbours(a, up, log) }
	s := &service{
		serve: func(ctx context.Context) error {
			return socks.serve(ctx, func(ctx context.Context, s socket) error {
				f := d.cfg.Agent.Forwards[s.item]
				if s.tcp != nil {
					return a.ServeTCP(ctx, s.tcp, f)
				}
				return a.ServeUDP(ctx, s.udp, f)
			}, a.Run, apps.serve, desk.serve, func(ctx context.Context) error { return keepLinks(ctx, d.links, a, key.ID()) })
		},
		reload: func(c *config) error {
			a.Reload(c.Agent)
			desk.names.Store(c)
			return nil
		},
		status: func() any { return status() },
	}
	if len(d.cfg.Tunnel.Listen) == 0 || d.cfg.only != "" { // else the relay shows it, too
		s.views = map[string]func() any{"tunnels": func() any {
			v := tunnelsView{Tunnels: []relay.Tunnel{}, Streams: []relay.Stream{}}
			d.agent(&v)
			return v
		}}
	}
	return s, nil
}

// neighbourTime is how long the relay may take to tell whom the agent may reach.
const neighbourTime = 2 * time.Second

// askNeighbours returns whom the agent may reach, nil if its relay does not tell.
func askNeighbours(a *agent.Agent, up *uplink.Uplink, log *zap.Logger) []agent.Neighbour {
	if !up.State().Attached {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), neighbourTime)
	defer cancel()
	list, err := a.Neighbours(ctx)
	if err != nil {
		log.Debug("neighbours are not known", zap.Error(err))
	}
	return list
}

// bindForwards opens the ports of forwards; all or none.
func bindForwards(ctx context.Context, h *handedSockets, list []agent.Forward) (sockets, error) {
	var lc net.ListenConfig
	var all sockets
	for i, f := range list {
		s := socket{item: i}
		var err error
		if f.Listen.Proto == "udp" {
			s.udp, err = h.listenUDP(ctx, "agent", f.Listen.At, &lc)
		} else {
			s.tcp, err = h.listenTCP(ctx, "agent", f.Listen.At, &lc)
		}
		if err != nil {
			all.close()
			return nil, fmt.Errorf("agent.forwards[%d].listen: %w", i, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// applications are the proxies for applications of the site.
type applications struct {
	server *forwardproxy.Server
	list   []agent.ProxyListen
	open   sockets
}

// newApplications opens the ports of the proxies; all or none.
func newApplications(ctx context.Context, h *handedSockets, c agent.Applications, a *agent.Agent, bans *denylist.List, log *zap.Logger) (*applications, error) {
	cfg := forwardproxy.DefaultConfig()
	cfg.Anonymous = c.Sources()
	server, err := forwardproxy.New(cfg, forwardproxy.Deps{
		Joiner: splice.Copier{},
		Dial: func(ctx context.Context, network, host string, port uint16) (net.Conn, error) {
			conn, err := dialApplication(ctx, a, network, host, port)
			if errors.Is(err, agent.ErrNoRoute) {
				err = fmt.Errorf("%w: %w", forwardproxy.ErrNotAllowed, err)
			}
			return conn, err
		},
		ListenPacket: func(ctx context.Context, at netip.AddrPort) (net.PacketConn, error) {
			pc, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", at.String())
			if err != nil {
				return nil, err
			}
			return bans.PacketConn(pc), nil
		},
	}, log.Named("applications"))
	if err != nil {
		return nil, fmt.Errorf("applications: %w", err)
	}
	apps := &applications{server: server, list: c.Listen}
	for i, l := range c.Listen {
		ln, err := h.listenTCP(ctx, "agent", l.At, &net.ListenConfig{})
		if err != nil {
			apps.open.close()
			return nil, fmt.Errorf("agent.applications.listen[%d]: %w", i, err)
		}
		apps.open = append(apps.open, socket{item: i, tcp: ln})
	}
	return apps, nil
}

// dialApplication reaches the service that a name means, of connections or of datagrams.
func dialApplication(ctx context.Context, a *agent.Agent, network, host string, port uint16) (net.Conn, error) {
	if network == "udp" {
		return a.DialHostDatagrams(ctx, host, port)
	}
	conn, err := a.DialHost(ctx, host, port)
	if err != nil {
		return nil, err // not a nil *Conn
	}
	return conn, nil
}

// serve serves the proxies until ctx ends.
func (p *applications) serve(ctx context.Context) error {
	if len(p.open) == 0 {
		<-ctx.Done()
		return nil
	}
	return p.open.serve(ctx, func(ctx context.Context, s socket) error {
		return p.server.ServeListener(ctx, p.list[s.item].Proto, s.tcp)
	})
}

// agentStatus is the agent's part of /api/v1/status.
type agentStatus struct {
	ID        device.ID `json:"id"`
	Attached  bool      `json:"attached"`
	Relay     string    `json:"relay,omitempty"`
	Rung      string    `json:"rung,omitempty"`
	Path      string    `json:"path,omitempty"`
	Since     string    `json:"since,omitempty"`
	Sessions  int       `json:"sessions"`
	Resumes   int       `json:"resumes"`
	Failures  int       `json:"failures"` // since the last success
	LastError string    `json:"last_error,omitempty"`
	Listeners []string  `json:"listeners"`
}

func newAgentStatus(c *config, key device.Key, st uplink.State, socks sockets) *agentStatus {
	out := &agentStatus{
		ID: key.ID(), Attached: st.Attached, Sessions: st.Sessions, Resumes: st.Resumes, Failures: st.Failures,
		LastError: st.LastError, Listeners: socks.names(),
	}
	if st.Sessions > 0 {
		out.Relay, out.Rung, out.Path, out.Since = c.Agent.Relays[st.Relay].Address, st.Rung, st.Path, st.Since.UTC().Format("2006-01-02T15:04:05Z")
	}
	return out
}

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/forwardproxy"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
)

// proxyWatch is how often the file of users, and the host's addresses, are looked at.
const proxyWatch = 5 * time.Second

// proxyService is the forward proxy with what may change while it runs.
type proxyService struct {
	server *forwardproxy.Server
	dialer *forwardproxy.Dialer
	own    *hostAddresses
	log    *zap.Logger
	// loading is held while a configuration is taken over, so that a changed file does not bring back the one before it.
	loading sync.Mutex
	state   atomic.Pointer[proxyState]
}

// proxyState is what runs.
type proxyState struct {
	cfg   *config
	stamp string // of the file of users, to see that it has changed
}

// buildProxy builds the forward proxy and opens its listeners.
func buildProxy(ctx context.Context, d *serviceDeps) (*service, error) {
	users, err := readProxyUsers(d.cfg)
	if err != nil {
		return nil, err
	}
	nets := d.cfg.networks()
	p := &proxyService{own: &hostAddresses{}, log: d.log.Named("proxy")}
	p.own.refresh()
	p.dialer = forwardproxy.NewDialer(d.cfg.Proxy, forwardproxy.Surroundings{Networks: nets, RouteTo: newRouteTable(nets).network, Own: p.own.has})
	p.server, err = forwardproxy.New(d.cfg.Proxy, forwardproxy.Deps{
		Dial: p.dialer.Dial, Joiner: d.joiner, Users: users, Connections: d.cfg.Limits.PerSource.Connections,
		ListenPacket: func(ctx context.Context, at netip.AddrPort) (net.PacketConn, error) {
			return (&net.ListenConfig{}).ListenPacket(ctx, "udp", at.String())
		},
	}, p.log)
	if err != nil {
		return nil, err
	}
	p.state.Store(&proxyState{d.cfg, stampOf(within(d.cfg.dir, d.cfg.Proxy.UsersFile))})
	var list []pinhole.Listen
	for _, l := range d.cfg.Proxy.Listen {
		list = append(list, l.Transport())
	}
	socks, err := d.bindShared(ctx, "proxy.listen[%d]", list, false)
	if err != nil {
		return nil, err
	}
	d.reg.MustRegister(p.server.Collector())
	return &service{
		serve: func(ctx context.Context) error { return socks.serve(ctx, p.serve(d), p.watch) },
		alive: func() { p.server.Open() }, reload: p.reload, drain: p.server.Drain, busy: p.server.Open,
		status: func() any { return map[string]any{"connections": p.server.Open(), "listeners": socks.names()} },
		views:  map[string]func() any{"proxy": func() any { return map[string]any{"connections": p.server.Connections()} }},
	}, nil
}

// serve returns what serves one socket. On a port that services share TLS has ended before.
func (p *proxyService) serve(d *serviceDeps) func(context.Context, socket) error {
	return func(ctx context.Context, s socket) error {
		proto, ln := d.cfg.Proxy.Listen[s.item].Proto, s.tcp
		if proto == forwardproxy.HTTPS && d.shared[pinhole.AddrPortOf(ln.Addr())] == nil {
			ln = tls.NewListener(ln, d.tls.anonymous(s.network))
		}
		return p.server.ServeListener(ctx, proto, ln)
	}
}

func (p *proxyService) reload(c *config) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	return p.reloadLocked(c)
}

func (p *proxyService) reloadLocked(c *config) error {
	stamp := stampOf(within(c.dir, c.Proxy.UsersFile))
	users, err := readProxyUsers(c)
	if err != nil {
		return err
	}
	p.dialer.Configure(c.Proxy)
	p.server.Configure(c.Proxy, users, c.Limits.PerSource.Connections)
	p.state.Store(&proxyState{c, stamp})
	return nil
}

// watch takes over what has changed on this host, until ctx ends.
func (p *proxyService) watch(ctx context.Context) error {
	return watchFiles(ctx, proxyWatch, p.log.With(zap.String("files", "proxy users")), func() (now, used string) {
		p.own.refresh()
		state := p.state.Load()
		if state.cfg.Proxy.UsersFile == "" {
			return state.stamp, state.stamp
		}
		return stampOf(within(state.cfg.dir, state.cfg.Proxy.UsersFile)), state.stamp
	}, func() error {
		p.loading.Lock()
		defer p.loading.Unlock()
		return p.reloadLocked(p.state.Load().cfg)
	})
}

// readProxyUsers reads the file of users; nil if there is none.
func readProxyUsers(c *config) (*forwardproxy.Users, error) {
	if c.Proxy.UsersFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(within(c.dir, c.Proxy.UsersFile))
	if err != nil {
		return nil, pinhole.Fault{Key: "users_file", Text: err.Error()}
	}
	users, err := forwardproxy.ParseUsers(string(text))
	if err != nil {
		return nil, pinhole.Fault{Key: "users_file", Text: err.Error()}
	}
	return users, nil
}

// proxyMatches returns what a listener of the proxy gets of a port that is shared.
func proxyMatches(l forwardproxy.Listen) []sharedport.Match {
	switch l.Proto {
	case forwardproxy.HTTPS:
		return []sharedport.Match{matchOf(sharedport.OverTLS, sharedport.Connect)}
	case forwardproxy.SOCKS5:
		return []sharedport.Match{matchOf(sharedport.OverTCP, sharedport.SOCKS)}
	}
	return []sharedport.Match{matchOf(sharedport.OverTCP, sharedport.Connect)}
}

// validateProxy adds what concerns other sections, and the file.
func (c *config) validateProxy(l *faultList) {
	*l = append(*l, sectionFaults("proxy", c.Proxy.Validate(c.networks()))...)
	if _, err := readProxyUsers(c); err != nil {
		*l = append(*l, sectionFaults("proxy", err)...)
	}
	for i, ln := range c.Proxy.Listen {
		if ln.Proto == forwardproxy.HTTPS && len(c.TLS.Certificates) == 0 {
			l.add(fmt.Sprintf("proxy.listen[%d]", i), "https needs a certificate under tls.certificates")
		}
	}
}

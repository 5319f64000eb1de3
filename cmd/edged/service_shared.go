package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/splice/forward"
	"edged.dev/edged/pkg/tunnel/relay"
	"edged.dev/edged/pkg/turn"
)

// portHTTPS is where so many protocols are sent that what comes is looked at before TLS is spoken.
const portHTTPS = 443

// sharedSection returns the item of the section "shared" for a port, and its place; -1 if there is none.
func (c *config) sharedSection(at pinhole.Listen) (sharedport.Config, int) {
	i := slices.IndexFunc(c.Shared, func(s sharedport.Config) bool { return s.Listen == at })
	if i < 0 {
		return sharedport.Config{Listen: at}, i
	}
	return c.Shared[i], i
}

// shared tells whether the connections to a TCP port are looked at before a service gets them: where the section
// "shared" says so, where server names or first bytes choose a forward, where the tunnel has more than
// one listener or TLS of the web beside its own, and where a service speaks TLS on 443.
func (c *config) shared(at pinhole.Listen) bool {
	_, i := c.sharedSection(at)
	chooses := func(r forward.Rule) bool { return r.Listen == at && len(r.SNI)+len(r.Classes) > 0 }
	web, tunnels := false, 0
	for _, l := range c.Tunnel.Listen {
		if l.Transport() == at {
			web = web || l.Proto == relay.HTTPS && len(c.TLS.Certificates) > 0
			tunnels++
		}
	}
	return web || tunnels > 1 || i >= 0 || slices.ContainsFunc(c.Forwards, chooses) || at.Port == portHTTPS && c.tlsService(at) != ""
}

// tlsService returns the key of a service whose TLS ends at a port, "" if there is none.
func (c *config) tlsService(at pinhole.Listen) string {
	for _, x := range c.claims(at) {
		if slices.ContainsFunc(x.matches, insideTLS) {
			return x.key
		}
	}
	return ""
}

// insideTLS tells whether a match can only be told after TLS has ended.
func insideTLS(m sharedport.Match) bool { return m.Outer == sharedport.OverTLS }

// claim is what one listener of the configuration gets of a port that is shared.
type claim struct {
	key     string
	handler string
	matches []sharedport.Match
}

// claims lists who would get what of a TCP port.
func (c *config) claims(at pinhole.Listen) []claim {
	var out []claim
	here := func(network string, port uint16) bool { return network == at.Network && port == at.Port }
	for i, l := range c.SIP.Listen {
		if l.Proto != flow.UDP && here(l.Network, l.Port) {
			out = append(out, claim{fmt.Sprintf("sip.listen[%d]", i), handlerSIP, sipMatches(l)})
		}
	}
	tcp := func(class sharedport.Class) sharedport.Match { return matchOf(sharedport.OverTCP, class) }
	for _, s := range []struct {
		handler string // and its section
		list    []pinhole.Listen
		matches []sharedport.Match
	}{
		{handlerH323, c.H323.Listen, []sharedport.Match{tcp(sharedport.H225)}},
		{handlerT120, c.T120.Listen, []sharedport.Match{tcp(sharedport.T120)}},
		{handlerMSTURN, c.MSTURN.Listen, []sharedport.Match{tcp(sharedport.MSTURN), tcp(sharedport.PseudoTLS)}},
	} {
		for i, l := range s.list {
			if l == at {
				out = append(out, claim{fmt.Sprintf("%s.listen[%d]", s.handler, i), s.handler, s.matches})
			}
		}
	}
	for i, l := range c.TURN.Listen {
		if l.Transport() == at {
			out = append(out, claim{fmt.Sprintf("turn.listen[%d]", i), handlerTURN, turnMatches(l)})
		}
	}
	for i, l := range c.Proxy.Listen {
		if l.Transport() == at {
			out = append(out, claim{fmt.Sprintf("proxy.listen[%d]", i), handlerProxy, proxyMatches(l)})
		}
	}
	for i, l := range c.Tunnel.Listen {
		if l.Transport() == at {
			out = append(out, claim{fmt.Sprintf("tunnel.listen[%d]", i), handlerTunnel, c.tunnelMatches(l)})
		}
	}
	for i, r := range c.Forwards {
		if r.Listen == at {
			out = append(out, claim{fmt.Sprintf("forwards[%d]", i), handlerForward, forwardMatches(r)})
		}
	}
	return insideToo(out)
}

// matches returns what the listener of that key gets of a port.
func (c *config) matches(at pinhole.Listen, key string) []sharedport.Match {
	for _, x := range c.claims(at) {
		switch {
		case x.key != key:
		case slices.ContainsFunc(x.matches, isSIPS):
			return append(x.matches, c.silentMatches(at)...)
		default:
			return x.matches
		}
	}
	return nil
}

// isSIPS tells whether a match is for SIP over TLS.
func isSIPS(m sharedport.Match) bool {
	return m.Kind == sharedport.Kind{Outer: sharedport.OverTLS, Class: sharedport.SIP}
}

// plainHandlers are those of services that know no TLS of their own.
func plainHandlers() []string { return []string{handlerH323, handlerT120, handlerMSTURN} }

// insideToo gives what is plain by its nature its part inside TLS, where TLS ends for others.
func insideToo(list []claim) []claim {
	if !slices.ContainsFunc(list, func(x claim) bool { return slices.ContainsFunc(x.matches, insideTLS) }) {
		return list
	}
	for i, x := range list {
		if slices.Contains(plainHandlers(), x.handler) {
			for _, m := range x.matches {
				list[i].matches = append(list[i].matches, matchOf(sharedport.OverTLS, m.Class))
			}
		}
	}
	return list
}

// claimed tells whether who has that key can share a port.
func (c *config) claimed(at pinhole.Listen, key string) bool {
	return slices.ContainsFunc(c.claims(at), func(x claim) bool { return x.key == strings.TrimSuffix(key, ".listen") })
}

// strange tells whether a claim is for something inside TLS whose clients have nothing to do with SIP's.
func (x claim) strange() bool {
	return slices.ContainsFunc(x.matches, insideTLS) && !slices.Contains(append(plainHandlers(), handlerSIP), x.handler)
}

func matchOf(outer sharedport.Outer, class sharedport.Class) sharedport.Match {
	return sharedport.Match{Kind: sharedport.Kind{Outer: outer, Class: class}}
}

// sipMatches returns what a SIP listener gets, but for silent clients.
func sipMatches(l sipalg.Listen) []sharedport.Match {
	outer, class := sharedport.OverTCP, sharedport.SIP
	if l.Proto.Secure() {
		outer = sharedport.OverTLS
	}
	if l.Proto == flow.WS || l.Proto == flow.WSS {
		class = sharedport.WebSocket
	}
	return []sharedport.Match{matchOf(outer, class)}
}

// turnMatches returns what a listener of TURN over TCP gets.
func turnMatches(l turn.Listen) []sharedport.Match {
	if l.Proto == "tls" {
		return []sharedport.Match{matchOf(sharedport.OverTLS, sharedport.STUN)}
	}
	return []sharedport.Match{matchOf(sharedport.OverTCP, sharedport.STUN)}
}

// silentMatches returns which silent clients the SIP listeners on TLS get: those of names that the section says are
// SIP's, and the rest where it says so or where nothing else is inside TLS.
func (c *config) silentMatches(at pinhole.Listen) []sharedport.Match {
	s, _ := c.sharedSection(at)
	sip, others := false, false
	for _, x := range c.claims(at) {
		sip = sip || slices.ContainsFunc(x.matches, isSIPS)
		others = others || x.strange()
	}
	var out []sharedport.Match
	silent := sharedport.Kind{Outer: sharedport.OverTLS, Class: sharedport.Silent}
	if len(s.SilentNames) > 0 {
		out = append(out, sharedport.Match{Kind: silent, Names: s.SilentNames})
	}
	if s.Silent == sharedport.SilentSIP || s.Silent == "" && sip && !others {
		out = append(out, sharedport.Match{Kind: silent})
	}
	return out
}

// forwardMatches returns what a forward gets of a port that is shared.
func forwardMatches(r forward.Rule) []sharedport.Match {
	if len(r.Classes) == 0 {
		return []sharedport.Match{{Kind: sharedport.Kind{Outer: sharedport.OverTCP, Class: sharedport.TLS}, Names: r.SNI}}
	}
	var out []sharedport.Match
	for _, k := range r.Classes {
		for _, e := range k.Each() {
			named := e.Outer == sharedport.OverTLS || e.Class == sharedport.TLS
			switch {
			case named:
				out = append(out, sharedport.Match{Kind: e, Names: r.SNI})
			case len(r.SNI) == 0:
				out = append(out, sharedport.Match{Kind: e})
			}
		}
	}
	return out
}

// sharedPorts are the open ports that services share.
type sharedPorts map[netip.AddrPort]*sharedport.Port

// listen opens a TCP port for the listener of that key, or takes its part of one that is shared, from which what was
// inside TLS comes decrypted.
func (d *serviceDeps) listen(ctx context.Context, key string, l pinhole.Listen, at netip.AddrPort) (net.Listener, error) {
	if p := d.shared[at]; p != nil {
		return p.Listener(d.cfg.matches(l, key)...)
	}
	return d.handed.listenTCP(ctx, sectionOf(key), at, &net.ListenConfig{})
}

// bindShared is bindTransparent for what may share its ports.
func (d *serviceDeps) bindShared(ctx context.Context, key string, list []pinhole.Listen, transparent bool) (sockets, error) {
	socks, err := d.handed.bind(ctx, key, list, d.cfg.networks(), func(i int, at netip.AddrPort) (net.Listener, error) {
		if transparent && d.shared[at] == nil {
			return d.handed.listenTCP(ctx, sectionOf(key), at, &net.ListenConfig{Control: setTransparent})
		}
		return d.listen(ctx, fmt.Sprintf(key, i), list[i], at)
	})
	socks.guard(d.bans, false)
	return socks, err
}

// sharedListens lists the ports that services share.
func (c *config) sharedListens() []pinhole.Listen {
	var out []pinhole.Listen
	for _, p := range c.listeners() {
		at := pinhole.Listen{Proto: p.Proto, Network: p.Network, Port: p.Port}
		if p.Proto == "tcp" && p.Handler != handlerBlocked && c.shared(at) && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// sharedPort is an open port, and where it stands in the configuration.
type sharedPort struct {
	at   pinhole.Listen
	port *sharedport.Port
}

// buildShared opens the ports that services share, for the services below it in the table.
func buildShared(ctx context.Context, d *serviceDeps) (*service, error) {
	count := sharedport.NewCounters()
	var ports []sharedPort
	var open []net.Listener
	d.shared = sharedPorts{}
	for _, at := range d.cfg.sharedListens() {
		for _, a := range d.cfg.Networks[at.Network].Addresses {
			addr := netip.AddrPortFrom(a, at.Port)
			ln, err := d.handed.listenTCP(ctx, "shared", addr, &net.ListenConfig{})
			if err != nil {
				for _, ln := range open {
					ln.Close()
				}
				return nil, fmt.Errorf("%s: %w", at, err)
			}
			s, _ := d.cfg.sharedSection(at)
			p := sharedport.New(d.bans.Listener(ln), s, sharedport.Deps{TLS: d.sharedTLS(at), Count: count}, d.log.Named("ports"))
			open, ports, d.shared[addr] = append(open, ln), append(ports, sharedPort{at, p}), p
		}
	}
	d.reg.MustRegister(count)
	return &service{
		serve: func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			for _, p := range ports {
				g.Go(func() error { return p.port.Serve(ctx) })
			}
			return g.Wait()
		},
		reload: func(c *config) error {
			for _, p := range ports {
				s, _ := c.sharedSection(p.at)
				p.port.Configure(s)
			}
			return nil
		},
	}, nil
}

// sharedTLS returns what gives the configurations of a port's handshakes, nil if no service is inside TLS there.
func (d *serviceDeps) sharedTLS(at pinhole.Listen) func(legacy bool) *tls.Config {
	if d.cfg.tlsService(at) == "" {
		return nil
	}
	ask := d.cfg.sharedAsk(at)
	return func(legacy bool) *tls.Config { return d.tls.Shared(at.Network, legacy, ask) }
}

// sharedAsk says what a port's handshake asks of clients: what SIP does if it is alone inside TLS. Beside others, who
// have no certificates, it is asked for and SIP refuses who has shown none.
func (c *config) sharedAsk(at pinhole.Listen) tls.ClientAuthType {
	sip, others := false, false
	for _, x := range c.claims(at) {
		sip = sip || x.handler == handlerSIP && slices.ContainsFunc(x.matches, insideTLS)
		others = others || x.strange()
	}
	demanded := slices.Contains(c.SIP.ClientCertificates, at.Network)
	switch {
	case sip && demanded && !others:
		return tls.RequireAndVerifyClientCert
	case sip && (demanded || slices.Contains(c.SIP.OptionalClientCertificates, at.Network)):
		return tls.VerifyClientCertIfGiven
	}
	return tls.NoClientCert
}

// validateShared finds what cannot share a port.
func (c *config) validateShared(l *faultList) {
	for i, r := range c.Forwards {
		key := fmt.Sprintf("forwards[%d]", i)
		if r.TLS == forward.TLSTerminate && len(c.TLS.Certificates) == 0 {
			l.add(key+".tls", "terminate needs a certificate under tls.certificates")
		}
		asked := r.ClientCerts == forward.CertsDemand || r.ClientCerts == forward.CertsOptional
		if asked && r.TLS == forward.TLSTerminate && c.TLS.ClientCA == "" {
			l.add(key+".client_certificates", "needs tls.client_ca, the authorities of the clients")
		}
		if slices.ContainsFunc(forwardMatches(r), insideTLS) && len(c.TLS.Certificates) == 0 {
			l.add(key+".classes", "what is inside TLS needs a certificate under tls.certificates")
		}
	}
	for i, s := range c.Shared {
		key := fmt.Sprintf("shared[%d]", i)
		*l = append(*l, sectionFaults(key, s.Validate(c.networks()))...)
		if _, first := c.sharedSection(s.Listen); first != i {
			l.add(key+".listen", "%s is also that of shared[%d]", s.Listen, first)
		}
		if s.Listen.Proto == "tcp" && !slices.Contains(c.sharedListens(), s.Listen) {
			l.add(key+".listen", "no service listens on %s", s.Listen)
		}
		if (s.Silent == sharedport.SilentSIP || len(s.SilentNames) > 0) && !c.sipInside(s.Listen) {
			l.add(key+".silent", "SIP has no tls:// listener on %s", s.Listen)
		}
	}
	for _, p := range c.listeners() {
		at := pinhole.Listen{Proto: p.Proto, Network: p.Network, Port: p.Port}
		if p.Proto == "tcp" && c.shared(at) && !c.claimed(at, p.Key) && p.Handler != handlerBlocked {
			l.add(p.Key, "%s is shared, which %s cannot", p, p.Handler)
		}
	}
	for _, at := range c.sharedListens() {
		c.validateClaims(l, at)
	}
}

// sipInside tells whether SIP over TLS is on a port.
func (c *config) sipInside(at pinhole.Listen) bool {
	return slices.ContainsFunc(c.SIP.Listen, func(l sipalg.Listen) bool {
		return l.Proto == flow.TLS && l.Network == at.Network && l.Port == at.Port
	})
}

// validateClaims finds what two services want of one port.
func (c *config) validateClaims(l *faultList, at pinhole.Listen) {
	type want struct {
		sharedport.Kind
		name string
	}
	taken := map[want]string{}
	rest := want{Kind: sharedport.Kind{Outer: sharedport.OverTCP, Class: sharedport.TLS}}
	if key := c.tlsService(at); key != "" {
		taken[rest] = key
	}
	for _, x := range c.claims(at) {
		for _, m := range x.matches {
			names := m.Names
			if len(names) == 0 {
				names = []string{""}
			}
			for j, n := range names {
				w := want{m.Kind, n}
				c.judgeClaim(l, x, w.Kind, n, j, taken[w], at)
				if taken[w] == "" && n != "" {
					taken[w] = fmt.Sprintf("%s.sni[%d]", x.key, j)
				} else if taken[w] == "" {
					taken[w] = x.key
				}
			}
		}
	}
}

// judgeClaim says why a claim cannot have what another has.
func (c *config) judgeClaim(l *faultList, x claim, k sharedport.Kind, name string, j int, other string, at pinhole.Listen) {
	switch {
	case other == "" || other == x.key && name == "":
	case name != "":
		l.add(fmt.Sprintf("%s.sni[%d]", x.key, j), "%s is also named by %s", name, other)
	case k.Class == sharedport.TLS:
		l.add(x.key+".listen", "%s gets what no other forward of %s names; list server names under sni", other, at)
	case x.handler == handlerForward:
		l.add(x.key+".classes", "%s of %s is also for %s", k, at, other)
	default:
		l.add(x.key, "%s of %s is also for %s", k, at, other)
	}
}

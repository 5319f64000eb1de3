package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"edged.dev/edged/pkg/media/fastpath"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/resolve"
)

const (
	// dnsWait bounds a question, dnsAll all of them.
	dnsWait = time.Second
	dnsAll  = 3 * time.Second
	// dnsSlow is too long to wait for a name while a caller waits.
	dnsSlow = 500 * time.Millisecond
)

// hostName is a name that the configuration wants to be found.
type hostName struct {
	key   string
	query resolve.Query
}

// hostNames lists the names that the edge will look up.
func (c *config) hostNames() []hostName {
	var out []hostName
	add := func(key, host string, port uint16, proto flow.Proto) {
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host == "" || host == "*" || host == "localhost" || err == nil {
			return
		}
		out = append(out, hostName{key, resolve.Query{Host: host, Port: port, Proto: proto, Secure: proto.Secure()}})
	}
	for _, domain := range slices.Sorted(maps.Keys(c.SIP.Domains)) {
		d, key := c.SIP.Domains[domain], "sip.domains."+domain
		if d.Server == "" {
			add(key, domain, 0, 0)
		}
		for _, s := range append([]string{d.Server}, d.Backups...) {
			var proto flow.Proto
			if p, rest, ok := strings.Cut(s, ":"); ok && flow.ParseProto(p) != 0 {
				proto, s = flow.ParseProto(p), rest
			}
			host, port := splitPort(s)
			add(key+".server", host, port, proto)
		}
	}
	if c.ILS.Server != "builtin" {
		host, _ := splitPort(c.ILS.Server)
		add("ils.server", host, 389, flow.TCP)
	}
	for i, r := range c.Agent.Relays {
		if host, port, err := r.HostPort(); err == nil {
			add(fmt.Sprintf("agent.relays[%d].address", i), host, port, flow.TCP)
		}
	}
	if u, err := url.Parse(c.TURN.UsersURL); err == nil {
		add("turn.users_url", u.Hostname(), 443, flow.TCP)
	}
	return out
}

// splitPort cuts HOST[:PORT]; the port is 0 if there is none.
func splitPort(s string) (string, uint16) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return s, 0
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return host, 0
	}
	return host, uint16(n)
}

// dns asks the servers of the machine, and looks up the names of the configuration as the edge does: NAPTR, SRV, addresses.
func (x *exam) dns(ctx context.Context) []finding {
	ctx, cancel := context.WithTimeout(ctx, dnsAll)
	defer cancel()
	hosts := x.cfg.hostNames()
	conf, err := dns.ClientConfigFromFile(x.resolvConf)
	if err != nil || len(conf.Servers) == 0 {
		if len(hosts) == 0 {
			return []finding{fine("DNS", "no server is named, and no name of the configuration needs one")}
		}
		what := x.resolvConf + " names no server"
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			what = fmt.Sprintf("%s: %v", x.resolvConf, err)
		}
		return []finding{{
			Level: fastpath.Fail, About: "DNS", Text: what, Why: fmt.Sprintf("%s and %d more names are not found", hosts[0].query.Host, len(hosts)-1), Remedy: "nameserver ADDRESS in " + x.resolvConf + ", or addresses in the place of names",
		}}
	}
	results := make([][]finding, len(conf.Servers)+len(hosts))
	var all sync.WaitGroup
	for i, s := range conf.Servers {
		all.Go(func() {
			results[i] = []finding{askDNS(ctx, net.JoinHostPort(s, conf.Port), x.resolvConf, len(hosts) > 0)}
		})
	}
	resolver := resolve.New(resolve.Config{ResolvConf: x.resolvConf, Timeout: dnsWait, Attempts: 1})
	for i, h := range hosts {
		all.Go(func() { results[len(conf.Servers)+i] = []finding{lookUp(ctx, resolver, h)} })
	}
	all.Wait()
	return slices.Concat(results...)
}

// askDNS asks one server for the root's servers, which any has.
func askDNS(ctx context.Context, server, file string, needed bool) finding {
	m := new(dns.Msg)
	m.SetQuestion(".", dns.TypeNS)
	c := dns.Client{Timeout: dnsWait}
	_, took, err := c.ExchangeContext(ctx, m, server)
	if err != nil {
		f := finding{
			Level: fastpath.Warn, About: "DNS", Text: fmt.Sprintf("the server %s does not answer: %v", server, err), Why: "every look-up waits for it first",
			Remedy: fmt.Sprintf("correct the nameserver lines of %s, or let UDP and TCP 53 out", file),
		}
		if needed {
			f.Level, f.Why = fastpath.Fail, "names of the configuration are not found, or late: calls fail with 503 or after seconds"
		}
		return f
	}
	if took > dnsSlow {
		return finding{
			Level: fastpath.Warn, About: "DNS", Text: fmt.Sprintf("the server %s takes %v", server, took.Round(time.Millisecond)), Why: "callers wait as long",
			Remedy: "a caching server nearby (unbound, systemd-resolved) as first nameserver of " + file,
		}
	}
	return fine("DNS", "the server %s answers in %v", server, took.Round(time.Millisecond))
}

// lookUp finds a name as the edge does (RFC 3263).
func lookUp(ctx context.Context, r *resolve.Resolver, h hostName) finding {
	start := time.Now()
	answers, err := r.Resolve(ctx, h.query)
	took := time.Since(start)
	if err != nil || len(answers) == 0 {
		return finding{
			Level: fastpath.Fail, About: "DNS", Text: fmt.Sprintf("%s (%s) is not found: %v", h.query.Host, h.key, err), Why: "what goes there fails: calls with 503 or 404, tunnels do not come up",
			Remedy: fmt.Sprintf("dig +short %s; dig +short NAPTR %s; dig +short SRV _sip._udp.%s; or an address in %s", h.query.Host, h.query.Host, h.query.Host, h.key),
		}
	}
	f := fine("DNS", "%s (%s) is %v by %v, found in %v", h.query.Host, h.key, answers[0].Addr, answers[0].Proto, took.Round(time.Millisecond))
	if took > dnsSlow {
		f.Level, f.Why, f.Remedy = fastpath.Warn, "callers wait as long", "a caching server nearby as first nameserver"
	}
	return f
}

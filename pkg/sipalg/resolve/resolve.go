// Package resolve finds where a SIP URI's requests go (RFC 3263 §4): transport,
// address and port, with the alternatives to fail over to, best first. It is a
// stub resolver for that one purpose, with a cache of its own because Go's does
// not know NAPTR and does not tell how long an answer holds.
//
//	host ─ numeric ──────────────────────────────► one answer
//	     ─ port given ───────────► A, AAAA ───────► answers
//	     ─ NAPTR ─► SRV ─────────► A, AAAA ───────► answers
//	     ─ no NAPTR: SRV by transport ─► the same
//	     ─ no SRV: ──────────────► A, AAAA, the default port
//
// It does not try the answers: who sends knows what answered.
package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"edged.dev/edged/pkg/sipalg/flow"
)

// Errors that a caller branches on.
var (
	// ErrNotFound: the DNS says that there is no such host or service. Asking again soon is useless.
	ErrNotFound = errors.New("no such SIP host")
	// ErrUnavailable: no server gave a usable answer. It may do so later.
	ErrUnavailable = errors.New("the DNS gave no answer")
)

// Bounds on what one Resolve may ask for and return, whatever the DNS says.
const (
	maxServices = 8  // NAPTR records followed
	maxTargets  = 16 // SRV records followed, in all
	maxAnswers  = 32
)

// Config of a [Resolver]. The zero value of a field means its default.
type Config struct {
	// Servers to ask, in order; empty means those of ResolvConf.
	Servers []netip.AddrPort
	// ResolvConf and Hosts are read again when they change; default /etc/resolv.conf, /etc/hosts.
	ResolvConf, Hosts string
	// Protos are the transports that the edge can use, the preferred first, for hosts that leave the
	// choice to the client; default UDP, TCP, TLS.
	Protos []flow.Proto
	// IPv6First puts AAAA before A where a host has both.
	IPv6First bool
	// Timeout is how long one server may take for one question; default 2 s.
	Timeout time.Duration
	// Attempts is how often the list of servers is gone through; default 2.
	Attempts int
	// CacheSize is how many record sets are remembered; default 4096.
	CacheSize int
	// MaxTTL bounds how long a record set is believed, whatever it says; default 24 h.
	MaxTTL time.Duration
	// NegativeTTL bounds how long the lack of one is; default 5 min.
	NegativeTTL time.Duration
	// Pick returns a number in [0, n) for the weighted choice of RFC 2782; default random. It may
	// be called concurrently.
	Pick func(n int) int
}

func (c Config) withDefaults() Config {
	c.ResolvConf = cmp.Or(c.ResolvConf, "/etc/resolv.conf")
	c.Hosts = cmp.Or(c.Hosts, "/etc/hosts")
	if len(c.Protos) == 0 {
		c.Protos = []flow.Proto{flow.UDP, flow.TCP, flow.TLS}
	}
	c.Timeout = cmp.Or(c.Timeout, 2*time.Second)
	c.Attempts = cmp.Or(c.Attempts, 2)
	c.CacheSize = cmp.Or(c.CacheSize, 4096)
	c.MaxTTL = cmp.Or(c.MaxTTL, 24*time.Hour)
	c.NegativeTTL = cmp.Or(c.NegativeTTL, 5*time.Minute)
	if c.Pick == nil {
		c.Pick = rand.IntN
	}
	return c
}

// Query is what a URI says.
type Query struct {
	// Host is the URI's host or maddr: a name, or an address (IPv6 with or without brackets).
	Host string
	// Port is 0 if the URI names none.
	Port uint16
	// Proto is the URI's transport parameter, 0 if it has none.
	Proto flow.Proto
	// Secure says that the scheme is sips: nothing but TLS and WSS may be used.
	Secure bool
}

// Answer is one place to send to.
type Answer struct {
	Proto flow.Proto
	Addr  netip.AddrPort
	// Name is the name that a TLS certificate must cover: the queried host, not what SRV made of it
	// (RFC 5922 §4). It is empty for a numeric host.
	Name string
}

// Resolver resolves SIP hosts. It may be used concurrently.
type Resolver struct {
	cfg   Config
	cache *cache
	hosts *watched[map[string][]netip.Addr]
	conf  *watched[*dns.ClientConfig]
}

// New returns a Resolver. Files are read when they are needed.
func New(cfg Config) *Resolver {
	cfg = cfg.withDefaults()
	r := &Resolver{cfg: cfg, hosts: watch(cfg.Hosts, parseHosts), conf: watch(cfg.ResolvConf, parseResolvConf)}
	r.cache = newCache(cfg, r.ask)
	return r
}

// Resolve returns where requests for q may be sent, best first, at least one. The error wraps
// ErrNotFound, ErrUnavailable or ctx's. Identical questions under way are asked once.
func (r *Resolver) Resolve(ctx context.Context, q Query) ([]Answer, error) {
	list, err := r.resolve(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", q.Host, err)
	}
	return unique(list), nil
}

func (r *Resolver) resolve(ctx context.Context, q Query) ([]Answer, error) {
	fixed, err := q.transport()
	if err != nil {
		return nil, err
	}
	host := strings.TrimSuffix(strings.TrimPrefix(q.Host, "["), "]")
	if addr, err := netip.ParseAddr(host); err == nil {
		p := cmp.Or(fixed, r.fallback(q))
		return []Answer{{Proto: p, Addr: netip.AddrPortFrom(addr.Unmap(), cmp.Or(q.Port, defaultPort(p)))}}, nil
	}
	if _, ok := dns.IsDomainName(host); !ok || host == "" {
		return nil, fmt.Errorf("%w: no domain name", ErrNotFound)
	}
	list, err := r.locate(ctx, q, fixed, host)
	for i := range list {
		list[i].Name = strings.TrimSuffix(host, ".")
	}
	return list, err
}

// transport returns the transport that the URI demands, 0 if it leaves the choice.
func (q Query) transport() (flow.Proto, error) {
	if !q.Secure {
		return q.Proto, nil
	}
	switch q.Proto {
	case 0, flow.TLS, flow.WSS:
		return q.Proto, nil
	case flow.TCP: // RFC 3261 §26.2.2: sips with transport=tcp is TLS over TCP
		return flow.TLS, nil
	case flow.WS:
		return flow.WSS, nil
	}
	return 0, fmt.Errorf("%w: sips over %v", ErrNotFound, q.Proto)
}

// fallback is the transport where nothing else says one: UDP, or TLS for sips (RFC 3263 §4.1). An
// edge that cannot send UDP uses what it likes best.
func (r *Resolver) fallback(q Query) flow.Proto {
	switch {
	case q.Secure:
		return flow.TLS
	case slices.Contains(r.cfg.Protos, flow.UDP):
		return flow.UDP
	}
	return r.cfg.Protos[0]
}

// defaultPort is that of RFC 3261 §19.1.2, and the ports of HTTP for WebSockets.
func defaultPort(p flow.Proto) uint16 {
	switch p {
	case flow.TLS:
		return 5061
	case flow.WS:
		return 80
	case flow.WSS:
		return 443
	}
	return 5060
}

// locate resolves a name. Where /etc/hosts knows it, no SRV is asked for.
func (r *Resolver) locate(ctx context.Context, q Query, fixed flow.Proto, host string) ([]Answer, error) {
	p := cmp.Or(fixed, r.fallback(q))
	if q.Port != 0 || len(r.hosts.get()[key(host)]) > 0 {
		return r.addresses(ctx, p, host, cmp.Or(q.Port, defaultPort(p)))
	}
	services, err := r.services(ctx, q, fixed, host)
	if err != nil {
		return nil, err
	}
	list, found, err := r.servers(ctx, services)
	if found {
		return list, err
	}
	return r.addresses(ctx, p, host, defaultPort(p))
}

// service is an SRV name that may tell where a transport is served.
type service struct {
	proto flow.Proto
	name  string
}

// services returns the SRV names to ask for, the preferred first (RFC 3263 §4.1).
func (r *Resolver) services(ctx context.Context, q Query, fixed flow.Proto, host string) ([]service, error) {
	if fixed != 0 {
		return srvNames(nil, fixed, host), nil
	}
	// A failure counts as none: there are forwarders that refuse what they do not know.
	records, err := r.cache.get(ctx, host, dns.TypeNAPTR)
	if ctx.Err() != nil {
		return nil, err
	}
	if list := r.fromNAPTR(q, records); len(list) > 0 {
		return list, nil
	}
	var list []service
	for _, p := range r.cfg.Protos {
		if p.Secure() || !q.Secure {
			list = srvNames(list, p, host)
		}
	}
	return list, nil
}

// srvNames appends the names under which a transport is announced (RFC 3263 §4.1; _sip._tls is
// Microsoft's, and common). WebSockets have none (RFC 7118 §8).
func srvNames(list []service, p flow.Proto, host string) []service {
	switch p {
	case flow.UDP:
		return append(list, service{p, "_sip._udp." + host})
	case flow.TCP:
		return append(list, service{p, "_sip._tcp." + host})
	case flow.TLS:
		return append(list, service{p, "_sips._tcp." + host}, service{p, "_sip._tls." + host})
	}
	return list
}

// fromNAPTR returns the usable ones among NAPTR records, by order and preference.
func (r *Resolver) fromNAPTR(q Query, records []dns.RR) []service {
	var usable []*dns.NAPTR
	for _, rr := range records {
		n, ok := rr.(*dns.NAPTR)
		if !ok {
			continue
		}
		p := naptrProto(n.Service)
		if strings.EqualFold(n.Flags, "s") && n.Replacement != "." && slices.Contains(r.cfg.Protos, p) && (p.Secure() || !q.Secure) {
			usable = append(usable, n)
		}
	}
	slices.SortStableFunc(usable, func(a, b *dns.NAPTR) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Preference, b.Preference))
	})
	var list []service
	for _, n := range usable[:min(len(usable), maxServices)] {
		list = append(list, service{naptrProto(n.Service), n.Replacement})
	}
	return list
}

// naptrProto maps the services of RFC 3263 §9 and RFC 7118 §11.2; 0 if it is none of them.
func naptrProto(s string) flow.Proto {
	switch strings.ToUpper(s) {
	case "SIP+D2U":
		return flow.UDP
	case "SIP+D2T":
		return flow.TCP
	case "SIPS+D2T":
		return flow.TLS
	case "SIP+D2W":
		return flow.WS
	case "SIPS+D2W":
		return flow.WSS
	}
	return 0
}

// servers asks for the SRV records of all services at once, and for the addresses of their
// targets. found is false if there is no SRV record at all.
func (r *Resolver) servers(ctx context.Context, services []service) (list []Answer, found bool, err error) {
	records := make([][]dns.RR, len(services))
	errs := make([]error, len(services))
	each(len(services), func(i int) { records[i], errs[i] = r.cache.get(ctx, services[i].name, dns.TypeSRV) })
	var targets []target
	var failed error
	for i, s := range services {
		if errs[i] != nil && !errors.Is(errs[i], ErrNotFound) {
			failed = errs[i]
		}
		found = found || len(records[i]) > 0
		for _, rr := range r.order(records[i]) {
			if rr.Target != "." && rr.Port != 0 { // RFC 2782: "." says that the service is decidedly not available
				targets = append(targets, target{s.proto, rr.Target, rr.Port})
			}
		}
	}
	if len(targets) == 0 && failed != nil {
		return nil, true, failed // falling back to an address would be wrong while the DNS is down
	}
	if len(targets) == 0 {
		return nil, found, fmt.Errorf("%w: not served", ErrNotFound)
	}
	list, err = r.resolveTargets(ctx, targets[:min(len(targets), maxTargets)])
	return list, true, err
}

// target is what an SRV record names.
type target struct {
	proto flow.Proto
	host  string
	port  uint16
}

// resolveTargets returns the addresses of all targets in order; the error is the first, if there are none.
func (r *Resolver) resolveTargets(ctx context.Context, targets []target) ([]Answer, error) {
	lists := make([][]Answer, len(targets))
	errs := make([]error, len(targets))
	each(len(targets), func(i int) {
		lists[i], errs[i] = r.addresses(ctx, targets[i].proto, targets[i].host, targets[i].port)
	})
	if list := slices.Concat(lists...); len(list) > 0 {
		return list, nil
	}
	return nil, cmp.Or(errs...)
}

// addresses returns an answer for each address of host.
func (r *Resolver) addresses(ctx context.Context, p flow.Proto, host string, port uint16) ([]Answer, error) {
	addrs := slices.Clone(r.hosts.get()[key(host)])
	var err error
	if len(addrs) == 0 {
		if addrs, err = r.lookup(ctx, host); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int {
		if r.cfg.IPv6First {
			a, b = b, a
		}
		return cmp.Compare(a.BitLen(), b.BitLen())
	})
	var list []Answer
	for _, a := range addrs {
		list = append(list, Answer{Proto: p, Addr: netip.AddrPortFrom(a, port)})
	}
	return list, nil
}

// lookup asks for A and AAAA. A name with few dots is tried in the search domains too.
func (r *Resolver) lookup(ctx context.Context, host string) (addrs []netip.Addr, err error) {
	for _, name := range r.candidates(host) {
		types := [2]uint16{dns.TypeA, dns.TypeAAAA}
		var records [2][]dns.RR
		var errs [2]error
		each(2, func(i int) { records[i], errs[i] = r.cache.get(ctx, name, types[i]) })
		for _, rr := range slices.Concat(records[:]...) {
			if a := address(rr); a.IsValid() {
				addrs = append(addrs, a)
			}
		}
		if len(addrs) > 0 {
			return addrs, nil
		}
		for _, e := range errs {
			if err = e; !errors.Is(e, ErrNotFound) {
				return nil, e
			}
		}
	}
	return nil, err
}

func (r *Resolver) candidates(host string) []string {
	if conf := r.conf.get(); len(r.cfg.Servers) == 0 && conf != nil && strings.Count(host, ".") < conf.Ndots {
		return conf.NameList(host)
	}
	return []string{host}
}

func address(rr dns.RR) netip.Addr {
	var a netip.Addr
	switch rr := rr.(type) {
	case *dns.A:
		a, _ = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		a, _ = netip.AddrFromSlice(rr.AAAA)
	}
	return a.Unmap()
}

// unique drops repeated answers and bounds their number.
func unique(list []Answer) []Answer {
	var kept []Answer
	for _, a := range list {
		if len(kept) < maxAnswers && !slices.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// key is how names are compared: lower case, with the final dot.
func key(host string) string { return dns.CanonicalName(host) }

// each runs do(0) ... do(n-1) at once and waits for all.
func each(n int, do func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}

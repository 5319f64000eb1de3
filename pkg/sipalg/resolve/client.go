package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxServers is how many of the configured servers are asked, as in resolv.conf(5), and one more.
	maxServers = 4
	// maxAlias is how long a chain of CNAMEs may be.
	maxAlias = 8
	// udpSize is the size of answer that passes without fragmentation (DNS flag day 2020).
	udpSize = 1232
	// maxRecords bounds a record set.
	maxRecords = 64
)

// ask asks the servers for the records of a name, following aliases.
func (r *Resolver) ask(ctx context.Context, name string, typ uint16) ([]dns.RR, time.Duration, error) {
	ttl := 24 * time.Hour
	for links := 0; links <= maxAlias; {
		resp, err := r.exchange(ctx, name, typ)
		if err != nil {
			return nil, 0, err
		}
		records, end, n, held := follow(resp, name, typ)
		ttl = min(ttl, held)
		switch {
		case len(records) > 0:
			return records, ttl, nil
		case n == 0 || resp.Rcode == dns.RcodeNameError: // nothing leads on
			return nil, min(ttl, denied(resp)), fmt.Errorf("%w: %s has no %s", ErrNotFound, strings.TrimSuffix(name, "."), dns.TypeToString[typ])
		}
		name = end // the server knows the alias but not where it leads: ask for that
		links += n
	}
	return nil, minNegative, fmt.Errorf("%w: too many aliases", ErrNotFound)
}

// follow walks from name along the CNAMEs of an answer: the records at the end, the name there, the
// number of aliases, and how long all of it holds.
func follow(resp *dns.Msg, name string, typ uint16) (records []dns.RR, end string, links int, ttl time.Duration) {
	ttl, end = 24*time.Hour, key(name)
	for links <= maxAlias {
		alias := ""
		for _, rr := range resp.Answer {
			if key(rr.Header().Name) != end {
				continue
			}
			if rr.Header().Rrtype == typ && len(records) < maxRecords {
				records = append(records, rr)
				ttl = min(ttl, seconds(rr.Header().Ttl))
			} else if c, ok := rr.(*dns.CNAME); ok {
				alias = key(c.Target)
				ttl = min(ttl, seconds(c.Hdr.Ttl))
			}
		}
		if len(records) > 0 || alias == "" {
			break
		}
		end = alias
		links++
	}
	return records, end, links, ttl
}

// denied returns how long a denial holds (RFC 2308 §5).
func denied(resp *dns.Msg) time.Duration {
	for _, rr := range resp.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return seconds(min(soa.Minttl, soa.Hdr.Ttl))
		}
	}
	return minNegative
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// exchange asks one server after the other until one says yes or no.
func (r *Resolver) exchange(ctx context.Context, name string, typ uint16) (*dns.Msg, error) {
	servers := r.upstreams()
	err := errors.New("no server is configured")
	for range r.cfg.Attempts {
		for _, s := range servers {
			var resp *dns.Msg
			if resp, err = r.askServer(ctx, s, name, typ); err == nil {
				return resp, nil
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// askServer asks one server over UDP, and over TCP if the answer does not fit. What is no answer to
// the question (a failure, a refusal, another question) is an error.
func (r *Resolver) askServer(ctx context.Context, server, name string, typ uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), typ)
	m.SetEdns0(udpSize, false)
	resp, err := r.once(ctx, "udp", server, m)
	if err == nil && resp.Truncated {
		resp, err = r.once(ctx, "tcp", server, m)
	}
	if err == nil && resp.Rcode == dns.RcodeFormatError { // a server that does not know EDNS (RFC 6891 §7)
		m.Extra = nil
		resp, err = r.once(ctx, "udp", server, m)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask %s: %w", server, err)
	case len(resp.Question) != 1 || key(resp.Question[0].Name) != key(name) || resp.Question[0].Qtype != typ:
		return nil, fmt.Errorf("ask %s: the answer is to another question", server)
	case resp.Rcode != dns.RcodeSuccess && resp.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("ask %s: %s", server, dns.RcodeToString[resp.Rcode])
	}
	return resp, nil
}

func (r *Resolver) once(ctx context.Context, network, server string, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c := dns.Client{Net: network, Timeout: r.cfg.Timeout, UDPSize: udpSize}
	m.Id = dns.Id()
	resp, _, err := c.ExchangeContext(ctx, m, server)
	return resp, err
}

// upstreams returns the servers to ask, four at most.
func (r *Resolver) upstreams() []string {
	var list []string
	for _, s := range r.cfg.Servers {
		list = append(list, s.String())
	}
	if conf := r.conf.get(); len(list) == 0 && conf != nil {
		for _, s := range conf.Servers {
			list = append(list, net.JoinHostPort(s, conf.Port))
		}
	}
	return slices.Clip(list[:min(len(list), maxServers)])
}

package forwardproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn/peerpolicy"
)

// DialFunc connects to a host: network is tcp or udp, host an address or a name in lower case, port 1-65535. The caller
// owns the connection; one of udp keeps the borders of datagrams. An error that wraps [ErrNotAllowed] is told to clients as a matter
// of policy, others as one of the network.
type DialFunc func(ctx context.Context, network, host string, port uint16) (net.Conn, error)

// ErrNotAllowed says that a destination is refused by policy.
var ErrNotAllowed = errors.New("destination not allowed")

// Refused is why a destination is not dialled: [ErrNotAllowed] with the reason label of metrics.
type Refused struct{ Reason string }

// Error returns the reason in words.
func (r *Refused) Error() string { return ErrNotAllowed.Error() + ": " + r.Reason }

// Unwrap returns [ErrNotAllowed].
func (*Refused) Unwrap() error { return ErrNotAllowed }

// Reasons of [Refused] beside those of package peerpolicy.
const (
	notListed = "not_allowed"
	denied    = "denied"
	inside    = "inside"
)

// dialTimeout bounds the lookup and all attempts together.
const dialTimeout = 10 * time.Second

// Surroundings are what a dialer must know of where it runs.
type Surroundings struct {
	Networks pinhole.Networks
	// RouteTo names the network by which an address is reached, "" if none; nil: only subnets count.
	RouteTo func(netip.Addr) string
	// Own tells whether an address is one of this host's; nil: those of Networks alone are.
	Own func(netip.Addr) bool
	// Resolver looks names up; nil: the system's.
	Resolver *net.Resolver
}

// Dialer dials what the lists of a configuration allow. Names are resolved once, by the dial, and what is judged is the very
// address that is dialled: an answer of DNS that changes between two lookups gains nothing (rebinding).
type Dialer struct {
	around Surroundings
	rules  atomic.Pointer[rules]
}

// rules are the lists of one configuration.
type rules struct {
	allow, deny []Target
	private     []netip.Prefix
	addresses   *peerpolicy.Policy
}

// NewDialer returns a dialer for the lists of a configuration that is valid.
func NewDialer(c Config, around Surroundings) *Dialer {
	d := &Dialer{around: around}
	d.Configure(c)
	return d
}

// Configure takes over the lists of a configuration that is valid, for what is dialled from now on.
func (d *Dialer) Configure(c Config) {
	r := &rules{allow: c.Allow, deny: c.Deny, private: c.Private}
	r.addresses = peerpolicy.New(peerpolicy.Config{
		Allow: c.Private,
		Own:   func(a netip.Addr) bool { return d.own(a) && !r.isPrivate(a) },
	})
	d.rules.Store(r)
}

func (d *Dialer) own(a netip.Addr) bool {
	return d.around.Networks.Own(a) || d.around.Own != nil && d.around.Own(a)
}

func (r *rules) isPrivate(a netip.Addr) bool {
	return slices.ContainsFunc(r.private, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Dial is a [DialFunc].
func (d *Dialer) Dial(ctx context.Context, network, host string, port uint16) (net.Conn, error) {
	r, udp := d.rules.Load(), network == "udp"
	named, why := r.asked(udp, host, port)
	if why != "" {
		return nil, &Refused{why}
	}
	dialer := net.Dialer{Timeout: dialTimeout, Resolver: d.around.Resolver, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial: %w", err)
		}
		if why := d.judge(r, udp, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), named); why != "" {
			return &Refused{why}
		}
		return nil
	}}
	return dialer.DialContext(ctx, network, net.JoinHostPort(host, strconv.Itoa(int(port))))
}

// asked judges a destination as it was asked for; named says that the lists allow it whatever its address is, else an item
// with a network may.
func (r *rules) asked(udp bool, host string, port uint16) (named bool, why string) {
	byName := func(t Target) bool { return t.port(udp, port) && t.named(host) }
	byAddress := func(t Target) bool { return t.port(udp, port) && t.Prefix.IsValid() }
	switch {
	case slices.ContainsFunc(r.deny, byName):
		return false, denied
	case slices.ContainsFunc(r.allow, byName):
		return true, ""
	case slices.ContainsFunc(r.allow, byAddress):
		return false, ""
	}
	return false, notListed // not even looked up: a name may carry out what a host inside knows
}

// judge judges an address that is about to be dialled: "" or the reason why not.
func (d *Dialer) judge(r *rules, udp bool, to netip.AddrPort, named bool) string {
	of := func(t Target) bool { return t.port(udp, to.Port()) && t.Prefix.Contains(to.Addr()) }
	switch {
	case slices.ContainsFunc(r.deny, of):
		return denied
	case !named && !slices.ContainsFunc(r.allow, of):
		return notListed
	}
	if why := r.addresses.Permission(to.Addr()); why != "" {
		return why
	}
	if !r.isPrivate(to.Addr()) && d.inside(to.Addr()) {
		return inside
	}
	return ""
}

// inside tells whether a host is on a network whose hosts are trusted.
func (d *Dialer) inside(a netip.Addr) bool {
	name := d.around.Networks.Of(a)
	if name == "" && d.around.RouteTo != nil {
		name = d.around.RouteTo(a)
	}
	return d.around.Networks[name].Trusted
}

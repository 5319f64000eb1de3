package fastpath

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	maxRules       = 256     // tcp_rules
	maxPorts       = 1 << 16 // tcp_ports
	maxConnections = 1 << 14
)

// ForwardRule says which TCP connections the kernel carries to which target, unread. The daemon listens at
// the same address itself, with the same policy: what the program leaves alone comes there.
type ForwardRule struct {
	Name string
	// Listen is one of this machine's addresses, To the target; both of one family, IPv4 or IPv6.
	Listen, To netip.AddrPort
	// From is the address that the target sees; without one the route to the target picks it.
	From netip.Addr
	// Allow has the sources that may connect: none if it is empty.
	Allow []netip.Prefix
	// MaxConnections is 1 to 16384; 0 means 1024. Ports of From are reserved as they are needed, twice as many at
	// most, as a used one rests for a minute. Each takes a socket of the process.
	MaxConnections int
	// Idle is how long an established connection may be silent; 0 means 2 hours and 4 minutes (RFC 5382
	// REQ-5).
	Idle time.Duration
}

// Forward is a rule in force, until Close or the end of the path.
type Forward struct {
	all  *forwards
	rule ForwardRule
	key  tcKey
	// From here on the mutex of forwards guards all.
	value, written tcRule
	ports          *ports
	way            *way
	why            string    // why it is not in force, "" if it is
	inherited      time.Time // when it was found, if it is of an earlier run and nobody has asked for it
	review         bool      // the connections of an earlier run must be looked at: may they still be?
	// trouble is what was last logged of its ports.
	trouble string
	// live are the connections as the last sweep found them, done the traffic of those that have ended.
	live map[uint16]*conn
	done [2]Traffic
}

// forwards are all rules of a path. Its mutex is taken before the path's.
type forwards struct {
	path *Path
	mu   sync.Mutex
	list [maxRules]*Forward
	// clients are the ways to clients that the program knows.
	clients map[tcClient]*clientWay
	swept   time.Time
	closed  bool
}

func newForwards(p *Path) *forwards {
	return &forwards{path: p, clients: make(map[tcClient]*clientWay)}
}

// Forward has the kernel carry connections to r.Listen. They begin as soon as the way to the target is known;
// Stats says whether it is. The error wraps errors.ErrUnsupported where user space must do it.
func (p *Path) Forward(r ForwardRule) (*Forward, error) {
	f, err := p.tcp.add(r)
	if err != nil {
		return nil, fmt.Errorf("forward %s: %w", r.Name, err)
	}
	p.kick()
	return f, nil
}

// empty removes all entries of a map to which nobody adds any.
func empty(m *ebpf.Map) error {
	key := make([]byte, m.KeySize())
	for {
		err := m.NextKey(nil, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = m.Delete(key)
		}
		if err != nil {
			return err
		}
	}
}

// check completes a rule.
func (r *ForwardRule) check() error {
	r.MaxConnections = cmp.Or(r.MaxConnections, 1024)
	r.Idle = cmp.Or(r.Idle, idleTime)
	if r.MaxConnections < 1 || r.MaxConnections > maxConnections || r.Idle < 0 {
		return fmt.Errorf("%w: more than %d connections", errors.ErrUnsupported, maxConnections)
	}
	if !r.Listen.IsValid() || !r.To.IsValid() || r.Listen.Port() == 0 || r.To.Port() == 0 ||
		r.Listen.Addr().IsUnspecified() || r.To.Addr().IsUnspecified() {
		return fmt.Errorf("%w: both addresses must be complete", errors.ErrUnsupported)
	}
	if !r.From.IsValid() {
		routes, err := netlink.RouteGet(r.To.Addr().AsSlice())
		if err != nil || len(routes) == 0 {
			return fmt.Errorf("%w: no route to %s", errors.ErrUnsupported, r.To.Addr())
		}
		r.From, _ = netip.AddrFromSlice(routes[0].Src)
		r.From = r.From.Unmap()
	}
	for _, a := range []netip.Addr{r.Listen.Addr(), r.To.Addr(), r.From} {
		if a.Is4() != r.To.Addr().Is4() || a.Is4In6() || a.Zone() != "" || a.IsLinkLocalUnicast() || a.IsMulticast() {
			return fmt.Errorf("%w: all addresses must be of one family, and routed", errors.ErrUnsupported)
		}
	}
	// The program has IPv4 addresses mapped into IPv6: ::/0 would let them all in, where user space lets in none.
	r.Allow = slices.DeleteFunc(slices.Clone(r.Allow), func(p netip.Prefix) bool { return p.Addr().Is4() != r.Listen.Addr().Is4() })
	return nil
}

// ports is how many ports may be reserved.
func (r *ForwardRule) ports() int { return min(2*r.MaxConnections, maxConnections) }

// add enters a rule; the worker brings it into force.
func (a *forwards) add(r ForwardRule) (*Forward, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, errors.New("the path has ended")
	}
	a.swept = time.Time{}
	if f, err := a.claimLocked(r); f != nil || err != nil {
		return f, err
	}
	f := &Forward{all: a, rule: r, key: tcpKey(r.Listen), live: make(map[uint16]*conn), why: "being looked at"}
	index := slices.Index(a.list[:], nil)
	first, ok := a.ringLocked(uint32(ringSize(r.ports())))
	if index < 0 || !ok || slices.ContainsFunc(a.list[:], func(o *Forward) bool { return o != nil && o.key == f.key }) {
		return nil, fmt.Errorf("%w: the address has a rule, or the kernel's tables are full", errors.ErrUnsupported)
	}
	f.value = tcRule{
		ToPort: port(r.To.Port()), Index: uint32(index), First: first, Mask: uint32(ringSize(r.ports()) - 1),
	}
	f.value.setLimits(&r)
	f.value.From.Word, f.value.To.Word = words(r.From), words(r.To.Addr())
	f.ports = newPorts(r.From, r.ports(), ringSize(r.ports()))
	if err := a.admitLocked(f); err != nil {
		return nil, err
	}
	a.list[index] = f
	return f, nil
}

// setLimits has a quarter of the connections be half open at most.
func (v *tcRule) setLimits(r *ForwardRule) {
	v.Limit, v.HalfLimit = uint32(r.MaxConnections), uint32(max(16, r.MaxConnections/4))
}

// ringSize is how many places a rule needs in tcp_ports.
func ringSize(ports int) int {
	size := firstPorts
	for size < ports {
		size *= 2
	}
	return size
}

// ringLocked finds free places in tcp_ports.
func (a *forwards) ringLocked(size uint32) (first uint32, ok bool) {
	for first = 0; first < maxPorts; first += size {
		taken := slices.ContainsFunc(a.list[:], func(f *Forward) bool {
			return f != nil && f.value.First < first+size && first <= f.value.First+f.value.Mask
		})
		if !taken {
			return first, true
		}
	}
	return 0, false
}

// admitLocked sets the counters to zero, and writes who may connect.
func (a *forwards) admitLocked(f *Forward) error {
	k := a.path.kern
	zero := uint64(0)
	for reason := range uint32(reasons) {
		if err := k.objs.TcpReasons.Put(f.value.Index*reasons+reason, zero); err != nil {
			return err
		}
	}
	if err := k.objs.TcpCounts.Put(f.value.Index, tcCounts{}); err != nil {
		return err
	}
	return a.allowLocked(f)
}

// allowLocked writes who may connect.
func (a *forwards) allowLocked(f *Forward) error {
	k := a.path.kern
	for i, p := range f.rule.Allow {
		if err := k.objs.TcpAllow.Put(allowKey(f.value.Index, p), uint32(1)); err != nil {
			return errors.Join(fmt.Errorf("%w: allow %s: %w", errors.ErrUnsupported, p, err), a.banLocked(f, f.rule.Allow[:i]))
		}
	}
	return nil
}

func (a *forwards) banLocked(f *Forward, list []netip.Prefix) error {
	var errs []error
	for _, p := range list {
		if err := a.path.kern.objs.TcpAllow.Delete(allowKey(f.value.Index, p)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// allowKey is a prefix as the program looks for it: after the rule's number, IPv4 mapped into IPv6.
func allowKey(rule uint32, p netip.Prefix) *tcAllowKey {
	p = p.Masked()
	k := &tcAllowKey{Bits: 32 + uint32(p.Bits()), Rule: rule}
	if p.Addr().Is4() {
		k.Bits += 96
	}
	k.Source.Word = words(p.Addr())
	return k
}

// allows tells whether an address may connect.
func (r *ForwardRule) allows(a netip.Addr) bool {
	return slices.ContainsFunc(r.Allow, func(p netip.Prefix) bool { return p.Contains(a) })
}

func tcpKey(a netip.AddrPort) tcKey {
	k := keyOf(a)
	k.Proto = unix.IPPROTO_TCP
	return k
}

// Drain has the kernel begin no connections any more, but leave them to the daemon's listener; open ones go on.
func (f *Forward) Drain() error {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	if f.all.list[f.value.Index] != f {
		return nil
	}
	f.value.Limit = 0
	return f.writeLocked()
}

// Close takes the rule out of the kernel. Its connections end: they are unknown to the stack, which resets them.
func (f *Forward) Close() error {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	if f.all.list[f.value.Index] != f {
		return nil
	}
	return f.all.removeLocked(f)
}

func (a *forwards) removeLocked(f *Forward) error {
	k := a.path.kern
	err := k.objs.TcpRules.Delete(&f.key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	errs := []error{err, a.banLocked(f, f.rule.Allow)}
	all, err := a.readLocked()
	errs = append(errs, err)
	for _, c := range all[f] {
		errs = append(errs, a.takeLocked(c))
	}
	f.ports.close()
	a.list[f.value.Index] = nil
	a.path.mu.Lock()
	a.path.leaveLocked(f.way)
	a.path.mu.Unlock()
	f.way = nil
	if !slices.ContainsFunc(a.list[:], func(f *Forward) bool { return f != nil }) {
		errs = append(errs, k.objs.TcpOn.Set(uint32(0)))
	}
	return errors.Join(errs...)
}

// close ends all rules.
func (a *forwards) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	var errs []error
	for _, f := range a.list {
		if f != nil {
			errs = append(errs, a.removeLocked(f))
		}
	}
	return errors.Join(errs...)
}

// complain logs what went wrong with a rule.
func (f *Forward) complain(what string, err error) {
	if err != nil {
		f.all.path.log.Error("kernel forward", zap.String("name", f.rule.Name), zap.String("what", what), zap.Error(err))
	}
}

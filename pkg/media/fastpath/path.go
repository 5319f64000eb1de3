package fastpath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/userpath"
	"edged.dev/edged/pkg/pinhole"
)

// Path is a userpath.Path whose streams the kernel carries where it can. Its methods may be called
// concurrently.
type Path struct {
	user *userpath.Path
	log  *zap.Logger
	dscp int
	// idle is how long an adopted flow may be silent.
	idle time.Duration
	// addrs are the addresses whose devices get the program.
	addrs []netip.Addr
	ways  *ways
	tcp   *forwards
	// wake tells the worker that there is something to do; it holds one token.
	wake chan struct{}

	mu      sync.Mutex
	kern    *kernel // nil when closed
	streams map[*media.Socket]*stream
	byKey   map[tcKey]*stream
	dirty   map[*stream]struct{}
	// channels are those of TURN, by the flow that says what is done.
	channels      map[*media.Flow]*channel
	byChannel     map[tcChannelKey]*channel
	dirtyChannels map[*channel]struct{}
	// adopted are the flows of an earlier run.
	adopted map[tcKey]*adopted
	known   map[wayKey]*way
	bySlot  []*way
	free    []uint32
	// changed asks the worker to look at neighbours again, rerouted at routes too.
	changed, rerouted bool
	// retried is when the worker last looked at all streams.
	retried time.Time
}

type wayKey struct{ dst, src netip.Addr }

// stream is what arrives at one socket.
type stream struct {
	sock *media.Socket
	// flow is what was last Set, nil if there are several.
	flow *media.Flow
	// why tells why it is not in the kernel; meaningless while on.
	why string
	// on tells whether the kernel has it, by key; seen is what counters were told.
	on       bool
	key      tcKey
	seen     tcFlow
	counters *media.Counters
	// back and forth are the ways to the source and to the destination, while on.
	back, forth *way
}

var _ media.Path = (*Path)(nil)

// Config is what the kernel path needs to know. The relay's own settings are in package media.
type Config struct {
	Networks pinhole.Networks
	// DSCP marks what is forwarded, 0-63.
	DSCP int
	// XDP puts a program into the drivers of devices that can have one, before the one at their ingress,
	// which carries the rest.
	XDP bool
	// Idle is how long the flows of an earlier run are kept without a packet; 0 means a minute.
	Idle time.Duration
	Pin  Pin
}

// New loads the program and attaches it to the devices that carry the networks' addresses, on top of
// user, which it takes over. What an earlier run has pinned is adopted if it is in use, and else removed. An
// error means that this machine has no kernel path (no privilege: CAP_NET_ADMIN and CAP_BPF; an old
// kernel; no fitting device): then user can be used alone.
func New(user *userpath.Path, c Config, log *zap.Logger) (*Path, error) {
	return newPath(user, c, log, options{})
}

// options are for tests.
type options struct {
	// loopback carries what stays on the loopback device, clsact attaches as old kernels do.
	loopback, clsact bool
}

func newPath(user *userpath.Path, c Config, log *zap.Logger, o options) (*Path, error) {
	p := &Path{
		user: user, log: log, dscp: c.DSCP, idle: cmp.Or(c.Idle, time.Minute),
		ways:    &ways{loopback: o.loopback, xdp: c.XDP},
		wake:    make(chan struct{}, 1),
		streams: make(map[*media.Socket]*stream),
		byKey:   make(map[tcKey]*stream),
		adopted: make(map[tcKey]*adopted),
		dirty:   make(map[*stream]struct{}),
		known:   make(map[wayKey]*way),

		channels:      make(map[*media.Flow]*channel),
		byChannel:     make(map[tcChannelKey]*channel),
		dirtyChannels: make(map[*channel]struct{}),
	}
	p.tcp = newForwards(p)
	for _, n := range c.Networks {
		p.addrs = append(p.addrs, n.Addresses...)
	}
	if err := p.load(c.Pin, c.XDP); err != nil {
		return nil, err
	}
	p.kern.clsact = o.clsact
	if err := p.start(); err != nil {
		return nil, errors.Join(err, p.tcp.close(), p.kern.close())
	}
	return p, nil
}

// load loads the program. Where it cannot be pinned it works all the same, until the daemon ends.
func (p *Path) load(pin Pin, xdp bool) error {
	name, err := instanceName(pin.Name)
	if err != nil {
		return err
	}
	var keep *pins
	var why error
	if pin.Folder != "" {
		keep, why = openPins(pin)
	}
	p.kern, err = loadPinned(keep, handleOf(name), xdp)
	if err != nil && keep != nil {
		why = errors.Join(err, keep.remove())
		p.kern, err = loadPinned(nil, handleOf(name), xdp)
	}
	if err != nil {
		return err
	}
	if why != nil {
		p.log.Warn("kernel media path: not pinned, so media ends with the daemon; see media.pin", zap.Error(why))
	}
	return nil
}

// start attaches the program for the first time. What runs already gets its lease first.
func (p *Path) start() error {
	if err := p.ways.forget(); err != nil {
		return err
	}
	c, err := readClock()
	if err == nil {
		err = p.kern.renew(c)
	}
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	found, missing := devicesOf(p.addrs, p.ways.loopback)
	names := make([]string, 0, len(found))
	for index, name := range found {
		if err := p.kern.attach(index, name); err != nil {
			return err
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return fmt.Errorf("no device can carry media: %w", missing)
	}
	if err := p.kern.sweep(); err != nil {
		p.log.Warn("kernel media path: leftovers of an earlier run not removed", zap.Error(err))
	}
	for _, d := range p.kern.devices {
		p.sayXDP(d)
	}
	slices.Sort(names)
	p.log.Info("kernel media path", zap.Strings("devices", names), zap.String("attached", p.kern.attachment()),
		zap.Bool("pinned", p.kern.pins != nil), zap.NamedError("without", missing))
	if p.kern.adopted {
		return errors.Join(p.tcp.adopt(c), p.adopt(c), p.kern.dropChannels())
	}
	return nil
}

// String returns "tc", or "xdp" if a driver has got the program.
func (p *Path) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kern == nil {
		return "tc"
	}
	return p.kern.name()
}

// Serve implements media.Path. At its end the kernel forwards nothing any more.
func (p *Path) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go p.work(ctx, done)
	err := p.user.Serve(ctx)
	cancel()
	<-done
	err = errors.Join(err, p.tcp.close())
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, st := range p.streams {
		p.takeLocked(st, "the relay has ended")
	}
	for _, c := range p.channels {
		p.takeChannelLocked(c, "the relay has ended")
	}
	err = errors.Join(err, p.kern.close())
	p.kern = nil
	return err
}

// Set implements media.Path.
func (p *Path) Set(s *media.Socket, flows []*media.Flow) error {
	if err := p.user.Set(s, flows); err != nil || s.Channels != nil {
		return err // what channels carry is told by BindChannel
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.streams[s]
	if st == nil {
		st = &stream{sock: s}
		p.streams[s] = st
	}
	old := st.flow
	if st.flow = nil; len(flows) == 1 {
		st.flow = flows[0]
	}
	if same(old, st.flow) {
		return nil
	}
	p.takeLocked(st, "being looked at")
	p.lookLocked(st)
	for _, f := range [...]*media.Flow{old, st.flow} {
		if f != nil {
			p.lookLocked(p.streams[f.Out])
		}
	}
	return nil
}

// same tells whether two flows do the same with the same packets.
func same(a, b *media.Flow) bool {
	return a != nil && b != nil && a.From == b.From && a.To == b.To && a.Out == b.Out && a.Counters == b.Counters && a.Tapped() == b.Tapped()
}

// Delete implements media.Path.
func (p *Path) Delete(s *media.Socket) {
	p.mu.Lock()
	if st := p.streams[s]; st != nil {
		p.takeLocked(st, "")
		delete(p.streams, s)
		delete(p.dirty, st)
		if st.flow != nil {
			if peer := p.streams[st.flow.Out]; peer != nil && peer.flow != nil && peer.flow.Out == s {
				p.takeLocked(peer, "the other side has ended")
			}
		}
	}
	p.mu.Unlock()
	p.user.Delete(s)
}

// lookLocked has the worker look at a stream.
func (p *Path) lookLocked(st *stream) {
	if st == nil || p.kern == nil {
		return
	}
	p.dirty[st] = struct{}{}
	p.kick()
}

func (p *Path) kick() {
	select {
	case p.wake <- struct{}{}:
	default: // it will look at everything anyway
	}
}

// reasonLocked tells why the kernel must not carry the stream, "" if it may.
func (p *Path) reasonLocked(st *stream) string {
	f := st.flow
	switch {
	case f == nil:
		return "several peers share the port"
	case st.sock.Shared != nil || f.Out.Shared != nil:
		return "the port is shared by a multiplexID"
	case f.Tapped():
		return "its packets are captured"
	case f.Protected():
		return "SRTP ends here"
	case f.Counters.IsRTCP():
		return "RTCP is read"
	case !f.From.Valid():
		return "the peer has sent nothing yet"
	}
	// Without a confirmed peer there the destination is only what signalling said.
	if peer := p.streams[f.Out]; !f.To.Valid() || peer == nil || peer.flow == nil || !sameHost(peer.flow.From, f.To) {
		return "the other peer has sent nothing yet"
	}
	return ""
}

// sameHost tells whether a confirmed source is at the host of b; the port may be another one (H.323).
func sameHost(source, b media.Sockaddr) bool {
	return source.Valid() && source.AddrPort().Addr() == b.AddrPort().Addr()
}

// takeLocked takes the stream out of the kernel and tells the counters the last figures.
func (p *Path) takeLocked(st *stream, why string) {
	st.why = why
	if !st.on {
		return
	}
	st.on = false
	delete(p.byKey, st.key)
	v, found, err := p.kern.take(st.key)
	if err != nil {
		p.log.Error("kernel flow not removed", zap.Stringer("local", st.sock.Local), zap.Error(err))
	}
	if found {
		p.tellLocked(st, &v)
	}
	st.counters.HandOver(false)
	p.leaveLocked(st.back)
	p.leaveLocked(st.forth)
	st.back, st.forth = nil, nil
}

// Carries implements the relay's question: "xdp", or "tc" or "user" and why.
func (p *Path) Carries(s *media.Socket) (path, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.streams[s]
	switch {
	case st == nil:
		return "user", "closed"
	case !st.on:
		return "user", st.why
	case st.forth.why != "":
		return "user", st.forth.why
	}
	return p.kern.carriedBy(st.seen.Device, st.forth)
}

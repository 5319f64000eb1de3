package fastpath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
)

// channel is one direction of a channel of TURN: what comes from the client, or from the peer. It is guarded by the
// path's mutex.
type channel struct {
	sock *media.Socket
	// number is what packets begin with that arrive, 0 if they come from the peer.
	number uint16
	flow   *media.Flow
	// why tells why it is not in the kernel; meaningless while on.
	why string
	// on tells whether the kernel has it, by key; seen is what counters were told.
	on   bool
	key  tcChannelKey
	seen tcFlow
	// back and forth are the ways to the source and to the destination, while on.
	back, forth *way
}

// BindChannel has the kernel move what comes from the flow's source with the channel's number before it, or for the
// number 0 from the peer, where it can.
func (p *Path) BindChannel(s *media.Socket, number uint16, f *media.Flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &channel{sock: s, number: number, flow: f, why: "being looked at"}
	p.channels[f] = c
	p.lookAtChannelLocked(c)
}

// UnbindChannel ends it: the kernel moves nothing more of it, and its counters know what it has moved.
func (p *Path) UnbindChannel(f *media.Flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.channels[f]; c != nil {
		p.takeChannelLocked(c, "")
		delete(p.channels, f)
		delete(p.dirtyChannels, c)
	}
}

// CarriesChannel names what moves the packets of a flow, and why it is nothing faster ("" if it is).
func (p *Path) CarriesChannel(f *media.Flow) (path, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.channels[f]
	switch {
	case c == nil:
		return "user", "closed"
	case !c.on:
		return "user", c.why
	case c.forth.why != "":
		return "user", c.forth.why
	}
	return p.kern.carriedBy(c.seen.Device, c.forth)
}

func (p *Path) lookAtChannelLocked(c *channel) {
	if p.kern == nil {
		return
	}
	p.dirtyChannels[c] = struct{}{}
	p.kick()
}

func (c *channel) route() route {
	f := c.flow
	return route{from: f.From.AddrPort(), in: c.sock.Local, out: f.Out.Local, to: f.To.AddrPort()}
}

// reason tells why the kernel must not move the channel, "" if it may.
func (c *channel) reason() string {
	if r := c.route(); r.in.Addr().Is4() != r.out.Addr().Is4() {
		return "the client and the peer have addresses of different families"
	}
	return ""
}

// installChannels brings the channels that were changed into the kernel.
func (p *Path) installChannels() {
	for {
		c := p.nextChannel()
		if c == nil {
			return
		}
		r := c.route()
		back, forth := p.way(r.from, r.in), p.way(r.to, r.out)
		p.mu.Lock()
		if why := p.putChannelLocked(c, r, back, forth); why != "" {
			c.why = why
			p.leaveLocked(back)
			p.leaveLocked(forth)
		}
		p.mu.Unlock()
	}
}

// nextChannel returns a channel that is to be brought into the kernel, nil if there is none.
func (p *Path) nextChannel() *channel {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.dirtyChannels {
		delete(p.dirtyChannels, c)
		if c.why = c.reason(); c.why == "" && !c.on {
			return c
		}
	}
	return nil
}

// putChannelLocked puts the channel into the kernel unless it has ended meanwhile; else it says why not.
func (p *Path) putChannelLocked(c *channel, r route, back, forth *way) string {
	switch {
	case p.kern == nil || p.channels[c.flow] != c || c.on:
		return "closed"
	case back.why != "":
		return back.why
	case forth.why != "":
		return forth.why
	case p.kern.devices[int(back.hop.Device)] == nil:
		return noProgram
	}
	v := r.value(false, p.dscp)
	v.Device, v.Hop, v.Number = back.hop.Device, forth.slot, port(c.flow.Channel)
	v.Mac = p.kern.devices[int(v.Device)].mac
	key := tcChannelKey{Port: port(r.in.Port()), PeerPort: port(r.from.Port()), Number: port(c.number)}
	key.Local.Word, key.Peer.Word = words(r.in.Addr()), words(r.from.Addr())
	if err := p.kern.objs.Channels.Put(&key, &v); err != nil {
		p.log.Debug("kernel channel refused", zap.Stringer("local", r.in), zap.Error(err))
		return err.Error()
	}
	c.on, c.key, c.seen, c.back, c.forth = true, key, v, back, forth
	p.byChannel[key] = c
	return ""
}

// takeChannelLocked takes the channel out of the kernel and tells the counters the last figures.
func (p *Path) takeChannelLocked(c *channel, why string) {
	c.why = why
	if !c.on {
		return
	}
	c.on = false
	delete(p.byChannel, c.key)
	v, found, err := take(p.kern.objs.Channels, c.key)
	if err != nil {
		p.log.Error("kernel channel not removed", zap.Stringer("local", c.sock.Local), zap.Error(err))
	}
	if found {
		if now, err := readClock(); err != nil {
			p.log.Error("kernel media path: no clock", zap.Error(err))
		} else {
			c.tell(&v, now)
		}
	}
	p.leaveLocked(c.back)
	p.leaveLocked(c.forth)
	c.back, c.forth = nil, nil
}

func (c *channel) tell(v *tcFlow, now clock) {
	c.flow.Counters.Add(v.since(&c.seen, now))
	c.seen = *v
}

// refreshChannelsLocked tells the counters what the kernel has moved.
func (p *Path) refreshChannelsLocked(now clock) {
	err := each(p.kern, p.kern.objs.Channels, p.kern.channelKeys, func(k tcChannelKey, v *tcFlow) {
		if c := p.byChannel[k]; c != nil {
			c.tell(v, now)
		}
	})
	if err != nil {
		p.log.Error("kernel media path: channels not read", zap.Error(err))
	}
}

// reconsiderChannelsLocked is as reconsider.
func (p *Path) reconsiderChannelsLocked(turned map[*way]bool, retry bool) {
	for _, c := range p.channels {
		if c.on && turned[c.back] {
			p.takeChannelLocked(c, "being looked at")
			p.lookAtChannelLocked(c)
		} else if retry && !c.on && c.reason() == "" {
			p.lookAtChannelLocked(c)
		}
	}
}

// dropChannels removes those of an earlier run: its allocations have ended with it.
func (k *kernel) dropChannels() error {
	var stale []tcChannelKey
	err := each(k, k.objs.Channels, k.channelKeys, func(key tcChannelKey, _ *tcFlow) { stale = append(stale, key) })
	if err != nil {
		return err
	}
	for _, key := range stale {
		if err := k.objs.Channels.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove a channel of an earlier run: %w", err)
		}
	}
	return nil
}

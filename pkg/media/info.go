package media

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Info describes an open pinhole to people, as /api/v1/pinholes shows it.
type Info struct {
	ID    uint64 `json:"id"`
	Owner string `json:"owner"`
	Label string `json:"label"`
	Kind  string `json:"kind"`
	// Path says what moves its packets: "user", or "splice" for TCP. With a path that can do better it
	// is what the ends have in common, or "mixed".
	Path   string    `json:"path"`
	Opened time.Time `json:"opened"`
	// AgeSeconds is the time since it was opened, IdleSeconds that since the last packet of either side.
	AgeSeconds  float64 `json:"age_seconds"`
	IdleSeconds float64 `json:"idle_seconds"`
	// Ends are the near and the far end.
	Ends [2]EndInfo `json:"ends"`
}

// EndInfo describes one end of a pinhole. Addresses that are not known are left out.
type EndInfo struct {
	Network string `json:"network"`
	// Local is what the edge writes into messages, Declared what the peer wrote, Latched where the
	// peer really sends from.
	Local       netip.AddrPort `json:"local"`
	Declared    netip.AddrPort `json:"declared,omitzero"`
	Latched     netip.AddrPort `json:"latched,omitzero"`
	LatchedRTCP netip.AddrPort `json:"latched_rtcp,omitzero"`
	Quiet       bool           `json:"quiet,omitempty"`
	// ICE says that the peer proves by checks where it is.
	ICE bool `json:"ice,omitempty"`
	// Path says what moves the media from this peer, and Why why it is nothing faster.
	Path string `json:"path"`
	Why  string `json:"why,omitempty"`
	// Stats counts what came from the peer.
	Stats StatsInfo `json:"stats"`
}

// StatsInfo is pinhole.StreamStats with units in its names.
type StatsInfo struct {
	Packets       uint64            `json:"packets"`
	Bytes         uint64            `json:"bytes"`
	Dropped       map[string]uint64 `json:"dropped,omitempty"`
	Unreachable   uint64            `json:"unreachable,omitempty"`
	Lost          int64             `json:"lost"`
	JitterSeconds float64           `json:"jitter_seconds"`
	RTTSeconds    float64           `json:"rtt_seconds,omitempty"`
	MOS           float64           `json:"mos,omitempty"`
}

// Pinholes describes all open pinholes in the order of their opening.
func (r *Relay) Pinholes() []Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	infos := make([]Info, 0, len(r.leases))
	for l := range r.leases {
		infos = append(infos, l.infoLocked(now))
	}
	for p := range r.ports {
		infos = append(infos, p.infoLocked(now))
	}
	slices.SortFunc(infos, func(a, b Info) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return infos
}

func (l *lease) infoLocked(now time.Time) Info {
	i := Info{
		ID: l.id, Owner: l.req.Owner, Label: l.req.Label, Kind: l.req.Kind.String(),
		Opened: l.opened, AgeSeconds: now.Sub(l.opened).Seconds(),
	}
	last := l.opened
	for s := range l.legs {
		i.Ends[s] = l.endInfoLocked(pinhole.Side(s))
		if i.Path = i.Ends[s].Path; i.Path != i.Ends[0].Path {
			i.Path = "mixed"
		}
		for _, g := range l.legs[s] {
			if g != nil && g.last.Load() > 0 {
				last = later(last, l.relay.epoch.Add(time.Duration(g.last.Load())))
			}
		}
	}
	if l.tcp != nil {
		last = later(last, l.tcp.latestLocked())
	}
	i.IdleSeconds = max(0, now.Sub(last).Seconds())
	return i
}

func (l *lease) endInfoLocked(s pinhole.Side) EndInfo {
	st := l.statsLocked(s)
	e := EndInfo{
		Network: l.req.Networks[s], Local: l.ends[s].local.Addr, Declared: l.remote[s].Addr, Quiet: l.remote[s].Quiet, ICE: l.remote[s].ICE != nil,
		Stats: StatsInfo{
			Packets: st.Packets, Bytes: st.Bytes, Lost: st.Lost, MOS: st.MOS,
			JitterSeconds: st.Jitter.Seconds(), RTTSeconds: st.RTT.Seconds(),
		},
	}
	for c, g := range l.legs[s] {
		if g == nil {
			continue
		}
		e.Stats.lost(&g.Counters)
		if c == rtp {
			e.Latched = g.latched
		} else {
			e.LatchedRTCP = g.latched
		}
	}
	e.Path, e.Why = l.carriedLocked(l.ends[s].socks[rtp])
	if l.tcp != nil {
		e.Path, e.Why = "splice", ""
		e.Stats.drop("connection", st.Dropped)
	}
	return e
}

// lost adds what of the packets did not reach the other side.
func (s *StatsInfo) lost(c *Counters) {
	for i := range c.dropped {
		s.drop(Reason(i).String(), c.dropped[i].Load())
	}
	s.Unreachable += c.unreachable.Load()
}

func (s *StatsInfo) drop(reason string, n uint64) {
	if n == 0 {
		return
	}
	if s.Dropped == nil {
		s.Dropped = make(map[string]uint64)
	}
	s.Dropped[reason] += n
}

// carriedLocked says what moves what channels carry from side s, and why it is nothing faster.
func (p *clientPort) carriedLocked(s pinhole.Side) (path, why string) {
	carrier, ok := p.relay.path.(channelCarrier)
	if !ok || len(p.bound) == 0 {
		return "user", ""
	}
	for i, b := range p.bound {
		f := [2]*Flow{b.forth, b.back}[s]
		switch at, reason := carrier.CarriesChannel(f); {
		case i == 0:
			path, why = at, reason
		case at != path:
			return "mixed", cmp.Or(why, reason)
		}
	}
	return path, why
}

// infoLocked describes a client's port: its near end is the client, its far end the port.
func (p *clientPort) infoLocked(now time.Time) Info {
	i := Info{
		ID: p.id, Owner: p.req.Owner, Label: p.req.Label, Kind: "port",
		Opened: p.opened, AgeSeconds: now.Sub(p.opened).Seconds(),
	}
	i.Ends = [2]EndInfo{{Network: p.clientNetwork(), Declared: p.req.Client}, {Network: p.req.Network, Local: p.local.Addr}}
	last := p.opened
	for s, st := range p.Stats() {
		e, c := &i.Ends[s], &p.from[s]
		e.Path, e.Why = p.carriedLocked(pinhole.Side(s))
		if i.Path = i.Ends[s].Path; i.Path != i.Ends[0].Path {
			i.Path = "mixed"
		}
		e.Stats = StatsInfo{Packets: st.Packets, Bytes: st.Bytes}
		e.Stats.lost(c)
		if at := c.last.Load(); at > 0 {
			last = later(last, p.relay.epoch.Add(time.Duration(at)))
		}
	}
	i.IdleSeconds = max(0, now.Sub(last).Seconds())
	return i
}

package media

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/pinhole"
)

// totals holds the counters of closed leases, so that the sums never fall. It is guarded by the
// relay's mutex.
type totals struct {
	networks map[string]*traffic
	dropped  [numReasons]uint64
	// tcpRefused counts connections that were not joined.
	tcpRefused uint64
	// malformed counts ChannelData that is shorter than it says.
	malformed   uint64
	unreachable uint64
	refused     map[string]uint64
}

// traffic is what one network sent to the edge, and what the edge sent there.
type traffic struct {
	packets, bytes [2]uint64
}

const (
	received = 0
	sent     = 1
)

func newTotals() totals {
	return totals{networks: make(map[string]*traffic), refused: make(map[string]uint64)}
}

func (t *totals) network(name string) *traffic {
	n := t.networks[name]
	if n == nil {
		n = &traffic{}
		t.networks[name] = n
	}
	return n
}

// refuse counts a refused Open, Fork or Declare.
func (t *totals) refuse(err error) {
	target := &pinhole.TargetError{}
	switch {
	case errors.As(err, &target):
		t.refused["target_"+target.Reason]++
	case errors.Is(err, pinhole.ErrExhausted):
		t.refused["exhausted"]++
	case errors.Is(err, pinhole.ErrLimit):
		t.refused["owner_limit"]++
	case errors.Is(err, pinhole.ErrNetwork):
		t.refused["network"]++
	default:
		t.refused["other"]++
	}
}

// add adds the counters of a lease.
func (t *totals) add(l *lease) {
	for s := range l.legs {
		in, out := t.network(l.req.Networks[s]), t.network(l.req.Networks[1-s])
		for _, g := range l.legs[s] {
			if g == nil {
				continue
			}
			t.carried(l.req.Networks[s], l.req.Networks[1-s], &g.Counters)
		}
		if l.tcp != nil {
			bytes, refused := l.tcp.receivedLocked(pinhole.Side(s))
			in.bytes[received] += bytes
			out.bytes[sent] += bytes
			t.tcpRefused += refused
		}
	}
}

// carried adds what came from one network to another.
func (t *totals) carried(from, to string, c *Counters) {
	in, out := t.network(from), t.network(to)
	packets, bytes := c.packets.Load(), c.bytes.Load()
	in.packets[received] += packets
	in.bytes[received] += bytes
	lost := min(c.undelivered(), packets)
	out.packets[sent] += packets - lost
	if packets > 0 {
		// The sizes of the few that did not leave are not kept: their share is taken off.
		out.bytes[sent] += bytes - uint64(float64(bytes)*float64(lost)/float64(packets))
	}
	t.drops(c)
}

// addFront adds what came to a front and was not relayed.
func (t *totals) addFront(f *front) {
	t.drops(&f.lost)
	t.malformed += f.malformed.Load()
}

// drops adds what was not relayed.
func (t *totals) drops(c *Counters) {
	for i := range c.dropped {
		t.dropped[i] += c.dropped[i].Load()
	}
	t.unreachable += c.unreachable.Load()
}

// addPort adds the counters of a client's port.
func (t *totals) addPort(p *clientPort) {
	near := p.clientNetwork()
	for s, names := range [2][2]string{{near, p.req.Network}, {p.req.Network, near}} {
		t.carried(names[0], names[1], &p.from[s])
	}
}

func (t *totals) clone() totals {
	c := *t
	c.networks = make(map[string]*traffic, len(t.networks))
	for name, n := range t.networks {
		v := *n
		c.networks[name] = &v
	}
	c.refused = make(map[string]uint64, len(t.refused))
	for k, v := range t.refused {
		c.refused[k] = v
	}
	return c
}

// The descriptions are made anew for each scrape: it is cheap, and needs no package variables.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("edged_media_"+name, help, labels, nil)
}

var _ prometheus.Collector = (*Relay)(nil)

// Describe sends nothing: the collector is unchecked, as its labels come with the traffic.
func (r *Relay) Describe(chan<- *prometheus.Desc) {}

// Collect sends the metrics edged_media_*.
func (r *Relay) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	leases := [3]int{}
	r.mu.Lock()
	t := r.totals.clone()
	ports := len(r.ports)
	for p := range r.ports {
		t.addPort(p)
	}
	for f := range r.fronts {
		t.addFront(f)
	}
	for l := range r.leases {
		leases[l.req.Kind]++
		t.add(l)
	}
	r.collectPoolsLocked(gauge)
	r.mu.Unlock()
	for k, n := range leases {
		gauge(desc("leases", "Open pinholes.", "kind"), float64(n), pinhole.Kind(k).String())
	}
	gauge(desc("leases", "Open pinholes.", "kind"), float64(ports), "port")
	for name, n := range t.networks {
		for dir, label := range [...]string{"received", "sent"} {
			counter(desc("packets_total", "UDP packets relayed.", "network", "direction"), n.packets[dir], name, label)
			counter(desc("bytes_total", "Payload bytes relayed.", "network", "direction"), n.bytes[dir], name, label)
		}
	}
	for i, n := range t.dropped {
		counter(desc("dropped_total", "Packets not relayed.", "reason"), n, Reason(i).String())
	}
	counter(desc("dropped_total", "Packets not relayed.", "reason"), t.tcpRefused, "connection")
	counter(desc("dropped_total", "Packets not relayed.", "reason"), t.malformed, "malformed")
	counter(desc("unreachable_total", "ICMP errors that answered relayed packets."), t.unreachable)
	for reason, n := range t.refused {
		counter(desc("refused_total", "Pinholes and addresses refused.", "reason"), n, reason)
	}
}

func (r *Relay) collectPoolsLocked(gauge func(*prometheus.Desc, float64, ...string)) {
	for k, p := range r.pools {
		proto := "udp"
		if k.tcp {
			proto = "tcp"
		}
		gauge(desc("ports_in_use", "Ports of open pinholes.", "address", "proto", "ports"), float64(p.n), k.addr.String(), proto, p.r.String())
		gauge(desc("ports_limit", "Ports of the configured range.", "address", "proto", "ports"), float64(p.r.Size()), k.addr.String(), proto, p.r.String())
	}
}

package forwardproxy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count. Labels are bounded: protocols and reasons are constants.
type counters struct {
	// datagrams went to destinations (0) and to clients (1).
	datagrams [2]atomic.Uint64

	mu       sync.Mutex // guards what follows
	refused  map[string]uint64
	dropped  map[string]uint64
	requests map[[2]string]uint64 // by protocol and result
}

func newCounters() *counters {
	return &counters{refused: make(map[string]uint64), dropped: make(map[string]uint64), requests: make(map[[2]string]uint64)}
}

// refuse counts a connection that was not let in.
func (c *counters) refuse(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[reason]++
}

// drop counts a datagram.
func (c *counters) drop(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped[reason]++
}

// request counts what became of a request: "ok" or a reason.
func (c *counters) request(proto, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[[2]string{proto, result}]++
}

// Connection is what is known of a connection that is open.
type Connection struct {
	Protocol string         `json:"protocol"`
	Client   netip.AddrPort `json:"client"`
	User     string         `json:"user,omitempty"`
	// Target is HOST:PORT as the client has asked for it, "" as long as it has not, and of an association.
	Target string    `json:"target,omitempty"`
	UDP    bool      `json:"udp,omitempty"`
	Since  time.Time `json:"since"`
	// FromClient and FromTarget are in octets.
	FromClient uint64 `json:"from_client"`
	FromTarget uint64 `json:"from_target"`
}

// Connections lists what is open, the oldest first.
func (s *Server) Connections() []Connection {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	out := make([]Connection, 0, len(open))
	for _, c := range open {
		from := c.moved()
		c.mu.Lock()
		out = append(out, Connection{
			Protocol: c.proto, Client: c.source, User: c.user, Target: c.target, UDP: c.udp, Since: c.begun.UTC(),
			FromClient: from[0], FromTarget: from[1],
		})
		c.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b Connection) int {
		return cmp.Or(a.Since.Compare(b.Since), a.Client.Compare(b.Client))
	})
	return out
}

// totals returns the octets from clients (0) and from destinations (1) so far, and how many associations there are.
func (s *Server) totals() (bytes [2]uint64, associations int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bytes = s.bytes
	for c := range s.open {
		for i, n := range c.moved() {
			bytes[i] += n
		}
	}
	for _, n := range s.associations {
		associations += n
	}
	return bytes, associations
}

// Collector returns the metrics.
func (s *Server) Collector() prometheus.Collector { return collector{s} }

// collector shows the counters to Prometheus.
type collector struct{ s *Server }

// Describe implements [prometheus.Collector].
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	c := k.s.count
	metric := func(name, help string, t prometheus.ValueType, v float64, labels ...string) {
		names, values := make([]string, 0, 2), make([]string, 0, 2)
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), t, v, values...)
	}
	bytes, associations := k.s.totals()
	metric("edged_proxy_connections", "Connections of the proxy's clients now.", prometheus.GaugeValue, float64(k.s.Open()))
	metric("edged_proxy_associations", "UDP associations now.", prometheus.GaugeValue, float64(associations))
	for i, from := range [2]string{"client", "target"} {
		metric("edged_proxy_bytes_total", "Octets relayed, by where they came from.", prometheus.CounterValue, float64(bytes[i]), "from", from)
		metric("edged_proxy_datagrams_total", "Datagrams relayed, by where they came from.", prometheus.CounterValue, float64(c.datagrams[i].Load()), "from", from)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for reason, n := range c.refused {
		metric("edged_proxy_refused_total", "Connections that were not let in, by reason.", prometheus.CounterValue, float64(n), "reason", reason)
	}
	for reason, n := range c.dropped {
		metric("edged_proxy_dropped_datagrams_total", "Datagrams of associations that were not relayed, by reason.", prometheus.CounterValue, float64(n), "reason", reason)
	}
	for key, n := range c.requests {
		metric("edged_proxy_requests_total", "Requests, by protocol and what became of them.", prometheus.CounterValue, float64(n), "protocol", key[0], "result", key[1])
	}
}

package sharedport

import (
	"cmp"

	"github.com/prometheus/client_golang/prometheus"
)

// Counters count what becomes of connections, for one port or several.
type Counters struct{ conns, refusals *prometheus.CounterVec }

// NewCounters returns counters at zero.
func NewCounters() *Counters {
	return &Counters{
		conns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_shared_port_connections_total", Help: "Connections to ports that services share, by what they began with.",
		}, []string{"class"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_shared_port_refused_total", Help: "Connections to ports that services share that no service got.",
		}, []string{"class", "reason"}),
	}
}

func (c *Counters) passed(class Class) { c.conns.WithLabelValues(string(class)).Inc() }

func (c *Counters) refused(class Class, why string) {
	c.refusals.WithLabelValues(string(cmp.Or(class, Unknown)), why).Inc()
}

// Describe implements [prometheus.Collector].
func (c *Counters) Describe(ch chan<- *prometheus.Desc) {
	c.conns.Describe(ch)
	c.refusals.Describe(ch)
}

// Collect implements [prometheus.Collector].
func (c *Counters) Collect(ch chan<- prometheus.Metric) {
	c.conns.Collect(ch)
	c.refusals.Collect(ch)
}

var _ prometheus.Collector = (*Counters)(nil)

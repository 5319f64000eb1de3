package sharedport

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Counters count what becomes of connections, for one port or several.
type Counters struct {
	conns, refusals *prometheus.CounterVec
	handshakes      prometheus.Histogram
}

// NewCounters returns counters at zero.
func NewCounters() *Counters {
	return &Counters{
		conns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_mux_connections_total", Help: "Connections to shared ports, by what they began with and what that was found in; TLS that ends at the port counts for itself and for what is inside.",
		}, []string{"class", "outer"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_mux_rejected_total", Help: "Connections to shared ports that no service got.",
		}, []string{"reason"}),
		handshakes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "edged_mux_handshake_duration_seconds", Help: "TLS handshakes that succeeded on shared ports.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
	}
}

func (c *Counters) classified(k Kind) {
	c.conns.WithLabelValues(string(k.Class), string(k.Outer)).Inc()
}

func (c *Counters) refused(why string) { c.refusals.WithLabelValues(why).Inc() }

// Describe implements [prometheus.Collector].
func (c *Counters) Describe(ch chan<- *prometheus.Desc) {
	c.conns.Describe(ch)
	c.refusals.Describe(ch)
	c.handshakes.Describe(ch)
}

// Collect implements [prometheus.Collector].
func (c *Counters) Collect(ch chan<- prometheus.Metric) {
	c.conns.Collect(ch)
	c.refusals.Collect(ch)
	c.handshakes.Collect(ch)
}

var _ prometheus.Collector = (*Counters)(nil)

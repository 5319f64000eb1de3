package groove

import (
	"github.com/prometheus/client_golang/prometheus"
)

// counters count connections. Labels are bounded: their values are constants.
type counters struct {
	open                    *prometheus.GaugeVec
	total, refusals, endeds *prometheus.CounterVec
}

// modeRaw is the label of connections of SSTP without HTTP.
const modeRaw = "raw"

func newCounters() counters {
	return counters{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "edged_groove_connections", Help: "Established Groove connections now, by how they are carried.",
		}, []string{"mode"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_groove_connections_total", Help: "Groove connections that were established, by how they are carried.",
		}, []string{"mode"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_groove_refused_total", Help: "Requests and streams that came to no Groove connection, or broke its rules.",
		}, []string{"reason"}),
		endeds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "edged_groove_ended_total", Help: "Groove connections that have ended, established or not.",
		}, []string{"reason"}),
	}
}

// Describe implements [prometheus.Collector].
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.count.all() {
		c.Describe(ch)
	}
}

// Collect implements [prometheus.Collector].
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.count.all() {
		c.Collect(ch)
	}
}

func (c counters) all() []prometheus.Collector {
	return []prometheus.Collector{c.open, c.total, c.refusals, c.endeds}
}

var _ prometheus.Collector = (*Server)(nil)

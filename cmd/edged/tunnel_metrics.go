package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/tunnel/carrier"
)

// carrierMetrics counts connections that were let go before the relay saw them.
type carrierMetrics struct {
	server        *carrier.Server
	desc, waiting *prometheus.Desc
}

func newCarrierMetrics(s *carrier.Server) carrierMetrics {
	return carrierMetrics{s, prometheus.NewDesc("edged_tunnel_carriers_refused_total",
		"Connections that were let go before it was known which device they are of.", []string{"reason"}, nil),
		prometheus.NewDesc("edged_tunnel_carriers_waiting", "Connections that wait for their handshake.", nil, nil)}
}

// Describe implements [prometheus.Collector].
func (m carrierMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.desc
	ch <- m.waiting
}

// Collect implements [prometheus.Collector].
func (m carrierMetrics) Collect(ch chan<- prometheus.Metric) {
	for reason, n := range m.server.Refused() {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, float64(n), reason)
	}
	ch <- prometheus.MustNewConstMetric(m.waiting, prometheus.GaugeValue, float64(m.server.Queued()))
}

// probeMetrics counts how ways to relays were found.
type probeMetrics struct{ results *prometheus.CounterVec }

func newProbeMetrics() *probeMetrics {
	return &probeMetrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "edged_agent_probes_total", Help: "Attempts to reach a relay, by rung and how they went: won, lost, slow, failed.",
	}, []string{"rung", "outcome"})}
}

func (m *probeMetrics) observe(r carrier.Result) {
	m.results.WithLabelValues(r.Rung.String(), r.Outcome).Inc()
}

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// newRegistry returns a registry with what describes the process itself.
func newRegistry(b buildInfo) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "edged_build_info", Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "goversion": b.Go},
	})
	info.Set(1)
	reg.MustRegister(info, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// reloadMetrics follows Prometheus' convention for configuration reloads.
type reloadMetrics struct{ successful, at prometheus.Gauge }

func newReloadMetrics(reg prometheus.Registerer) reloadMetrics {
	m := reloadMetrics{
		prometheus.NewGauge(prometheus.GaugeOpts{Name: "edged_config_last_reload_successful",
			Help: "Whether the last configuration reload was taken over (1) or refused (0)."}),
		prometheus.NewGauge(prometheus.GaugeOpts{Name: "edged_config_last_reload_success_timestamp_seconds",
			Help: "When a configuration was last taken over."}),
	}
	reg.MustRegister(m.successful, m.at)
	m.loaded(time.Now())
	return m
}

func (m reloadMetrics) loaded(now time.Time) {
	m.successful.Set(1)
	m.at.Set(float64(now.UnixNano()) / 1e9)
}

// certificateMetrics shows when each configured certificate ends.
type certificateMetrics struct {
	tls  *tlsStore
	desc *prometheus.Desc
}

func newCertificateMetrics(store *tlsStore) certificateMetrics {
	return certificateMetrics{store, prometheus.NewDesc("edged_tls_certificate_not_after_timestamp_seconds",
		"When the certificate ends.", []string{"name"}, nil)}
}

// Describe implements prometheus.Collector.
func (m certificateMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

// Collect implements prometheus.Collector.
func (m certificateMetrics) Collect(ch chan<- prometheus.Metric) {
	seen := map[string]bool{}
	for _, c := range m.tls.current.Load().own {
		name := certificateName(c.Leaf)
		if seen[name] {
			continue // an RSA and an ECDSA certificate for one name: the first is enough
		}
		seen[name] = true
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, float64(c.Leaf.NotAfter.Unix()), name)
	}
}

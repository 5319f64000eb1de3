package sipalg

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"
)

// collector shows the core's counters to Prometheus. It describes nothing in advance: labels are
// bounded by the core.
type collector struct{ s *Server }

// Describe implements [prometheus.Collector].
func (k collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	k.s.mu.Lock()
	c := k.s.core
	requests, responses, failed, drops := maps.Clone(c.count.requests), maps.Clone(c.count.responses), maps.Clone(c.count.failed), maps.Clone(c.drops)
	calls, answered, active := c.count.calls, c.count.answered, len(c.sessions)
	bindings, transactions, aliases := len(c.bindings), len(c.client), len(c.aliases)
	k.s.mu.Unlock()

	byLabel := func(name, help, label string, m map[string]uint64) {
		d := prometheus.NewDesc(name, help, []string{label}, nil)
		for v, n := range m {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), v)
		}
	}
	one := func(name, help string, t prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), t, v)
	}
	byLabel("edged_sip_requests_total", "SIP requests received, by method.", "method", requests)
	byLabel("edged_sip_responses_total", "SIP responses received, by class.", "class", responses)
	byLabel("edged_sip_failures_total", "SIP requests answered by the edge itself with an error, by status.", "status", failed)
	byLabel("edged_sip_drops_total", "SIP messages dropped or refused, by reason.", "reason", drops)
	one("edged_sip_calls_total", "Calls begun.", prometheus.CounterValue, float64(calls))
	one("edged_sip_calls_answered_total", "Calls answered.", prometheus.CounterValue, float64(answered))
	one("edged_sip_calls", "Calls now, ringing ones included.", prometheus.GaugeValue, float64(active))
	one("edged_sip_registrations", "Registered Contacts.", prometheus.GaugeValue, float64(bindings))
	one("edged_sip_transactions", "Transactions.", prometheus.GaugeValue, float64(transactions))
	one("edged_sip_contact_aliases", "Contacts that the edge stands for.", prometheus.GaugeValue, float64(aliases))
	k.s.transport.Collect(ch)
}

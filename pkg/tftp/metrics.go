package tftp

import (
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count invitations and transfers. Labels are bounded: reasons and results are constants.
type counters struct {
	mu          sync.Mutex
	invitations uint64
	denials     map[string]uint64
	results     map[string]uint64
	refused     map[string]uint64
	bytes       uint64
}

func newCounters() *counters {
	return &counters{denials: map[string]uint64{}, results: map[string]uint64{}, refused: map[string]uint64{}}
}

func (c *counters) invited() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.invitations++
}

func (c *counters) deny(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denials[reason]++
}

func (c *counters) refuse(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[reason]++
}

func (c *counters) end(result string, bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results[result]++
	c.bytes += bytes
}

// Collector returns what Prometheus is shown.
func (e *Editor) Collector() prometheus.Collector { return collector{e} }

// collector shows the counters to Prometheus.
type collector struct{ e *Editor }

// Describe implements [prometheus.Collector].
func (k collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	c := k.e.count
	c.mu.Lock()
	invitations, bytes := c.invitations, c.bytes
	denials, results, refused := maps.Clone(c.denials), maps.Clone(c.results), maps.Clone(c.refused)
	c.mu.Unlock()
	states := map[string]int{"invited": 0, "listening": 0, "running": 0, "denied": 0}
	for _, v := range k.e.Transfers() {
		states[v.State]++
	}
	send := func(t prometheus.ValueType, v float64, name, help string, labels ...string) {
		var names []string
		if len(labels) > 0 {
			names, labels = labels[:1], labels[1:]
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("edged_tftp_"+name, help, names, nil), t, v, labels...)
	}
	for state, n := range states {
		send(prometheus.GaugeValue, float64(n), "transfers", "Invitations to file transfers by what became of them.", "state", state)
	}
	send(prometheus.CounterValue, float64(invitations), "invitations_total", "Invitations to file transfers that were remembered.")
	send(prometheus.CounterValue, float64(bytes), "bytes_total", "Octets of ended data connections, in both directions.")
	for result, n := range results {
		send(prometheus.CounterValue, float64(n), "ended_total", "File transfers that ended, by result.", "result", result)
	}
	for reason, n := range refused {
		send(prometheus.CounterValue, float64(n), "refused_connections_total", "Data connections that were refused, by reason.", "reason", reason)
	}
	for reason, n := range denials {
		send(prometheus.CounterValue, float64(n), "denials_total", "Invitations that were denied, by reason.", "reason", reason)
	}
}

package agent

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counters are what an agent counts.
type counters struct {
	sent, received, datagramsOut, datagramsIn, moved atomic.Uint64
	buffers                                          sync.Pool // of *[]byte

	served, refused, dialed, dropped *prometheus.CounterVec
}

func newCounters() *counters {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "edged_agent_" + name, Help: help}, []string{label})
	}
	return &counters{
		served:  vec("served_total", "Streams of other devices that reached a service here.", "service"),
		refused: vec("refused_total", "Streams of other devices, and connections of this site, that were refused.", "reason"),
		dialed:  vec("dials_total", "Streams to other devices, by how opening went.", "result"),
		dropped: vec("datagrams_dropped_total", "Datagrams that were not carried.", "reason"),
	}
}

// Collector returns the agent's metrics.
func (a *Agent) Collector() prometheus.Collector { return collector{a} }

type collector struct{ a *Agent }

func (c collector) vectors() []*prometheus.CounterVec {
	n := c.a.count
	return []*prometheus.CounterVec{n.served, n.refused, n.dialed, n.dropped}
}

// sample is a metric that is read when it is asked for.
type sample struct {
	name, help string
	kind       prometheus.ValueType
	value      float64
}

func (s sample) desc() *prometheus.Desc {
	return prometheus.NewDesc("edged_agent_"+s.name, s.help, nil, nil)
}

func (c collector) samples() []sample {
	n, st := c.a.count, c.a.deps.Uplink.State()
	attached := 0.0
	if st.Attached {
		attached = 1
	}
	return []sample{
		{"attached", "1 while the relay is reached.", prometheus.GaugeValue, attached},
		{"sessions_total", "Sessions with relays.", prometheus.CounterValue, float64(st.Sessions)},
		{"resumes_total", "Times that the session went on by another connection.", prometheus.CounterValue, float64(st.Resumes)},
		{"sent_bytes_total", "Octets of connections, to other devices.", prometheus.CounterValue, float64(n.sent.Load())},
		{"received_bytes_total", "Octets of connections, from other devices.", prometheus.CounterValue, float64(n.received.Load())},
		{"sent_datagrams_total", "Datagrams to other devices.", prometheus.CounterValue, float64(n.datagramsOut.Load())},
		{"moved_total", "Times that a stream went on beside the session, spliced by the relay.", prometheus.CounterValue, float64(n.moved.Load())},
		{"received_datagrams_total", "Datagrams from other devices.", prometheus.CounterValue, float64(n.datagramsIn.Load())},
	}
}

// Describe implements [prometheus.Collector].
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range c.vectors() {
		v.Describe(ch)
	}
	for _, s := range c.samples() {
		ch <- s.desc()
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, v := range c.vectors() {
		v.Collect(ch)
	}
	for _, s := range c.samples() {
		ch <- prometheus.MustNewConstMetric(s.desc(), s.kind, s.value)
	}
}

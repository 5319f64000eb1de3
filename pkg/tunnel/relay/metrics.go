package relay

import (
	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/tunnel/mux"
)

// counters are what a relay counts.
type counters struct {
	totals
	attached, resumes, refused, streamsRefused, opened *prometheus.CounterVec
	replayed, stalled, dropped                         prometheus.Counter // of sessions that have ended
	spliced                                            prometheus.Counter
}

func newCounters() *counters {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "edged_tunnel_" + name, Help: help}, []string{label})
	}
	one := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "edged_tunnel_" + name, Help: help})
	}
	return &counters{
		attached:       vec("attached_total", "Sessions that devices began, by rung.", "rung"),
		resumes:        vec("resumes_total", "Sessions that went on by another carrier, by its rung.", "rung"),
		refused:        vec("refused_total", "Connections of the tunnel that were refused.", "reason"),
		streamsRefused: vec("streams_refused_total", "Streams that were refused.", "reason"),
		opened:         vec("streams_total", "Streams that were joined: local, hop if by another relay, bulk if to control a connection beside the sessions.", "way"),
		spliced:        one("spliced_bytes_total", "Bytes carried beside sessions, of connections that have ended."),
		replayed:       one("replayed_bytes_total", "Bytes sent again after a carrier was lost, of sessions that have ended."),
		stalled:        one("stalled_seconds_total", "Time that streams waited for credit, of sessions that have ended."),
		dropped:        one("session_datagrams_dropped_total", "Datagrams that queues of sessions dropped, of sessions that have ended."),
	}
}

// ended adds what a session counted.
func (c *counters) ended(s mux.Stats) {
	c.replayed.Add(float64(s.Replayed))
	c.stalled.Add(s.Stalled.Seconds())
	c.dropped.Add(float64(s.DroppedQueue + s.DroppedCarrier + s.DroppedNoStream))
}

// Collector returns the relay's metrics.
func (r *Relay) Collector() prometheus.Collector { return collector{r} }

type collector struct{ r *Relay }

func (c collector) all() []prometheus.Collector {
	n := c.r.count
	return []prometheus.Collector{n.attached, n.resumes, n.refused, n.streamsRefused, n.opened, n.replayed, n.stalled, n.dropped, n.spliced}
}

// gauges are read when they are asked for.
func (c collector) gauges() []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value float64
} {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("edged_tunnel_"+name, help, nil, nil)
	}
	r := c.r
	r.mu.Lock()
	sessions, flows, ring, lost := len(r.sessions), len(r.flows), 0, 0
	for _, a := range r.sessions {
		st := a.s.Stats()
		ring += st.Unacked
		if !st.Attached {
			lost++
		}
	}
	r.mu.Unlock()
	return []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value float64
	}{
		{desc("sessions", "Devices that are attached."), prometheus.GaugeValue, float64(sessions)},
		{desc("sessions_without_carrier", "Of those, how many have to come back."), prometheus.GaugeValue, float64(lost)},
		{desc("streams", "Streams between devices."), prometheus.GaugeValue, float64(flows)},
		{desc("unacknowledged_bytes", "Bytes that are kept to be sent again."), prometheus.GaugeValue, float64(ring)},
		{desc("bytes_total", "Octets carried between devices."), prometheus.CounterValue, float64(r.count.bytes.Load())},
		{desc("datagrams_total", "Datagrams carried between devices."), prometheus.CounterValue, float64(r.count.datagrams.Load())},
		{desc("datagrams_dropped_total", "Datagrams that were not sent on."), prometheus.CounterValue, float64(r.count.datagramsDropped.Load())},
	}
}

// Describe implements [prometheus.Collector].
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.all() {
		m.Describe(ch)
	}
	for _, g := range c.gauges() {
		ch <- g.desc
	}
}

// Collect implements [prometheus.Collector].
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c.all() {
		m.Collect(ch)
	}
	for _, g := range c.gauges() {
		ch <- prometheus.MustNewConstMetric(g.desc, g.kind, g.value)
	}
}

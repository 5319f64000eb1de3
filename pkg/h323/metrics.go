package h323

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/h323/q931"
)

// counts are the core's figures. The labels come from fixed sets, so nothing grows.
type counts struct {
	setups, connected, ended, control, signed uint64
	messages                                  map[q931.Type]uint64
	refused, dropped                          map[string]uint64
}

func newCounts() counts {
	return counts{messages: make(map[q931.Type]uint64), refused: make(map[string]uint64), dropped: make(map[string]uint64)}
}

func (c *counts) refuse(reason string) { c.refused[reason]++ }
func (c *counts) drop(reason string)   { c.dropped[reason]++ }

func (c *counts) message(t q931.Type) {
	if _, known := typeNames[t]; !known {
		t = 0
	}
	c.messages[t]++
}

var typeNames = map[q931.Type]string{ //nolint:gochecknoglobals // a table
	0: "other", q931.Alerting: "alerting", q931.CallProceeding: "call_proceeding", q931.Progress: "progress",
	q931.Setup: "setup", q931.Connect: "connect", q931.SetupAck: "setup_ack", q931.ReleaseComplete: "release_complete",
	q931.Facility: "facility", q931.Notify: "notify", q931.StatusInquiry: "status_inquiry",
	q931.Information: "information", q931.Status: "status",
}

func (c *counts) clone() counts {
	out := *c
	out.messages, out.refused, out.dropped = maps.Clone(c.messages), maps.Clone(c.refused), maps.Clone(c.dropped)
	return out
}

// collector publishes the counts of a server.
type collector struct {
	server                                    *Server
	active, conns                             *prometheus.Desc
	setups, connected, ended, control, signed *prometheus.Desc
	messages, refused, dropped                *prometheus.Desc
	endpoints, requests                       *prometheus.Desc
}

// Collector returns the server's metrics.
func (s *Server) Collector() prometheus.Collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("edged_h323_"+name, help, labels, nil)
	}
	return &collector{
		server: s,
		active: d("calls", "Calls in progress."), conns: d("connections", "Call signalling connections."),
		setups: d("setups_total", "Setup messages received."), connected: d("connected_total", "Calls that were answered."),
		ended: d("ended_total", "Calls that have ended."), control: d("h245_messages_total", "H.245 messages on connections of their own."),
		signed:    d("signed_messages_total", "Messages passed unchanged because an H.235 signature covers them."),
		messages:  d("messages_total", "Call signalling messages received.", "type"),
		refused:   d("refused_calls_total", "Calls refused.", "reason"),
		dropped:   d("dropped_messages_total", "Messages not passed on.", "reason"),
		endpoints: d("endpoints", "Endpoints registered with the built-in gatekeeper, or with another by way of the edge."),
		requests:  d("ras_requests_total", "RAS messages by what became of them.", "outcome"),
	}
}

// Describe implements prometheus.Collector.
func (m *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *collector) Collect(ch chan<- prometheus.Metric) {
	m.server.mu.Lock()
	c, active := m.server.core.counts.clone(), len(m.server.core.calls)
	conns := len(m.server.core.legs)
	endpoints, outcomes := len(m.server.core.registrations()), map[string]uint64{}
	switch core := m.server.core; {
	case core.outer != nil:
		outcomes = maps.Clone(core.outer.Outcomes)
	case core.gatekeeper != nil:
		outcomes = maps.Clone(core.gatekeeper.Outcomes)
	}
	m.server.mu.Unlock()
	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(m.active, active)
	gauge(m.conns, conns)
	gauge(m.endpoints, endpoints)
	for outcome, n := range outcomes {
		counter(m.requests, n, outcome)
	}
	counter(m.setups, c.setups)
	counter(m.connected, c.connected)
	counter(m.ended, c.ended)
	counter(m.control, c.control)
	counter(m.signed, c.signed)
	for t, n := range c.messages {
		counter(m.messages, n, typeNames[t])
	}
	for reason, n := range c.refused {
		counter(m.refused, n, reason)
	}
	for reason, n := range c.dropped {
		counter(m.dropped, n, reason)
	}
}

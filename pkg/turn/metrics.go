package turn

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn/sourcelimit"
)

// counters count. Labels are bounded: none is a user or an address.
type counters struct {
	requests     *prometheus.CounterVec
	allocated    *prometheus.CounterVec
	drops        *prometheus.CounterVec
	denials      *prometheus.CounterVec
	quotas       *prometheus.CounterVec
	duration     prometheus.Histogram
	authFailures *prometheus.CounterVec
	suppressed   prometheus.Counter
	bindings     prometheus.Counter
	logAuth      *sourcelimit.Limiter // one line a second and source

	mu   sync.Mutex
	past [2]pinhole.StreamStats // of allocations that have ended
}

func newCounters() *counters {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "edged_" + name, Help: help}, labels)
	}
	one := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "edged_" + name, Help: help})
	}
	return &counters{
		requests:     vec("turn_requests_total", "Requests by method, and the error code they were answered with; 0 = none.", "method", "code"),
		allocated:    vec("turn_allocations_total", "Allocations made.", "transport", "family"),
		drops:        vec("turn_dropped_total", "Datagrams, frames and connections dropped, by reason.", "reason"),
		denials:      vec("turn_permissions_denied_total", "Peers refused, by reason.", "reason"),
		quotas:       vec("turn_quota_rejections_total", "Requests refused for a quota.", "quota"),
		authFailures: vec("turn_auth_failures_total", "Requests whose signature is wrong (password), whose user is unknown or expired (user) or banned, or of another realm.", "reason"),
		suppressed:   one("turn_challenges_suppressed_total", "Unsigned requests that were not answered since their source had too many answers."),
		bindings:     one("stun_bindings_total", "STUN Binding requests answered."),
		logAuth:      sourcelimit.New(1, 1),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "edged_turn_allocation_duration_seconds",
			Help: "How long allocations lasted.", Buckets: []float64{1, 10, 60, 600, 3600, 6 * 3600}}),
	}
}

func (c *counters) drop(reason string)   { c.drops.WithLabelValues(reason).Inc() }
func (c *counters) denied(reason string) { c.denials.WithLabelValues(reason).Inc() }
func (c *counters) quota(name string)    { c.quotas.WithLabelValues(name).Inc() }
func (c *counters) request(m method, code int) {
	c.requests.WithLabelValues(m.String(), strconv.Itoa(code)).Inc()
}

func (c *counters) began(a *allocation) {
	c.allocated.WithLabelValues(a.from.ep.scheme, strconv.Itoa(int(a.family))).Inc()
}

func (c *counters) ended(a *allocation, traffic [2]pinhole.StreamStats) {
	if a.live.Load() {
		c.duration.Observe(time.Since(a.began).Seconds())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range traffic {
		c.past[i].Packets += traffic[i].Packets
		c.past[i].Bytes += traffic[i].Bytes
	}
}

// Collector returns the metrics.
func (s *Server) Collector() prometheus.Collector { return collector{s} }

// collector shows the counters to Prometheus.
type collector struct{ s *Server }

// Describe implements [prometheus.Collector].
func (k collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	c := k.s.count
	for _, m := range []prometheus.Collector{c.requests, c.allocated, c.drops, c.denials, c.quotas, c.duration, c.authFailures, c.suppressed, c.bindings} {
		m.Collect(ch)
	}
	now := map[[2]string]int{}
	c.mu.Lock()
	total := c.past
	c.mu.Unlock()
	for _, a := range k.s.list() {
		now[[2]string{a.from.ep.scheme, strconv.Itoa(int(a.family))}]++
		for i, t := range a.traffic() {
			total[i].Packets += t.Packets
			total[i].Bytes += t.Bytes
		}
	}
	d := prometheus.NewDesc("edged_turn_allocations", "Allocations now.", []string{"transport", "family"}, nil)
	for l, n := range now {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), l[0], l[1])
	}
	packets := prometheus.NewDesc("edged_turn_relayed_packets_total", "Datagrams relayed.", []string{"direction"}, nil)
	octets := prometheus.NewDesc("edged_turn_relayed_bytes_total", "Octets of data relayed.", []string{"direction"}, nil)
	for i, direction := range []string{"to_peer", "to_client"} {
		ch <- prometheus.MustNewConstMetric(packets, prometheus.CounterValue, float64(total[i].Packets), direction)
		ch <- prometheus.MustNewConstMetric(octets, prometheus.CounterValue, float64(total[i].Bytes), direction)
	}
}

package t120

import (
	"errors"
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/t120/gcc"
)

// counters count connections. Labels are bounded: kinds and reasons are constants.
type counters struct {
	mu     sync.Mutex
	ups    map[string]uint64
	drops  map[string]uint64
	change gcc.Change
}

func newCounters() *counters {
	return &counters{ups: map[string]uint64{}, drops: map[string]uint64{}}
}

// up counts a connection whose front is through, by T.124's PDU; "" is one that was added, or TLS.
func (c *counters) up(kind string) {
	if kind == "" {
		kind = "none"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ups[kind]++
}

func (c *counters) drop(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops[reason]++
}

func (c *counters) changes(g gcc.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.change.Removed += g.Removed
	c.change.Replaced += g.Replaced
	c.change.Kept += g.Kept
}

// reason returns the label under which an error is counted.
func reason(err error) string {
	for _, e := range []error{errSlow, errTPKT, errX224, errSequence, errMCS, errGCC, errSize, errPolicy, errRDP, errRoute, errAmbiguous, errLoop, errConfirm, errDial} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return "connection"
}

// collector shows the counters to Prometheus.
type collector struct{ s *Server }

// Describe implements [prometheus.Collector].
func (k collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	c := k.s.count
	c.mu.Lock()
	ups, drops, change := maps.Clone(c.ups), maps.Clone(c.drops), c.change
	c.mu.Unlock()
	k.s.mu.Lock()
	announced := k.s.announcements
	k.s.mu.Unlock()
	open := k.s.gate.Open()

	byLabel := func(name, help, label string, m map[string]uint64) {
		d := prometheus.NewDesc(name, help, []string{label}, nil)
		for v, n := range m {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), v)
		}
	}
	byLabel("edged_t120_connections_total", "T.120 connections whose front was accepted, by T.124's PDU.", "kind", ups)
	byLabel("edged_t120_drops_total", "T.120 connections refused, by reason.", "reason", drops)
	byLabel("edged_t120_addresses_total", "Network addresses in T.124's PDUs, by what became of them.", "action", map[string]uint64{
		"removed": uint64(change.Removed), "replaced": uint64(change.Replaced), "kept": uint64(change.Kept),
	})
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("edged_t120_connections", "T.120 connections now.", nil, nil), prometheus.GaugeValue, float64(open))
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("edged_t120_announced", "Conferences now that session descriptions have announced.", nil, nil), prometheus.GaugeValue, float64(announced))
}

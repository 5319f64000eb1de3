package rfc1350

import (
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count. Labels are bounded: results and reasons are constants.
type counters struct {
	mu      sync.Mutex
	results map[string]uint64
	drops   map[string]uint64
	octets  [2]uint64 // of files, got and put
}

func newCounters() *counters {
	return &counters{results: map[string]uint64{}, drops: map[string]uint64{}}
}

func (c *counters) drop(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops[reason]++
}

func (c *counters) ended(result string, write bool, octets int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results[result]++
	if write {
		c.octets[1] += uint64(octets)
		return
	}
	c.octets[0] += uint64(octets)
}

// collector shows the counters to Prometheus.
type collector struct{ s *Relay }

// Describe implements [prometheus.Collector].
func (k collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	c := k.s.count
	c.mu.Lock()
	results, drops, octets := maps.Clone(c.results), maps.Clone(c.drops), c.octets
	c.mu.Unlock()
	byLabel := func(name, help, label string, m map[string]uint64) {
		d := prometheus.NewDesc(name, help, []string{label}, nil)
		for v, n := range m {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), v)
		}
	}
	byLabel("edged_tftp_trivial_transfers_total", "RFC 1350 transfers that have ended, by how.", "result", results)
	byLabel("edged_tftp_trivial_drops_total", "RFC 1350 requests refused and packets dropped, by reason.", "reason", drops)
	byLabel("edged_tftp_trivial_bytes_total", "Octets of files in RFC 1350 transfers, by direction.", "direction", map[string]uint64{"get": octets[0], "put": octets[1]})
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("edged_tftp_trivial_transfers", "RFC 1350 transfers now.", nil, nil), prometheus.GaugeValue, float64(k.s.Open()))
}

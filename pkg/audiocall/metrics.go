package audiocall

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count. Labels are bounded: reasons are constants.
type counters struct {
	packets, stray *atomic.Uint64

	mu    *sync.Mutex
	drops map[string]uint64
}

func newCounters() counters {
	return counters{packets: &atomic.Uint64{}, stray: &atomic.Uint64{}, mu: &sync.Mutex{}, drops: make(map[string]uint64)}
}

func (c counters) drop(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops[reason]++
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
	c.mu.Lock()
	drops := maps.Clone(c.drops)
	c.mu.Unlock()
	metric := func(name, help string, t prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), t, v)
	}
	metric("edged_audiocall_connections", "Connections of audio call control now.", prometheus.GaugeValue, float64(k.s.Open()))
	metric("edged_audiocall_packets_total", "Datagrams relayed between the hosts of a connection.", prometheus.CounterValue, float64(c.packets.Load()))
	metric("edged_audiocall_dropped_packets_total", "Datagrams of hosts without a connection, or that could not be sent.", prometheus.CounterValue, float64(c.stray.Load()))
	d := prometheus.NewDesc("edged_audiocall_drops_total", "Connections refused, by reason.", []string{"reason"}, nil)
	for v, n := range drops {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), v)
	}
}

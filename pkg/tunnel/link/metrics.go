package link

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"
)

// Collector returns the metrics of all links of a program.
func Collector(links []*Link) prometheus.Collector { return collector(links) }

// collector shows counters to Prometheus. Labels are bounded: names of the configuration, and constants.
type collector []*Link

// Describe implements [prometheus.Collector].
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	metric := func(name, help string, t prometheus.ValueType, v float64, labels []string, values ...string) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, labels, nil), t, v, values...)
	}
	for _, l := range k {
		i := l.Info()
		up := 0.0
		if i.Up {
			up = 1
		}
		metric("edged_link_up", "1 while the other end of a link is reached.", prometheus.GaugeValue, up, []string{"link"}, i.Name)
		metric("edged_link_carriers_total", "Streams of the tunnel that carried a link.", prometheus.CounterValue, float64(i.CarriersTotal), []string{"link"}, i.Name)
		way := []string{"link", "direction"}
		for n, direction := range []string{"out", "in"} {
			metric("edged_link_packets_total", "IP packets over a link.", prometheus.CounterValue, float64(l.packets[n].Load()), way, i.Name, direction)
			metric("edged_link_bytes_total", "Octets of these.", prometheus.CounterValue, float64(l.octets[n].Load()), way, i.Name, direction)
		}
		l.mu.Lock()
		drops := maps.Clone(l.drops)
		l.mu.Unlock()
		for key, n := range drops {
			metric("edged_link_dropped_packets_total", "IP packets that were not carried, by reason.", prometheus.CounterValue, float64(n),
				[]string{"link", "direction", "reason"}, i.Name, key[0], key[1])
		}
	}
}

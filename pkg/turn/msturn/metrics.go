package msturn

import (
	"encoding/binary"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Directions of what is relayed.
const (
	toPeer   = 0
	toClient = 1
)

// counters count. Labels are bounded: reasons and codes are constants.
type counters struct {
	packets, octets [2]atomic.Uint64

	mu      sync.Mutex // guards what follows
	drops   map[string]uint64
	answers map[[2]string]uint64
}

func newCounters() *counters {
	return &counters{drops: map[string]uint64{}, answers: map[[2]string]uint64{}}
}

func (c *counters) drop(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops[reason]++
}

func (c *counters) relayed(direction, octets int) {
	c.packets[direction].Add(1)
	c.octets[direction].Add(uint64(octets))
}

// answer counts what we have written, by method and code.
func (c *counters) answer(b []byte) {
	k := kind(binary.BigEndian.Uint16(b))
	method := "allocate"
	if k == setActiveOK || k == setActiveError {
		method = "set_active_destination"
	}
	code := "200"
	if k == allocateError || k == setActiveError {
		at := headerLen + cookieLen + 4 // ERROR-CODE comes next
		code = strconv.Itoa(int(b[at+2])*100 + int(b[at+3]))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[[2]string{method, code}]++
}

// collector shows the counters to Prometheus.
type collector struct{ s *Server }

// Describe implements [prometheus.Collector].
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	c := k.s.count
	c.mu.Lock()
	drops, answers := maps.Clone(c.drops), maps.Clone(c.answers)
	c.mu.Unlock()
	counter := func(name, help string, labels []string, n uint64, values ...string) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue, float64(n), values...)
	}
	for reason, n := range drops {
		counter("edged_msturn_drops_total", "MS-TURN messages and packets dropped or refused, by reason.", []string{"reason"}, n, reason)
	}
	for a, n := range answers {
		counter("edged_msturn_requests_total", "MS-TURN requests answered, by method and code.", []string{"method", "code"}, n, a[0], a[1])
	}
	for i, direction := range []string{"to_peer", "to_client"} {
		counter("edged_msturn_relayed_packets_total", "Packets that MS-TURN clients had relayed.", []string{"direction"}, c.packets[i].Load(), direction)
		counter("edged_msturn_relayed_bytes_total", "Octets of these packets.", []string{"direction"}, c.octets[i].Load(), direction)
	}
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("edged_msturn_allocations", "MS-TURN allocations now.", nil, nil), prometheus.GaugeValue, float64(k.s.Open()))
}

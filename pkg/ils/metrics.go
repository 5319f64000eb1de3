package ils

import (
	"errors"
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count what passed. Labels are bounded: operations and reasons are constants.
type counters struct {
	mu       sync.Mutex
	messages map[string]uint64
	drops    map[string]uint64
	edits    uint64
}

func newCounters() *counters {
	return &counters{messages: map[string]uint64{}, drops: map[string]uint64{}}
}

func (c *counters) message(op byte) {
	name := "other"
	switch op {
	case opBind:
		name = "bind"
	case opSearch:
		name = "search"
	case opEntry:
		name = "entry"
	case opModify:
		name = "modify"
	case opAdd:
		name = "add"
	case opDelete:
		name = "delete"
	case opCompare:
		name = "compare"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.messages[name]++
}

func (c *counters) drop(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops[reason]++
}

func (c *counters) rewritten(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.edits += uint64(n)
}

// reason returns the label under which an error is counted.
func reason(err error) string {
	for _, e := range []error{errDepth, errValues, errPending, errSize, errForeign, errSealed, errSilent, errNotLDAP} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return errMalformed.Error()
}

// collector shows the counters to Prometheus.
type collector struct{ s *Server }

// Describe implements [prometheus.Collector].
func (k collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (k collector) Collect(ch chan<- prometheus.Metric) {
	c := k.s.count
	c.mu.Lock()
	messages, drops, edits := maps.Clone(c.messages), maps.Clone(c.drops), c.edits
	c.mu.Unlock()
	open := k.s.gate.Open()

	byLabel := func(name, help, label string, m map[string]uint64) {
		d := prometheus.NewDesc(name, help, []string{label}, nil)
		for v, n := range m {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), v)
		}
	}
	one := func(name, help string, t prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), t, v)
	}
	byLabel("edged_ils_messages_total", "LDAP messages read, by operation.", "op", messages)
	byLabel("edged_ils_drops_total", "Connections and registrations refused, by reason.", "reason", drops)
	one("edged_ils_rewrites_total", "Addresses and ports replaced in LDAP messages.", prometheus.CounterValue, float64(edits))
	one("edged_ils_connections", "LDAP connections now.", prometheus.GaugeValue, float64(open))
	one("edged_ils_registrations", "Inside users that calls from outside can reach by name.", prometheus.GaugeValue, float64(len(k.s.registry.Entries())))
}

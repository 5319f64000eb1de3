package forward

import (
	"maps"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/pinhole"
)

// Info is what a rule does, as the API shows it.
type Info struct {
	Name   string         `json:"name"`
	Listen pinhole.Listen `json:"listen"`
	To     netip.AddrPort `json:"to"`
	// Path is "kernel" or "user"; Why says why not the kernel.
	Path string `json:"path"`
	Why  string `json:"why,omitempty"`
	// Connections are open now, Kernel those of them that the kernel carries; Total is all so far.
	Connections int               `json:"connections"`
	Kernel      int               `json:"kernel_connections"`
	Total       uint64            `json:"connections_total"`
	FromClients uint64            `json:"bytes_from_clients"`
	FromTarget  uint64            `json:"bytes_from_target"`
	Refused     map[string]uint64 `json:"refused"`
}

// Infos lists the rules in the order of the configuration.
func (f *Forwarder) Infos() []Info {
	list := make([]Info, 0, len(f.rules))
	for _, r := range f.rules {
		s := r.snapshot()
		i := Info{
			Name: r.Name, Listen: r.Listen, To: r.To, Path: ViaUser, Why: s.kernel.Why,
			Connections: s.user.Open + s.kernel.Open, Kernel: s.kernel.Open, Total: s.user.Total + s.kernel.Total,
			FromClients: s.user.Bytes[0] + s.kernel.Bytes[0], FromTarget: s.user.Bytes[1] + s.kernel.Bytes[1],
			Refused: maps.Clone(s.user.Refused),
		}
		if s.kernel.Why == "" {
			i.Path = ViaKernel
		}
		for why, n := range s.kernel.Refused {
			i.Refused[why] += n
		}
		list = append(list, i)
	}
	return list
}

// snapshot is the figures of a rule at one time.
type snapshot struct {
	user, kernel Figures
	ended        map[string]uint64
}

func (r *rule) snapshot() snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := snapshot{
		user:  Figures{Open: len(r.open), Total: r.total, Bytes: r.bytes, Refused: maps.Clone(r.refused)},
		ended: maps.Clone(r.ended), kernel: Figures{Why: r.why, Refused: map[string]uint64{}},
	}
	for c := range r.open {
		s.user.Bytes[0] += c.counters.Bytes(0)
		s.user.Bytes[1] += c.counters.Bytes(1)
	}
	for _, c := range r.carried {
		k, err := c.Figures()
		if err != nil {
			k.Why = err.Error()
		}
		s.kernel.add(k)
	}
	return s
}

func (f *Figures) add(g Figures) {
	if g.Why != "" {
		f.Why = g.Why
	}
	f.Open += g.Open
	f.Total += g.Total
	f.Bytes[0] += g.Bytes[0]
	f.Bytes[1] += g.Bytes[1]
	for why, n := range g.Refused {
		f.Refused[why] += n
	}
}

// metrics are the descriptions of what is exported.
type metrics struct{ open, total, bytes, refused, ended *prometheus.Desc }

func newMetrics() metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("edged_forward_"+name, help, append([]string{"forward"}, labels...), nil)
	}
	return metrics{
		open:    desc("connections", "Open connections.", "path"),
		total:   desc("connections_total", "Connections that were let through.", "path"),
		bytes:   desc("bytes_total", "Bytes of TCP payload, from clients or from the target.", "path", "from"),
		refused: desc("refused_total", "Connections (in the kernel: packets too) that were not let through, by reason.", "path", "reason"),
		ended:   desc("ended_total", "Connections of user space that have ended, by reason.", "reason"),
	}
}

// Describe implements [prometheus.Collector].
func (f *Forwarder) Describe(ch chan<- *prometheus.Desc) {
	m := newMetrics()
	for _, d := range []*prometheus.Desc{m.open, m.total, m.bytes, m.refused, m.ended} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (f *Forwarder) Collect(ch chan<- prometheus.Metric) {
	m := newMetrics()
	for _, r := range f.rules {
		s := r.snapshot()
		send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, kind, v, append([]string{r.Name}, labels...)...)
		}
		for path, g := range map[string]Figures{ViaUser: s.user, ViaKernel: s.kernel} {
			send(m.open, prometheus.GaugeValue, float64(g.Open), path)
			send(m.total, prometheus.CounterValue, float64(g.Total), path)
			send(m.bytes, prometheus.CounterValue, float64(g.Bytes[0]), path, "clients")
			send(m.bytes, prometheus.CounterValue, float64(g.Bytes[1]), path, "target")
			for why, n := range g.Refused {
				send(m.refused, prometheus.CounterValue, float64(n), path, why)
			}
		}
		for why, n := range s.ended {
			send(m.ended, prometheus.CounterValue, float64(n), why)
		}
	}
}

var _ prometheus.Collector = (*Forwarder)(nil)

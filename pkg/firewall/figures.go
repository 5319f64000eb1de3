package firewall

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/prometheus/client_golang/prometheus"
)

// Figures is what the kernel has of the table.
type Figures struct {
	// Rules is how many rules the chain has.
	Rules int
	// Counted is what was handed over or marked since the rules were last applied, by the name of the rules.
	Counted map[string]Counted
	// Pinholes is how many elements the sets of the pinholes have, of IPv4 and of IPv6.
	Pinholes [2]int
}

// Counted are packets and their octets, IP headers included.
type Counted struct{ Packets, Bytes uint64 }

// Read returns what the kernel has; an error if there is no table. It needs CAP_NET_ADMIN.
func Read() (Figures, error) {
	f := Figures{Counted: map[string]Counted{}}
	conn, err := nftables.New()
	if err != nil {
		return f, fmt.Errorf("nftables: %w", err)
	}
	table, err := find(conn)
	if err != nil {
		return f, err
	}
	rules, err := conn.GetRules(table, &nftables.Chain{Name: chainName, Table: table})
	if err != nil {
		return f, fmt.Errorf("nftables: chain %s: %w", chainName, explain(err))
	}
	f.Rules = len(rules)
	for _, r := range rules {
		name, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok && name != "" {
				sum := f.Counted[name]
				f.Counted[name] = Counted{sum.Packets + c.Packets, sum.Bytes + c.Bytes}
			}
		}
	}
	return f, f.countPinholes(conn, table)
}

// find returns the table.
func find(conn *nftables.Conn) (*nftables.Table, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", explain(err))
	}
	for _, t := range tables {
		if t.Name == TableName {
			return t, nil
		}
	}
	return nil, errAbsent
}

func (f *Figures) countPinholes(conn *nftables.Conn, table *nftables.Table) error {
	sets, err := conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("nftables: sets: %w", explain(err))
	}
	for _, set := range sets {
		for i, s := range sides() {
			if set.Name != pinholesSet+s.name {
				continue
			}
			elements, err := conn.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("nftables: set %s: %w", set.Name, explain(err))
			}
			f.Pinholes[i] = len(elements)
		}
	}
	return nil
}

// count is how many rules the chain has once all is applied.
func (r Rules) count() int {
	n := len(r.Answers) + len(r.Redirects)
	if r.Guard {
		n += 2 * families
	}
	return n
}

// Collector returns the metrics; what the kernel has is read at each scrape.
func (k *Keeper) Collector() prometheus.Collector { return collector{k} }

type collector struct{ k *Keeper }

// Describe implements [prometheus.Collector].
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (c collector) Collect(ch chan<- prometheus.Metric) {
	send := func(name, help string, kind prometheus.ValueType, v float64, labels ...string) {
		var names, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
	}
	is := map[bool]float64{true: 1}
	s := c.k.State()
	send("edged_firewall_applied", "Whether the rules are to be in the kernel (1), or were taken off by a command (0).", prometheus.GaugeValue, is[!s.Off && s.Applies > 0])
	send("edged_firewall_last_error", "Whether the rules could last not be applied or read (1).", prometheus.GaugeValue, is[s.Error != nil])
	send("edged_firewall_last_applied_timestamp_seconds", "When the rules were last applied.", prometheus.GaugeValue, float64(s.Applied.UnixMilli())/1e3)
	send("edged_firewall_applies_total", "How often the rules were applied.", prometheus.CounterValue, float64(s.Applies))
	send("edged_firewall_repairs_total", "How often the rules were applied again because somebody had removed some.", prometheus.CounterValue, float64(s.Repairs))
	send("edged_firewall_failures_total", "How often the rules could not be applied.", prometheus.CounterValue, float64(s.Failures))
	f, err := Read()
	send("edged_firewall_table_present", "Whether the table is in the kernel, with all of its rules.", prometheus.GaugeValue, is[err == nil && f.Rules == c.k.rules.count()])
	if err != nil {
		return
	}
	for i, family := range []string{"ipv4", "ipv6"} {
		send("edged_firewall_pinholes", "Elements of the sets of pinholes.", prometheus.GaugeValue, float64(f.Pinholes[i]), "family", family)
	}
	for name, n := range f.Counted {
		send("edged_firewall_packets_total", "Packets handed over or marked since the rules were applied, by what for.", prometheus.CounterValue, float64(n.Packets), "for", name)
		send("edged_firewall_bytes_total", "Octets of these packets.", prometheus.CounterValue, float64(n.Bytes), "for", name)
	}
}

package survey

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"edged.dev/edged/pkg/firewall"
)

// ruleset is all tables of nftables, those that iptables writes among them, but the edge's own.
type ruleset []*ruleTable

type ruleTable struct {
	name    string
	family  nftables.TableFamily
	chains  []*ruleChain
	sets    map[string][]nftables.SetElement
	spans   map[string]bool   // sets whose elements are intervals
	helpers map[string]string // objects: which helper they name
}

type ruleChain struct {
	*nftables.Chain
	name  string
	table *ruleTable
	rules []*nftables.Rule
}

// maxRules is how many rules are read; who has more has them made by a machine, and Judge says that it cannot tell.
const maxRules = 20000

// loadRules reads everything, and tells whether the edge's own table is there. What is made by the family bridge, arp or
// netdev is left out.
func loadRules() (out ruleset, own bool, err error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, false, fmt.Errorf("netlink: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }() // it was only read
	tables, err := conn.ListTables()
	if err != nil {
		return nil, false, explainLook(err)
	}
	for _, t := range tables {
		ours := t.Name == firewall.TableName && t.Family == nftables.TableFamilyINet
		own = own || ours
		if ours || !slices.Contains([]nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}, t.Family) {
			continue
		}
		x := &ruleTable{name: t.Name, family: t.Family, sets: map[string][]nftables.SetElement{}, spans: map[string]bool{}, helpers: map[string]string{}}
		if err := x.loadSets(conn, t); err != nil {
			return nil, own, explainLook(err)
		}
		out = append(out, x)
	}
	return out, own, out.loadChains(conn)
}

// explainLook says what is missing where the kernel only says no.
func explainLook(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the capability CAP_NET_ADMIN is missing: %w", err)
	}
	return err
}

func (s ruleset) loadChains(conn *nftables.Conn) error {
	chains, err := conn.ListChains()
	if err != nil {
		return explainLook(err)
	}
	n := 0
	for _, c := range chains {
		for _, t := range s {
			if t.name != c.Table.Name || t.family != c.Table.Family {
				continue
			}
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return fmt.Errorf("chain %s of table %s: %w", c.Name, t.name, err)
			}
			if n += len(rules); n > maxRules {
				return fmt.Errorf("there are more than %d", maxRules)
			}
			t.chains = append(t.chains, &ruleChain{c, c.Name, t, rules})
		}
	}
	return nil
}

func (t *ruleTable) loadSets(conn *nftables.Conn, at *nftables.Table) error {
	sets, err := conn.GetSets(at)
	if err != nil {
		return fmt.Errorf("sets of table %s: %w", t.name, err)
	}
	for _, s := range sets {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("set %s of table %s: %w", s.Name, t.name, err)
		}
		t.sets[s.Name], t.spans[s.Name] = elements, s.Interval
	}
	objects, err := conn.GetNamedObjects(at)
	if err != nil {
		return fmt.Errorf("objects of table %s: %w", t.name, err)
	}
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		if !ok || named.Type != nftables.ObjTypeCtHelper {
			continue
		}
		if h, ok := named.Obj.(*expr.CtHelper); ok {
			t.helpers[named.Name] = h.Name
		}
	}
	return nil
}

// helpersIn returns the helpers to which a rule hands packets: by a statement of nftables, by a map of helpers, or by the
// target CT of iptables.
func (t *ruleTable) helpersIn(r *nftables.Rule) []string {
	var out []string
	for _, e := range r.Exprs {
		switch x := e.(type) {
		case *expr.Objref:
			if x.Type == int(nftables.ObjTypeCtHelper) && x.Name != "" {
				out = append(out, t.helpers[x.Name])
			} else if x.Name == "" { // a map: any of the table's
				for _, name := range t.helpers {
					out = append(out, name)
				}
			}
		case *expr.Target:
			if info, ok := x.Info.(*xt.Unknown); ok && x.Name == "CT" {
				out = append(out, ctTarget(*info))
			}
		}
	}
	return out
}

// ctTarget returns the helper that the target CT of iptables names: after flags, zone and two masks of events, 16 octets in all
// its revisions (xt_CT.h).
func ctTarget(info []byte) string {
	const offset, length = 12, 16
	if len(info) < offset+length {
		return ""
	}
	name, _, _ := bytes.Cut(info[offset:offset+length], []byte{0})
	return string(name)
}

// String names a chain as an operator would look for it.
func (c *ruleChain) String() string {
	text := fmt.Sprintf("chain %s of table %s %s", c.name, c.table.familyName(), c.table.name)
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		text += " (policy drop)"
	}
	return text
}

// deleteCommand deletes the rule that stands at an index. Rules that iptables has written are its own.
func (c *ruleChain) deleteCommand(i int) string {
	if slices.ContainsFunc(c.rules[i].Exprs, isCompat) {
		return fmt.Sprintf("%s -t %s -D %s %d", c.table.iptables(), c.table.name, c.name, i+1)
	}
	return fmt.Sprintf("nft delete rule %s %s %s handle %d", c.table.familyName(), c.table.name, c.name, c.rules[i].Handle)
}

func isCompat(e expr.Any) bool {
	switch e.(type) {
	case *expr.Match, *expr.Target:
		return true
	}
	return false
}

func (t *ruleTable) familyName() string {
	switch t.family {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

func (t *ruleTable) iptables() string {
	if t.family == nftables.TableFamilyIPv6 {
		return "ip6tables"
	}
	return "iptables"
}

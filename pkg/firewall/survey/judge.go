package survey

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Packet is the first one that somebody sends to a port.
type Packet struct {
	// In is the interface by which it comes; Out that by which it is forwarded, "" for one that is for this machine.
	In, Out string
	// Proto is tcp or udp.
	Proto string
	// To is where to. From is the sender, who is anybody if it is not valid.
	To   netip.AddrPort
	From netip.Addr
	// Mark is what the edge's own rules have put on it.
	Mark uint32
}

// Fate is what becomes of a packet.
type Fate int

// The fates. Perhaps: it depends on what cannot be judged, the sender for example.
const (
	Passes Fate = iota
	Perhaps
	Blocked
	Diverted // to another destination (DNAT)
)

// Judgement is a fate, and what decides it: "" if nothing does.
type Judgement struct {
	Fate Fate
	By   string
	// Remedy lets packets for the port pass, where the chain is nobody's but the operator's.
	Remedy string
}

// Judge follows a packet through the chains of all tables, as the kernel would.
func (s *Survey) Judge(p Packet) Judgement {
	hooks := []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookInput}
	if p.Out != "" {
		hooks[1] = nftables.ChainHookForward
	}
	var unsure Judgement
	for _, hook := range hooks {
		for _, c := range s.rules.base(hook, p) {
			w := walk{table: c.table, p: p, forwarded: p.Out != ""}
			j := w.base(c)
			switch {
			case j.Fate == Blocked || j.Fate == Diverted:
				return j
			case j.Fate == Perhaps && unsure.By == "":
				unsure = j
			}
		}
	}
	return unsure
}

// base returns the chains of a hook that see the packet, in the kernel's order.
func (s ruleset) base(hook *nftables.ChainHook, p Packet) []*ruleChain {
	var out []*ruleChain
	for _, t := range s {
		v6 := p.To.Addr().Is6()
		if t.family == nftables.TableFamilyIPv4 && v6 || t.family == nftables.TableFamilyIPv6 && !v6 {
			continue
		}
		for _, c := range t.chains {
			if c.Hooknum != nil && *c.Hooknum == *hook {
				out = append(out, c)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *ruleChain) int { return cmp.Compare(priorityOf(a), priorityOf(b)) })
	return out
}

func priorityOf(c *ruleChain) nftables.ChainPriority {
	if c.Priority == nil {
		return 0
	}
	return *c.Priority
}

// verdict is what a rule says of a packet that it matches.
type verdict int

const (
	goesOn verdict = iota
	accepts
	drops
	diverts
	returns
	jumps
	goesTo
)

// walk follows a packet through a base chain.
type walk struct {
	table     *ruleTable
	p         Packet
	forwarded bool
	depth     int
	steps     int // rules judged, up to maxSteps
	// mayAccept, mayDrop: a rule would, if something held that cannot be judged.
	mayAccept, mayDrop bool
	by                 string
	last               *ruleChain
}

// maxDepth is the kernel's limit of jumps.
const maxDepth = 16

// maxSteps bounds the rules that are judged for a packet at a hook: jumps of jumps may be more than anybody can follow.
const maxSteps = 100_000

func (w *walk) base(c *ruleChain) Judgement {
	end, done := w.chain(c, true)
	if w.steps > maxSteps {
		return Judgement{Fate: Perhaps, By: fmt.Sprintf("%s, which leads to more than %d rules", c, maxSteps)}
	}
	if !done {
		end, w.last, w.by = accepts, c, c.String()
		if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			end = drops
		}
	}
	j := Judgement{By: w.by}
	switch {
	case end == diverts:
		j.Fate = Diverted
	case end == drops && !w.mayAccept:
		j.Fate, j.Remedy = Blocked, w.last.letIn(w.p)
	case end == drops || w.mayDrop:
		j.Fate = Perhaps
	default:
		return Judgement{}
	}
	return j
}

// chain walks through a chain; sure says that the packet really comes here. done is false if the chain's end was reached.
func (w *walk) chain(c *ruleChain, sure bool) (end verdict, done bool) {
	if w.depth++; w.depth > maxDepth {
		return goesOn, false
	}
	defer func() { w.depth-- }()
	for i, r := range c.rules {
		if w.steps++; w.steps > maxSteps {
			return goesOn, false
		}
		m, v, target := w.table.judge(r, w.p)
		if m == no {
			continue
		}
		certain := sure && m == yes
		switch v {
		case accepts, drops, diverts:
			if certain {
				w.last, w.by = c, fmt.Sprintf("rule %d of %s", i+1, c)
				return v, true
			}
			w.mayAccept, w.mayDrop = w.mayAccept || v == accepts, w.mayDrop || v != accepts
		case jumps, goesTo:
			if next := w.table.chain(target); next != nil {
				if end, done := w.chain(next, certain); done {
					return end, true
				}
			}
			if v == goesTo && certain {
				return goesOn, false
			}
			sure = sure && v == jumps
		case returns:
			if certain {
				return goesOn, false
			}
			sure = false // the rest may not be reached
		}
	}
	return goesOn, false
}

func (t *ruleTable) chain(name string) *ruleChain {
	if i := slices.IndexFunc(t.chains, func(c *ruleChain) bool { return c.name == name }); i >= 0 {
		return t.chains[i]
	}
	return nil
}

// letIn is the command that lets packets for the port pass at the chain.
func (c *ruleChain) letIn(p Packet) string {
	if slices.ContainsFunc(c.rules, func(r *nftables.Rule) bool { return slices.ContainsFunc(r.Exprs, isCompat) }) || c.table.family != nftables.TableFamilyINet && c.name == "INPUT" {
		return fmt.Sprintf("%s -t %s -I %s -p %s --dport %d -j ACCEPT", c.table.iptables(), c.table.name, c.name, p.Proto, p.To.Port())
	}
	return fmt.Sprintf("nft insert rule %s %s %s %s dport %d accept", c.table.familyName(), c.table.name, c.name, p.Proto, p.To.Port())
}

// verdictOf reads a verdict of nftables.
func verdictOf(v *expr.Verdict) (verdict, string) {
	switch v.Kind {
	case expr.VerdictAccept, expr.VerdictStop, expr.VerdictQueue:
		return accepts, ""
	case expr.VerdictDrop, expr.VerdictStolen:
		return drops, ""
	case expr.VerdictReturn:
		return returns, ""
	case expr.VerdictJump:
		return jumps, v.Chain
	case expr.VerdictGoto:
		return goesTo, v.Chain
	}
	return goesOn, ""
}

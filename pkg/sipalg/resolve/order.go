package resolve

import (
	"cmp"
	"slices"

	"github.com/miekg/dns"
)

// order sorts SRV records by priority, and within one priority by the weighted choice of RFC 2782:
// each next one is drawn with a probability in proportion to its weight among those left.
func (r *Resolver) order(records []dns.RR) []*dns.SRV {
	list := make([]*dns.SRV, 0, len(records))
	for _, rr := range records {
		if srv, ok := rr.(*dns.SRV); ok {
			list = append(list, srv)
		}
	}
	slices.SortStableFunc(list, func(a, b *dns.SRV) int {
		// Weight 0 goes first, so that it has a small chance where others have weights.
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(min(a.Weight, 1), min(b.Weight, 1)))
	})
	for start := 0; start < len(list); {
		end := start
		for end < len(list) && list[end].Priority == list[start].Priority {
			end++
		}
		r.draw(list[start:end])
		start = end
	}
	return list
}

// draw orders records of one priority.
func (r *Resolver) draw(group []*dns.SRV) {
	for ; len(group) > 1; group = group[1:] {
		sum := 0
		for _, rr := range group {
			sum += int(rr.Weight)
		}
		pick, i := r.cfg.Pick(sum+1), 0 // 0 to the sum, both included
		for pick -= int(group[0].Weight); pick > 0; pick -= int(group[i].Weight) {
			i++
		}
		chosen := group[i]
		copy(group[1:i+1], group[:i])
		group[0] = chosen
	}
}

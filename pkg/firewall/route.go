package firewall

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// route has packets with the mark delivered to this host. It tells whether a rule was missing.
func route(r Rules) (added bool, err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("policy routing: lo: %w", err)
	}
	for _, v6 := range r.families() {
		if err := netlink.RouteReplace(r.localRoute(v6, lo.Attrs().Index)); err != nil {
			return added, fmt.Errorf("policy routing: route of table %d: %w", r.Config.RoutingTable, explain(err))
		}
		switch err := netlink.RuleAdd(r.rule(v6)); {
		case err == nil:
			added = true
		case !errors.Is(err, unix.EEXIST):
			return added, fmt.Errorf("policy routing: rule of mark %#x: %w", r.Config.Mark, explain(err))
		}
	}
	return added, nil
}

// unroute undoes route, of both families.
func unroute(r Rules) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("policy routing: lo: %w", err)
	}
	var errs []error
	for _, v6 := range []bool{false, true} {
		for _, err := range []error{netlink.RuleDel(r.rule(v6)), netlink.RouteDel(r.localRoute(v6, lo.Attrs().Index))} {
			if err != nil && !absent(err) {
				errs = append(errs, fmt.Errorf("policy routing of table %d: %w", r.Config.RoutingTable, explain(err)))
			}
		}
	}
	return errors.Join(errs...)
}

// absent tells whether there was nothing to remove, or nothing of that family.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EAFNOSUPPORT)
}

func (r Rules) rule(v6 bool) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Mark, rule.Table = unix.AF_INET, r.priority(), r.Config.Mark, r.Config.RoutingTable
	if v6 {
		rule.Family = unix.AF_INET6
	}
	return rule
}

func (r Rules) localRoute(v6 bool, lo int) *netlink.Route {
	dst, family := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, unix.AF_INET
	if v6 {
		dst, family = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, unix.AF_INET6
	}
	return &netlink.Route{
		Family: family, LinkIndex: lo, Dst: dst, Table: r.Config.RoutingTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
	}
}

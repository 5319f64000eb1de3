package main

import (
	"context"
	"fmt"
	"slices"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/resolve"
)

// resolvers finds SIP servers for each network (RFC 3263): only what can be
// reached from there counts, by transport and by address family.
type resolvers struct {
	nets pinhole.Networks
	by   map[string]*resolve.Resolver
}

func newResolvers(nets pinhole.Networks, listen []sipalg.Listen) *resolvers {
	r := &resolvers{nets: nets, by: map[string]*resolve.Resolver{}}
	for name := range nets {
		protos := []flow.Proto{flow.TCP, flow.TLS}
		// A datagram leaves by the socket of a listener; connections need none.
		if slices.ContainsFunc(listen, func(l sipalg.Listen) bool { return l.Network == name && l.Proto == flow.UDP }) {
			protos = slices.Insert(protos, 0, flow.UDP)
		}
		r.by[name] = resolve.New(resolve.Config{Protos: protos})
	}
	return r
}

// targets returns the places where requests for a host go, best first.
func (r *resolvers) targets(ctx context.Context, network string, proto flow.Proto, host string, port uint16) ([]flow.Target, error) {
	by, ok := r.by[network]
	if !ok {
		return nil, fmt.Errorf("network %q: %w", network, pinhole.ErrNetwork)
	}
	answers, err := by.Resolve(ctx, resolve.Query{Host: host, Port: port, Proto: proto, Secure: proto.Secure()})
	if err != nil {
		return nil, err
	}
	var out []flow.Target
	for _, a := range answers {
		if _, _, err := r.nets.Local(network, pinhole.FamilyOf(a.Addr.Addr())); err == nil {
			out = append(out, flow.Target{Network: network, Proto: a.Proto, Addr: a.Addr, ServerName: a.Name})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no address of a family of network %q: %w", host, network, pinhole.ErrNetwork)
	}
	return out, nil
}

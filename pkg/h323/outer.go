package h323

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/rasrelay"
	"edged.dev/edged/pkg/pinhole"
)

// Another gatekeeper: RAS is passed on to it, calls that it admits go where it says, and it calls each registered
// endpoint at a door of its own, since gatekeepers tell endpoints apart by where they take calls.

// relaying says what the relay of RAS allows.
func (c *Core) relaying() rasrelay.Config {
	g := c.cfg.Gatekeeper.AddrPort
	network := c.networkOf("", g.Addr())
	return rasrelay.Config{
		Gatekeeper: g, Network: network, MaxEndpoints: c.cfg.MaxEndpoints, PerHost: c.cfg.PerSource,
		RefuseSigned: func() bool { return c.cfg.Signed == SignedRefuse },
		MayRegister:  c.mayRegister, MayLocate: c.mayLocate, Signalling: c.own, RAS: c.ownRAS, Own: c.nets.Own,
		Open: func(from string, host netip.Addr, signalling netip.AddrPort) (rasrelay.Door, error) {
			return c.openDoor([2]string{from, network}, host, signalling)
		},
	}
}

// door is a pinhole at which the gatekeeper calls an endpoint.
type door struct{ lease pinhole.Lease }

func (d door) Addr() netip.AddrPort { return d.lease.Local(pinhole.Far).Addr }
func (d door) Close()               { d.lease.Close() }

// openDoor opens a door for an endpoint (Near) to the gatekeeper (Far).
func (c *Core) openDoor(networks [2]string, host netip.Addr, signalling netip.AddrPort) (rasrelay.Door, error) {
	gk := c.cfg.Gatekeeper.Addr()
	lease, err := c.opener.Open(context.Background(), pinhole.Request{
		Owner: host.String(), Label: fmt.Sprintf("h323 endpoint %s", signalling), Kind: pinhole.TCP, Networks: networks,
		Families: [2]pinhole.Family{pinhole.FamilyOf(signalling.Addr()), pinhole.FamilyOf(gk)},
		Idle:     quietTime, OnIdle: func(bool) {}, Serve: c.enter(networks),
	})
	if err != nil {
		return nil, err
	}
	err = lease.Declare(pinhole.Near, pinhole.Remote{Addr: signalling, Source: host})
	if err == nil {
		err = lease.Declare(pinhole.Far, pinhole.Remote{Addr: netip.AddrPortFrom(gk, 9), Source: gk, Trusted: true})
	}
	if err != nil {
		lease.Close()
		return nil, err
	}
	return door{lease}, nil
}

// Entered tells of two connections that came through a door: the endpoint's, which is Near, and the gatekeeper's.
// Their identifiers are below 1<<63.
func (c *Core) Entered(now time.Time, ids [2]ConnID, networks [2]string, local, remote [2]netip.AddrPort) {
	for s, id := range ids {
		c.Accept(now, id, networks[s], local[s], remote[s])
	}
	near, far := c.legs[ids[pinhole.Near]], c.legs[ids[pinhole.Far]]
	near.partner, far.partner = far, near
}

// admitted returns where the gatekeeper wants the call of a host to go.
func (c *Core) admitted(now time.Time, l *leg, m *h225.Message) (netip.AddrPort, bool) {
	if c.outer == nil {
		return netip.AddrPort{}, false
	}
	var ids []h225.ID
	if id, ok := m.CallID(); ok {
		ids = append(ids, id)
	}
	if id, ok := m.ConferenceID(); ok {
		ids = append(ids, id)
	}
	return c.outer.Admitted(now, l.remote.Addr(), ids...)
}

// registered returns where the endpoint with an alias takes calls.
func (c *Core) registered(now time.Time, name string) (netip.AddrPort, bool) {
	switch {
	case c.outer != nil:
		return c.outer.Lookup(now, name)
	case c.gatekeeper != nil:
		return c.gatekeeper.Lookup(now, name)
	}
	return netip.AddrPort{}, false
}

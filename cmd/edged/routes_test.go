package main

import (
	"errors"
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
)

func testNetworks() pinhole.Networks {
	return pinhole.Networks{
		"loop":  {Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
		"other": {Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.77")}},
	}
}

func TestRouteTableNamesTheNetworkOfTheKernelsRoute(t *testing.T) {
	table := newRouteTable(testNetworks())
	for range 2 { // asked, then remembered
		if got := table.network(netip.MustParseAddr("127.0.0.1")); got != "loop" {
			t.Errorf("127.0.0.1 is reached by %q", got)
		}
	}
	// Of 127.0.0.0/8 the kernel chooses 127.0.0.1 or the address itself; both are of one interface.
	if got := table.network(netip.MustParseAddr("127.9.9.9")); got != "loop" {
		t.Errorf("127.9.9.9 is reached by %q", got)
	}
	if got := newRouteTable(pinhole.Networks{}).network(netip.MustParseAddr("127.0.0.1")); got != "" {
		t.Errorf("without networks it is reached by %q", got)
	}
}

func TestRouteTableIsBounded(t *testing.T) {
	table := newRouteTable(pinhole.Networks{})
	a := netip.MustParseAddr("127.1.0.0")
	for range routeMax + 10 {
		a = a.Next()
		table.network(a)
	}
	if len(table.known) > routeMax {
		t.Errorf("%d answers are remembered", len(table.known))
	}
}

func TestResolversKeepToTheNetworksFamilies(t *testing.T) {
	r := newResolvers(testNetworks(), []sipalg.Listen{{Proto: flow.UDP, Network: "loop", Port: 5060}})
	got, err := r.targets(t.Context(), "loop", 0, "127.0.0.5", 0)
	want := flow.Target{Network: "loop", Proto: flow.UDP, Addr: netip.MustParseAddrPort("127.0.0.5:5060")}
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := r.targets(t.Context(), "loop", 0, "2001:db8::1", 0); !errors.Is(err, pinhole.ErrNetwork) {
		t.Errorf("an IPv6 host from an IPv4 network: %v", err)
	}
	if _, err := r.targets(t.Context(), "nowhere", 0, "127.0.0.5", 0); !errors.Is(err, pinhole.ErrNetwork) {
		t.Errorf("an unknown network: %v", err)
	}
}

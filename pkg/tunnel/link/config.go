package link

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"edged.dev/edged/pkg/pinhole"
)

// Config is one item of the list of links.
type Config struct {
	Name string `yaml:"name" jsonschema:"required" jsonschema_description:"the link's name at both ends: a-z, 0-9 and -, at most 9; the interface is edged-NAME, the service in the relay's policy link-NAME"`
	// Device is judged by whoever reaches devices.
	Device    string       `yaml:"device" jsonschema:"required" jsonschema_description:"the device at the other end: name under agent.devices, or an ID"`
	Addresses []netip.Addr `yaml:"addresses" jsonschema:"required" jsonschema_description:"this end's address, one of IPv4, IPv6 or each"`
	Peer      []netip.Addr `yaml:"peer" jsonschema:"required" jsonschema_description:"the other end's, of the same families"`
	MTU       int          `yaml:"mtu" jsonschema:"minimum=1280,maximum=9000,default=1500" jsonschema_description:"the interface's; longer packets are fragmented, or refused by the kernel with the way's MTU, as on any interface"`
}

const (
	// DefaultMTU is that of the networks whose packets are carried: nothing need be fragmented.
	DefaultMTU = 1500
	minMTU     = 1280 // RFC 8200 §5
	maxMTU     = 9000
	maxName    = 9 // with "edged-" the 15 octets of an interface's name
)

// Interface returns the name of the interface.
func (c Config) Interface() string { return "edged-" + c.Name }

// Service returns the name under which the ends reach each other.
func (c Config) Service() string { return "link-" + c.Name }

// Completed returns the item with defaults for what it does not say.
func (c Config) Completed() Config {
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	return c
}

// Validate returns all faults of the item but for its device, each a [pinhole.Fault], joined.
func (c Config) Validate() error {
	var f pinhole.Faults
	if c.Name == "" || len(c.Name) > maxName || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		f.Add("name", "%q: a name of 1-%d of a-z, 0-9 and - is needed", c.Name, maxName)
	}
	if c.Device == "" {
		f.Add("device", "the device at the other end is needed")
	}
	addresses(&f, "addresses", c.Addresses)
	addresses(&f, "peer", c.Peer)
	for i, a := range c.Peer {
		key := fmt.Sprintf("peer[%d]", i)
		if slices.Contains(c.Addresses, a) {
			f.Add(key, "%s is this end's address", a)
		} else if _, ok := ofFamily(c.Addresses, a); !ok && a.IsValid() {
			f.Add(key, "%s: addresses has none of this family", a)
		}
	}
	for i, a := range c.Addresses {
		if _, ok := ofFamily(c.Peer, a); !ok && a.IsValid() {
			f.Add(fmt.Sprintf("addresses[%d]", i), "%s: peer has none of this family", a)
		}
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		f.Add("mtu", "%d is not in %d-%d", c.MTU, minMTU, maxMTU)
	}
	return f.Err()
}

// addresses finds what is no list of one unicast address of each family at most.
func addresses(f *pinhole.Faults, key string, list []netip.Addr) {
	if len(list) == 0 {
		f.Add(key, "an address is needed, e.g. 100.64.0.2")
	}
	for i, a := range list {
		at := fmt.Sprintf("%s[%d]", key, i)
		switch {
		case !a.IsValid():
		case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4In6() || a.Zone() != "":
			f.Add(at, "%s is no address of a host", a)
		case slices.ContainsFunc(list[:i], func(b netip.Addr) bool { return b.Is4() == a.Is4() }):
			f.Add(at, "%s: one address of each family", a)
		}
	}
}

// ofFamily returns the address of a's family.
func ofFamily(list []netip.Addr, a netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(list, func(b netip.Addr) bool { return b.Is4() == a.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return list[i], true
}

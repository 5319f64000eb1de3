package media

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PortRange is a range of ports, both ends included, written "50000-59999".
type PortRange struct {
	First, Last uint16
}

// UnmarshalText reads "A-B", or "A" for a single port. It does not judge the values: Validate does.
func (r *PortRange) UnmarshalText(text []byte) error {
	first, last, ok := strings.Cut(strings.TrimSpace(string(text)), "-")
	if !ok {
		last = first
	}
	a, errA := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	b, errB := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	if errA != nil || errB != nil {
		return fmt.Errorf("%q is not a port range such as 50000-59999", text)
	}
	r.First, r.Last = uint16(a), uint16(b)
	return nil
}

// MarshalText writes "A-B".
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String returns "A-B".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Size returns the number of ports, 0 if the range is upside down.
func (r PortRange) Size() int { return max(0, int(r.Last)-int(r.First)+1) }

// PinholeConfig is the section "pinholes" of the configuration.
type PinholeConfig struct {
	// UDP and TCP are the ports that leases get, at every address of the edge.
	UDP PortRange `yaml:"udp" json:"udp"`
	TCP PortRange `yaml:"tcp" json:"tcp"`
	// PerOwner is how many pinholes one owner (a host) may have at once, 1-65536.
	PerOwner int `yaml:"per_owner" json:"per_owner"`
	// Idle is the time without packets after which a pinhole is given up, 1s-24h.
	Idle time.Duration `yaml:"idle" json:"idle"`
	// Quarantine is how long a released port is left alone, so that late packets of the last call
	// do not reach the next one; 0-10m.
	Quarantine time.Duration `yaml:"quarantine" json:"quarantine"`
	// Firewall says whether the host's firewall is told of open ports: FirewallNone (also "") or FirewallNFTables.
	Firewall string `yaml:"firewall" json:"firewall"`
	// AllowTargets holds, per network, the hosts that anybody there may name as a media address.
	AllowTargets map[string][]netip.Prefix `yaml:"allow_targets" json:"allow_targets"`
}

// The values of PinholeConfig.Firewall.
const (
	FirewallNone     = "none"
	FirewallNFTables = "nftables"
)

// DefaultPinholeConfig returns the section "pinholes" as it is when nothing is written.
func DefaultPinholeConfig() PinholeConfig {
	return PinholeConfig{
		UDP:        PortRange{50000, 59999},
		TCP:        PortRange{40000, 49999},
		PerOwner:   500,
		Idle:       time.Minute,
		Quarantine: 5 * time.Second,
		Firewall:   FirewallNone,
	}
}

// Config is the section "media" of the configuration.
type Config struct {
	// DSCP marks the packets that the relay sends, 0-63; 46 is Expedited Forwarding (RFC 3246).
	DSCP int `yaml:"dscp" json:"dscp"`
	// Latch lets the relay learn the port (and behind a NAT the address) that a peer really sends
	// from. Without it only the exact declared address is heard and sent to.
	Latch bool `yaml:"latch" json:"latch"`
	// Datapath says what may carry UDP media: DatapathAuto, DatapathTC, DatapathXDP or DatapathUser.
	Datapath string `yaml:"datapath" json:"datapath"`
	// Pin is the folder on a bpffs where the kernel path is kept while no daemon runs; "" for none.
	Pin string `yaml:"pin" json:"pin"`
}

// The values of Config.Datapath. The relay itself does as its Path does.
const (
	// DatapathAuto takes the best that the machine offers.
	DatapathAuto = "auto"
	// DatapathTC lets the kernel carry what it can, by BPF at the ingress of devices.
	DatapathTC = "tc"
	// DatapathXDP lets drivers that can, carry what is simple, before DatapathTC. It costs other traffic
	// through these devices some speed, and hides the packets from packet capture.
	DatapathXDP = "xdp"
	// DatapathUser leaves all to user space.
	DatapathUser = "user"
)

// DefaultConfig returns the section "media" as it is when nothing is written.
func DefaultConfig() Config {
	return Config{DSCP: 46, Latch: true, Datapath: DatapathAuto, Pin: "/sys/fs/bpf/edged"}
}

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	// Key is the path of the key, e.g. "pinholes.udp".
	Key string
	// Text says what is wrong with it.
	Text string
}

// Error returns "key: text".
func (f Fault) Error() string { return f.Key + ": " + f.Text }

// Validate returns every fault as a [Fault], joined; nil if there is none.
func (c PinholeConfig) Validate() error {
	var errs []error
	fault := func(bad bool, key, format string, args ...any) {
		if bad {
			errs = append(errs, Fault{"pinholes." + key, fmt.Sprintf(format, args...)})
		}
	}
	fault(c.UDP.First == 0 || c.UDP.Size() < 4, "udp", "%s does not hold 4 ports above 0", c.UDP)
	fault(c.TCP.First == 0 || c.TCP.Size() < 2, "tcp", "%s does not hold 2 ports above 0", c.TCP)
	fault(c.PerOwner < 1 || c.PerOwner > 65536, "per_owner", "%d is not in 1-65536", c.PerOwner)
	fault(c.Idle < time.Second || c.Idle > 24*time.Hour, "idle", "%v is not in 1s-24h", c.Idle)
	fault(c.Quarantine < 0 || c.Quarantine > 10*time.Minute, "quarantine", "%v is not in 0s-10m", c.Quarantine)
	fault(c.Firewall != "" && c.Firewall != FirewallNone && c.Firewall != FirewallNFTables, "firewall", "%q is not none or nftables", c.Firewall)
	names := make([]string, 0, len(c.AllowTargets))
	for name := range c.AllowTargets {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for i, p := range c.AllowTargets[name] {
			fault(!p.IsValid(), fmt.Sprintf("allow_targets.%s[%d]", name, i), "not a CIDR prefix")
			fault(p.IsValid() && p.Bits() == 0, fmt.Sprintf("allow_targets.%s[%d]", name, i),
				"%s allows every address, which is no protection", p)
		}
	}
	return errors.Join(errs...)
}

// Validate returns every fault as a [Fault], joined; nil if there is none.
func (c Config) Validate() error {
	var errs []error
	if c.DSCP < 0 || c.DSCP > 63 {
		errs = append(errs, Fault{"media.dscp", fmt.Sprintf("%d is not in 0-63", c.DSCP)})
	}
	if !slices.Contains([]string{DatapathAuto, DatapathTC, DatapathXDP, DatapathUser}, c.Datapath) {
		errs = append(errs, Fault{"media.datapath", fmt.Sprintf("%q is not auto, tc, xdp or user", c.Datapath)})
	}
	if c.Pin != "" && (!filepath.IsAbs(c.Pin) || filepath.Clean(c.Pin) == "/") {
		errs = append(errs, Fault{"media.pin", fmt.Sprintf("%q is not the absolute path of a folder", c.Pin)})
	}
	return errors.Join(errs...)
}

package audiocall

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "audiocall" of the configuration.
type Config struct {
	// Listen are the listeners: tcp://NETWORK:PORT; usually port 1731.
	Listen []pinhole.Listen `yaml:"listen" json:"listen" jsonschema:"description=listeners of audio call control: tcp://NETWORK:PORT; usually port 1731"`
	// Transparent says that the listeners take connections that the gateway's rules hand over (TPROXY).
	Transparent bool `yaml:"transparent" json:"transparent,omitempty" jsonschema:"default=false,description=also take connections to others that nftables hands over (tproxy); from trusted networks they go where they were going; needs CAP_NET_ADMIN"`
	// Targets are where callers of a network are brought when nothing else says where.
	Targets map[string]netip.AddrPort `yaml:"targets" json:"targets,omitempty" jsonschema:"description=ADDRESS:PORT for callers of a network when no directory says where; the key is the network's name"`
	// UDP are the ports at which the two hosts of a connection exchange datagrams.
	UDP Ports `yaml:"udp" json:"udp,omitempty" jsonschema:"type=string,description=UDP ports FIRST-LAST (at most 64) that the two hosts of a connection reach at each other through the edge; none = no UDP"`
	// Idle ends a connection on which nothing passes, and its datagrams.
	Idle time.Duration `yaml:"idle" json:"idle,omitempty" jsonschema:"type=string,default=1h,description=a connection on which nothing passes for so long is closed"`
}

// Ports are UDP ports, written FIRST-LAST; the zero value is none.
type Ports struct{ First, Last uint16 }

// maxPorts bounds the ports: each takes a socket at every address.
const maxPorts = 64

// UnmarshalText reads "FIRST-LAST"; "" is none.
func (p *Ports) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*p = Ports{}
		return nil
	}
	first, last, ok := strings.Cut(string(b), "-")
	f, err := strconv.ParseUint(first, 10, 16)
	l, err2 := strconv.ParseUint(last, 10, 16)
	if !ok || err != nil || err2 != nil {
		return fmt.Errorf("%q is not FIRST-LAST, e.g. 49608-49623", b)
	}
	*p = Ports{uint16(f), uint16(l)}
	return nil
}

// MarshalText writes "FIRST-LAST", "" for none.
func (p Ports) MarshalText() ([]byte, error) {
	if p == (Ports{}) {
		return nil, nil
	}
	return fmt.Appendf(nil, "%d-%d", p.First, p.Last), nil
}

// Each lists the ports.
func (p Ports) Each() (out []uint16) {
	for port := uint32(p.First); port <= uint32(p.Last) && port > 0; port++ {
		out = append(out, uint16(port))
	}
	return out
}

// DefaultConfig returns the defaults; the section is off as long as Listen is empty.
func DefaultConfig() Config { return Config{Idle: time.Hour} }

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var f pinhole.Faults
	f.Listeners("listen", c.Listen, nets, "tcp")
	for name, to := range c.Targets {
		f.Network("targets."+name, name, nets)
		if !to.IsValid() || to.Port() == 0 || nets.Own(to.Addr()) {
			f.Add("targets."+name, "%q is not ADDRESS:PORT of a host, e.g. 10.0.0.7:1731", to)
		}
	}
	if p := c.UDP; p != (Ports{}) && (p.First < 1024 || p.Last < p.First || int(p.Last)-int(p.First) >= maxPorts) {
		f.Add("udp", "%d-%d is not a range of 1-%d ports from 1024 up", p.First, p.Last, maxPorts)
	}
	if c.Idle < time.Second {
		f.Add("idle", "%v is less than 1s", c.Idle)
	}
	return f.Err()
}

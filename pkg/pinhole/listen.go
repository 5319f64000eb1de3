package pinhole

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Listen is a listener of an ALG, written "PROTO://NETWORK:PORT" in the configuration: at every address of
// the network.
type Listen struct {
	// Proto is tcp or udp.
	Proto   string
	Network string
	// Port is 1-65535.
	Port uint16
}

// UnmarshalText reads "PROTO://NETWORK:PORT".
func (l *Listen) UnmarshalText(b []byte) error {
	proto, rest, ok := strings.Cut(string(b), "://")
	network, port, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || network == "" {
		return fmt.Errorf("%q is not PROTO://NETWORK:PORT, e.g. tcp://inside:1720", b)
	}
	p, err := netip.ParseAddrPort("0.0.0.0:" + port)
	if err != nil || p.Port() == 0 {
		return fmt.Errorf("%q: port %q is not a number from 1 to 65535", b, port)
	}
	if proto != "tcp" && proto != "udp" {
		return fmt.Errorf("%q: protocol %q is not tcp or udp", b, proto)
	}
	*l = Listen{Proto: proto, Network: network, Port: p.Port()}
	return nil
}

// MarshalText writes "PROTO://NETWORK:PORT".
func (l Listen) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// String returns "PROTO://NETWORK:PORT".
func (l Listen) String() string { return fmt.Sprintf("%s://%s:%d", l.Proto, l.Network, l.Port) }

// Check returns what is wrong with the listener: a network that does not exist, or a protocol that is
// none of protos.
func (l Listen) Check(nets Networks, protos ...string) error {
	if _, ok := nets[l.Network]; !ok {
		return fmt.Errorf("network %q is not defined under networks", l.Network)
	}
	if !slices.Contains(protos, l.Proto) {
		return fmt.Errorf("%q: protocol %q is not %s", l, l.Proto, strings.Join(protos, " or "))
	}
	return nil
}

package pinhole

import (
	"fmt"
	"slices"
	"strconv"
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
	read, err := CutListen(string(b))
	if err != nil {
		return err
	}
	if read.Proto != "tcp" && read.Proto != "udp" {
		return fmt.Errorf("%q: protocol %q is not tcp or udp", b, read.Proto)
	}
	*l = read
	return nil
}

// CutListen reads "PROTO://NETWORK:PORT" whatever the protocol is, for listeners that have others than tcp and udp.
func CutListen(text string) (Listen, error) {
	proto, rest, ok := strings.Cut(text, "://")
	network, port, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || network == "" {
		return Listen{}, fmt.Errorf("%q is not PROTO://NETWORK:PORT, e.g. udp://inside:5060", text)
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 {
		return Listen{}, fmt.Errorf("%q: port %q is not a number from 1 to 65535", text, port)
	}
	return Listen{Proto: proto, Network: network, Port: uint16(p)}, nil
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

// ServiceListen is a listener whose protocol is the service's own, such as tls, quic or socks5; each service checks which.
type ServiceListen struct {
	Proto   string
	Network string
	// Port is 1-65535.
	Port uint16
}

// UnmarshalText reads "PROTO://NETWORK:PORT".
func (l *ServiceListen) UnmarshalText(b []byte) error {
	read, err := CutListen(string(b))
	if err != nil {
		return err
	}
	*l = ServiceListen(read)
	return nil
}

// MarshalText writes "PROTO://NETWORK:PORT".
func (l ServiceListen) MarshalText() ([]byte, error) { return Listen(l).MarshalText() }

// String returns "PROTO://NETWORK:PORT".
func (l ServiceListen) String() string { return Listen(l).String() }

// Check is that of [Listen].
func (l ServiceListen) Check(nets Networks, protos ...string) error {
	return Listen(l).Check(nets, protos...)
}

// Transport returns the listener with what carries its protocol: udp for udp, dtls and quic, tcp for all others.
func (l ServiceListen) Transport() Listen {
	p := Listen(l)
	switch l.Proto {
	case "udp", "dtls", "quic":
		p.Proto = "udp"
	default:
		p.Proto = "tcp"
	}
	return p
}

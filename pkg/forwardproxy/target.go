package forwardproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Target is a set of destinations, written "[udp/]HOST:PORTS": HOST is a name, *.NAME (every name below NAME), * (all), an
// address or a network, those of IPv6 in brackets; PORTS is *, or ports and ranges with commas between them.
type Target struct {
	// UDP says that it is about datagrams, not TCP.
	UDP bool
	// Name is a name in lower case, "*.NAME" or "*"; "" if Prefix is set.
	Name   string
	Prefix netip.Prefix
	// Ports are 1-65535.
	Ports []PortRange
}

// PortRange are the ports from First to Last.
type PortRange struct{ First, Last uint16 }

// maxPortRanges bounds the ports of one target.
const maxPortRanges = 64

// UnmarshalText reads "[udp/]HOST:PORTS".
func (t *Target) UnmarshalText(b []byte) error {
	text, udp := strings.CutPrefix(string(b), "udp/")
	colon := strings.LastIndexByte(text, ':')
	if colon <= 0 {
		return fmt.Errorf("%q is not [udp/]HOST:PORTS, e.g. *.example.org:443", b)
	}
	read := Target{UDP: udp}
	if err := read.readHost(text[:colon]); err != nil {
		return fmt.Errorf("%q: %w", b, err)
	}
	ports, err := readPorts(text[colon+1:])
	if err != nil {
		return fmt.Errorf("%q: %w", b, err)
	}
	read.Ports = ports
	*t = read
	return nil
}

func (t *Target) readHost(host string) error {
	bare := host
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		bare = host[1 : len(host)-1]
	} else if strings.Contains(host, ":") {
		return errors.New("an address of IPv6 stands in brackets")
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		if a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("%s is written in a way that no destination is", a)
		}
		t.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	if strings.Contains(bare, "/") {
		p, err := netip.ParsePrefix(bare)
		if err != nil || p != p.Masked() {
			return fmt.Errorf("%s is no network, e.g. 192.0.2.0/24", bare)
		}
		t.Prefix = p
		return nil
	}
	name := strings.ToLower(host)
	if below := strings.TrimPrefix(name, "*."); name != "*" && !hostName(below) {
		return fmt.Errorf("%q is no host name, nor *. and one, address, network or *", host)
	}
	t.Name = name
	return nil
}

func readPorts(text string) ([]PortRange, error) {
	if text == "*" {
		return []PortRange{{1, 65535}}, nil
	}
	var out []PortRange
	for item := range strings.SplitSeq(text, ",") {
		first, last, ok := strings.Cut(item, "-")
		if !ok {
			last = first
		}
		f, err := strconv.ParseUint(first, 10, 16)
		l, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || f == 0 || f > l || len(out) == maxPortRanges {
			return nil, fmt.Errorf("ports %q are not *, or at most %d of PORT and FIRST-LAST with commas between them", text, maxPortRanges)
		}
		out = append(out, PortRange{uint16(f), uint16(l)})
	}
	return out, nil
}

// MarshalText writes what UnmarshalText reads.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// String returns "[udp/]HOST:PORTS".
func (t Target) String() string {
	var b strings.Builder
	if t.UDP {
		b.WriteString("udp/")
	}
	switch {
	case t.Name != "":
		b.WriteString(t.Name)
	case t.Prefix.Addr().Is6():
		fmt.Fprintf(&b, "[%s]", t.host())
	default:
		b.WriteString(t.host())
	}
	for i, r := range t.Ports {
		b.WriteByte(":,"[min(i, 1)])
		switch {
		case r == PortRange{1, 65535}:
			b.WriteByte('*')
		case r.First == r.Last:
			fmt.Fprintf(&b, "%d", r.First)
		default:
			fmt.Fprintf(&b, "%d-%d", r.First, r.Last)
		}
	}
	return b.String()
}

func (t Target) host() string {
	if t.Prefix.IsSingleIP() {
		return t.Prefix.Addr().String()
	}
	return t.Prefix.String()
}

// port tells whether a port of a transport is among the target's.
func (t Target) port(udp bool, port uint16) bool {
	return t.UDP == udp && slices.ContainsFunc(t.Ports, func(r PortRange) bool { return port >= r.First && port <= r.Last })
}

// named tells whether a host is the target's as it was asked for: a name in the form of [hostName], or an address.
func (t Target) named(host string) bool {
	if t.Name == "*" || t.Name != "" && t.Name == host {
		return true
	}
	below, ok := strings.CutPrefix(t.Name, "*")
	return ok && len(host) > len(below) && strings.HasSuffix(host, below) && !isAddress(host)
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// hostName tells whether a name may be looked up: at most 253 octets in lower case, of labels of 1-63 letters, digits, - and
// _ (RFC 1123 §2.1; the underscore is used all the same).
func hostName(n string) bool {
	if len(n) > 253 || strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return false
	}
	return !slices.ContainsFunc(strings.Split(n, "."), func(label string) bool { return label == "" || len(label) > 63 })
}

// errHost says that a request names a host that is none.
var errHost = errors.New("no host name or address")

// readHost returns a host as clients write it in the form in which it is judged and dialled: an address as netip writes it,
// IPv4 in its own form, or a name in lower case without a dot at its end.
func readHost(text string) (string, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" {
			return "", errHost
		}
		return a.Unmap().String(), nil
	}
	name := strings.TrimSuffix(strings.ToLower(text), ".")
	if !hostName(name) {
		return "", errHost
	}
	return name, nil
}

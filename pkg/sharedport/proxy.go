package sharedport

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
)

// Limits and marks of the PROXY protocol (its specification, §2.1 and §2.2).
const (
	proxyV1     = "PROXY "
	proxyV1Most = 107
	proxyV2     = "\r\n\r\n\x00\r\nQUIT\n"
	proxyV2Size = 16
	// proxyV2Most bounds a header with its vendors' additions, certificates of clients among them.
	proxyV2Most = 4096
)

// proxyHeader reads the header that b begins with; ok says that there is one, more that this cannot be told yet.
// One that breaks the rules has no length.
func proxyHeader(b []byte) (first First, more, ok bool) {
	for _, mark := range []string{proxyV1, proxyV2} {
		n := min(len(b), len(mark))
		switch {
		case string(b[:n]) != mark[:n]:
		case n < len(mark):
			return First{}, true, false
		case mark == proxyV1:
			return proxyText(b)
		default:
			return proxyBinary(b)
		}
	}
	return First{}, false, false
}

// proxyText reads "PROXY TCP4 SOURCE DESTINATION PORT PORT" or "PROXY UNKNOWN ..." and CR LF.
func proxyText(b []byte) (First, bool, bool) {
	b = b[:min(len(b), proxyV1Most)]
	line, _, whole := bytes.Cut(b, []byte("\r\n"))
	if !whole && len(b) < proxyV1Most {
		return First{}, true, true
	}
	if !whole {
		return First{Class: Proxy}, false, true
	}
	first := First{Class: Proxy, Header: len(line) + 2}
	f := strings.Split(string(line), " ")
	if len(f) > 1 && f[1] == "UNKNOWN" {
		return first, false, true
	}
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return First{Class: Proxy}, false, true
	}
	source, err := netip.ParseAddrPort(netipJoin(f[2], f[4]))
	target, err2 := netip.ParseAddr(f[3])
	v4 := f[1] == "TCP4"
	if err != nil || err2 != nil || source.Addr().Is4() != v4 || target.Is4() != v4 || source.Addr().Zone() != "" {
		return First{Class: Proxy}, false, true
	}
	first.Source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	return first, false, true
}

func netipJoin(addr, port string) string {
	if strings.Contains(addr, ":") {
		return "[" + addr + "]:" + port
	}
	return addr + ":" + port
}

// proxyBinary reads version 2: the mark, version and command, family and transport, length, addresses, additions.
func proxyBinary(b []byte) (First, bool, bool) {
	if len(b) < proxyV2Size {
		return First{}, true, true
	}
	size := proxyV2Size + int(binary.BigEndian.Uint16(b[14:]))
	command, family := b[12], b[13]
	if command>>4 != 2 || command&15 > 1 || size > proxyV2Most {
		return First{Class: Proxy}, false, true
	}
	if len(b) < size {
		return First{}, true, true
	}
	first, body := First{Class: Proxy, Header: size}, b[proxyV2Size:size]
	if command&15 == 0 { // LOCAL: the proxy itself, e.g. a health check
		return first, false, true
	}
	octets := 0
	switch family {
	case 0x11: // TCP over IPv4
		octets = 4
	case 0x21: // TCP over IPv6
		octets = 16
	default:
		return first, false, true // the specification has receivers ignore what they do not know
	}
	if len(body) < 2*octets+4 {
		return First{Class: Proxy}, false, true
	}
	addr, _ := netip.AddrFromSlice(body[:octets])
	first.Source = netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(body[2*octets:]))
	return first, false, true
}

// ProxyHeader returns the header of version 2 that tells a backend whom a connection comes from and whom it was for.
// Addresses of different families are told as those of IPv6.
func ProxyHeader(source, target netip.AddrPort) []byte {
	b := append([]byte(proxyV2), 0x21)
	if source.Addr().Unmap().Is4() && target.Addr().Unmap().Is4() {
		s, t := source.Addr().Unmap().As4(), target.Addr().Unmap().As4()
		b = append(append(append(b, 0x11, 0, 12), s[:]...), t[:]...)
	} else {
		s, t := source.Addr().As16(), target.Addr().As16()
		b = append(append(append(b, 0x21, 0, 36), s[:]...), t[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, source.Port())
	return binary.BigEndian.AppendUint16(b, target.Port())
}

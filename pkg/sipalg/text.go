package sipalg

import (
	"net/netip"
	"strconv"
	"unsafe"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// parseAddr reads a host that is an address, without allocating.
func parseAddr(host []byte) (netip.Addr, bool) {
	if len(host) == 0 || len(host) > 45 || host[0] > '9' && host[0] != ':' && (host[0]|0x20 < 'a' || host[0]|0x20 > 'f') {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(unsafe.String(&host[0], len(host)))
	if err != nil {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func appendUint(dst []byte, n uint64) []byte { return strconv.AppendUint(dst, n, 10) }

const hexDigits = "0123456789abcdef"

// appendHex writes n as 16 hexadecimal digits.
func appendHex(dst []byte, n uint64) []byte {
	return appendHex32(appendHex32(dst, uint32(n>>32)), uint32(n))
}

// appendHex32 writes n as 8 hexadecimal digits.
func appendHex32(dst []byte, n uint32) []byte {
	for s := 28; s >= 0; s -= 4 {
		dst = append(dst, hexDigits[n>>s&15])
	}
	return dst
}

// parseHex reads 16 hexadecimal digits.
func parseHex(b []byte) (n uint64, ok bool) {
	if len(b) != 16 {
		return 0, false
	}
	for _, d := range b {
		switch {
		case d >= '0' && d <= '9':
			n = n<<4 | uint64(d-'0')
		case d >= 'a' && d <= 'f':
			n = n<<4 | uint64(d-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

// uriProto returns the transport that a URI demands, 0 if it leaves it open.
func uriProto(u sipmsg.URI) flow.Proto {
	var p flow.Proto
	if v, ok := u.Param("transport"); ok {
		p = flow.ParseProto(string(v))
	}
	if len(u.Scheme) == 4 { // sips
		switch p {
		case flow.WS, flow.WSS:
			return flow.WSS
		}
		return flow.TLS
	}
	return p
}

// uriPort returns a URI's port or the default of the transport (RFC 3261 §19.1.2, RFC 7118 §5.2).
func uriPort(u sipmsg.URI, p flow.Proto) uint16 { return portOr(u.Port, p) }

func portOr(port uint16, p flow.Proto) uint16 {
	if port != 0 {
		return port
	}
	switch p {
	case flow.TLS:
		return 5061
	case flow.WS:
		return 80
	case flow.WSS:
		return 443
	}
	return 5060
}

func statusClass(status int) string { return string([]byte{byte('0' + status/100%10), 'x', 'x'}) }

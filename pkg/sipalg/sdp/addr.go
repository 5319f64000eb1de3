package sdp

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// parseAddr reads an IP address without allocating. Brackets, a zone and leading zeros are
// tolerated; an IPv4-mapped address comes out as IPv4. It returns the zero Addr for anything else.
func parseAddr(b []byte) netip.Addr {
	if len(b) > 2 && b[0] == '[' && b[len(b)-1] == ']' {
		b = b[1 : len(b)-1]
	}
	if len(b) > 64 {
		return netip.Addr{}
	}
	for _, c := range b {
		if c == ':' {
			return parseIPv6(b)
		}
	}
	v, ok := parseIPv4(b)
	if !ok {
		return netip.Addr{}
	}
	return netip.AddrFrom4(v)
}

func parseIPv4(b []byte) (v [4]byte, ok bool) {
	octet, digits, n := 0, 0, 0
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9' && digits < 3:
			octet = octet*10 + int(c-'0')
			digits++
		case c == '.' && digits > 0 && n < 3 && octet < 256:
			v[n] = byte(octet)
			n++
			octet, digits = 0, 0
		default:
			return v, false
		}
	}
	if n != 3 || digits == 0 || octet > 255 {
		return v, false
	}
	v[3] = byte(octet)
	return v, true
}

// parseIPv6 reads RFC 4291 §2.2 text, with an optional zone that is dropped.
func parseIPv6(b []byte) netip.Addr {
	var v [16]byte
	gap, n := -1, 0
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		gap, b = 0, b[2:]
	}
	for len(b) > 0 && b[0] != '%' {
		word, digits := hexWord(b)
		if digits < len(b) && b[digits] == '.' {
			return finishIPv6WithIPv4(v, n, gap, b)
		}
		if digits == 0 || n == 16 {
			return netip.Addr{}
		}
		binary.BigEndian.PutUint16(v[n:], word)
		n += 2
		b = b[digits:]
		if len(b) == 0 || b[0] == '%' {
			break
		}
		if b[0] != ':' || len(b) == 1 {
			return netip.Addr{}
		}
		b = b[1:]
		if b[0] == ':' {
			if gap >= 0 {
				return netip.Addr{}
			}
			gap, b = n, b[1:]
		}
	}
	return spreadIPv6(v, n, gap)
}

func hexWord(b []byte) (word uint16, digits int) {
	for digits < len(b) && digits < 4 {
		c := b[digits]
		switch {
		case c >= '0' && c <= '9':
			word = word<<4 | uint16(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			word = word<<4 | uint16(c|0x20-'a'+10)
		default:
			return word, digits
		}
		digits++
	}
	return word, digits
}

func finishIPv6WithIPv4(v [16]byte, n, gap int, b []byte) netip.Addr {
	for i, c := range b {
		if c == '%' {
			b = b[:i]
			break
		}
	}
	four, ok := parseIPv4(b)
	if !ok || n > 12 {
		return netip.Addr{}
	}
	copy(v[n:], four[:])
	return spreadIPv6(v, n+4, gap)
}

// spreadIPv6 moves what follows "::" to the end.
func spreadIPv6(v [16]byte, n, gap int) netip.Addr {
	if gap < 0 && n != 16 || gap >= 0 && n == 16 {
		return netip.Addr{}
	}
	if gap >= 0 {
		tail := n - gap
		copy(v[16-tail:], v[gap:n])
		clear(v[gap : 16-tail])
	}
	return netip.AddrFrom16(v).Unmap()
}

// leaks tells whether a is one host's address, which must not be seen on the other network.
func leaks(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast()
}

// unspecified returns the hold address in the family of a.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// appendConn appends "IN IP4 192.0.2.1".
func appendConn(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		dst = append(dst, "IN IP4 "...)
	} else {
		dst = append(dst, "IN IP6 "...)
	}
	return a.AppendTo(dst)
}

// appendHostPort appends "192.0.2.1:5000" or "[2001:db8::1]:5000".
func appendHostPort(dst []byte, a netip.Addr, port uint16) []byte {
	if a.Is4() {
		dst = a.AppendTo(dst)
	} else {
		dst = append(dst, '[')
		dst = append(a.AppendTo(dst), ']')
	}
	return strconv.AppendUint(append(dst, ':'), uint64(port), 10)
}

// parsePort reads all of b as a port.
func parsePort(b []byte) (uint16, bool) {
	if len(b) == 0 || len(b) > 5 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return uint16(n), n < 1<<16
}

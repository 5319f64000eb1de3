package link

import (
	"encoding/binary"
	"net/netip"
)

// Sizes of headers (RFC 791 §3.1, RFC 8200 §3).
const (
	size4 = 20
	size6 = 40
)

// ends returns the addresses of an IP packet; ok says that it is one, as long as its header says.
func ends(b []byte) (from, to netip.Addr, ok bool) {
	if len(b) == 0 {
		return from, to, false
	}
	switch b[0] >> 4 {
	case 4:
		if len(b) < size4 || b[0]&15 < size4/4 || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			return from, to, false
		}
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), true
	case 6:
		if len(b) < size6 || int(binary.BigEndian.Uint16(b[4:]))+size6 != len(b) {
			return from, to, false
		}
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), true
	}
	return from, to, false
}

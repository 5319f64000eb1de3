package uplink

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// HostPort takes apart HOST or HOST:PORT, where no port means 443.
func HostPort(address string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil { // no port; of IPv6 without brackets too
		host, text = strings.Trim(address, "[]"), "443"
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if host == "" || err != nil || n == 0 || strings.ContainsAny(host, " /@") {
		return "", 0, fmt.Errorf("%q is not HOST or HOST:PORT", address)
	}
	return host, uint16(n), nil
}

package demophone

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ntp64 is the RTP header extension that carries the sending time (RFC 6051 §3.2).
const ntp64 = "urn:ietf:params:rtp-hdrext:ntp-64"

// ntp64ID is the local identifier under which the phones offer ntp64 (RFC 8285).
const ntp64ID = 1

// errSDP says that a session description is not one that a demo phone can use.
var errSDP = errors.New("unusable session description")

// describe returns the SDP of a phone that receives audio at rtp, and RTCP at the next port.
func describe(user string, rtp netip.AddrPort) []byte {
	family := "IP4"
	if rtp.Addr().Is6() {
		family = "IP6"
	}
	var b strings.Builder
	lines := []string{
		"v=0",
		fmt.Sprintf("o=%s 1 1 IN %s %s", user, family, rtp.Addr()),
		"s=edged demo",
		fmt.Sprintf("c=IN %s %s", family, rtp.Addr()),
		"t=0 0",
		fmt.Sprintf("m=audio %d RTP/AVP 0", rtp.Port()),
		"a=rtpmap:0 PCMU/8000",
		"a=ptime:20",
		fmt.Sprintf("a=extmap:%d %s", ntp64ID, ntp64),
		fmt.Sprintf("a=rtcp:%d", rtp.Port()+1),
		"a=sendrecv",
	}
	for _, l := range lines {
		b.WriteString(l + "\r\n")
	}
	return []byte(b.String())
}

// mediaAddr returns where the sender of an SDP wants its first audio stream (RFC 8866 §5.7, §5.14).
func mediaAddr(body []byte) (netip.AddrPort, error) {
	var session, media netip.Addr
	var port uint16
	seen := false
	for line := range strings.Lines(string(body)) {
		kind, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		switch kind {
		case "m":
			if seen {
				return address(session, media, port)
			}
			p, err := audioPort(value)
			if err != nil {
				return netip.AddrPort{}, err
			}
			seen, port = true, p
		case "c":
			f := strings.Fields(value)
			if len(f) != 3 {
				return netip.AddrPort{}, fmt.Errorf("c=%s: %w", value, errSDP)
			}
			a, err := netip.ParseAddr(f[2])
			if err != nil {
				return netip.AddrPort{}, fmt.Errorf("c=%s: %w", value, errSDP)
			}
			if seen {
				media = a
			} else {
				session = a
			}
		}
	}
	return address(session, media, port)
}

func audioPort(m string) (uint16, error) {
	f := strings.Fields(m)
	if len(f) < 4 || f[0] != "audio" {
		return 0, fmt.Errorf("m=%s: %w", m, errSDP)
	}
	p, err := strconv.ParseUint(f[1], 10, 16)
	if err != nil {
		return 0, fmt.Errorf("m=%s: %w", m, errSDP)
	}
	return uint16(p), nil
}

func address(session, media netip.Addr, port uint16) (netip.AddrPort, error) {
	if media.IsValid() {
		session = media
	}
	if !session.IsValid() || port == 0 {
		return netip.AddrPort{}, fmt.Errorf("no address or no port: %w", errSDP)
	}
	return netip.AddrPortFrom(session, port), nil
}

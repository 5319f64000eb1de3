package userpath

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// controlMessage returns a control message with a struct sock_extended_err.
func controlMessage(level, kind int32, errno unix.Errno, origin byte) []byte {
	b := make([]byte, unix.CmsgSpace(16))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(16)))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	binary.NativeEndian.PutUint32(b[16:], uint32(errno))
	b[20] = origin
	return b
}

func TestUnreachable(t *testing.T) {
	icmp := controlMessage(unix.IPPROTO_IP, unix.IP_RECVERR, unix.ECONNREFUSED, unix.SO_EE_ORIGIN_ICMP)
	for _, tt := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"port", icmp, true},
		{"port, IPv6", controlMessage(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, unix.ECONNREFUSED, unix.SO_EE_ORIGIN_ICMP6), true},
		{"host", controlMessage(unix.IPPROTO_IP, unix.IP_RECVERR, unix.EHOSTUNREACH, unix.SO_EE_ORIGIN_ICMP), true},
		{"size", controlMessage(unix.IPPROTO_IP, unix.IP_RECVERR, unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP), false},
		{"own kernel", controlMessage(unix.IPPROTO_IP, unix.IP_RECVERR, unix.ECONNREFUSED, unix.SO_EE_ORIGIN_LOCAL), false},
		{"after another message", append(controlMessage(unix.SOL_SOCKET, 99, 0, 0), icmp...), true},
		{"none", nil, false},
		{"cut", icmp[:20], false},
	} {
		if got := unreachable(tt.b); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func FuzzUnreachable(f *testing.F) {
	f.Add(controlMessage(unix.IPPROTO_IP, unix.IP_RECVERR, unix.ECONNREFUSED, unix.SO_EE_ORIGIN_ICMP))
	f.Add(controlMessage(unix.SOL_SOCKET, 99, 0, 0)[:17])
	f.Fuzz(func(t *testing.T, b []byte) {
		if unreachable(b) && len(b) < unix.CmsgLen(8) {
			t.Errorf("%d bytes hold an error", len(b))
		}
	})
}

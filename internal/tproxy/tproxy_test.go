package tproxy

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// control is one piece of ancillary data.
func control(level, kind int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(len(data))))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(kind))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func TestCalled(t *testing.T) {
	four := []byte{2, 0, 0x13, 0xc4, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0}
	six := append([]byte{10, 0, 0x13, 0xc4, 0, 0, 0, 0}, append(netip.MustParseAddr("2001:db8::7").AsSlice(), 0, 0, 0, 0)...)
	other := control(unix.SOL_SOCKET, unix.SCM_TIMESTAMP, make([]byte, 16))
	for want, oob := range map[string][]byte{
		"192.0.2.7:5060":     control(unix.SOL_IP, unix.IP_ORIGDSTADDR, four),
		"[2001:db8::7]:5060": append(other, control(unix.SOL_IPV6, unix.IPV6_ORIGDSTADDR, six)...),
		"":                   control(unix.SOL_IP, unix.IP_ORIGDSTADDR, four[:7]),
	} {
		if got := Called(oob); got.IsValid() != (want != "") || got.IsValid() && got.String() != want {
			t.Errorf("%v, want %q", got, want)
		}
	}
	for _, oob := range [][]byte{nil, other, bytes.Repeat([]byte{0xff}, 64), make([]byte, 64)} {
		if got := Called(oob); got.IsValid() {
			t.Errorf("%x is for %v", oob, got)
		}
	}
	whole := control(unix.SOL_IP, unix.IP_ORIGDSTADDR, four)
	for n := range whole { // whatever is cut off
		_ = Called(whole[:n])
	}
}

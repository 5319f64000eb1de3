package hep

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// decode reads HEP3 as its specification tells, with nothing of the encoder.
func decode(t *testing.T, b []byte) map[uint16][]byte {
	t.Helper()
	if len(b) < 6 || string(b[:4]) != "HEP3" || int(b[4])<<8|int(b[5]) != len(b) {
		t.Fatalf("no HEP3 of this length: % x", b[:min(len(b), 16)])
	}
	chunks := map[uint16][]byte{}
	for b = b[6:]; len(b) > 0; {
		if len(b) < 6 {
			t.Fatal("octets after the last chunk")
		}
		vendor, kind, n := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), int(binary.BigEndian.Uint16(b[4:]))
		if vendor != 0 || n < 6 || n > len(b) || chunks[kind] != nil {
			t.Fatalf("chunk %d of vendor %d has %d octets of %d, or comes twice", kind, vendor, n, len(b))
		}
		chunks[kind] = b[6:n]
		b = b[n:]
	}
	return chunks
}

func TestAppend(t *testing.T) {
	at := time.Unix(0x12345678, 987654321)
	got := decode(t, Append(nil, Packet{
		Time: at, From: netip.MustParseAddrPort("192.0.2.7:5060"), To: netip.MustParseAddrPort("198.51.100.1:5061"), Stream: true,
		Capture: 2001, CallID: "c1@example.org", Data: []byte("OPTIONS"),
	}))
	for kind, want := range map[uint16]string{
		1: "\x02", 2: "\x06", 3: "\xc0\x00\x02\x07", 4: "\xc6\x33\x64\x01", 7: "\x13\xc4", 8: "\x13\xc5", 9: "\x12\x34\x56\x78",
		10: "\x00\x0f\x12\x06", 11: "\x01", 12: "\x00\x00\x07\xd1", 15: "OPTIONS", 17: "c1@example.org",
	} {
		if string(got[kind]) != want {
			t.Errorf("chunk %d is %q, want %q", kind, got[kind], want)
		}
	}
	got = decode(t, Append(nil, Packet{Time: at, From: netip.MustParseAddrPort("[2001:db8::7]:5060"), Data: make([]byte, 1<<17)}))
	if from := netip.AddrFrom16([16]byte(got[5])); from.String() != "2001:db8::7" || len(got[6]) != 16 || string(got[1]) != "\x0a" || string(got[2]) != "\x11" {
		t.Errorf("IPv6: %v", from)
	}
	if len(got[15]) != MaxData {
		t.Errorf("%d octets of data", len(got[15]))
	}
}

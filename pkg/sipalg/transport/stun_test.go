package transport

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rfc5769 is the transaction id of all the vectors in RFC 5769 §2.
const rfc5769 = "2112a442 b7e7a701bc34d686fa87dfae"

// The mapped addresses and their encoding are those of RFC 5769 §2.2 and §2.3.
func TestSTUNAnswer(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:32853"), netip.MustParseAddrPort("[2001:db8:1234:5678:11:2233:4455:6677]:32853")
	mapped4 := "0020 0008 0001 a147 e112a643"
	for _, c := range []struct {
		name, req string
		src       netip.AddrPort
		ok        bool
		want      string
	}{
		{"IPv4", "0001 0000" + rfc5769, v4, true, "0101 000c" + rfc5769 + mapped4},
		{"IPv4 in IPv6", "0001 0000" + rfc5769, netip.MustParseAddrPort("[::ffff:192.0.2.1]:32853"), true, "0101 000c" + rfc5769 + mapped4},
		{"IPv6", "0001 0000" + rfc5769, v6, true, "0101 0018" + rfc5769 + "0020 0014 0002 a147 0113a9faa5d3f179bc25f4b5bed2b9d9"},
		{"optional attribute", "0001 0008" + rfc5769 + "8022 0003 61626300", v4, true, "0101 000c" + rfc5769 + mapped4},
		{"username is let through", "0001 0008" + rfc5769 + "0006 0004 61626364", v4, true, "0101 000c" + rfc5769 + mapped4},
		{
			"PRIORITY is unknown here", "0001 0008" + rfc5769 + "0024 0004 6e0001ff", v4, true,
			"0111 0024" + rfc5769 + "0009 0015 00000414 556e6b6e6f776e20417474726962757465 000000 000a 0002 0024 0000",
		},
		{"indication", "0011 0000" + rfc5769, v4, true, ""},
		{"response", "0101 000c" + rfc5769 + mapped4, v4, false, ""},
		{"other method", "0003 0000" + rfc5769, v4, false, ""},
		{"length too long", "0001 0004" + rfc5769, v4, false, ""},
		{"attribute overruns", "0001 0004" + rfc5769 + "8022 0001", v4, false, ""},
		{"trailing bytes", "0001 0000" + rfc5769 + "00000000", v4, false, ""},
		{"wrong fingerprint", "0001 0008" + rfc5769 + "8028 0004 00000000", v4, false, ""},
		{"no cookie", "0001 0000 2112a443 b7e7a701bc34d686fa87dfae", v4, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := appendSTUN(nil, unhex(t, c.req), c.src)
			if ok != c.ok || !bytes.Equal(got, unhex(t, c.want)) {
				t.Errorf("got %x, %v\nwant %s, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

// The request of RFC 5769 §2.1, whole: its fingerprint is right, its ICE attributes are not for a SIP port.
const rfc5769Request = `0001 0058 2112a442 b7e7a701bc34d686fa87dfae
	8022 0010 5354554e 20746573 7420636c 69656e74
	0024 0004 6e0001ff 8029 0008 932ff9b1 51263b36
	0006 0009 6576746a 3a683676 59202020
	0008 0014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2
	8028 0004 e57a3bcf`

func TestSTUNFingerprint(t *testing.T) {
	req := unhex(t, rfc5769Request)
	src := netip.MustParseAddrPort("192.0.2.1:32853")
	got, ok := appendSTUN([]byte("before"), req, src)
	if !ok || !bytes.HasPrefix(got, []byte("before\x01\x11")) {
		t.Fatalf("got %q, %v; want a 420 after what was there", got, ok)
	}
	// The answer's own fingerprint must satisfy the check that requests are put to.
	answer := got[len("before"):]
	if _, _, finger, ok := scanSTUN(answer); !finger || !ok {
		t.Errorf("fingerprint of the answer %x: present %v, right %v", answer, finger, ok)
	}
	req[len(req)-1] ^= 1
	if _, ok := appendSTUN(nil, req, src); ok {
		t.Error("a damaged fingerprint was accepted")
	}
}

func FuzzSTUN(f *testing.F) {
	f.Add(unhex(f, rfc5769Request))
	f.Add(unhex(f, "0001 0000"+rfc5769))
	f.Add(unhex(f, "0001 0008"+rfc5769+"0006 0004 61626364"))
	f.Add([]byte("OPTIONS sip:example.org SIP/2.0\r\n\r\n"))
	src := netip.MustParseAddrPort("[2001:db8::1]:5060")
	f.Fuzz(func(t *testing.T, req []byte) {
		answer, ok := appendSTUN(nil, req, src)
		if !ok && len(answer) > 0 {
			t.Fatalf("refused, yet answered %x", answer)
		}
		if len(answer) == 0 {
			return
		}
		if len(answer) > len(req)+72 {
			t.Fatalf("%d bytes amplified to %d", len(req), len(answer))
		}
		if !isSTUN(answer) || len(answer) != stunHeader+int(answer[2])<<8+int(answer[3]) || !bytes.Equal(answer[4:20], req[4:20]) {
			t.Fatalf("malformed answer %x to %x", answer, req)
		}
		if _, _, _, ok := scanSTUN(answer); !ok {
			t.Fatalf("the attributes of the answer %x cannot be read", answer)
		}
	})
}

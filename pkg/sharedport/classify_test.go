package sharedport

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"time"
)

// hello returns the ClientHello of Go's client, one record with or without a server name.
func hello(t testing.TB, name string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: name == ""}).Handshake()
	b.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, Most)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// fragmented puts a record's content into records of at most size bytes.
func fragmented(b []byte, size int) []byte {
	var out []byte
	for content := b[recordHeader:]; len(content) > 0; {
		n := min(size, len(content))
		out = append(out, 22, 3, 1, 0, byte(n))
		out, content = append(out, content[:n]...), content[n:]
	}
	return out
}

// pseudo is the hello of [MS-TURN] §3.1.4.
func pseudo() string { return pseudoHello + strings.Repeat("r", 32) + pseudoEnd }

func unhex(t testing.TB, s string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestClassify(t *testing.T) {
	named := string(hello(t, "Edge.Example.ORG"))
	tls10 := "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01" + strings.Repeat("r", 32) + "\x00\x00\x02\x00\x2f\x01\x00"
	for _, tc := range []struct {
		name, in string
		want     First
	}{
		{"tls", named, First{TLS, "edge.example.org"}},
		{"tls in many records", string(fragmented([]byte(named), 7)), First{TLS, "edge.example.org"}},
		{"tls in records of one byte", string(fragmented([]byte(named), 1)), First{TLS, "edge.example.org"}},
		{"tls without a name", string(hello(t, "")), First{Class: TLS}},
		{"tls 1.0, shaped like the pseudo one", tls10, First{Class: TLS}},
		{"tls that ends within its extensions", tls10[:3] + "\x00\x32\x01\x00\x00\x2e" + tls10[9:] + "\x00\x09\x00\x00\x00", First{Class: Unknown}},
		{"not a hello", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", First{Class: Unknown}},
		{"a hello too long", "\x16\x03\x01\x40\x00\x01\x00\x40\x00", First{Class: Unknown}},
		{"an empty record", "\x16\x03\x01\x00\x00", First{Class: Unknown}},
		{"ssl 2 hello", "\x80\x46\x01\x03\x01", First{Class: SSL2}},
		{"pseudo-tls", pseudo(), First{Class: PseudoTLS}},
		{"stun", unhex(t, "0001 0000 2112a442"), First{Class: STUN}},
		{"ms-turn", unhex(t, "0200 0024 0003 0010"), First{Class: MSTURN}},
		{"t.120", unhex(t, "0300 000b 06e0 0000"), First{Class: TPKT}},
		{"h.225", unhex(t, "0300 0040 0802 0001"), First{Class: TPKT}},
		{"socks", "\x05\x01\x00", First{Class: SOCKS}},
		{"get", "GET / HTTP/1.1\r\n", First{Class: HTTP}},
		{"connect", "CONNECT edge.example.org:443 HTTP/1.0\r\n", First{Class: HTTP}},
		{"h2", "PRI * HTTP/2.0\r\n", First{Class: HTTP}},
		{"http options", "OPTIONS / HTTP/1.1\r\n", First{Class: HTTP}},
		{"sip options", "OPTIONS sip:example.org SIP/2.0\r\n", First{Class: SIP}},
		{"register", "REGISTER sip:example.org SIP/2.0\r\nVia:", First{Class: SIP}},
		{"sip keep-alive", "\r\n\r\n", First{Class: SIP}},
		{"a line of something", "HELO example.org\r\n", First{Class: Unknown}},
		{"binary", "\xff\xfe\xfd\xfc", First{Class: Unknown}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, more := Classify([]byte(tc.in)); got != tc.want || more {
				t.Errorf("got %+v, more %v, want %+v", got, more, tc.want)
			}
			// Every beginning says the same or asks for more: segments may be cut anywhere.
			for i := range tc.in {
				got, more := Classify([]byte(tc.in[:i]))
				if !more && got != tc.want {
					t.Fatalf("the first %d bytes are %+v", i, got)
				}
			}
		})
	}
}

func TestServerNames(t *testing.T) {
	for in, want := range map[string]string{
		"EDGE.example.org.": "edge.example.org", "a_b-c.example.org": "a_b-c.example.org",
		"": "!", ".": "!", "a b": "!", "bad\x00name": "!", "ümlaut": "!", strings.Repeat("a", 254): "!",
	} {
		got, ok := hostName([]byte(in))
		if !ok {
			got = "!"
		}
		if got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(hello(f, "edge.example.org"))
	f.Add(fragmented(hello(f, "edge.example.org"), 100))
	f.Add([]byte(pseudo()))
	f.Add([]byte("REGISTER sip:example.org SIP/2.0\r\n"))
	f.Add([]byte("\x80\x46\x01\x03\x01"))
	f.Add([]byte("\x03\x00\x00\x0b\x06\xe0\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, more := Classify(b)
		if whole.Name != strings.ToLower(whole.Name) || len(whole.Name) > maxName || whole.Name != "" && whole.Class != TLS {
			t.Fatalf("%+v", whole)
		}
		if len(b) == 0 {
			return
		}
		before, early := Classify(bytes.Clone(b[:len(b)-1]))
		if !early && (more || before != whole) {
			t.Fatalf("%+v became %+v (more %v) with the last byte", before, whole, more)
		}
	})
}

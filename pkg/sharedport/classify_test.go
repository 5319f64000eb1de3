package sharedport

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// hello returns the ClientHello of Go's client, one record with or without a server name.
func hello(t testing.TB, name string, protocols ...string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: name == "", NextProtos: protocols}).Handshake()
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

// google is the hello that its clients of TURN sent before they had TLS.
func google() string {
	return googleHello + strings.Repeat("\x00", googleLen-len(googleHello)-len(googleEnd)) + googleEnd
}

func unhex(t testing.TB, s string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestClassify(t *testing.T) {
	edge := First{Class: TLS, Name: "edge.example.org"}
	named := string(hello(t, "Edge.Example.ORG"))
	tls10 := "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01" + strings.Repeat("r", 32) + "\x00\x00\x02\x00\x2f\x01\x00"
	for _, tc := range []struct {
		name, in string
		want     First
	}{
		{"tls", named, edge},
		{"tls in many records", string(fragmented([]byte(named), 7)), edge},
		{"tls in records of one byte", string(fragmented([]byte(named), 1)), edge},
		{"tls of the tunnel", string(hello(t, "edge.example.org", "h2", TunnelProtocol)), First{Class: Tunnel, Name: "edge.example.org"}},
		{"tls of the tunnel without a name", string(hello(t, "", TunnelProtocol)), First{Class: Tunnel}},
		{"tls of what is called alike", string(hello(t, "edge.example.org", "http/1.1", TunnelProtocol+"0")), edge},
		{"tls without a name", string(hello(t, "")), First{Class: TLS}},
		{"tls 1.0, shaped like the pseudo one", tls10, First{Class: TLS}},
		{"tls that ends within its extensions", tls10[:3] + "\x00\x32\x01\x00\x00\x2e" + tls10[9:] + "\x00\x09\x00\x00\x00", First{Class: Unknown}},
		{"not a hello", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", First{Class: Unknown}},
		{"a hello too long", "\x16\x03\x01\x40\x00\x01\x00\x40\x00", First{Class: Unknown}},
		{"an empty record", "\x16\x03\x01\x00\x00", First{Class: Unknown}},
		{"ssl 2 hello", "\x80\x2e\x01\x03\x01", First{Class: SSL2}},
		{"pseudo-tls", pseudo(), First{Class: PseudoTLS}},
		{"stun", unhex(t, "0001 0000 2112a442"), First{Class: STUN}},
		{"ms-turn", unhex(t, "0200 0024 0003 0010"), First{Class: MSTURN}},
		{"ms-turn with a header of today", unhex(t, "0300 0024 0003 0010 2112a442"), First{Class: MSTURN}},
		{"google's hello", google(), First{Class: SSLTCP}},
		{"ssl 2 hello of the same shape", googleHello + strings.Repeat("x", 61), First{Class: SSL2}},
		{"t.120", unhex(t, "0300 000b 06e0 0000 0001 00"), First{Class: T120}},
		{"t.120 with a selector", unhex(t, "0300 000f 0ae0 0000 0001 00 c102 0001"), First{Class: T120}},
		{"rdp with a cookie", unhex(t, "0300 0020 1be0 0000 0001 00") + "Cookie: mstshash=a\r\n", First{Class: RDP}},
		{"rdp with a negotiation", unhex(t, "0300 0013 0ee0 0000 0001 00 0100 0800 0300 0000"), First{Class: RDP}},
		{"x.224 cut short", unhex(t, "0300 000a 05e0 0000 0001"), First{Class: Unknown}},
		{"h.225", unhex(t, "0300 0040 0802 0001"), First{Class: H225}},
		{"tpkt of something", unhex(t, "0300 0040 02f0 8001"), First{Class: Unknown}},
		{"groove", unhex(t, "01 0040 010500") + "dpp://", First{Class: Groove}},
		{"groove the other way round", unhex(t, "01 4000 010600") + "dpp://", First{Class: Groove}},
		{"groove of no version", unhex(t, "01 0040 010700") + "dpp://", First{Class: Unknown}},
		{"socks", "\x05\x01\x00", First{Class: SOCKS}},
		{"socks 4", "\x04\x01\x00\x50", First{Class: SOCKS}},
		{"socks without methods", "\x05\x00", First{Class: Unknown}},
		{"get", "GET / HTTP/1.1\r\n", First{Class: HTTP}},
		{"put", "PUT / HTTP/1.1\r\n", First{Class: HTTP}},
		{"connect", "CONNECT edge.example.org:443 HTTP/1.0\r\n", First{Class: Connect}},
		{"h2", "PRI * HTTP/2.0\r\n", First{Class: HTTP}},
		{"http options", "OPTIONS / HTTP/1.1\r\n", First{Class: HTTP}},
		{"a vpn", "SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\n", First{Class: SSTP}},
		{"a gateway of desktops", "RDG_OUT_DATA /remoteDesktopGateway/ HTTP/1.1\r\n", First{Class: RPC}},
		{"rpc", "RPC_IN_DATA /rpc/rpcproxy.dll HTTP/1.1\r\n", First{Class: RPC}},
		{"sip options", "OPTIONS sip:example.org SIP/2.0\r\n", First{Class: SIP}},
		{"register", "REGISTER sip:example.org SIP/2.0\r\nVia:", First{Class: SIP}},
		{"register after an empty line", "\r\nREGISTER sip:example.org SIP/2.0\r\nVia:", First{Class: SIP}},
		{"get after an empty line", "\r\nGET / HTTP/1.1\r\n", First{Class: Unknown}},
		{"sip response", "SIP/2.0 200 OK\r\n", First{Class: SIP}},
		{"sip keep-alive", "\r\n\r\n", First{Class: SIP}},
		{"proxy of nobody who is trusted", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", First{Class: Unknown}},
		{"a line of something", "HELO example.org\r\n", First{Class: Unknown}},
		{"a line without an end", strings.Repeat("A", maxLine+1), First{Class: Unknown}},
		{"binary", "\xff\xfe\xfd\xfc", First{Class: Unknown}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, more := (Looking{}).Classify([]byte(tc.in)); got != tc.want || more {
				t.Errorf("got %+v, more %v, want %+v", got, more, tc.want)
			}
			// Every beginning says the same or asks for more: segments may be cut anywhere.
			for i := range tc.in {
				got, more := (Looking{}).Classify([]byte(tc.in[:i]))
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

func TestClassifyWebSocket(t *testing.T) {
	request := func(fields string) string { return "GET /ws HTTP/1.1\r\nHost: edge.example.org\r\n" + fields + "\r\n" }
	for _, tc := range []struct {
		name, in string
		want     Class
	}{
		{"sip", request("Upgrade: websocket\r\nSec-WebSocket-Protocol: sip\r\n"), WebSocket},
		{"sip among others, in other letters", request("UPGRADE: WebSocket\r\nsec-websocket-protocol: chat ,SIP\r\n"), WebSocket},
		{"another protocol", request("Upgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n"), HTTP},
		{"no protocol", request("Upgrade: websocket\r\n"), HTTP},
		{"sip in a name only", request("Upgrade: websocket\r\nX-Sec-WebSocket-Protocol: sip\r\n"), HTTP},
		{"a page", request(""), HTTP},
		{"a form", strings.Replace(request("Upgrade: websocket\r\nSec-WebSocket-Protocol: sip\r\n"), "GET", "POST", 1), HTTP},
		{"a header that does not end", "GET / HTTP/1.1\r\nCookie: " + strings.Repeat("a", maxLine), HTTP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := Looking{WebSocket: true}
			if got, more := l.Classify([]byte(tc.in)); got.Class != tc.want || more {
				t.Errorf("got %+v, more %v, want %s", got, more, tc.want)
			}
			for i := range min(len(tc.in), maxLine) {
				if got, more := l.Classify([]byte(tc.in[:i])); !more {
					t.Fatalf("the first %d bytes are %+v", i, got)
				}
			}
		})
	}
}

func TestProxyProtocol(t *testing.T) {
	v4 := netip.MustParseAddrPort("192.0.2.1:56324")
	v6 := netip.MustParseAddrPort("[2001:db8::1]:56324")
	to4, to6 := netip.MustParseAddrPort("198.51.100.1:443"), netip.MustParseAddrPort("[2001:db8::2]:443")
	bad := First{Class: Proxy}
	for _, tc := range []struct {
		name, in string
		want     First
	}{
		{"1", "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", First{Class: Proxy, Header: 45, Source: v4}},
		{"1 over 6", "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", First{Class: Proxy, Header: 46, Source: v6}},
		{"1 of nobody", "PROXY UNKNOWN\r\n", First{Class: Proxy, Header: 15}},
		{"1 of another family", "PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n", bad},
		{"1 without ports", "PROXY TCP4 192.0.2.1 198.51.100.1\r\n", bad},
		{"1 with a port too high", "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n", bad},
		{"1 without an end", "PROXY TCP4 " + strings.Repeat("1", 107), bad},
		{"2", string(ProxyHeader(v4, to4)), First{Class: Proxy, Header: 28, Source: v4}},
		{"2 over 6", string(ProxyHeader(v6, to6)), First{Class: Proxy, Header: 52, Source: v6}},
		{"2 over both", string(ProxyHeader(v4, to6)), First{Class: Proxy, Header: 52, Source: v4}},
		{"2 with additions", proxyV2 + unhex(t, "21 11 0010 c0000201 c6336401 dc04 01bb 04 0001 00"), First{Class: Proxy, Header: 32, Source: v4}},
		{"2 of the proxy itself", proxyV2 + unhex(t, "20 00 0000"), First{Class: Proxy, Header: 16}},
		{"2 of a unix socket", proxyV2 + unhex(t, "21 31 0001 00"), First{Class: Proxy, Header: 17}},
		{"2 cut short", proxyV2 + unhex(t, "21 11 0004 c0000201"), bad},
		{"2 too long", proxyV2 + unhex(t, "21 11 ffff"), bad},
		{"2 of version 3", proxyV2 + unhex(t, "31 11 000c"), bad},
		{"sip keep-alive", "\r\n\r\nREGISTER", First{Class: SIP}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := Looking{Proxy: true}
			if got, more := l.Classify([]byte(tc.in)); got != tc.want || more {
				t.Errorf("got %+v, more %v, want %+v", got, more, tc.want)
			}
			for i := range tc.in {
				if got, more := l.Classify([]byte(tc.in[:i])); !more && got != tc.want {
					t.Fatalf("the first %d bytes are %+v", i, got)
				}
			}
		})
	}
}

func TestKindText(t *testing.T) {
	for in, want := range map[string]string{
		"http": "tcp/http tls/http", "tls/sip": "tls/sip", "tcp/stun": "tcp/stun", "tls": "tcp/tls",
		"": "!", "ftp": "!", "udp/sip": "!", "tls/tls": "!", "tcp/": "!", "proxy": "!",
	} {
		var k Kind
		got := "!"
		if k.UnmarshalText([]byte(in)) == nil {
			var each []string
			for _, e := range k.Each() {
				each = append(each, e.String())
			}
			got = strings.Join(each, " ")
			if k.String() != in {
				t.Errorf("%q is written %q", in, k)
			}
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(hello(f, "edge.example.org"))
	f.Add(fragmented(hello(f, "edge.example.org"), 100))
	f.Add(ProxyHeader(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("198.51.100.1:2")))
	for _, s := range []string{
		pseudo(), google(), "REGISTER sip:example.org SIP/2.0\r\n", "\x80\x46\x01\x03\x01", "\x03\x00\x00\x0b\x06\xe0\x00\x00",
		"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: sip\r\n\r\n", "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
		"\x01\x00\x40\x01\x05\x00dpp://", "\r\nREGISTER sip:example.org SIP/2.0\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, l := range []Looking{{}, {Proxy: true}, {WebSocket: true}} {
			whole, more := l.Classify(b)
			if whole.Name != strings.ToLower(whole.Name) || len(whole.Name) > maxName || whole.Name != "" && whole.Class != TLS {
				t.Fatalf("%+v", whole)
			}
			if more && whole != (First{}) || whole.Header > len(b) || whole.Class == Proxy && !l.Proxy {
				t.Fatalf("%+v, more %v, of %d bytes", whole, more, len(b))
			}
			if len(b) == 0 {
				continue
			}
			before, early := l.Classify(bytes.Clone(b[:len(b)-1]))
			if !early && (more || before != whole) {
				t.Fatalf("%+v became %+v (more %v) with the last byte", before, whole, more)
			}
		}
	})
}

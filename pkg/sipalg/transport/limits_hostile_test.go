package transport

import (
	"net/netip"
	"testing"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// TestReserve: strangers with ever new addresses leave room for the inside, whose hosts may all be in one /64.
func TestReserve(t *testing.T) {
	nets := pinhole.Networks{"in": {Trusted: true}, "out": {}}
	tr := New(Config{MaxConns: 400, PerSource: 2}, nets, nil, nil, zap.NewNop())
	admitted := func(network string, addr func(i int) netip.Addr) (n int) {
		for i := range 1000 {
			if tr.admit(network, addr(i)) == none {
				n++
			}
		}
		return n
	}
	v6 := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}
	if n := admitted("out", v6); n != 2 {
		t.Errorf("%d of one outside /64", n)
	}
	if n := admitted("out", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}) }); n != 298 {
		t.Errorf("%d strangers", n)
	}
	if n := admitted("in", v6); n != 100 {
		t.Errorf("%d of the inside", n)
	}
	for i := range 100 {
		tr.release("in", v6(i))
	}
	if tr.in != 300 {
		t.Errorf("%d after the release", tr.in)
	}
}

// TestHTTP: SIP behind an HTTP request is not read: a web page has written it.
func TestHTTP(t *testing.T) {
	for line, want := range map[string]bool{
		"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n": true, "GET /a HTTP/1.0\r\n\r\n": true,
		"INVITE sip:a@b SIP/2.0\r\n\r\n": false, "SIP/2.0 200 HTTP/1.1 OK\r\n": false, " HTTP/1.1": false, "": false,
	} {
		if isHTTP([]byte(line)) != want {
			t.Errorf("%q", line)
		}
	}
	tr, rec := newTransport(Config{}, nil)
	addr, stop := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	defer stop()
	nc := dialTCP(t, addr)
	write(t, nc, "POST / HTTP/1.1\r\nHost: edge\r\nContent-Length: 0\r\n\r\n"+sipMessage(1, ""))
	if n, err := nc.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	waitFor(t, "the connection is dropped", func() bool { return drops(tr, framing) == 1 })
	if e := rec.next(t); !e.closed {
		t.Errorf("%q was read", e.raw)
	}
}

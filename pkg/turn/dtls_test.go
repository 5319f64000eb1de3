package turn

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	dto "github.com/prometheus/client_model/go"

	"edged.dev/edged/pkg/pinhole"
)

// packetsOf is a connection as a socket with one peer.
type packetsOf struct{ *dtls.Conn }

func (c packetsOf) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

func (c packetsOf) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// dialDTLS connects, and verifies the server's certificate.
func (b *bench) dialDTLS() packetsOf {
	b.t.Helper()
	c, err := dtls.ClientWithOptions(b.socket(), net.UDPAddrFromAddrPort(b.dtls), dtls.WithServerName("turn.example.org"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	if err := c.Handshake(); err != nil {
		b.t.Fatal(err)
	}
	return packetsOf{c}
}

// hello returns a ClientHello without a cookie.
func (b *bench) hello() []byte {
	b.t.Helper()
	sink := b.socket()
	c, err := dtls.ClientWithOptions(b.socket(), sink.LocalAddr(), dtls.WithInsecureSkipVerify(true))
	if err != nil {
		b.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Handshake() // nobody answers
	}()
	buf := make([]byte, dtlsBuffer)
	sink.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, _, err := sink.ReadFrom(buf)
	c.Close()
	<-done
	if err != nil || !beginsDTLS(buf[:n]) {
		b.t.Fatal(n, err)
	}
	return buf[:n]
}

// from returns a socket at another address of this host.
func (b *bench) from(text string) *net.UDPConn {
	b.t.Helper()
	c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(text), 0)), net.UDPAddrFromAddrPort(b.dtls))
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// TestDTLSStrangers: of clients that never send the cookie back few are remembered, and none gets more than it has sent. Who does
// is served meanwhile.
func TestDTLSStrangers(t *testing.T) {
	b := serve(t, nil)
	hello := b.hello()
	conns, early := make([]*net.UDPConn, 0, 2*maxUnproved), map[*net.UDPConn]int{}
	for i := range 2 * maxUnproved {
		c := b.from("127.0.0.9")
		defer c.Close()
		conns = append(conns, c)
		_, err := c.Write(hello)
		if err != nil {
			t.Fatal(err)
		}
		if i%32 == 0 { // no faster than they are read, or the kernel drops some
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if early[c], err = c.Read(make([]byte, dtlsBuffer)); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.dialDTLS()
	eventually(t, "the first are dropped", func() bool { return b.dropped("handshake") >= maxUnproved })
	eventually(t, "all are dropped", func() bool { return b.dropped("handshake") >= 2*maxUnproved })
	answered := 0
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		octets, buf := early[c], make([]byte, dtlsBuffer)
		for {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			octets += n
			if buf[0] == recordHandshake && buf[recordHead] != helloVerify {
				t.Fatalf("handshake message %d to who has proved nothing", buf[recordHead])
			}
		}
		if octets > len(hello) {
			t.Fatalf("%d octets for %d", octets, len(hello))
		}
		if octets > 0 {
			answered++
		}
	}
	if answered == 0 {
		t.Error("nobody was asked for the cookie")
	}
}

// dropped reads a counter.
func (b *bench) dropped(reason string) int {
	b.t.Helper()
	var m dto.Metric
	if err := b.s.count.drops.WithLabelValues(reason).Write(&m); err != nil {
		b.t.Fatal(err)
	}
	return int(m.GetCounter().GetValue())
}

// TestDTLSGarbage: what begins no association leaves nothing, and what comes into one that is there does it no harm.
func TestDTLSGarbage(t *testing.T) {
	b := serve(t, nil)
	hello := b.hello()
	c := b.from("127.0.0.9")
	defer c.Close()
	texts := [][]byte{nil, {22}, hello[:20], bytes.Repeat([]byte{22}, 2000), []byte("\x00\x01\x00\x00\x21\x12\xa4\x42transaction!"), {23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0}}
	later := bytes.Clone(hello)
	later[helloMessage+1] = 1 // as if it were the one with the cookie
	for _, text := range append(texts, later) {
		if _, err := c.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are dropped", func() bool { return b.dropped("not_dtls") == len(texts)+1 })
	client := b.dialDTLS()
	from := pinhole.AddrPortOf(client.LocalAddr())
	if _, err := client.Write(compose(nil, request, binding, [12]byte{7}).b); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, dtlsBuffer)
	client.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := client.Read(buf)
	var m message
	if err != nil || m.parse(buf[:n]) != "" || xorAddress(m.get(attrXORMappedAddress), m.txid()).Port() != from.Port() {
		t.Errorf("%x, %v", buf[:n], err)
	}
}

// TestDTLSConnections: associations count as connections, and end without an allocation.
func TestDTLSConnections(t *testing.T) {
	b := serve(t, func(_ *Config, d *Deps) { d.Connections = 1 })
	first := b.dialDTLS()
	c, err := dtls.ClientWithOptions(b.socket(), net.UDPAddrFromAddrPort(b.dtls), dtls.WithServerName("turn.example.org"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Handshake() // is not answered
	}()
	eventually(t, "the second is refused", func() bool { return b.dropped("connections") >= 1 })
	c.Close()
	<-done
	first.SetReadDeadline(time.Now().Add(authTime + 20*time.Second))
	if n, err := first.Read(make([]byte, 100)); err == nil || isTimeout(err) {
		t.Errorf("an association without an allocation stays: %d, %v", n, err)
	}
	b.dialDTLS()
}

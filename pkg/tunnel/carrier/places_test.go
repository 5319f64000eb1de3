package carrier

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"edged.dev/edged/pkg/tunnel/device"
)

// oneWay is a socket that hears nothing: whoever uses it never gets further than its first packets.
type oneWay struct{ net.PacketConn }

func (o oneWay) ReadFrom([]byte) (int, net.Addr, error) {
	var b [1]byte
	for {
		if _, _, err := o.PacketConn.ReadFrom(b[:]); err != nil {
			return 0, nil, err
		}
	}
}

// TestQUICHandshakesAreBounded has strangers begin handshakes of QUIC that they never end: each takes one of the places,
// beyond them they are refused and counted, and when the handshakes are over the places are free again.
func TestQUICHandshakesAreBounded(t *testing.T) {
	secure, err := device.ServerTLS(newKey(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{TLS: secure, Handshakes: 6} // of which one address may have 3
	served, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	serving, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.ServeQUIC(serving, served) })
	t.Cleanup(func() { stop(); wg.Wait() })
	for range 8 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		transport := &quic.Transport{Conn: oneWay{pc}}
		t.Cleanup(func() { _ = transport.Close(); pc.Close() })
		go func() {
			_, _ = transport.Dial(ctx, served.LocalAddr(), &tls.Config{InsecureSkipVerify: true, NextProtos: secure.NextProtos}, quicConfig())
		}()
	}
	wait := func(what string, done func() bool) {
		for !done() {
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %d places taken, refused %v", what, s.begun.taken(), s.Refused())
			case <-time.After(time.Millisecond):
			}
		}
	}
	wait("refusals", func() bool { return s.Refused()["full"] >= 5 })
	if n := s.begun.taken(); n > 3 {
		t.Errorf("%d places taken", n)
	}
	wait("places", func() bool { return s.begun.taken() == 0 })
}

// TestPlacesOfSources has one address, or network of IPv6, take no more than half.
func TestPlacesOfSources(t *testing.T) {
	s := &Server{Handshakes: 4}
	at := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 1} }
	var last func()
	for i, c := range []struct {
		from string
		good bool
	}{
		{"192.0.2.1", true}, {"192.0.2.1", true}, {"192.0.2.1", false}, {"2001:db8::1", true}, {"2001:db8::2", true}, {"2001:db8::3", false},
		{"198.51.100.1", false},
	} {
		leave := s.enter(at(c.from))
		if (leave != nil) != c.good {
			t.Fatalf("%d: %s: %v", i, c.from, leave != nil)
		}
		if leave != nil {
			last = leave
		}
	}
	last()
	last() // only the first counts
	if s.begun.taken() != 3 || s.enter(at("198.51.100.1")) == nil || s.enter(at("198.51.100.2")) != nil {
		t.Error("places are not given back one by one")
	}
}

// TestEnrolmentsAreBounded: whoever enrols itself is a stranger to the end, and has a place as long.
func TestEnrolmentsAreBounded(t *testing.T) {
	r := newRig(t)
	begun, end := make(chan struct{}), make(chan struct{})
	server := &Server{TLS: r.server.TLS, Enrol: func(_ context.Context, c *Carrier) {
		defer c.Close()
		close(begun)
		<-end
	}}
	ctx, cancel := context.WithCancel(within(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	port := r.listen(ctx, &wg, func(c net.Conn) { server.ServeConn(ctx, c) })
	d := r.dialer("", func(d *Dialer) { d.Rungs, d.PortTLS = []Rung{TLS}, port })
	c, err := d.DialEnrol(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case <-begun:
	case <-ctx.Done():
		t.Fatal("nothing is enrolled")
	}
	if n := server.begun.taken(); n != 1 {
		t.Errorf("%d places taken while somebody enrols itself", n)
	}
	close(end)
	for server.begun.taken() != 0 {
		select {
		case <-ctx.Done():
			t.Fatal("the place is not given back")
		case <-time.After(time.Millisecond):
		}
	}
}

package media

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

// TestTCPServe: who asked for the pinhole reads and changes what passes, and is counted.
func TestTCPServe(t *testing.T) {
	r, _ := newTestRelay(t, nil)
	defer serve(t, r)()
	q := testRequest(pinhole.TCP)
	ended := make(chan struct{})
	q.Serve = func(ctx context.Context, conns [2]net.Conn, moved func(pinhole.Side, int)) {
		defer close(ended)
		buf := make([]byte, 5)
		n, err := io.ReadFull(conns[pinhole.Near], buf)
		if err != nil {
			t.Error(err)
		}
		moved(pinhole.Near, n)
		conns[pinhole.Far].Write(bytes.ToUpper(buf))
		<-ctx.Done()
	}
	l := mustOpen(t, r, q)
	ln, server := listenTCP(t, "127.0.4.7")
	declare(t, l, pinhole.Far, server)
	declare(t, l, pinhole.Near, netip.AddrPortFrom(nearPhone.Addr(), 9))
	client := dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	peer := accept(t, ln)
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(peer, got); err != nil || string(got) != "HELLO" {
		t.Fatalf("%q, %v", got, err)
	}
	sum := l.Close()
	<-ended
	if sum.From[pinhole.Near].Bytes != 5 || sum.From[pinhole.Far].Bytes != 0 {
		t.Errorf("counted %d and %d bytes", sum.From[pinhole.Near].Bytes, sum.From[pinhole.Far].Bytes)
	}
	dead(t, client)
}

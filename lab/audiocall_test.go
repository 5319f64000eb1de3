//go:build lab

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// audioPort is one of the UDP ports of the cases.
const audioPort = 49610

// TestAudioCall: a host outside connects to the edge's port 1731 and reaches a host inside; from then on they
// hear each other at the configured UDP ports. Without those ports they do not, which is the control.
func TestAudioCall(t *testing.T) {
	for _, udp := range []string{"49608-49623", ""} {
		t.Run("udp-"+udp, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no audio call control")
			in, out := r.Inside("in1"), r.Outside("out1")
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf(
				"audiocall: {listen: [\"tcp://outside:1731\"], targets: {outside: \"%s:1731\"}, udp: %q}\n", in.IP, udp)})
			ln := in.listenTCP(t, 1731)
			bob, alice := in.listenUDP(t, audioPort), out.listenUDP(t, audioPort)
			public := r.GW.IPOn(outside, 4)
			var call net.Conn
			must(t, "call", out.Do(func() (err error) {
				call, err = (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp4", netip.AddrPortFrom(public, 1731).String())
				return err
			}))
			t.Cleanup(func() { call.Close() })
			conn, err := ln.Accept()
			must(t, "accept", err)
			t.Cleanup(func() { conn.Close() })
			heard := func(from, to *net.UDPConn, edge netip.Addr) bool {
				buf := make([]byte, 100)
				for range 5 {
					_, _ = from.WriteToUDPAddrPort([]byte("audio"), netip.AddrPortFrom(edge, audioPort)) // refused where nobody listens
					to.SetReadDeadline(time.Now().Add(time.Second))
					if n, src, err := to.ReadFromUDPAddrPort(buf); err == nil && string(buf[:n]) == "audio" && r.GW.owns(inside, src.Addr()) != r.GW.owns(outside, src.Addr()) {
						return true
					}
				}
				return false
			}
			if got := heard(alice, bob, public); got != (udp != "") {
				t.Errorf("bob hears alice: %v", got)
			}
			if got := heard(bob, alice, r.GW.IPOn(inside, 4)); got != (udp != "") {
				t.Errorf("alice hears bob: %v", got)
			}
			call.Close()
			conn.Close()
			eventually(t, 10*time.Second, "the connection ends", func() bool { return e.Metric("edged_audiocall_connections") == 0 })
		})
	}
}

func (h *Host) listenTCP(t *testing.T, port uint16) net.Listener {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", h.Addr(4, port).String())
		return err
	}))
	t.Cleanup(func() { ln.Close() })
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
	return ln
}

func (h *Host) listenUDP(t *testing.T, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	must(t, "listen", h.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(h.Addr(4, port)))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

//go:build lab

package lab

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Fax is a UDP peer for anything that is not RTP, e.g. UDPTL.
type Fax struct {
	Addr netip.AddrPort
	pc   *net.UDPConn
}

// Fax binds addr in the host's namespace.
func (h *Host) Fax(t testing.TB, addr netip.AddrPort) *Fax {
	t.Helper()
	f := &Fax{Addr: addr}
	must(t, "fax", h.Do(func() (err error) {
		f.pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	}))
	t.Cleanup(func() { _ = f.pc.Close() })
	return f
}

// Exchange sends packets from f to toPeer and from peer to toF until each has arrived unchanged.
func (f *Fax) Exchange(t testing.TB, peer *Fax, toPeer, toF netip.AddrPort) {
	t.Helper()
	there, back := []byte("\x00\x01\x06udptl from alice"), []byte("\x00\x02\x07udptl from bob")
	got, reply := false, false
	if !until(5*time.Second, func() bool {
		_, _ = f.pc.WriteToUDPAddrPort(there, toPeer)
		_, _ = peer.pc.WriteToUDPAddrPort(back, toF)
		got = peer.read(there) || got
		reply = f.read(back) || reply
		return got && reply
	}) {
		t.Errorf("UDPTL: to the peer %v, back %v", got, reply)
	}
}

// read tells whether the next packet, within 50 ms, is want.
func (f *Fax) read(want []byte) bool {
	buf := make([]byte, 2048)
	_ = f.pc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	n, _, err := f.pc.ReadFromUDPAddrPort(buf)
	return err == nil && bytes.Equal(buf[:n], want)
}

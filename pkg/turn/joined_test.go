package turn

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

func tcpAllocation(w *composer) { w.attr(attrRequestedProto, []byte{6, 0, 0, 0}) }

// connectTo has the server connect to a peer and returns the connection's ID.
func (r *raw) connectTo(peer net.Addr) []byte {
	r.t.Helper()
	code, m := r.do(connect, peerAt(peer.String()))
	if code != 0 || len(m.get(attrConnectionID)) != 4 {
		r.t.Fatalf("connect: %d", code)
	}
	return m.get(attrConnectionID)
}

func (r *raw) bindTo(id []byte) int {
	r.t.Helper()
	code, m := r.do(connectionBind, func(w *composer) { w.attr(attrConnectionID, id) })
	if code == 0 && !m.signedWith(r.key) {
		r.t.Error("the answer to ConnectionBind is not signed")
	}
	return code
}

// TestTCPRelay: a client connects to a peer and back (RFC 6062), by a connection each.
func TestTCPRelay(t *testing.T) {
	b := serve(t, nil)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	control := b.raw("tcp", testUser, testPass)
	code, m := control.do(allocate, tcpAllocation)
	if code != 0 {
		t.Fatal(code)
	}
	relayed := xorAddress(m.get(attrXORRelayedAddress), m.txid())
	id := control.connectTo(ln.Addr())
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if pinhole.AddrPortOf(peer.RemoteAddr()) != relayed {
		t.Errorf("the peer sees %s, not %s", peer.RemoteAddr(), relayed)
	}
	if code, _ := control.do(connect, peerAt(ln.Addr().String())); code != 446 {
		t.Errorf("a second connection to a peer: %d", code)
	}
	if code := b.raw("tcp", "bob", "secret").bindTo(id); code != 400 {
		t.Errorf("another user's connection: %d", code)
	}
	data := b.raw("tcp", testUser, testPass)
	if code := data.bindTo(id); code != 0 {
		t.Fatal(code)
	}
	if code := b.raw("tcp", testUser, testPass).bindTo(id); code != 400 {
		t.Errorf("a connection for the second time: %d", code)
	}
	talk(t, data.conn, peer)

	// and a peer that connects, once it is permitted
	dial := func() net.Conn {
		c, err := net.Dial("tcp4", relayed.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	if code, _ := control.do(createPermission, peerAt("127.0.0.1:1")); code != 0 {
		t.Fatal(code)
	}
	caller := dial()
	got, err := control.read(20 * time.Second)
	var attempt message
	if err != nil || attempt.parse(got) != "" || attempt.method != connectionAttempt ||
		xorAddress(attempt.get(attrXORPeerAddress), attempt.txid()) != pinhole.AddrPortOf(caller.LocalAddr()) {
		t.Fatalf("%x, %v", got, err)
	}
	back := b.raw("tcp", testUser, testPass)
	if code := back.bindTo(attempt.get(attrConnectionID)); code != 0 {
		t.Fatal(code)
	}
	talk(t, back.conn, caller)
	eventually(t, "20,000 octets each way are counted", func() bool {
		a := b.s.Allocations()[0]
		return a.FromClient == 20_000 && a.FromPeers == 20_000
	})
	control.conn.Close()
	for _, c := range []net.Conn{peer, caller, data.conn, back.conn} {
		closes(t, c, "after the control connection")
	}
}

// talk sends 10,000 octets each way.
func talk(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, ends := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := ends[0].Write(make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		ends[1].SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(ends[1], make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTCPRelayDenied: ports of system services, denied peers, peers without permission, IDs that are guessed, and a server where it is off.
func TestTCPRelayDenied(t *testing.T) {
	b := serve(t, nil)
	r := b.raw("tcp", testUser, testPass)
	code, m := r.do(allocate, tcpAllocation)
	if code != 0 {
		t.Fatal(code)
	}
	for _, at := range []string{"127.0.0.1:22", "127.0.0.1:0", "10.0.0.1:4000", "127.0.0.2:" + netip.AddrPortFrom(lo4, b.tcp.Port()).String()[len("127.0.0.2:"):]} {
		if code, _ := r.do(connect, peerAt(at)); code != 403 {
			t.Errorf("%s: %d", at, code)
		}
	}
	if code, _ := r.do(connect, peerAt("[2400::1]:4000")); code != 443 {
		t.Errorf("another family: %d", code)
	}
	stranger, err := net.Dial("tcp4", xorAddress(m.get(attrXORRelayedAddress), m.txid()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	closes(t, stranger, "a peer without permission")
	for i := range uint32(50) {
		if code, _ := r.do(connectionBind, func(w *composer) { w.attr(attrConnectionID, binary.BigEndian.AppendUint32(nil, i)) }); code != 400 {
			t.Errorf("guess %d: %d", i, code)
		}
	}
	off := serve(t, func(c *Config, _ *Deps) { c.TCP = false })
	if code, _ := off.raw("tcp", testUser, testPass).do(allocate, tcpAllocation); code != 442 {
		t.Errorf("where it is off: %d", code)
	}
}

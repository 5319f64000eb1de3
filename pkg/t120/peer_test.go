package t120

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/t120/mcs"
	"edged.dev/edged/pkg/t120/x224"
)

// slow bounds each wait of a test, for a loaded machine.
const slow = 30 * time.Second

// On the loopback the inside is 127.1/16, the outside 127.2/16; the edge is 127.0.0.1 and, outside, 198.51.100.1.
func loopback() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.1.0.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("127.2.0.1")}, Advertise: netip.MustParseAddr("198.51.100.1"), Subnets: []netip.Prefix{netip.MustParsePrefix("127.2.0.0/16")}},
	}
}

// peer is one end of a T.120 connection.
type peer struct {
	t    *testing.T
	conn net.Conn
	s    *stream
}

func newPeer(t *testing.T, conn net.Conn) *peer {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(slow))
	return &peer{t, conn, newStream(conn)}
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// packet writes a TPKT.
func (p *peer) packet(payload []byte) {
	p.t.Helper()
	b, err := tpkt.Append(nil, 0, payload)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(b)
}

// dt writes user data as one DT.
func (p *peer) dt(user []byte) {
	p.t.Helper()
	p.packet(x224.AppendData(nil, user))
}

// read returns the payload of the next TPKT.
func (p *peer) read() []byte {
	p.t.Helper()
	pkt, err := p.s.await()
	if err != nil {
		p.t.Fatalf("read: %v", err)
	}
	return bytes.Clone(pkt.Payload)
}

func (p *peer) tpdu(kind x224.Kind) x224.TPDU {
	p.t.Helper()
	b := p.read()
	t, err := x224.Parse(b)
	if err != nil || t.Kind != kind {
		p.t.Fatalf("got %x: %v, %v; want %v", b, t.Kind, err, kind)
	}
	return t
}

// connect reads a connect PDU.
func (p *peer) connect(kind mcs.Kind) mcs.Connect {
	p.t.Helper()
	t := p.tpdu(x224.Data)
	c, err := mcs.ParseConnect(t.User)
	if err != nil || c.Kind != kind {
		p.t.Fatalf("got %x: %#x, %v; want %#x", t.User, c.Kind, err, kind)
	}
	return c
}

// closed waits for the other side to close.
func (p *peer) closed() {
	p.t.Helper()
	for {
		if _, err := p.s.await(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				p.t.Fatal("not closed")
			}
			return
		}
	}
}

var request = []byte{6, 0xe0, 0, 0, 0, 9, 0}

// gccConnect is user data with a T.124 connect PDU.
func gccConnect(t testing.TB, name string, fields ...per.Field) []byte {
	t.Helper()
	b, err := schema.Tables().Encode(nil, schema.T124ConnectData, per.Fields(
		per.F("t124Identifier", per.Alternative("object", per.Identifier("0.0.20.124.0.1"))),
		per.F("connectPDU", per.Encoded(per.Alternative(name, per.Fields(fields...))))))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func joinRequest(t testing.TB, conference, caller string) []byte {
	t.Helper()
	return gccConnect(t, "conferenceJoinRequest",
		per.F("conferenceName", per.Alternative("text", per.Text(conference))), per.F("callerIdentifier", per.Text(caller)))
}

func createResponse(t testing.TB) []byte {
	t.Helper()
	return gccConnect(t, "conferenceCreateResponse", per.F("nodeID", per.Number(1005)), per.F("tag", per.Number(1)), per.F("result", per.Number(0)))
}

// ber writes an element with contents of less than 64 KiB.
func ber(tag []byte, contents ...[]byte) []byte {
	body := bytes.Join(contents, nil)
	return append(append(bytes.Clone(tag), 0x82, byte(len(body)>>8), byte(len(body))), body...)
}

var domain = []byte{0x30, 0x1a, 2, 1, 34, 2, 1, 2, 2, 1, 0, 2, 1, 1, 2, 1, 0, 2, 1, 1, 2, 3, 0, 0xff, 0xff, 2, 1, 2}

func connectInitial(user []byte) []byte {
	return ber([]byte{0x7f, 0x65}, []byte{4, 1, 1, 4, 1, 1, 1, 1, 0xff}, domain, domain, domain, ber([]byte{4}, user))
}

func connectResponse(id byte, user []byte) []byte {
	return ber([]byte{0x7f, 0x66}, []byte{0x0a, 1, 0, 2, 1, id}, domain, ber([]byte{4}, user))
}

func connectAdditional(id byte) []byte { return []byte{0x7f, 0x67, 6, 2, 1, id, 0x0a, 1, 1} }

// sendData is an MCS domain PDU with a GCCPDU, on the broadcast channel.
func sendData(pdu []byte) []byte {
	return append([]byte{0x64, 0, 4, 0, 1, 0x70, byte(len(pdu))}, pdu...)
}

// addRequest is a GCCPDU that has somebody connect to an address.
func addRequest(t testing.TB, addr string) []byte {
	t.Helper()
	b, err := schema.Tables().Encode(nil, schema.T124GCCPDU, per.Alternative("request", per.Alternative("conferenceAddRequest", per.Fields(
		per.F("networkAddress", per.Elements(per.Alternative("transportConnection", per.Fields(per.F("nsapAddress", per.Octet([]byte(addr))))))),
		per.F("requestingNode", per.Number(1005)), per.F("tag", per.Number(3))))))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// doorway is a server with a listener on each network.
type doorway struct {
	t       *testing.T
	server  *Server
	inside  string
	outside string
}

func serve(t *testing.T, cfg Config, deps Deps) *doorway {
	t.Helper()
	deps.Networks = loopback()
	srv, err := New(cfg, deps, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	g := &doorway{t: t, server: srv}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for name, at := range map[string]*string{"inside": &g.inside, "outside": &g.outside} {
		ln := listen(t, "127.0.0.1")
		*at = ln.Addr().String()
		work.Go(func() {
			if err := srv.ServeListener(ctx, name, ln); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
	return g
}

func listen(t *testing.T, host string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp4", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// host listens as an inside host does; accept returns the edge's next connection.
func host(t *testing.T, ip string) (at netip.AddrPort, accept func() *peer) {
	t.Helper()
	ln := listen(t, ip)
	return netip.MustParseAddrPort(ln.Addr().String()), func() *peer {
		t.Helper()
		ln.(*net.TCPListener).SetDeadline(time.Now().Add(slow))
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return newPeer(t, conn)
	}
}

func (g *doorway) dial(from, to string) *peer {
	g.t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: slow}).Dial("tcp4", to)
	if err != nil {
		g.t.Fatal(err)
	}
	return newPeer(g.t, conn)
}

func (g *doorway) drops(reason string) uint64 {
	g.server.count.mu.Lock()
	defer g.server.count.mu.Unlock()
	return g.server.count.drops[reason]
}

// counted waits until a refusal has been counted.
func (g *doorway) counted(reason string, before uint64) {
	g.t.Helper()
	for end := time.Now().Add(slow); g.drops(reason) == before; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			g.server.count.mu.Lock()
			defer g.server.count.mu.Unlock()
			g.t.Fatalf("not counted as %s: %v", reason, g.server.count.drops)
		}
	}
}

// exchange sends octets each way, and sees them arrive as they are.
func exchange(t *testing.T, a, b *peer, data []byte) {
	t.Helper()
	for _, way := range [][2]*peer{{a, b}, {b, a}} {
		go way[0].conn.Write(data)
		got := make([]byte, len(data))
		n := copy(got, way[1].s.tail)
		if _, err := io.ReadFull(way[1].conn, got[n:]); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d octets, %v", len(got), err)
		}
	}
}

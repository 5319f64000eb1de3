package turn

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/transport/v5/packetio"

	"edged.dev/edged/pkg/pinhole"
)

// TURN over DTLS (RFC 7350): each client's address has an association, and what comes out of it is a datagram like one of a
// plain socket.
//
//	socket ─► run ─► association.in ─► pion/dtls ─► serve ─► ReadFrom ─► packetFront
//	socket ◄─ association.WriteTo ◄─── pion/dtls ◄── WriteTo ◄───────────────┘
//
// pion keeps an association before the client has sent its cookie back (RFC 6347 §4.2.1). So as not to be filled or used by
// who forges sources, of these there are few, the oldest makes room, and they are sent no more than came from them.

const (
	// maxUnproved bounds the associations whose client has not sent the cookie back: some 30 kB each.
	maxUnproved = 256
	// waitingDatagrams bounds what waits for one association to be read.
	waitingDatagrams = 128
	// dtlsBuffer holds the longest datagram that pion/dtls reads.
	dtlsBuffer = 8192
)

// Records and handshake messages (RFC 6347 §4.1, §4.3.2): type, version, epoch, sequence number, length; then type, length,
// message number, offset and length of the fragment.
const (
	recordHead       = 13
	recordHandshake  = 22
	helloHead        = recordHead + 12
	helloClient      = 1
	helloVerify      = 3
	recordEpoch      = 3
	helloMessage     = recordHead + 4
	helloMessageSize = 5 // message number and offset of the fragment
)

// beginsDTLS tells whether a datagram is the first of a client: a ClientHello, message 0, from its first octet on.
func beginsDTLS(b []byte) bool {
	return len(b) >= helloHead && b[0] == recordHandshake && b[1] == 0xfe && b[recordEpoch] == 0 && b[recordEpoch+1] == 0 && b[recordHead] == helloClient &&
		[helloMessageSize]byte(b[helloMessage:]) == [helloMessageSize]byte{}
}

// dtlsFront is a UDP socket of clients that speak DTLS, as a socket of what they say.
type dtlsFront struct {
	net.PacketConn
	s       *Server
	local   netip.AddrPort
	options []dtls.ServerOption
	plain   chan plain // not buffered: who gives waits until it is taken
	once    sync.Once
	ended   chan struct{}

	mu       sync.Mutex // guards what follows
	clients  map[netip.AddrPort]*association
	unproved []*association // the oldest first
	closed   bool
}

// plain is a datagram out of an association, which is done with when taken says so.
type plain struct {
	b     []byte
	from  net.Addr
	taken chan struct{}
}

func newDTLSFront(s *Server, pc net.PacketConn, conf *tls.Config) *dtlsFront {
	certificate := func(h *dtls.ClientHelloInfo) (*tls.Certificate, error) { return certificateFor(conf, h.ServerName) }
	return &dtlsFront{
		PacketConn: pc, s: s, local: pinhole.AddrPortOf(pc.LocalAddr()), plain: make(chan plain), ended: make(chan struct{}),
		clients: map[netip.AddrPort]*association{},
		options: []dtls.ServerOption{dtls.WithGetCertificate(certificate), dtls.WithLoggerFactory(quiet{s.log})},
	}
}

var errNoCertificate = errors.New("no certificate")

// certificateFor chooses as TLS would for a client that knows all algorithms: by name, else the first.
func certificateFor(conf *tls.Config, name string) (*tls.Certificate, error) {
	if conf.GetConfigForClient != nil {
		c, err := conf.GetConfigForClient(&tls.ClientHelloInfo{ServerName: name})
		if err != nil {
			return nil, err
		}
		if c != nil {
			conf = c
		}
	}
	if len(conf.Certificates) == 0 {
		return nil, errNoCertificate
	}
	for i, c := range conf.Certificates {
		if name != "" && c.Leaf != nil && c.Leaf.VerifyHostname(name) == nil {
			return &conf.Certificates[i], nil
		}
	}
	return &conf.Certificates[0], nil
}

// ServeDTLS serves pc, a UDP socket of the named network bound to one address, to clients that speak DTLS 1.2, until ctx ends and
// its associations have. The configuration gives the certificates.
func (s *Server) ServeDTLS(ctx context.Context, network string, pc net.PacketConn, conf *tls.Config) error {
	d := newDTLSFront(s, pc, conf)
	f := newPacketFront(s.endpoint(network, "dtls"), d)
	f.dialect = nil
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work.Go(func() { d.run(ctx, &work) })
	return s.serveFront(ctx, f)
}

// run reads the socket until it is closed.
func (d *dtlsFront) run(ctx context.Context, work *sync.WaitGroup) {
	defer func() { _ = d.Close() }() // the socket is closed, or it would still be read
	buf := make([]byte, dtlsBuffer)
	for {
		n, from, err := d.PacketConn.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // an ICMP error about an earlier datagram
			continue
		}
		if deny := d.s.deps.Deny; deny != nil && deny.Addr(pinhole.AddrPortOf(from).Addr()) {
			d.s.count.drop("banned")
			continue
		}
		a, fresh := d.association(from, buf[:n])
		if a == nil {
			d.s.count.drop("not_dtls")
			continue
		}
		if fresh {
			work.Go(func() { a.serve(ctx) })
		}
		a.came.Add(int64(n))
		if _, err := a.in.Write(buf[:n], nil); err != nil {
			d.s.count.drop("dtls_full")
		}
	}
}

// association returns that of a client, a new one if the datagram begins it; nil if it does not.
func (d *dtlsFront) association(from net.Addr, b []byte) (a *association, fresh bool) {
	client := pinhole.AddrPortOf(from)
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.clients[client]; a != nil {
		return a, false
	}
	if d.closed || client.Port() == 0 || !beginsDTLS(b) {
		return nil, false
	}
	a = &association{d: d, client: client, addr: from, in: packetio.NewBuffer(), taken: make(chan struct{})}
	a.in.SetLimitCount(waitingDatagrams)
	d.clients[client] = a
	if d.unproved = append(d.unproved, a); len(d.unproved) > maxUnproved {
		d.unproved[0].stop()
		d.unproved = d.unproved[1:]
		d.s.count.drop("handshake")
	}
	return a, true
}

// forget takes an association out of the lists.
func (d *dtlsFront) forget(a *association, all bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, x := range d.unproved {
		if x == a {
			d.unproved = append(d.unproved[:i:i], d.unproved[i+1:]...)
			break
		}
	}
	if all && d.clients[a.client] == a {
		delete(d.clients, a.client)
	}
}

// ReadFrom implements [net.PacketConn].
func (d *dtlsFront) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-d.plain:
		n := copy(b, p.b)
		p.taken <- struct{}{}
		return n, p.from, nil
	case <-d.ended:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo implements [net.PacketConn].
func (d *dtlsFront) WriteTo(b []byte, to net.Addr) (int, error) {
	d.mu.Lock()
	a := d.clients[pinhole.AddrPortOf(to)]
	d.mu.Unlock()
	if a == nil {
		return 0, net.ErrClosed
	}
	conn := a.conn.Load()
	if conn == nil {
		return 0, net.ErrClosed
	}
	return conn.Write(b)
}

// Close ends all associations and closes the socket.
func (d *dtlsFront) Close() error {
	d.once.Do(func() {
		close(d.ended)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.closed = true
		for _, a := range d.clients {
			a.stop()
		}
	})
	return d.PacketConn.Close()
}

// association is what one client has. To pion/dtls it is a socket for this client alone.
type association struct {
	d      *dtlsFront
	client netip.AddrPort
	addr   net.Addr
	in     *packetio.Buffer
	conn   atomic.Pointer[dtls.Conn] // once the handshake is over
	taken  chan struct{}

	came atomic.Int64 // octets

	mu     sync.Mutex // guards what follows
	sent   int64      // octets, before the client has proved its address
	proved bool
}

// stop has pion/dtls read no more, which ends the association.
func (a *association) stop() { _ = a.in.Close() } // never fails

// serve is the handshake and what follows.
func (a *association) serve(ctx context.Context) {
	s := a.d.s
	defer a.d.forget(a, true)
	defer a.stop()
	conn, err := dtls.ServerWithOptions(a, a.addr, a.d.options...)
	if err != nil {
		s.count.drop("handshake")
		return
	}
	shake, cancel := context.WithTimeout(ctx, handshakeTime)
	err = conn.HandshakeContext(shake)
	cancel()
	if err == nil {
		a.conn.Store(conn)
		a.relay(conn)
	} else {
		s.count.drop("handshake")
	}
	if err := conn.Close(); err != nil { // the client does not hear of it
		s.count.drop("send")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.proved {
		s.gate.Leave(a.client.Addr())
	}
}

// relay gives on what the client says, until it has ended or had no allocation for authTime; with it ends its allocation.
func (a *association) relay(conn *dtls.Conn) {
	s, of := a.d.s, tuple{client: a.client, local: a.d.local}
	defer func() {
		if al := s.find(of); al != nil {
			al.close()
		}
	}()
	buf := make([]byte, dtlsBuffer)
	if conn.SetReadDeadline(time.Now().Add(authTime)) != nil {
		return
	}
	for {
		n, err := conn.Read(buf)
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout():
			if s.find(of) == nil {
				s.count.drop("idle_connection")
				return
			}
			if conn.SetReadDeadline(time.Now().Add(authTime)) != nil {
				return
			}
			continue
		case err != nil:
			return
		}
		select {
		case a.d.plain <- plain{buf[:n], a.addr, a.taken}:
			<-a.taken
		case <-a.d.ended:
			return
		}
	}
}

// ReadFrom implements [net.PacketConn].
func (a *association) ReadFrom(b []byte) (int, net.Addr, error) {
	n, _, err := a.in.Read(b, nil)
	return n, a.addr, err
}

// errUnproved has pion give up who may not be answered.
var errUnproved = errors.New("the client has not proved its address")

// WriteTo implements [net.PacketConn].
func (a *association) WriteTo(b []byte, _ net.Addr) (int, error) {
	if !a.mayHave(b) {
		return 0, errUnproved
	}
	return a.d.PacketConn.WriteTo(b, a.addr)
}

// mayHave tells whether a client may be sent a datagram. If it has not sent the cookie back: the request for it and alerts, no more
// octets than it has sent. Any other is pion's answer to the cookie; then it counts as a connection, or is refused as one.
func (a *association) mayHave(b []byte) bool {
	s := a.d.s
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.proved {
		return true
	}
	if len(b) > recordHead && b[0] == recordHandshake && b[recordHead] != helloVerify {
		if why := s.gate.Enter(a.client.Addr()); why != "" {
			s.count.drop(why)
			a.stop()
			return false
		}
		a.proved = true
		a.d.forget(a, false)
		return true
	}
	a.sent += int64(len(b))
	return a.sent <= a.came.Load()
}

// Close implements [net.PacketConn]; the socket stays.
func (a *association) Close() error { return a.in.Close() }

// LocalAddr implements [net.PacketConn].
func (a *association) LocalAddr() net.Addr { return a.d.LocalAddr() }

// SetDeadline implements [net.PacketConn].
func (a *association) SetDeadline(t time.Time) error { return a.in.SetReadDeadline(t) }

// SetReadDeadline implements [net.PacketConn].
func (a *association) SetReadDeadline(t time.Time) error { return a.in.SetReadDeadline(t) }

// SetWriteDeadline implements [net.PacketConn]: a datagram is sent at once or not at all.
func (a *association) SetWriteDeadline(time.Time) error { return nil }

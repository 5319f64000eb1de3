package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/splice"
)

// Rung is a way to carry bytes, the better the smaller.
type Rung uint8

// The rungs, in the order of the ladder.
const (
	QUIC      Rung = iota + 1 // UDP 443
	TLS                       // TCP 443, directly
	Connect                   // TCP 443, by CONNECT of an HTTP proxy
	SOCKS5                    // TCP 443, by a SOCKS5 proxy
	WSS                       // WebSocket in TLS of the web, TCP 443: for proxies that look inside
	WS                        // WebSocket, port 80
	LongLived                 // endless HTTP requests, port 80
	KeepAlive                 // pairs of HTTP requests of 32 KiB, port 80
	Polling                   // HTTP requests and answers, port 80
)

// Rungs returns all, the best first.
func Rungs() []Rung {
	return []Rung{QUIC, TLS, Connect, SOCKS5, WSS, WS, LongLived, KeepAlive, Polling}
}

// String returns the rung's name in configuration, metrics and logs.
func (r Rung) String() string {
	names := [...]string{QUIC: "quic", TLS: "tls", Connect: "connect", SOCKS5: "socks5", WSS: "wss", WS: "ws",
		LongLived: "longlived", KeepAlive: "keepalive", Polling: "polling"}
	if r == 0 || int(r) >= len(names) {
		return fmt.Sprintf("rung %d", uint8(r))
	}
	return names[r]
}

// MarshalText writes the name.
func (r Rung) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a name.
func (r *Rung) UnmarshalText(b []byte) error {
	for _, known := range Rungs() {
		if known.String() == string(b) {
			*r = known
			return nil
		}
	}
	return fmt.Errorf("%q is none of %v", b, Rungs())
}

// Carrier is an open pipe between a device and a relay. Conn begins behind the preamble; give Conn, not the Carrier, to
// who looks for datagrams: on QUIC it has SendDatagram([]byte) error and ReceiveDatagram(context.Context) ([]byte, error).
// Closing it closes everything below.
type Carrier struct {
	net.Conn
	Rung Rung
	Path string        // "direct", or the proxy's URL without a login; at the relay "direct" always
	RTT  time.Duration // of the probe's short echo; 0 at the relay

	state tls.ConnectionState
	tls   *tls.Conn // of TLS over TCP that can be dropped; else nil
	exact *recordConn
}

// PeerState returns what the tunnel's TLS has found out about the other end.
func (c *Carrier) PeerState() tls.ConnectionState { return c.state }

// ErrWrapped is returned by Unwrap where there is no plain TCP below the TLS.
var ErrWrapped = errors.New("no plain TCP connection below")

// unwrapTime bounds how long the other end's close_notify may take.
const unwrapTime = 10 * time.Second

// Unwrap ends the tunnel's TLS by a close_notify each way and returns the TCP connection below, of which not one byte
// has been read too much; it is the caller's. Both ends call it, behind a byte that they have agreed on, and nobody reads
// or writes meanwhile. Only a carrier for bulk can be unwrapped. After an error, close the carrier.
func (c *Carrier) Unwrap() (*net.TCPConn, error) {
	if c.exact == nil || c.exact.loose.Load() {
		return nil, ErrWrapped
	}
	tcp := c.exact.tcp
	tcp.SetDeadline(time.Now().Add(unwrapTime))
	if err := c.tls.CloseWrite(); err != nil {
		return nil, fmt.Errorf("close_notify: %w", err)
	}
	// CloseWrite leaves a write deadline in the past behind.
	tcp.SetReadDeadline(time.Now().Add(unwrapTime))
	var b [1]byte
	switch n, err := c.tls.Read(b[:]); {
	case n > 0:
		return nil, errors.New("unwrap: data instead of close_notify")
	case !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	limitUnsent(tcp, 0)
	return tcp, tcp.SetDeadline(time.Time{})
}

// recordConn hands at most one TLS record to each Read, in two pieces, so that crypto/tls reads nothing of what
// comes behind the last one; loose once there will be no Unwrap, because it costs a second system call for each.
type recordConn struct {
	net.Conn
	tcp   *net.TCPConn
	loose atomic.Bool

	header [5]byte // RFC 8446 §5.1: type, version, length
	have   int     // octets of the header
	left   int     // octets of the record's body that are still to be read

	passed atomic.Int64
	direct atomic.Pointer[splice.Direct] // tcp, once much has passed

	mu   sync.Mutex
	held *heldRecords // what Write collects; nil: it does not
}

// Read belongs to one reader, which crypto/tls is.
func (c *recordConn) Read(b []byte) (int, error) {
	if c.left == 0 && c.have == 0 && c.loose.Load() {
		return c.read(b)
	}
	if c.left == 0 {
		want := len(c.header) - c.have
		n, err := c.read(b[:min(len(b), want)])
		copy(c.header[c.have:], b[:n])
		if c.have += n; c.have == len(c.header) {
			c.left = int(c.header[3])<<8 | int(c.header[4])
			c.have = 0
		}
		return n, err
	}
	n, err := c.read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// busy is after how many bytes a connection is one that carries much.
const busy = 256 << 10

// below returns what to read from and write to.
func (c *recordConn) below() net.Conn {
	d := c.direct.Load()
	if d == nil && c.passed.Load() >= busy {
		var err error
		if d, err = splice.NewDirect(c.tcp); err != nil {
			return c.Conn // it is closed, as this will tell
		}
		c.direct.CompareAndSwap(nil, d) // two do no harm
	}
	if d == nil {
		return c.Conn
	}
	return d
}

func (c *recordConn) read(b []byte) (int, error) {
	n, err := c.below().Read(b)
	c.passed.Add(int64(n))
	return n, err
}

func (c *recordConn) write(b []byte) (int, error) {
	n, err := c.below().Write(b)
	c.passed.Add(int64(n))
	return n, err
}

const (
	// recordLen is the most that crypto/tls puts into a record (RFC 8446 §5.1); what it adds is less than recordMore.
	recordLen, recordMore = 16 << 10, 64
	// together is how many records go out by one system call.
	together = 4
)

type heldRecords struct {
	n int
	b [together * (recordLen + recordMore)]byte
}

// heldPool is shared: a carrier holds one only while it writes much.
var heldPool = sync.Pool{New: func() any { return new(heldRecords) }} //nolint:gochecknoglobals // all carriers share it

// Write writes b, or collects it between hold and release.
func (c *recordConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if h := c.held; h != nil && len(b) <= len(h.b)-h.n {
		h.n += copy(h.b[h.n:], b)
		c.mu.Unlock()
		return len(b), nil
	}
	c.mu.Unlock()
	if err := c.release(); err != nil { // what is more than fits keeps its order
		return 0, err
	}
	return c.write(b)
}

// hold has Write collect records.
func (c *recordConn) hold() {
	h := heldPool.Get().(*heldRecords)
	h.n = 0
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = h
}

// release writes what Write has collected, and has it collect no more.
func (c *recordConn) release() error {
	c.mu.Lock()
	h := c.held
	c.held = nil
	c.mu.Unlock()
	if h == nil {
		return nil
	}
	defer heldPool.Put(h)
	_, err := c.write(h.b[:h.n])
	return err
}

// newRecordConn wraps what is a TCP connection, or has one below that it changes nothing of; else it returns nil.
func newRecordConn(raw net.Conn) *recordConn {
	tcp, plain := tcpBelow(raw)
	if !plain {
		return nil
	}
	return &recordConn{Conn: raw, tcp: tcp}
}

// tcpBelow returns the TCP connection that carries raw, if one does, and whether it does so as it is.
func tcpBelow(raw net.Conn) (tcp *net.TCPConn, plain bool) {
	plain = true
	for range 8 {
		switch c := raw.(type) {
		case *net.TCPConn:
			return c, plain
		case *webSocket:
			raw, plain = c.Conn, false
		case interface{ NetConn() net.Conn }:
			// What has a state of TLS is TLS: crypto/tls, or what a shared port has made of it.
			if _, secured := raw.(interface{ ConnectionState() tls.ConnectionState }); secured {
				plain = false
			}
			raw = c.NetConn()
		default:
			return nil, false
		}
	}
	return nil, false
}

// unsentLimit is how much the kernel holds of what was not sent yet (TCP_NOTSENT_LOWAT), in bytes. More would only make
// datagrams wait behind bulk, since the order is decided before.
const unsentLimit = 128 << 10

// limitUnsent sets the limit; 0 is the system's.
func limitUnsent(tcp *net.TCPConn, limit int) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, limit)
	})
}

// tlsPipe is the tunnel's TLS over a byte pipe.
type tlsPipe struct {
	*tls.Conn
	raw   net.Conn
	exact *recordConn // between the two, or nil
	write sync.Mutex  // one Write at a time
	closing
}

func newTLSPipe(conn *tls.Conn, raw net.Conn, exact *recordConn) *tlsPipe {
	return &tlsPipe{Conn: conn, raw: raw, exact: exact, closing: newClosing()}
}

// Write writes b; of what is more than a record, several go out together, since each would else cost a system call.
func (p *tlsPipe) Write(b []byte) (total int, err error) {
	p.write.Lock()
	defer p.write.Unlock()
	if p.exact == nil {
		return p.Conn.Write(b)
	}
	for len(b) > recordLen && err == nil {
		var n int
		n, err = p.writeTogether(b[:min(len(b), together*recordLen)])
		total += n
		b = b[n:]
	}
	if len(b) > 0 && err == nil {
		var n int
		n, err = p.Conn.Write(b)
		total += n
	}
	return total, err
}

func (p *tlsPipe) writeTogether(b []byte) (int, error) {
	p.exact.hold()
	n, err := p.Conn.Write(b)
	if late := p.exact.release(); err == nil && late != nil {
		return 0, late
	}
	return n, err
}

// closing tells that Close was called.
type closing struct {
	closed context.Context //nolint:containedctx // the pipe's own life, no request's
	mark   context.CancelFunc
}

func newClosing() closing {
	ctx, cancel := context.WithCancel(context.Background())
	return closing{ctx, cancel}
}

// done ends by Close.
func (c closing) done() context.Context { return c.closed }

// closeTime is how long a close_notify may wait for room; crypto/tls would wait for 5 s.
const closeTime = 250 * time.Millisecond

// Close says close_notify, if that can be said at once, and closes the pipe.
func (p *tlsPipe) Close() error {
	p.mark()
	late := time.AfterFunc(closeTime, func() { p.raw.Close() })
	defer late.Stop()
	return p.Conn.Close()
}

// secure runs the tunnel's TLS over raw, as a client or a server. exact is nil where it could not be dropped again. A
// client hears from the relay within silence, be it only that it has to wait.
func secure(ctx context.Context, raw net.Conn, cfg *tls.Config, silence time.Duration) (conn *tls.Conn, exact *recordConn, err error) {
	if tcp, _ := tcpBelow(raw); tcp != nil {
		limitUnsent(tcp, unsentLimit)
	}
	if exact = newRecordConn(raw); exact != nil {
		raw = exact
	}
	if silence > 0 {
		var giveUp context.CancelCauseFunc
		ctx, giveUp = context.WithCancelCause(ctx)
		defer giveUp(nil)
		below := newPatient(raw, silence, giveUp)
		defer below.silent.Stop()
		conn = tls.Client(below, cfg)
	} else {
		conn = tls.Server(raw, cfg)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("tunnel TLS: %w", err)
	}
	return conn, exact, nil
}

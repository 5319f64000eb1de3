package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// waitMax is how many messages may wait for one connection under way; Config.Queue bounds their bytes.
const waitMax = 256

// dialling is a connection under way, and what waits for it. Guarded by Transport.mu.
type dialling struct {
	waiting []waiting
	bytes   int
}

type waiting struct {
	raw  []byte
	done func(flow.Flow, error)
}

// SendTo sends one message to a target over an open connection, or dials one from the network's own
// address. An accepted connection is used too if the target is its remote address; for TLS only if
// the peer's verified certificate covers the server name. For UDP the network's listener of the
// right family sends.
//
// The caller never waits; while dialling, messages wait in order. done is called exactly once, with
// the flow that was used or the error, from any goroutine and perhaps before SendTo returns: hold no
// lock that done takes. It says that the message is on its way, not that it arrived.
func (t *Transport) SendTo(tg flow.Target, raw []byte, done func(flow.Flow, error)) {
	if tg.Proto == flow.UDP {
		done(t.sendToPacket(tg, raw))
		return
	}
	tg.Addr = netip.AddrPortFrom(tg.Addr.Addr().Unmap(), tg.Addr.Port())
	f := flow.Flow{Network: tg.Network, Proto: tg.Proto, Remote: tg.Addr}
	k := peerKey{network: tg.Network, proto: tg.Proto, addr: tg.Addr}
	if tg.Proto.Secure() {
		k.name = cmp.Or(tg.ServerName, tg.Addr.Addr().String())
	}
	t.mu.Lock()
	c := t.findLocked(k)
	if c != nil && c.alive() {
		t.mu.Unlock()
		done(c.flow, c.send(raw))
		return
	}
	err := t.dialLocked(k, tg, waiting{raw, done})
	t.mu.Unlock()
	if err != nil {
		done(f, err)
	}
}

func (c *conn) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.gone && !c.last
}

// dialLocked queues a message for a connection under way, and begins one if there is none.
func (t *Transport) dialLocked(k peerKey, tg flow.Target, w waiting) error {
	cfg := t.cfg.Load()
	d := t.dials[k]
	switch {
	case t.serving == 0:
		return fmt.Errorf("nothing is served: %w", ErrGone)
	case tg.Proto < flow.TCP || tg.Proto > flow.WSS || !tg.Addr.IsValid():
		return fmt.Errorf("dial transport %d, address %v: %w", tg.Proto, tg.Addr, ErrNoListener)
	case d == nil && (len(t.dials) >= cfg.MaxDials || t.out >= cfg.MaxConns):
		t.count.drop(dialLimit)
		return ErrBusy
	case d != nil && (len(d.waiting) >= waitMax || d.bytes+len(w.raw) > cfg.Queue):
		t.count.drop(queueFull)
		return ErrBusy
	}
	if d == nil {
		d = &dialling{}
		t.dials[k] = d
		t.out++
		t.dialled.Add(1)
		go t.dial(t.dialCtx, k, tg, d)
	}
	w.raw = append([]byte(nil), w.raw...)
	d.waiting = append(d.waiting, w)
	d.bytes += len(w.raw)
	return nil
}

// dial makes the connection, sends what waits, and reads until the connection ends.
func (t *Transport) dial(ctx context.Context, k peerKey, tg flow.Target, d *dialling) {
	defer t.dialled.Done()
	c, err := t.connect(ctx, k, tg)
	if err != nil {
		t.mu.Lock()
		delete(t.dials, k)
		t.out--
		t.mu.Unlock()
		t.count.drop(dialFailed)
		for _, w := range d.waiting {
			w.done(flow.Flow{Network: tg.Network, Proto: tg.Proto, Remote: tg.Addr}, err)
		}
		return
	}
	stop := context.AfterFunc(ctx, func() { c.base.Close() })
	defer stop()
	defer c.base.Close()
	defer func() {
		t.mu.Lock()
		t.out--
		t.mu.Unlock()
	}()
	var errs []error
	t.mu.Lock()
	delete(t.dials, k)
	t.addLocked(c)
	for _, w := range d.waiting { // under the lock, so that nobody overtakes
		errs = append(errs, c.send(w.raw))
	}
	t.mu.Unlock()
	for i, w := range d.waiting {
		w.done(c.flow, errs[i])
	}
	c.run()
}

// connect dials from the network's own address of the target's family, and does the handshakes.
func (t *Transport) connect(ctx context.Context, k peerKey, tg flow.Target) (*conn, error) {
	cfg := t.cfg.Load()
	bind, _, err := t.nets.Local(tg.Network, pinhole.FamilyOf(tg.Addr.Addr()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Dial)
	defer cancel()
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(bind, 0)), KeepAliveConfig: keepAlive(),
		Control: lateBind,
	}
	base, err := d.DialContext(ctx, "tcp", tg.Addr.String())
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", tg.Proto, err)
	}
	c, err := t.shake(ctx, base, k, tg)
	if err != nil {
		base.Close()
		return nil, fmt.Errorf("dial %v %v: %w", tg.Proto, tg.Addr, err)
	}
	return c, nil
}

// shake does the TLS and WebSocket handshakes of a dialled connection.
func (t *Transport) shake(ctx context.Context, base net.Conn, k peerKey, tg flow.Target) (*conn, error) {
	tuneTCP(base, t.cfg.Load().Dscp)
	deadline, _ := ctx.Deadline()
	base.SetDeadline(deadline)
	c := t.newConn(flow.Flow{Network: tg.Network, Proto: tg.Proto, Local: pinhole.AddrPortOf(base.LocalAddr()), Remote: tg.Addr}, base, base)
	c.dialled, c.name = true, k.name
	if tg.Proto.Secure() {
		conf := &tls.Config{}
		if t.tls != nil {
			conf = cmp.Or(t.tls.Client(tg.Network), conf)
		}
		conf = conf.Clone()
		conf.ServerName = k.name
		tc := tls.Client(base, conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c.useTLS(tc)
	}
	if tg.Proto == flow.WS || tg.Proto == flow.WSS {
		if err := c.dialWS(ctx, wsHost(tg)); err != nil {
			return nil, err
		}
	}
	base.SetDeadline(time.Time{})
	return c, nil
}

// wsHost is the Host of the WebSocket request.
func wsHost(tg flow.Target) string {
	if tg.ServerName == "" {
		return tg.Addr.String()
	}
	return net.JoinHostPort(tg.ServerName, fmt.Sprint(tg.Addr.Port()))
}

// lateBind lets the system choose the local port at connect, so that connections to different
// hosts may share one.
func lateBind(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
}

package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// server is one Serve call.
type server struct {
	t       *Transport
	network string
	proto   flow.Proto
	addrs   []netip.AddrPort
	conns   sync.WaitGroup
}

// Serve accepts connections of a stream transport until ctx ends; then it closes the listener and
// its connections, waits for them, and returns nil. ln gives plain TCP connections: TLS and the
// WebSocket upgrade are done here, under the limits. TLS that has ended before, of connections that have a
// ConnectionState, is taken as it is, but for a certificate that is demanded and was not shown. When accepting fails (no descriptors left) it
// is tried again, ever more slowly; only a listener that somebody else closed is an error.
func (t *Transport) Serve(ctx context.Context, network string, proto flow.Proto, ln net.Listener) error {
	if proto < flow.TCP || proto > flow.WSS || proto.Secure() && t.tls == nil {
		ln.Close()
		return fmt.Errorf("serve transport %d on %v: %w", proto, ln.Addr(), errors.ErrUnsupported)
	}
	s := &server{t: t, network: network, proto: proto, addrs: t.addresses(network, ln.Addr())}
	t.listen(network, proto, s.addrs, s)
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer func() {
		stop()
		ln.Close()
		s.conns.Wait()
		t.unlisten(s)
	}()
	// A connection does not outlive its listener, for whatever reason accepting ends.
	connCtx, closeConns := context.WithCancel(ctx)
	defer closeConns()
	if err := s.acceptAll(connCtx, ln); ctx.Err() == nil {
		return fmt.Errorf("serve %v %v: %w", proto, ln.Addr(), err)
	}
	return nil
}

func (s *server) acceptAll(ctx context.Context, ln net.Listener) error {
	var wait backoff
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			wait.reset()
			s.accepted(ctx, nc)
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			s.t.count.drop(acceptFailed)
			s.t.log.Warn("sip accept", zap.String("network", s.network), zap.Stringer("transport", s.proto), zap.Error(err))
			if !wait.pause(ctx) {
				return ctx.Err()
			}
		}
	}
}

// accepted admits a connection before anything is allocated for it, or closes it.
func (s *server) accepted(ctx context.Context, nc net.Conn) {
	src := pinhole.AddrPortOf(nc.RemoteAddr()).Addr()
	if why := s.t.admit(s.network, src); why != none {
		s.t.count.drop(why)
		if tcp, ok := nc.(*net.TCPConn); ok {
			tcp.SetLinger(0) // leave no state behind
		}
		nc.Close()
		return
	}
	s.conns.Add(1)
	go s.serve(ctx, nc, src)
}

// serve does the handshakes and reads until the connection ends.
func (s *server) serve(ctx context.Context, nc net.Conn, src netip.Addr) {
	defer s.conns.Done()
	defer s.t.release(s.network, src)
	base := beneath(nc) // closing TLS would wait for a peer that does not read
	defer base.Close()
	stop := context.AfterFunc(ctx, func() { base.Close() })
	defer stop()
	c, why, err := s.open(ctx, nc)
	if err != nil {
		s.t.count.drop(why)
		s.t.log.Debug("sip handshake", zap.String("network", s.network), zap.Stringer("transport", s.proto), zap.Stringer("remote", nc.RemoteAddr()), zap.Error(err))
		return
	}
	s.t.add(c)
	c.run()
}

// open makes a connection of what was accepted.
func (s *server) open(ctx context.Context, nc net.Conn) (*conn, reason, error) {
	cfg := s.t.cfg.Load()
	base := beneath(nc)
	tuneTCP(base, cfg.Dscp)
	remote := pinhole.AddrPortOf(nc.RemoteAddr())
	f := flow.Flow{Network: s.network, Proto: s.proto, Local: s.localFor(base), Remote: remote}
	if own := pinhole.AddrPortOf(base.LocalAddr()); own != f.Local {
		f.Called = own
	}
	c := s.t.newConn(f, nc, base)
	base.SetDeadline(time.Now().Add(cfg.Handshake))
	if s.proto.Secure() {
		conf := s.t.tls.Server(s.network, s.proto)
		if conf == nil {
			return nil, handshake, errors.New("no certificate is configured")
		}
		tc, err := secure(ctx, nc, conf)
		if err != nil {
			return nil, handshake, err
		}
		c.useTLS(tc)
	}
	if s.proto == flow.WS || s.proto == flow.WSS {
		if err := c.accept(); err != nil {
			return nil, upgrade, err
		}
	}
	base.SetDeadline(time.Time{})
	return c, none, nil
}

// localFor returns the listener's address, or the connection's own one where the listener is a wildcard.
func (s *server) localFor(nc net.Conn) netip.AddrPort {
	own := pinhole.AddrPortOf(nc.LocalAddr())
	for _, a := range s.addrs {
		if a == own {
			return a
		}
	}
	if len(s.addrs) == 1 && !s.addrs[0].Addr().IsUnspecified() {
		return s.addrs[0] // a transparent listener: the connection's own address is the one that was dialled
	}
	return own
}

// secureConn is a connection after its TLS handshake.
type secureConn interface {
	net.Conn
	ConnectionState() tls.ConnectionState
}

// secure does the TLS handshake, unless it has been done.
func secure(ctx context.Context, nc net.Conn, conf *tls.Config) (secureConn, error) {
	if done, ok := nc.(secureConn); ok {
		if conf.ClientAuth == tls.RequireAndVerifyClientCert && len(done.ConnectionState().VerifiedChains) == 0 {
			return nil, errors.New("no client certificate")
		}
		return done, nil
	}
	tc := tls.Server(nc, conf)
	return tc, tc.HandshakeContext(ctx)
}

// beneath returns the connection of TCP that others were put around.
func beneath(nc net.Conn) net.Conn {
	for {
		over, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nc
		}
		nc = over.NetConn()
	}
}

// useTLS takes over a TLS connection after its handshake.
func (c *conn) useTLS(tc secureConn) {
	c.nc = tc
	c.try.raw = nil
	if state := tc.ConnectionState(); len(state.VerifiedChains) > 0 {
		c.peer = state.PeerCertificates[0]
	}
}

// admit counts an accepted connection in, or says why not. A quarter of all is kept for trusted networks:
// strangers with many addresses must not lock the inside out.
func (t *Transport) admit(network string, src netip.Addr) reason {
	cfg := t.cfg.Load()
	key := t.sourceKey(network, src)
	room := cfg.MaxConns
	if !t.nets[network].Trusted && !cfg.exempt(src) {
		room -= room / 4
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.in >= room:
		return connLimit
	case t.sources[key] >= cfg.PerSource && !cfg.exempt(src):
		return sourceLimit
	}
	t.in++
	t.sources[key]++
	return none
}

func (t *Transport) release(network string, src netip.Addr) {
	key := t.sourceKey(network, src)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.in--
	if t.sources[key]--; t.sources[key] == 0 {
		delete(t.sources, key)
	}
}

// sourceKey is what one source is. On a trusted network all hosts may be in one /64.
func (t *Transport) sourceKey(network string, a netip.Addr) netip.Addr {
	if t.nets[network].Trusted {
		return a
	}
	return sourceKey(a)
}

// sourceKey is what one stranger is: an IPv4 address, or the /64 that an IPv6 host may roam in.
func sourceKey(a netip.Addr) netip.Addr {
	if a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a
}

// tuneTCP finds dead peers (15 probes would be missed in the end: 30 s apart, 4 of them) and marks what is sent.
func tuneTCP(nc net.Conn, dscp int) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	tcp.SetKeepAliveConfig(keepAlive())
	markDSCP(tcp, dscp)
}

// keepAlive finds a dead peer within 30 s + 4 probes of 15 s.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}
}

package forward

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// handshakeTimeout bounds a TLS handshake on either leg.
const handshakeTimeout = 10 * time.Second

// TLSConfigs hands out configurations for rules that terminate TLS. They are asked for at each handshake, so that
// certificates can change meanwhile. Their methods may be called by any goroutine.
type TLSConfigs interface {
	// Accept is for the clients of a rule that listens on a network.
	Accept(network string, ask ClientCerts) *tls.Config
	// Dial is for a target whose certificate must be for that name.
	Dial(serverName string) *tls.Config
}

// accept does the client's handshake.
func (f *Forwarder) accept(ctx context.Context, r *rule, conn net.Conn) (net.Conn, error) {
	return handshake(ctx, tls.Server(conn, f.deps.TLS.Accept(r.Listen.Network, r.ClientCerts)))
}

// dialled does the handshake with the target.
func (f *Forwarder) dialled(ctx context.Context, r *rule, conn net.Conn) (net.Conn, error) {
	return handshake(ctx, tls.Client(conn, f.deps.TLS.Dial(r.ServerName)))
}

func handshake(ctx context.Context, c *tls.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return c, nil
}

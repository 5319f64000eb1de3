package carrier

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"edged.dev/edged/pkg/tunnel/groove"
	"edged.dev/edged/pkg/tunnel/proxydial"
)

// try opens one way and probes it.
func (d *Dialer) try(ctx context.Context, w way) (*Carrier, probed, error) {
	c, rtt, err := d.open(ctx, w)
	if err != nil {
		return nil, probed{}, err
	}
	p, err := probe(ctx, c.Conn, rtt, d.Limits)
	if err != nil {
		c.Close()
		return nil, p, err
	}
	c.RTT = p.echo
	return c, p, nil
}

// open opens one way up to the tunnel's TLS. rtt is what a turn on its path takes at least.
func (d *Dialer) open(ctx context.Context, w way) (c *Carrier, rtt time.Duration, err error) {
	limit := d.Attempt
	if limit == 0 {
		limit = tlsTime
	}
	// A relay where thousands wait says so, but it may be short of time too: who is connected waits longer for a word.
	whole, cancel := context.WithTimeoutCause(ctx, waitTime+4*limit, fmt.Errorf("no place at the relay within %v", waitTime+4*limit))
	defer cancel()
	ctx, cancel = context.WithTimeoutCause(whole, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	c = &Carrier{Rung: w.rung, Path: w.proxy.String()}
	if w.rung == QUIC {
		conn, rtt, err := d.dialQUIC(ctx)
		if err != nil {
			return nil, 0, err
		}
		c.Conn, c.state = conn, conn.conn.ConnectionState().TLS
		return c, rtt, nil
	}
	raw, rtt, err := d.pipe(ctx, w)
	if err != nil {
		return nil, 0, err
	}
	c.tls, c.exact, err = secure(whole, raw, d.TLS, 3*limit)
	if err != nil {
		raw.Close()
		return nil, 0, err
	}
	c.Conn, c.state = newTLSPipe(c.tls, raw, c.exact), c.tls.ConnectionState()
	return c, rtt, nil
}

// pipe opens the byte pipe of a rung.
func (d *Dialer) pipe(ctx context.Context, w way) (net.Conn, time.Duration, error) {
	if w.rung <= WSS {
		got, err := d.Proxy.Dial(ctx, w.proxy, d.tlsAddress())
		if err != nil || w.rung != WSS {
			return got.Conn, got.RTT, err
		}
		conn, err := d.webTLS(ctx, got.Conn)
		return conn, got.RTT, err
	}
	if w.proxy.Scheme == proxydial.HTTP || w.proxy.Scheme == proxydial.HTTPS {
		web, err := d.Proxy.Web(ctx, w.proxy, d.httpAddress(), WebSocketPath)
		if err != nil {
			return nil, 0, err
		}
		defer web.Close()
		conn, err := d.overHTTP(ctx, w.rung, true, web.Authorize, web.Dial)
		return conn, web.RTT(), err
	}
	var rtt time.Duration // of the first connection
	conn, err := d.overHTTP(ctx, w.rung, false, nil, func(ctx context.Context) (net.Conn, error) {
		got, err := d.Proxy.Dial(ctx, w.proxy, d.httpAddress())
		if rtt == 0 {
			rtt = got.RTT
		}
		return got.Conn, err
	})
	return conn, rtt, err
}

// webTLS makes rung wss look like a browser's connection, as far as crypto/tls can.
func (d *Dialer) webTLS(ctx context.Context, raw net.Conn) (net.Conn, error) {
	cfg := d.Web
	if cfg == nil {
		cfg = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12} //nolint:gosec // see Dialer.Web
	}
	cfg = cfg.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = d.Relay
	}
	cfg.NextProtos = []string{"http/1.1"}
	outer := tls.Client(raw, cfg)
	if err := outer.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS of the web: %w", err)
	}
	conn, err := upgrade(ctx, outer, WebSocketPath, d.tlsAddress(), "")
	if err != nil {
		raw.Close()
	}
	return conn, err
}

// overHTTP opens a rung of port 80. authorize gives the value of Proxy-Authorization for a request; nil: none. dial may be
// called again as long as the connection lives.
func (d *Dialer) overHTTP(ctx context.Context, rung Rung, proxied bool, authorize func(method, uri string) string,
	dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	host := d.httpAddress()
	if mode, ok := grooveMode(rung); ok {
		name := d.Name
		if name == "" {
			name = groove.TunnelName
		}
		conn, err := groove.Dial(ctx, mode, groove.Target{Relay: name, Host: host, Proxied: proxied, Authorize: authorize}, dial)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	uri, value := WebSocketPath, ""
	if proxied {
		uri = "http://" + host + uri
	}
	if authorize != nil {
		value = authorize("GET", uri)
	}
	ws, err := upgrade(ctx, conn, uri, host, value)
	if err != nil {
		conn.Close()
	}
	return ws, err
}

// grooveMode returns the carriage of package groove that a rung is.
func grooveMode(r Rung) (groove.Mode, bool) {
	switch r {
	case LongLived:
		return groove.LongLived, true
	case KeepAlive:
		return groove.KeepAlive, true
	case Polling:
		return groove.Polling, true
	}
	return 0, false
}

// RungOf returns the rung that a virtual connection of package groove is.
func RungOf(m groove.Mode) Rung {
	for _, r := range []Rung{LongLived, KeepAlive} {
		if mode, _ := grooveMode(r); mode == m {
			return r
		}
	}
	return Polling
}

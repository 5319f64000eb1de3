package sharedport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
)

// visitor is a connection from its acceptance until a service has it or it is refused.
type visitor struct {
	p    *Port
	cfg  *Config
	tcp  *net.TCPConn
	conn net.Conn // what a service gets: tcp, or what was put around it

	remote  netip.AddrPort
	source  netip.Prefix
	trusted bool // a balancer that has told nobody yet
	kind    Kind
	name    string // the server name, once TLS has begun
}

// serve finds out what the connection is, and hands it to whom it is for.
func (v *visitor) serve(ctx context.Context) {
	defer func() { v.p.release(v.source, !v.trusted) }()
	stop := context.AfterFunc(ctx, func() { gate.Reset(v.tcp) })
	why := v.look(ctx)
	if !stop() {
		return
	}
	if why == "" {
		why = v.hand(ctx)
	}
	if why != "" {
		v.refuse(why)
	}
}

// look classifies the connection, behind a header of the PROXY protocol and inside TLS where both are the port's
// business. It returns why the connection is refused, "" if it is not.
func (v *visitor) look(ctx context.Context) (why string) {
	until := time.Now().Add(v.cfg.FirstBytes)
	looking := Looking{Proxy: v.trusted, WebSocket: v.p.tells(OverTCP)}
	first, err := peek(v.tcp, until, looking)
	if err == nil && first.Class == Proxy {
		v.found(OverTCP, first)
		if why := v.behind(first); why != "" {
			return why
		}
		looking.Proxy = false
		first, err = peek(v.tcp, until, looking)
	}
	if why := v.failed(OverTCP, err); why != "" || err != nil {
		return why
	}
	if first.Class == Tunnel && v.p.find(Kind{OverTCP, Tunnel}, first.Name) == nil {
		first.Class = TLS
	}
	v.found(OverTCP, first)
	if first.Class != TLS || !v.p.EndsTLS() || v.p.find(v.kind, v.name) != nil {
		return ""
	}
	if v.cfg.off(v.kind) {
		return "off"
	}
	return v.inside(ctx)
}

// failed says why a connection is refused that has not said what it is. Who says nothing is of a class of its own.
func (v *visitor) failed(outer Outer, err error) (why string) {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		v.found(outer, First{Class: Silent, Name: v.name})
		return ""
	case errors.Is(err, errSlow):
		return "slow"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "ended"
	}
	return "error"
}

// found takes over what the first bytes have said.
func (v *visitor) found(outer Outer, f First) {
	v.kind = Kind{outer, f.Class}
	if outer == OverTCP {
		v.name = f.Name
	}
	v.p.deps.Count.classified(v.kind)
}

// behind takes the header of the PROXY protocol off.
func (v *visitor) behind(f First) (why string) {
	if f.Header == 0 {
		return "proxy"
	}
	if _, err := io.ReadFull(v.tcp, make([]byte, f.Header)); err != nil {
		return "error"
	}
	if !f.Source.IsValid() {
		return ""
	}
	source := prefixOf(f.Source.Addr())
	if !v.p.recount(v.cfg, source) {
		return "per_source"
	}
	v.remote, v.source, v.trusted = f.Source, source, false
	v.conn = &proxied{v.tcp, f.Source}
	return ""
}

// inside ends TLS and classifies again.
func (v *visitor) inside(ctx context.Context) (why string) {
	begun := time.Now()
	secure := tls.Server(v.conn, v.p.deps.TLS(v.cfg.Legacy))
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Handshake)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		return "handshake"
	}
	v.p.deps.Count.handshakes.Observe(time.Since(begun).Seconds())
	head, first, err := readFirst(secure, time.Now().Add(v.cfg.FirstBytes), Looking{WebSocket: v.p.tells(OverTLS)})
	v.conn = &secured{Conn: secure, head: head}
	if why := v.failed(OverTLS, err); why != "" || err != nil {
		return why
	}
	v.found(OverTLS, first)
	return ""
}

// hand gives the connection to the listener of its kind, or returns why it is refused.
func (v *visitor) hand(ctx context.Context) (why string) {
	if v.cfg.off(v.kind) {
		return "off"
	}
	l := v.p.find(v.kind, v.name)
	if l == nil && v.kind.Class == Silent {
		return "silent"
	}
	if l == nil {
		return "not_served"
	}
	select {
	case l.conns <- v.conn:
		return ""
	case <-l.done:
		return "closed"
	case <-ctx.Done():
		return "closed"
	}
}

// find returns the listener of a kind and server name, nil if none wants it.
func (p *Port) find(k Kind, name string) *listener {
	for {
		if l := p.byKey[key{k, name}]; l != nil && name != "" {
			return l
		}
		if _, parent, ok := strings.Cut(name, "."); ok {
			if l := p.byKey[key{k, "*." + parent}]; l != nil {
				return l
			}
		}
		if l := p.byKey[key{k, ""}]; l != nil {
			return l
		}
		switch { // where one of both is served it gets the other too, and answers as it can
		case k.Class == WebSocket:
			k.Class = HTTP
		case k.Class == HTTP && !p.serves(Kind{k.Outer, HTTP}) && p.serves(Kind{k.Outer, WebSocket}):
			k.Class = WebSocket
		default:
			return nil
		}
	}
}

// serves tells whether a listener wants a kind.
func (p *Port) serves(k Kind) bool {
	for have := range p.byKey {
		if have.Kind == k {
			return true
		}
	}
	return false
}

// tells tells whether WebSockets must be told from HTTP.
func (p *Port) tells(outer Outer) bool {
	return p.serves(Kind{outer, HTTP}) && p.serves(Kind{outer, WebSocket})
}

// refuse resets the connection without a byte, counts it and, for each source once in a while, logs it.
func (v *visitor) refuse(why string) {
	gate.Reset(v.tcp)
	v.p.deps.Count.refused(why)
	if v.p.said.Again(v.source.Addr(), time.Now()) {
		v.p.log.Info("connection refused", zap.Stringer("listener", v.p.ln.Addr()), zap.Stringer("source", v.remote.Addr()),
			zap.String("class", string(v.kind.Class)), zap.String("outer", string(v.kind.Outer)), zap.String("server_name", v.name), zap.String("reason", why))
	}
}

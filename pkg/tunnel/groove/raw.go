package groove

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/splice"
)

// ServeRaw serves streams of SSTP on a listener: each must begin with a Connect for a published relay, to which all of
// it then goes unread.
func (s *Server) ServeRaw(ctx context.Context, ln net.Listener) error {
	return s.gate.Serve(ctx, ln, s.serveRaw, func(why string) { s.count.refusals.WithLabelValues(why).Inc() })
}

func (s *Server) serveRaw(ctx context.Context, conn net.Conn) {
	source := pinhole.AddrPortOf(conn.RemoteAddr()).Addr()
	stop := context.AfterFunc(ctx, func() { gate.Reset(conn) })
	b, c, why := readConnect(conn)
	var to Backend
	if why == "" {
		if to, why = s.route(c); why == "" {
			why = s.rawEnter()
		}
	}
	if !stop() {
		return
	}
	if why != "" {
		gate.Reset(conn)
		s.refuse(why, source, zap.String("target", c.Target))
		return
	}
	defer s.rawLeave()
	back, err := s.deps.Dial(ctx, "tcp", to.String())
	if err != nil {
		gate.Reset(conn)
		s.refuse("relay_unreachable", source, zap.String("target", c.Target), zap.Error(err))
		return
	}
	s.log.Debug("stream of SSTP", zap.String("target", c.Target), zap.Strings("sources", c.Sources), zap.String("product", c.Product), zap.Stringer("source", source))
	r := s.deps.Joiner.Join(ctx, conn, back, splice.Options{Idle: s.cfg.Idle, Prefix: [2][]byte{b}})
	s.count.endeds.WithLabelValues(map[bool]string{true: endPeer, false: "error"}[r.Err == nil]).Inc()
}

// readConnect reads until it is clear what a stream begins with.
func readConnect(conn net.Conn) (b []byte, c Connect, why string) {
	conn.SetReadDeadline(time.Now().Add(headTime))
	defer conn.SetReadDeadline(time.Time{})
	b = make([]byte, 0, 1024)
	for {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(4*cap(b), maxConnect)), b...)
		}
		n, err := conn.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		c, more, fault := ParseConnect(b)
		switch {
		case fault != nil:
			return b, c, "not_connect"
		case !more:
			return b, c, ""
		case errors.Is(err, os.ErrDeadlineExceeded):
			return b, c, "slow_connect"
		case err != nil:
			return b, c, "ended"
		}
	}
}

// route finds the relay that a Connect names: by the whole of the URL, or its host.
func (s *Server) route(c Connect) (Backend, string) {
	for _, name := range []string{c.Target, c.Relay()} {
		if to, ok := s.cfg.Relays[name]; ok {
			return to, ""
		}
	}
	return Backend{}, "relay"
}

func (s *Server) rawEnter() (why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rawOpen+len(s.live) >= s.cfg.MaxConnections {
		return "max_connections"
	}
	s.rawOpen++
	s.count.total.WithLabelValues(modeRaw).Inc()
	s.count.open.WithLabelValues(modeRaw).Inc()
	return ""
}

func (s *Server) rawLeave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rawOpen--
	s.count.open.WithLabelValues(modeRaw).Dec()
}

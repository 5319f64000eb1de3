package demophone

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// agent is a sipgo user agent on one tapped UDP socket.
type agent struct {
	tap    *Tap
	ua     *sipgo.UserAgent
	client *sipgo.Client
	server *sipgo.Server
}

// newAgent returns an agent that sends and receives at the tap.
func newAgent(name, domain string, tap *Tap, log *zap.Logger) (*agent, error) {
	quiet := slog.New(&zapHandler{log: log})
	ua, err := sipgo.NewUA(
		sipgo.WithUserAgent(name),
		sipgo.WithUserAgentHostname(domain),
		sipgo.WithUserAgentTransportLayerOptions(sip.WithTransportLayerLogger(quiet)),
		sipgo.WithUserAgentTransactionLayerOptions(sip.WithTransactionLayerLogger(quiet),
			// A response that matches no transaction is a retransmission; there is nobody to tell.
			sip.WithTransactionLayerUnhandledResponseHandler(func(*sip.Response) {})),
	)
	if err != nil {
		return nil, fmt.Errorf("user agent: %w", err)
	}
	local := tap.Addr().String()
	client, err := sipgo.NewClient(ua, sipgo.WithClientAddr(local), sipgo.WithClientConnectionAddr(local),
		sipgo.WithClientNAT(), sipgo.WithClientLogger(quiet))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	server, err := sipgo.NewServer(ua, sipgo.WithServerLogger(quiet))
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return &agent{tap: tap, ua: ua, client: client, server: server}, nil
}

// local is the agent's socket in sipgo's words. A request without it may leave from another socket.
func (a *agent) local() sip.Addr {
	own := a.tap.Addr()
	return sip.Addr{IP: own.Addr().AsSlice(), Port: int(own.Port())}
}

// ready waits until serve reads the socket: before, sipgo would not know it and open another one.
func (a *agent) ready(ctx context.Context) error {
	select {
	case <-a.tap.reading:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%v is not served: %w", a.tap.Addr(), ctx.Err())
	}
}

// serve handles messages until ctx ends, then closes the socket.
func (a *agent) serve(ctx context.Context) error {
	var closing sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer closing.Wait()
	defer cancel()
	closing.Go(func() {
		<-ctx.Done()
		a.tap.Close()
	})
	if err := a.server.ServeUDP(a.tap); err != nil {
		return fmt.Errorf("serve %v: %w", a.tap.Addr(), err)
	}
	if err := a.ua.Close(); err != nil {
		return fmt.Errorf("close %v: %w", a.tap.Addr(), err)
	}
	return nil
}

// zapHandler carries sipgo's log into zap, with everything one level down: what a library calls
// an error (a stray datagram) is a detail here.
type zapHandler struct {
	log *zap.Logger
}

var _ slog.Handler = (*zapHandler)(nil)

// Enabled implements slog.Handler.
func (h *zapHandler) Enabled(_ context.Context, l slog.Level) bool {
	return h.log.Core().Enabled(zapLevel(l))
}

// Handle implements slog.Handler.
func (h *zapHandler) Handle(_ context.Context, r slog.Record) error {
	fields := []zap.Field{zap.String("text", r.Message)}
	r.Attrs(func(a slog.Attr) bool {
		fields = append(fields, zap.String(a.Key, a.Value.String()))
		return true
	})
	h.log.Log(zapLevel(r.Level), "sip library", fields...)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *zapHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	log := h.log
	for _, a := range attrs {
		log = log.With(zap.String(a.Key, a.Value.String()))
	}
	return &zapHandler{log: log}
}

// WithGroup implements slog.Handler; groups are not kept.
func (h *zapHandler) WithGroup(string) slog.Handler { return h }

func zapLevel(l slog.Level) zapcore.Level {
	switch {
	case l >= slog.LevelError:
		return zap.WarnLevel
	case l >= slog.LevelWarn:
		return zap.InfoLevel
	}
	return zap.DebugLevel
}

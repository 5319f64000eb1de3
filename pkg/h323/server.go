package h323

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/rasrelay"
	"edged.dev/edged/pkg/pinhole"
)

const (
	// dialTime bounds the connection to a called party.
	dialTime = 10 * time.Second
	// writeTime bounds one write: a peer that does not read loses its connection.
	writeTime = 20 * time.Second
	// maxConns bounds the signalling connections of all hosts.
	maxConns = 20_000
	// tickTime is how often timers are looked at: none needs to be exact.
	tickTime = time.Second
	// queueSize is how many messages may wait to be written to a connection.
	queueSize  = 64
	readBuffer = 8 << 10
)

// Server drives a [Core] with sockets, goroutines and a clock. All methods may be called concurrently.
type Server struct {
	deps Deps
	log  *zap.Logger
	ctx  context.Context //nolint:containedctx // the server's own life, no request's
	stop context.CancelFunc
	work sync.WaitGroup
	gate *gate.Gate

	mu    sync.Mutex // guards what follows
	core  *Core
	conns map[ConnID]*conn
	last  ConnID
	// packets are the RAS listeners by network.
	packets map[string][]net.PacketConn
}

// conn is a signalling connection.
type conn struct {
	id     ConnID
	out    chan []byte
	cancel context.CancelFunc
	// finish is closed when what is queued shall be the last.
	finish chan struct{}
	once   sync.Once
}

// New checks the configuration and returns a server without listeners.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	s := &Server{deps: deps, log: log, gate: gate.New(maxConns, deps.Connections), conns: make(map[ConnID]*conn), packets: make(map[string][]net.PacketConn)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.core = NewCore(cfg, deps, log)
	s.core.serve, s.core.enter = s.controlOf, s.doorOf
	return s, nil
}

// Reload takes over a valid configuration, but for its listeners.
func (s *Server) Reload(cfg Config) error {
	if err := cfg.Validate(s.deps.Networks); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.Reload(cfg)
	return nil
}

// SetPerSource changes the limit of one host, for new connections; 0 = none.
func (s *Server) SetPerSource(n int) { s.gate.SetPerSource(n) }

// Drain refuses new calls from now on.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.Drain()
}

// HangUp ends the calls with a call identifier, and returns how many there were.
func (s *Server) HangUp(id string) (n int) {
	s.do(func(c *Core, out *Output) { n = c.HangUp(time.Now(), func(k *call) bool { return k.id == id }, out) })
	return n
}

// Expel ends the calls of parties whose address is shut out, and returns how many there were.
func (s *Server) Expel(out func(netip.Addr) bool) (n int) {
	s.do(func(c *Core, does *Output) {
		n = c.HangUp(time.Now(), func(k *call) bool { return out(k.host[pinhole.Near]) || out(k.target.Addr()) }, does)
	})
	return n
}

// Run runs the timers until ctx ends; then all calls end. Call it beside Serve, once.
func (s *Server) Run(ctx context.Context) error {
	every := time.NewTicker(tickTime)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			s.shutdown()
			return nil
		case now := <-every.C:
			s.do(func(c *Core, out *Output) { c.Tick(now, out) })
		}
	}
}

// shutdown releases every call and waits for the connections to end.
func (s *Server) shutdown() {
	s.do(func(c *Core, out *Output) {
		for k := range c.calls {
			c.refuse(time.Now(), k, refusedLimit, out)
			c.end(time.Now(), k, out)
		}
		if c.outer != nil {
			c.outer.Close()
		}
	})
	s.mu.Lock()
	for _, k := range s.conns {
		k.once.Do(func() { close(k.finish) })
	}
	s.mu.Unlock()
	s.stop()
	s.work.Wait()
}

// Serve accepts call signalling on ln, bound on the named network, until ctx ends. The connections end with Run.
func (s *Server) Serve(ctx context.Context, network string, ln net.Listener) error {
	return s.gate.Serve(ctx, ln, func(_ context.Context, c net.Conn) { s.accept(network, c) }, func(string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.core.counts.drop(refusedLimit)
	})
}

// accept drives a connection that a peer has made until it ends.
func (s *Server) accept(network string, c net.Conn) {
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return
	}
	s.last++
	k := s.addLocked(s.last)
	s.core.Accept(time.Now(), k.id, network, pinhole.AddrPortOf(c.LocalAddr()), pinhole.AddrPortOf(c.RemoteAddr()))
	s.mu.Unlock()
	stop := context.AfterFunc(s.ctx, func() { k.once.Do(func() { close(k.finish) }) })
	defer stop()
	s.drive(k, c)
}

func (s *Server) addLocked(id ConnID) *conn {
	k := &conn{id: id, out: make(chan []byte, queueSize), finish: make(chan struct{}), cancel: func() {}}
	s.conns[id] = k
	return k
}

// do runs f on the core and carries out what it wants.
func (s *Server) do(f func(*Core, *Output)) {
	var out Output
	s.mu.Lock()
	f(s.core, &out)
	for _, a := range out.Actions {
		s.actLocked(a)
	}
	s.mu.Unlock()
	if s.deps.Record != nil {
		for _, r := range out.Records {
			s.deps.Record(r)
		}
	}
}

func (s *Server) actLocked(a Action) {
	k := s.conns[a.Conn]
	switch {
	case a.Kind == Dial:
		if s.ctx.Err() != nil {
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, dialTime)
		k = s.addLocked(a.Conn)
		k.cancel = cancel
		s.work.Go(func() { s.dial(ctx, k, a) })
	case a.Kind == Ring:
		if pc := s.packetLocked(rasrelay.Datagram{Network: a.Network, To: a.Target}); pc != nil {
			_, _ = pc.WriteTo(a.Data, net.UDPAddrFromAddrPort(a.Target)) // it is sent again if it is lost
		}
	case k == nil:
	case a.Kind == Close:
		k.once.Do(func() { close(k.finish) })
		k.cancel()
	default:
		select {
		case k.out <- a.Data:
		default:
			s.core.counts.drop(droppedQueue)
			k.once.Do(func() { close(k.finish) })
		}
	}
}

// dial connects to a called party.
func (s *Server) dial(ctx context.Context, k *conn, a Action) {
	d := net.Dialer{}
	if bind, _, err := s.deps.Networks.Local(a.Network, pinhole.FamilyOf(a.Target.Addr())); err == nil {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(bind, 0))
	}
	c, err := d.DialContext(ctx, "tcp", a.Target.String())
	k.cancel()
	if err != nil {
		s.remove(k)
		s.do(func(core *Core, out *Output) { core.Dialed(time.Now(), k.id, netip.AddrPort{}, err, out) })
		return
	}
	s.do(func(core *Core, out *Output) {
		core.Dialed(time.Now(), k.id, pinhole.AddrPortOf(c.LocalAddr()), nil, out)
	})
	s.drive(k, c)
}

func (s *Server) remove(k *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, k.id)
}

// drive reads and writes a connection until it ends.
func (s *Server) drive(k *conn, c net.Conn) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		k.write(c)
	}()
	s.read(k, c)
	s.do(func(core *Core, out *Output) { core.Closed(time.Now(), k.id, out) })
	s.remove(k)
	k.once.Do(func() { close(k.finish) })
	<-written
	c.Close()
}

// write writes what is queued until the connection shall finish or fails.
func (k *conn) write(c net.Conn) {
	for {
		var b []byte
		select {
		case b = <-k.out:
		case <-k.finish:
			select {
			case b = <-k.out:
			default:
				// The other end reads what was written, then the end.
				if t, ok := c.(interface{ CloseWrite() error }); ok {
					_ = t.CloseWrite()
				}
				c.SetReadDeadline(time.Now().Add(lingerTime))
				return
			}
		}
		c.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := c.Write(b); err != nil {
			c.Close()
			return
		}
	}
}

// read takes messages until the connection ends, or says what is no TPKT.
func (s *Server) read(k *conn, c net.Conn) {
	var split tpkt.Splitter
	buf := make([]byte, readBuffer)
	for {
		n, err := c.Read(buf)
		split.Push(buf[:n])
		for {
			p, ok, bad := split.Next()
			if bad != nil {
				s.malformed(c, bad)
				return
			}
			if !ok {
				break
			}
			s.do(func(core *Core, out *Output) { core.Message(time.Now(), k.id, p, out) })
		}
		if err != nil {
			return
		}
	}
}

func (s *Server) malformed(c net.Conn, err error) {
	s.log.Info("connection closed: not call signalling", zap.Stringer("peer", c.RemoteAddr()), zap.Error(err))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.counts.drop(droppedMalformed)
}

// controlOf returns what speaks on the H.245 connections of a call.
func (s *Server) controlOf(k *call) func(context.Context, [2]net.Conn, func(pinhole.Side, int)) {
	return func(ctx context.Context, conns [2]net.Conn, moved func(pinhole.Side, int)) {
		s.do(func(c *Core, _ *Output) { c.controlOpened(k) })
		end := context.AfterFunc(ctx, func() {
			conns[0].Close()
			conns[1].Close()
		})
		defer end()
		var both sync.WaitGroup
		both.Go(func() { s.relayControl(k, pinhole.Far, conns, moved) })
		s.relayControl(k, pinhole.Near, conns, moved)
		both.Wait()
		s.do(func(c *Core, out *Output) { c.controlClosed(time.Now(), k, out) })
	}
}

// relayControl passes H.245 from one side to the other. At its end the other side is told; after an error both
// connections end.
func (s *Server) relayControl(k *call, from pinhole.Side, conns [2]net.Conn, moved func(pinhole.Side, int)) {
	src, dst := conns[from], conns[from.Other()]
	var split tpkt.Splitter
	buf := make([]byte, readBuffer)
	for {
		n, err := src.Read(buf)
		moved(from, n)
		split.Push(buf[:n])
		if bad := s.passControl(k, from, &split, conns); bad != nil {
			s.log.Info("H.245 connection closed", zap.String("call", k.id), zap.Stringer("peer", src.RemoteAddr()), zap.Error(bad))
			src.Close()
			dst.Close()
			return
		}
		if err != nil {
			if t, ok := dst.(*net.TCPConn); ok {
				t.CloseWrite()
			}
			return
		}
	}
}

// passControl passes on what has arrived whole.
func (s *Server) passControl(k *call, from pinhole.Side, split *tpkt.Splitter, conns [2]net.Conn) error {
	dst := conns[from.Other()]
	for {
		p, ok, err := split.Next()
		if err != nil || !ok {
			return err
		}
		payload := p.Payload
		if len(payload) > 0 {
			s.traceControl(k, from, conns, false, whole(p.Second, payload))
			s.mu.Lock()
			payload, err = s.core.Control(time.Now(), k, from, payload)
			s.mu.Unlock()
			if err != nil {
				return err
			}
			if len(payload) == 0 {
				continue // all of it was for the edge
			}
		}
		b, err := tpkt.Append(nil, p.Second, payload)
		if err != nil {
			return err
		}
		if len(payload) > 0 {
			s.traceControl(k, from.Other(), conns, true, b)
		}
		dst.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := dst.Write(b); err != nil {
			return err
		}
	}
}

// traceControl traces H.245 that came from, or goes to, the party at a side.
func (s *Server) traceControl(k *call, side pinhole.Side, conns [2]net.Conn, out bool, b []byte) {
	if s.deps.Trace != nil {
		s.deps.Trace(Traced{
			Protocol: H245, Call: k.id, Out: out, Network: k.nets[side],
			Local: pinhole.AddrPortOf(conns[side].LocalAddr()), Remote: pinhole.AddrPortOf(conns[side].RemoteAddr()), Data: b,
		})
	}
}

// CallInfo describes a call in progress, for /api/v1/h323_calls.
type CallInfo struct {
	CallID    string         `json:"call_id"`
	Caller    string         `json:"caller"`
	Called    string         `json:"called"`
	From      netip.Addr     `json:"from"`
	To        netip.AddrPort `json:"to"`
	Started   time.Time      `json:"started"`
	Connected *time.Time     `json:"connected,omitempty"`
	Channels  int            `json:"channels"`
	H245      int            `json:"h245_connections"`
}

// Calls lists the calls in progress, in no order.
func (s *Server) Calls() []CallInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]CallInfo, 0, len(s.core.calls))
	for k := range s.core.calls {
		i := CallInfo{
			CallID: k.id, Caller: k.caller, Called: k.called, From: k.host[pinhole.Near], To: k.target,
			Started: k.started, Channels: len(k.channels), H245: k.joined,
		}
		if !k.connected.IsZero() {
			at := k.connected
			i.Connected = &at
		}
		out = append(out, i)
	}
	return out
}

package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/sealed"
)

const (
	// queueLength is how many datagrams of a source wait while its stream is opened; the oldest go first.
	queueLength = 64
	// holdOff is how long after a failure datagrams of a source open no new stream.
	holdOff = 5 * time.Second
	// maxPacket is the longest payload of UDP.
	maxPacket = 65535
)

// clock is when a flow last carried something.
type clock struct{ last atomic.Int64 }

func (c *clock) touch() { c.last.Store(time.Now().UnixNano()) }

func (c *clock) idle() time.Duration { return time.Duration(time.Now().UnixNano() - c.last.Load()) }

// watch returns when nothing has been carried for so long, or ctx ends.
func (c *clock) watch(ctx context.Context, idle time.Duration) {
	t := time.NewTimer(idle)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		left := idle - c.idle()
		if left <= 0 {
			return
		}
		t.Reset(left)
	}
}

// udpForward is a port whose datagrams go to a service, each source by a stream of its own.
type udpForward struct {
	a   *Agent
	f   Forward
	pc  net.PacketConn
	run sync.WaitGroup

	mu    sync.Mutex // guards what follows
	flows map[netip.AddrPort]*udpFlow
	full  gate.Said
}

// udpFlow is one source.
type udpFlow struct {
	clock
	source netip.AddrPort
	queue  chan []byte // queueLength, drop oldest
}

// ServeUDP brings datagrams to the forward's service and back until ctx ends. It closes the socket.
func (a *Agent) ServeUDP(ctx context.Context, pc net.PacketConn, f Forward) error {
	if f.Idle == 0 {
		f.Idle = DefaultIdle
	}
	if f.Flows == 0 {
		f.Flows = DefaultFlows
	}
	u := &udpForward{a: a, f: f, pc: pc, flows: map[netip.AddrPort]*udpFlow{}}
	ctx, cancel := context.WithCancel(ctx)
	err := gate.Packets(ctx, pc, maxPacket, func(from net.Addr, b []byte) { u.packet(ctx, pinhole.AddrPortOf(from), b) })
	cancel()
	u.run.Wait()
	return err
}

// packet gives a datagram to its source's flow.
func (u *udpForward) packet(ctx context.Context, source netip.AddrPort, b []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := u.flows[source]
	if f == nil {
		if len(u.flows) >= u.f.Flows {
			u.a.count.dropped.WithLabelValues("flows").Inc()
			if !u.full.Again(source.Addr(), time.Now()) {
				u.a.log.Warn("datagram dropped", zap.Stringer("listen", u.f.Listen), zap.String("reason", "flows"))
			}
			return
		}
		f = &udpFlow{source: source, queue: make(chan []byte, queueLength)}
		u.flows[source] = f
		f.touch()
		u.run.Go(func() { u.flow(ctx, f) })
	}
	for own := append([]byte(nil), b...); ; {
		select {
		case f.queue <- own:
			return
		default:
		}
		select {
		case <-f.queue:
			u.a.count.dropped.WithLabelValues("queue").Inc()
		default:
		}
	}
}

// flow carries one source's datagrams until they cease.
func (u *udpForward) flow(ctx context.Context, f *udpFlow) {
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.flows, f.source)
	}()
	c, err := u.a.DialDatagrams(ctx, u.f.Device, u.f.Service)
	if err != nil {
		if ctx.Err() == nil {
			u.a.log.Warn("datagrams not forwarded", zap.Stringer("listen", u.f.Listen), zap.Error(err))
		}
		pause(ctx, holdOff)
		return
	}
	to := net.UDPAddrFromAddrPort(f.source)
	u.a.carry(ctx, c, &f.clock, u.f.Idle, func(ctx context.Context) error {
		for {
			select {
			case b := <-f.queue:
				u.a.send(c.sealed, b)
				f.touch()
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}, func(b []byte) error {
		_, err := u.pc.WriteTo(b, to)
		return err
	})
}

// serveUDP carries another device's datagrams to a service of this site and back.
func (a *Agent) serveUDP(ctx context.Context, c *Conn, s Service) {
	conn, ok := a.dialFor(ctx, c, "udp", s.UDP)
	if !ok {
		return
	}
	defer conn.Close()
	idle := s.Idle
	if idle == 0 {
		idle = DefaultIdle
	}
	var quiet clock
	quiet.touch()
	a.carry(ctx, c, &quiet, idle, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
		buf := make([]byte, maxPacket)
		for {
			n, err := conn.Read(buf)
			switch {
			case err == nil:
				a.send(c.sealed, buf[:n])
				quiet.touch()
			case ctx.Err() != nil || !passing(err):
				return err
			}
		}
	}, func(b []byte) error {
		_, err := conn.Write(b)
		return err
	})
}

// passing tells whether an error of a connected UDP socket is only what a datagram before met with, an ICMP
// message for example.
func passing(err error) bool {
	var call *os.SyscallError
	return errors.As(err, &call) && !errors.Is(err, net.ErrClosed)
}

// carry moves datagrams both ways until the other device ends the stream, nothing moves for so long, or ctx ends. out
// reads those of this side and sends them until its ctx ends; in takes one of the other's.
func (a *Agent) carry(ctx context.Context, c *Conn, quiet *clock, idle time.Duration, out func(context.Context) error, in func([]byte) error) {
	ctx, cancel := context.WithCancel(ctx)
	var run sync.WaitGroup
	run.Go(func() { // the stream has no bytes: it ends with the flow
		defer cancel()
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1))
	})
	run.Go(func() {
		defer cancel()
		quiet.watch(ctx, idle)
	})
	run.Go(func() {
		defer cancel()
		_ = out(ctx) // it ends with the flow, however that ends
	})
	for {
		b, err := c.sealed.Receive(ctx)
		if err != nil {
			break
		}
		quiet.touch()
		if in(b) != nil {
			a.count.dropped.WithLabelValues("unreachable").Inc()
			continue
		}
		a.count.datagramsIn.Add(1)
	}
	cancel()
	c.Close()
	run.Wait()
	a.dropped(c.sealed)
}

// dropped counts what a stream that has ended has dropped.
func (a *Agent) dropped(s *sealed.Conn) {
	forged, again := s.Dropped()
	a.count.dropped.WithLabelValues("forged").Add(float64(forged))
	a.count.dropped.WithLabelValues("replayed").Add(float64(again))
}

// send sends a datagram if it can be sent.
func (a *Agent) send(to *sealed.Conn, b []byte) {
	if len(b) > mux.MaxDatagram-sealed.Overhead {
		a.count.dropped.WithLabelValues("size").Inc()
		return
	}
	if to.Send(b) != nil {
		a.count.dropped.WithLabelValues("unreachable").Inc()
		return
	}
	a.count.datagramsOut.Add(1)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

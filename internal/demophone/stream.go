package demophone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/rtp"
)

const (
	frameTime = 20 * time.Millisecond
	// maxFrames bounds the frame numbers that are believed: 20 ms each, three hours.
	maxFrames = 3 * 3600 * 50
	// maxDelays bounds the delays kept for percentiles.
	maxDelays = 1 << 14
)

// Stream sends the pattern of one side of a call and verifies the other side's.
type Stream struct {
	conn, rtcp *net.UDPConn
	source     netip.Addr
	send, recv Pattern

	workers, talking sync.WaitGroup
	// quiet is closed by hush and ends sending; a BYE may overtake the first frame.
	quiet chan struct{}
	hush  func()
	life  sync.Mutex
	// closed is guarded by life: no worker starts after it is set.
	closed bool

	mu    sync.Mutex
	stats StreamStats
	heard tracker
	// lastSR is the middle of the last sender report's NTP time, received at lastSRAt (RFC 3550 §6.4.1).
	lastSR   uint32
	lastSRAt time.Time
}

// StreamStats says what a side of a call sent and heard.
type StreamStats struct {
	// Sent and Received count RTP packets.
	Sent, Received int
	// Verified counts received frames whose two tones were the very ones expected at that place
	// of that call; Wrong counts the others.
	Verified, Wrong int
	// Lost counts frames missing up to the last one heard, including those before the first.
	Lost int
	// Refused counts packets from hosts other than the one allowed.
	Refused int
	// Reports counts the RTCP reports received.
	Reports int
	// Jitter is the interarrival jitter (RFC 3550 §6.4.1).
	Jitter time.Duration
	// DelayP50 and DelayP99 are percentiles of the time from the far end's send to the reception
	// here, 0 if nothing was heard. Both ends must share a clock.
	DelayP50, DelayP99 time.Duration
}

// openStream binds an even RTP port and the next odd one for RTCP at host (RFC 3550 §11).
func openStream(host netip.Addr) (*Stream, error) {
	var last error
	for range 64 {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
		if err != nil {
			return nil, fmt.Errorf("bind RTP: %w", err)
		}
		port := addrPort(c.LocalAddr()).Port()
		if port%2 != 0 {
			c.Close()
			continue
		}
		r, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, port+1)))
		if err != nil {
			last = err
			c.Close()
			continue
		}
		quiet := make(chan struct{})
		return &Stream{conn: c, rtcp: r, quiet: quiet, hush: sync.OnceFunc(func() { close(quiet) })}, nil
	}
	return nil, errors.Join(errors.New("no free pair of UDP ports"), last)
}

// Addr is where the stream receives RTP.
func (s *Stream) Addr() netip.AddrPort { return addrPort(s.conn.LocalAddr()) }

// start begins to listen: packets are taken from source only, and compared with recv.
func (s *Stream) start(source netip.Addr, send, recv Pattern) {
	s.mu.Lock()
	s.source, s.send, s.recv = source, send, recv
	s.heard = tracker{pattern: recv}
	s.mu.Unlock()
	s.work(&s.workers, s.receive)
	s.work(&s.workers, s.receiveReports)
}

// talk begins to send to remote; it does nothing on a closed stream.
func (s *Stream) talk(remote netip.AddrPort) {
	s.work(&s.talking, func() { s.transmit(remote) })
}

func (s *Stream) work(group *sync.WaitGroup, f func()) {
	s.life.Lock()
	defer s.life.Unlock()
	if !s.closed {
		group.Go(f)
	}
}

// silence ends sending, and returns when the last frame has left; it may still arrive.
func (s *Stream) silence() {
	s.hush()
	s.talking.Wait()
}

// close ends all and waits for it.
func (s *Stream) close() {
	s.life.Lock()
	s.closed = true
	s.life.Unlock()
	s.silence()
	s.conn.Close()
	s.rtcp.Close()
	s.workers.Wait()
}

// Stats returns the counters so far.
func (s *Stream) Stats() StreamStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	s.heard.fill(&st)
	return st
}

func (s *Stream) transmit(remote netip.AddrPort) {
	tick := time.NewTicker(frameTime)
	defer tick.Stop()
	begin := time.Now()
	for i := uint32(0); i < maxFrames; {
		// A late tick is made up for, so that the pace is true on a busy machine.
		for ; time.Since(begin) >= time.Duration(i)*frameTime && !s.hushed(); i++ {
			s.sendFrame(i, remote)
			if i%50 == 49 {
				s.sendReport(i, remote)
			}
		}
		select {
		case <-s.quiet:
			return
		case <-tick.C:
		}
	}
}

func (s *Stream) hushed() bool {
	select {
	case <-s.quiet:
		return true
	default:
		return false
	}
}

func (s *Stream) sendFrame(i uint32, remote netip.AddrPort) {
	p := rtp.Packet{
		Header: rtp.Header{
			Version:        2,
			Marker:         i == 0,
			SequenceNumber: s.send.Sequence() + uint16(i),
			Timestamp:      s.send.Timestamp() + i*frameSamples,
			SSRC:           s.send.SSRC(),
		},
		Payload: s.send.Frame(i),
	}
	if err := p.SetExtension(ntp64ID, ntpTime(time.Now())); err != nil {
		return // cannot be: 8 bytes fit a one-byte extension
	}
	b, err := p.Marshal()
	if err != nil {
		return
	}
	// A refused packet (ICMP) is a lost packet: the far end's count tells.
	if _, err := s.conn.WriteToUDPAddrPort(b, remote); err == nil {
		s.mu.Lock()
		s.stats.Sent++
		s.mu.Unlock()
	}
}

func (s *Stream) receive() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		now := time.Now()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // an ICMP error of an earlier send
		}
		s.mu.Lock()
		if from.Addr().Unmap() != s.source {
			s.stats.Refused++
		} else {
			s.heard.packet(buf[:n], now)
		}
		s.mu.Unlock()
	}
}

// Direct measures what the machine itself takes: two streams exchange n frames at host without an
// edge between them, and the delay of one of them is returned.
func Direct(ctx context.Context, host netip.Addr, n int) (StreamStats, error) {
	a, err := openStream(host)
	if err != nil {
		return StreamStats{}, err
	}
	defer a.close()
	b, err := openStream(host)
	if err != nil {
		return StreamStats{}, err
	}
	defer b.close()
	there, back := NewPattern("direct", Caller), NewPattern("direct", Callee)
	a.start(host, there, back)
	b.start(host, back, there)
	a.talk(b.Addr())
	b.talk(a.Addr())
	tick := time.NewTicker(frameTime)
	defer tick.Stop()
	for b.Stats().Verified < n {
		select {
		case <-ctx.Done():
			return b.Stats(), fmt.Errorf("direct streams: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return b.Stats(), nil
}

package rfc1350

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// maxFailures bounds the failed reads of one socket.
const maxFailures = 100

// patience is how long the server has for an answer before it is asked again; some clients repeat after 50 ms.
const patience = 2 * time.Second

// pair is the sockets of one transfer: one for the client, one for the server.
type pair struct {
	relay  *Relay
	client netip.AddrPort
	server netip.AddrPort // where requests go
	conns  [2]net.PacketConn
	timer  *time.Timer
	began  time.Time

	retired bool // guarded by relay.mu: it counts no more

	mu       sync.Mutex // guards what follows
	transfer *transfer
	answerer netip.AddrPort // the server's port for this transfer; not valid until it has answered
	asked    time.Time      // when the request was last sent there
	result   string
	ended    time.Time // when the result was known
	closed   bool
}

// ask sends the request to the server, again if it has not answered for patience: each makes it begin a transfer, and the
// second one of a put would empty the file of the first.
func (p *pair) ask(b []byte) {
	p.mu.Lock()
	due := !p.answerer.IsValid() && time.Since(p.asked) >= patience
	if due {
		p.asked = time.Now()
	}
	p.mu.Unlock()
	if due {
		p.write(server, b, p.server)
	}
}

// over tells whether the transfer has had its last packet.
func (p *pair) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.transfer.done
}

// run moves packets until both sockets are closed.
func (p *pair) run() {
	var work sync.WaitGroup
	for from := client; from <= server; from++ {
		work.Go(func() { p.pump(from) })
	}
	work.Wait()
	p.timer.Stop()
}

// pump moves what a side sends.
func (p *pair) pump(from side) {
	buf := make([]byte, p.transfer.largest()+1)
	for failures := 0; ; {
		n, addr, err := p.conns[from].ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // ICMP's word of an earlier packet; but a socket that does nothing else is broken
			if failures++; failures > maxFailures {
				p.close("socket")
				return
			}
			continue
		case n == len(buf):
			p.relay.count.drop("oversize")
			continue
		}
		p.receive(from, pinhole.AddrPortOf(addr), buf[:n])
	}
}

// receive takes one packet.
func (p *pair) receive(from side, source netip.AddrPort, b []byte) {
	p.mu.Lock()
	if reason := p.strangerLocked(from, source); reason != "" {
		p.mu.Unlock()
		p.stranger(from, source, b, reason)
		return
	}
	v := p.transfer.receive(from, b)
	if v.passes() && from == server {
		p.answerer = source
	}
	answerer, done, failed := p.answerer, p.transfer.done, p.transfer.failed
	if v.passes() {
		switch {
		case failed:
			p.concludeLocked("error")
		case done:
			p.concludeLocked("completed")
		}
		p.rearmLocked()
	}
	p.mu.Unlock()

	targets := [2]netip.AddrPort{p.client, answerer}
	switch {
	case v.fail != nil:
		targets[from] = source
		p.fail(v.fail, targets)
	case v.drop != "":
		p.relay.count.drop(v.drop)
	default:
		p.write(from.other(), b, targets[from.other()])
		if failed || done && !p.relay.retire(p) {
			p.close("")
		}
	}
}

// stranger drops what is not part of the transfer. A second one that the server has begun, because a request was
// repeated, is told to end (RFC 1350 §4).
func (p *pair) stranger(from side, source netip.AddrPort, b []byte, reason string) {
	p.relay.count.drop(reason)
	if q, err := parsePacket(b); reason == "unknown_tid" && err == nil && q.op != opError {
		p.write(from, errorPacket(codeUnknown, "unknown transfer ID"), source)
	}
}

// strangerLocked returns the reason for not hearing a source, "" for hearing it.
func (p *pair) strangerLocked(from side, source netip.AddrPort) string {
	switch {
	case from == client && source != p.client, from == server && source.Addr() != p.server.Addr():
		return "source"
	case from == server && p.answerer.IsValid() && source != p.answerer:
		return "unknown_tid"
	}
	return ""
}

// rearmLocked sets the time after which the transfer ends by itself.
func (p *pair) rearmLocked() {
	d := p.relay.cfg.Idle
	if p.transfer.done {
		d = min(linger, d)
	}
	if !p.closed {
		p.timer.Reset(d)
	}
}

// fail ends the transfer with an ERROR to both sides, where there is one.
func (p *pair) fail(f *fault, targets [2]netip.AddrPort) {
	p.relay.count.drop(f.reason)
	for to, at := range targets {
		if at.IsValid() {
			p.write(side(to), errorPacket(f.code, f.message), at)
		}
	}
	p.close("refused")
}

// write sends a packet from the edge's socket on a side. What gets lost is sent again by who misses the answer.
func (p *pair) write(to side, b []byte, at netip.AddrPort) {
	_, _ = p.conns[to].WriteTo(b, net.UDPAddrFromAddrPort(at))
}

// close ends the transfer; the first result counts.
func (p *pair) close(result string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.concludeLocked(result)
	p.closed = true
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *pair) concludeLocked(result string) {
	if p.result == "" {
		p.result, p.ended = result, time.Now()
	}
}

// report says what became of the transfer.
func (p *pair) report() {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.transfer
	p.relay.count.ended(p.result, t.request.write, t.octets)
	op := "get"
	if t.request.write {
		op = "put"
	}
	p.relay.log.Info("tftp transfer ended", zap.String("op", op), zap.String("name", t.request.name), zap.String("result", p.result),
		zap.Stringer("client", p.client), zap.Stringer("server", p.server), zap.Int64("octets", t.octets), zap.Duration("duration", p.ended.Sub(p.began)))
}

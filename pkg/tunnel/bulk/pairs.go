package bulk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"edged.dev/edged/pkg/splice"
)

// Device names who may use a ticket.
type Device = [32]byte

// Ticket admits one device once.
type Ticket [16]byte

const (
	valid    = 30 * time.Second // how long a ticket is good, and the first of two waits for the other
	maxPairs = 4096             // that wait
	perOwner = 64               // of those, asked for by one device
	goOn     = 'G'              // the relay's answer when both are there
)

// Errors of Serve and Issue.
var (
	ErrTicket = errors.New("no such ticket for this device")
	ErrAlone  = errors.New("the other device did not come")
	ErrFull   = errors.New("too many tickets wait")
)

// Carrier is a connection whose TLS can be dropped; both ends do it behind the same byte.
type Carrier interface {
	net.Conn
	Unwrap() (*net.TCPConn, error)
}

// Joiner joins connections, as those of package splice do.
type Joiner interface {
	Join(ctx context.Context, a, b net.Conn, o splice.Options) splice.Result
}

// Pairs are a relay's tickets. Its methods may be called concurrently.
type Pairs struct {
	joiner Joiner

	mu      sync.Mutex
	tickets map[Ticket]*pair
	owners  map[Device]int
}

// pair is two devices that are to be joined.
type pair struct {
	ctx     context.Context //nolint:containedctx // of both who come with its tickets
	tickets [2]Ticket
	devices [2]Device
	first   *visit // waits; nil again when the second has taken it
	timer   *time.Timer
	stop    func() bool // nobody waits for the end of ctx any more
	over    bool
}

// visit is the first of a pair, while it waits.
type visit struct {
	carrier Carrier
	side    int
	done    chan struct{} // closed when the join has ended
}

// NewPairs returns no tickets.
func NewPairs(j Joiner) *Pairs {
	return &Pairs{joiner: j, tickets: map[Ticket]*pair{}, owners: map[Device]int{}}
}

// Issue returns tickets for two devices to meet, good for 30 s, once. The
// first one asked for it. When ctx ends, so does what they are used for.
func (p *Pairs) Issue(ctx context.Context, a, b Device) (forA, forB Ticket, err error) {
	pr := &pair{ctx: ctx, devices: [2]Device{a, b}}
	for i := range pr.tickets {
		if _, err := rand.Read(pr.tickets[i][:]); err != nil {
			return forA, forB, fmt.Errorf("ticket: %w", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.owners[a] >= perOwner || len(p.tickets) >= 2*maxPairs {
		return forA, forB, ErrFull
	}
	p.owners[a]++
	p.tickets[pr.tickets[0]], p.tickets[pr.tickets[1]] = pr, pr
	pr.timer = time.AfterFunc(valid, func() { p.forget(pr) })
	pr.stop = context.AfterFunc(ctx, func() { p.forget(pr) })
	return pr.tickets[0], pr.tickets[1], nil
}

// forget lets nobody use a pair's tickets any more.
func (p *Pairs) forget(pr *pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgetLocked(pr)
}

func (p *Pairs) forgetLocked(pr *pair) {
	if pr.over {
		return
	}
	pr.over = true
	pr.timer.Stop()
	pr.stop()
	delete(p.tickets, pr.tickets[0])
	delete(p.tickets, pr.tickets[1])
	if p.owners[pr.devices[0]]--; p.owners[pr.devices[0]] == 0 {
		delete(p.owners, pr.devices[0])
	}
}

// Waiting returns how many pairs are not complete.
func (p *Pairs) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, v := range p.owners {
		n += v
	}
	return n
}

// Serve takes a device's connection that came with a ticket, and returns when
// it has ended. bytes is what passed between the two, told once for both.
func (p *Pairs) Serve(ctx context.Context, c Carrier, who Device, t Ticket) (bytes uint64, err error) {
	defer c.Close()
	mine := &visit{c, 0, make(chan struct{})}
	pr, first := p.redeem(who, t, mine)
	if pr == nil {
		return 0, ErrTicket
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(pr.ctx, cancel)()
	if first == nil {
		return 0, p.wait(ctx, pr, mine)
	}
	defer close(first.done)
	var ends [2]Carrier
	ends[mine.side], ends[first.side] = c, first.carrier
	return p.join(ctx, ends)
}

// redeem takes a ticket. first is who waits already; nil if the caller is first.
func (p *Pairs) redeem(who Device, t Ticket, mine *visit) (pr *pair, first *visit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr = p.tickets[t]
	if pr == nil {
		return nil, nil
	}
	if t == pr.tickets[1] {
		mine.side = 1
	}
	if pr.devices[mine.side] != who {
		return nil, nil // the ticket stays good for its device
	}
	delete(p.tickets, t)
	if first, pr.first = pr.first, mine; first != nil {
		p.forgetLocked(pr)
	}
	return pr, first
}

// wait waits for the other device.
func (p *Pairs) wait(ctx context.Context, pr *pair, mine *visit) error {
	late := time.NewTimer(valid)
	defer late.Stop()
	select {
	case <-mine.done:
		return nil
	case <-ctx.Done():
	case <-late.C:
	}
	p.mu.Lock()
	alone := pr.first == mine
	p.forgetLocked(pr)
	p.mu.Unlock()
	if alone {
		return ErrAlone
	}
	<-mine.done // the other came at the last moment
	return nil
}

// join drops the TLS of both and splices what is below.
func (p *Pairs) join(ctx context.Context, ends [2]Carrier) (uint64, error) {
	var tcp [2]*net.TCPConn
	var errs [2]error
	var both sync.WaitGroup
	for i, c := range ends {
		both.Go(func() {
			c.SetDeadline(time.Now().Add(valid))
			if _, errs[i] = c.Write([]byte{goOn}); errs[i] == nil {
				tcp[i], errs[i] = c.Unwrap()
			}
		})
	}
	both.Wait()
	if err := errors.Join(errs[0], errs[1]); err != nil {
		for _, c := range ends {
			c.Close()
		}
		return 0, fmt.Errorf("bulk: %w", err)
	}
	watchful(tcp[0])
	watchful(tcp[1])
	r := p.joiner.Join(ctx, tcp[0], tcp[1], splice.Options{})
	return r.Bytes[0] + r.Bytes[1], r.Err
}

// Enter waits, as a device that has dialed with its ticket, until the other is
// there too, and drops the TLS. It closes c if there is an error.
func Enter(ctx context.Context, c Carrier) (*net.TCPConn, error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	_, err := io.ReadFull(c, b[:])
	if err == nil && b[0] != goOn {
		err = fmt.Errorf("answer %#x", b[0])
	}
	var tcp *net.TCPConn
	if err == nil {
		tcp, err = c.Unwrap()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("bulk: %w", err)
	}
	return tcp, nil
}

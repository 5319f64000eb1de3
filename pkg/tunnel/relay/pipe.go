package relay

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"edged.dev/edged/pkg/tunnel/mux"
)

// pipe moves bytes, their end, resets and datagrams between the ends of a flow until both ways have ended. It
// returns how many bytes went to the called device and back.
func (r *Relay) pipe(ctx context.Context, f *flow, budgets []*bucket) [2]uint64 {
	ctx, cancel := context.WithCancel(ctx)
	var bytes [2]uint64
	var ways, datagrams sync.WaitGroup
	for i := range f.ends {
		from, to := f.ends[i], f.ends[1-i]
		ways.Go(func() { bytes[i] = r.move(ctx, to, from, budgets) })
		if f.Datagrams {
			datagrams.Go(func() { r.moveDatagrams(ctx, to, from, budgets) })
		}
	}
	ways.Wait()
	cancel()
	for _, s := range f.ends {
		s.Close()
	}
	datagrams.Wait()
	return bytes
}

// move copies one way. An end is told as an end, a reset as a reset with its code.
func (r *Relay) move(ctx context.Context, to, from *mux.Stream, budgets []*bucket) uint64 {
	m := &meter{done: ctx.Done(), to: to, budgets: budgets, count: &r.count.bytes}
	_, err := from.WriteTo(m)
	switch {
	case m.err != nil:
		from.CloseRead(codeOf(m.err))
	case err != nil:
		to.Reset(codeOf(err))
	default:
		to.CloseWrite()
	}
	return m.total
}

// meter counts what is written, and holds it back where a budget is used up.
type meter struct {
	done    <-chan struct{} // ends the wait for a budget
	to      *mux.Stream
	budgets []*bucket
	count   *atomic.Uint64
	total   uint64
	err     error
}

// Write implements [io.Writer].
func (m *meter) Write(b []byte) (n int, err error) {
	if m.err = wait(m.done, m.budgets, len(b)); m.err == nil {
		n, m.err = m.to.Write(b)
	}
	m.total += uint64(n)
	m.count.Add(uint64(n))
	return n, m.err
}

// moveDatagrams copies datagrams one way until ctx or the stream ends. What a budget has no room for is dropped.
func (r *Relay) moveDatagrams(ctx context.Context, to, from *mux.Stream, budgets []*bucket) {
	for {
		b, err := from.ReceiveDatagram(ctx)
		if err != nil {
			return
		}
		if !affords(budgets, len(b), time.Now()) {
			r.count.datagramsDropped.Add(1)
			continue
		}
		r.count.datagrams.Add(1)
		r.count.bytes.Add(uint64(len(b)))
		if to.SendDatagram(b) != nil {
			r.count.datagramsDropped.Add(1)
		}
	}
}

// affords takes n from all budgets if none of them would be more than a second behind, else from none: what is dropped
// costs nobody anything, least of all who only hears it.
func affords(budgets []*bucket, n int, now time.Time) bool {
	for _, b := range budgets {
		if b.behind(n, now) > time.Second {
			return false
		}
	}
	for _, b := range budgets {
		b.take(n, now)
	}
	return true
}

// wait waits until n bytes are within all budgets, or done is closed.
func wait(done <-chan struct{}, budgets []*bucket, n int) error {
	var longest time.Duration
	for _, b := range budgets {
		longest = max(longest, b.take(n, time.Now()))
	}
	if longest == 0 {
		return nil
	}
	t := time.NewTimer(longest)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-done:
		return context.Canceled
	}
}

// totals are counted on every write.
type totals struct {
	bytes, datagrams, datagramsDropped atomic.Uint64
}

package mux

import (
	"context"
	"errors"
	"io"
	"sync"
)

// Join carries everything from each stream to the other: bytes, with the back
// pressure of whoever reads, ends of directions, resets with their codes, and
// datagrams if both have them. It returns when both directions have ended, with the bytes
// from a to b and from b to a; err is a *ResetError or *SessionError if not
// both ended in order.
func Join(a, b *Stream) (ab, ba int64, err error) {
	var wg sync.WaitGroup
	var errA, errB error
	ctx, cancel := context.WithCancel(context.Background())
	if a.datagrams && b.datagrams {
		wg.Go(func() { forward(ctx, b, a) })
		wg.Go(func() { forward(ctx, a, b) })
	}
	var bytes sync.WaitGroup
	bytes.Go(func() { ab, errA = carry(b, a) })
	bytes.Go(func() { ba, errB = carry(a, b) })
	bytes.Wait()
	cancel()
	wg.Wait()
	return ab, ba, errors.Join(errA, errB)
}

// carry moves one direction, and its end.
func carry(dst, src *Stream) (int64, error) {
	var total int64
	for {
		n, rerr, werr := src.move(dst)
		total += int64(n)
		switch {
		case errors.Is(rerr, io.EOF):
			return total, dst.CloseWrite()
		case rerr != nil:
			dst.Reset(codeOf(rerr))
			return total, rerr
		case werr != nil:
			src.CloseRead(codeOf(werr))
			return total, werr
		}
	}
}

// codeOf returns the code to pass on for err.
func codeOf(err error) Code {
	var r *ResetError
	var s *SessionError
	switch {
	case errors.As(err, &r):
		return r.Code
	case errors.As(err, &s):
		return s.Code
	}
	return CodeInternal
}

func forward(ctx context.Context, dst, src *Stream) {
	for {
		b, err := src.ReceiveDatagram(ctx)
		if err != nil {
			return
		}
		if dst.sendDatagram(b) != nil {
			return
		}
	}
}

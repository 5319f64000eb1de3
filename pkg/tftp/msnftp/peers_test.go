package msnftp

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"edged.dev/edged/pkg/pinhole"
)

// testJoiner copies by goroutines, as the splice joiner does by system calls.
type testJoiner struct{}

func (*testJoiner) Join(ctx context.Context, conns [2]net.Conn, o JoinOptions) error {
	defer context.AfterFunc(ctx, func() { conns[0].Close(); conns[1].Close() })()
	var n [2]atomic.Uint64
	o.Started(func(s pinhole.Side) uint64 { return n[s].Load() })
	var both sync.WaitGroup
	var errs [2]error
	for i := range conns {
		both.Go(func() {
			n[i].Store(uint64(len(o.Prefix[i])))
			conns[1-i].Write(o.Prefix[i])
			b := make([]byte, 4096)
			for {
				k, err := conns[i].Read(b)
				if n[i].Add(uint64(k)) > uint64(o.Limit[i]) {
					errs[i] = ErrLimit
					conns[0].Close()
					conns[1].Close()
					return
				}
				conns[1-i].Write(b[:k])
				if err != nil {
					closeWrite(conns[1-i])
					if !errors.Is(err, io.EOF) {
						errs[i] = err
					}
					return
				}
			}
		})
	}
	both.Wait()
	conns[0].Close()
	conns[1].Close()
	return errors.Join(errs[0], errs[1])
}

// testCheck lets files pass that do not say "virus", and MACs that are "bWFj".
type testCheck struct {
	got    []byte
	slow   func()
	denied error
}

var errVirus = errors.New("a virus")

func (c *testCheck) Write(b []byte) (int, error) {
	c.got = append(c.got, b...)
	return len(b), c.denied
}

func (c *testCheck) Verdict() error {
	if c.slow != nil {
		c.slow()
	}
	if string(c.got) == "virus" {
		return errVirus
	}
	return nil
}

func (c *testCheck) MAC(sum string) error {
	if sum != "bWFj" {
		return errors.New("not the MAC")
	}
	return nil
}

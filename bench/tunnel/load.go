package main

import (
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// sink takes what comes and counts it.
type sink struct {
	net.Listener
	counted chan int64   // of each connection, when it has ended
	total   atomic.Int64 // of all, as it comes
}

func newSink(at place) (*sink, error) {
	s := &sink{counted: make(chan int64, 16)} // those that nobody waits for are few
	err := at.within(func() (err error) {
		s.Listener, err = net.Listen("tcp", at.ip+":0")
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go s.take(c)
		}
	}()
	return s, nil
}

func (s *sink) take(c net.Conn) {
	var n int64
	for buf := make([]byte, 256<<10); ; {
		got, err := c.Read(buf)
		n += int64(got)
		s.total.Add(int64(got))
		if err != nil {
			break // what arrived counts
		}
	}
	c.Close()
	s.counted <- n
}

// measure sends for a time, and waits until all has arrived.
func (w *way) measure(b *builder, d time.Duration) (figures, error) {
	before, err := w.cpu()
	if err != nil {
		return figures{}, err
	}
	c, err := b.near.dial(w.entry)
	if err != nil {
		return figures{}, err
	}
	defer c.Close()
	start := time.Now()
	buf := make([]byte, 256<<10)
	for time.Since(start) < d {
		if _, err := c.Write(buf); err != nil {
			return figures{}, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return figures{}, err
	}
	n, err := b.sink.end()
	if err != nil {
		return figures{}, err
	}
	took := time.Since(start).Seconds()
	after, err := w.cpu()
	if err != nil {
		return figures{}, err
	}
	return figures{float64(n) * 8e-9 / took, (after - before).Seconds() / (float64(n) * 1e-9)}, nil
}

// end waits for the end of a connection, and returns how much came by it.
func (s *sink) end() (n int64, err error) {
	for late := time.After(time.Minute); n == 0; { // connections that only tried whether somebody listens have no bytes
		select {
		case n = <-s.counted:
		case <-late:
			return 0, errors.New("the sink waits for the end")
		}
	}
	return n, nil
}

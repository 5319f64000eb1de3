package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"edged.dev/edged/bench/veth"
)

const (
	messageSize = 64
	bulkWrite   = 128 << 10
	// warm is how long a load runs before it is measured.
	warm = 300 * time.Millisecond
)

// server is the far end: a sink and an echo.
type server struct {
	listeners []net.Listener
	sunk      atomic.Uint64
}

func (r *rig) serve() (*server, error) {
	s := &server{}
	for port, handle := range map[int]func(*net.TCPConn){sinkPort: s.sink, echoPort: echo} {
		err := veth.Within(r.Server, func() error {
			ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", veth.ServerIP, port))
			if err != nil {
				return fmt.Errorf("server: %w", err)
			}
			s.listeners = append(s.listeners, ln)
			go accept(ln, handle)
			return nil
		})
		if err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *server) close() {
	for _, ln := range s.listeners {
		ln.Close()
	}
}

func accept(ln net.Listener, handle func(*net.TCPConn)) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			defer c.Close()
			handle(c.(*net.TCPConn))
		}()
	}
}

// sink discards what comes without copying it (MSG_TRUNC), and counts it.
func (s *server) sink(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, 1<<20)
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			var errno error
			n, _, errno = syscall.Recvfrom(int(fd), b, syscall.MSG_TRUNC|syscall.MSG_DONTWAIT)
			return !errors.Is(errno, syscall.EAGAIN)
		})
		if err != nil || n <= 0 {
			return
		}
		s.sunk.Add(uint64(n))
	}
}

func echo(c *net.TCPConn) {
	b := make([]byte, messageSize)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

func (r *rig) dial(ip string, port int) (c net.Conn, err error) {
	err = veth.Within(r.Client, func() error {
		c, err = net.DialTimeout("tcp", fmt.Sprintf("%s:%d", ip, port), 2*time.Second)
		return err
	})
	return c, err
}

// load is n connections that a function works on until they are closed.
type load struct {
	conns []net.Conn
	done  sync.WaitGroup
	mu    sync.Mutex
	// failed is the first error before stop.
	failed  error
	stopped bool
}

func (r *rig) load(ip string, port, n int, work func(net.Conn) error) (*load, error) {
	l := &load{}
	for range n {
		c, err := r.dial(ip, port)
		if err != nil {
			l.stop()
			return nil, err
		}
		l.conns = append(l.conns, c)
	}
	for _, c := range l.conns {
		l.done.Go(func() {
			if err := work(c); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				if !l.stopped && l.failed == nil {
					l.failed = err
				}
			}
		})
	}
	return l, nil
}

// stop ends the load, and returns what went wrong before.
func (l *load) stop() error {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.done.Wait()
	return l.failed
}

// bulk is a measurement of transfers.
type bulk struct {
	// gbits is Gb/s, cpu the gateway's CPU seconds per GB (10⁹ bytes).
	gbits, cpu float64
}

// bulk measures n transfers through a gateway.
func (r *rig) bulk(g gateway, s *server, n int, d time.Duration) (bulk, error) {
	l, err := r.load(g.target, sinkPort, n, func(c net.Conn) error {
		b := make([]byte, bulkWrite)
		for {
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return bulk{}, err
	}
	m, err := r.over(d, s.sunk.Load)
	if err = errors.Join(err, l.stop()); err != nil {
		return bulk{}, err
	}
	if m.n == 0 {
		return bulk{}, errors.New("nothing arrives")
	}
	return bulk{float64(m.n) * 8 / m.took.Seconds() / 1e9, m.cpu.Seconds() / (float64(m.n) / 1e9)}, nil
}

// interval is what happened between two looks.
type interval struct {
	n         uint64
	took, cpu time.Duration
}

// over counts for d, after a time to warm up.
func (r *rig) over(d time.Duration, count func() uint64) (interval, error) {
	time.Sleep(warm)
	cpu, err := r.CPU()
	if err != nil {
		return interval{}, err
	}
	n, at := count(), time.Now()
	time.Sleep(d)
	took, end := time.Since(at), count()
	after, err := r.CPU()
	return interval{end - n, took, after - cpu}, err
}

// talk is a measurement of messages there and back.
type talk struct {
	// rate is messages there and back per second, cpu the gateway's µs for one.
	rate, cpu float64
	p50, p99  time.Duration
}

// talk measures n connections that send a message when the last one has come back.
func (r *rig) talk(g gateway, n int, d time.Duration) (talk, error) {
	var count atomic.Uint64
	var mu sync.Mutex
	var all []time.Duration
	l, err := r.load(g.target, echoPort, n, func(c net.Conn) error {
		own := make([]time.Duration, 0, 1<<16)
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
		}()
		b := make([]byte, messageSize)
		for {
			at := time.Now()
			if _, err := c.Write(b); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return err
			}
			own = append(own, time.Since(at))
			count.Add(1)
		}
	})
	if err != nil {
		return talk{}, err
	}
	m, err := r.over(d, count.Load)
	if err = errors.Join(err, l.stop()); err != nil {
		return talk{}, err
	}
	if m.n == 0 {
		return talk{}, errors.New("no message comes back")
	}
	slices.Sort(all)
	return talk{float64(m.n) / m.took.Seconds(), float64(m.cpu.Microseconds()) / float64(m.n),
		all[len(all)/2], all[len(all)*99/100]}, nil
}

// figures are what one round measured of one gateway.
type figures struct {
	bulk1, bulk8  bulk
	talk1, talk64 talk
}

func (f figures) String() string {
	return fmt.Sprintf("bulk 1/8: %5.2f %5.2f Gb/s, %.3f %.3f s/GB; messages 64: %6.0f/s %5.2f µs; 1: p50 %v p99 %v",
		f.bulk1.gbits, f.bulk8.gbits, f.bulk1.cpu, f.bulk8.cpu, f.talk64.rate, f.talk64.cpu, f.talk1.p50, f.talk1.p99)
}

func (r *rig) measure(g gateway, s *server, d time.Duration) (f figures, err error) {
	stop, err := r.launch(g)
	if err != nil {
		return f, err
	}
	defer stop()
	if f.bulk1, err = r.bulk(g, s, 1, d); err != nil {
		return f, fmt.Errorf("bulk: %w", err)
	}
	if f.bulk8, err = r.bulk(g, s, 8, d); err != nil {
		return f, fmt.Errorf("bulk: %w", err)
	}
	if f.talk1, err = r.talk(g, 1, d); err != nil {
		return f, fmt.Errorf("messages: %w", err)
	}
	if f.talk64, err = r.talk(g, 64, d); err != nil {
		return f, fmt.Errorf("messages: %w", err)
	}
	return f, nil
}

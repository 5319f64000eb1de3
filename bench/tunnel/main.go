// Command tunnel measures a stream through the tunnel, from one agent by the relay to another, beside what others
// use for that: a pair of stunnels, OpenSSH's -L, HAProxy in TCP mode (one hop, no encryption) and TCP alone. All are
// processes of this machine, over loopback, in turn in every round. It needs the Debian packages haproxy, stunnel4 and
// openssh; those that are missing are left out, loudly.
//
//	source ─► entry [ agent a ─ relay ─ agent b | stunnel ─ stunnel | ssh ─ sshd | haproxy ] ─► sink
//
// The load takes part of the same processors, so trust ratios and CPU per GB, which is that of the tunnel's processes
// alone.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"edged.dev/edged/bench/report"
)

type options struct {
	rounds      int
	time        time.Duration
	binary, out string
	base, only  string
}

// figures are what one measurement has found.
type figures struct {
	gbits, cpu float64 // Gb/s; seconds of CPU per GB
}

func main() {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of all in turn")
	flag.DurationVar(&o.time, "time", 2*time.Second, "length of one measurement")
	flag.StringVar(&o.binary, "edged", filepath.Join("bin", "edged"), "edged `binary`")
	flag.StringVar(&o.base, "base", "", "another edged `binary` to compare with")
	flag.StringVar(&o.only, "only", "", "measure only these `ways`, by their names and commas")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "tunnel.json"), "report `file`")
	flag.Parse()
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/tunnel:", err)
		os.Exit(1)
	}
}

func bench(o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-tunnel")
	if err != nil {
		return err
	}
	b := &builder{dir: dir, base: o.base, only: o.only}
	defer func() {
		b.stop()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if b.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if b.sink, err = newSink(); err != nil {
		return err
	}
	ways, err := b.ways()
	if err != nil {
		return err
	}
	results := map[string][]figures{}
	for round := range o.rounds {
		for _, w := range ways {
			f, err := w.measure(b.sink, o.time)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d, %-12s %6.2f Gb/s, %5.2f CPU-s/GB\n", round+1, w.name, f.gbits, f.cpu)
			results[w.name] = append(results[w.name], f)
		}
	}
	rows := compare(results, ways)
	if err := report.Write(o.out, rows); err != nil {
		return err
	}
	return report.Table(os.Stdout, rows)
}

// compare sets both of edged's ways beside each of the others.
func compare(results map[string][]figures, ways []*way) (rows []report.Row) {
	speed := report.Metric[figures]{Name: "Gb/s", Better: "higher", Of: func(f figures) float64 { return f.gbits }}
	cpu := report.Metric[figures]{Name: "CPU-s/GB", Better: "lower", Of: func(f figures) float64 { return f.cpu }}
	for _, ours := range []string{"bulk", "in-mux"} {
		if len(results[ours]) == 0 {
			continue
		}
		for _, w := range ways {
			if w.name == "bulk" || w.name == "in-mux" {
				continue
			}
			rows = append(rows, report.Compare(ours, w.name, speed, results[ours], results[w.name]))
			if len(w.procs) > 0 {
				rows = append(rows, report.Compare(ours, w.name, cpu, results[ours], results[w.name]))
			}
		}
	}
	return rows
}

// sink takes what comes and counts it.
type sink struct {
	net.Listener
	counted chan int64 // of each connection, when it has ended
}

func newSink() (*sink, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{ln, make(chan int64, 16)} // those that nobody waits for are few
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				n, _ := io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}) // what arrived counts
				c.Close()
				s.counted <- n
			}()
		}
	}()
	return s, nil
}

// measure sends for a time, and waits until all has arrived.
func (w *way) measure(s *sink, d time.Duration) (figures, error) {
	before, err := w.cpu()
	if err != nil {
		return figures{}, err
	}
	c, err := net.Dial("tcp", w.entry)
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
	var n int64
	for late := time.After(time.Minute); n == 0; { // connections that only tried whether somebody listens have no bytes
		select {
		case n = <-s.counted:
		case <-late:
			return figures{}, errors.New("the sink waits for the end")
		}
	}
	took := time.Since(start).Seconds()
	after, err := w.cpu()
	if err != nil {
		return figures{}, err
	}
	return figures{float64(n) * 8e-9 / took, (after - before).Seconds() / (float64(n) * 1e-9)}, nil
}

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"text/tabwriter"
	"time"

	"edged.dev/edged/bench/delay"
	"edged.dev/edged/bench/report"
)

// holdLimit is what the path holds at most in each direction, in bytes: 20 ms of 13 Gb/s.
const holdLimit = 32 << 20

// delayed are the figures of a way over the path in one round. Streams go to the far place.
type delayed struct {
	mbits        float64 // from when the stream has run for a while
	idle, loaded probed  // datagrams by themselves, and beside the stream
}

// benchDelay measures over a path of the round trip time that is asked for.
func benchDelay(o options) (err error) {
	if err := first(); err != nil {
		return err
	}
	path, err := delay.New("tundelay", delay.Config{OneWay: o.rtt / 2, Limit: holdLimit, Rate: o.rate * 1e6, Queue: o.queue, Congestion: o.congestion})
	if err != nil {
		return err
	}
	defer func() {
		stats, closing := path.Close()
		fmt.Fprintf(os.Stderr, "the path: %d packets, %d dropped, %d held for 1 ms too long, %v at most\n", stats.Packets, stats.Dropped, stats.Late, stats.Latest)
		err = errors.Join(err, closing)
	}()
	b, err := newBuilder(o, place{path.Near, delay.NearIP.String()}, place{path.Far, delay.FarIP.String()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.startEcho(); err != nil {
		return err
	}
	ways, err := b.ways([]wayMaker{
		{"tcp", b.plain},
		{"stunnel", b.stunnel},
		{"in-mux", func() (*way, error) { return b.edged("in-mux", b.binary, "tls", inMux) }},
		{"in-mux-base", func() (*way, error) { return b.edged("in-mux-base", b.base, "tls", inMux) }},
		{"in-mux-quic", func() (*way, error) { return b.edged("in-mux-quic", b.binary, "quic", inMux) }},
		{"bulk", func() (*way, error) { return b.edged("bulk", b.binary, "tls", "") }},
		{"bulk-base", func() (*way, error) { return b.edged("bulk-base", b.base, "tls", "") }},
	})
	if err != nil {
		return err
	}
	results := map[string][]delayed{}
	for round := range o.rounds {
		for _, w := range ways {
			d, err := w.measureDelayed(b, o)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d, %-12s %5.0f Mb/s; datagrams there, idle %s, beside it %s\n", round+1, w.name, d.mbits, d.idle, d.loaded)
			results[w.name] = append(results[w.name], d)
		}
	}
	rows := compareDelayed(ways, results)
	if err := report.Write(o.out, rows); err != nil {
		return err
	}
	tableDelayed(ways, results)
	return report.Table(os.Stdout, rows)
}

// firstEnv marks the process that runs before others.
const firstEnv = "BENCH_TUNNEL_FIRST"

// first runs this command again, and all that it starts, before what else runs on the machine: there, each of the many
// wake-ups on a datagram's way would wait its turn. It returns nil in the process that does.
func first() error {
	if os.Getenv(firstEnv) != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	chrt, err := exec.LookPath("chrt")
	if err != nil {
		return fmt.Errorf("%w: apt-get install util-linux", err)
	}
	return syscall.Exec(chrt, append([]string{"chrt", "--rr", "1", self}, os.Args[1:]...), append(os.Environ(), firstEnv+"=1"))
}

func (p probed) String() string {
	return fmt.Sprintf("p50 %.1f p99 %.1f ms (%d lost)", percentile(p.Up, .5), percentile(p.Up, .99), p.Lost)
}

// measureDelayed sends datagrams, then a stream, and datagrams again while it flows.
func (w *way) measureDelayed(b *builder, o options) (d delayed, err error) {
	if w.datagrams != "" {
		if d.idle, err = b.probe(w.datagrams, o.time); err != nil {
			return d, err
		}
	}
	c, err := b.near.dial(w.entry)
	if err != nil {
		return d, err
	}
	defer c.Close()
	sent := make(chan error, 1)
	stop := make(chan struct{})
	go func() { sent <- flood(c, stop) }()
	time.Sleep(o.warm)
	from, began := b.sink.total.Load(), time.Now()
	if w.datagrams != "" {
		d.loaded, err = b.probe(w.datagrams, o.time)
	} else {
		time.Sleep(o.time)
	}
	d.mbits = float64(b.sink.total.Load()-from) * 8e-6 / time.Since(began).Seconds()
	close(stop)
	if failed := errors.Join(err, <-sent, c.(*net.TCPConn).CloseWrite()); failed != nil {
		return d, failed
	}
	_, err = b.sink.end()
	return d, err
}

// flood writes until it is told to stop.
func flood(c net.Conn, stop chan struct{}) error {
	for buf := make([]byte, 256<<10); ; {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

// compareDelayed sets streams beside plain TCP, and datagrams beside a stream beside those alone.
func compareDelayed(ways []*way, results map[string][]delayed) (rows []report.Row) {
	speed := report.Metric[delayed]{Name: "Mb/s", Better: "higher", Of: func(d delayed) float64 { return d.mbits }}
	for _, w := range ways {
		if w.name != "tcp" && len(results["tcp"]) > 0 {
			rows = append(rows, report.Compare(w.name, "tcp", speed, results[w.name], results["tcp"]))
		}
	}
	for _, w := range ways {
		if w.datagrams == "" {
			continue
		}
		var idle, loaded []probed
		for _, d := range results[w.name] {
			idle, loaded = append(idle, d.idle), append(loaded, d.loaded)
		}
		for _, m := range []report.Metric[probed]{
			{Name: "datagram there, p50 ms", Better: "lower", Of: func(p probed) float64 { return percentile(p.Up, .5) }},
			{Name: "datagram there, p99 ms", Better: "lower", Of: func(p probed) float64 { return percentile(p.Up, .99) }},
			{Name: "datagram and answer, p99 ms", Better: "lower", Of: func(p probed) float64 { return percentile(p.RTT, .99) }},
		} {
			rows = append(rows, report.Compare(w.name, "idle", m, loaded, idle))
		}
	}
	return rows
}

// tableDelayed prints all rounds' datagrams together.
func tableDelayed(ways []*way, results map[string][]delayed) {
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "datagrams\tidle there p50\tp99\tand back p50\tp99\tbeside a stream there p50\tp99\tand back p50\tp99 ms\tlost")
	for _, w := range ways {
		if w.datagrams == "" {
			continue
		}
		var idle, loaded probed
		for _, d := range results[w.name] {
			idle.add(d.idle)
			loaded.add(d.loaded)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d of %d\n", w.name, idle.row(), loaded.row(), idle.Lost+loaded.Lost, idle.sent()+loaded.sent())
	}
	tw.Flush()
}

func (p *probed) add(o probed) {
	p.Up, p.RTT, p.Lost = append(p.Up, o.Up...), append(p.RTT, o.RTT...), p.Lost+o.Lost
}

func (p *probed) sent() int { return len(p.RTT) + p.Lost }

func (p *probed) row() string {
	return fmt.Sprintf("%.1f\t%.1f\t%.1f\t%.1f", percentile(p.Up, .5), percentile(p.Up, .99), percentile(p.RTT, .5), percentile(p.RTT, .99))
}

// Command mailbox measures how many durable messages a second a relay's mailboxes take: edged's store (bbolt, one transaction
// for all that waited) beside an embedded NATS JetStream that syncs always, fed message by message and by atomic batches of
// all that waited, and beside plain files: a log that is only appended to, which is the floor that a disk sets and no store.
// Every round has all of them in turn, in fresh folders of the same disk. It is a module of its own, so that the
// product does not depend on its peers.
//
//	64 writers ─► store ─► acknowledged once synced      then one reader: read, acknowledge, delete
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"edged.dev/edged/bench/report"
)

type options struct {
	rounds, writers, devices int
	time                     time.Duration
	dir, out                 string
}

func main() {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of all in turn")
	flag.IntVar(&o.writers, "writers", 64, "senders at once")
	flag.IntVar(&o.devices, "devices", 10_000, "mailboxes")
	flag.DurationVar(&o.time, "time", 2*time.Second, "length of one measurement")
	flag.StringVar(&o.dir, "dir", "", "folder on the disk to measure; the temporary one if empty")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "mailbox.json"), "report `file`")
	flag.Parse()
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/mailbox:", err)
		os.Exit(1)
	}
}

// engine is what is measured. put returns once the message is durable; it is called by many at once. drain reads all messages,
// acknowledges them and returns how many there were.
type engine interface {
	put(writer, device int, body []byte) error
	drain() (int, error)
	close() error
}

func engines() []struct {
	name string
	open func(dir string) (engine, error)
} {
	return []struct {
		name string
		open func(dir string) (engine, error)
	}{
		{"edged", openEdged}, {"JetStream", openJetStream}, {"JetStream atomic batch", openBatches}, {"log file (floor)", openLog},
	}
}

// figures are those of one round.
type figures struct{ put, drain float64 } // messages a second

func bench(o options) error {
	var rows []report.Row
	metrics := []report.Metric[figures]{
		{Name: "durable messages/s", Better: "higher", Of: func(f figures) float64 { return f.put }},
		{Name: "read and acknowledged/s", Better: "higher", Of: func(f figures) float64 { return f.drain }},
	}
	for _, size := range []int{256, 4096, 65536} {
		results := make(map[string][]figures)
		for round := range o.rounds {
			for _, e := range engines() {
				f, err := o.measure(e.open, size)
				if err != nil {
					return fmt.Errorf("%s, %d octets: %w", e.name, size, err)
				}
				fmt.Fprintf(os.Stderr, "round %d, %5d octets, %-22s %8.0f durable/s %8.0f read/s\n", round+1, size, e.name, f.put, f.drain)
				results[e.name] = append(results[e.name], f)
			}
		}
		for _, e := range engines()[1:] {
			for _, m := range metrics {
				if results[e.name][0].drain == 0 && m.Name != metrics[0].Name {
					continue
				}
				rows = append(rows, report.Compare(fmt.Sprintf("%d octets", size), e.name, m, results["edged"], results[e.name]))
			}
		}
	}
	if err := report.Write(o.out, rows); err != nil {
		return err
	}
	return report.Table(os.Stdout, rows)
}

// measure has one engine take messages for a while, then give them out.
func (o options) measure(open func(string) (engine, error), size int) (f figures, err error) {
	dir, err := os.MkdirTemp(o.dir, "edged-bench-mailbox-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	e, err := open(dir)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	var n atomic.Int64
	var wg sync.WaitGroup
	failed := make([]error, o.writers)
	start := time.Now()
	for w := range o.writers {
		wg.Go(func() {
			body := make([]byte, size)
			for i := 0; time.Since(start) < o.time; i++ {
				if failed[w] = e.put(w, (w*7919+i*31)%o.devices, body); failed[w] != nil {
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	f.put = float64(n.Load()) / time.Since(start).Seconds()
	if err := errors.Join(failed...); err != nil {
		return f, err
	}
	start = time.Now()
	got, err := e.drain()
	if err == nil && got != 0 {
		f.drain = float64(got) / time.Since(start).Seconds()
		if int64(got) != n.Load() {
			err = fmt.Errorf("%d messages were stored, %d were read", n.Load(), got)
		}
	}
	return f, err
}

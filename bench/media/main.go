// Command media measures the paths of media through a gateway side by side: edged's (tc, xdp, user space),
// rtpengine's, nftables NAT, plain routing, and an XDP program that discards, which is the floor. It needs root.
//
//	namespace gen                 namespace gw                    namespace sink
//	BPF, live frames ──── veth ──► path under test ──── veth ─────► XDP: counts, verifies, drops
//	    CPU 0                     CPU 1: NAPI threads, relay         CPU 0
//
// In each round every mode carries every case, one mode after the other, and a ratio is that of one round: what
// disturbs the machine disturbs both. Kernel paths are flooded; what is too much is lost in the ring before the
// gateway. For relays the highest rate with at most 1 % loss and a p99 below 20 ms is searched. CPU is that of the
// gateway's NAPI threads and of the relay's, per packet that arrived. The relay is this program, started with the
// argument "relay". See docs/performance.md. With -turn it measures channels of TURN against coturn, both ways.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command line.
type options struct {
	rounds        int
	trial, steady time.Duration
	coalesce      time.Duration
	modes         []mode
	streams       []int
	sizes         []int
	// steadyStreams of steadySize bytes is the case of which delays are measured.
	steadyStreams, steadySize int
	bursts, turn              bool
	out                       string
	verbose                   bool
}

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "relay" {
		err = serveRelay(os.Args[2:])
	} else {
		err = bench()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-media:", err)
		os.Exit(1)
	}
}

func parseOptions(args []string) (options, error) {
	o := options{steadyStreams: 1000, steadySize: 172}
	f := flag.NewFlagSet("bench-media", flag.ContinueOnError)
	var names []string
	all, file := modes(), "media.json"
	if o.turn = slices.Contains(args, "-turn"); o.turn {
		all, file = turnModes(), "turn.json"
	}
	for _, m := range all {
		names = append(names, m.name)
	}
	f.Bool("turn", false, "measure channels of TURN, against coturn")
	f.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	f.DurationVar(&o.trial, "trial", 300*time.Millisecond, "length of one trial")
	f.DurationVar(&o.steady, "steady", 2*time.Second, "length of the trials of delays at 50,000 packets/s, of 1,000 streams of 172 bytes; 0: none")
	f.DurationVar(&o.coalesce, "coalesce", 100*time.Microsecond, "how long the gateway's devices collect packets; 0: an interrupt for each")
	list := f.String("modes", strings.Join(names, ","), "what to measure")
	streams := f.String("streams", "1,100,1000,4900", "numbers of streams")
	sizes := f.String("sizes", "172,1200", "UDP payload sizes, multiples of 4")
	f.BoolVar(&o.bursts, "bursts", false, "also bursts of 16 x 1,200 bytes, 100 streams, as of video")
	f.StringVar(&o.out, "out", filepath.Join("bench", "out", file), "result file; the plot stands beside it")
	f.BoolVar(&o.verbose, "v", false, "print every trial")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var errs []error
	for name := range strings.SplitSeq(*list, ",") {
		i := slices.Index(names, name)
		if i < 0 {
			errs = append(errs, fmt.Errorf("-modes: %q is none of %s", name, strings.Join(names, ", ")))
			continue
		}
		o.modes = append(o.modes, all[i])
	}
	var err error
	o.streams, err = numbers("-streams", *streams, 1, maxStreams)
	errs = append(errs, err)
	o.sizes, err = numbers("-sizes", *sizes, minSize, maxSize)
	errs = append(errs, err)
	for _, s := range o.sizes {
		if s%4 != 0 {
			errs = append(errs, fmt.Errorf("-sizes: %d is no multiple of 4", s))
		}
	}
	return o, errors.Join(errs...)
}

func numbers(name, list string, least, most int) (ns []int, err error) {
	for f := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("%s: %q is not in %d-%d", name, f, least, most)
		}
		ns = append(ns, n)
	}
	return ns, nil
}

// cases returns what is sent, in order.
func (o options) cases() (ks []caseKey) {
	kinds := []string{kindRTP}
	if o.turn {
		kinds = []string{kindClient, kindPeer}
	}
	for _, kind := range kinds {
		for _, size := range o.sizes {
			for _, n := range o.streams {
				ks = append(ks, caseKey{n, size, 1, kind})
			}
		}
		if o.bursts {
			ks = append(ks, caseKey{100, 1200, 16, kind})
		}
	}
	return ks
}

func bench() error {
	o, err := parseOptions(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("this needs root: it makes network namespaces, loads BPF programs and uses real-time priorities")
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	rig, err := newRig(o.coalesce)
	if err != nil {
		return err
	}
	defer rig.close()
	rig.verbose = o.verbose
	interrupted := make(chan os.Signal, 1) // one is enough to end
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	go func() {
		<-interrupted
		rig.close()
		os.Exit(1)
	}()
	res, err := rig.rounds(o)
	if err != nil {
		return err
	}
	if err := publish(o, res); err != nil {
		return err
	}
	if rig.bad > 0 {
		return fmt.Errorf("%d of %d verified packets had a wrong checksum", rig.bad, rig.verified)
	}
	return nil
}

// lock waits until no other run measures on this machine.
func lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "edged-bench.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		fmt.Println("another benchmark runs; waiting for its end")
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
	}
	return func() { f.Close() }, nil
}

// results are those of each mode and case, by round; absent says why a mode has none.
type results struct {
	of            map[string]map[caseKey][]result
	absent        map[string]string
	verified, bad uint64
}

func (r *rig) rounds(o options) (*results, error) {
	res := &results{of: make(map[string]map[caseKey][]result), absent: make(map[string]string)}
	for _, m := range o.modes {
		res.of[m.name] = make(map[caseKey][]result)
	}
	for round := range o.rounds {
		for _, k := range o.cases() {
			steady := time.Duration(0)
			if (k == caseKey{o.steadyStreams, o.steadySize, 1, kindRTP}) {
				steady = o.steady
			}
			for _, m := range o.modes {
				if res.absent[m.name] != "" {
					continue
				}
				got, err := r.measure(m, k, o.trial, steady)
				if errors.Is(err, errUnavailable) {
					res.absent[m.name] = err.Error()
					fmt.Printf("%s: %v\n", m.text, err)
					continue
				}
				if err != nil {
					return nil, fmt.Errorf("%s, %v: %w", m.text, k, err)
				}
				res.of[m.name][k] = append(res.of[m.name][k], got)
				progress(round+1, o.rounds, m, k, got)
			}
		}
	}
	res.verified, res.bad = r.verified, r.bad
	return res, nil
}

func progress(round, rounds int, m mode, k caseKey, r result) {
	fmt.Printf("round %d/%d  %-9s  %-32v %8.1f kpps %7.0f ns/packet", round, rounds, m.name, k, r.rate/1000, r.cost)
	if r.p99 > 0 {
		fmt.Printf("   at 50 kpps: p50 %.0f p99 %.0f µs, %.0f ns/packet", r.p50, r.p99, r.steady)
	}
	fmt.Println()
}

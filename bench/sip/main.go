// Command sip measures edged beside Kamailio with rtpengine: the same calls, the same addresses,
// one processor for the edge, another for the load, rounds of both in turn. It needs root (network
// namespaces) and the Debian packages sip-tester, kamailio and rtpengine-daemon. Media ports are
// opened for every call; no audio is sent.
//
//	inside (SIPp caller, probe) ── gateway (edged, or Kamailio + rtpengine) ── outside (SIPp callee, probe)
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"edged.dev/edged/bench/report"
)

const peerName = "Kamailio + rtpengine"

// filesPerCall is the number of sockets that an anchored audio call takes: RTP and RTCP on each side.
const filesPerCall = 4

func main() {
	rounds := flag.Int("rounds", 3, "rounds of both in turn")
	binary := flag.String("edged", "", "edged `binary`; built from this checkout if empty")
	out := flag.String("out", filepath.Join("bench", "out", "sip.json"), "report `file`; a plot is written beside it")
	only := flag.String("only", "", "measure only `peer` or edged, and write no report")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, *rounds, *binary, *out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench/sip:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, rounds int, binary, out, only string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root for network namespaces")
	}
	for _, tool := range []string{"ip", "taskset", "sipp", "kamailio", "rtpengine"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install iproute2 util-linux sip-tester kamailio rtpengine-daemon", tool)
		}
	}
	r, err := newRig(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	var contenders []contender
	if only != "edged" {
		contenders = append(contenders, contender{peerName, startKamailio})
	}
	if only != "peer" {
		if binary == "" {
			binary = filepath.Join(r.dir, "edged")
			if err := run(ctx, "go", "build", "-trimpath", "-o", binary, "./cmd/edged"); err != nil {
				return err
			}
		}
		contenders = append(contenders, contender{"edged", startEdged(binary)})
	}
	return r.rounds(ctx, contenders, rounds, out)
}

// rounds measures all contenders in turn and writes the report if there are two.
func (r *rig) rounds(ctx context.Context, contenders []contender, rounds int, out string) error {
	begin := time.Now()
	results := make([][]round, len(contenders))
	for i := range rounds {
		for j, c := range contenders {
			guess := 0.0
			if i > 0 {
				guess = results[j][i-1].capacity / fine
			}
			m, err := r.measure(ctx, c, guess)
			if err != nil {
				return err
			}
			note("round %d, %s: %.0f calls/s, %v CPU per call, INVITE p50 %v p99 %v, answer p50 %v p99 %v", i+1, c.name, m.capacity,
				m.cpu, percentile(m.invite, 50), percentile(m.invite, 99), percentile(m.answer, 50), percentile(m.answer, 99))
			results[j] = append(results[j], m)
		}
	}
	open := make([]held, len(contenders))
	for j, c := range contenders {
		h, err := r.hold(ctx, c, heldCalls())
		if err != nil {
			return err
		}
		note("%s: %d calls held, %.1f KiB and %.1f descriptors per call, %d MiB in all", c.name, h.calls, h.perCall/1024, h.files, h.total>>20)
		open[j] = h
	}
	note("took %v", time.Since(begin).Round(time.Second))
	if len(contenders) < 2 {
		return nil
	}
	rows := append(compare(results[1], results[0]), compareHeld(open[1], open[0])...)
	if err := report.Write(out, rows); err != nil {
		return err
	}
	if err := report.Plot(strings.TrimSuffix(out, filepath.Ext(out))+".svg", rows); err != nil {
		return err
	}
	return report.Table(os.Stdout, rows)
}

// heldCalls is the number of calls that the limit of open files allows, at most 10,000.
func heldCalls() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1000
	}
	n := min(10000, int(min(l.Max, 1<<20)-800)/filesPerCall)
	if n < 10000 {
		note("the limit of open files (%d) allows %d calls of %d sockets, not 10,000", l.Max, n, filesPerCall)
	}
	return n
}

// note prints a line of progress.
func note(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }

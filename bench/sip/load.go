package main

import (
	"context"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed testbed/uac.xml
var callerScenario string

//go:embed testbed/uas.xml
var calleeScenario string

// outcome is what SIPp says of a load.
type outcome struct {
	ok, failed, retransmitted int
	elapsed                   time.Duration
	// why is SIPp's own explanation of the first failure, if it gave one.
	why string
}

// callee starts the answering side, for any number of calls.
func (r *rig) callee(ctx context.Context) (*group, error) {
	file, err := r.fill("uas.xml", calleeScenario)
	if err != nil {
		return nil, err
	}
	return r.start("callee", r.command(ctx, r.outside, r.loadCPU, r.load, "-sf", file, "-i", calleeIP, "-p", "5060",
		"-nostdin", "-f", "3600", "-buff_size", "4194304", "-watchdog_interval", "0"))
}

// calls starts the calling side: n calls at the given rate, each held as long as hold.
func (r *rig) calls(ctx context.Context, rate, n int, hold, limit time.Duration) (*group, string, error) {
	file, err := r.fill("uac.xml", callerScenario)
	if err != nil {
		return nil, "", err
	}
	stats := filepath.Join(r.dir, fmt.Sprintf("stats-%d.csv", time.Now().UnixNano()))
	g, err := r.start("caller", r.command(ctx, r.inside, r.loadCPU, r.load, insideIP+":5060", "-sf", file, "-i", callerIP, "-p", "5060",
		"-key", "callee", calleeIP, "-r", strconv.Itoa(rate), "-m", strconv.Itoa(n), "-l", strconv.Itoa(n+1),
		"-d", strconv.FormatInt(hold.Milliseconds(), 10), "-nostdin", "-f", "3600", "-buff_size", "4194304", "-watchdog_interval", "0",
		"-trace_stat", "-stf", stats, "-fd", "1", "-trace_err", "-error_file", stats+".err", "-timeout", fmt.Sprintf("%ds", int(limit.Seconds()))))
	return g, stats, err
}

// talk is the length of a call under load: long enough that no proxy with several workers lets the
// BYE overtake the ACK, short enough that the sockets of open calls stay far from any limit.
const talk = 300 * time.Millisecond

// ring is the time from 180 to 200, as uas.xml has it.
const ring = 100 * time.Millisecond

// burst makes n calls and waits for their end, at most for limit; calls that are open then have failed.
func (r *rig) burst(ctx context.Context, rate, n int, limit time.Duration) (outcome, error) {
	g, stats, err := r.calls(ctx, rate, n, talk, limit)
	if err != nil {
		return outcome{}, err
	}
	defer g.stop()
	begin := time.Now()
	over := time.NewTimer(limit + time.Second)
	defer over.Stop()
	select {
	case <-g.done:
	case <-over.C:
		g.stop()
	case <-ctx.Done():
		return outcome{}, ctx.Err()
	}
	took := time.Since(begin)
	o, err := readStats(stats)
	o.elapsed = took
	o.failed = n - o.ok
	if text, err := os.ReadFile(stats + ".err"); err == nil { // SIPp makes it only if it has something to say
		o.why = head(string(text), 300)
	}
	return o, err
}

// head returns the beginning of a text in one line.
func head(s string, n int) string { return strings.Join(strings.Fields(s[:min(n, len(s))]), " ") }

// readStats reads the last line of a SIPp statistics file.
func readStats(file string) (outcome, error) {
	f, err := os.Open(file)
	if err != nil {
		return outcome{}, fmt.Errorf("statistics: %w", err)
	}
	defer f.Close()
	in := csv.NewReader(f)
	in.Comma, in.FieldsPerRecord, in.LazyQuotes = ';', -1, true
	rows, err := in.ReadAll()
	if err != nil || len(rows) < 2 {
		return outcome{}, fmt.Errorf("statistics %s: %d lines: %w", file, len(rows), err)
	}
	return parseStats(rows[0], rows[len(rows)-1])
}

func parseStats(head, last []string) (outcome, error) {
	value := func(name string) string {
		for i, h := range head {
			if h == name && i < len(last) {
				return last[i]
			}
		}
		return ""
	}
	var o outcome
	var errs []error
	for name, n := range map[string]*int{
		"SuccessfulCall(C)": &o.ok, "FailedCall(C)": &o.failed, "Retransmissions(C)": &o.retransmitted,
	} {
		v, err := strconv.Atoi(value(name))
		*n = v
		errs = append(errs, err)
	}
	return o, errors.Join(errs...)
}

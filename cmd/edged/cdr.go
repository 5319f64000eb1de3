package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/syslog"
)

// cdrFile appends call records to a file, one JSON line each. It may be moved away
// (logrotate) before a reload, which opens it anew. The zero path writes nothing.
type cdrFile struct {
	path string

	mu   sync.Mutex
	file *os.File
}

func openCDR(c *config) (*cdrFile, error) {
	f := &cdrFile{path: c.cdrPath()}
	return f, f.reopen()
}

// reopen opens the file, or opens it again at its path.
func (f *cdrFile) reopen() error {
	if f.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o750); err != nil {
		return fmt.Errorf("cdr.file: %w", err)
	}
	next, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("cdr.file: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != nil {
		f.file.Close()
	}
	f.file = next
	return nil
}

// write appends one record. A record that cannot be written goes to the log instead, so that it is not lost.
func (f *cdrFile) write(record any, log *zap.Logger) {
	if f.path == "" {
		return
	}
	line, err := json.Marshal(record)
	if err == nil {
		f.mu.Lock()
		_, err = f.file.Write(append(line, '\n'))
		f.mu.Unlock()
	}
	if err != nil {
		log.Error("call record not written", zap.Error(err), zap.Any("record", record))
	}
}

// Close closes the file.
func (f *cdrFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// cdrSyslog sends call records to a syslog receiver; nil sends none.
type cdrSyslog struct {
	*syslog.Sender
	cfg  cdrConfig
	host string
}

// newCDRSyslog returns what sends records, nil if the configuration names no receiver.
func newCDRSyslog(d *serviceDeps, log *zap.Logger) (*cdrSyslog, error) {
	if d.cfg.CDR.Syslog.IsZero() {
		return nil, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("cdr.syslog: %w", err)
	}
	s := &cdrSyslog{syslog.NewSender(d.cfg.CDR.Syslog, d.tls.Client(""), log), d.cfg.CDR, host}
	d.reg.MustRegister(s.metrics()...)
	return s, nil
}

func (s *cdrSyslog) metrics() []prometheus.Collector {
	counter := func(name, help string, pick func(sent, bytes, dropped uint64) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(pick(s.Counts())) })
	}
	return []prometheus.Collector{
		counter("edged_cdr_syslog_records_total", "Call records sent to the syslog receiver.", func(n, _, _ uint64) uint64 { return n }),
		counter("edged_cdr_syslog_bytes_total", "Octets of them.", func(_, n, _ uint64) uint64 { return n }),
		counter("edged_cdr_syslog_dropped_total", "Call records that the syslog receiver did not get.", func(_, _, n uint64) uint64 { return n }),
	}
}

// add queues a record.
func (s *cdrSyslog) add(r callRecord) {
	if s == nil {
		return
	}
	m := syslog.Message{
		Facility: facilities()[s.cfg.Facility], Severity: syslog.Info, Time: r.Ended, Host: s.host, App: "edged", PID: os.Getpid(), Kind: "CDR",
	}
	if s.cfg.Format == "structured" {
		m.Element, m.Params = cdrElement, cdrParams(r)
		m.Body = fmt.Sprintf("call from %s to %s ended after %.0f s: %s", r.From, r.To, r.Seconds, r.outcome())
	} else if line, err := json.Marshal(r); err == nil {
		m.Body = string(line)
	}
	s.Add(m)
}

// run sends until stop is closed and the queue is empty.
func (s *cdrSyslog) run(stop <-chan struct{}) {
	if s == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-stop
		cancel()
	}()
	_ = s.Serve(ctx) // nil always
}

// cdrElement names the structured data of a record. 32473 is the enterprise number of examples (RFC 5612): edged has none.
const cdrElement = "call@32473"

// cdrParams are the fields of a record as structured data.
func cdrParams(r callRecord) []syslog.Param {
	answered := ""
	if r.Answered != nil {
		answered = r.Answered.UTC().Format(time.RFC3339Nano)
	}
	list := []syslog.Param{
		{Name: "id", Value: r.ID}, {Name: "call_id", Value: r.CallID}, {Name: "from", Value: r.From}, {Name: "to", Value: r.To},
		{Name: "caller", Value: r.Caller}, {Name: "callee", Value: r.Callee}, {Name: "started", Value: r.Started.UTC().Format(time.RFC3339Nano)},
		{Name: "answered", Value: answered}, {Name: "seconds", Value: strconv.FormatFloat(r.Seconds, 'f', 3, 64)},
		{Name: "status", Value: strconv.Itoa(r.Status)}, {Name: "reason", Value: r.Reason}, {Name: "protocol", Value: r.Protocol},
	}
	if r.Cause != 0 {
		list = append(list, syslog.Param{Name: "cause", Value: strconv.Itoa(r.Cause)})
	}
	for i, s := range r.Streams {
		for side, name := range []string{"caller", "callee"} {
			list = append(list, syslog.Param{Name: fmt.Sprintf("packets_%d_%s", i, name), Value: strconv.FormatUint(s.Received[side].Packets, 10)})
		}
	}
	return list
}

// facilities are the numbers of those that may be configured (RFC 5424 §6.2.1).
func facilities() map[string]int {
	return map[string]int{
		"user": 1, "daemon": 3, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23,
	}
}

func (c cdrConfig) validate(l *faultList) {
	if _, known := facilities()[c.Facility]; !known {
		l.add("cdr.facility", "must be user, daemon or local0 to local7")
	}
	if c.Format != "json" && c.Format != "structured" {
		l.add("cdr.format", "must be json or structured")
	}
}

// cdrQueue stands between the calls and the disk: a slow disk must not hold up signalling.
type cdrQueue struct {
	file    *cdrFile
	log     *zap.Logger
	records chan any // 4096: some seconds of calls ending at the highest rate
}

func newCDRQueue(f *cdrFile, log *zap.Logger) *cdrQueue {
	return &cdrQueue{file: f, log: log, records: make(chan any, 4096)}
}

// add queues a record. Where the queue is full it goes to the log, so that it is not lost.
func (q *cdrQueue) add(record any) {
	if q.file.path == "" {
		return
	}
	select {
	case q.records <- record:
	default:
		q.log.Error("call record queue is full", zap.Any("record", record))
	}
}

// run writes until stop is closed and the queue is empty.
func (q *cdrQueue) run(stop <-chan struct{}) {
	for {
		select {
		case r := <-q.records:
			q.file.write(r, q.log)
		case <-stop:
			select {
			case r := <-q.records:
				q.file.write(r, q.log)
			default:
				return
			}
		}
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"go.uber.org/zap"
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

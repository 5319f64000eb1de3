package sipalg

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

// journal is the file of the registrations: a line for each change, made short at the start and when
// it has grown. What was written survives a kill of the process. A nil journal writes nothing.
type journal struct {
	path  string
	file  *os.File
	lines int
	log   *zap.Logger
	// since holds the lines written while the file is made short.
	compacting bool
	since      []byte
}

// maxJournal is how many lines are written before the file is made short.
const maxJournal = 20_000

func openJournal(dir string, c *Core, log *zap.Logger) (*journal, error) {
	j := &journal{path: filepath.Join(dir, "registrations.jsonl"), log: log}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state.dir: %w", err)
	}
	old, err := os.Open(j.path)
	switch {
	case err == nil:
		err = c.Restore(time.Now(), old, new(Output))
		old.Close()
		if err != nil {
			return nil, err
		}
		if n := len(c.bindings); n > 0 {
			log.Info("registrations restored", zap.Int("count", n), zap.String("file", j.path))
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return j, j.rewrite(c)
}

// rewrite replaces the file by what is valid now.
func (j *journal) rewrite(c *Core) error {
	var all bytes.Buffer
	if err := c.Snapshot(&all); err != nil {
		return err
	}
	tmp, err := j.write(all.Bytes())
	if err != nil {
		return err
	}
	return j.replace(tmp, nil)
}

// write makes the file that is to replace the journal.
func (j *journal) write(b []byte) (*os.File, error) {
	tmp, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = tmp.Write(b); err == nil {
		err = tmp.Sync()
	}
	if err != nil {
		tmp.Close()
		return nil, err
	}
	return tmp, nil
}

// replace makes tmp, with some more lines, the journal.
func (j *journal) replace(tmp *os.File, more []byte) error {
	_, err := tmp.Write(more)
	if err == nil {
		err = os.Rename(tmp.Name(), j.path)
	}
	if err != nil {
		tmp.Close()
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.lines = tmp, 0
	return nil
}

// append writes one line; the core's lock is held.
func (j *journal) append(line []byte) {
	if j.file == nil {
		return // closed: the process ends
	}
	if _, err := j.file.Write(line); err != nil {
		j.log.Error("registration not written", zap.String("file", j.path), zap.Error(err))
	}
	j.lines++
	if j.compacting {
		j.since = append(j.since, line...)
	}
}

// compact makes the file short when it has grown. The disk is waited for without the lock: calls go on.
func (j *journal) compact(s *Server) {
	if j == nil {
		return
	}
	s.mu.Lock()
	if j.compacting || j.lines <= maxJournal+2*len(s.core.bindings) {
		s.mu.Unlock()
		return
	}
	var all bytes.Buffer
	err := s.core.Snapshot(&all)
	j.compacting = true
	s.mu.Unlock()
	var tmp *os.File
	if err == nil {
		tmp, err = j.write(all.Bytes())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		err = j.replace(tmp, j.since)
	}
	j.compacting, j.since = false, nil
	if err != nil {
		j.log.Error("registration journal not made short", zap.String("file", j.path), zap.Error(err))
		j.lines = 0
	}
}

func (j *journal) close(s *Server) error {
	if j == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := j.file
	j.file = nil
	return f.Close()
}

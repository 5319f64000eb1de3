package sipalg

import (
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
	tmp, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err = c.Snapshot(tmp); err == nil {
		err = tmp.Sync()
	}
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
	if _, err := j.file.Write(line); err != nil {
		j.log.Error("registration not written", zap.String("file", j.path), zap.Error(err))
	}
	j.lines++
}

func (j *journal) compact(s *Server) {
	if j == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.lines > maxJournal+2*len(s.core.bindings) {
		if err := j.rewrite(s.core); err != nil {
			j.log.Error("registration journal not made short", zap.String("file", j.path), zap.Error(err))
			j.lines = 0
		}
	}
}

func (j *journal) close() error {
	if j == nil {
		return nil
	}
	return j.file.Close()
}

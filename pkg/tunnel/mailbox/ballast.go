package mailbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// ballastSize is what the ballast holds: room for the pages that removing a batch of messages writes anew.
const ballastSize = 4 << 20

func (s *Store) ballastFile() string { return filepath.Join(s.dir, "ballast") }

// ballast keeps some of the disk in a file of nothing. Removing messages writes pages too: on a disk that others have filled the
// file is given up, so that readers can make room. It is made again when there is room for it.
func (s *Store) ballast() {
	if st, err := os.Stat(s.ballastFile()); err == nil && st.Size() == ballastSize {
		return
	}
	f, err := os.OpenFile(s.ballastFile(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		s.opts.Log.Warn("mailbox without ballast", zap.Error(err))
		return
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, ballastSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, ballastSize))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.opts.Log.Warn("mailbox without ballast", zap.Error(errors.Join(err, os.Remove(f.Name()))))
	}
}

// castOff gives the ballast up. It tells whether there was any.
func (s *Store) castOff() bool {
	err := os.Remove(s.ballastFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.opts.Log.Warn("ballast not removed", zap.Error(err))
	}
	return err == nil
}

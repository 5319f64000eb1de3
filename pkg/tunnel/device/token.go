package device

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// secretBytes is the length of a token's secret.
const secretBytes = 20

// Token is what a new device shows once to be enrolled. It also names the relay, so that the device shows it to nobody else.
type Token struct {
	Secret [secretBytes]byte
	Relay  ID
}

// String writes the token as the operator hands it over.
func (t Token) String() string {
	return alphabet().EncodeToString(t.Secret[:]) + "." + t.Relay.String()
}

// ParseToken reads what String writes.
func ParseToken(text string) (Token, error) {
	secret, relay, ok := strings.Cut(strings.TrimSpace(text), ".")
	raw, err := alphabet().DecodeString(secret)
	if !ok || err != nil || len(raw) != secretBytes {
		return Token{}, errors.New("this is no enrolment token")
	}
	id, err := ParseID(relay)
	if err != nil {
		return Token{}, fmt.Errorf("enrolment token: %w", err)
	}
	return Token{[secretBytes]byte(raw), id}, nil
}

// hash is what is kept of a secret. It has 160 random bits, so a fast hash gives nothing away.
func hash(secret [secretBytes]byte) string {
	sum := sha256.Sum256(secret[:])
	return hex.EncodeToString(sum[:])
}

// Errors of [Store.Redeem].
var (
	ErrToken = errors.New("the token is unknown, used or expired")
	ErrTaken = errors.New("the device or its name is enrolled already")
)

// Names of the files of a [Store].
const (
	tokensFile  = "tokens"
	devicesFile = "devices"
	lockFile    = "lock"
)

// maxTokens bounds the tokens that wait to be used.
const maxTokens = 10000

// Store keeps tokens and the devices that were enrolled by them in a folder, which a relay and the operator's commands
// use at the same time.
type Store struct {
	dir string

	mu      sync.Mutex // guards what follows
	stamp   stamp
	waiting []pending // what the file of tokens held then
}

// stamp tells whether a file is another: one that replaces it has another inode.
type stamp struct {
	known       bool
	inode, size uint64
	changed     int64 // nanoseconds
}

// OpenStore makes the folder if there is none.
func OpenStore(dir string) (*Store, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	return &Store{dir: dir}, nil
}

// pending is a token that waits.
type pending struct {
	hash    string
	expires time.Time
	name    string
	groups  []string
}

// line writes "HASH EXPIRES NAME [GROUP,GROUP]".
func (p pending) line() string {
	return strings.TrimSpace(fmt.Sprintf("%s %d %s %s", p.hash, p.expires.Unix(), p.name, strings.Join(p.groups, ","))) + "\n"
}

// Add makes a token by which one device may enrol itself under a name until it expires. Expired ones are dropped.
func (s *Store) Add(relay ID, name string, groups []string, now time.Time, ttl time.Duration) (Token, error) {
	if err := errors.Join(CheckName(name), CheckGroups(groups)); err != nil {
		return Token{}, err
	}
	t := Token{Relay: relay}
	rand.Read(t.Secret[:])
	err := s.locked(func() error {
		list, err := s.pending(now)
		if err != nil {
			return err
		}
		if len(list) >= maxTokens {
			return fmt.Errorf("%d tokens wait already", maxTokens)
		}
		return s.savePending(append(list, pending{hash(t.Secret), now.Add(ttl), name, groups}))
	})
	return t, err
}

// Waiting tells how many tokens may still be used. The file is read only if it has changed: strangers have it asked.
func (s *Store) Waiting(now time.Time) (n int, err error) {
	seen, err := s.stampOf(tokensFile)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen != s.stamp {
		if s.waiting, err = s.pending(now); err != nil {
			s.stamp = stamp{}
			return 0, err
		}
		s.stamp = seen
	}
	for _, p := range s.waiting {
		if now.Before(p.expires) {
			n++
		}
	}
	return n, nil
}

func (s *Store) stampOf(name string) (stamp, error) {
	info, err := os.Stat(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return stamp{known: true}, nil
	}
	if err != nil {
		return stamp{}, err
	}
	out := stamp{known: true, size: uint64(info.Size()), changed: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		out.inode = st.Ino
	}
	return out, nil
}

// Redeem uses a token up and enrols the device that showed it. known are devices beside those of the store, whose names
// and keys are taken too.
func (s *Store) Redeem(secret [secretBytes]byte, id ID, known *Registry, now time.Time) (d Device, err error) {
	err = s.locked(func() error {
		list, err := s.pending(now)
		if err != nil {
			return err
		}
		h := hash(secret)
		at := slices.IndexFunc(list, func(p pending) bool { return p.hash == h })
		if at < 0 {
			return ErrToken
		}
		d = Device{id, list[at].name, list[at].groups}
		devices, err := s.Devices()
		if err != nil {
			return err
		}
		if taken(d, devices, known) {
			return ErrTaken
		}
		if err := s.savePending(slices.Delete(list, at, at+1)); err != nil { // first: a token is never used twice
			return err
		}
		return s.saveDevices(append(devices, d))
	})
	return d, err
}

func taken(d Device, enrolled []Device, known *Registry) bool {
	_, byID := known.Lookup(d.ID)
	_, byName := known.Named(d.Name)
	return byID || byName || slices.ContainsFunc(enrolled, func(e Device) bool { return e.ID == d.ID || e.Name == d.Name })
}

// Devices returns those that were enrolled.
func (s *Store) Devices() ([]Device, error) {
	text, err := s.read(devicesFile)
	if err != nil {
		return nil, err
	}
	list, err := ParseDevices(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(s.dir, devicesFile), err)
	}
	return list, nil
}

// Remove forgets an enrolled device; false: there is none of that name.
func (s *Store) Remove(name string) (found bool, err error) {
	err = s.locked(func() error {
		list, err := s.Devices()
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(slices.Clone(list), func(d Device) bool { return d.Name == name })
		found = len(left) < len(list)
		return s.saveDevices(left)
	})
	return found, err
}

func (s *Store) saveDevices(list []Device) error {
	var b bytes.Buffer
	for _, d := range list {
		b.WriteString(d.line())
	}
	return replaceFile(filepath.Join(s.dir, devicesFile), b.Bytes())
}

// pending returns the tokens that have not expired.
func (s *Store) pending(now time.Time) (out []pending, err error) {
	text, err := s.read(tokensFile)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 3 || len(f) > 4 {
			return nil, fmt.Errorf("%s: not HASH EXPIRES NAME [GROUPS]", filepath.Join(s.dir, tokensFile))
		}
		at, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(s.dir, tokensFile), err)
		}
		p := pending{hash: f[0], expires: time.Unix(at, 0), name: f[2]}
		if len(f) == 4 {
			p.groups = strings.Split(f[3], ",")
		}
		if now.Before(p.expires) {
			out = append(out, p)
		}
	}
	return out, nil
}

func (s *Store) savePending(list []pending) error {
	var b bytes.Buffer
	for _, p := range list {
		b.WriteString(p.line())
	}
	return replaceFile(filepath.Join(s.dir, tokensFile), b.Bytes())
}

// read returns what a file holds, nothing if there is none.
func (s *Store) read(name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// locked does what no other process may do at the same time.
func (s *Store) locked(do func() error) error {
	f, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // which unlocks
	if err := giveTo(f.Name()); err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", s.dir, err)
	}
	return do()
}

// File returns the file of the enrolled devices, which may not be there yet.
func (s *Store) File() string { return filepath.Join(s.dir, devicesFile) }

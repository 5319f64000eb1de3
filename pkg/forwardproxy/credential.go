package forwardproxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// maxName bounds names and passwords: what RFC 1929 §2 can carry.
	maxName  = 255
	maxUsers = 1 << 16
)

// Users are names and passwords. Nil knows nobody.
type Users struct {
	key    []byte // of this run, so that no hash can be prepared
	hashes map[string][sha256.Size]byte
}

// ParseUsers reads the lines NAME:PASSWORD of a users file; empty lines and those that begin with # do not count. Errors name
// the line, never what stands in it.
func ParseUsers(text string) (*Users, error) {
	u := &Users{key: []byte(rand.Text()), hashes: map[string][sha256.Size]byte{}}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		name, password, ok := strings.Cut(line, ":")
		switch _, twice := u.hashes[name]; {
		case !ok || name == "" || password == "" || len(name) > maxName || len(password) > maxName:
			return nil, fmt.Errorf("line %d is not NAME:PASSWORD, each of at most %d octets", n, maxName)
		case twice:
			return nil, fmt.Errorf("line %d names a user a second time", n)
		case len(u.hashes) == maxUsers:
			return nil, fmt.Errorf("line %d: more than %d users", n, maxUsers)
		}
		u.hashes[name] = u.hash(password)
	}
	return u, nil
}

func (u *Users) hash(password string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, u.key)
	h.Write([]byte(password))
	h.Sum(sum[:0])
	return sum
}

// check tells whether it is the password of that user, in a time that depends on neither.
func (u *Users) check(name, password string) bool {
	if u == nil || len(name) > maxName || len(password) > maxName {
		return false
	}
	want, known := u.hashes[name]
	have := u.hash(password)
	return subtle.ConstantTimeCompare(want[:], have[:]) == 1 && known
}

// readBasic reads the value of Proxy-Authorization (RFC 7617 §2).
func readBasic(value string) (name, password string, ok bool) {
	scheme, token, _ := strings.Cut(strings.TrimSpace(value), " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(token))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}

const (
	// maxWrong passwords in wrongTime lock a source out for that long.
	maxWrong  = 10
	wrongTime = time.Minute
	// maxGuessers bounds the sources that are remembered.
	maxGuessers = 4096
)

// guesses counts wrong passwords of sources, so that nobody tries many. The zero value is ready.
type guesses struct {
	mu    sync.Mutex
	wrong map[netip.Addr]*guesser
}

type guesser struct {
	count int
	until time.Time
}

// locked tells whether a source has guessed too often.
func (g *guesses) locked(source netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.wrong[source]
	return w != nil && w.count >= maxWrong && now.Before(w.until)
}

// add counts a wrong password.
func (g *guesses) add(source netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.wrong[source]
	if w == nil || !now.Before(w.until) {
		if g.wrong == nil || len(g.wrong) >= maxGuessers {
			g.wrong = make(map[netip.Addr]*guesser)
		}
		w = &guesser{until: now.Add(wrongTime)}
		g.wrong[source] = w
	}
	w.count++
}

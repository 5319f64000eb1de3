package msturn

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"  //nolint:gosec // the protocol's
	"crypto/rand" //nolint:gosec // the protocol's
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"sync"
	"time"

	"edged.dev/edged/pkg/turn/timelimited"
)

// maxLearned bounds the credentials of others that are remembered.
const maxLearned = 16384

// users knows who may allocate, and makes nonces.
type users struct {
	realm   string
	static  map[string]Secret
	secrets []Secret
	seal    [32]byte // of nonces

	mu      sync.Mutex // guards what follows
	learned map[string]lesson
}

// lesson is what is known of a name that another service has given out.
type lesson struct {
	candidates []candidate
	until      time.Time
}

// learn takes a name and password of another service; false if there are too many.
func (u *users) learn(now time.Time, name string, password []byte, user string, until time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.learned) >= maxLearned {
		for known, l := range u.learned {
			if now.After(l.until) {
				delete(u.learned, known)
			}
		}
	}
	if len(u.learned) >= maxLearned {
		return false
	}
	if u.learned == nil {
		u.learned = map[string]lesson{}
	}
	u.learned[name] = lesson{u.candidates(name, user, password), until}
	return true
}

func (u *users) taught(name string, now time.Time) []candidate {
	u.mu.Lock()
	defer u.mu.Unlock()
	if l, ok := u.learned[name]; ok && !now.After(l.until) {
		return l.candidates
	}
	return nil
}

func newUsers(realm string, static map[string]Secret, secrets []Secret) *users {
	u := &users{realm: realm, static: static, secrets: secrets}
	_, _ = rand.Read(u.seal[:]) // never fails
	return u
}

// candidate is a key that a name may have signed with, and the user whose limits it counts for.
type candidate struct {
	key  []byte
	user string
}

// lookup returns the keys to try for a name, none if nobody has it or its time is over.
func (u *users) lookup(name string, now time.Time) []candidate {
	if password, ok := u.static[name]; ok {
		return u.candidates(name, name, []byte(password))
	}
	if known := u.taught(name, now); known != nil {
		return known
	}
	until, user, ok := timelimited.Parse(name)
	if !ok || now.After(until) {
		return nil
	}
	var out []candidate
	for _, s := range u.secrets {
		out = append(out, u.candidates(name, user, timelimited.Password(string(s), name))...)
	}
	return out
}

// candidates are what clients make of a password. Passwords are any octets, and libnice (Pidgin) cuts quotes and a final
// zero off them before it makes the key.
func (u *users) candidates(name, user string, password []byte) []candidate {
	out := []candidate{{u.key(name, password), user}}
	if cut := bytes.TrimRight(bytes.TrimLeft(password, `"`), "\"\x00"); len(cut) > 0 && len(cut) < len(password) {
		out = append(out, candidate{u.key(name, cut), user})
	}
	return out
}

// key is MD5(name:realm:password). The realm is sent without quotes, so clients that cut quotes off and those that do not agree.
func (u *users) key(name string, password []byte) []byte {
	sum := md5.Sum(append([]byte(name+":"+u.realm+":"), password...)) //nolint:gosec // as above
	return sum[:]
}

// nonceLife is how long a nonce is good for ([MS-TURN] leaves it to the server); the lifetime of an allocation is
// shorter, so that a refresh needs no new one.
const nonceLife = 2 * time.Hour

// nonce makes one that only this client can use, and that needs no memory.
func (u *users) nonce(client netip.Addr, now time.Time) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))
	return hex.AppendEncode(nil, u.sealed(b, client))
}

// fresh tells whether a nonce was made for the client, and is not too old.
func (u *users) fresh(nonce []byte, client netip.Addr, now time.Time) bool {
	b, err := hex.AppendDecode(nil, nonce)
	if err != nil || len(b) != 24 || !hmac.Equal(b, u.sealed(b[:8:8], client)) {
		return false
	}
	age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(b)), 0))
	return age >= 0 && age < nonceLife
}

func (u *users) sealed(stamp []byte, client netip.Addr) []byte {
	h := hmac.New(sha256.New, u.seal[:])
	h.Write(stamp)
	a := client.As16()
	h.Write(a[:])
	return append(stamp, h.Sum(nil)[:16]...)
}

// window has each number of a client accepted once, in any order within 64 of the highest.
type window struct {
	highest uint32
	seen    uint64 // bit i: highest-i was there
}

func (w *window) accept(n uint32) bool {
	switch {
	case n > w.highest:
		w.seen = w.seen<<min(n-w.highest, 64) | 1
		w.highest = n
		return true
	case w.highest-n >= 64 || w.seen&(1<<(w.highest-n)) != 0:
		return false
	}
	w.seen |= 1 << (w.highest - n)
	return true
}

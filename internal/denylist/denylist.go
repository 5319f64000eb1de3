// Package denylist is the list of those whom the operator has shut out: addresses, networks and users, each for a time.
// It answers quickly whether somebody is on it, keeps itself over a restart, and shuts the doors that are its own to
// shut: listeners, and connections that are open already. It judges nobody; services that read datagrams or know users
// ask it themselves.
//
//	Add(Ban) ─► file, then a new snapshot ─► Addr, User: read without a lock
//	         └► Cut: connections of the address that are open
package denylist

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

const (
	// maxBans bounds the list; maxText (octets) a user's name and a reason.
	maxBans = 10_000
	maxText = 256
	// maxFor is the longest ban that ends by itself.
	maxFor = 10 * 365 * 24 * time.Hour
)

// userPrefix begins a target that is a user's name.
const userPrefix = "user:"

// Target is who is shut out: a network of addresses, or a user.
type Target struct {
	Net  netip.Prefix
	User string // where Net is not valid; in lower case
}

// ParseTarget reads an address, a network in CIDR notation, "user:NAME", or NAME@HOST.
func ParseTarget(text string) (Target, error) {
	if len(text) > maxText {
		return Target{}, fmt.Errorf("longer than %d octets", maxText)
	}
	if name, ok := strings.CutPrefix(text, userPrefix); ok || strings.Contains(text, "@") {
		return parseUser(name)
	}
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		return Target{Net: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return Target{}, fmt.Errorf("%q is no address, no network such as 192.0.2.0/24, and no user such as user:alice or alice@example.org", text)
	}
	const mapped = 96 // bits before an IPv4 address that is written as an IPv6 one
	if p.Addr().Is4In6() && p.Bits() >= mapped {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	if p.Bits() == 0 {
		return Target{}, fmt.Errorf("%s is everybody: end the daemon instead", p)
	}
	return Target{Net: p.Masked()}, nil
}

// parseUser makes a target of a name, such that String of it is read again.
func parseUser(text string) (Target, error) {
	name := strings.ToLower(text)
	for scheme := true; scheme; {
		_, rest, found := strings.Cut(name, ":")
		if scheme = found && (strings.HasPrefix(name, "sip:") || strings.HasPrefix(name, "sips:")); scheme {
			name = rest
		}
	}
	strange := func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }
	if name == "" || len(userPrefix+name) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(name, strange) {
		return Target{}, fmt.Errorf("%q is no user's name", text)
	}
	return Target{User: name}, nil
}

// String returns what ParseTarget reads: an address without its length if it is a single one.
func (t Target) String() string {
	switch {
	case !t.Net.IsValid():
		return userPrefix + t.User
	case t.Net.IsSingleIP():
		return t.Net.Addr().String()
	}
	return t.Net.String()
}

// MarshalText implements [encoding.TextMarshaler].
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (t *Target) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTarget(string(b))
	return err
}

// Ban is one entry.
type Ban struct {
	Target Target    `json:"target"`
	Why    string    `json:"why,omitempty"`
	By     string    `json:"by,omitempty"` // who has asked for it
	Since  time.Time `json:"since"`
	// Until is when it ends by itself; nil: not.
	Until *time.Time `json:"until,omitempty"`
}

func (b Ban) over(now time.Time) bool { return b.Until != nil && !now.Before(*b.Until) }

// List is the list. Its methods may be called concurrently; a nil List is empty.
type List struct {
	file  string // "" = it does not outlive the process
	log   *zap.Logger
	drops *prometheus.CounterVec

	current atomic.Pointer[snapshot]

	mu   sync.Mutex // guards what follows
	bans map[Target]Ban
}

// snapshot is the list as it is read: not changed once made.
type snapshot struct {
	nets  map[netip.Prefix]Ban
	bits  [2][]int // which lengths of prefixes there are, of IPv4 and of IPv6
	users map[string]Ban
}

// Open reads the list back from a file, which need not be there; with "" it is kept in memory only. A file that cannot
// be understood is set aside, as BAD beside it, and said in the log: the gateway works on.
func Open(file string, log *zap.Logger) (*List, error) {
	l := &List{file: file, log: log, bans: map[Target]Ban{}, drops: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "edged_ban_drops_total", Help: "What came from those whom the operator has banned, by reason: connection, datagram.",
	}, []string{"reason"})}
	l.current.Store(&snapshot{})
	for _, what := range []string{"connection", "datagram"} {
		l.drops.WithLabelValues(what) // shown from the first moment on
	}
	if file == "" {
		return l, nil
	}
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		aside := file + ".bad"
		log.Error("the list of bans cannot be read: it is set aside, and nobody is banned", zap.String("aside", aside), zap.Error(err))
		return l, os.Rename(file, aside)
	}
	now := time.Now()
	for _, text := range list[:min(len(list), maxBans)] {
		var b Ban
		if err := json.Unmarshal(text, &b); err != nil { // the others hold all the same
			log.Error("a ban cannot be read, and is lost", zap.ByteString("ban", text[:min(len(text), 2*maxText)]), zap.Error(err))
			continue
		}
		if !b.over(now) && b.Target != (Target{}) {
			l.bans[b.Target] = b
		}
	}
	l.publishLocked()
	return l, nil
}

// Add puts somebody on the list for a time, 0 = until Remove; it replaces an entry that is there. The entry is on the disk
// when it returns.
func (l *List) Add(t Target, d time.Duration, why, by string) (Ban, error) {
	now := time.Now().UTC()
	b := Ban{Target: t, Why: why, By: by, Since: now}
	switch {
	case d < 0 || d > maxFor:
		return b, fmt.Errorf("for: %s is not between 0 (until it is lifted) and %s", d, maxFor)
	case len(why) > maxText:
		return b, fmt.Errorf("why: longer than %d octets", maxText)
	case d > 0:
		end := now.Add(d)
		b.Until = &end
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked(now)
	old, had := l.bans[t]
	if !had && len(l.bans) >= maxBans {
		return b, fmt.Errorf("there are %d bans already", maxBans)
	}
	l.bans[t] = b
	if err := l.saveLocked(); err != nil {
		delete(l.bans, t)
		if had {
			l.bans[t] = old
		}
		return b, err
	}
	l.publishLocked()
	return b, nil
}

// Remove takes somebody off the list; false if he is not on it.
func (l *List) Remove(t Target) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked(time.Now())
	old, had := l.bans[t]
	if !had {
		return false, nil
	}
	delete(l.bans, t)
	if err := l.saveLocked(); err != nil {
		l.bans[t] = old
		return true, err
	}
	l.publishLocked()
	return true, nil
}

// Bans returns the list, the latest first.
func (l *List) Bans() []Ban {
	if l == nil {
		return []Ban{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked(time.Now())
	list := make([]Ban, 0, len(l.bans))
	for _, b := range l.bans {
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b Ban) int {
		if c := b.Since.Compare(a.Since); c != 0 {
			return c
		}
		return strings.Compare(a.Target.String(), b.Target.String())
	})
	return list
}

func (l *List) expireLocked(now time.Time) {
	n := len(l.bans)
	for t, b := range l.bans {
		if b.over(now) {
			delete(l.bans, t)
		}
	}
	if len(l.bans) < n {
		l.publishLocked()
	}
}

func (l *List) publishLocked() {
	s := &snapshot{nets: map[netip.Prefix]Ban{}, users: map[string]Ban{}}
	for t, b := range l.bans {
		if !t.Net.IsValid() {
			s.users[t.User] = b
			continue
		}
		s.nets[t.Net] = b
		family := familyOf(t.Net.Addr())
		if !slices.Contains(s.bits[family], t.Net.Bits()) {
			s.bits[family] = append(s.bits[family], t.Net.Bits())
		}
	}
	l.current.Store(s)
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// saveLocked replaces the file by the list, on the disk when it returns.
func (l *List) saveLocked() error {
	if l.file == "" {
		return nil
	}
	list := make([]Ban, 0, len(l.bans))
	for _, b := range l.bans {
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b Ban) int { return strings.Compare(a.Target.String(), b.Target.String()) })
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(l.file), filepath.Base(l.file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // it is there only if something went wrong
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), l.file)
}

// Addr tells whether an address is shut out. It is quick, and nothing at all where nobody is.
func (l *List) Addr(a netip.Addr) bool {
	if l == nil {
		return false
	}
	s := l.current.Load()
	if len(s.nets) == 0 {
		return false
	}
	a = a.Unmap().WithZone("")
	for _, bits := range s.bits[familyOf(a)] {
		p, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		if b, ok := s.nets[p]; ok && !b.over(time.Now()) {
			return true
		}
	}
	return false
}

// User tells whether a user is shut out by this name, or by what stands before its @.
func (l *List) User(name string) bool {
	if l == nil {
		return false
	}
	s := l.current.Load()
	if len(s.users) == 0 || name == "" || len(name) > maxText {
		return false
	}
	name = strings.ToLower(name)
	short, _, _ := strings.Cut(name, "@")
	for _, n := range []string{name, short} {
		if b, ok := s.users[n]; ok && !b.over(time.Now()) {
			return true
		}
	}
	return false
}

// refused counts a "connection" or a "datagram".
func (l *List) refused(what string) { l.drops.WithLabelValues(what).Inc() }

// Describe implements [prometheus.Collector].
func (l *List) Describe(ch chan<- *prometheus.Desc) {
	l.drops.Describe(ch)
	ch <- banned
}

// Collect implements [prometheus.Collector].
func (l *List) Collect(ch chan<- prometheus.Metric) {
	l.drops.Collect(ch)
	ch <- prometheus.MustNewConstMetric(banned, prometheus.GaugeValue, float64(len(l.Bans())))
}

var banned = prometheus.NewDesc("edged_bans", "Addresses, networks and users that the operator has banned.", nil, nil) //nolint:gochecknoglobals // a name

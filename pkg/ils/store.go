package ils

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

const (
	// stateFile holds the registry over a restart.
	stateFile = "ils.json"
	// maxState bounds the file, in octets.
	maxState = 32 << 20
	// saveEvery is how long a change may wait to be written.
	saveEvery = time.Second
)

// savedEntry is a record as it is written: NetMeeting refreshes its entry without saying where it is, so a
// restart must not forget that.
type savedEntry struct {
	Names   []string   `json:"names"`
	Host    netip.Addr `json:"host"`
	Ports   [2]uint16  `json:"ports"`
	Public  netip.Addr `json:"public,omitzero"`
	Expires time.Time  `json:"expires"`
}

// savedLookup is whom an outside host looked up last.
type savedLookup struct {
	Client  netip.Addr `json:"client"`
	Name    string     `json:"name"`
	Expires time.Time  `json:"expires"`
}

type saved struct {
	Entries []savedEntry  `json:"entries"`
	Lookups []savedLookup `json:"lookups"`
}

// snapshot returns what is to be written, false if nothing has changed since the last one.
func (r *Registry) snapshot() (saved, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.changed {
		return saved{}, false
	}
	r.changed = false
	var s saved
	for name, e := range r.byName {
		if name == e.Name {
			s.Entries = append(s.Entries, savedEntry{e.names, e.Host, e.Ports, e.Public, e.Expires})
		}
	}
	for client, l := range r.byClient {
		s.Lookups = append(s.Lookups, savedLookup{client, l.name, l.expires})
	}
	return s, true
}

// restore takes what a snapshot held and has not expired.
func (r *Registry) restore(s saved) {
	now := time.Now()
	for _, e := range s.Entries {
		if len(e.Names) == 0 || !e.Host.IsValid() || !now.Before(e.Expires) {
			continue
		}
		if e.Public.IsValid() {
			r.claimOne(e.Public, e.Names[0])
		}
		r.register(registration{names: e.Names, host: e.Host, ports: e.Ports, ttl: e.Expires.Sub(now)})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range s.Lookups {
		if now.Before(l.Expires) && len(r.byClient) < maxResolved {
			r.byClient[l.Client] = resolution{l.Name, l.Expires}
		}
	}
	r.changed = false
}

// claimOne gives a certain address of the pool to a name, if it is still in the pool and free.
func (r *Registry) claimOne(public netip.Addr, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.pool {
		if a == public && r.byPool[a] == nil {
			r.byPool[a] = &claim{name, time.Now().Add(pendingClaim)}
		}
	}
}

// load reads the state of an earlier run. A file that cannot be read is as good as none.
func (s *Server) load() {
	path := filepath.Join(s.deps.StateDir, stateFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var data []byte
	if err == nil && info.Size() > maxState {
		err = fmt.Errorf("%d octets", info.Size())
	}
	if err == nil {
		data, err = os.ReadFile(path)
	}
	var st saved
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		s.log.Warn("registrations not restored", zap.String("file", path), zap.Error(err))
		return
	}
	s.registry.restore(st)
}

// save writes the registry if it has changed, all or nothing.
func (s *Server) save() {
	s.saving.Lock()
	defer s.saving.Unlock()
	st, changed := s.registry.snapshot()
	if !changed {
		return
	}
	data, err := json.Marshal(st)
	path := filepath.Join(s.deps.StateDir, stateFile)
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.log.Warn("registrations not saved", zap.String("file", path), zap.Error(err))
	}
}

// saver saves until ctx ends.
func (s *Server) saver(ctx context.Context) {
	every := time.NewTicker(saveEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			s.save()
			return
		case <-every.C:
			s.save()
		}
	}
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"edged.dev/edged/internal/denylist"
	"edged.dev/edged/pkg/console"
	"edged.dev/edged/pkg/pinhole"
)

// defaultBan is how long a ban lasts of which nothing else is said.
const defaultBan = time.Hour

// bansFile is where bans are kept, "" without state.dir.
func bansFile(c *config) string {
	if c.State.Dir == "" {
		return ""
	}
	return filepath.Join(c.State.Dir, "bans.json")
}

// operator ends calls, and shuts others out.
type operator struct {
	bans     *denylist.List
	services []*service
	own      pinhole.Networks
	admin    netip.AddrPort // of the admin listener, not valid if that is no port
}

func (o *operator) actions() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"POST /api/v1/calls/{id}/hangup": o.serveHangUp,
		"POST /api/v1/bans":              o.serveBan,
		"DELETE /api/v1/bans":            o.serveUnban,
	}
}

// view is the document "bans".
func (o *operator) view() any { return map[string]any{"bans": o.bans.Bans()} }

// serveHangUp ends the calls of an ID, of whichever service.
func (o *operator) serveHangUp(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	about(w, id)
	n := 0
	for _, s := range o.services {
		if s.hangUp != nil {
			n += s.hangUp(id)
		}
	}
	if n == 0 {
		http.Error(w, "there is no such call", http.StatusNotFound)
		return
	}
	writeJSON(w, map[string]int{"ended": n})
}

// banRequest is the body of POST /api/v1/bans.
type banRequest struct {
	Target string `json:"target"`
	For    string `json:"for"` // "1h"; "0": until it is lifted
	Why    string `json:"why"`
}

// banAnswer says what a ban has ended, by service, and how many connections it has cut.
type banAnswer struct {
	denylist.Ban
	Ended       map[string]int `json:"ended"`
	Connections int            `json:"connections"`
}

func (o *operator) serveBan(w http.ResponseWriter, r *http.Request) {
	var ask banRequest
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096))
	in.DisallowUnknownFields()
	if err := in.Decode(&ask); err != nil {
		http.Error(w, "the body is not {\"target\": …, \"for\": \"1h\", \"why\": …}: "+err.Error(), http.StatusBadRequest)
		return
	}
	about(w, ask.Target)
	target, d, err := o.judge(ask)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	_, named := console.Session(r.Context())
	by := "API"
	if named {
		by = "console"
	}
	ban, err := o.bans.Add(target, d, strings.TrimSpace(ask.Why), by+" "+r.RemoteAddr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	done, err := o.expel(ban)
	if err != nil {
		http.Error(w, "banned, but open connections were not found: "+err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, done)
}

// judge checks whom a ban is for, and for how long.
func (o *operator) judge(ask banRequest) (t denylist.Target, d time.Duration, err error) {
	if t, err = denylist.ParseTarget(strings.TrimSpace(ask.Target)); err != nil {
		return t, 0, fmt.Errorf("target: %w", err)
	}
	for name, n := range o.own {
		for _, a := range n.Addresses {
			if t.Net.IsValid() && (t.Net.Contains(a) || t.Net.Contains(n.Public(a))) {
				return t, 0, fmt.Errorf("target: %s has the edge's own address %s, of network %s", t, a, name)
			}
		}
	}
	d = defaultBan
	if ask.For != "" {
		if d, err = time.ParseDuration(ask.For); err != nil {
			return t, 0, errors.New("for: not a duration such as 1h30m; 0 is until it is lifted")
		}
	}
	return t, d, nil
}

// expel ends what those have who are banned now.
func (o *operator) expel(b denylist.Ban) (banAnswer, error) {
	done := banAnswer{Ban: b, Ended: map[string]int{}}
	for _, s := range o.services {
		if s.expel == nil {
			continue
		}
		if n := s.expel(); n > 0 {
			done.Ended[s.name] = n
		}
	}
	var err error
	if b.Target.Net.IsValid() {
		done.Connections, err = o.bans.Cut(o.isAdmin)
	}
	return done, err
}

// isAdmin tells whether a connection to a local address is the operator's own.
func (o *operator) isAdmin(local netip.AddrPort) bool {
	return o.admin.IsValid() && local.Port() == o.admin.Port() && (o.admin.Addr().IsUnspecified() || local.Addr() == o.admin.Addr())
}

// serveUnban lifts the ban of ?target=.
func (o *operator) serveUnban(w http.ResponseWriter, r *http.Request) {
	text := r.URL.Query().Get("target")
	about(w, text)
	t, err := denylist.ParseTarget(text)
	if err != nil {
		http.Error(w, "target: "+err.Error(), http.StatusBadRequest)
		return
	}
	had, err := o.bans.Remove(t)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case !had:
		http.Error(w, t.String()+" is not banned", http.StatusNotFound)
	default:
		writeJSON(w, map[string]string{"lifted": t.String()})
	}
}

// bansDoc is what the API shows.
type bansDoc struct {
	Bans []denylist.Ban `json:"bans"`
}

// printBans prints the document "bans" as a table.
func printBans(w io.Writer, body []byte) error {
	var doc bansDoc
	if err := json.Unmarshal(body, &doc); err != nil {
		return err
	}
	if len(doc.Bans) == 0 {
		fmt.Fprintln(w, "nobody is banned")
		return nil
	}
	rows := [][]string{{"TARGET", "ENDS", "SINCE", "BY", "WHY"}}
	for _, b := range doc.Bans {
		ends := "never"
		if b.Until != nil {
			ends = "in " + time.Until(*b.Until).Round(time.Second).String()
		}
		rows = append(rows, []string{b.Target.String(), ends, b.Since.UTC().Format(time.RFC3339), printable(b.By), printable(b.Why)})
	}
	return printRows(w, rows)
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"edged.dev/edged/internal/demophone"
	"edged.dev/edged/internal/demophone/scenario"
)

// demoScreen prints lines and, below them on a terminal, a table that is drawn anew in its place.
// Without a terminal the table is printed when its calls come or go. It may be used concurrently.
type demoScreen struct {
	w        io.Writer
	terminal bool
	// width returns the columns of the terminal: a table line that wraps would spoil the redrawing.
	width func() int

	mu sync.Mutex
	// drawn is the table as it stands on the terminal; below holds its number of lines.
	drawn string
	below int
	// shape is what makes a table worth printing again without a terminal.
	shape string
}

func newDemoScreen(w io.Writer) *demoScreen {
	s := &demoScreen{w: w}
	if isTerminal(w) {
		s.terminal = true
		s.width = func() int {
			columns, _, err := term.GetSize(int(w.(*os.File).Fd())) // isTerminal says that it is a file
			if err != nil || columns < 20 {
				return 80
			}
			return columns
		}
	}
	return s
}

// line prints a text above the table.
func (s *demoScreen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.printLocked(strings.TrimRight(text, "\n") + "\n")
}

// Write prints log lines above the table.
func (s *demoScreen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.printLocked(string(b))
	return len(b), nil
}

// printLocked replaces the table by text and the table again. The reader is a person: if the
// terminal is gone, there is nobody to tell.
func (s *demoScreen) printLocked(text string) {
	if s.below > 0 {
		text = fmt.Sprintf("\033[%dA\033[J", s.below) + text + s.drawn
	}
	_, _ = io.WriteString(s.w, text)
}

// table shows the calls.
func (s *demoScreen) table(rows []scenario.Row, now edgeCounts) {
	if len(rows) == 0 {
		return
	}
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "  call\tstate\ttime\tverified there/sent\tverified back/sent\n")
	shape := ""
	for _, r := range rows {
		fmt.Fprintf(tw, "  %s → %s\t%s\t%.1fs\t%s\t%s\n", r.From, r.To, r.State, r.Age.Seconds(),
			streamCell(r.SentThere, r.There), streamCell(r.SentBack, r.Back))
		shape += r.State
	}
	tw.Flush()
	fmt.Fprintf(&b, "  the edge counts %d calls, %d pinholes\n", now.calls, now.pinholes)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		if shape != s.shape {
			s.shape = shape
			s.printLocked(b.String())
		}
		return
	}
	up := ""
	if s.below > 0 {
		up = fmt.Sprintf("\033[%dA\033[J", s.below)
	}
	s.drawn, s.below = cut(b.String(), s.width()), bytes.Count(b.Bytes(), []byte("\n"))
	_, _ = io.WriteString(s.w, up+s.drawn)
}

// cut shortens the lines of a text to a number of columns.
func cut(text string, columns int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if r := []rune(strings.TrimSuffix(line, "\n")); len(r) > columns {
			line = string(r[:columns]) + "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// freeze leaves the table where it is; the next lines come below it.
func (s *demoScreen) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drawn, s.below = "", 0
}

func streamCell(sent int, st demophone.StreamStats) string {
	return fmt.Sprintf("%d/%d, lost %d, %v", st.Verified, sent, st.Lost, st.Jitter.Round(10*time.Microsecond))
}

// edgeCounts is what the daemon's own API says.
type edgeCounts struct {
	calls, pinholes int
}

// look asks the daemon for its calls and pinholes.
func (d *demo) look(ctx context.Context) (edgeCounts, error) {
	var c edgeCounts
	for name, n := range map[string]*int{"calls": &c.calls, "pinholes": &c.pinholes} {
		body, err := d.edge.get(ctx, "/api/v1/"+name)
		if err != nil {
			return c, err
		}
		doc := map[string]json.RawMessage{}
		var list []json.RawMessage
		if err := json.Unmarshal(body, &doc); err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
		if err := json.Unmarshal(doc[name], &list); err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
		*n = len(list)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = c
	d.peak = edgeCounts{max(d.peak.calls, c.calls), max(d.peak.pinholes, c.pinholes)}
	return c, nil
}

// leftovers checks that the edge knew of the calls and has forgotten them.
func (d *demo) leftovers(ctx context.Context) scenario.Check {
	c := scenario.Check{Name: "nothing is left at the edge"}
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := d.look(limit)
		d.mu.Lock()
		peak := d.peak
		d.mu.Unlock()
		c.OK = err == nil && now == (edgeCounts{}) && peak.calls > 0 && peak.pinholes > 0
		c.Detail = fmt.Sprintf("it had up to %d calls and %d pinholes, now %d and %d", peak.calls, peak.pinholes, now.calls, now.pinholes)
		if err != nil {
			c.Detail = err.Error()
		}
		if c.OK {
			return c
		}
		select {
		case <-limit.Done():
			return c
		case <-tick.C:
		}
	}
}

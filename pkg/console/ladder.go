package console

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// traceDoc is the signalling of one call, as /api/v1/calls/ID/trace has it.
type traceDoc struct {
	CallID   string    `json:"call_id"`
	IDs      []string  `json:"ids"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Started  time.Time `json:"started"`
	Dropped  int       `json:"dropped"`
	Parties  []string  `json:"parties"`
	Messages []message `json:"messages"`
}

type message struct {
	Seq       uint64     `json:"seq"`
	Time      time.Time  `json:"time"`
	Direction string     `json:"direction"`
	Network   string     `json:"network"`
	Transport string     `json:"transport"`
	Remote    string     `json:"remote"`
	Summary   string     `json:"summary"`
	Status    int        `json:"status"`
	Repeat    bool       `json:"repeat"`
	Text      string     `json:"text"`
	Of        uint64     `json:"of"`
	Diff      []diffLine `json:"diff"`
}

type diffLine struct {
	Op   string `json:"op"`
	Line string `json:"line"`
}

// Class returns what a line of a diff is drawn as.
func (d diffLine) Class() string {
	return map[string]string{"-": "old", "+": "new"}[d.Op]
}

// ladder is a call's signalling as a diagram: a column for each party, the edge second, time downward.
type ladder struct {
	Wide, High int
	Columns    []ladderColumn
	Arrows     []arrow
	Before     int // messages that are not shown any more
	Capture    string
}

type ladderColumn struct {
	X    int
	Name string
}

// arrow is a message between the edge and a party.
type arrow struct {
	message
	X1, X2, Y, TextX, TextY int
	At, Head, Class         string
	Changed                 int // lines
}

const (
	ladderStep    = 280 // between columns
	ladderMargin  = 110
	ladderRow     = 36
	ladderTop     = 48
	maxParties    = 6
	maxLadderRows = 100
)

// newLadder draws the last messages of a trace.
func newLadder(doc traceDoc, capture string) *ladder {
	l := &ladder{Capture: capture, Before: doc.Dropped}
	if n := len(doc.Messages) - maxLadderRows; n > 0 {
		doc.Messages, l.Before = doc.Messages[n:], l.Before+n
	}
	parties := doc.Parties[:min(len(doc.Parties), maxParties)]
	column := func(remote string) int { // the edge's own is 1; who has none shares the last
		i := slices.Index(parties, remote)
		switch {
		case i == 0:
			return 0
		case i < 0:
			return max(2, len(parties))
		}
		return i + 1
	}
	x := func(column int) int { return ladderMargin + column*ladderStep }
	last := 1
	for i, m := range doc.Messages {
		at := column(m.Remote)
		last = max(last, at)
		a := arrow{message: m, X1: x(at), X2: x(1), Y: ladderTop + (i+1)*ladderRow, At: m.Time.UTC().Format("15:04:05.000")}
		if m.Direction == "out" {
			a.X1, a.X2 = a.X2, a.X1
		}
		a.TextX, a.TextY = (a.X1+a.X2)/2, a.Y-6
		a.Head, a.Class = head(a), class(m)
		for _, d := range m.Diff {
			if d.Op != "=" {
				a.Changed++
			}
		}
		l.Arrows = append(l.Arrows, a)
	}
	l.Wide, l.High = x(last)+ladderMargin, ladderTop+(len(l.Arrows)+1)*ladderRow
	l.Columns = append(l.Columns, ladderColumn{x(1), "edged"})
	for i, p := range parties {
		l.Columns = append(l.Columns, ladderColumn{x(column(parties[i])), p})
	}
	return l
}

// head returns the points of an arrow's head.
func head(a arrow) string {
	back := -8
	if a.X2 < a.X1 {
		back = 8
	}
	return fmt.Sprintf("%d,%d %d,%d %d,%d", a.X2, a.Y, a.X2+back, a.Y-4, a.X2+back, a.Y+4)
}

// class tells failures and retransmissions apart from the rest.
func class(m message) string {
	switch {
	case m.Repeat:
		return "arrow repeat"
	case m.Status >= 400:
		return "arrow failed"
	}
	return "arrow"
}

// addLadder adds the signalling of a call, if the daemon (still) has it.
func (c *Console) addLadder(r *http.Request, v *view, id string) (traceDoc, bool, error) {
	doc, ok, err := get[traceDoc](r.Context(), c.source, "calls/"+url.PathEscape(id)+"/trace")
	if ok && err == nil {
		v.Ladder = newLadder(doc, callPath(id)+"/capture")
	}
	return doc, ok, err
}

// past is the page of a call that has ended, as far as its signalling is kept.
func (c *Console) past(r *http.Request, id string) (view, error) {
	var v view
	doc, ok, err := c.addLadder(r, &v, id)
	if err != nil || !ok {
		return v, errors.Join(err, map[bool]error{false: errNotFound}[ok])
	}
	v.Title = bare(doc.From) + " → " + bare(doc.To)
	v.Facts = []figure{{Label: "State", Value: "not live"}, {Label: "Started", Value: stamp(doc.Started)}, {Label: "Call-ID", Value: doc.CallID}}
	return v, nil
}

// tracesDoc lists the calls of which signalling is kept.
type tracesDoc struct {
	Traces []struct {
		CallID   string    `json:"call_id"`
		From     string    `json:"from"`
		To       string    `json:"to"`
		Method   string    `json:"method"`
		Status   int       `json:"status"`
		Started  time.Time `json:"started"`
		Messages int       `json:"messages"`
	} `json:"traces"`
}

// tracesTable lists the latest of them, live or not.
func (c *Console) tracesTable(r *http.Request) (table, bool, error) {
	doc, ok, err := get[tracesDoc](r.Context(), c.source, "traces")
	t := table{ID: "traces", Title: "Signalling that is kept", Cols: cols("From", "To", "Began with", "#Answer", "Started", "#Messages"), Empty: "None yet."}
	for _, x := range doc.Traces {
		answer := "–"
		if x.Status > 0 {
			answer = fmt.Sprint(x.Status)
		}
		t.Rows = append(t.Rows, row{x.CallID, []cell{
			{Text: orDash(bare(x.From)), Link: callPath(x.CallID)}, text(bare(x.To)), text(x.Method), {Text: answer}, text(stamp(x.Started)), number(x.Messages),
		}})
	}
	return t, ok, err
}

// capture passes on the signalling of a call as pcapng.
func (c *Console) capture(w http.ResponseWriter, r *http.Request) {
	code, header, body := c.source.ask(r.Context(), http.MethodGet, "calls/"+url.PathEscape(r.PathValue("id"))+"/capture", "")
	if code != http.StatusOK {
		c.fail(w, r, errNotFound)
		return
	}
	for _, name := range []string{"Content-Type", "Content-Disposition"} {
		if v := header.Get(name); v != "" {
			w.Header().Set(name, strings.TrimSpace(v))
		}
	}
	if _, err := w.Write(body); err != nil {
		return // the browser has gone
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/trace"
)

// traceFlags are the flags of edged trace.
type traceFlags struct {
	clientFlags
	follow, diff, full, secrets bool
}

func newTraceCmd() *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use:   "trace [CALL]",
		Short: "Show the signalling of a call, as it came and as it was sent on",
		Long: "Trace draws the messages of a call as a ladder: every address that took part is a column, the edge stands\n" +
			"among them. CALL is the id of a call as edged calls and the call records have it, or a Call-ID; of H.323 the callIdentifier. Without it\n" +
			"the calls of which signalling is known are listed: those that ended or failed too, as long as trace.memory\n" +
			"has room. Digest responses and keys are masked.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newAPIClient(cmd, f.clientFlags)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return c.show(cmd, f.clientFlags, "/api/v1/traces", printTraces)
			}
			return c.trace(cmd, f, args[0])
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the API's JSON; with --follow a message a line")
	cmd.Flags().BoolVar(&f.follow, "follow", false, "go on with what comes, until interrupted")
	cmd.Flags().BoolVar(&f.diff, "diff", false, "print below each message that was rewritten what was changed")
	cmd.Flags().BoolVar(&f.full, "full", false, "print the messages themselves too")
	cmd.Flags().BoolVar(&f.secrets, "secrets", false, "show digest responses and keys")
	return cmd
}

func printTraces(w io.Writer, body []byte) error {
	var doc struct {
		Traces []trace.Summary `json:"traces"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CALL\tMETHOD\tSTATUS\tFROM\tTO\tLAST\tMESSAGES")
	for _, s := range doc.Traces {
		name := s.CallID
		if len(s.IDs) > 0 {
			name = s.IDs[0]
		}
		status := "-"
		if s.Status > 0 {
			status = strconv.Itoa(s.Status)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", printable(name), printable(s.Method), status, printable(uriOf(s.From)), printable(uriOf(s.To)),
			s.Last.Local().Format(time.TimeOnly), s.Messages)
	}
	return tw.Flush()
}

// uriOf returns the address in a From or To.
func uriOf(s string) string {
	if _, rest, ok := strings.Cut(s, "<"); ok {
		s, _, _ = strings.Cut(rest, ">")
	}
	s, _, _ = strings.Cut(s, ";")
	return s
}

// trace prints one call, and with --follow what comes after.
func (c *apiClient) trace(cmd *cobra.Command, f traceFlags, id string) error {
	out := cmd.OutOrStdout()
	l := &ladder{out: out, traceFlags: f}
	for after := uint64(0); ; {
		t, body, err := c.getTrace(cmd.Context(), id, after, f.secrets)
		if err != nil {
			return err
		}
		switch {
		case f.json && !f.follow:
			_, err = out.Write(body)
		case f.json:
			for i := 0; i < len(t.Messages) && err == nil; i++ {
				err = json.NewEncoder(out).Encode(t.Messages[i])
			}
		default:
			err = l.print(t)
		}
		if err != nil || !f.follow {
			return err
		}
		if n := len(t.Messages); n > 0 {
			after = t.Messages[n-1].Seq
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (c *apiClient) getTrace(ctx context.Context, id string, after uint64, secrets bool) (t trace.Trace, body []byte, err error) {
	path := "/api/v1/calls/" + url.PathEscape(id) + "/trace?after=" + strconv.FormatUint(after, 10)
	if secrets {
		path += "&secrets=1"
	}
	if body, err = c.get(ctx, path); err != nil {
		return t, nil, err
	}
	err = json.Unmarshal(body, &t)
	return t, body, err
}

// ladder draws messages as they come. Its columns are the first party, the edge, and the other parties.
type ladder struct {
	traceFlags
	out     io.Writer
	parties []netip.AddrPort
}

const columnWidth = 26

// print draws the messages of t, with a new heading where somebody new takes part.
func (l *ladder) print(t trace.Trace) error {
	var b strings.Builder
	if l.parties == nil {
		fmt.Fprintf(&b, "%s → %s\nCall-ID %s", printable(uriOf(t.From)), printable(uriOf(t.To)), printable(t.CallID))
		if t.Dropped > 0 {
			fmt.Fprintf(&b, " (the first %d messages are forgotten)", t.Dropped)
		}
		b.WriteByte('\n')
	}
	if !slices.Equal(l.parties, t.Parties) {
		l.parties = t.Parties
		l.heading(&b)
	}
	for _, e := range t.Messages {
		l.message(&b, e)
	}
	_, err := io.WriteString(l.out, b.String())
	return err
}

func (l *ladder) heading(b *strings.Builder) {
	b.WriteString("\n" + strings.Repeat(" ", 13))
	for i := range len(l.parties) + 1 {
		fmt.Fprintf(b, "%-*s", columnWidth, l.columnName(i))
	}
	b.WriteByte('\n')
}

// columnName returns what stands above a column; 1 is the edge.
func (l *ladder) columnName(i int) string {
	switch {
	case i == 1:
		return "edge"
	case i > 1:
		i--
	}
	return l.parties[i].String()
}

// column returns where a party stands.
func (l *ladder) column(remote netip.AddrPort) int {
	if i := slices.Index(l.parties, remote); i > 0 {
		return i + 1
	}
	return 0
}

// message draws an arrow between the edge and a party, and what is asked for below it.
func (l *ladder) message(b *strings.Builder, e trace.Entry) {
	b.WriteString(e.Time.Local().Format("15:04:05.000 "))
	at := l.column(e.Remote)
	from, to := min(at, 1), max(at, 1)
	toRight := (e.Direction == "out") == (at > 1)
	note := e.Transport
	if e.Protocol != "" && e.Protocol != "sip" && e.Summary != e.Method {
		note += ": " + printable(strings.TrimSpace(strings.TrimPrefix(e.Summary, e.Method)))
	}
	if e.Repeat {
		note += ", again"
	}
	changed := changes(e.Diff)
	if changed > 0 {
		note += fmt.Sprintf(", lines changed: %d", changed)
	}
	width := (to-from)*columnWidth - 1
	b.WriteString(strings.Repeat(" ", from*columnWidth) + "│" + arrow(label(e), width, toRight) + "│ " + note + "\n")
	if l.diff {
		for _, d := range e.Diff {
			if d.Op != "=" {
				fmt.Fprintf(b, "    %s %s\n", d.Op, printable(d.Line))
			}
		}
	}
	if l.full {
		for line := range strings.Lines(e.Text) {
			fmt.Fprintf(b, "    | %s\n", printable(strings.TrimRight(line, "\r\n")))
		}
	}
}

// label is what stands on an arrow.
func label(e trace.Entry) string {
	if e.Status == 0 {
		return printable(e.Method)
	}
	text := printable(e.Summary)
	if e.Method != "INVITE" {
		text += " (" + printable(e.Method) + ")"
	}
	return text
}

// arrow draws a text of limited width on a line with a head.
func arrow(text string, width int, right bool) string {
	r := []rune(text)
	if room := width - 4; len(r) > room {
		r = append(r[:room-1], '…')
	}
	left := (width - len(r) - 2) / 2
	line := []rune(strings.Repeat("─", left) + " " + string(r) + " " + strings.Repeat("─", width-len(r)-2-left))
	if right {
		line[len(line)-1] = '►'
	} else {
		line[0] = '◄'
	}
	return string(line)
}

// changes counts the lines that are new or gone; one that was rewritten is one.
func changes(diff []trace.Line) int {
	var gone, added int
	for _, d := range diff {
		switch d.Op {
		case "-":
			gone++
		case "+":
			added++
		}
	}
	return max(gone, added)
}

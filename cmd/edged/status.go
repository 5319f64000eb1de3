package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/sipalg"
)

func newStatusCmd() *cobra.Command {
	var f clientFlags
	var healthz bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the running daemon does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			if healthz {
				_, err := c.get(cmd.Context(), "/healthz")
				return err
			}
			return c.show(cmd, f, "/api/v1/status", printStatus)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&healthz, "healthz", false, "print nothing; exit with 0 if the daemon is healthy, else 1")
	return cmd
}

// printStatus prints the status document as aligned lines.
func printStatus(w io.Writer, body []byte) error {
	var doc statusDoc
	if err := json.Unmarshal(body, &doc); err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	up := time.Duration(doc.Uptime * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(tw, "edged\t%s\tpid %d\tup %s\t%s\n", doc.Build.Version, doc.PID, up, doc.State)
	if d := doc.Draining; d != nil {
		fmt.Fprintf(tw, "draining\tcalls left: %d, until %s at the latest\n", d.Calls, d.Until.Format(time.RFC3339))
	}
	fmt.Fprintf(tw, "config\tloaded %s\n", doc.Config.LoadedAt.Format(time.RFC3339))
	if doc.Config.Error != "" {
		first, rest, more := strings.Cut(doc.Config.Error, "\n")
		if more {
			first += fmt.Sprintf(" (and %d more)", 1+strings.Count(rest, "\n"))
		}
		fmt.Fprintf(tw, "config\treload refused: %s\n", first)
	}
	for _, key := range doc.Config.RestartRequired {
		fmt.Fprintf(tw, "config\trestart required: %s\n", key)
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Services)) {
		fmt.Fprintf(tw, "%s\t%s\n", name, oneLine(doc.Services[name]))
	}
	return tw.Flush()
}

// oneLine prints a service's status as "key value, key value".
func oneLine(v any) string {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Sprint(v)
	}
	parts := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		text := fmt.Sprint(m[k])
		if list, isList := m[k].([]any); isList {
			text = strings.Trim(fmt.Sprint(list), "[]")
		}
		parts = append(parts, strings.ReplaceAll(k, "_", " ")+" "+text)
	}
	return strings.Join(parts, ", ")
}

func newCallsCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "calls",
		Short: "Show the calls that pass the running daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			return c.show(cmd, f, "/api/v1/calls", printCalls)
		},
	}
	f.register(cmd)
	cmd.AddCommand(newHangUpCmd())
	return cmd
}

// printCalls prints the document "calls" as a table.
func printCalls(w io.Writer, body []byte) error {
	var doc struct {
		Calls []sipalg.CallInfo `json:"calls"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return err
	}
	if len(doc.Calls) == 0 {
		fmt.Fprintln(w, "no calls")
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tSTATE\tFOR\tFROM\tTO\tCALLER\tCALLEE\tPINHOLES")
	for _, c := range doc.Calls {
		since := c.Started
		if c.Answered != nil {
			since = *c.Answered
		}
		callee := c.Networks[1]
		if c.Callee != "" {
			callee += " " + c.Callee
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s %s\t%s\t%d\n", c.ID, c.State, time.Since(since).Round(time.Second),
			short(c.From), short(c.To), c.Networks[0], c.Caller, callee, c.Pinholes)
	}
	return tw.Flush()
}

// short cuts a URI to what fits a table, and drops what would disturb a terminal.
func short(uri string) string {
	clean := []rune(printable(uri))
	if len(clean) > 40 {
		return string(clean[:39]) + "…"
	}
	return string(clean)
}

// printable drops what would disturb a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// printableText is printable of text that may have several lines.
func printableText(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

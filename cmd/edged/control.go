package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

// control is what may be done with the whole daemon by way of the admin listener.
type control struct {
	reload func() reloadOutcome
	// busy counts the calls for which a drain waits.
	busy func() int
	// drains takes the time that a drain may last; it has room for one.
	drains chan time.Duration
	asked  atomic.Bool
	limit  time.Duration
}

func (c *control) actions() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"POST /api/v1/reload": c.serveReload, "POST /api/v1/drain": c.serveDrain}
}

// serveReload answers once the reload is done or refused.
func (c *control) serveReload(w http.ResponseWriter, _ *http.Request) {
	out := c.reload()
	if !out.OK {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(out) // who has gone does not read it
		return
	}
	writeJSON(w, out)
}

// serveDrain answers at once; the daemon ends with its last call.
func (c *control) serveDrain(w http.ResponseWriter, r *http.Request) {
	limit := c.limit
	if s := r.FormValue("limit"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			http.Error(w, "limit: not a duration such as 30s", http.StatusBadRequest)
			return
		}
		limit = d
	}
	if c.asked.Swap(true) {
		http.Error(w, "it is draining already", http.StatusConflict)
		return
	}
	writeJSON(w, map[string]any{"calls": c.busy()})
	c.drains <- limit // has room for one
}

func newReloadCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running daemon read its configuration again, and say what came of it",
		Long: "Reload is SIGHUP that answers: it prints what was taken over and what needs a restart. If anything is wrong\n" +
			"with the file, all faults are printed, what runs stays as it is, and the exit code is 1.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			c.http.Timeout = time.Minute
			status, body, err := c.do(cmd.Context(), http.MethodPost, "/api/v1/reload")
			if err != nil {
				return err
			}
			var out reloadOutcome
			if status != http.StatusOK && status != http.StatusUnprocessableEntity || json.Unmarshal(body, &out) != nil {
				return fmt.Errorf("reload: %d: %s", status, body)
			}
			if f.json {
				_, err = cmd.OutOrStdout().Write(body)
			} else {
				out.print(cmd.OutOrStdout())
			}
			if err == nil && !out.OK {
				err = fmt.Errorf("reload refused, the old configuration stays:\n%s", out.Error)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (o reloadOutcome) print(w io.Writer) {
	if !o.OK {
		return
	}
	if len(o.Changed) == 0 {
		fmt.Fprintln(w, "reloaded: files that the configuration names were read again, no live key has changed")
	}
	for _, key := range o.Changed {
		fmt.Fprintln(w, "changed:", key)
	}
	for _, key := range o.RestartRequired {
		fmt.Fprintln(w, "restart required:", key)
	}
}

func newDrainCmd() *cobra.Command {
	var f clientFlags
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Have the running daemon take no new calls and end with its last one; wait for that",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			status, body, err := c.do(cmd.Context(), http.MethodPost, "/api/v1/drain?limit="+url.QueryEscape(limit.String()))
			if err != nil {
				return err
			}
			var doc struct{ Calls int }
			if status != http.StatusOK || json.Unmarshal(body, &doc) != nil {
				return fmt.Errorf("drain: %d: %s", status, body)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "draining, %d calls\n", doc.Calls)
			c.watchDrain(cmd.Context(), cmd.OutOrStdout(), doc.Calls)
			return nil
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().DurationVar(&limit, "limit", 10*time.Minute, "longest time to wait for calls to end")
	return cmd
}

// watchDrain prints how many calls are left each time that changes, until the daemon has ended.
func (c *apiClient) watchDrain(ctx context.Context, out io.Writer, left int) {
	var until time.Time
	for {
		body, err := c.get(ctx, "/api/v1/status")
		var doc statusDoc
		switch {
		case err != nil && left > 0 && !until.IsZero() && !time.Now().Before(until):
			fmt.Fprintf(out, "ended; calls that were cut off: %d\n", left)
			return
		case err != nil:
			fmt.Fprintln(out, "ended")
			return
		case json.Unmarshal(body, &doc) == nil && doc.Draining != nil && (until.IsZero() && left > 0 || doc.Draining.Calls != left):
			left, until = doc.Draining.Calls, doc.Draining.Until
			fmt.Fprintf(out, "calls left: %d (%v at most)\n", left, time.Until(doc.Draining.Until).Round(time.Second))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

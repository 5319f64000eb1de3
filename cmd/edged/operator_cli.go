package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func newHangUpCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "hangup ID...",
		Short: "End calls: both sides are told",
		Long: "Hangup ends calls by the ID that edged calls shows, or by their Call-ID. A SIP call that is answered gets a BYE on\n" +
			"both sides, one that rings a CANCEL; an H.323 call Release Complete. Its record says \"hung up by operator\".",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			for _, id := range args {
				if _, err := c.ask(cmd.Context(), http.MethodPost, "/api/v1/calls/"+url.PathEscape(id)+"/hangup"); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "hung up:", id)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	return cmd
}

func newBanCmd() *cobra.Command {
	var f clientFlags
	var ask banRequest
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "ban ADDRESS|NETWORK|user:NAME|NAME@DOMAIN",
		Short: "Shut an address, a network or a user out for a time",
		Long: "Ban has nothing taken any more from an address (192.0.2.7, 2001:db8::/56) or a user (user:alice, of any domain and of\n" +
			"SIP, TURN and the tunnel; alice@example.org), ends the calls and allocations that are there, and cuts\n" +
			"open connections. With state.dir the list is kept over a restart.",
		Example: "  edged ban 198.51.100.66 --for 24h --why \"toll fraud\"\n  edged ban user:mallory\n  edged bans\n  edged unban 198.51.100.66",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			ask.Target, ask.For = args[0], life.String()
			body, err := json.Marshal(ask)
			if err != nil {
				return err
			}
			status, answer, err := c.send(cmd.Context(), http.MethodPost, "/api/v1/bans", bytes.NewReader(body))
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("not banned: %s", strings.TrimSpace(string(answer)))
			}
			if err != nil {
				return err
			}
			if f.json {
				_, err = cmd.OutOrStdout().Write(answer)
				return err
			}
			return printBanned(cmd.OutOrStdout(), answer)
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the API's JSON")
	cmd.Flags().DurationVar(&life, "for", defaultBan, "how long; 0 = until it is lifted")
	cmd.Flags().StringVar(&ask.Why, "why", "", "the `REASON`, for those who read the list")
	return cmd
}

func printBanned(w io.Writer, answer []byte) error {
	var done banAnswer
	if err := json.Unmarshal(answer, &done); err != nil {
		return err
	}
	until := "until it is lifted"
	if done.Until != nil {
		until = "until " + done.Until.UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(w, "banned: %s %s\n", done.Target, until)
	for _, name := range slices.Sorted(maps.Keys(done.Ended)) {
		fmt.Fprintf(w, "ended: %d of %s\n", done.Ended[name], name)
	}
	if done.Connections > 0 {
		fmt.Fprintf(w, "cut: %d connections\n", done.Connections)
	}
	return nil
}

func newBansCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "bans",
		Short: "Show who is banned",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			return c.show(cmd, f, "/api/v1/bans", printBans)
		},
	}
	f.register(cmd)
	return cmd
}

func newUnbanCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "unban TARGET...",
		Short: "Lift bans",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			for _, target := range args {
				if _, err := c.ask(cmd.Context(), http.MethodDelete, "/api/v1/bans?target="+url.QueryEscape(target)); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "lifted:", target)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	return cmd
}

// printRows prints rows as aligned columns.
func printRows(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

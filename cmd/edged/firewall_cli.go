package main

import (
	"bytes"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/firewall"
)

func newFirewallCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "firewall",
		Short: "Show, apply and remove the rules that hand over to the edge what hosts inside send to others",
		Long: "The rules are a table of nftables of its own, inet edged, and policy routing; those of others are not touched.\n" +
			"What is handed over are the ports of the listeners, on trusted networks, of sections that are transparent.\n" +
			"With firewall.manage the daemon does this itself.",
	}
	show := &cobra.Command{
		Use: "show", Short: "Print what would be applied, in nft's words; nothing is changed", Args: cobra.NoArgs,
		RunE: withRules(func(cmd *cobra.Command, r firewall.Rules) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), r)
			return err
		}),
	}
	apply := &cobra.Command{
		Use: "apply", Short: "Put the rules in place of those of earlier, all at once", Args: cobra.NoArgs,
		Long: "A daemon that manages the rules does it itself when asked by this command: those of its own configuration.",
		RunE: withRules(func(cmd *cobra.Command, r firewall.Rules) error {
			return byDaemon(cmd, "on", "applied by the daemon", func() error { return firewall.Apply(r) })
		}),
	}
	remove := &cobra.Command{
		Use: "remove", Short: "Remove the rules; it is no error if there are none", Args: cobra.NoArgs,
		Long: "A daemon that manages the rules is told, and leaves them off until \"edged firewall apply\", \"edged reload\" or its restart.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(configFile(cmd))
			if err != nil {
				return err
			}
			return byDaemon(cmd, "off", "removed; the daemon leaves them off until \"edged firewall apply\", \"edged reload\" or its restart",
				func() error { return firewall.Remove(cfg.Firewall) })
		},
	}
	cmd.AddCommand(show, apply, remove)
	return cmd
}

// withRules runs f with the rules that the configuration asks for on this machine.
func withRules(f func(*cobra.Command, firewall.Rules) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(configFile(cmd))
		if err != nil {
			return err
		}
		rules, err := cfg.firewallRules(interfaceOf)
		if err != nil {
			return err
		}
		return f(cmd, rules)
	}
}

// byDaemon asks the daemon that manages the rules to do what it would otherwise undo. If none runs, or the one that runs
// does not manage them, it is done here.
func byDaemon(cmd *cobra.Command, verb, done string, here func() error) error {
	c, err := newAPIClient(cmd, clientFlags{})
	if err != nil {
		return here() // it has no admin listener
	}
	status, body, err := c.do(cmd.Context(), http.MethodPost, "/api/v1/firewall/"+verb)
	switch {
	case err != nil, status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		return here()
	case status != http.StatusOK:
		return fmt.Errorf("the daemon that manages the rules: %d: %s", status, bytes.TrimSpace(body))
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), done)
	return err
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newCheckCmd() *cobra.Command {
	var explain, asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and the files it names",
		Long: "Check reads the configuration and every file that it names. It prints each fault as\n" +
			"FILE:LINE: key: what is wrong, all at once, and exits with 2 if there is any.\n" +
			"With --explain it prints every port that would be open, and beside the published port tables\n" +
			"of the profiles (of all systems, if none is on) what the edge does for each row.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && !explain {
				return errors.New("--json needs --explain")
			}
			file := configFile(cmd)
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			if !asJSON {
				warn(cmd.OutOrStdout(), file, cfg)
				fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", file)
			}
			if !explain {
				return nil
			}
			table := cfg.explain()
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(table)
			}
			fmt.Fprintln(cmd.OutOrStdout())
			return table.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&explain, "explain", false, "print the ports that would be open, beside the published port tables")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --explain: as JSON")
	return cmd
}

// warn prints what works but should not have to.
func warn(w io.Writer, file string, cfg *config) {
	for _, network := range cfg.TLS.Legacy {
		fmt.Fprintf(w, "%s: warning: tls.legacy: TLS 1.0 and 1.1 are accepted on %s: they protect little\n", file, network)
	}
}

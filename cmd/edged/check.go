package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newCheckCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and the files it names",
		Long: "Check reads the configuration and every file that it names. It prints each fault as\n" +
			"FILE:LINE: key: what is wrong, all at once, and exits with 2 if there is any.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := configFile(cmd)
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			for _, network := range cfg.TLS.Legacy {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: warning: tls.legacy: TLS 1.0 and 1.1 are accepted on %s: they protect little\n", file, network)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", file)
			return nil
		},
	}
}

// Command edged is a gateway daemon between two networks. It makes SIP calls and
// their media pass where addresses in messages would otherwise lead nowhere.
//
// This package holds what only the whole program knows: the sum of the packages'
// configurations, the table of services, the sockets, the admin listener and the
// signals. It holds no protocol; nobody can import it.
//
//	edged.yaml ─► config ─► services (table) ─► sockets ─► Serve
//	                  └──► admin: /metrics /healthz /readyz /api/v1 ◄─ edged status, calls
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// Exit codes, documented in docs/operations.md.
const (
	exitOK     = 0
	exitFailed = 1
	exitConfig = 2
)

func main() {
	os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs one command line and returns the exit code.
func execute(args []string, stdout, stderr io.Writer) int {
	root := newRootCmd()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	var bad *configError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &bad):
		fmt.Fprintln(stderr, bad)
		return exitConfig
	}
	fmt.Fprintln(stderr, "edged:", err)
	return exitFailed
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "edged",
		Short:         "Calls and media between networks that cannot reach each other",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().String("config", "/etc/edged/edged.yaml", "configuration `FILE`")
	root.AddCommand(
		newRunCmd(), newCheckCmd(), newStatusCmd(), newCallsCmd(), newBanCmd(), newBansCmd(), newUnbanCmd(), newTraceCmd(), newCaptureCmd(), newReloadCmd(), newDrainCmd(),
		newFastpathCmd(), newDoctorCmd(), newFirewallCmd(), newDemoCmd(), newSchemaCmd(),
		newTURNCmd(), newTunnelCmd(), newManCmd(), newVersionCmd(),
	)
	return root
}

// configFile returns the value of --config.
func configFile(cmd *cobra.Command) string {
	file, err := cmd.Flags().GetString("config")
	if err != nil {
		panic(err) // the flag is defined above
	}
	return file
}

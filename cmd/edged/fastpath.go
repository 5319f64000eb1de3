package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/media/fastpath"
)

func newFastpathCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fastpath",
		Short: "Show or remove what is pinned of the kernel's media path; needs no running daemon",
	}
	cmd.PersistentFlags().String("pin", "", "`DIR` to look in instead of the configured media.pin")
	cmd.AddCommand(newFastpathStatusCmd(), newFastpathDetachCmd())
	return cmd
}

func newFastpathStatusCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the devices, the lease and the flows",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := pinFolder(cmd)
			if err != nil {
				return err
			}
			list, err := fastpath.Inspect(dir)
			if err != nil {
				return withRemedy(err)
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if list == nil {
					list = []fastpath.State{}
				}
				return enc.Encode(map[string]any{"folder": dir, "instances": list})
			}
			return printFastpath(cmd.OutOrStdout(), dir, list)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newFastpathDetachCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "detach",
		Short: "Take the programs from the devices and remove what is pinned",
		Long: "Detach ends what a daemon that was killed has left in the kernel, of every instance in the folder.\n" +
			"What a running daemon holds stays, unless --force is given: its media then goes through user space\n" +
			"or is lost until it is restarted.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := pinFolder(cmd)
			if err != nil {
				return err
			}
			removed, err := fastpath.Detach(dir, force)
			for _, name := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", name)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "nothing is pinned in %s\n", dir)
			}
			return withRemedy(err)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also what a running daemon holds")
	return cmd
}

// pinFolder returns --pin, else the folder that the configuration names. Faults elsewhere in the file do not
// matter here, and without a file it is the default one.
func pinFolder(cmd *cobra.Command) (string, error) {
	if dir, err := cmd.Flags().GetString("pin"); err == nil && dir != "" {
		return dir, nil
	}
	cfg := defaultConfig()
	data, err := os.ReadFile(configFile(cmd))
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || cmd.Flags().Changed("config")) {
		return "", fmt.Errorf("configuration: %w", err)
	}
	decodeYAML(data, &cfg)
	if cfg.Media.Pin == "" {
		return "", errors.New("the configuration pins nothing (media.pin is empty); --pin names a folder")
	}
	return cfg.Media.Pin, nil
}

// withRemedy adds to an error what may be done about it.
func withRemedy(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run it as root, or as the daemon's user with CAP_BPF and CAP_NET_ADMIN", err)
	case errors.Is(err, fastpath.ErrLive):
		return fmt.Errorf("%w; stop it first, or say --force", err)
	}
	return err
}

// printFastpath prints what is pinned as tables.
func printFastpath(w io.Writer, dir string, list []fastpath.State) error {
	if len(list) == 0 {
		_, err := fmt.Fprintf(w, "nothing is pinned in %s\n", dir)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range list {
		printInstance(tw, s)
		printFlows(tw, s.Flows)
	}
	return tw.Flush()
}

func printInstance(w io.Writer, s fastpath.State) {
	who := "no daemon holds it"
	if s.Live {
		who = "held by a running daemon"
	}
	where := "in another network namespace"
	if s.Here {
		where = "in this network namespace"
	}
	fmt.Fprintf(w, "%s\t%s, %s\n", s.Instance, who, where)
	layout := s.Layout + ", another version's: its flows cannot be read"
	if s.Readable {
		layout = s.Layout
	}
	fmt.Fprintf(w, "layout\t%s\n", layout)
	for _, p := range s.Programs {
		fmt.Fprintf(w, "program\t%s %s\n", p.Name, p.Tag)
	}
	lease := "has ended, nothing is forwarded"
	if s.LeaseSeconds > 0 {
		lease = fmt.Sprintf("%.0f s left", s.LeaseSeconds)
	}
	if s.Readable {
		fmt.Fprintf(w, "lease\t%s\n", lease)
	}
	for _, d := range s.Devices {
		fmt.Fprintf(w, "device\t%s (%d) %s\n", strings.TrimSpace(d.Name), d.Index, d.Attached)
	}
	for _, path := range s.Damaged {
		fmt.Fprintf(w, "damaged\t%s is no link; detach removes it\n", path)
	}
	fmt.Fprintf(w, "flows\t%d\n", len(s.Flows))
}

func printFlows(w io.Writer, flows []fastpath.FlowState) {
	if len(flows) == 0 {
		return
	}
	fmt.Fprintln(w, "LOCAL\tPEER\tOUT\tTO\tPACKETS\tBYTES\tIDLE")
	for _, f := range flows {
		idle := time.Duration(f.IdleSeconds * float64(time.Second)).Round(100 * time.Millisecond)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", f.Local, f.Peer, f.Out, f.To, f.Packets, f.Bytes, idle)
	}
}

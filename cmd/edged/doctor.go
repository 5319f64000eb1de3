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
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
)

func newDoctorCmd() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for faults of certificates and for what keeps media from the fast path, here and in the running daemon",
		Long: "Doctor judges the machine, and the running daemon if there is one, and changes nothing.\n" +
			"It may run as anybody; what it finds about privileges holds for the user it runs as.\n" +
			"It exits with 1 if anything that the configuration asks for cannot work.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := examine(cmd, f)
			if err := printFindings(cmd.OutOrStdout(), list, f.json); err != nil {
				return err
			}
			failed := 0
			for _, x := range list {
				if x.Level == fastpath.Fail {
					failed++
				}
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d findings are faults", failed, len(list))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

// examine looks at everything.
func examine(cmd *cobra.Command, f clientFlags) []fastpath.Finding {
	cfg, first := examineConfig(cmd)
	list := []fastpath.Finding{first}
	if cfg.Media.Datapath == media.DatapathUser {
		list = append(list, fastpath.Finding{Level: fastpath.OK, About: "datapath", Text: "media.datapath is user: the kernel path is not wanted"})
	} else {
		list = append(list, fastpath.Diagnose(fastpath.Config{
			Networks: cfg.networks(), DSCP: cfg.Media.DSCP, Pin: pinOf(cfg),
		}, cfg.Media.Datapath != media.DatapathAuto)...)
	}
	list = append(list, examineFiles(cfg), examineHelpers(os.DirFS("/sys/module")))
	list = append(list, examineCertificates(cfg, time.Now())...)
	return append(list, examineDaemon(cmd, f)...)
}

// examineConfig returns the configuration, or the default one where it cannot be used.
func examineConfig(cmd *cobra.Command) (*config, fastpath.Finding) {
	file := configFile(cmd)
	cfg, err := loadConfig(file)
	def := defaultConfig()
	var bad *configError
	switch {
	case err == nil:
		return cfg, fastpath.Finding{Level: fastpath.OK, About: "configuration", Text: file}
	case errors.As(err, &bad):
		return &def, fastpath.Finding{
			Level: fastpath.Fail, About: "configuration", Text: fmt.Sprintf("%s has %d faults; the defaults are examined", file, len(bad.faults)),
			Remedy: "edged check shows them",
		}
	case errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config"):
		return &def, fastpath.Finding{
			Level: fastpath.Warn, About: "configuration", Text: file + " does not exist; the defaults are examined, without networks",
			Remedy: "--config names another file",
		}
	}
	return &def, fastpath.Finding{Level: fastpath.Fail, About: "configuration", Text: err.Error()}
}

// examineFiles compares the limit of open files with the sockets that the ports could need: two ports at
// each of two sides for a stream.
func examineFiles(cfg *config) fastpath.Finding {
	f := fastpath.Finding{Level: fastpath.OK, About: "descriptors"}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		f.Level, f.Text = fastpath.Warn, err.Error()
		return f
	}
	need := uint64(2 * cfg.Pinholes.UDP.Size())
	f.Text = fmt.Sprintf("%d may be open, %d are needed if all media ports are used", limit.Max, need)
	if limit.Max < need {
		f.Level, f.Remedy = fastpath.Warn, "raise LimitNOFILE, as the systemd unit does"
	}
	return f
}

// examineHelpers looks for loaded modules of the kernel that rewrite the same traffic. One that is built in
// does nothing unless a rule names it.
func examineHelpers(modules fs.FS) fastpath.Finding {
	var found []string
	for _, name := range []string{"nf_nat_sip", "nf_conntrack_sip"} {
		if _, err := fs.Stat(modules, name+"/initstate"); err == nil {
			found = append(found, name)
		}
	}
	if len(found) > 0 {
		return fastpath.Finding{
			Level: fastpath.Warn, About: "helpers", Text: "loaded: " + strings.Join(found, ", ") + "; they rewrite SIP too",
			Remedy: "rmmod " + strings.Join(found, " "),
		}
	}
	return fastpath.Finding{Level: fastpath.OK, About: "helpers", Text: "no loaded module of the kernel rewrites SIP"}
}

// maxStreams is how many streams are listed one by one.
const maxStreams = 20

// examineDaemon asks the running daemon what carries its streams.
func examineDaemon(cmd *cobra.Command, f clientFlags) []fastpath.Finding {
	none := fastpath.Finding{Level: fastpath.OK, About: "daemon", Text: "none answers"}
	client, err := newAPIClient(cmd, f)
	if err != nil {
		none.Text += ": " + err.Error()
		return []fastpath.Finding{none}
	}
	body, err := client.get(cmd.Context(), "/api/v1/pinholes")
	if err != nil {
		return []fastpath.Finding{none}
	}
	var doc struct {
		Pinholes []media.Info `json:"pinholes"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return []fastpath.Finding{{Level: fastpath.Warn, About: "daemon", Text: err.Error()}}
	}
	return streamFindings(doc.Pinholes)
}

// streamFindings says of each stream what carries it, first of those that could be faster.
func streamFindings(pinholes []media.Info) []fastpath.Finding {
	var slow, fast []fastpath.Finding
	for _, p := range pinholes {
		for _, e := range p.Ends {
			x := fastpath.Finding{Level: fastpath.OK, About: "stream " + e.Local.String(), Text: "carried by " + e.Path}
			if e.Why == "" {
				fast = append(fast, x)
				continue
			}
			x.Text += ": " + e.Why
			slow = append(slow, x)
		}
	}
	list := []fastpath.Finding{{
		Level: fastpath.OK, About: "daemon",
		Text: fmt.Sprintf("running, %d streams, %d of them as fast as can be", len(slow)+len(fast), len(fast)),
	}}
	all := append(slow, fast...)
	list = append(list, all[:min(len(all), maxStreams)]...)
	if more := len(all) - maxStreams; more > 0 {
		list = append(list, fastpath.Finding{Level: fastpath.OK, About: "streams", Text: fmt.Sprintf("%d more; /api/v1/pinholes has them all", more)})
	}
	return list
}

func printFindings(w io.Writer, list []fastpath.Finding, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"findings": list})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", x.Level, x.About, x.Text)
		if x.Remedy != "" && x.Level != fastpath.OK {
			fmt.Fprintf(tw, "\t\t→ %s\n", x.Remedy)
		}
	}
	return tw.Flush()
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/firewall/survey"
	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
)

// doctorFlags are the flags of `edged doctor`.
type doctorFlags struct {
	clientFlags
	stun string
	call bool
}

func newDoctorCmd() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps the edge from working: machine, network, firewall, files, DNS, and the running daemon",
		Long: "Doctor judges the machine against the configuration, and the running daemon if there is one, and changes nothing.\n" +
			"Each finding says what was seen, why it hurts, and the command or the key that helps. It works before the daemon\n" +
			"is started and while it runs. It may run as anybody; what it could not see then, it says.\n" +
			"At the end it makes a call through an edge of its own on loopback addresses, with audio both ways.\n" +
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
	cmd.Flags().StringVar(&f.stun, "stun", "", "`HOST:PORT` of a STUN server outside, which is asked how it sees the edge's addresses")
	cmd.Flags().BoolVar(&f.call, "call", true, "make a call through an edge on loopback addresses")
	return cmd
}

// finding is one thing that was looked at: what was seen, why it hurts, and what helps.
type finding struct {
	Level  fastpath.Level `json:"level"`
	About  string         `json:"about"`
	Text   string         `json:"text"`
	Why    string         `json:"why,omitempty"`
	Remedy string         `json:"remedy,omitempty"`
}

func fine(about, format string, a ...any) finding {
	return finding{Level: fastpath.OK, About: about, Text: fmt.Sprintf(format, a...)}
}

// exam is one examination: what is known to all checks. They run side by side, and change nothing of it.
type exam struct {
	cfg *config
	// file is that of the configuration.
	file   string
	root   fs.FS
	now    time.Time
	flags  doctorFlags
	net    netView
	survey *survey.Survey
	daemon daemonView
	// resolvConf is where DNS servers stand.
	resolvConf string
	who        sync.Once
	owners     map[string]owner // of sockets, by inode
}

// examine looks at everything.
func examine(cmd *cobra.Command, f doctorFlags) []finding {
	cfg, list := examineConfig(cmd)
	x := &exam{
		cfg: cfg, file: configFile(cmd), root: os.DirFS("/"), now: time.Now(), flags: f,
		net: viewNetwork(), daemon: viewDaemon(cmd, f.clientFlags), resolvConf: "/etc/resolv.conf",
	}
	x.survey = survey.Look(x.root)
	checks := []func(context.Context) []finding{
		x.addresses, x.routes, x.reversePath, x.mtu, x.nat, x.ports, x.portRanges,
		x.firewall, x.helpers, x.forwarding, x.transparent,
		x.fastPath, x.kernel, x.limits, x.clock, x.state, x.secrets, x.certificates, x.dns,
		x.running, x.unseen, x.selfCall,
	}
	results := make([][]finding, len(checks))
	var all sync.WaitGroup
	for i, check := range checks {
		all.Go(func() { results[i] = check(cmd.Context()) })
	}
	all.Wait()
	return append(list, slices.Concat(results...)...)
}

// examineConfig returns the configuration as far as it could be read, or the default one.
func examineConfig(cmd *cobra.Command) (*config, []finding) {
	file := configFile(cmd)
	cfg, err := loadConfig(file)
	def := defaultConfig()
	var bad *configError
	switch {
	case err == nil:
		return cfg, []finding{fine("configuration", "%s", file)}
	case errors.As(err, &bad):
		return faultyConfig(file, bad)
	case errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config"):
		return &def, []finding{{
			Level: fastpath.Warn, About: "configuration", Text: file + " does not exist; the defaults are examined, without networks",
			Remedy: "--config names another file",
		}}
	}
	return &def, []finding{{
		Level: fastpath.Fail, About: "configuration", Text: err.Error(), Why: "the daemon does not start without it",
		Remedy: "name the file with --config, and let this user read it",
	}}
}

// maxFaults is how many faults of a configuration are listed.
const maxFaults = 10

// faultyConfig lists the faults. What could be read is examined nevertheless: the machine's faults are no fewer.
func faultyConfig(file string, bad *configError) (*config, []finding) {
	cfg, what := defaultConfig(), "the defaults are examined"
	if data, err := os.ReadFile(file); err == nil {
		if lines, faults := decodeYAML(data, &cfg); len(faults) == 0 && lines != nil {
			cfg.dir = filepath.Dir(file)
			cfg.expandProfiles(lines)
			what = "what could be read is examined"
		} else {
			cfg = defaultConfig()
		}
	}
	list := []finding{{
		Level: fastpath.Fail, About: "configuration", Text: fmt.Sprintf("%s has %d faults; %s", file, len(bad.faults), what),
		Why: "the daemon does not start with it, and a running one refuses to reload it", Remedy: "edged check shows them",
	}}
	for _, f := range bad.faults[:min(len(bad.faults), maxFaults)] {
		list = append(list, finding{
			Level: fastpath.Fail, About: "configuration", Text: fmt.Sprintf("line %d: %s: %s", f.Line, f.Key, f.Text), Remedy: fmt.Sprintf("correct %s in %s", f.Key, file),
		})
	}
	return &cfg, list
}

// fastPath looks at what media in the kernel needs.
func (x *exam) fastPath(context.Context) []finding {
	if x.cfg.Media.Datapath == media.DatapathUser {
		return []finding{fine("datapath", "media.datapath is user: the kernel path is not wanted")}
	}
	var list []finding
	for _, f := range fastpath.Diagnose(fastpath.Config{
		Networks: x.cfg.networks(), DSCP: x.cfg.Media.DSCP, Pin: pinOf(x.cfg),
	}, x.cfg.Media.Datapath != media.DatapathAuto) {
		y := finding{Level: f.Level, About: f.About, Text: f.Text, Remedy: f.Remedy}
		if f.Level != fastpath.OK && f.About != "pinning" {
			y.Why = "user space carries media then: ten times the CPU, and it ends with the daemon"
		}
		list = append(list, y)
	}
	return list
}

func printFindings(w io.Writer, list []finding, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"findings": list})
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", x.Level, x.About, printableText(x.Text))
		if x.Why != "" && x.Level != fastpath.OK {
			fmt.Fprintf(tw, "\t\t  %s\n", printableText(x.Why))
		}
		if x.Remedy != "" && x.Level != fastpath.OK {
			fmt.Fprintf(tw, "\t\t→ %s\n", printableText(x.Remedy))
		}
	}
	return tw.Flush()
}

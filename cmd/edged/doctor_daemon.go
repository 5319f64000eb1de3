package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
)

// daemonView is what a running daemon says of itself.
type daemonView struct {
	client *apiClient
	status statusDoc
	// err says why there is no answer; nil: the daemon runs.
	err error
}

// adminWait is how long the admin listener may take.
const adminWait = 2 * time.Second

func viewDaemon(cmd *cobra.Command, f clientFlags) daemonView {
	client, err := newAPIClient(cmd, f)
	if err != nil {
		return daemonView{err: err}
	}
	client.http.Timeout = adminWait
	v := daemonView{client: client}
	body, err := client.get(cmd.Context(), "/api/v1/status")
	if err == nil {
		err = json.Unmarshal(body, &v.status)
	}
	v.err = err
	return v
}

func (v daemonView) runs() bool { return v.err == nil }

// running asks the daemon how it is, and what carries its streams.
func (x *exam) running(ctx context.Context) []finding {
	if !x.daemon.runs() {
		return []finding{x.noAnswer()}
	}
	st := x.daemon.status
	var list []finding
	if st.State != "ready" {
		list = append(list, finding{
			Level: fastpath.Warn, About: "daemon", Text: "it is " + st.State, Why: "it takes no calls", Remedy: "journalctl -u edged tells what it waits for",
		})
	}
	if st.Config.Error != "" {
		first, _, _ := strings.Cut(st.Config.Error, "\n")
		list = append(list, finding{
			Level: fastpath.Fail, About: "daemon", Text: "the last reload was refused: " + first, Why: "what it does is what an older file says",
			Remedy: "correct the file (edged check), then edged reload",
		})
	}
	if len(st.Config.RestartRequired) > 0 {
		list = append(list, finding{
			Level: fastpath.Warn, About: "daemon", Text: "keys that were changed and do not hold yet: " + strings.Join(st.Config.RestartRequired, ", "),
			Why: "they change with a restart only", Remedy: "systemctl restart edged",
		})
	}
	body, err := x.daemon.client.get(ctx, "/api/v1/pinholes")
	var doc struct {
		Pinholes []media.Info `json:"pinholes"`
	}
	if err == nil {
		err = json.Unmarshal(body, &doc)
	}
	if err != nil {
		return append(list, finding{Level: fastpath.Warn, About: "daemon", Text: err.Error(), Why: "its streams are not seen", Remedy: "edged status"})
	}
	return append(list, streamFindings(doc.Pinholes)...)
}

// noAnswer tells a daemon that does not run from one that does not answer.
func (x *exam) noAnswer() finding {
	at := x.cfg.Admin.Listen
	if x.flags.admin != "" {
		at = x.flags.admin
	}
	err := x.daemon.err
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) || at == "" {
		return fine("daemon", "none answers at %q: this is how it would find the machine", at)
	}
	f := finding{
		Level: fastpath.Fail, About: "daemon", Text: fmt.Sprintf("%s does not answer as the admin listener should: %v", at, err),
		Why: "edged status, calls, reload and the console do not work", Remedy: "compare admin.listen and admin.token with what runs; --admin ADDRESS names another",
	}
	if errors.Is(err, fs.ErrPermission) {
		f.Level, f.Remedy = fastpath.Warn, "run doctor as root or as the daemon's user"
	}
	if port, perr := netip.ParseAddrPort(at); perr == nil {
		if who := x.holder(socketAt{"tcp", port}); who != "" && !strings.HasPrefix(who, "edged ") {
			f.Text, f.Remedy = fmt.Sprintf("%s is held by %s, which is no edged", at, who), "give admin.listen another port"
		}
	}
	return f
}

// maxStreams is how many streams are listed one by one.
const maxStreams = 20

// streamFindings says of each stream what carries it, first of those that could be faster.
func streamFindings(pinholes []media.Info) []finding {
	var slow, fast []finding
	for _, p := range pinholes {
		for _, e := range p.Ends {
			y := fine("stream "+e.Local.String(), "carried by %s", e.Path)
			if e.Why == "" {
				fast = append(fast, y)
				continue
			}
			y.Text += ": " + e.Why
			slow = append(slow, y)
		}
	}
	list := []finding{fine("daemon", "running, %d streams, %d of them as fast as can be", len(slow)+len(fast), len(fast))}
	all := append(slow, fast...)
	list = append(list, all[:min(len(all), maxStreams)]...)
	if more := len(all) - maxStreams; more > 0 {
		list = append(list, fine("streams", "%d more; /api/v1/pinholes has them all", more))
	}
	return list
}

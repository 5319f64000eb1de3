package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/trace"
	"edged.dev/edged/pkg/trace/pcapng"
)

// serveCapture answers with the signalling of a call as a file for Wireshark.
func (c *callTraces) serveCapture(w http.ResponseWriter, r *http.Request) {
	c.nameLive()
	msgs, ok := c.ring.Messages(r.PathValue("id"), 0, r.FormValue("secrets") == "1")
	if !ok {
		http.Error(w, "no signalling of this call is known", http.StatusNotFound)
		return
	}
	var b bytes.Buffer
	if err := writeCapture(&b, msgs); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-pcapng")
	w.Header().Set("Content-Disposition", `attachment; filename="call.pcapng"`)
	w.Header().Set("Cache-Control", "no-store")
	w.Write(b.Bytes())
}

func writeCapture(b *bytes.Buffer, msgs []trace.Message) error {
	w, err := pcapng.NewWriter(b)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		p := pcapng.Packet{Time: m.Time, From: m.Remote, To: m.Local, Stream: m.Transport != "udp", Data: m.Data}
		p.Comment = fmt.Sprintf("%d: received, network %s, %s", m.Seq, m.Network, m.Transport)
		if m.Out {
			p.From, p.To = m.Local, m.Remote
			p.Comment = fmt.Sprintf("%d: sent, network %s, %s", m.Seq, m.Network, m.Transport)
		}
		if err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func newCaptureCmd() *cobra.Command {
	var f clientFlags
	var file string
	var secrets bool
	cmd := &cobra.Command{
		Use:   "capture CALL",
		Short: "Write the signalling of a call to a file for Wireshark",
		Long: "Capture writes what edged trace shows of a call as pcapng. Messages that came inside TLS stand there in clear,\n" +
			"as TCP; each packet's comment says on which network and by what it really passed. Media is not in it.\n" +
			"Digest responses and keys are masked.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newAPIClient(cmd, f)
			if err != nil {
				return err
			}
			path := "/api/v1/calls/" + url.PathEscape(args[0]) + "/capture"
			if secrets {
				path += "?secrets=1"
			}
			body, err := c.get(cmd.Context(), path)
			if err != nil {
				return err
			}
			if file == "-" {
				_, err = cmd.OutOrStdout().Write(body)
				return err
			}
			return os.WriteFile(file, body, 0o600)
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().StringVarP(&file, "output", "o", "call.pcapng", "`FILE` to write; - is standard output")
	cmd.Flags().BoolVar(&secrets, "secrets", false, "show digest responses and keys")
	return cmd
}

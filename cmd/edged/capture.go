package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

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
		if err := w.Write(signallingPacket(m)); err != nil {
			return err
		}
	}
	return nil
}

// signallingPacket returns a message as a packet.
func signallingPacket(m trace.Message) pcapng.Packet {
	p := pcapng.Packet{
		Time: m.Time, From: m.Remote, To: m.Local, Stream: m.Transport != "udp", Data: m.Data, Interface: m.Network, Direction: pcapng.Inbound,
		Comment: fmt.Sprintf("%d: received, network %s, %s", m.Seq, m.Network, m.Transport),
	}
	if m.Out {
		p.From, p.To, p.Direction = m.Local, m.Remote, pcapng.Outbound
		p.Comment = fmt.Sprintf("%d: sent, network %s, %s", m.Seq, m.Network, m.Transport)
	}
	return p
}

// captureFlags are the flags of edged capture.
type captureFlags struct {
	clientFlags
	file           string
	secrets, media bool
	time           time.Duration
	packets, bytes int
}

func newCaptureCmd() *cobra.Command {
	var f captureFlags
	cmd := &cobra.Command{
		Use:   "capture CALL",
		Short: "Write the signalling of a call, and its media if asked, to a file for Wireshark",
		Long: "Capture writes what edged trace shows of a call as pcapng. Messages that came inside TLS stand there in clear,\n" +
			"as TCP; each packet's comment says on which network and by what it really passed. Digest responses and keys\n" +
			"are masked.\n\n" +
			"With --media the call must be up: its RTP and RTCP are written too, each packet as it came and as it left, from now\n" +
			"on until --for is over, a limit is reached, the call ends or you interrupt. What the phones have encrypted stays so.\n" +
			"Meanwhile user space carries this call. It needs admin.token (or an admin listener on a unix socket), and\n" +
			"leaves a line in the log; trace.media: false forbids it.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newAPIClient(cmd, f.clientFlags)
			if err != nil {
				return err
			}
			path := "/api/v1/calls/" + url.PathEscape(args[0]) + "/capture"
			if f.media {
				return c.captureMedia(cmd, path, f)
			}
			if f.secrets {
				path += "?secrets=1"
			}
			body, err := c.get(cmd.Context(), path)
			if err != nil {
				return err
			}
			if f.file == "-" {
				_, err = cmd.OutOrStdout().Write(body)
				return err
			}
			return os.WriteFile(f.file, body, 0o600)
		},
	}
	cmd.Flags().StringVar(&f.admin, "admin", "", "`ADDRESS` of the admin listener instead of the configured one")
	cmd.Flags().StringVarP(&f.file, "output", "o", "call.pcapng", "`FILE` to write; - is standard output")
	cmd.Flags().BoolVar(&f.secrets, "secrets", false, "show digest responses and keys; not with --media")
	cmd.Flags().BoolVar(&f.media, "media", false, "write RTP and RTCP too, as they pass from now on")
	cmd.Flags().DurationVar(&f.time, "for", captureTime, "with --media: how long, at most 10m")
	cmd.Flags().IntVar(&f.packets, "packets", capturePackets, "with --media: how many packets of media at most")
	cmd.Flags().IntVar(&f.bytes, "bytes", captureBytes, "with --media: how many octets of media at most")
	cmd.MarkFlagsMutuallyExclusive("media", "secrets")
	return cmd
}

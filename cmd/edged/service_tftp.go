package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tftp"
	"edged.dev/edged/pkg/tftp/msnftp"
)

// buildTFTP builds the ALG of file transfers; SIP, which is built later, shows it what messages carry.
func buildTFTP(_ context.Context, d *serviceDeps) (*service, error) {
	nets := d.cfg.networks()
	editor, err := tftp.New(d.cfg.TFTP, tftp.Deps{
		Networks: nets, Opener: d.opener, Joiner: fileJoiner{d.joiner}, RouteTo: newRouteTable(nets).network,
		Record: func(r tftp.Record) { d.events.publish("transfer_ended", r) },
	}, d.log.Named("tftp"))
	if err != nil {
		return nil, err
	}
	d.reg.MustRegister(editor.Collector())
	d.contents = contentEditor{editor}
	return &service{
		serve:  editor.Run,
		alive:  func() { editor.Running() },
		reload: func(c *config) error { return editor.Reload(c.TFTP) },
		drain:  editor.Drain,
		busy:   editor.Running,
		status: func() any { return map[string]any{"running": editor.Running(), "ports": d.cfg.TFTP.Ports} },
		views: map[string]func() any{
			"transfers": func() any { return map[string]any{"transfers": editor.Transfers()} },
		},
	}, nil
}

// contentEditor has contents of SIP messages looked at by the ALG of file transfers.
type contentEditor struct{ *tftp.Editor }

// Edit implements sipalg.ContentEditor.
func (e contentEditor) Edit(now time.Time, c sipalg.Content) sipalg.Verdict {
	v := e.Editor.Edit(now, tftp.Content{
		Status: c.Status, Type: c.Type, Body: c.Body, Header: c.Header, CallID: c.CallID, From: c.From, To: c.To, Signed: c.Signed,
		Sender: tftp.Party(c.Sender), Receiver: tftp.Party(c.Receiver),
	})
	return sipalg.Verdict{Body: v.Body, Refuse: v.Refuse, Warning: v.Warning, EchoBody: v.EchoBody, Reason: v.Reason}
}

// fileJoiner has files spliced.
type fileJoiner struct{ joiner *splice.Joiner }

// Join implements msnftp.Joiner.
func (j fileJoiner) Join(ctx context.Context, conns [2]net.Conn, o msnftp.JoinOptions) error {
	counters := &splice.Counters{}
	if o.Started != nil {
		o.Started(func(from pinhole.Side) uint64 { return counters.Bytes(int(from)) })
	}
	err := j.joiner.Join(ctx, conns[0], conns[1], splice.Options{Prefix: o.Prefix, Limit: o.Limit, Idle: o.Idle, Counters: counters}).Err
	switch {
	case errors.Is(err, splice.ErrIdle):
		return fmt.Errorf("%w: %w", msnftp.ErrIdle, err)
	case errors.Is(err, splice.ErrLimit):
		return fmt.Errorf("%w: %w", msnftp.ErrLimit, err)
	}
	return err
}

// validateTFTP adds what concerns other sections: SIP, which brings the invitations, and ports that are taken.
func (c *config) validateTFTP(l *faultList, ports map[pinhole.Listen]string) {
	*l = append(*l, sectionFaults("tftp", c.TFTP.Validate())...)
	*l = append(*l, sectionFaults("tftp.content", c.TFTP.Content.Validate())...)
	r := c.TFTP.Ports
	if r.First == 0 {
		return
	}
	if len(c.SIP.Listen) == 0 {
		l.add("tftp.ports", "file transfers are invited to in SIP: sip.listen is needed too")
	}
	if m := c.Pinholes.TCP; r.First <= m.Last && m.First <= r.Last {
		l.add("tftp.ports", "some lie in pinholes.tcp (%s), which is for media", m)
	}
	var taken []string
	for at, key := range ports {
		if at.Proto == "tcp" && at.Port >= r.First && at.Port <= r.Last {
			taken = append(taken, key)
		}
	}
	slices.Sort(taken)
	if len(taken) > 0 {
		l.add("tftp.ports", "%s listens on one of them", strings.Join(taken, ", "))
	}
}

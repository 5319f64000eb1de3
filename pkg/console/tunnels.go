package console

import (
	"fmt"
	"net/http"
	"time"
)

// tunnels shows devices at this relay, this host's agent, streams and links.
func (c *Console) tunnels(r *http.Request, _ statusDoc) (view, error) {
	now := time.Now()
	doc, on, err := get[tunnelsDoc](r.Context(), c.source, "tunnels")
	if err != nil {
		return view{}, err
	}
	var v view
	if a := doc.Agent; a != nil {
		at := "no relay"
		if a.Attached {
			at = a.Relay
		}
		v.Facts = []figure{{Label: "This device", Value: a.ID}, {Label: "Attached to", Value: at, Note: a.Rung},
			{Label: "Sessions", Value: count(a.Sessions)}, {Label: "Resumed", Value: count(a.Resumes)}}
		if !a.Attached && a.Fault != "" {
			v.Notices = append(v.Notices, notice{"bad", "The agent has no relay: " + a.Fault})
		}
	}
	t := table{ID: "devices", Title: "Devices", Cols: cols("Device", "State", "By", "Remote", "#Since", "#Round trip", "#Moves", "#Streams", "#In", "#Out"), Empty: "No device is attached to this relay."}
	if !on {
		t.Empty = "The tunnel is off: the configuration has neither tunnel.listen nor agent.relays."
	}
	for _, x := range doc.Tunnels {
		st := "waiting"
		if x.Carrier {
			st = "attached"
		}
		t.Rows = append(t.Rows, row{x.ID, []cell{
			{Text: or(x.Device, short(x.ID, 16)), Title: x.ID}, state(st), text(x.Rung), mono(x.Remote), since(x.Since, now),
			milliseconds(x.RTT / 1000), number(x.Moves), number(x.Streams), octets(x.BytesIn), octets(x.BytesOut),
		}})
	}
	streams := table{ID: "tunnel-streams", Title: "Streams", Cols: cols("From", "To", "Service", "#Since"), Empty: "No streams."}
	for i, x := range doc.Streams {
		streams.Rows = append(streams.Rows, row{fmt.Sprint(i), []cell{text(x.From), text(x.To), text(x.Service), since(x.Since, now)}})
	}
	v.Tables = append(v.Tables, t)
	if on {
		v.Tables = append(v.Tables, streams)
	}
	return v, c.addLinks(r, &v)
}

func (c *Console) addLinks(r *http.Request, v *view) error {
	doc, on, err := get[linksDoc](r.Context(), c.source, "links")
	if !on || err != nil {
		return err
	}
	t := table{ID: "links", Title: "Links", Cols: cols("Name", "State", "Interface", "Peer", "#Carriers", "#Packets in", "#Packets out", "#In", "#Out"), Empty: "No links."}
	for _, x := range doc.Links {
		st := "down"
		if x.Up {
			st = "up"
		}
		t.Rows = append(t.Rows, row{x.Name, []cell{
			text(x.Name), state(st), mono(x.Interface), mono(x.Peer), number(x.Carriers), number(x.PacketsIn), number(x.PacketsOut), octets(x.BytesIn), octets(x.BytesOut),
		}})
	}
	v.Tables = append(v.Tables, t)
	return nil
}

package console

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// streamsPage lists what was received from each side of each pinhole.
func (c *Console) streamsPage(r *http.Request, _ statusDoc) (view, error) {
	doc, _, err := get[pinholesDoc](r.Context(), c.source, "pinholes")
	if err != nil {
		return view{}, err
	}
	t := c.streamTable(doc.Pinholes)
	t.Empty = "No streams. Try edged demo."
	return view{Tables: []table{t}}, nil
}

// streamTable has one row for each direction.
func (c *Console) streamTable(holes []pinholeDoc) table {
	t := table{ID: "streams", Title: "Received", Cols: cols("From", "At", "Path", "#Packets", "#Octets", "#Lost", "#Jitter", "#Round trip", "#MOS", "Packets/s")}
	for _, p := range holes {
		for i, e := range p.Ends {
			spark := c.history.graphs(p.ID, i)[0]
			t.Rows = append(t.Rows, row{fmt.Sprint(p.ID, "-", i), []cell{
				{Text: orDash(or(e.Latched, e.Declared)), Class: "mono", Sub: strings.TrimSpace(e.Network + " " + p.Kind)}, mono(e.Local),
				{Text: orDash(e.Path), Title: e.Why, Sub: e.Why}, number(e.Stats.Packets), octets(e.Stats.Bytes), lost(e.Stats),
				milliseconds(e.Stats.Jitter), milliseconds(e.Stats.RTT), mos(e.Stats.MOS), {Spark: &spark},
			}})
		}
	}
	return t
}

func (c *Console) pinholes(r *http.Request, _ statusDoc) (view, error) {
	doc, _, err := get[pinholesDoc](r.Context(), c.source, "pinholes")
	t := table{ID: "pinholes", Cols: cols("#ID", "Kind", "Owner", "One end", "Other end", "Path", "#Age", "#Idle", "For"), Empty: "No pinholes are open. Calls open them."}
	for _, p := range doc.Pinholes {
		t.Rows = append(t.Rows, row{fmt.Sprint(p.ID), []cell{
			{Text: fmt.Sprint(p.ID)}, text(p.Kind), mono(p.Owner), endCell(p.Ends[0]), endCell(p.Ends[1]), text(p.Path),
			{Text: seconds(p.Age)}, {Text: seconds(p.Idle)}, {Text: short(p.Label, 24), Class: "mono", Title: p.Label},
		}})
	}
	return view{Tables: []table{t}}, err
}

// endCell shows the edge's port of an end, and who is there.
func endCell(e endDoc) cell {
	c := cell{Text: orDash(e.Local), Class: "mono", Sub: e.Network + ": nobody yet"}
	switch {
	case e.Latched != "":
		c.Sub = e.Network + ": " + e.Latched
	case e.Declared != "":
		c.Sub = e.Network + ": " + e.Declared + " (declared)"
	}
	return c
}

// call shows all of one call.
func (c *Console) call(r *http.Request, _ statusDoc) (view, error) {
	id := r.PathValue("id")
	doc, _, err := get[callsDoc](r.Context(), c.source, "calls")
	if err != nil {
		return view{}, err
	}
	at := slices.IndexFunc(doc.Calls, func(x callDoc) bool { return x.ID == id })
	if at < 0 {
		return c.past(r, id)
	}
	call := doc.Calls[at]
	v := view{Call: id, Title: bare(call.From) + " → " + bare(call.To), Facts: []figure{
		{Label: "State", Value: call.State},
		{Label: "Started", Value: stamp(call.Started)},
		{Label: "Answered", Value: answered(call)},
		{Label: "Caller", Value: orDash(call.Caller), Note: call.Networks[0]},
		{Label: "Callee", Value: orDash(call.Callee), Note: call.Networks[1]},
		{Label: "Call-ID", Value: call.CallID},
	}}
	if _, _, err := c.addLadder(r, &v, id); err != nil {
		return v, err
	}
	return v, c.addMedia(r, &v, call)
}

func answered(call callDoc) string {
	if call.Answered == nil {
		return "not yet"
	}
	return stamp(*call.Answered)
}

// addMedia adds the streams of a call and their graphs.
func (c *Console) addMedia(r *http.Request, v *view, call callDoc) error {
	doc, _, err := get[pinholesDoc](r.Context(), c.source, "pinholes")
	if err != nil {
		return err
	}
	var own []pinholeDoc
	for _, p := range doc.Pinholes {
		if p.Label == call.CallID {
			own = append(own, p)
		}
	}
	t := c.streamTable(own)
	t.Empty = "The call has no media (yet)."
	v.Tables = append(v.Tables, t)
	for _, p := range own {
		for i, e := range p.Ends {
			for _, g := range c.history.graphs(p.ID, i) {
				g.ID = fmt.Sprint(p.ID, "-", i, "-", g.Name)
				g.From = fmt.Sprintf("%s %s", e.Network, or(e.Latched, e.Declared))
				v.Graphs = append(v.Graphs, g)
			}
		}
	}
	return nil
}

package console

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// page is one kind of page.
type page struct {
	// path is below Prefix, as http.ServeMux takes it.
	path, title string
	nav, filter bool
	build       func(c *Console, r *http.Request, status statusDoc) (view, error)
}

// pages are all of them, in the order of the navigation.
func pages() []page {
	return []page{
		{"{$}", "Overview", true, false, (*Console).overview},
		{"calls", "Calls", true, true, (*Console).calls},
		{"calls/{id}", "Call", false, false, (*Console).call},
		{"streams", "Streams", true, true, (*Console).streamsPage},
		{"registrations", "Registrations", true, true, (*Console).registrations},
		{"pinholes", "Pinholes", true, true, (*Console).pinholes},
		{"turn", "TURN", true, true, (*Console).turn},
		{"tunnels", "Tunnels", true, true, (*Console).tunnels},
		{"mailboxes", "Mailboxes", true, true, (*Console).mailboxes},
		{"ils", "Directory", true, true, (*Console).ils},
		{"forwards", "Forwards", true, true, (*Console).forwards},
		{"proxy", "Proxy", true, true, (*Console).proxy},
		{"ports", "Ports", true, true, (*Console).ports},
		{"drops", "Drops", true, true, (*Console).drops},
		{"bans", "Bans", true, true, (*Console).bans},
		{"certificates", "Certificates", true, false, (*Console).certificates},
		{"events", "Events", true, true, (*Console).events},
	}
}

// pageOf returns the page with a path.
func pageOf(path string) page {
	all := pages()
	return all[slices.IndexFunc(all, func(p page) bool { return p.path == path })]
}

// overview says in one page whether all is well.
func (c *Console) overview(r *http.Request, st statusDoc) (view, error) {
	var v view
	if st.Config.Error != "" {
		v.Notices = append(v.Notices, notice{"bad", "The last reload was refused, the old configuration stays: " + st.Config.Error})
	}
	if len(st.Config.RestartRequired) > 0 {
		v.Notices = append(v.Notices, notice{"warn", "A restart is needed for: " + strings.Join(st.Config.RestartRequired, ", ")})
	}
	v.Facts = []figure{
		{Label: "Version", Value: st.Build.Version, Note: st.Build.Platform},
		{Label: "Up for", Value: seconds(st.Uptime)},
		{Label: "Configuration", Value: stamp(st.Config.LoadedAt), Note: "loaded"},
	}
	if err := c.figures(r, &v); err != nil {
		return v, err
	}
	services := table{ID: "services", Title: "Services", Cols: cols("Service", "What it says"), Empty: "No service is on. Add a section to the configuration."}
	for _, name := range slices.Sorted(maps.Keys(st.Services)) {
		services.Rows = append(services.Rows, row{name, []cell{text(name), text(says(st.Services[name]))}})
	}
	v.Tables = append(v.Tables, services)
	events, err := c.eventTable(r, 8)
	v.Tables = append(v.Tables, events)
	return v, err
}

// figures puts the numbers of what is live at the top of the overview; of services that are off there is none.
func (c *Console) figures(r *http.Request, v *view) error {
	add := func(label, path string, n int, on bool, err error) error {
		if on && err == nil {
			v.Figures = append(v.Figures, figure{Label: label, Value: count(n), Link: Prefix + path})
		}
		return err
	}
	ctx := r.Context()
	calls, on, err := get[callsDoc](ctx, c.source, "calls")
	if err := add("Calls", "calls", len(calls.Calls), on, err); err != nil {
		return err
	}
	h323, on, err := get[h323Doc](ctx, c.source, "h323_calls")
	if err := add("H.323 calls", "calls", len(h323.Calls), on, err); err != nil {
		return err
	}
	regs, on, err := get[registrationsDoc](ctx, c.source, "registrations")
	if err := add("Registrations", "registrations", len(regs.Registrations), on, err); err != nil {
		return err
	}
	holes, on, err := get[pinholesDoc](ctx, c.source, "pinholes")
	if err := add("Pinholes", "pinholes", len(holes.Pinholes), on, err); err != nil {
		return err
	}
	turn, on, err := get[turnDoc](ctx, c.source, "turn")
	if err := add("TURN allocations", "turn", len(turn.Allocations), on, err); err != nil {
		return err
	}
	tunnels, on, err := get[tunnelsDoc](ctx, c.source, "tunnels")
	return add("Tunnels", "tunnels", len(tunnels.Tunnels), on, err)
}

// says prints a service's status as "key value, key value".
func says(v any) string {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Sprint(v)
	}
	parts := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		words := fmt.Sprint(m[k])
		if list, ok := m[k].([]any); ok {
			words = strings.Trim(fmt.Sprint(list), "[]")
		}
		parts = append(parts, strings.ReplaceAll(k, "_", " ")+" "+words)
	}
	return strings.Join(parts, ", ")
}

// callPath is the page of a call.
func callPath(id string) string { return Prefix + "calls/" + url.PathEscape(id) }

func (c *Console) calls(r *http.Request, _ statusDoc) (view, error) {
	now := time.Now()
	doc, on, err := get[callsDoc](r.Context(), c.source, "calls")
	if err != nil {
		return view{}, err
	}
	t := table{ID: "calls", Title: "SIP", Cols: cols("From", "To", "State", "#For", "Caller", "Callee", "#Pinholes"), Empty: "No calls. Try edged demo."}
	if !on {
		t.Empty = "SIP is off: the configuration has no sip.listen."
	}
	if c.deps.Token != "" {
		t.Cols = append(t.Cols, column{Name: "Action"})
	}
	for _, call := range doc.Calls {
		began := call.Started
		if call.Answered != nil {
			began = *call.Answered
		}
		t.Rows = append(t.Rows, row{call.ID, []cell{
			{Text: bare(call.From), Link: callPath(call.ID)}, text(bare(call.To)), state(call.State), since(began, now),
			{Text: orDash(call.Caller), Class: "mono", Sub: call.Networks[0]}, {Text: orDash(call.Callee), Class: "mono", Sub: call.Networks[1]},
			number(call.Pinholes),
		}})
		c.hangUpCell(&t, call.ID, bare(call.From)+" to "+bare(call.To))
	}
	v := view{Tables: []table{t}}
	h323, on, err := get[h323Doc](r.Context(), c.source, "h323_calls")
	if err != nil {
		return v, err
	}
	if on {
		v.Tables = append(v.Tables, c.h323Table(h323, now))
	}
	traces, on, err := c.tracesTable(r)
	if on {
		v.Tables = append(v.Tables, traces)
	}
	return v, err
}

// hangUpCell adds a button to the last row of a table, where there are actions.
func (c *Console) hangUpCell(t *table, id, who string) {
	if c.deps.Token == "" {
		return
	}
	r := &t.Rows[len(t.Rows)-1]
	r.Cells = append(r.Cells, cell{Form: &form{Action: "hangup", Name: "id", Value: id, Label: "Hang up", About: "Hang up " + who}})
}

func (c *Console) h323Table(doc h323Doc, now time.Time) table {
	t := table{ID: "h323", Title: "H.323", Cols: cols("Caller", "Called", "State", "#For", "From", "To", "#Channels"), Empty: "No H.323 calls."}
	if c.deps.Token != "" {
		t.Cols = append(t.Cols, column{Name: "Action"})
	}
	for _, call := range doc.Calls {
		began, st := call.Started, "ringing"
		if call.Connected != nil {
			began, st = *call.Connected, "up"
		}
		t.Rows = append(t.Rows, row{call.CallID, []cell{
			{Text: orDash(call.Caller), Link: callPath(call.CallID)}, text(call.Called), state(st), since(began, now), mono(call.From), mono(call.To), number(call.Channels),
		}})
		c.hangUpCell(&t, call.CallID, call.Caller+" to "+call.Called)
	}
	return t
}

func (c *Console) registrations(r *http.Request, _ statusDoc) (view, error) {
	now := time.Now()
	doc, on, err := get[registrationsDoc](r.Context(), c.source, "registrations")
	t := table{ID: "registrations", Cols: cols("Address of record", "Contact", "Client", "Transport", "Registrar", "NAT", "#Since", "#Expires in"), Empty: "Nobody is registered."}
	if !on {
		t.Empty = "SIP is off: the configuration has no sip.listen."
	}
	for i, g := range doc.Registrations {
		nat := "no"
		if g.NAT {
			nat = "yes"
		}
		t.Rows = append(t.Rows, row{fmt.Sprintf("%s %s %d", g.AOR, g.Client, i), []cell{
			text(bare(g.AOR)), mono(g.Contact), {Text: orDash(g.Client), Class: "mono", Sub: g.Network}, text(g.Transport), text(g.Registrar), text(nat),
			since(g.Since, now), {Text: seconds(g.Expires.Sub(now).Seconds()), Title: stamp(g.Expires)},
		}})
	}
	return view{Tables: []table{t}}, err
}

func (c *Console) turn(r *http.Request, _ statusDoc) (view, error) {
	doc, on, err := get[turnDoc](r.Context(), c.source, "turn")
	t := table{ID: "turn", Title: "Allocations", Cols: cols("User", "Client", "Relayed", "Protocol", "#Expires in", "#Permissions", "#Channels", "#From client", "#From peers"),
		Empty: "No allocations. Try edged turn test."}
	if !on {
		t.Empty = "TURN is off: the configuration has no turn.listen."
	}
	for _, a := range doc.Allocations {
		t.Rows = append(t.Rows, row{a.Transport + a.Client + a.Relayed, []cell{
			text(a.User), {Text: a.Client, Class: "mono", Sub: a.Transport}, mono(a.Relayed), text(a.Protocol), {Text: seconds(float64(a.Seconds))},
			number(a.Permissions), number(a.Channels), octets(a.FromClient), octets(a.FromPeers),
		}})
	}
	return view{Tables: []table{t}}, err
}

func (c *Console) ports(r *http.Request, _ statusDoc) (view, error) {
	doc, _, err := get[portsDoc](r.Context(), c.source, "ports")
	t := table{ID: "listeners", Title: "What listens", Cols: cols("Network", "Protocol", "#Port", "Handler", "Key"), Empty: "Nothing listens."}
	for i, l := range doc.Listeners {
		t.Rows = append(t.Rows, row{fmt.Sprint(i), []cell{text(l.Network), text(l.Scheme), {Text: fmt.Sprint(l.Port)}, text(l.Handler), mono(l.Key)}})
	}
	v := view{Tables: []table{t}}
	for i, d := range doc.Tables {
		t := table{ID: fmt.Sprint("ports", i), Title: d.Title, Note: d.Profile, Cols: cols("Row", "Component", "Ports", "Protocol", "What the edge does"), Empty: "The document has no rows."}
		for j, x := range d.Rows {
			var does []string
			for _, e := range x.Edge {
				does = append(does, strings.TrimSpace(fmt.Sprintf("%s %s %s: %s", e.Network, e.Protocol, e.Ports, or(e.Text, e.State))))
			}
			t.Rows = append(t.Rows, row{fmt.Sprint(j), []cell{text(x.Row), text(x.Component), text(x.Ports), text(x.Protocol), text(strings.Join(does, "; "))}})
		}
		v.Tables = append(v.Tables, t)
	}
	return v, err
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (c *Console) certificates(r *http.Request, _ statusDoc) (view, error) {
	now := time.Now()
	doc, _, err := get[certificatesDoc](r.Context(), c.source, "certificates")
	t := table{ID: "certificates", Cols: cols("Name", "Issuer", "Key", "From", "Until", "#Ends in", "SHA-256"), Empty: "No certificates: the configuration has no tls.certificates."}
	for _, x := range doc.Certificates {
		left := x.NotAfter.Sub(now)
		ends := cell{Text: seconds(left.Seconds())}
		switch {
		case left <= 0:
			ends = cell{Text: "ended", Class: "state bad"}
		case left < 14*24*time.Hour:
			ends.Class = "warn"
		}
		sub := ""
		if len(x.Names) > 1 {
			sub = strings.Join(x.Names, ", ")
		}
		t.Rows = append(t.Rows, row{x.Fingerprint, []cell{
			{Text: orDash(x.Name), Sub: sub}, text(x.Issuer), text(x.Algorithm), text(stamp(x.NotBefore)), text(stamp(x.NotAfter)), ends,
			{Text: short(x.Fingerprint, 16), Class: "mono", Title: x.Fingerprint},
		}})
	}
	return view{Tables: []table{t}}, err
}

// short cuts a text to n characters.
func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

func (c *Console) events(r *http.Request, _ statusDoc) (view, error) {
	t, err := c.eventTable(r, maxRows)
	t.Title = ""
	return view{Tables: []table{t}}, err
}

// eventTable lists the latest events first.
func (c *Console) eventTable(r *http.Request, most int) (table, error) {
	doc, _, err := get[eventsDoc](r.Context(), c.source, "events/recent")
	t := table{ID: "events", Title: "Latest events", Cols: cols("Time", "Event", "What"), Empty: "Nothing has happened since the daemon was started: no call has ended, nothing was reloaded."}
	for _, e := range doc.Events[:min(len(doc.Events), most)] {
		t.Rows = append(t.Rows, row{fmt.Sprint(e.ID), []cell{text(stamp(e.Time)), text(strings.ReplaceAll(e.Type, "_", " ")), happened(e.Type, e.Data)}})
	}
	return t, err
}

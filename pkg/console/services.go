package console

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// ils shows NetMeeting's directory: who is where.
func (c *Console) ils(r *http.Request, _ statusDoc) (view, error) {
	doc, on, err := get[ilsDoc](r.Context(), c.source, "ils")
	t := table{ID: "ils", Cols: cols("Name", "Host", "Calls come to", "Own public address", "#Expires in"), Empty: "Nobody is in the directory."}
	if !on {
		t.Empty = "The directory is off: the configuration has no ils.listen."
	}
	now := time.Now()
	for _, x := range doc.Users {
		t.Rows = append(t.Rows, row{x.Name, []cell{
			text(x.Name), mono(x.Host), mono(strings.Trim(fmt.Sprint(x.Ports), "[]")), mono(x.Public),
			{Text: seconds(x.Expires.Sub(now).Seconds()), Title: stamp(x.Expires)},
		}})
	}
	return view{Tables: []table{t}}, err
}

// forwards shows the ports that are carried unread.
func (c *Console) forwards(r *http.Request, _ statusDoc) (view, error) {
	doc, _, err := get[forwardsDoc](r.Context(), c.source, "forwards")
	t := table{ID: "forwards", Cols: cols("Name", "Listens on", "To", "Path", "#Open", "#In all", "#From clients", "#From target", "Refused"),
		Empty: "No forwards: the configuration has none."}
	for _, x := range doc.Forwards {
		var refused []string
		for _, why := range slices.Sorted(maps.Keys(x.Refused)) {
			refused = append(refused, strings.ReplaceAll(why, "_", " ")+" "+count(x.Refused[why]))
		}
		t.Rows = append(t.Rows, row{x.Name, []cell{
			text(x.Name), mono(fmt.Sprint(x.Listen)), mono(x.To), {Text: orDash(x.Path), Title: x.Why, Sub: x.Why}, number(x.Connections), number(x.Total),
			octets(x.FromClients), octets(x.FromTarget), text(strings.Join(refused, ", ")),
		}})
	}
	return view{Tables: []table{t}}, err
}

// proxy shows the connections of the forward proxy.
func (c *Console) proxy(r *http.Request, _ statusDoc) (view, error) {
	doc, on, err := get[proxyDoc](r.Context(), c.source, "proxy")
	t := table{ID: "proxy", Cols: cols("Client", "User", "Protocol", "Target", "#For", "#From client", "#From target"), Empty: "No connections."}
	if !on {
		t.Empty = "The proxy is off: the configuration has no proxy.listen."
	}
	now := time.Now()
	for _, x := range doc.Connections {
		kind := x.Protocol
		if x.UDP {
			kind += " UDP"
		}
		t.Rows = append(t.Rows, row{kind + " " + x.Client, []cell{
			mono(x.Client), text(x.User), text(kind), mono(x.Target), since(x.Since, now), octets(x.FromClient), octets(x.FromTarget),
		}})
	}
	return view{Tables: []table{t}}, err
}

// mailboxes shows how much waits for whom; what it is nobody but the receiver can read.
func (c *Console) mailboxes(r *http.Request, _ statusDoc) (view, error) {
	list, on, err := get[[]mailboxDoc](r.Context(), c.source, "mailboxes")
	t := table{ID: "mailboxes", Cols: cols("Device", "#Messages", "#Size", "#Quota", "#Readers", "#Oldest waits for"), Empty: "No messages wait."}
	if !on {
		t.Empty = "There are no mailboxes: the configuration has no tunnel.listen."
	}
	now := time.Now()
	for _, x := range list {
		oldest := text("")
		if x.Oldest != nil {
			oldest = since(*x.Oldest, now)
		}
		t.Rows = append(t.Rows, row{x.ID, []cell{
			{Text: or(x.Device, short(x.ID, 16)), Title: x.ID}, number(x.Messages), octets(x.Octets), octets(x.Quota), number(x.Readers), oldest,
		}})
	}
	return view{Tables: []table{t}}, err
}

// bans shows whom operators have shut out.
func (c *Console) bans(r *http.Request, _ statusDoc) (view, error) {
	doc, _, err := get[bansDoc](r.Context(), c.source, "bans")
	t := table{ID: "bans", Cols: cols("Who", "Why", "By", "#Since", "#Ends in"), Empty: "Nobody is banned."}
	able := c.deps.Token != ""
	if able {
		t.Cols = append(t.Cols, column{Name: "Action"})
	}
	now := time.Now()
	for _, x := range doc.Bans {
		ends := text("never")
		if x.Until != nil {
			ends = cell{Text: seconds(x.Until.Sub(now).Seconds()), Title: stamp(*x.Until)}
		}
		cells := []cell{mono(x.Target), text(x.Why), text(x.By), since(x.Since, now), ends}
		if able {
			cells = append(cells, cell{Form: &form{Action: "unban", Name: "target", Value: x.Target, Label: "Lift", About: "Lift the ban of " + x.Target}})
		}
		t.Rows = append(t.Rows, row{x.Target, cells})
	}
	return view{Tables: []table{t}, BanForm: able}, err
}

type ilsDoc struct {
	Users []struct {
		Name    string    `json:"name"`
		Host    string    `json:"host"`
		Ports   []int     `json:"ports"`
		Public  string    `json:"public"`
		Expires time.Time `json:"expires"`
	} `json:"ils"`
}

type forwardsDoc struct {
	Forwards []struct {
		Name        string            `json:"name"`
		Listen      any               `json:"listen"`
		To          string            `json:"to"`
		Path        string            `json:"path"`
		Why         string            `json:"why"`
		Connections int               `json:"connections"`
		Total       uint64            `json:"connections_total"`
		FromClients uint64            `json:"bytes_from_clients"`
		FromTarget  uint64            `json:"bytes_from_target"`
		Refused     map[string]uint64 `json:"refused"`
	} `json:"forwards"`
}

type proxyDoc struct {
	Connections []struct {
		Protocol   string    `json:"protocol"`
		Client     string    `json:"client"`
		User       string    `json:"user"`
		Target     string    `json:"target"`
		UDP        bool      `json:"udp"`
		Since      time.Time `json:"since"`
		FromClient uint64    `json:"from_client"`
		FromTarget uint64    `json:"from_target"`
	} `json:"connections"`
}

type mailboxDoc struct {
	Device   string     `json:"device"`
	ID       string     `json:"id"`
	Messages int        `json:"messages"`
	Octets   uint64     `json:"octets"`
	Quota    uint64     `json:"quota"`
	Readers  int        `json:"readers"`
	Oldest   *time.Time `json:"oldest"`
}

type bansDoc struct {
	Bans []struct {
		Target string     `json:"target"`
		Why    string     `json:"why"`
		By     string     `json:"by"`
		Since  time.Time  `json:"since"`
		Until  *time.Time `json:"until"`
	} `json:"bans"`
}

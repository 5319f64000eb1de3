package trace

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Trace is what is known of a call.
type Trace struct {
	CallID string `json:"call_id"`
	// IDs are the edge's names of it: more than one if it passed more than once.
	IDs     []string  `json:"ids"`
	From    string    `json:"from"`
	To      string    `json:"to"`
	Started time.Time `json:"started"`
	Last    time.Time `json:"last"`
	// Dropped counts messages that were forgotten for room.
	Dropped int `json:"dropped"`
	// Parties are the remote addresses in the order in which they appeared.
	Parties  []netip.AddrPort `json:"parties"`
	Messages []Entry          `json:"messages"`
}

// Entry is a message of a [Trace].
type Entry struct {
	Seq       uint64         `json:"seq"`
	Time      time.Time      `json:"time"`
	Direction string         `json:"direction"` // in, out
	Network   string         `json:"network"`
	Transport string         `json:"transport"`
	Protocol  string         `json:"protocol"` // sip, h225, h245, ras
	Local     netip.AddrPort `json:"local"`
	Remote    netip.AddrPort `json:"remote"`
	Summary   string         `json:"summary"`
	CSeq      string         `json:"cseq"`
	Method    string         `json:"method"`
	Status    int            `json:"status"` // 0 of a request
	Repeat    bool           `json:"repeat"` // a retransmission
	Truncated bool           `json:"truncated"`
	// Of is the number of the message that this one was made from; 0 of the edge's own and of those received.
	Of   uint64 `json:"of,omitempty"`
	Text string `json:"text"`
	// Diff is what was changed in it.
	Diff []Line `json:"diff,omitempty"`
}

// Summary is one line of the list of what is known.
type Summary struct {
	CallID   string    `json:"call_id"`
	IDs      []string  `json:"ids"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Method   string    `json:"method"` // of the first request
	Status   int       `json:"status"` // the last one to that method, 0 if there was none
	Started  time.Time `json:"started"`
	Last     time.Time `json:"last"`
	Messages int       `json:"messages"`
}

// Trace returns what is known of a call, by Call-ID or name, with the messages after the given number; false if
// nothing is. Secrets are masked unless they are asked for.
func (r *Ring) Trace(id string, after uint64, secrets bool) (Trace, bool) {
	msgs, ok := r.Messages(id, 0, secrets)
	if !ok || len(msgs) == 0 {
		return Trace{}, false
	}
	t := Trace{
		CallID: msgs[0].Call, IDs: []string{}, Started: msgs[0].Time, Last: msgs[len(msgs)-1].Time, Parties: []netip.AddrPort{}, Messages: []Entry{},
	}
	if msgs[0].Protocol == "" {
		h := scan(msgs[0].Data)
		t.From, t.To = string(h.from), string(h.to)
	}
	r.mu.Lock()
	if d := r.byID[t.CallID]; d != nil {
		t.IDs, t.Dropped = append(t.IDs, d.names...), d.dropped
		t.From, t.To = cmp.Or(t.From, d.from), cmp.Or(t.To, d.to)
	}
	r.mu.Unlock()
	for _, e := range r.entries(msgs, after) {
		if !slices.Contains(t.Parties, e.Remote) {
			t.Parties = append(t.Parties, e.Remote)
		}
		if e.Seq > after {
			t.Messages = append(t.Messages, e)
		}
	}
	return t, true
}

// entries describes messages. Only of those after the given number the differences are worked out.
func (r *Ring) entries(msgs []Message, after uint64) []Entry {
	out := make([]Entry, len(msgs))
	received := map[string]int{} // the last message received of each CSeq and status, or of each kind
	seen := map[string]bool{}
	hosts := map[netip.Addr]netip.AddrPort{}
	for i, m := range msgs {
		e := Entry{
			Seq: m.Seq, Time: m.Time, Direction: "in", Network: m.Network, Transport: m.Transport, Local: m.Local, Remote: m.Remote,
			Truncated: m.Truncated, Text: string(m.Data),
		}
		key := r.describe(&m, &e)
		if m.Protocol == "" {
			same := m.Remote.String() + string(m.Data)
			e.Repeat, seen[same] = seen[same], true
		} else if at, known := hosts[m.Remote.Addr()]; known {
			e.Remote = at // one party has a connection for each protocol
		} else {
			hosts[m.Remote.Addr()] = m.Remote
		}
		if m.Out {
			e.Direction = "out"
			if at, ok := received[key]; ok {
				e.Of = msgs[at].Seq
				if m.Seq > after {
					e.Diff = Diff(out[at].Text, e.Text)
				}
			}
		} else {
			received[key] = i
		}
		out[i] = e
	}
	return out
}

// describe says what a message is, and returns what it has in common with the one that it was made from.
func (r *Ring) describe(m *Message, e *Entry) (key string) {
	if m.Protocol != "" {
		e.Protocol, e.Text = m.Protocol, ""
		if r.reader != nil {
			w := r.reader.Read(m.Protocol, m.Data)
			e.Method, e.Summary, e.Text = w.Method, w.Summary, w.Text
		}
		return m.Protocol + " " + e.Method
	}
	h := scan(m.Data)
	e.Protocol = "sip"
	e.Summary = strings.ToValidUTF8(strings.TrimSuffix(string(h.first), " SIP/2.0"), "?")
	e.Summary = strings.TrimPrefix(e.Summary, "SIP/2.0 ")
	e.CSeq, e.Method, e.Status = string(h.cseq), string(h.method), h.status
	return strconv.Itoa(h.status) + " " + e.CSeq
}

// List returns what is known, the latest first.
func (r *Ring) List() []Summary {
	out := []Summary{}
	if r == nil {
		return out
	}
	r.mu.Lock()
	for _, d := range r.byID {
		if len(d.msgs) > 0 {
			out = append(out, d.summary())
		}
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b Summary) int { return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.CallID, b.CallID)) })
	return out
}

func (d *dialog) summary() Summary {
	s := Summary{
		CallID: d.id, IDs: append([]string{}, d.names...), From: d.from, To: d.to, Method: d.msgs[0].Kind,
		Started: d.msgs[0].Time, Last: d.msgs[len(d.msgs)-1].Time, Messages: len(d.msgs) + d.dropped,
	}
	if d.msgs[0].Protocol != "" {
		return s
	}
	first := scan(d.msgs[0].Data)
	s.From, s.To, s.Method = string(first.from), string(first.to), string(first.method)
	for i := len(d.msgs) - 1; i >= 0 && s.Status == 0; i-- {
		if h := scan(d.msgs[i].Data); string(h.method) == s.Method {
			s.Status = h.status
		}
	}
	return s
}

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
	h := scan(msgs[0].Data)
	t := Trace{
		From: string(h.from), To: string(h.to), CallID: string(h.callID), IDs: []string{},
		Started: msgs[0].Time, Last: msgs[len(msgs)-1].Time, Parties: []netip.AddrPort{}, Messages: []Entry{},
	}
	r.mu.Lock()
	if d := r.byID[t.CallID]; d != nil {
		t.IDs, t.Dropped = append(t.IDs, d.names...), d.dropped
	}
	r.mu.Unlock()
	for _, e := range entries(msgs, after) {
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
func entries(msgs []Message, after uint64) []Entry {
	out := make([]Entry, len(msgs))
	received := map[string]int{} // the last message received of each CSeq and status
	seen := map[string]bool{}
	for i, m := range msgs {
		h := scan(m.Data)
		e := Entry{
			Seq: m.Seq, Time: m.Time, Direction: "in", Network: m.Network, Transport: m.Transport, Local: m.Local, Remote: m.Remote,
			Summary: strings.ToValidUTF8(strings.TrimSuffix(string(h.first), " SIP/2.0"), "?"), CSeq: string(h.cseq), Method: string(h.method),
			Status: h.status, Truncated: m.Truncated, Text: string(m.Data),
		}
		e.Summary = strings.TrimPrefix(e.Summary, "SIP/2.0 ")
		same := m.Remote.String() + string(m.Data)
		e.Repeat, seen[same] = seen[same], true
		key := strconv.Itoa(h.status) + " " + e.CSeq
		if m.Out {
			e.Direction = "out"
			if at, ok := received[key]; ok {
				e.Of = msgs[at].Seq
				if m.Seq > after {
					e.Diff = Diff(string(msgs[at].Data), e.Text)
				}
			}
		} else {
			received[key] = i
		}
		out[i] = e
	}
	return out
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
	first := scan(d.msgs[0].Data)
	s := Summary{
		CallID: d.id, IDs: append([]string{}, d.names...), From: string(first.from), To: string(first.to), Method: string(first.method),
		Started: d.msgs[0].Time, Last: d.msgs[len(d.msgs)-1].Time, Messages: len(d.msgs) + d.dropped,
	}
	for i := len(d.msgs) - 1; i >= 0 && s.Status == 0; i-- {
		if h := scan(d.msgs[i].Data); string(h.method) == s.Method {
			s.Status = h.status
		}
	}
	return s
}

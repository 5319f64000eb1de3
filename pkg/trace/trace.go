// Package trace keeps the signalling messages of the last calls in memory, as each came in and as it was sent on,
// so that somebody can look afterwards at what happened to a call. It knows just enough of SIP to tell which call a
// message belongs to and which one it was made from; messages of other protocols say it themselves, and are read by a
// [Reader]. It judges nothing and writes no files.
//
//	received ─┐                 ┌─► Trace: the messages of a call, rewritten ones with their differences
//	          ├─► Ring.Add ─────┤
//	sent ─────┘  bounded bytes  └─► Watch: every message, as it passes
//
// What it hands out has its secrets masked unless they are asked for. The packages beside it write what it holds:
// pcapng as a file, hep for a collector.
package trace

import (
	"bytes"
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Message is one signalling message that passed a socket of the edge.
type Message struct {
	// Seq numbers the messages of all calls, from 1.
	Seq  uint64
	Time time.Time
	// Out is true of a message that the edge sent.
	Out bool
	// Network and Transport ("udp", "tcp", "tls", "ws", "wss") are those of the socket.
	Network, Transport string
	// Local is the edge's address. Its port is 0 where the edge made the connection and it is not known.
	Local, Remote netip.AddrPort
	// Protocol is "" for SIP. A message of another one says itself what it belongs to (Call), whether it makes that a call
	// (Placed), what it is (Kind) and who the parties are, if it knows (From, To).
	Protocol, Call, Kind, From, To string
	Placed                         bool
	// Data is the message, cut off after 16 KiB.
	Data      []byte
	Truncated bool
}

// Reader reads messages that are not SIP.
type Reader interface {
	// Read describes a message. Hide returns it with its secrets overwritten; data is not changed.
	Read(protocol string, data []byte) Reading
	Hide(protocol string, data []byte) []byte
}

// Reading is a message in words: its name, a line, and a line for each value.
type Reading struct{ Method, Summary, Text string }

const (
	// MinMemory is the least room that makes sense, in bytes.
	MinMemory = 64 << 10
	// maxData is how much is kept of one message.
	maxData = 16 << 10
	// headShown is what is shown of a message that was cut off and is not SIP, in bytes: by then it has said its type.
	headShown = 9
	// overhead is about what a message or a call costs beside its bytes.
	overhead = 256
	// maxCallID is the longest Call-ID that is looked at, in bytes.
	maxCallID = 512
	// maxNames bounds the names of one call: a Call-ID that many passages share.
	maxNames = 16
	// maxParty bounds what is kept of a party's name, in bytes.
	maxParty = 200
)

// Ring holds the messages of the last calls in a bounded number of bytes. What has been silent longest is
// forgotten first. What is no call (registrations, pings, and INVITEs that the edge refused) has a quarter of the
// room at most, so that a flood from outside cannot push calls out. All methods may be called concurrently, also on
// a nil Ring, which holds nothing.
type Ring struct {
	memory int
	mask   *Mask
	reader Reader

	mu    sync.Mutex
	next  uint64
	used  int
	other int // the part of used that is no call's
	// calls and others list *dialog, the longest silent first.
	calls, others *list.List
	byID          map[string]*dialog
	names         map[string]*dialog // by the edge's names of calls
	watch         func(Message)
}

// dialog is all that has one Call-ID.
type dialog struct {
	id      string
	names   []string
	call    bool // an INVITE of it was sent on
	from    string
	to      string
	elem    *list.Element
	msgs    []Message
	used    int
	dropped int
}

// New returns a ring of the given size in bytes, at least [MinMemory]; nil for 0.
func New(memory int) *Ring {
	if memory <= 0 {
		return nil
	}
	return &Ring{
		memory: max(memory, MinMemory), mask: NewMask(), calls: list.New(), others: list.New(),
		byID: map[string]*dialog{}, names: map[string]*dialog{},
	}
}

// ReadWith has messages that are not SIP read by rd. Call it before the first of them.
func (r *Ring) ReadWith(rd Reader) {
	if r != nil {
		r.reader = rd
	}
}

// Watch has f called with every message from now on, one at a time. Data must not be changed, f must not block.
func (r *Ring) Watch(f func(Message)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch = f
}

// Add takes note of a message. m.Data is copied; Seq is given here.
func (r *Ring) Add(m Message) {
	if r == nil {
		return
	}
	if m.Protocol == "" {
		h := scan(m.Data)
		m.Call, m.From, m.To, m.Kind = string(h.callID), "", "", ""
		m.Placed = m.Out && h.status == 0 && string(h.method) == "INVITE"
	}
	if m.Call == "" || len(m.Call) > maxCallID {
		return
	}
	m.From, m.To = m.From[:min(len(m.From), maxParty)], m.To[:min(len(m.To), maxParty)]
	m.Truncated = len(m.Data) > maxData
	m.Data = bytes.Clone(m.Data[:min(len(m.Data), maxData)])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	m.Seq = r.next
	d := r.byID[m.Call]
	if d == nil {
		d = &dialog{id: m.Call}
		d.elem = r.others.PushBack(d)
		r.byID[d.id] = d
		r.grow(d, len(d.id)+overhead)
	}
	if !d.call && m.Placed {
		r.promote(d)
	}
	if d.from+d.to == "" && m.From+m.To != "" {
		d.from, d.to = m.From, m.To
		r.grow(d, len(m.From)+len(m.To))
	}
	d.msgs = append(d.msgs, m)
	r.grow(d, cost(m))
	r.listOf(d).MoveToBack(d.elem)
	r.shrink(d)
	if r.watch != nil {
		r.watch(m)
	}
}

// Name gives a call another name, under which it is found too.
func (r *Ring) Name(callID, name string) {
	if r == nil || name == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.byID[callID]
	if d == nil || len(d.names) >= maxNames || slices.Contains(d.names, name) {
		return
	}
	if old := r.names[name]; old != nil {
		return
	}
	d.names = append(d.names, name)
	r.names[name] = d
	r.grow(d, len(name)+overhead)
}

func cost(m Message) int { return len(m.Data) + overhead }

func (r *Ring) listOf(d *dialog) *list.List {
	if d.call {
		return r.calls
	}
	return r.others
}

func (r *Ring) grow(d *dialog, n int) {
	d.used += n
	r.used += n
	if !d.call {
		r.other += n
	}
}

// promote makes a dialog a call.
func (r *Ring) promote(d *dialog) {
	r.others.Remove(d.elem)
	r.other -= d.used
	d.call = true
	d.elem = r.calls.PushBack(d)
}

// shrink makes room after d has grown. One dialog gets an eighth of the room, all that are no calls a quarter.
func (r *Ring) shrink(d *dialog) {
	for d.used > r.memory/8 && len(d.msgs) > 1 {
		n := cost(d.msgs[0])
		d.msgs = slices.Delete(d.msgs, 0, 1)
		d.dropped++
		r.grow(d, -n)
	}
	for r.used > r.memory || r.other > r.memory/4 {
		from := r.calls
		if r.other > r.memory/4 || from.Len() == 0 {
			from = r.others
		}
		r.forget(from.Front().Value.(*dialog))
	}
}

func (r *Ring) forget(d *dialog) {
	r.listOf(d).Remove(d.elem)
	delete(r.byID, d.id)
	for _, n := range d.names {
		delete(r.names, n)
	}
	r.grow(d, -d.used)
}

// find returns the dialog of a Call-ID or of another name.
func (r *Ring) find(id string) *dialog {
	if d := r.byID[id]; d != nil {
		return d
	}
	return r.names[id]
}

// Messages returns the messages of a call after the given number, by Call-ID or name, as they passed but for
// secrets, which are masked unless they are asked for; false if nothing is known of it.
func (r *Ring) Messages(id string, after uint64, secrets bool) ([]Message, bool) {
	if r == nil {
		return nil, false
	}
	r.mu.Lock()
	d := r.find(id)
	if d == nil {
		r.mu.Unlock()
		return nil, false
	}
	i, _ := slices.BinarySearchFunc(d.msgs, after+1, func(m Message, seq uint64) int { return int(int64(m.Seq) - int64(seq)) })
	msgs := slices.Clone(d.msgs[i:])
	r.mu.Unlock()
	if !secrets {
		for i := range msgs {
			msgs[i].Data = r.hide(&msgs[i])
		}
	}
	return msgs, true
}

// hide returns a message without its secrets.
func (r *Ring) hide(m *Message) []byte {
	switch {
	case m.Protocol == "":
		return r.mask.Hide(m.Data)
	case r.reader == nil:
		return nil
	case m.Truncated: // it cannot be read, and so nobody knows where its secrets are
		out := make([]byte, len(m.Data))
		copy(out, m.Data[:headShown])
		return out
	}
	return r.reader.Hide(m.Protocol, m.Data)
}

// Used returns how many bytes are held, and how many dialogs.
func (r *Ring) Used() (bytes, dialogs int) {
	if r == nil {
		return 0, 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used, len(r.byID)
}

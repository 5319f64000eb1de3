package tftp

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

const (
	// lifetime is how long an invitation is remembered that nobody accepts; the end of its dialog ends it before.
	lifetime = time.Hour
	// maxPerHost bounds the invitations of one host, or of one user behind a server.
	maxPerHost = 128
	// maxKey bounds what of a message is kept to recognise an invitation, in octets.
	maxKey = 2048
)

// Results of transfers, besides those of their data connections and the reasons of denials.
const (
	resultCancelled   = "cancelled"
	resultRefused     = "refused"
	resultEnded       = "ended"
	resultTimeout     = "timeout"
	resultReplaced    = "replaced"
	resultUnreachable = "unreachable"
	resultShutdown    = "shutdown"
)

// key recognises an invitation. Clients started in the same second have the same Call-ID, hence the parties.
type key struct {
	call, cookie string
	// low and high are the parties, in the order of their letters: both speak of the same invitation.
	low, high string
}

func keyOf(c Content, cookie string) key {
	a, b := address(c.From), address(c.To)
	return key{c.CallID, cookie, min(a, b), max(a, b)}
}

func (k key) short() bool { return len(k.call)+len(k.cookie)+len(k.low)+len(k.high) <= maxKey }

// transfer is an invitation and what became of it.
type transfer struct {
	key  key
	host string // who is counted for it
	// hosts are those by which the invitation has passed; a zero one stands for any.
	hosts []netip.Addr
	// from and to are user@domain of the file's sender and receiver.
	from, to string
	networks [2]string // of from and to, as the invitation came first
	file     string
	size     int64 // -1: not said
	created  time.Time
	expires  time.Time // as long as it is not running
	denied   string    // why, "" if it is not
	foreign  bool      // for another application that may pass

	encryptionKey, hashKey string

	// What was said of the listening client, and the pinhole to it; without a lease nothing was.
	said  said
	lease pinhole.Lease
	// opening numbers the leases of the transfer: connections of an earlier one do not count.
	opening int
	// toward is the network of the client that connects, local where it does.
	toward  string
	local   netip.AddrPort
	running bool
	detail  string // of its end
}

// said is what one acceptance says, and who said it.
type said struct {
	network    string
	source     netip.Addr
	trusted    bool
	owner      string
	target     netip.AddrPort
	authCookie string
	// receives tells that the listener is the file's receiver.
	receives bool
}

// Record tells what became of a transfer whose data connection was offered.
type Record struct {
	CallID  string    `json:"call_id"`
	From    string    `json:"from"`
	To      string    `json:"to"`
	File    string    `json:"file"`
	Size    int64     `json:"size"`
	Started time.Time `json:"started"`
	// Bytes passed between the clients, in both directions.
	Bytes  uint64 `json:"bytes"`
	Result string `json:"result"`
	// Detail says more of some results: the virus, the kind of file, why the client could not be reached.
	Detail string `json:"detail,omitempty"`
}

// View is a transfer as operators see it.
type View struct {
	CallID   string    `json:"call_id"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Networks [2]string `json:"networks"`
	File     string    `json:"file"`
	// Size is as the invitation says, -1 if it does not.
	Size    int64     `json:"size"`
	Started time.Time `json:"started"`
	// State is invited, listening, running or denied.
	State  string `json:"state"`
	Denied string `json:"denied,omitempty"`
	// Listener is the client's address, Edge that which the other client was given instead.
	Listener string `json:"listener,omitempty"`
	Edge     string `json:"edge,omitempty"`
}

// addLocked remembers a new invitation, nil if there are too many.
func (e *Editor) addLocked(now time.Time, k key, c Content) *transfer {
	host := e.ownerOf(c)
	if len(e.byKey) >= e.cfg.MaxInvitations || e.perHost[host] >= maxPerHost {
		return nil
	}
	t := &transfer{
		key: k, host: host, from: address(c.From), to: address(c.To), networks: [2]string{c.Sender.Network, c.Receiver.Network},
		created: now, expires: now.Add(lifetime),
	}
	e.byKey[k] = t
	if e.byCall[k.call] == nil {
		e.byCall[k.call] = map[*transfer]bool{}
	}
	e.byCall[k.call][t] = true
	e.perHost[host]++
	e.count.invited()
	return t
}

// maxHosts bounds the hosts of a transfer: two clients, and the proxies between them.
const maxHosts = 16

// metLocked remembers by which hosts an invitation passes.
func (t *transfer) metLocked(parties ...Party) {
	for _, p := range parties {
		if len(t.hosts) < maxHosts && !slices.Contains(t.hosts, p.Addr) {
			t.hosts = append(t.hosts, p.Addr)
		}
	}
}

// ownerOf says who pays for an invitation and its pinhole: the host (outside, the /64 that one of IPv6 may roam in), or
// the user where a server speaks for many.
func (e *Editor) ownerOf(c Content) string {
	a := c.Sender.Addr
	switch {
	case c.Sender.Trusted || !a.IsValid():
		return address(c.From)
	case a.Is6() && !e.nets[c.Sender.Network].Trusted:
		return netip.PrefixFrom(a, 64).Masked().String()
	}
	return a.String()
}

// releaseLocked closes a transfer's pinhole, if it has one.
func (e *Editor) releaseLocked(t *transfer) (bytes uint64) {
	if t.lease == nil {
		return 0
	}
	if e.byLocal[t.local] == t {
		delete(e.byLocal, t.local)
	}
	sum := t.lease.Close()
	t.lease, t.running = nil, false
	t.opening++
	return sum.From[0].Bytes + sum.From[1].Bytes
}

// endLocked forgets a transfer.
func (e *Editor) endLocked(t *transfer, result string) {
	if e.byKey[t.key] != t {
		return
	}
	delete(e.byKey, t.key)
	delete(e.byCall[t.key.call], t)
	if len(e.byCall[t.key.call]) == 0 {
		delete(e.byCall, t.key.call)
	}
	if e.perHost[t.host]--; e.perHost[t.host] == 0 {
		delete(e.perHost, t.host)
	}
	offered := t.lease != nil
	bytes := e.releaseLocked(t)
	if t.denied != "" || t.foreign {
		return
	}
	e.count.end(result, bytes)
	if !offered {
		return
	}
	r := Record{t.key.call, t.from, t.to, t.file, t.size, t.created, bytes, result, t.detail}
	e.log.Info("file transfer ended", zap.String("result", result), zap.String("detail", r.Detail), zap.String("from", printable(r.From)), zap.String("to", printable(r.To)),
		zap.String("file", r.File), zap.Int64("size", r.Size), zap.Uint64("bytes", bytes), zap.String("call_id", printable(r.CallID)))
	if e.record != nil {
		e.record(r)
	}
}

// Ended tells that the dialogs of a Call-ID are over.
func (e *Editor) Ended(callID string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for t := range e.byCall[callID] {
		e.endLocked(t, resultEnded)
	}
}

// Lost tells that the connection is lost by which two URIs spoke in a call.
func (e *Editor) Lost(callID, one, other string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a, b := address(one), address(other)
	for t := range e.byCall[callID] {
		if t.key.low == min(a, b) && t.key.high == max(a, b) {
			e.endLocked(t, resultEnded)
		}
	}
}

// Tick ends what nobody has taken up by now.
func (e *Editor) Tick(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.byKey {
		if !t.running && !now.Before(t.expires) {
			e.endLocked(t, resultTimeout)
		}
	}
}

// Running counts the transfers whose data connection is up.
func (e *Editor) Running() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, t := range e.byKey {
		if t.running {
			n++
		}
	}
	return n
}

// Transfers returns what is known, oldest first.
func (e *Editor) Transfers() []View {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]View, 0, len(e.byKey))
	for _, t := range e.byKey {
		v := View{
			CallID: t.key.call, From: t.from, To: t.to, Networks: t.networks, File: t.file, Size: t.size, Started: t.created.UTC(),
			State: t.state(), Denied: t.denied,
		}
		if t.lease != nil {
			v.Listener, v.Edge = t.said.target.String(), t.local.String()
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b View) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.CallID, b.CallID)) })
	return out
}

func (t *transfer) state() string {
	switch {
	case t.denied != "":
		return "denied"
	case t.running:
		return "running"
	case t.lease != nil:
		return "listening"
	}
	return "invited"
}

// printable returns a text from outside for logs and views: no longer than 200 characters, one line, UTF-8.
func printable(s string) string {
	n := 0
	return strings.Map(func(r rune) rune {
		if n++; n > 200 {
			return -1
		}
		if !unicode.IsGraphic(r) {
			return '\ufffd'
		}
		return r
	}, s)
}

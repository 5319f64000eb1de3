package tftp

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tftp/content"
	"edged.dev/edged/pkg/tftp/invitation"
	"edged.dev/edged/pkg/tftp/msnftp"
)

// Content is what a SIP message carries besides a session description, in its body or, as a header field's text,
// in the INVITE of a conversation.
type Content struct {
	// Status is 0 for a request, else that of the response.
	Status int
	// Type is the media type as written; Body the text, valid during the call only.
	Type, Body []byte
	// Header tells that it came in a header field.
	Header bool
	CallID string
	// From and To are the URIs of these header fields, the request's in a response too.
	From, To string
	// Signed tells that the sender takes no answer that its server did not sign: the edge cannot refuse there.
	Signed bool
	// Sender and Receiver are the neighbours of the edge on either side.
	Sender, Receiver Party
}

// Party is one neighbour.
type Party struct {
	Network string
	// Addr is the host, as seen; not valid if it is not known.
	Addr netip.Addr
	// Local is the edge's own address on that leg.
	Local netip.Addr
	// Trusted tells that it is a configured server, which speaks for other hosts.
	Trusted bool
}

// Verdict is what becomes of a content; the zero value lets it pass as it is.
type Verdict struct {
	// Body replaces it if not nil.
	Body []byte
	// Refuse is the status to refuse the request with, 0 for none; Warning a value of that header field for
	// it. EchoBody tells that the refusal carries the body again, without which clients do not understand it.
	Refuse   int
	Warning  string
	EchoBody bool
	// Reason labels a counter; it is one of a few constants.
	Reason string
}

// What a refused request is answered with, as Microsoft's servers do it.
const (
	refuseStatus  = 606
	refuseWarning = `309 edged "The file transfer is not allowed here"`
	dropReason    = "file_transfer"
)

// Deps are what an editor works with.
type Deps struct {
	Networks pinhole.Networks
	Opener   pinhole.Opener
	// RouteTo names the network to which the kernel would route a host that is in no network's subnets, "" if it
	// does not know; it may be nil.
	RouteTo func(netip.Addr) string
	// Joiner moves what is not read of data connections; nil: it is copied.
	Joiner msnftp.Joiner
	// Record is called when a transfer is over, and must not block or call back; it may be nil.
	Record func(Record)
}

// Editor reads and edits invitations. Its methods may be called concurrently and never block.
type Editor struct {
	nets    pinhole.Networks
	opener  pinhole.Opener
	routeTo func(netip.Addr) string
	joiner  msnftp.Joiner
	record  func(Record)
	log     *zap.Logger
	count   *counters

	mu       sync.Mutex
	cfg      Config
	checker  *content.Checker // nil if nothing is to be looked at
	draining bool
	byKey    map[key]*transfer
	byCall   map[string]map[*transfer]bool
	perHost  map[string]int
	// byLocal are the transfers for which the edge listens, by the address that it wrote into the invitation.
	byLocal map[netip.AddrPort]*transfer
}

// New returns an editor after checking what of cfg can be checked without the whole configuration.
func New(cfg Config, deps Deps, log *zap.Logger) (*Editor, error) {
	checker, err := newChecker(cfg.Content, log)
	if err != nil {
		return nil, err
	}
	return &Editor{
		nets: deps.Networks, opener: deps.Opener, routeTo: deps.RouteTo, joiner: deps.Joiner, record: deps.Record, log: log, count: newCounters(), cfg: cfg, checker: checker,
		byKey: map[key]*transfer{}, byCall: map[string]map[*transfer]bool{}, perHost: map[string]int{}, byLocal: map[netip.AddrPort]*transfer{},
	}, nil
}

// Run ends what nobody takes up, until ctx ends; then it ends everything.
func (e *Editor) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			e.Tick(now)
		case <-ctx.Done():
			e.mu.Lock()
			defer e.mu.Unlock()
			for _, t := range e.byKey {
				e.endLocked(t, resultShutdown)
			}
			return nil
		}
	}
}

// Reload takes over the section's keys, for what comes from now on.
func (e *Editor) Reload(cfg Config) error {
	checker, err := newChecker(cfg.Content, e.log)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cfg, e.checker = cfg, checker
	return nil
}

// Drain refuses invitations from now on.
func (e *Editor) Drain() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.draining = true
}

// Edit judges one content and edits it. What is no invitation passes. now is the time that the message came.
func (e *Editor) Edit(now time.Time, c Content) Verdict {
	is, utf8 := isInvitation(c.Type)
	if !is {
		return Verdict{}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	inv, err := invitation.Parse(c.Body)
	if c.Status != 0 {
		return e.answeredLocked(c, inv, err)
	}
	cookie := ""
	if err == nil {
		cookie = inv.Value(invitation.Cookie)
	}
	if err != nil || !utf8 || !plainCookie(cookie) || !keyOf(c, cookie).short() {
		return e.denyLocked(c, nil, "", reasonMalformed)
	}
	if e.strangerLocked(c, e.byKey[keyOf(c, cookie)]) {
		return e.denyLocked(c, nil, "", reasonStranger)
	}
	switch strings.ToUpper(inv.Value(invitation.Command)) {
	case "INVITE":
		return e.inviteLocked(now, c, inv)
	case "ACCEPT":
		return e.acceptLocked(now, c, inv)
	case "CANCEL", "REJECT":
		if t := e.byKey[keyOf(c, cookie)]; t != nil && t.denied == "" {
			e.endLocked(t, resultCancelled)
		}
		return Verdict{Body: withoutAddress(inv)}
	}
	return e.denyLocked(c, e.byKey[keyOf(c, cookie)], cookie, reasonMalformed)
}

// plainCookie tells whether an Invitation-Cookie is what clients write: a short number or word.
func plainCookie(s string) bool {
	return s != "" && len(s) <= 40 && strings.Trim(s, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_{}") == ""
}

// answeredLocked reads a response. Clients look at its cookie only, so the addresses that it repeats go: they are those
// by which the edge is known on the other side.
func (e *Editor) answeredLocked(c Content, inv *invitation.Invitation, err error) Verdict {
	if err != nil {
		return Verdict{Body: invitation.Cancel("0", "REJECT"), Reason: dropReason}
	}
	if c.Status >= 300 {
		e.refusedLocked(c, inv)
	}
	return Verdict{Body: withoutAddress(inv)}
}

// refusedLocked ends what an answer refuses.
func (e *Editor) refusedLocked(c Content, inv *invitation.Invitation) {
	t := e.byKey[keyOf(c, inv.Value(invitation.Cookie))]
	if t != nil && t.denied == "" && !t.running && strings.EqualFold(inv.Value(invitation.Command), "INVITE") {
		e.endLocked(t, resultRefused)
	}
}

// inviteLocked judges an invitation. The same one comes in the INVITE's header field, again as MESSAGE, and again
// if its way leads through the edge twice.
func (e *Editor) inviteLocked(now time.Time, c Content, inv *invitation.Invitation) Verdict {
	k := keyOf(c, inv.Value(invitation.Cookie))
	t := e.byKey[k]
	reason, foreign := e.judge(c, inv)
	if t != nil && t.denied != "" {
		reason = t.denied
	}
	if t == nil && (reason == "" || c.Signed) {
		if t = e.addLocked(now, k, c); t == nil {
			reason = reasonFull // and what is not known is not accepted either
		}
	}
	if t != nil {
		t.metLocked(c.Sender, c.Receiver)
		t.foreign = foreign
		t.file = printable(inv.Value(invitation.File))
		t.size = -1
		if n, ok := fileSize(inv.Value(invitation.FileSize)); ok {
			t.size = n
		}
	}
	if reason != "" {
		if v := e.denyLocked(c, t, k.cookie, reason); v.Refuse != 0 || v.Body != nil {
			return v
		}
	}
	if foreign {
		return Verdict{}
	}
	return Verdict{Body: withoutAddress(inv)}
}

// denyLocked answers what may not pass. Where the edge may answer, the request is refused. Where only the server may,
// an invitation passes, and its acceptance becomes a CANCEL: its sender is told and no address gets through.
func (e *Editor) denyLocked(c Content, t *transfer, cookie, reason string) Verdict {
	e.deniedLocked(c, t, reason)
	switch {
	case !c.Signed:
		// Clients give up only if the answer holds their own words, except for those in a header field.
		return Verdict{Refuse: refuseStatus, Warning: refuseWarning, EchoBody: !c.Header, Reason: dropReason}
	case reason == reasonMalformed || reason == reasonStranger:
		return Verdict{Body: invitation.Cancel(cmp.Or(cookie, "0"), "REJECT"), Reason: dropReason}
	}
	return Verdict{}
}

// cancelLocked makes a CANCEL of what would have been an acceptance.
func (e *Editor) cancelLocked(c Content, t *transfer, cookie, reason string) Verdict {
	e.deniedLocked(c, t, reason)
	return Verdict{Body: invitation.Cancel(cookie, "REJECT"), Reason: dropReason}
}

// strangerLocked tells that a message about an invitation comes from a host by which the invitation did not pass. Whoever
// knows its names could take its port or end it.
func (e *Editor) strangerLocked(c Content, t *transfer) bool {
	return t != nil && !c.Sender.Trusted && c.Sender.Addr.IsValid() && !slices.Contains(t.hosts, c.Sender.Addr) && !slices.Contains(t.hosts, netip.Addr{})
}

// deniedLocked counts and logs a denial, once for each invitation that is known, which stays denied.
func (e *Editor) deniedLocked(c Content, t *transfer, reason string) {
	if t != nil {
		if t.denied != "" {
			return
		}
		t.denied = reason
		e.releaseLocked(t)
	}
	e.count.deny(reason)
	e.log.Info("file transfer denied", zap.String("reason", reason), zap.String("from", printable(c.From)),
		zap.String("to", printable(c.To)), zap.String("call_id", printable(c.CallID)))
}

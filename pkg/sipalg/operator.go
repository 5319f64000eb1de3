package sipalg

import (
	"net/netip"
	"net/url"
	"slices"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// What operators do: end a call, and shut somebody out.

// Denier says who is shut out. Its methods may be called concurrently, with locks held, and must not block.
type Denier interface {
	// Addr is asked for each message.
	Addr(a netip.Addr) bool
	// User is asked for names such as alice@example.org.
	User(name string) bool
}

// hungUp is the reason of the record of a call that an operator has ended.
const hungUp = "hung up by operator"

// HangUp ends the calls with an ID of [CallInfo], or with a Call-ID, and returns how many there were. One that is answered
// gets a BYE on each side (RFC 3261 §15), one that is not a CANCEL (§9), which ends it for the caller with 487. Its record
// is written once both sides have answered, 32 s later at the latest.
func (s *Server) HangUp(id string) (n int) {
	s.do(func(c *Core, out *Output) {
		n = c.HangUp(time.Now(), func(i *session) bool { return i.callID == id || string(appendHex(nil, i.id)) == id }, out)
	})
	return n
}

// Expel ends the calls and forgets the registrations of those whom [Deps.Deny] shuts out now, and returns how many calls
// there were.
func (s *Server) Expel() (n int) {
	s.do(func(c *Core, out *Output) {
		if c.deny == nil {
			return
		}
		n = c.HangUp(time.Now(), c.shutOut, out)
		for _, b := range c.bindings {
			if c.deny.User(unescaped(b.aor)) || c.deny.Addr(b.alias.flow.Remote.Addr()) {
				c.unbind(b, "banned")
			}
		}
	})
	return n
}

// HangUp ends the calls that match.
func (c *Core) HangUp(now time.Time, match func(*session) bool, out *Output) (n int) {
	c.begin(now, out)
	var list []*session
	for _, s := range c.sessions {
		if match(s) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *session) int { return a.started.Compare(b.started) })
	for _, s := range list {
		if s.answered.IsZero() {
			c.abandon(s)
		} else {
			c.hangup(s, hungUp)
		}
	}
	return len(list)
}

// abandon ends a call that nobody has answered. An answer that crosses the CANCEL is a call all the same (§9.1): it is hung
// up when the caller acknowledges it, as nobody may be sent a BYE before.
func (c *Core) abandon(s *session) {
	s.reason = hungUp
	c.log.Info("call ended by the edge", zap.String("call_id", s.callID), zap.String("reason", hungUp))
	for _, t := range c.client {
		if t.session != s || !t.invite || t.dialog != nil || t.state >= txCompleted || t.cancelled {
			continue
		}
		t.cancelled = true
		c.cancel(t) // once the next hop has answered at all
		return
	}
}

// crossed hangs up a call whose answer has crossed a CANCEL, or a BYE, of an operator, now that it is acknowledged.
func (c *Core) crossed(s *session) {
	if s.reason == hungUp {
		c.hangup(s, hungUp)
	}
}

// shutOut tells whether one of a call's parties is shut out.
func (c *Core) shutOut(s *session) bool {
	return c.deny.Addr(s.flows[pinhole.Near].Remote.Addr()) || c.deny.Addr(s.flows[pinhole.Far].Remote.Addr()) ||
		c.deny.User(aorOf(addrSpec(s.from))) || c.deny.User(aorOf(addrSpec(s.to)))
}

// absent tells whether nobody on a side can answer any more: what he sends is not read.
func (c *Core) absent(s *session, side pinhole.Side) bool {
	return c.deny != nil && c.deny.Addr(s.flows[side].Remote.Addr())
}

// aorOf returns USER@HOST of a SIP URI, "" of others.
func aorOf(uri string) string {
	u, err := sipmsg.ParseURI([]byte(uri))
	if err != nil || len(u.User) == 0 {
		return ""
	}
	return unescaped(string(u.User)) + "@" + string(u.Host)
}

// unescaped returns a name without escapes, which mean the same (RFC 3261 §19.1.4): nobody gets round a ban by them.
func unescaped(name string) string {
	if plain, err := url.PathUnescape(name); err == nil {
		return plain
	}
	return name
}

// barred refuses what a user sends who is shut out: he is named by From, by To where he registers.
func (c *Core) barred(f flow.Flow, via *sipmsg.Via) bool {
	if c.deny == nil {
		return false
	}
	from, _ := c.m.Find(sipmsg.From)
	who := aorOf(addrSpec(string(from)))
	if c.m.Method() == "REGISTER" {
		to, _ := c.m.Find(sipmsg.To)
		who = aorOf(addrSpec(string(to)))
	}
	if !c.deny.User(who) {
		return false
	}
	c.drop("banned_user")
	c.reply(f, via, 403, "Forbidden")
	return true
}

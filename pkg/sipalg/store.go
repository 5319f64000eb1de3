package sipalg

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// stored is one line of the registration journal: a binding, or that it is gone. The first line of a
// journal holds the secret that makes the tokens, so that a client keeps its token over a restart.
type stored struct {
	Secret  []byte     `json:"secret,omitempty"`
	AOR     string     `json:"aor,omitempty"`
	Gone    bool       `json:"gone,omitempty"`
	Token   string     `json:"token,omitempty"`
	Key     []byte     `json:"key,omitempty"`
	URI     string     `json:"uri,omitempty"`
	Network string     `json:"network,omitempty"`
	Proto   string     `json:"proto,omitempty"`
	Local   string     `json:"local,omitempty"`
	Remote  string     `json:"remote,omitempty"`
	Called  string     `json:"called,omitempty"`
	Server  string     `json:"server_network,omitempty"`
	CallID  string     `json:"call_id,omitempty"`
	CSeq    uint32     `json:"cseq,omitempty"`
	At      *time.Time `json:"at,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
}

// store writes a binding's change to the journal.
func (c *Core) store(b *binding, gone bool) {
	c.journal(c.line(b, gone))
}

func (c *Core) line(b *binding, gone bool) []byte {
	s := stored{AOR: b.aor, Token: string(b.alias.token[:]), Gone: gone}
	if !gone {
		f := b.alias.flow
		s.Key, s.URI, s.Network, s.Proto = []byte(b.alias.key), string(b.alias.uri), b.alias.network, f.Proto.String()
		if f.Remote.IsValid() {
			s.Local, s.Remote = f.Local.String(), f.Remote.String()
			if f.Called.IsValid() {
				s.Called = f.Called.String()
			}
		}
		s.Server, s.CallID, s.CSeq, s.At, s.Expires = b.network, b.callID, b.cseq, &b.at, &b.expires
	}
	line, err := json.Marshal(s)
	if err != nil { // only strings, numbers and times
		return nil
	}
	return append(line, '\n')
}

// Snapshot writes the whole journal anew.
func (c *Core) Snapshot(w io.Writer) error {
	head, err := json.Marshal(stored{Secret: c.secret})
	if err != nil {
		return err
	}
	if _, err := w.Write(append(head, '\n')); err != nil {
		return err
	}
	for _, b := range c.bindings {
		if _, err := w.Write(c.line(b, false)); err != nil {
			return err
		}
	}
	return nil
}

// Restore reads a journal. A torn last line, as a crash leaves it, is ignored.
func (c *Core) Restore(now time.Time, r io.Reader, out *Output) error {
	c.begin(now, out)
	lines := map[string]stored{}
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	for sc.Scan() {
		var s stored
		if err := json.Unmarshal(sc.Bytes(), &s); err != nil {
			c.log.Warn("registration journal: a line is not readable", zap.Error(err))
			continue
		}
		switch {
		case len(s.Secret) == len(c.secret):
			c.secret = bytes.Clone(s.Secret)
		case s.Gone:
			delete(lines, s.AOR+" "+s.Token)
		default:
			lines[s.AOR+" "+s.Token] = s
		}
	}
	for _, s := range lines {
		c.restore(s)
	}
	return sc.Err()
}

func (c *Core) restore(s stored) {
	if s.Expires == nil || s.At == nil || !s.Expires.After(c.now) || len(s.Token) != tokenLen || len(c.nets[s.Network].Addresses) == 0 {
		return
	}
	if !reachableURI(s.URI) {
		c.log.Warn("registration journal: a Contact is no SIP URI", zap.String("aor", s.AOR))
		return
	}
	a := c.aliases[string(s.Key)]
	if a == nil {
		a = &alias{token: token([]byte(s.Token)), key: string(s.Key), uri: []byte(s.URI), network: s.Network}
		if from := len(s.Network) + 1; len(s.Key) >= from+16 {
			a.host = netip.AddrFrom16([16]byte(s.Key[from:])).Unmap()
		}
		c.judge(a, a.host)
		c.addAlias(a)
	}
	f := flow.Flow{Network: s.Network, Proto: flow.ParseProto(s.Proto)}
	if !f.Proto.Stream() && f.Proto != 0 { // a connection did not survive
		f.Local, _ = netip.ParseAddrPort(s.Local)
		f.Remote, _ = netip.ParseAddrPort(s.Remote)
		f.Called, _ = netip.ParseAddrPort(s.Called)
		c.bindAlias(a, f, true)
	}
	user, host, _ := strings.Cut(s.AOR, "@")
	b := &binding{
		aor: s.AOR, user: user, host: host, alias: a, network: s.Server, callID: s.CallID, cseq: s.CSeq,
		at: *s.At, expires: *s.Expires, granted: s.Expires.Sub(*s.At), restored: true,
	}
	b.timer.fire = func(c *Core) { c.unbind(b, "expired") }
	b.keepalive.fire = func(c *Core) { c.ping(b) }
	a.binding = b
	a.hold()
	c.bindings[bindingKey(b.aor, a)] = b
	c.users[user] = append(c.users[user], b)
	c.start(&b.timer, b.expires.Sub(c.now))
	if c.cfg.Keepalive > 0 && a.nat && a.flow.Remote.IsValid() {
		c.start(&b.keepalive, c.cfg.Keepalive)
	}
}

// reachableURI tells whether a text can be a Request-URI: somebody may have edited the journal.
func reachableURI(text string) bool {
	u, err := sipmsg.ParseURI([]byte(text))
	return err == nil && sipScheme(u) && len(u.Host) > 0 &&
		!strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

package sipalg

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// An alias stands for a Contact. The edge writes USER~TOKEN@EDGE into what it forwards; a request
// that names the token is sent back down the flow that the Contact came from, with the Contact's own
// text as Request-URI. One mechanism serves registrations, dialogs, REFER and redirects.
type alias struct {
	token   token
	key     string
	uri     []byte // the Contact's URI as it was written
	network string
	flow    flow.Flow  // the path to whoever wrote it; zero if the URI itself says the way
	bound   flow.Flow  // the flow of which the way was judged last
	host    netip.Addr // who wrote it; not valid: a redirection, written by anybody
	free    bool       // written by a configured server or outside: it may name other hosts
	nat     bool       // the URI's host is not the address that the message came from
	refs    int        // sessions that use it
	until   time.Time  // kept at least so long
	binding *binding   // its registration, nil if none
}

const (
	tokenLen = 13
	// aliasLife is how long a Contact that belongs to no dialog or registration is remembered.
	aliasLife = 5 * time.Minute
	// maxAliases bounds the memory that senders of ever new Contacts can take: about 300 bytes each.
	maxAliases = 1 << 20
)

type token [tokenLen]byte

//nolint:gochecknoglobals // an Encoding is never written once it is made
var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// aliasFor returns the alias of the Contact uri sent by f, made if needed. It returns nil when there
// are too many. adjacent says that f's peer is the user agent itself, not a proxy that speaks for it.
func (c *Core) aliasFor(f flow.Flow, uri []byte, adjacent bool) *alias {
	a := c.aliasBy(f.Network, f.Remote.Addr(), uri)
	// A registered Contact's flow changes only when the registrar accepts it: nobody else at the same
	// address may pull the calls to himself.
	if a != nil && (a.binding == nil || !a.flow.Remote.IsValid()) && (a.bound != f || !a.flow.Remote.IsValid()) {
		c.bindAlias(a, f, adjacent)
	}
	return a
}

// aliasBy returns the alias of a URI that a host of a network wrote; the zero host for one that leads
// to whom the URI names (a redirection), whoever wrote it.
func (c *Core) aliasBy(network string, host netip.Addr, uri []byte) *alias {
	k := append(append(c.keyBuf[:0], network...), 0)
	var ip [16]byte
	if host.IsValid() {
		ip = host.As16()
	}
	k = append(append(k, ip[:]...), uri...)
	c.keyBuf = k
	a := c.aliases[string(k)]
	if a == nil {
		if len(c.aliases) >= maxAliases {
			c.drop("alias_table_full")
			return nil
		}
		a = &alias{key: string(k), uri: bytes.Clone(uri), network: network, host: host.Unmap()}
		mac := hmac.New(sha256.New, c.secret)
		mac.Write(k)
		tokenText.Encode(a.token[:], mac.Sum(nil)[:8])
		c.addAlias(a)
	}
	a.keep(c.now.Add(aliasLife))
	return a
}

// keep remembers the alias at least until u.
func (a *alias) keep(u time.Time) {
	if u.After(a.until) {
		a.until = u
	}
}

func (c *Core) addAlias(a *alias) {
	c.aliases[a.key] = a
	c.tokens[a.token] = a
}

// bindAlias makes f the way to the alias, unless its peer is a proxy that speaks for a host of a
// public network: then the URI's own address is the way (RFC 3261 §12.2.1.1). A host of a trusted
// network can name nobody but itself: whatever its Contact says, requests go back to it.
func (c *Core) bindAlias(a *alias, f flow.Flow, adjacent bool) {
	src := f.Remote.Addr().Unmap()
	u, ip, isAddr := c.judge(a, src)
	if isAddr && a.nat && c.nets[f.Network].Trusted && !c.servers[src] {
		c.drop("contact_of_another_host")
	}
	unreachable := isAddr && ip.IsPrivate() && !src.IsPrivate()
	if a.nat && !adjacent && !unreachable && (!c.nets[f.Network].Trusted || c.servers[src]) {
		c.leaveConn(a)
		a.flow, a.bound = flow.Flow{}, flow.Flow{}
		return
	}
	if a.flow.Conn != f.Conn {
		c.leaveConn(a)
	}
	a.flow, a.bound = f, f
	if !c.enterConn(f, a) {
		a.flow = flow.Flow{} // it ended while the answer was under way
		return
	}
	if !f.Proto.Stream() && !a.nat && u.Port != 0 && !servicePort(u.Port) {
		// No NAT between: the Contact says on which port the peer listens.
		a.flow.Remote = addrPort(f.Remote.Addr(), u.Port)
	}
}

// judge says of an alias that src has written whether it names src itself, and whether it may name others.
func (c *Core) judge(a *alias, src netip.Addr) (u sipmsg.URI, ip netip.Addr, isAddr bool) {
	u, err := sipmsg.ParseURI(a.uri)
	if err == nil {
		ip, isAddr = parseAddr(u.Host)
	}
	a.nat = !isAddr || ip != src
	a.free = !c.nets[a.network].Trusted || c.servers[src]
	return u, ip, isAddr
}

// hold and release count the sessions that need an alias.
func (a *alias) hold() {
	if a != nil {
		a.refs++
	}
}

func (c *Core) releaseAlias(a *alias) {
	if a == nil {
		return
	}
	a.refs--
	a.keep(c.now.Add(aliasLife))
}

// maxSweep is how many aliases, at least, are looked at in one turn: a full table takes several.
const maxSweep = 1 << 16

// sweepAliases forgets what nobody uses.
func (c *Core) sweepAliases() {
	look := max(maxSweep, len(c.aliases)/8)
	for k, a := range c.aliases { // begins anywhere, so all get their turn
		if look--; look < 0 {
			return
		}
		if a.refs <= 0 && a.binding == nil && a.until.Before(c.now) {
			c.leaveConn(a)
			delete(c.aliases, k)
			delete(c.tokens, a.token)
		}
	}
}

// aliasOf returns the alias that a URI with the edge's own host names, nil if it names none.
func (c *Core) aliasOf(u sipmsg.URI) *alias {
	if !c.isToken(u) {
		return nil
	}
	return c.tokens[token(u.User[len(u.User)-tokenLen:])]
}

// isToken tells whether a URI has the form of an alias, perhaps of one that is forgotten.
func (c *Core) isToken(u sipmsg.URI) bool {
	i := bytes.LastIndexByte(u.User, '~')
	return i >= 0 && len(u.User)-i-1 == tokenLen && c.ownHost(u.Host)
}

// appendAlias writes the URI that stands for orig (a's own URI) at the local listener l. Parameters
// that say nothing of the path stay.
func appendAlias(dst []byte, orig sipmsg.URI, a *alias, l *local) []byte {
	scheme := "sip:"
	if bytes.EqualFold(orig.Scheme, []byte("sips")) && l.proto.Secure() {
		scheme = "sips:"
	}
	dst = append(dst, scheme...)
	dst = append(append(append(dst, orig.User...), '~'), a.token[:]...)
	dst = append(append(dst, '@'), l.hostport...)
	for p := range bytes.SplitSeq(orig.Params, []byte{';'}) {
		name, _, _ := bytes.Cut(bytes.TrimSpace(p), []byte{'='})
		if len(name) == 0 || bytes.EqualFold(name, []byte("transport")) || bytes.EqualFold(name, []byte("maddr")) {
			continue
		}
		dst = append(append(dst, ';'), p...)
	}
	return append(dst, l.transportParam...)
}

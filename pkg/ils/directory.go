package ils

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"edged.dev/edged/pkg/ils/ber"
)

// Limits of the built-in directory.
const (
	maxDirectory   = 8192      // entries
	maxOwn         = 32        // entries of one host
	maxAttributes  = 64        // of an entry
	maxPerAttr     = 16        // values
	maxValue       = 1024      // octets of a value or a name
	maxAnswer      = 500       // entries of one answer
	maxAnswerBytes = 512 << 10 // octets of one answer
)

// Result codes (RFC 4511 §4.1.9).
const (
	resultOK          int32 = 0
	resultProtocol    int32 = 2
	resultSizeLimit   int32 = 4
	resultFalse       int32 = 5
	resultTrue        int32 = 6
	resultAuthMethod  int32 = 7
	resultAdminLimit  int32 = 11
	resultNoSuch      int32 = 32
	resultBadName     int32 = 34
	resultNoAccess    int32 = 50
	resultExists      int32 = 68
	resultUnsupported int32 = 53
)

// directory is the built-in ILS: entries in memory that live as long as they are refreshed. It is served
// behind the same editing as any other, as a server of the inside. There are no passwords, as with
// Microsoft's: an entry belongs to the host that wrote it.
type directory struct {
	lifetime time.Duration

	mu      sync.Mutex           // guards what follows
	entries map[string]*dirEntry // by folded DN
	perHost map[netip.Addr]int
}

type dirEntry struct {
	dn      []byte
	attrs   []dirAttr
	owner   netip.Addr
	expires time.Time
}

type dirAttr struct {
	name   string
	values [][]byte
}

// visitor is a connection's client.
type visitor struct{ host netip.Addr }

func newDirectory(c Config) *directory {
	return &directory{lifetime: c.Lifetime, entries: map[string]*dirEntry{}, perHost: map[netip.Addr]int{}}
}

// handle answers one request; reply is called for each message of the answer. It returns io.EOF for Unbind.
func (d *directory) handle(v *visitor, raw []byte, reply func([]byte) error) error {
	m, err := parse(raw)
	if err != nil {
		return err
	}
	done := func(tag byte, code int32) error { return reply(result(m.id, tag, code)) }
	switch m.op.Tag {
	case opBind:
		return done(opBindResponse, bindResult(m))
	case opUnbind:
		return io.EOF
	case opAbandon:
		return nil
	case opAdd:
		return done(opAddResponse, d.add(v, m))
	case opModify:
		return done(opModifyResponse, d.modify(v, m))
	case opDelete:
		return done(opDeleteResponse, d.remove(v, m.op.Of(raw)))
	case opCompare:
		return done(opCompareDone, d.compare(m))
	case opSearch:
		return d.search(v, m, reply)
	case opExtended:
		return reply(d.extended(v, m))
	case opModifyDN:
		return done(opModifyDNResponse, resultUnsupported)
	}
	return errMalformed // a response, or no operation of LDAP (RFC 4511 §4.1.1)
}

// result writes an LDAPMessage with an LDAPResult.
func result(id int32, tag byte, code int32, more ...[]byte) []byte {
	body := ber.AppendInt(nil, ber.Enumerated, code)
	body = append(body, ber.OctetString, 0, ber.OctetString, 0)
	for _, x := range more {
		body = append(body, x...)
	}
	return envelope(id, ber.Append(nil, tag, body))
}

func envelope(id int32, op []byte) []byte {
	return ber.Append(nil, ber.Sequence, ber.AppendInt(nil, ber.Integer, id), op)
}

func bindResult(m message) int32 {
	w := ber.Walk(m.raw, m.op)
	_, ok := w.Expect(ber.Integer)
	_, ok2 := w.Expect(ber.OctetString)
	auth, ok3 := w.Next()
	switch {
	case !ok || !ok2 || !ok3:
		return resultProtocol
	case auth.Tag != 0x80:
		return resultAuthMethod
	}
	return resultOK
}

// foldDN brings a distinguished name into the form in which they are compared.
func foldDN(dn []byte) string {
	parts := []string{}
	for rest := string(dn); rest != ""; {
		var rdn string
		rdn, rest = cutRDN(rest)
		t, v, _ := strings.Cut(rdn, "=")
		parts = append(parts, strings.ToLower(strings.TrimSpace(t)+"="+strings.TrimSpace(v)))
	}
	return strings.Join(parts, ",")
}

// storedAs returns the one spelling of an attribute's name that the directory compares.
func storedAs(name string) string {
	name = strings.ToLower(name)
	switch name {
	case "ipaddress":
		return "sipaddress"
	case "port":
		return "sport"
	case "protocolid":
		return "sprotid"
	case "applicationid":
		return "sappid"
	case "mimetype":
		return "smimetype"
	}
	return name
}

// sweepLocked forgets entries that nobody refreshed.
func (d *directory) sweepLocked(now time.Time) {
	for dn, e := range d.entries {
		if !now.Before(e.expires) {
			d.dropLocked(dn, e)
		}
	}
}

func (d *directory) dropLocked(dn string, e *dirEntry) {
	delete(d.entries, dn)
	if d.perHost[e.owner]--; d.perHost[e.owner] <= 0 {
		delete(d.perHost, e.owner)
	}
}

func (d *directory) add(v *visitor, m message) int32 {
	f, err := m.attributes()
	dn := f.dn.Of(m.raw)
	if err != nil {
		return resultProtocol
	}
	if len(dn) == 0 || len(dn) > maxValue || commonName(dn) == "" {
		return resultBadName
	}
	e := &dirEntry{dn: bytes.Clone(dn), owner: v.host}
	w := ber.Walk(m.raw, m.op)
	w.Next()
	list, _ := w.Next()
	for w := ber.Walk(m.raw, list); ; {
		a, ok := w.Next()
		if !ok {
			break
		}
		if !e.change(m.raw, a, 0) {
			return resultAdminLimit
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.sweepLocked(now)
	key := foldDN(dn)
	switch {
	case d.entries[key] != nil:
		return resultExists
	case len(d.entries) >= maxDirectory || d.perHost[v.host] >= maxOwn:
		return resultAdminLimit
	}
	d.entries[key] = e
	d.perHost[v.host]++
	e.expires = now.Add(d.life(f.ttl(m.raw)))
	return resultOK
}

func (d *directory) life(ttl time.Duration) time.Duration {
	if ttl > 0 {
		return ttl
	}
	return d.lifetime
}

// change applies one PartialAttribute: 0 add, 1 delete, 2 replace (RFC 4511 §4.6). False: it exceeds a limit.
func (e *dirEntry) change(raw []byte, attr ber.Element, how int32) bool {
	w := ber.Walk(raw, attr)
	name, _ := w.Next()
	vals, _ := w.Next()
	key := string(name.Of(raw))
	i := e.index(key)
	if i < 0 {
		if how == 1 {
			return true
		}
		if len(e.attrs) >= maxAttributes || len(key) > 64 {
			return false
		}
		i = len(e.attrs)
		e.attrs = append(e.attrs, dirAttr{name: key})
	}
	a := &e.attrs[i]
	if how == 2 {
		a.values = nil
	}
	n := 0
	w = ber.Walk(raw, vals)
	for v, ok := w.Next(); ok; v, ok = w.Next() {
		n++
		if how == 1 {
			a.values = without(a.values, v.Of(raw))
			continue
		}
		if len(a.values) >= maxPerAttr || len(v.Of(raw)) > maxValue {
			return false
		}
		a.values = append(a.values, bytes.Clone(v.Of(raw)))
	}
	if len(a.values) == 0 || how == 1 && n == 0 {
		e.attrs = append(e.attrs[:i], e.attrs[i+1:]...)
	}
	return true
}

func (e *dirEntry) index(name string) int {
	for i, a := range e.attrs {
		if storedAs(a.name) == storedAs(name) {
			return i
		}
	}
	return -1
}

func without(list [][]byte, v []byte) [][]byte {
	out := list[:0]
	for _, x := range list {
		if !bytes.EqualFold(x, v) {
			out = append(out, x)
		}
	}
	return out
}

// ownLocked returns the entry if the visitor may write it.
func (d *directory) ownLocked(v *visitor, dn []byte) (*dirEntry, int32) {
	e := d.entries[foldDN(dn)]
	switch {
	case e == nil || !time.Now().Before(e.expires):
		return nil, resultNoSuch
	case e.owner != v.host:
		return nil, resultNoAccess
	}
	return e, resultOK
}

func (d *directory) modify(v *visitor, m message) int32 {
	f, err := m.modifications()
	if err != nil {
		return resultProtocol
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e, code := d.ownLocked(v, f.dn.Of(m.raw))
	if code != resultOK {
		return code
	}
	w := ber.Walk(m.raw, m.op)
	w.Next()
	list, _ := w.Next()
	next := dirEntry{attrs: make([]dirAttr, len(e.attrs))}
	for i, a := range e.attrs {
		next.attrs[i] = dirAttr{a.name, append([][]byte(nil), a.values...)}
	}
	w = ber.Walk(m.raw, list)
	for c, ok := w.Next(); ok; c, ok = w.Next() {
		in := ber.Walk(m.raw, c)
		op, _ := in.Next()
		attr, _ := in.Next()
		how, _ := ber.Int(op.Of(m.raw))
		if how < 0 || how > 2 {
			return resultProtocol
		}
		if !next.change(m.raw, attr, how) {
			return resultAdminLimit // all or nothing (RFC 4511 §4.6)
		}
	}
	e.attrs = next.attrs
	e.expires = time.Now().Add(d.life(f.ttl(m.raw)))
	return resultOK
}

func (d *directory) remove(v *visitor, dn []byte) int32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, code := d.ownLocked(v, dn)
	if code == resultOK {
		d.dropLocked(foldDN(dn), e)
	}
	return code
}

func (d *directory) compare(m message) int32 {
	w := ber.Walk(m.raw, m.op)
	dn, ok := w.Expect(ber.OctetString)
	ava, ok2 := w.Expect(ber.Sequence)
	if !ok || !ok2 {
		return resultProtocol
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[foldDN(dn.Of(m.raw))]
	switch {
	case e == nil || !time.Now().Before(e.expires):
		return resultNoSuch
	case e.asserts(m.raw, ava):
		return resultTrue
	}
	return resultFalse
}

// extended answers the refresh of RFC 2589 §4.1; other extensions are unknown (RFC 4511 §4.12).
func (d *directory) extended(v *visitor, m message) []byte {
	w := ber.Walk(m.raw, m.op)
	name, _ := w.Expect(0x80)
	if string(name.Of(m.raw)) != oidRefresh {
		return result(m.id, opExtendedDone, resultProtocol)
	}
	value, _ := w.Expect(0x81)
	dn, ttl := refreshOf(value.Of(m.raw))
	d.mu.Lock()
	defer d.mu.Unlock()
	e, code := d.ownLocked(v, dn)
	if code != resultOK {
		return result(m.id, opExtendedDone, code)
	}
	ttl = d.life(ttl)
	e.expires = time.Now().Add(ttl)
	granted := ber.Append(nil, ber.Sequence, ber.AppendInt(nil, 0x81, int32(ttl/time.Second)))
	return result(m.id, opExtendedDone, resultOK, ber.Append(nil, 0x8b, granted))
}

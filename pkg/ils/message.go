package ils

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"edged.dev/edged/pkg/ils/ber"
)

// Operations: the tags of protocolOp (RFC 4511 §4.1.1).
const (
	opBind           byte = 0x60
	opBindResponse   byte = 0x61
	opUnbind         byte = 0x42
	opSearch         byte = 0x63
	opEntry          byte = 0x64
	opSearchDone     byte = 0x65
	opModify         byte = 0x66
	opModifyResponse byte = 0x67
	opAdd            byte = 0x68
	opAddResponse    byte = 0x69
	opDelete         byte = 0x4a
	opDeleteResponse byte = 0x6b
	opModifyDN       byte = 0x6c
	opCompare        byte = 0x6e
	opCompareDone    byte = 0x6f
	opAbandon        byte = 0x50
	opExtended       byte = 0x77
	opExtendedDone   byte = 0x78

	opModifyDNResponse byte = 0x6d
)

// Object identifiers of extended operations.
const (
	oidStartTLS = "1.3.6.1.4.1.1466.20037"     // RFC 4511 §4.14
	oidRefresh  = "1.3.6.1.4.1.1466.101.119.1" // RFC 2589 §4.1
)

// Why a message is refused. The text is the reason that is counted.
var (
	errMalformed = errors.New("malformed")    // the octets are no LDAPMessage
	errDepth     = errors.New("filter_depth") // a search filter is nested deeper than maxFilterDepth
	errValues    = errors.New("values")       // more values of interest than maxValues
	errPending   = errors.New("pending")      // more operations outstanding than maxPending
	errSize      = errors.New("message_size") // longer than the limit
	errForeign   = errors.New("foreign")      // an outside client writes into an inside directory what cannot be judged
	errSealed    = errors.New("sealed")       // an outside client would write into an inside directory unread
	errSilent    = errors.New("silent")       // a client has said nothing in time
	errNotLDAP   = errors.New("not_ldap")     // the stream does not begin with an LDAPMessage
)

const (
	// maxFilterDepth bounds nested and, or, not of a search filter.
	maxFilterDepth = 32
	// maxValues bounds the attribute values of one message that are looked at.
	maxValues = 256
)

// message is an LDAPMessage (RFC 4511 §4.1.1) whose envelope has been read.
type message struct {
	raw []byte
	id  int32
	op  ber.Element
}

// parse reads the envelope of raw, which is one whole element.
func parse(raw []byte) (message, error) {
	top, err := ber.Next(raw, 0, len(raw))
	if err != nil || top.Tag != ber.Sequence {
		return message{}, errMalformed
	}
	w := ber.Walk(raw, top)
	id, ok := w.Expect(ber.Integer)
	n, fits := ber.Int(id.Of(raw))
	op, okOp := w.Next()
	if !ok || !fits || n < 0 || !okOp || op.Tag&0xc0 != 0x40 {
		return message{}, errMalformed
	}
	return message{raw, n, op}, nil
}

// result returns the resultCode of a response (RFC 4511 §4.1.9), -1 if there is none.
func (m message) result() int32 {
	code, ok := ber.Walk(m.raw, m.op).Expect(ber.Enumerated)
	if v, fits := ber.Int(code.Of(m.raw)); ok && fits {
		return v
	}
	return -1
}

// kind is what an attribute means to us.
type kind uint8

const (
	other       kind = iota
	kindClass        // objectClass
	kindName         // cn
	kindMail         // rfc822Mailbox, mail
	kindAddr         // IPv4 address as a decimal little-endian number, or dotted
	kindPort         // TCP port, decimal
	kindProto        // h323 or t120, the protocol of the port of the same index
	kindApp          // application identifier: only directories of calls have it
	kindTTL          // lifetime in minutes
	kindSeconds      // lifetime in seconds (RFC 2589)
)

// attributes maps names, as clients write them and as servers store them ([MS-TAIL] 2.2.5), to kinds. Marked
// are those that occur in no directory but ILS.
func attributeKind(name []byte) (k kind, evident bool) {
	if i := bytes.IndexByte(name, ';'); i >= 0 {
		name = name[:i] // options (RFC 4512 §2.5.2)
	}
	if len(name) < 2 || len(name) > 20 {
		return other, false
	}
	switch strings.ToLower(string(name)) {
	case "objectclass":
		return kindClass, false
	case "cn", "mstapi-uid":
		return kindName, false
	case "rfc822mailbox", "mail":
		return kindMail, false
	case "sipaddress", "mstapi-ipaddress":
		return kindAddr, true
	case "ipaddress":
		return kindAddr, false
	case "sport", "port":
		return kindPort, false
	case "sprotid":
		return kindProto, true
	case "protocolid", "mstapi-protocolid":
		return kindProto, false
	case "sappid", "applicationid":
		return kindApp, true
	case "sttl":
		return kindTTL, false
	case "entryttl":
		return kindSeconds, false
	}
	return other, false
}

// isNumeric tells whether an attribute is named by its object identifier; LDAPv2 puts "oid." before it.
func isNumeric(name []byte) bool {
	return len(name) > 0 && (name[0] >= '0' && name[0] <= '9' || len(name) > 4 && strings.EqualFold(string(name[:4]), "oid."))
}

// isILSClass tells whether an objectClass is one of a directory of calls.
func isILSClass(v []byte) bool {
	switch strings.ToLower(string(v[:min(len(v), 24)])) {
	case "rtperson", "rtconference", "mstapi-rtperson", "mstapi-rtconference":
		return true
	}
	return false
}

// fact is one attribute value of interest.
type fact struct {
	kind   kind
	value  ber.Element
	change int32 // of a modification: 0 add, 1 delete, 2 replace
}

// facts are what of a request or an entry is of interest.
type facts struct {
	dn   ber.Element
	list []fact
	ils  bool // it belongs to a directory of calls
	over bool // there are more values than maxValues
	oids bool // attributes are named by numbers (RFC 4512 §2.5), so that their meaning is the server's secret
}

// note keeps a value.
func (f *facts) note(v fact) {
	if f.over = f.over || len(f.list) == maxValues; !f.over {
		f.list = append(f.list, v)
	}
}

// take notes the values of one PartialAttribute (RFC 4511 §4.1.7) in e.
func (f *facts) take(raw []byte, e ber.Element, change int32) error {
	w := ber.Walk(raw, e)
	name, ok := w.Expect(ber.OctetString)
	vals, ok2 := w.Expect(ber.Set)
	if !ok || !ok2 {
		return errMalformed
	}
	k, evident := attributeKind(name.Of(raw))
	f.ils = f.ils || evident
	f.oids = f.oids || isNumeric(name.Of(raw))
	if k == other {
		return nil
	}
	w = ber.Walk(raw, vals)
	for v, ok := w.Next(); ok; v, ok = w.Next() {
		f.ils = f.ils || k == kindClass && isILSClass(v.Of(raw))
		f.note(fact{k, v, change})
	}
	return malformed(w)
}

func malformed(w *ber.Walker) error {
	if w.Err() != nil {
		return errMalformed
	}
	return nil
}

// attributes reads what AddRequest and SearchResultEntry have in common (RFC 4511 §4.7, §4.5.2).
func (m message) attributes() (f facts, err error) {
	w := ber.Walk(m.raw, m.op)
	var ok, ok2 bool
	f.dn, ok = w.Expect(ber.OctetString)
	list, ok2 := w.Expect(ber.Sequence)
	if !ok || !ok2 {
		return f, errMalformed
	}
	f.ils = isILSName(f.dn.Of(m.raw))
	w = ber.Walk(m.raw, list)
	for a, ok := w.Expect(ber.Sequence); ok; a, ok = w.Expect(ber.Sequence) {
		if err := f.take(m.raw, a, 0); err != nil {
			return f, err
		}
	}
	return f, malformed(w)
}

// modifications reads a ModifyRequest (RFC 4511 §4.6).
func (m message) modifications() (f facts, err error) {
	w := ber.Walk(m.raw, m.op)
	var ok, ok2 bool
	f.dn, ok = w.Expect(ber.OctetString)
	list, ok2 := w.Expect(ber.Sequence)
	if !ok || !ok2 {
		return f, errMalformed
	}
	f.ils = isILSName(f.dn.Of(m.raw))
	w = ber.Walk(m.raw, list)
	for c, ok := w.Expect(ber.Sequence); ok; c, ok = w.Expect(ber.Sequence) {
		in := ber.Walk(m.raw, c)
		op, ok := in.Expect(ber.Enumerated)
		attr, ok2 := in.Expect(ber.Sequence)
		how, fits := ber.Int(op.Of(m.raw))
		if !ok || !ok2 || !fits {
			return f, errMalformed
		}
		if err := f.take(m.raw, attr, how); err != nil {
			return f, err
		}
	}
	return f, malformed(w)
}

// assertion reads a CompareRequest (RFC 4511 §4.10).
func (m message) assertion() (f facts, err error) {
	w := ber.Walk(m.raw, m.op)
	var ok, ok2 bool
	f.dn, ok = w.Expect(ber.OctetString)
	ava, ok2 := w.Expect(ber.Sequence)
	if !ok || !ok2 {
		return f, errMalformed
	}
	f.ils = isILSName(f.dn.Of(m.raw))
	return f, f.assert(m.raw, ava)
}

// assert notes the value of an AttributeValueAssertion.
func (f *facts) assert(raw []byte, ava ber.Element) error {
	w := ber.Walk(raw, ava)
	name, ok := w.Expect(ber.OctetString)
	value, ok2 := w.Expect(ber.OctetString)
	if !ok || !ok2 {
		return errMalformed
	}
	k, evident := attributeKind(name.Of(raw))
	f.ils = f.ils || evident || k == kindClass && isILSClass(value.Of(raw))
	if k == other {
		return nil
	}
	f.note(fact{kind: k, value: value})
	return nil
}

// search reads a SearchRequest (RFC 4511 §4.5.1): its base is the name.
func (m message) search() (f facts, filter ber.Element, err error) {
	w := ber.Walk(m.raw, m.op)
	var ok bool
	f.dn, ok = w.Expect(ber.OctetString)
	for range 5 { // scope, derefAliases, sizeLimit, timeLimit, typesOnly
		_, more := w.Next()
		ok = ok && more
	}
	filter, more := w.Next()
	if !ok || !more {
		return f, filter, errMalformed
	}
	f.ils = isILSName(f.dn.Of(m.raw))
	return f, filter, f.walkFilter(m.raw, filter, 0)
}

// Choices of a filter (RFC 4511 §4.5.1.7).
const (
	filterAnd     byte = 0xa0
	filterOr      byte = 0xa1
	filterNot     byte = 0xa2
	filterEqual   byte = 0xa3
	filterSubstr  byte = 0xa4
	filterGreater byte = 0xa5
	filterLess    byte = 0xa6
	filterPresent byte = 0x87
	filterApprox  byte = 0xa8
)

// walkFilter notes the asserted values. What is no filter is left alone: the server will say so.
func (f *facts) walkFilter(raw []byte, e ber.Element, depth int) error {
	switch e.Tag {
	case filterAnd, filterOr, filterNot:
		if depth == maxFilterDepth {
			return errDepth
		}
		w := ber.Walk(raw, e)
		for c, ok := w.Next(); ok; c, ok = w.Next() {
			if err := f.walkFilter(raw, c, depth+1); err != nil {
				return err
			}
		}
		return malformed(w)
	case filterEqual, filterGreater, filterLess, filterApprox:
		return f.assert(raw, e)
	}
	return nil
}

// each returns the values of a kind that are added or asserted, not those that a modification deletes.
func (f facts) each(raw []byte, k kind) [][]byte {
	var out [][]byte
	for _, v := range f.list {
		if v.kind == k && v.change != 1 {
			out = append(out, v.value.Of(raw))
		}
	}
	return out
}

// names returns what the entry is called: the cn of its DN, its cn values, then its mailbox; in lower case,
// without doubles, at most maxNames.
func (f facts) names(raw []byte) []string {
	var out []string
	add := func(n string) {
		n = foldName(n)
		if n == "" || len(n) > maxNameLen || strings.ContainsAny(n, "%*") || len(out) == maxNames {
			return
		}
		for _, had := range out {
			if had == n {
				return
			}
		}
		out = append(out, n)
	}
	add(commonName(f.dn.Of(raw)))
	for _, k := range []kind{kindName, kindMail} {
		for _, v := range f.each(raw, k) {
			add(string(v))
		}
	}
	return out
}

// parseAddr reads an address as ILS stores it: the decimal of the four octets read as a little-endian
// number ([MS-TAIL] 2.2.2: 1613317642 is 10.70.41.96), or dotted (msTAPI-IpAddress).
func parseAddr(v []byte) (a netip.Addr, dotted, ok bool) {
	if len(v) == 0 || len(v) > 15 {
		return a, false, false
	}
	if bytes.IndexByte(v, '.') >= 0 {
		a, err := netip.ParseAddr(string(v))
		return a, true, err == nil && a.Is4()
	}
	if v[0] < '0' || v[0] > '9' { // ParseUint would refuse signs too; underscores only with base 0
		return a, false, false
	}
	n, err := strconv.ParseUint(string(v), 10, 32)
	if err != nil {
		return a, false, false
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b), false, true
}

// formatAddr writes an IPv4 address the same way.
func formatAddr(a netip.Addr, dotted bool) []byte {
	if dotted {
		return []byte(a.String())
	}
	b := a.As4()
	return strconv.AppendUint(nil, uint64(binary.LittleEndian.Uint32(b[:])), 10)
}

func parsePort(v []byte) (uint16, bool) {
	if len(v) == 0 || len(v) > 5 || v[0] < '0' || v[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v), 10, 16)
	return uint16(n), err == nil && n > 0
}

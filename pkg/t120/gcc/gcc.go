// Package gcc reads and edits the PDUs of T.124 as far as a relay needs them: what conference is meant and who
// calls, from the user data of MCS's connect PDUs; and the network addresses in queries, rosters, additions
// and transfers. It is no GCC provider: it keeps no roster and answers nothing.
//
//	MCS Connect-* user data   00 05 00 14 7c 00 01 ‹length› ConnectGCCPDU      (ConnectData)  ─► Parse
//	MCS SendData on a channel of GCC's                      GCCPDU                            ─► Editor.PDU
//
// RDP puts its own data into a ConferenceCreateRequest under the keys "Duca" and "McDn", and writes a length
// into the answer that is wrong ([MS-RDPBCGR] 2.2.1.4); that much is forgiven.
package gcc

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
)

// What is wrong with user data.
var (
	// ErrKey: it does not begin with T.124's object identifier.
	ErrKey = errors.New("gcc: not T.124")
	// ErrLength: its length is not that of the PDU in it.
	ErrLength = errors.New("gcc: bad length")
)

// key is the object identifier 0.0.20.124.0.1 as ConnectData begins with it (T.124 §8.7).
const key = "\x00\x05\x00\x14\x7c\x00\x01"

// Info is what a connect PDU says.
type Info struct {
	// Kind is the PDU's name, e.g. "conferenceCreateRequest".
	Kind string
	// Conference is the conference's name: its text if it has one, otherwise its digits. "" if none is said.
	Conference string
	// Caller is the text that says who calls.
	Caller string
	// Nodes are the GCC providers that the PDU names: GCC's PDUs go on the channels of the same numbers.
	Nodes []uint16
	// RDP says that it is no conference but a terminal session.
	RDP bool
}

// body returns the ConnectGCCPDU of the user data; exact tells whether its length is right.
func body(user []byte) (pdu []byte, exact bool, err error) {
	if len(user) < len(key)+1 || string(user[:len(key)]) != key {
		return nil, false, ErrKey
	}
	b := user[len(key):]
	n, rest := int(b[0]), b[1:]
	switch {
	case n >= 0xc0:
		return nil, false, ErrLength
	case n >= 0x80:
		if len(b) < 2 {
			return nil, false, ErrLength
		}
		n, rest = (n&0x3f)<<8|int(b[1]), b[2:]
	}
	return rest, n == len(rest), nil
}

// Editor reads and edits PDUs. It keeps its memory from one to the next; not for concurrent use.
type Editor struct {
	outer   *per.Decoder // of MCS's PDUs
	decoder *per.Decoder
	editor  *per.Editor
	last    *per.Tree // what decoder has decoded
}

// NewEditor returns an editor.
func NewEditor() *Editor {
	t := schema.Tables()
	return &Editor{outer: per.NewDecoder(t), decoder: per.NewDecoder(t), editor: per.NewEditor(t)}
}

// Connect reads the user data of a Connect-Initial or Connect-Response.
func (e *Editor) Connect(user []byte) (Info, error) {
	pdu, exact, err := body(user)
	if err != nil {
		return Info{}, err
	}
	t, err := e.decoder.Decode(schema.T124ConnectGCCPDU, pdu)
	if err != nil {
		return Info{}, fmt.Errorf("gcc: %w", err)
	}
	info := Info{RDP: bytes.Contains(pdu, []byte("Duca")) || bytes.Contains(pdu, []byte("McDn"))}
	if !info.RDP && (!exact || len(t.Rest()) > 0) {
		return Info{}, ErrLength
	}
	kind, r := t.Chosen(t.Root())
	info.Kind = kind
	info.Conference = conference(t, r)
	info.Caller = t.Text(t.Child(r, "callerIdentifier"))
	for _, name := range []string{"nodeID", "topNodeID"} {
		if id := t.Child(r, name); id != per.None {
			info.Nodes = append(info.Nodes, uint16(t.Int(id)))
		}
	}
	return info, nil
}

// conference returns the name of what r asks for: a ConferenceName or a ConferenceNameSelector.
func conference(t *per.Tree, r per.Ref) string {
	name := t.Child(r, "conferenceName")
	if name == per.None {
		name = t.Child(r, "conferenceNameAlias")
	}
	for _, form := range []string{"unicodeText", "text", "numeric"} {
		if s := t.Text(t.Child(name, form)); s != "" {
			return s
		}
	}
	return ""
}

// Translate returns the address that stands for a on the other side; false if a may pass as it is.
type Translate func(a netip.Addr) (netip.Addr, bool)

// Change counts what was done to a PDU.
type Change struct {
	// Replaced addresses have another in their place, Removed ones are gone.
	Replaced, Removed int
	// Kept ones could not be read, or are demanded and have no room for another.
	Kept int
}

// ConnectAddresses edits the addresses in the user data of a Connect-Response (the conferences of a query).
// It returns user itself if nothing changes.
func (e *Editor) ConnectAddresses(user []byte, to Translate) ([]byte, Change, error) {
	return e.addresses(schema.T124ConnectData, user, to)
}

// Addresses edits the addresses in a GCCPDU: in rosters they are removed, in additions and transfers, which
// make a node connect somewhere, replaced. It returns pdu itself if nothing changes.
func (e *Editor) Addresses(pdu []byte, to Translate) ([]byte, Change, error) {
	return e.addresses(schema.T124GCCPDU, pdu, to)
}

// SendData edits the addresses in the GCCPDU of a SendData request or indication, as Addresses does, with the
// lengths around it. It also returns the nodes that the PDU shows to be GCC providers.
func (e *Editor) SendData(mcs []byte, to Translate) ([]byte, Change, []uint16, error) {
	t, err := e.outer.Decode(schema.T125DomainMCSPDU, mcs)
	if err != nil {
		return mcs, Change{}, nil, fmt.Errorf("gcc: %w", err)
	}
	_, body := t.Chosen(t.Root())
	user := t.Child(body, "userData")
	if user == per.None {
		return mcs, Change{}, nil, ErrKey
	}
	pdu, c, err := e.Addresses(t.Octets(user), to)
	if err != nil {
		return mcs, c, nil, err
	}
	nodes := e.nodes()
	if c.Removed+c.Replaced == 0 {
		return mcs, c, nodes, nil
	}
	e.editor.Begin(t)
	if err := e.editor.SetOctets(user, pdu); err != nil {
		return mcs, c, nodes, err
	}
	out, err := e.editor.Apply(nil)
	if err != nil {
		return mcs, c, nodes, err
	}
	return append(out, t.Rest()...), c, nodes, nil
}

// UserData returns the data in a SendData request or indication, valid until the next call.
func (e *Editor) UserData(mcs []byte) ([]byte, error) {
	t, err := e.outer.Decode(schema.T125DomainMCSPDU, mcs)
	if err != nil {
		return nil, fmt.Errorf("gcc: %w", err)
	}
	_, body := t.Chosen(t.Root())
	user := t.Child(body, "userData")
	if user == per.None {
		return nil, ErrKey
	}
	return t.Octets(user), nil
}

// PDU edits the addresses in a GCCPDU that came in several segments, as SendData does.
func (e *Editor) PDU(pdu []byte, to Translate) ([]byte, Change, []uint16, error) {
	out, c, err := e.Addresses(pdu, to)
	if err != nil {
		return pdu, c, nil, err
	}
	return out, c, e.nodes(), nil
}

// nodes returns the nodes of the roster that was read last.
func (e *Editor) nodes() (out []uint16) {
	t := e.last
	_, pdu := t.Chosen(t.Root())
	_, roster := t.Chosen(pdu)
	_, list := t.Chosen(t.Find(roster, "nodeInformation", "nodeRecordList"))
	for el := range t.Elems(list) {
		if id := t.Child(el, "nodeID"); id != per.None {
			out = append(out, uint16(t.Int(id)))
		}
	}
	return out
}

func (e *Editor) addresses(typ per.TypeID, b []byte, to Translate) ([]byte, Change, error) {
	var c Change
	t, err := e.decoder.Decode(typ, b)
	if err != nil {
		return b, c, fmt.Errorf("gcc: %w", err)
	}
	e.last = t
	e.editor.Begin(t)
	for r := t.Root(); int(r) < t.Len(); r++ {
		switch {
		case t.Kind(r) == per.List && t.Name(r) == "networkAddress" && informs(t, r):
			if err := e.editor.Drop(r); err != nil {
				return b, c, err
			}
			c.Removed++
			r = t.Next(r) - 1
		case t.Kind(r) == per.Octets && t.Name(r) == "nsapAddress":
			if err := e.replace(t, r, to, &c); err != nil {
				return b, c, err
			}
		}
	}
	if !e.editor.Changed() {
		return b, c, nil
	}
	out, err := e.editor.Apply(nil)
	if err != nil {
		return b, c, err
	}
	return append(out, t.Rest()...), c, nil
}

// informs tells of a list of addresses that nobody connects to: that of a roster's node, or of a conference
// in the answer to a query.
func informs(t *per.Tree, list per.Ref) bool {
	p := t.Parent(list)
	return t.Child(p, "nodeType") != per.None || t.Child(p, "lockedConference") != per.None
}

// replace translates a transport address.
func (e *Editor) replace(t *per.Tree, nsap per.Ref, to Translate, c *Change) error {
	a, write, ok := parseNSAP(t.Octets(nsap))
	if !ok {
		c.Kept++
		return nil
	}
	b, changed := to(a)
	if !changed {
		return nil
	}
	octets, ok := write(b)
	if !ok {
		c.Kept++
		return nil
	}
	c.Replaced++
	return e.editor.SetOctets(nsap, octets)
}

// parseNSAP finds the address in an nsapAddress of 1 to 20 octets: four octets, or six with a port, or text with or
// without a port. There is no rule that all follow; write puts another in its place in the same form.
func parseNSAP(v []byte) (a netip.Addr, write func(netip.Addr) ([]byte, bool), ok bool) {
	if len(v) == 4 || len(v) == 6 {
		a, _ = netip.AddrFromSlice(v[:4])
		return a, func(b netip.Addr) ([]byte, bool) {
			return append(b.AsSlice(), v[4:]...), b.Is4()
		}, true
	}
	text := func(tail string) func(netip.Addr) ([]byte, bool) {
		return func(b netip.Addr) ([]byte, bool) {
			s := b.String() + tail
			return []byte(s), len(s) <= 20
		}
	}
	trimmed := bytes.TrimRight(v, "\x00")
	if a, err := netip.ParseAddr(string(trimmed)); err == nil {
		return a, text(string(v[len(trimmed):])), true
	}
	if ap, err := netip.ParseAddrPort(string(trimmed)); err == nil && ap.Addr().Is4() {
		return ap.Addr(), text(fmt.Sprintf(":%d%s", ap.Port(), v[len(trimmed):])), true
	}
	return a, nil, false
}

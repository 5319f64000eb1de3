// Package invitation finds the fields of an invitation as Messenger and Communicator send it (text/x-msmsgsinvite,
// `Name: value` lines), and edits them in place: what is not edited stays octet by octet. There is no open
// specification; the fields are those of captures, and of third-party notes on the MSN protocol.
//
// It judges nothing: whether a file may pass is package tftp's business.
//
//	body ──► Parse ──► Invitation.Value(IPAddress)          what the edge must know
//	                   Invitation.Edit(Change{Port, "6893"}) ──► the same body with another port
//
// A body that clients could read in different ways (a field twice, a folded line, a bare CR, two kinds of line ends, what
// is no field) is refused.
package invitation

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Field is a field that the edge knows. Others are kept as they are.
type Field uint8

// The fields; String gives their names on the wire.
const (
	Command Field = iota
	Cookie
	GUID
	Application
	File
	FileSize
	Connectivity
	SenderConnect
	IPAddress
	Port
	PortX
	IPAddressInternal
	PortInternal
	PortXInternal
	AuthCookie
	EncryptionKey
	HashKey
	CancelCode
	fields
)

// names returns the names by field.
func names() *[fields]string {
	return &[fields]string{
		Command: "Invitation-Command", Cookie: "Invitation-Cookie", GUID: "Application-GUID", Application: "Application-Name",
		File: "Application-File", FileSize: "Application-FileSize", Connectivity: "Connectivity", SenderConnect: "Sender-Connect",
		IPAddress: "IP-Address", Port: "Port", PortX: "PortX", IPAddressInternal: "IP-Address-Internal",
		PortInternal: "Port-Internal", PortXInternal: "PortX-Internal", AuthCookie: "AuthCookie",
		EncryptionKey: "Encryption-Key", HashKey: "Hash-Key", CancelCode: "Cancel-Code",
	}
}

// String returns the field's name on the wire.
func (f Field) String() string { return names()[f] }

// PortMask is what a port is combined with (exclusive or) in PortX and PortX-Internal, a copy that naive NATs do not see.
const PortMask = 0x3141

const (
	// MaxBody is the longest body that is read, in octets. Known clients send less than 1,000.
	MaxBody  = 16 << 10
	maxLines = 128
)

// Errors of Parse.
var (
	ErrSize = errors.New("an invitation of this size is not read")
	// ErrForm: the body could be read in different ways.
	ErrForm = errors.New("the invitation is not well formed")
)

// Invitation is an indexed body. It refers to the octets that it was made from.
type Invitation struct {
	raw []byte
	// at are the fields' places, empty where one is missing.
	at [fields]place
}

// place is where a field is: its line with the line's end, and its value without blanks around it.
type place struct{ line, value span }

type span struct{ from, to int }

// Parse indexes a body. Lines end with CRLF or LF; names are compared without regard to case. The error wraps
// ErrSize or ErrForm.
func Parse(body []byte) (*Invitation, error) {
	if len(body) > MaxBody {
		return nil, fmt.Errorf("%d octets: %w", len(body), ErrSize)
	}
	inv := &Invitation{raw: body}
	if lf := bytes.Count(body, []byte("\n")); lf != bytes.Count(body, []byte("\r\n")) && bytes.IndexByte(body, '\r') >= 0 {
		return nil, fmt.Errorf("two kinds of line ends: %w", ErrForm)
	}
	for at, n := 0, 0; at < len(body); n++ {
		if n == maxLines {
			return nil, fmt.Errorf("more than %d lines: %w", maxLines, ErrSize)
		}
		end := len(body)
		if i := bytes.IndexByte(body[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if err := inv.index(span{at, end}); err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		at = end
	}
	return inv, nil
}

// index takes up one line.
func (inv *Invitation) index(line span) error {
	text := inv.raw[line.from:line.to]
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if bytes.IndexByte(text, '\r') >= 0 || bytes.IndexByte(text, 0) >= 0 {
		return fmt.Errorf("a CR or NUL in it: %w", ErrForm)
	}
	switch {
	case len(text) == 0:
		return nil
	case text[0] <= ' ' || text[0] > '~':
		return fmt.Errorf("a continued line: %w", ErrForm) // some clients would join it with the last one
	}
	name, value, ok := bytes.Cut(text, []byte(":"))
	if !ok {
		return fmt.Errorf("no field: %w", ErrForm)
	}
	f, known := lookup(bytes.TrimRight(name, " \t"))
	if !known {
		return nil
	}
	if inv.at[f].line.to > 0 {
		return fmt.Errorf("%s again: %w", f, ErrForm)
	}
	from := line.from + len(name) + 1
	lead := len(value) - len(bytes.TrimLeft(value, " \t"))
	trimmed := bytes.Trim(value, " \t")
	inv.at[f] = place{line, span{from + lead, from + lead + len(trimmed)}}
	return nil
}

func lookup(name []byte) (Field, bool) {
	for f, n := range names() {
		if len(n) == len(name) && strings.EqualFold(n, string(name)) {
			return Field(f), true
		}
	}
	return 0, false
}

// Has tells whether the field is there, be it empty.
func (inv *Invitation) Has(f Field) bool { return inv.at[f].line.to > 0 }

// Value returns the field's value without blanks around it, "" if it is not there.
func (inv *Invitation) Value(f Field) string {
	v := inv.at[f].value
	return string(inv.raw[v.from:v.to])
}

// Change is what becomes of a field that is there.
type Change struct {
	Field Field
	// Value is the new value.
	Value string
	// Remove takes the whole line out.
	Remove bool
}

// Edit returns a new body with the changes made. Fields that are not there stay so; of two changes of a field
// the first counts.
func (inv *Invitation) Edit(changes ...Change) []byte {
	var made []Change
	for _, c := range changes {
		same := func(m Change) bool { return m.Field == c.Field }
		if inv.Has(c.Field) && !slices.ContainsFunc(made, same) {
			made = append(made, c)
		}
	}
	slices.SortFunc(made, func(a, b Change) int { return inv.at[a.Field].line.from - inv.at[b.Field].line.from })
	out := make([]byte, 0, len(inv.raw)+64)
	done := 0
	for _, c := range made {
		s, text := inv.at[c.Field].value, c.Value
		if c.Remove {
			s, text = inv.at[c.Field].line, ""
		}
		out = append(append(out, inv.raw[done:s.from]...), text...)
		done = s.to
	}
	return append(out, inv.raw[done:]...)
}

// Cancel returns a body that takes back, or declines, the invitation of a cookie.
func Cancel(cookie, code string) []byte {
	return fmt.Appendf(nil, "Invitation-Command: CANCEL\r\nInvitation-Cookie: %s\r\nCancel-Code: %s\r\n", cookie, code)
}

package h225

import (
	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
)

// Alias is an AliasAddress.
type Alias struct {
	Field string // the component it is in: "sourceAddress", "destinationAddress", "terminalAlias"
	Kind  string // the alternative: "h323-ID", "dialledDigits", "url-ID", "transportID", "email-ID", "partyNumber"
	Text  string // the name or digits; empty for those that are no text
	Ref   per.Ref
}

// Aliases appends the aliases in r and inside of it; of a list, all.
func Aliases(dst []Alias, t *per.Tree, r per.Ref) []Alias {
	if r == per.None {
		return dst
	}
	for n := r; n < t.Next(r); n++ {
		if t.Type(n) != schema.H225AliasAddress {
			continue
		}
		kind, v := t.Chosen(n)
		a := Alias{Kind: kind, Ref: n, Text: t.Text(v)}
		if kind == "partyNumber" {
			a.Text = partyDigits(t, v)
		}
		for p := n; p != per.None && a.Field == ""; p = t.Parent(p) {
			a.Field = t.Name(p)
		}
		dst = append(dst, a)
	}
	return dst
}

// partyDigits returns the digits of a PartyNumber.
func partyDigits(t *per.Tree, party per.Ref) string {
	name, v := t.Chosen(party)
	switch name {
	case "e164Number":
		return t.Text(t.Child(v, "publicNumberDigits"))
	case "privateNumber":
		return t.Text(t.Child(v, "privateNumberDigits"))
	}
	return t.Text(v)
}

// Aliases appends the aliases of the message.
func (m *Message) Aliases(dst []Alias) []Alias {
	if m.Tree == nil {
		return dst
	}
	return Aliases(dst, m.Tree, m.Tree.Root())
}

// H323ID is an AliasAddress with a name.
func H323ID(name string) per.Value { return per.Alternative("h323-ID", per.Text(name)) }

// Protection is what the H.235 tokens of a message cover.
type Protection uint8

const (
	// Unprotected: no crypto tokens.
	Unprotected Protection = iota
	// Password: tokens over the alias, the time and a password (cryptoEPPwdHash and its like):
	// the message may be changed. Clear tokens, Cisco's access tokens among them, count as none.
	Password
	// Signed: a hash or signature that may cover the whole message (H.235.1 procedure
	// I, H.235.2, integrityCheckValue): it must be passed unchanged or refused.
	Signed
)

// ProtectionOf tells what covers the message in t.
func ProtectionOf(t *per.Tree) Protection {
	p := Unprotected
	for n := range per.Ref(t.Len()) {
		switch t.Type(n) {
		case schema.H225CryptoH323Token:
			name, _ := t.Chosen(n)
			switch name {
			case "cryptoEPPwdHash", "cryptoGKPwdHash", "cryptoEPPwdEncr", "cryptoGKPwdEncr":
				p = max(p, Password)
			default: // certificates, cryptoFastStart, nested tokens, what is newer than the schema
				p = Signed
			}
		case schema.H225ICV:
			p = Signed
		}
	}
	return p
}

// Protection tells what covers the message.
func (m *Message) Protection() Protection {
	if m.Tree == nil {
		return Unprotected
	}
	return ProtectionOf(m.Tree)
}

// Feature is a GenericData: a feature of H.460, or data that belongs to one.
type Feature struct {
	ID    int64  // of a standard one, such as 18 of H.460.18; -1 for others
	OID   string // dotted, of one that has an object identifier
	Field string // the component it is in: "supportedFeatures", "neededFeatures", "genericData"
	Ref   per.Ref
}

// Features appends the features and generic data in t, those inside of others
// excepted.
func Features(dst []Feature, t *per.Tree) []Feature {
	for n := per.Ref(0); int(n) < t.Len(); n++ {
		if t.Type(n) != schema.H225GenericData {
			continue
		}
		f := Feature{ID: -1, Ref: n}
		switch name, id := t.Chosen(t.Child(n, "id")); name {
		case "standard":
			f.ID = t.Int(id)
		case "oid":
			f.OID = per.DottedOID(t.Octets(id))
		}
		for p := n; p != per.None && f.Field == ""; p = t.Parent(p) {
			f.Field = t.Name(p)
		}
		dst = append(dst, f)
		n = t.Next(n) - 1
	}
	return dst
}

// Parameter returns the content of a standard parameter of a feature; None if it is absent.
// The octets of a raw one hold a type of their own, such as
// schema.H460IncomingCallIndication.
func (f Feature) Parameter(t *per.Tree, id int64) (kind string, content per.Ref) {
	for p := range t.Elems(t.Child(f.Ref, "parameters")) {
		name, v := t.Chosen(t.Child(p, "id"))
		if name == "standard" && t.Int(v) == id {
			return t.Chosen(t.Child(p, "content"))
		}
	}
	return "", per.None
}

// Has tells whether a feature has a standard parameter, with a content or without.
func (f Feature) Has(t *per.Tree, id int64) bool {
	for p := range t.Elems(t.Child(f.Ref, "parameters")) {
		if name, v := t.Chosen(t.Child(p, "id")); name == "standard" && t.Int(v) == id {
			return true
		}
	}
	return false
}

// GenericData is a feature of our own with its parameters: (id, raw octets).
func GenericData(id int64, params ...per.Value) per.Value {
	f := []per.Field{per.F("id", per.Alternative("standard", per.Number(id)))}
	if len(params) > 0 {
		f = append(f, per.F("parameters", per.Elements(params...)))
	}
	return per.Fields(f...)
}

// RawParameter is a parameter of GenericData with octets in it.
func RawParameter(id int64, octets []byte) per.Value {
	return per.Fields(per.F("id", per.Alternative("standard", per.Number(id))),
		per.F("content", per.Alternative("raw", per.Octet(octets))))
}

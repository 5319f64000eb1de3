package per

import (
	"net/netip"
	"strconv"
	"strings"
)

// Value is what Encode encodes and an Editor puts in. Make it with the functions
// below; which one fits is the schema's to say, and Encode checks it.
type Value struct {
	form   form
	num    int64
	name   string // of an alternative or of an enumeration's value; text
	octets []byte
	fields []Field
}

type form uint8

const (
	formNull form = iota
	formNumber
	formOctets
	formText
	formFields
	formChoice
	formList
	formEncoded
)

// Field is a component of a SEQUENCE with its value.
type Field struct {
	Name  string
	Value Value
}

// F is a component of a SEQUENCE.
func F(name string, v Value) Field { return Field{name, v} }

// Nothing is the value of NULL.
func Nothing() Value { return Value{} }

// Number is the value of an INTEGER, or of an ENUMERATED by its index.
func Number(v int64) Value { return Value{form: formNumber, num: v} }

// Truth is the value of a BOOLEAN.
func Truth(b bool) Value {
	if b {
		return Number(1)
	}
	return Number(0)
}

// Octet is the value of an OCTET STRING, open type or BIT STRING of whole
// octets. The octets are not copied before they are encoded.
func Octet(b []byte) Value { return Value{form: formOctets, octets: b} }

// Text is the value of a character string, or of an ENUMERATED by its name.
func Text(s string) Value { return Value{form: formText, name: s} }

// Fields is the value of a SEQUENCE: the components that are present, in any order.
func Fields(f ...Field) Value { return Value{form: formFields, fields: f} }

// Alternative is the value of a CHOICE.
func Alternative(name string, v Value) Value {
	return Value{form: formChoice, fields: []Field{{name, v}}}
}

// Elements is the value of a SEQUENCE OF.
func Elements(v ...Value) Value {
	f := make([]Field, len(v))
	for i := range v {
		f[i].Value = v[i]
	}
	return Value{form: formList, fields: f}
}

// Encoded is an OCTET STRING or open type with v encoded in it. For an OCTET
// STRING the schema must say what is inside.
func Encoded(v Value) Value { return Value{form: formEncoded, fields: []Field{{"", v}}} }

// Identifier is the value of an OBJECT IDENTIFIER in dotted form, such as
// "0.0.8.2250.0.7". One that is malformed is refused by Encode.
func Identifier(dotted string) Value {
	b, ok := appendOID(nil, dotted)
	if !ok {
		b = nil
	}
	return Octet(b)
}

// appendOID appends the contents octets of an object identifier (X.690 §8.19).
func appendOID(b []byte, dotted string) ([]byte, bool) {
	parts := strings.Split(dotted, ".")
	arcs := make([]uint64, 0, len(parts))
	for _, p := range parts {
		v, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return b, false
		}
		arcs = append(arcs, v)
	}
	if len(arcs) < 2 || arcs[0] > 2 || arcs[0] < 2 && arcs[1] > 39 {
		return b, false
	}
	arcs[1] += arcs[0] * 40
	for _, v := range arcs[1:] {
		for k := (max(1, width(v+1)) + 6) / 7; k > 0; k-- {
			c := byte(v>>(7*(k-1))) & 0x7f
			if k > 1 {
				c |= 0x80
			}
			b = append(b, c)
		}
	}
	return b, true
}

// DottedOID returns the dotted form of an object identifier's contents; empty if
// they are malformed.
func DottedOID(b []byte) string {
	if len(b) == 0 || b[len(b)-1]&0x80 != 0 {
		return ""
	}
	var out strings.Builder
	var v uint64
	for _, c := range b {
		if v >= 1<<56 {
			return ""
		}
		v = v<<7 | uint64(c&0x7f)
		if c&0x80 != 0 {
			continue
		}
		if out.Len() == 0 {
			first := min(v/40, 2)
			out.WriteString(strconv.FormatUint(first, 10))
			v -= first * 40
		}
		out.WriteByte('.')
		out.WriteString(strconv.FormatUint(v, 10))
		v = 0
	}
	return out.String()
}

// octetsOfAddr returns the 4 or 16 octets of an address.
func octetsOfAddr(a netip.Addr) []byte {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return b[:]
	}
	b := a.As16()
	return b[:]
}

// Address is the OCTET STRING of an IP address: 4 octets for IPv4, 16 for IPv6.
func Address(a netip.Addr) Value { return Octet(octetsOfAddr(a)) }

package per

import "math/bits"

// TypeID is the number of a type in its Schema.
type TypeID uint16

// Kind is what a type is built as.
type Kind uint8

// The kinds. Open is the table-less open type; what it wraps, if that is
// known, is its only child.
const (
	Null Kind = iota
	Bool
	Int
	Enum
	Octets
	Bits
	OID
	Chars   // a known-multiplier character string
	General // a character string in octets (GeneralString)
	Open
	Seq
	Choice
	List
)

// MaxAdditions bounds an extension bitmap. The widest of the known schemas has 30.
const MaxAdditions = 256

// Comp is a component of a SEQUENCE or an alternative of a CHOICE: its TypeID,
// and Optional if it has a bit in the preamble (OPTIONAL or DEFAULT).
type Comp uint16

// Optional marks a Comp.
const Optional Comp = 1 << 15

// Type returns the component's type.
func (c Comp) Type() TypeID { return TypeID(c &^ Optional) }

// Optional tells whether the component has a bit in the preamble.
func (c Comp) Optional() bool { return c&Optional != 0 }

// Type is one row of a Schema.
type Type struct {
	Name     string // "h225.Setup-UUIE"; empty for a type inside of another
	Kind     Kind
	Ext      bool // has an extension marker
	HasLo    bool
	HasHi    bool
	CharBits uint8  // Chars: bits of a character
	Opt      uint8  // Seq: optional components of the root
	Lo, Hi   int64  // Int: range. Octets, Bits, Chars, List: size
	First    uint16 // Seq, Choice: the first component in Schema.Comps; Enum: in Schema.Names
	Root     uint16 // how many of them are in the root
	Adds     uint16 // how many come after the extension marker
	Elem     TypeID // List: of what; Octets: what is encoded inside, OpenType if nothing
	Alphabet string // Chars: the characters by index, if they are encoded by index
}

// OpenType is the row of the open type. Every Schema begins with it.
const OpenType TypeID = 0

// Schema is a set of tables; it never changes, and may be used by many at once.
type Schema struct {
	Types     []Type
	Comps     []Comp
	CompNames []string // of Comps
	Names     []string // of enumerations
}

// Lookup returns the type of that name, such as "h245.OpenLogicalChannel".
func (s *Schema) Lookup(name string) (TypeID, bool) {
	for i := range s.Types {
		if name != "" && s.Types[i].Name == name {
			return TypeID(i), true
		}
	}
	return OpenType, false
}

// comps returns the components of t: root, then additions.
func (s *Schema) comps(t *Type) []Comp {
	return s.Comps[t.First : int(t.First)+int(t.Root)+int(t.Adds)]
}

// compNames returns their names.
func (s *Schema) compNames(t *Type) []string {
	return s.CompNames[t.First : int(t.First)+int(t.Root)+int(t.Adds)]
}

// enumNames returns the names of an enumeration: root, then additions.
func (s *Schema) enumNames(t *Type) []string {
	return s.Names[t.First : int(t.First)+int(t.Root)+int(t.Adds)]
}

// width is the number of bits that tell n values apart (§10.5.6).
func width(n uint64) int {
	if n <= 1 {
		return 0
	}
	return bits.Len64(n - 1)
}

// octetsFor is the number of octets of the largest offset in a range (§10.5.7.4).
func octetsFor(offset uint64) int {
	return max(1, (bits.Len64(offset)+7)/8)
}

// fixed tells whether a size is fixed and short enough to be left out (§10.9.4).
func (t *Type) fixed() bool { return t.HasHi && t.Lo == t.Hi && t.Hi < 65536 }

// counted tells whether a length has an upper bound that shapes its encoding (§10.9.4.1).
func (t *Type) counted() bool { return t.HasHi && t.Hi < 65536 }

// aligned tells whether contents of a string begin at an octet
// (§15.9, §16.6, §27.5.6, §27.5.7).
func (t *Type) aligned() bool {
	switch t.Kind {
	case Octets:
		return !t.fixed() || t.Hi > 2
	case Bits:
		return !t.fixed() || t.Hi > 16
	case Chars:
		total := t.Hi * int64(t.CharBits)
		if t.fixed() {
			return total > 16
		}
		return !t.HasHi || total >= 16
	}
	return true
}

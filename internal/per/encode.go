package per

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// ErrValue is wrapped by the error of Encode or of an edit for a Value that
// does not fit its type.
var ErrValue = errors.New("per: value does not fit its type")

// Encode appends the encoding of v as a t to dst (at least one octet, §10.1.3).
// Errors name the component.
func (s *Schema) Encode(dst []byte, t TypeID, v Value) ([]byte, error) {
	w := writer{}
	if err := s.put(&w, t, &v); err != nil {
		return dst, fmt.Errorf("encode %s: %w", s.Types[t].Name, err)
	}
	if len(w.buf) == 0 {
		w.buf = append(w.buf, 0)
	}
	if len(w.buf) > MaxOctets {
		return dst, fmt.Errorf("encode %s: %w", s.Types[t].Name, ErrSize)
	}
	return append(dst, w.buf...), nil
}

// put encodes v as a t.
func (s *Schema) put(w *writer, t TypeID, v *Value) error {
	typ := &s.Types[t]
	switch typ.Kind {
	case Null:
		return wants(v, formNull, "null")
	case Bool:
		w.bits(uint64(v.num)&1, 1)
		return wants(v, formNumber, "truth value")
	case Int:
		return putInt(w, typ, v)
	case Enum:
		return s.putEnum(w, typ, v)
	case Octets, Bits, OID, General, Chars:
		return s.putString(w, typ, v)
	case Open:
		return s.putOpen(w, OpenType, v)
	case Seq:
		return s.putSeq(w, typ, v)
	case Choice:
		return s.putChoice(w, typ, v)
	}
	return s.putList(w, typ, v)
}

func wants(v *Value, f form, what string) error {
	if v.form != f {
		return fmt.Errorf("%w: %s wanted", ErrValue, what)
	}
	return nil
}

// putInt encodes an INTEGER (§12).
func putInt(w *writer, typ *Type, v *Value) error {
	if err := wants(v, formNumber, "number"); err != nil {
		return err
	}
	inside := (!typ.HasLo || v.num >= typ.Lo) && (!typ.HasHi || v.num <= typ.Hi)
	if !inside && !typ.Ext {
		return fmt.Errorf("%w: %d is out of range", ErrValue, v.num)
	}
	if typ.Ext {
		w.bits(b2u(!inside), 1)
	}
	switch {
	case inside && typ.HasLo && typ.HasHi:
		w.offset(uint64(v.num-typ.Lo), uint64(typ.Hi-typ.Lo))
	case inside && typ.HasLo && !typ.Ext:
		n := octetsFor(uint64(v.num - typ.Lo))
		w.length(n)
		w.number(uint64(v.num-typ.Lo), n)
	default:
		n := signedOctets(v.num)
		w.length(n)
		w.number(uint64(v.num), n)
	}
	return nil
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func (s *Schema) putEnum(w *writer, typ *Type, v *Value) error {
	i := int(v.num)
	if v.form == formText {
		i = slices.Index(s.enumNames(typ), v.name)
	}
	if i < 0 || i >= int(typ.Root)+int(typ.Adds) || v.form != formText && v.form != formNumber {
		return fmt.Errorf("%w: no such value of an enumeration: %q", ErrValue, v.name)
	}
	putIndex(w, typ, i)
	return nil
}

// putIndex encodes the index of an ENUMERATED or CHOICE (§13, §22).
func putIndex(w *writer, typ *Type, i int) {
	if typ.Ext {
		w.bits(b2u(i >= int(typ.Root)), 1)
	}
	if i < int(typ.Root) {
		w.offset(uint64(i), uint64(typ.Root)-1)
		return
	}
	w.small(uint32(i) - uint32(typ.Root))
}

// putString encodes what has a length and units.
func (s *Schema) putString(w *writer, typ *Type, v *Value) error {
	if v.form == formEncoded && typ.Kind == Octets && typ.Elem != OpenType && !typ.counted() {
		return s.putOpen(w, typ.Elem, &v.fields[0].Value)
	}
	if typ.Kind == Chars {
		return putChars(w, typ, v)
	}
	b := v.octets
	if typ.Kind == General && v.form == formText {
		b = []byte(v.name)
	} else if err := wants(v, formOctets, "octets"); err != nil {
		return err
	}
	if typ.Kind == OID && len(b) == 0 {
		return fmt.Errorf("%w: no object identifier", ErrValue)
	}
	n := len(b)
	if typ.Kind == Bits {
		n *= 8
	}
	if err := putSize(w, typ, n); err != nil {
		return err
	}
	if n > 0 && typ.aligned() {
		w.align()
	}
	w.shiftBits(b, 0, uint32(len(b))*8)
	return nil
}

// putSize encodes the length of a string or list (§10.9.4).
func putSize(w *writer, typ *Type, n int) error {
	sized := typ.Kind != OID && typ.Kind != General
	if sized && (int64(n) < typ.Lo || typ.HasHi && int64(n) > typ.Hi) {
		return fmt.Errorf("%w: size %d", ErrValue, n)
	}
	switch {
	case sized && typ.fixed():
	case sized && typ.counted():
		w.offset(uint64(int64(n)-typ.Lo), uint64(typ.Hi-typ.Lo))
	case !w.length(n):
		return fmt.Errorf("%w: size %d", ErrSize, n)
	}
	return nil
}

// putChars encodes a known-multiplier character string (§27).
func putChars(w *writer, typ *Type, v *Value) error {
	if err := wants(v, formText, "text"); err != nil {
		return err
	}
	units := utf16.Encode([]rune(v.name))
	if err := putSize(w, typ, len(units)); err != nil {
		return err
	}
	if len(units) > 0 && typ.aligned() {
		w.align()
	}
	for _, u := range units {
		c := uint64(u)
		if typ.Alphabet != "" {
			i := strings.IndexRune(typ.Alphabet, rune(u))
			if i < 0 {
				return fmt.Errorf("%w: character %q", ErrValue, rune(u))
			}
			c = uint64(i)
		}
		if c >= 1<<typ.CharBits {
			return fmt.Errorf("%w: character %q", ErrValue, rune(u))
		}
		w.bits(c, int(typ.CharBits))
	}
	return nil
}

// putOpen encodes an open type with inner inside (§10.2), or with octets as they are.
func (s *Schema) putOpen(w *writer, inner TypeID, v *Value) error {
	at := w.mark()
	raw := inner == OpenType
	if raw {
		if v.form != formOctets {
			return fmt.Errorf("%w: octets wanted", ErrValue)
		}
		w.octets(v.octets)
	} else if err := s.put(w, inner, v); err != nil {
		return err
	}
	if !w.close(at, !raw) {
		return ErrSize
	}
	return nil
}

// putSeq encodes a SEQUENCE (§18).
func (s *Schema) putSeq(w *writer, typ *Type, v *Value) error {
	if err := wants(v, formFields, "components"); err != nil {
		return err
	}
	names := s.compNames(typ)
	found, last := 0, -1
	for i := range names {
		if v.field(names[i]) != nil {
			found++
			last = i
		}
	}
	if found != len(v.fields) {
		return fmt.Errorf("%w: unknown or repeated component among %s", ErrValue, v.names())
	}
	extended := last >= int(typ.Root)
	if typ.Ext {
		w.bits(b2u(extended), 1)
	}
	comps := s.comps(typ)
	for i, c := range comps[:typ.Root] {
		if c.Optional() {
			w.bits(b2u(v.field(names[i]) != nil), 1)
		}
	}
	for i, c := range comps[:typ.Root] {
		if err := s.putField(w, c, names[i], v); err != nil {
			return err
		}
	}
	if !extended {
		return nil
	}
	return s.putAdditions(w, comps[typ.Root:last+1], names[typ.Root:last+1], v)
}

func (s *Schema) putField(w *writer, c Comp, name string, v *Value) error {
	f := v.field(name)
	if f == nil {
		if c.Optional() {
			return nil
		}
		return fmt.Errorf("%w: %s is missing", ErrValue, name)
	}
	if err := s.put(w, c.Type(), f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// putAdditions encodes the additions up to the last that is present, each in an
// open type (§18.7-9).
func (s *Schema) putAdditions(w *writer, comps []Comp, names []string, v *Value) error {
	w.smallLength(uint32(len(comps)))
	for i := range comps {
		w.bits(b2u(v.field(names[i]) != nil), 1)
	}
	for i, c := range comps {
		f := v.field(names[i])
		if f == nil {
			continue
		}
		if err := s.putOpen(w, c.Type(), f); err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
	}
	return nil
}

func (v *Value) field(name string) *Value {
	for i := range v.fields {
		if v.fields[i].Name == name {
			return &v.fields[i].Value
		}
	}
	return nil
}

func (v *Value) names() string {
	names := make([]string, len(v.fields))
	for i := range v.fields {
		names[i] = v.fields[i].Name
	}
	return strings.Join(names, ", ")
}

func (s *Schema) putChoice(w *writer, typ *Type, v *Value) error {
	if err := wants(v, formChoice, "alternative"); err != nil {
		return err
	}
	name := v.fields[0].Name
	i := slices.Index(s.compNames(typ), name)
	if i < 0 {
		return fmt.Errorf("%w: no alternative %s", ErrValue, name)
	}
	putIndex(w, typ, i)
	var err error
	if t := s.comps(typ)[i].Type(); i < int(typ.Root) {
		err = s.put(w, t, &v.fields[0].Value)
	} else {
		err = s.putOpen(w, t, &v.fields[0].Value)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (s *Schema) putList(w *writer, typ *Type, v *Value) error {
	if err := wants(v, formList, "elements"); err != nil {
		return err
	}
	if err := putSize(w, typ, len(v.fields)); err != nil {
		return err
	}
	for i := range v.fields {
		if err := s.put(w, typ.Elem, &v.fields[i].Value); err != nil {
			return fmt.Errorf("%d: %w", i, err)
		}
	}
	return nil
}

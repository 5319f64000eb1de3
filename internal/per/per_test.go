package per

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The types of the tests' own schema.
const (
	tBool TypeID = iota + 1
	tBits3
	tInt100
	tInt256
	tInt1000
	tInt65535
	tInt32
	tIntAny
	tIntFrom1
	tIntExt
	tEnum
	tOct2
	tOct4
	tOct20
	tOct
	tOID
	tBMP
	tDigits
	tGeneral
	tChoice
	tSeq
	tList
	tHolder
	tInner
	tNull
	tDeep
	tMany
	tSized
	tPort
)

// testSchema has one type of each sort; "SEQ" is extensible with three additions.
func testSchema() *Schema {
	r := func(k Kind, lo, hi int64) Type { return Type{Kind: k, HasLo: true, HasHi: true, Lo: lo, Hi: hi} }
	digits := r(Chars, 1, 128)
	digits.CharBits, digits.Alphabet = 4, "#*,0123456789"
	bmp := r(Chars, 1, 128)
	bmp.CharBits = 16
	intExt := r(Int, 0, 16383)
	intExt.Ext = true
	return &Schema{
		Types: []Type{
			{Kind: Open}, {Kind: Bool}, r(Bits, 3, 3), r(Int, 0, 100), r(Int, 0, 255), r(Int, 1, 1000), r(Int, 1, 65535),
			r(Int, 0, 4294967295), {Kind: Int}, {Kind: Int, HasLo: true, Lo: 1}, intExt,
			{Kind: Enum, Ext: true, Root: 3, Adds: 2},
			r(Octets, 2, 2), r(Octets, 4, 4), r(Octets, 1, 20), {Kind: Octets}, {Kind: OID}, bmp, digits, {Kind: General},
			{Name: "CHOICE", Kind: Choice, Ext: true, First: 0, Root: 2, Adds: 1},
			{Name: "SEQ", Kind: Seq, Ext: true, First: 3, Root: 3, Adds: 3, Opt: 1},
			{Name: "LIST", Kind: List, Elem: tSeq},
			{Name: "HOLDER", Kind: Seq, Ext: true, First: 9, Root: 2, Adds: 1},
			{Kind: Octets, Elem: tSeq},
			{Kind: Null},
			{Name: "DEEP", Kind: List, Elem: tDeep},
			{Name: "MANY", Kind: List, Elem: tBool},
			{Name: "SIZED", Kind: List, HasLo: true, HasHi: true, Lo: 1, Hi: 16, Elem: tOct2},
			r(Int, 0, 65535),
		},
		Comps: []Comp{
			Comp(tInt256), Comp(tOct4), Comp(tOct), // CHOICE
			Comp(tBool), Comp(tPort) | Optional, Comp(tOct4), // SEQ root
			Comp(tBool), Comp(tOct) | Optional, Comp(tChoice) | Optional, // SEQ additions
			Comp(tBits3), Comp(tInner), Comp(tList) | Optional, // HOLDER
		},
		CompNames: []string{"num", "addr", "blob", "flag", "port", "ip", "more", "data", "pick", "bits", "inner", "list"},
		Names:     []string{"a", "b", "c", "d", "e"},
	}
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestValues: values and their encodings, both ways. The octets follow from X.691.
func TestValues(t *testing.T) {
	s := testSchema()
	dec := NewDecoder(s)
	seq := Fields(F("flag", Truth(true)), F("ip", Octet([]byte{192, 0, 2, 1})))
	for _, c := range []struct {
		name string
		typ  TypeID
		v    Value
		want string
		num  int64
		text string
		octs string
	}{
		{name: "bool", typ: tBool, v: Truth(true), want: "80", num: 1},
		{name: "7 bits", typ: tInt100, v: Number(100), want: "c8", num: 100},
		{name: "octet", typ: tInt256, v: Number(255), want: "ff", num: 255},
		{name: "two octets from 1", typ: tInt1000, v: Number(1000), want: "03e7", num: 1000},
		{name: "logical channel number", typ: tInt65535, v: Number(101), want: "0064", num: 101},
		{name: "32 bits short", typ: tInt32, v: Number(7), want: "00 07", num: 7},
		{name: "32 bits long", typ: tInt32, v: Number(825000), want: "80 0c96a8", num: 825000},
		{name: "32 bits full", typ: tInt32, v: Number(4294967295), want: "c0 ffffffff", num: 4294967295},
		{name: "unconstrained", typ: tIntAny, v: Number(-129), want: "02 ff7f", num: -129},
		{name: "unconstrained 128", typ: tIntAny, v: Number(128), want: "02 0080", num: 128},
		{name: "from 1", typ: tIntFrom1, v: Number(257), want: "02 0100", num: 257},
		{name: "extensible, inside", typ: tIntExt, v: Number(18), want: "00 0012", num: 18},
		{name: "extensible, outside", typ: tIntExt, v: Number(16384), want: "80 02 4000", num: 16384},
		{name: "enumeration", typ: tEnum, v: Text("c"), want: "40", num: 2},
		{name: "enumeration, addition", typ: tEnum, v: Text("e"), want: "81", num: 4},
		{name: "two octets", typ: tOct2, v: Octet([]byte{1, 2}), want: "0102", octs: "0102"},
		{name: "four octets", typ: tOct4, v: Octet([]byte{1, 2, 3, 4}), want: "01020304", octs: "01020304"},
		{name: "sized octets", typ: tOct20, v: Octet([]byte{9}), want: "00 09", octs: "09"},
		{name: "octets", typ: tOct, v: Octet(bytes.Repeat([]byte{5}, 200)), want: "80c8" + strings.Repeat("05", 200), octs: strings.Repeat("05", 200)},
		{name: "no octets", typ: tOct, v: Octet(nil), want: "00"},
		{name: "object identifier", typ: tOID, v: Identifier("0.0.8.2250.0.7"), want: "06 0008914a0007", octs: "0008914a0007"},
		{name: "BMP", typ: tBMP, v: Text("é!"), want: "02 00e9 0021", text: "é!"},
		{name: "digits", typ: tDigits, v: Text("01#9,"), want: "08 34 0c 20", text: "01#9,"},
		{name: "general", typ: tGeneral, v: Text("hi"), want: "02 6869", text: "hi", octs: "6869"},
		{name: "choice", typ: tChoice, v: Alternative("addr", Octet([]byte{1, 2, 3, 4})), want: "40 01020304", num: 1},
		{name: "choice, addition", typ: tChoice, v: Alternative("blob", Octet([]byte{7})), want: "80 02 01 07", num: 2},
		{name: "sequence", typ: tSeq, v: seq, want: "20 c0000201"},
		{name: "list", typ: tList, v: Elements(seq), want: "01 20 c0000201"},
		{name: "sized list", typ: tSized, v: Elements(Octet([]byte{1, 2})), want: "00 1020"},
		{name: "null", typ: tNull, v: Nothing(), want: "00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := s.Encode(nil, c.typ, c.v)
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, c.want); !bytes.Equal(got, want) {
				t.Fatalf("got %x, want %x", got, want)
			}
			tree, err := dec.Decode(c.typ, got)
			if err != nil || len(tree.Rest()) > 0 {
				t.Fatalf("%v, rest %x", err, tree.Rest())
			}
			if k := s.Types[c.typ].Kind; k != Seq && k != List && tree.Int(0) != c.num {
				t.Errorf("number %d, want %d", tree.Int(0), c.num)
			}
			if tree.Text(0) != c.text {
				t.Errorf("text %q, want %q", tree.Text(0), c.text)
			}
			if want := unhex(t, c.octs); !bytes.Equal(tree.Octets(0), want) {
				t.Errorf("octets %x, want %x", tree.Octets(0), want)
			}
		})
	}
}

// TestMisfits: values that do not fit are refused by name.
func TestMisfits(t *testing.T) {
	s := testSchema()
	for _, c := range []struct {
		typ  TypeID
		v    Value
		says string
	}{
		{tInt100, Number(101), "out of range"},
		{tInt100, Text("x"), "number wanted"},
		{tIntFrom1, Number(0), "out of range"},
		{tOct4, Octet([]byte{1}), "size 1"},
		{tOct20, Octet(nil), "size 0"},
		{tOID, Identifier("3.1"), "no object identifier"},
		{tDigits, Text("x"), "character"},
		{tEnum, Text("z"), "no such value"},
		{tEnum, Number(5), "no such value"},
		{tChoice, Alternative("none", Nothing()), "no alternative none"},
		{tSeq, Fields(F("flag", Truth(true))), "ip is missing"},
		{tSeq, Fields(F("what", Truth(true))), "unknown or repeated component"},
		{tSeq, Fields(F("flag", Number(1)), F("flag", Number(1)), F("ip", Octet(make([]byte, 4)))), "unknown or repeated"},
		{tSeq, Fields(F("flag", Truth(true)), F("ip", Octet(make([]byte, 4))), F("pick", Alternative("num", Number(256)))), "pick: num: "},
		{tOct, Octet(make([]byte, 16384)), "too long"},
		{tNull, Number(0), "null wanted"},
		{tSized, Elements(), "size 0"},
	} {
		if b, err := s.Encode(nil, c.typ, c.v); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %x, %v; want an error with %q", s.Types[c.typ].Name, b, err, c.says)
		}
	}
}

// TestExtensions: bitmaps of every width, as other versions send them. Unknown additions
// stay open types, and an edit elsewhere leaves all of them as they are.
func TestExtensions(t *testing.T) {
	s := testSchema()
	dec, ed := NewDecoder(s), NewEditor(s)
	for _, n := range []int{1, 2, 3, 27, 32, 33, 63, 64, 65, 128, 256} {
		w := writer{}
		w.bits(0b111, 3) // extended, port, flag
		w.align()
		w.bits(1719, 16)
		w.octets([]byte{192, 0, 2, 9})
		w.smallLength(uint32(n))
		for i := range n {
			w.bits(b2u(i == 0 || i == n-1), 1)
		}
		w.octets([]byte{1, 0x80}) // more
		if n > 1 {
			w.octets(map[int][]byte{2: {3, 2, 8, 9}, 3: {2, 0, 77}}[n])
			if n > 3 {
				w.octets([]byte{3, 0xde, 0xad, 0x77})
			}
		}
		tree, err := dec.Decode(tSeq, w.buf)
		if err != nil || len(tree.Rest()) > 0 {
			t.Fatalf("%d additions: %v", n, err)
		}
		if r := tree.Child(0, "more"); tree.Int(r) != 1 {
			t.Errorf("%d additions: the first is not found", n)
		}
		ed.Begin(tree)
		if err := ed.Drop(tree.Child(0, "port")); err != nil {
			t.Fatal(err)
		}
		out, err := ed.Apply(nil)
		if err != nil {
			t.Fatalf("%d additions: %v", n, err)
		}
		// flag moves up by a bit; all else but the two octets of port stays.
		want := append([]byte{w.buf[0]&^0x60 | 0x20}, w.buf[3:]...)
		if !bytes.Equal(out, want) {
			t.Errorf("%d additions:\n got %x\nwant %x", n, out, want)
		}
	}
}

// TestHostile: what must be refused, and for what.
func TestHostile(t *testing.T) {
	s := testSchema()
	dec := NewDecoder(s)
	for _, c := range []struct {
		name string
		typ  TypeID
		in   []byte
		want error
	}{
		{"nothing", tSeq, nil, ErrTruncated},
		{"cut", tSeq, []byte{0x20, 1, 2, 3}, ErrTruncated},
		{"integer above its range", tInt100, []byte{0xca}, ErrRange},
		{"integer without octets", tIntAny, []byte{0}, ErrRange},
		{"number of 5 octets", tInt1000, []byte{0xff, 0xff}, ErrRange},
		{"count without elements", tMany, []byte{0xbf, 0xff, 0, 0}, ErrCount},
		{"fragments", tOct, append([]byte{0xc1}, make([]byte, 20000)...), ErrFragment},
		{"length beyond the end", tOct, []byte{0x83, 0xff, 1}, ErrTruncated},
		{"bitmap of 257", tSeq, append([]byte{0xa0, 1, 2, 3, 4, 0x80, 0x81, 0x01}, make([]byte, 60)...), ErrRange},
		{"bitmap beyond the end", tSeq, []byte{0xa0, 1, 2, 3, 4, 0x7e, 0}, ErrTruncated},
		{"open type longer than the message", tChoice, []byte{0x80, 9, 1, 7}, ErrTruncated},
		{"open type shorter than its contents", tChoice, []byte{0x80, 1, 9, 7}, ErrTruncated},
		{"addition's index in 3 octets", tChoice, []byte{0xc0, 3, 1, 0, 0, 1, 0}, ErrRange},
		{"depth", tDeep, bytes.Repeat([]byte{1}, 100), ErrDepth},
		{"too many", tMany, append([]byte{0xbf, 0xff}, make([]byte, 60000)...), nil},
		{"far too many", tDeep, append([]byte{0xbf, 0xff}, bytes.Repeat([]byte{2, 0, 0}, 16383)...), ErrNodes},
		{"too long", tOct, make([]byte, MaxOctets+1), ErrSize},
	} {
		_, err := dec.Decode(c.typ, c.in)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := dec.Decode(tBool, []byte{0x80}); err != nil || len(dec.slab) > keepNodes {
		t.Errorf("%v, and the decoder keeps %d nodes", err, len(dec.slab))
	}
}

// TestUnknownAlternative: an alternative newer than the schema is an open type.
func TestUnknownAlternative(t *testing.T) {
	tree, err := NewDecoder(testSchema()).Decode(tChoice, []byte{0x85, 2, 0xab, 0xcd})
	if err != nil {
		t.Fatal(err)
	}
	if name, v := tree.Chosen(0); name != "" || !bytes.Equal(tree.Octets(v), []byte{0xab, 0xcd}) {
		t.Fatalf("%q %x", name, tree.Octets(v))
	}
}

// holder is a message with a value inside an OCTET STRING and a list in an addition,
// put together by hand, as a BIT STRING of three bits is no whole octets.
func holder(tb testing.TB, s *Schema) []byte {
	tb.Helper()
	seq := func(port int64) Value {
		return Fields(F("flag", Truth(true)), F("port", Number(port)), F("ip", Octet([]byte{192, 0, 2, 1})),
			F("more", Truth(true)), F("pick", Alternative("num", Number(port%256))))
	}
	inner, err := s.Encode(nil, tSeq, seq(5000))
	if err != nil {
		tb.Fatal(err)
	}
	list, err := s.Encode(nil, tList, Elements(seq(5002), seq(5004)))
	if err != nil {
		tb.Fatal(err)
	}
	w := writer{}
	w.bits(0b1101, 4)
	w.align()
	w.length(len(inner))
	w.octets(inner)
	w.smallLength(1)
	w.bits(1, 1)
	w.align()
	w.length(len(list))
	w.octets(list)
	return w.buf
}

// values lists the scalar values of a tree by path.
func values(t *Tree) map[string]string {
	out := map[string]string{}
	for r := Ref(0); int(r) < t.Len(); r++ {
		switch t.Kind(r) {
		case Bool, Int:
			out[t.Path(r)] = string('0' + rune(t.Int(r)))
		case Octets:
			if t.Inside(r) == None {
				out[t.Path(r)] = hex.EncodeToString(t.Octets(r))
			}
		}
	}
	return out
}

// TestEdit: each edit does what it says, and nothing else.
func TestEdit(t *testing.T) {
	s := testSchema()
	src := holder(t, s)
	dec, again, ed := NewDecoder(s), NewDecoder(s), NewEditor(s)
	for _, c := range []struct {
		name   string
		edit   func(*Tree) error
		set    map[string]string // "" for what must be gone
		length int               // change of the whole
	}{
		{"address in place", func(t *Tree) error {
			in := t.Child(0, "inner")
			return ed.SetAddr(t.Child(in, "ip"), t.Child(in, "port"), netip.MustParseAddrPort("198.51.100.7:4242"))
		}, map[string]string{"inner.ip": "c6336407", "inner.port": string(rune('0' + 4242))}, 0},
		{"number in place", func(t *Tree) error { return ed.SetInt(t.Find(0, "inner", "pick", "num"), 7) },
			map[string]string{"inner.pick.num": "7"}, 0},
		{"drop a root component inside of octets", func(t *Tree) error { return ed.Drop(t.Find(0, "inner", "port")) },
			map[string]string{"inner.port": ""}, -2},
		{"drop an addition", func(t *Tree) error { return ed.Drop(t.Find(0, "inner", "pick")) },
			map[string]string{"inner.pick.num": ""}, -3},
		{"add an addition", func(t *Tree) error { return ed.Add(t.Child(0, "inner"), "data", Octet([]byte{1, 2})) },
			map[string]string{"inner.data": "0102"}, 4},
		{"replace by another alternative", func(t *Tree) error {
			return ed.Replace(t.Find(0, "inner", "pick"), Alternative("addr", Octet([]byte{9, 9, 9, 9})))
		}, map[string]string{"inner.pick.num": "", "inner.pick.addr": "09090909"}, 3},
		{"drop an element", func(t *Tree) error {
			for r := range t.Elems(t.Child(0, "list")) {
				return ed.Drop(r)
			}
			return nil
		}, nil, -14},
		{"drop a whole addition", func(t *Tree) error { return ed.Drop(t.Child(0, "list")) }, nil, -31},
		{"octets for a value", func(t *Tree) error { return ed.SetOctets(t.Child(0, "inner"), []byte{0x20, 1, 2, 3, 4}) },
			map[string]string{"inner.port": "", "inner.ip": "01020304", "inner.more": "", "inner.pick.num": ""}, -9},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := dec.Decode(tHolder, src)
			if err != nil {
				t.Fatal(err)
			}
			want := values(tree)
			for k, v := range c.set {
				if want[k] = v; v == "" {
					delete(want, k)
				}
			}
			ed.Begin(tree)
			if err := c.edit(tree); err != nil {
				t.Fatal(err)
			}
			out, err := ed.Apply(nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := again.Decode(tHolder, out)
			if err != nil {
				t.Fatal(err)
			}
			if len(out)-len(src) != c.length {
				t.Errorf("length changed by %d, want %d\n%x\n%x", len(out)-len(src), c.length, src, out)
			}
			if c.set == nil {
				return
			}
			if d := cmp.Diff(want, values(got)); d != "" {
				t.Errorf("values (-want +got):\n%s", d)
			}
		})
	}
}

// TestEditRefused: edits that the message has no place for.
func TestEditRefused(t *testing.T) {
	s := testSchema()
	tree, err := NewDecoder(s).Decode(tHolder, holder(t, s))
	if err != nil {
		t.Fatal(err)
	}
	ed := NewEditor(s)
	ed.Begin(tree)
	inner := tree.Child(0, "inner")
	if err := ed.SetOctets(inner, []byte{0x20, 1, 2, 3, 4}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"absent":               ed.SetInt(tree.Child(0, "nothing"), 1),
		"mandatory":            ed.Drop(tree.Child(0, "bits")),
		"the root":             ed.Drop(0),
		"edited":               ed.SetOctets(inner, nil),
		"inside of an edited":  ed.SetInt(tree.Child(inner, "port"), 1),
		"component of edited":  ed.Add(inner, "data", Octet(nil)),
		"unknown component":    ed.Add(tree.Root(), "nothing", Nothing()),
		"present component":    ed.Add(tree.Root(), "list", Elements()),
		"no list":              ed.Append(tree.Root(), Nothing()),
		"wrong family":         ed.SetAddr(tree.Find(0, "list"), tree.Find(0, "list"), netip.MustParseAddrPort("[2001:db8::1]:1")),
		"holds something done": ed.Replace(tree.Root(), Nothing()),
	} {
		if !errors.Is(err, ErrEdit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ed.SetInt(tree.Child(0, "bits"), 1); !errors.Is(err, ErrValue) {
		t.Errorf("a number for a bit string: %v", err)
	}
	if _, err := ed.Apply(nil); err != nil {
		t.Errorf("after refusals: %v", err)
	}
}

package per

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
)

// FuzzEdit: whatever decodes survives edits of every kind: what was not edited
// is the same, or Apply refuses for size.
func FuzzEdit(f *testing.F) {
	s := testSchema()
	f.Add(uint8(tHolder), holder(f, s), uint8(3))
	f.Add(uint8(tSeq), []byte{0xa0, 1, 2, 3, 4, 0x04, 0xa1, 1, 0x80, 2, 1, 5}, uint8(1))
	f.Add(uint8(tList), []byte{1, 0x20, 1, 2, 3, 4}, uint8(2))
	f.Add(uint8(tIntExt), []byte{0x80, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9}, uint8(0))
	f.Fuzz(func(t *testing.T, typ uint8, data []byte, pick uint8) {
		dec, ed := NewDecoder(s), NewEditor(s)
		id := TypeID(typ) % TypeID(len(s.Types))
		tree, err := dec.Decode(id, data)
		if err != nil {
			return
		}
		ed.Begin(tree)
		if same, err := ed.Apply(nil); err != nil || !bytes.Equal(same, tree.Source()) {
			t.Fatalf("without edits: %x, %v", same, err)
		}
		for r := Ref(pick % 5); int(r) < tree.Len(); r += Ref(pick%7) + 1 {
			for _, err := range edits(ed, tree, r, pick) {
				if err != nil && !errors.Is(err, ErrEdit) && !errors.Is(err, ErrValue) && !errors.Is(err, ErrSize) {
					t.Fatal(err)
				}
			}
		}
		if _, err := ed.Apply(nil); err != nil && !tooBig(err) {
			t.Fatalf("%x as %d: %v", data, id, err)
		}
	})
}

// tooBig: the edits took the message beyond a limit, which is no fault.
func tooBig(err error) bool {
	for _, limit := range []error{ErrSize, ErrNodes, ErrDepth, ErrCount} {
		if errors.Is(err, limit) {
			return true
		}
	}
	return false
}

// edits tries an edit of a kind that pick chooses.
func edits(ed *Editor, t *Tree, r Ref, pick uint8) []error {
	switch t.Kind(r) {
	case Int:
		return []error{ed.SetInt(r, int64(pick))}
	case Octets:
		if pick&1 == 0 {
			return []error{ed.SetOctets(r, bytes.Repeat([]byte{pick}, int(pick)))}
		}
		return []error{ed.Drop(r)}
	case Seq:
		return []error{ed.Add(r, "data", Octet([]byte{pick})), ed.Add(r, "port", Number(9))}
	case Choice:
		return []error{ed.Replace(r, Alternative("blob", Octet([]byte{pick, 1})))}
	case List:
		return []error{ed.Append(r, Fields(F("flag", Truth(true)), F("ip", Octet([]byte{1, 2, 3, pick}))))}
	}
	return []error{ed.Drop(r)}
}

// FuzzSetAddr: what overwrites addresses alone is not decoded again, as nothing that is read later depends on it:
// here it is, and compared.
func FuzzSetAddr(f *testing.F) {
	s := testSchema()
	f.Add(uint8(tHolder), holder(f, s), []byte{192, 0, 2, 1, 0x30, 0x39})
	f.Add(uint8(tSeq), []byte{0xa0, 1, 2, 3, 4, 0x04, 0xa1, 1, 0x80, 2, 1, 5}, []byte{255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, typ uint8, data, to []byte) {
		if len(to) < 6 {
			return
		}
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte(to)), uint16(to[4])<<8|uint16(to[5]))
		dec, ed := NewDecoder(s), NewEditor(s)
		tree, err := dec.Decode(TypeID(typ)%TypeID(len(s.Types)), data)
		if err != nil {
			return
		}
		ed.Begin(tree)
		for r := Ref(1); int(r) < tree.Len(); r++ {
			if err := ed.SetAddr(r-1, r, at); err != nil && !errors.Is(err, ErrEdit) {
				t.Fatal(err)
			}
		}
		out, err := ed.Apply(nil)
		if err == nil {
			err = ed.verifyDecoded(out)
		}
		if err != nil {
			t.Fatalf("%x: %v", data, err)
		}
	})
}

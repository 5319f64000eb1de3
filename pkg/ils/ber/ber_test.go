package ber

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSize(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want int
		err  error
	}{
		{"", 0, nil},
		{"30", 0, nil},
		{"3000", 2, nil},
		{"307f", 129, nil},
		{"3081", 0, nil},
		{"3081f0", 243, nil},
		{"30840000000c", 18, nil},
		{"308400", 0, nil},
		{"3080", 0, ErrLength},
		{"3085", 0, ErrLength},
		{"3084ffffffff", 0, ErrLength},
		{"30847fffffff", 0, ErrLength},
		{"1f8101", 0, ErrTag},
	} {
		got, err := Size(unhex(t, tc.in))
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("Size(%s) = %d, %v; want %d, %v", tc.in, got, err, tc.want, tc.err)
		}
	}
}

// leaf returns the n-th primitive element.
func leaf(t testing.TB, b []byte, n int) Element {
	t.Helper()
	var leaves []Element
	var down func(e Element)
	down = func(e Element) {
		if !e.Constructed() {
			leaves = append(leaves, e)
			return
		}
		w := Walk(b, e)
		for c, ok := w.Next(); ok; c, ok = w.Next() {
			down(c)
		}
	}
	top, err := Next(b, 0, len(b))
	if err != nil {
		t.Fatal(err)
	}
	down(top)
	return leaves[n]
}

func TestApply(t *testing.T) {
	long := strings.Repeat("61", 124)
	for _, tc := range []struct {
		name, in string
		n        int
		with     string
		want     string
	}{
		{"same length", "3005 0201 05 0400", 0, "06", "3005 020106 0400"},
		{"longer", "3005 020105 0400", 1, "6162", "3007 020105 0402 6162"},
		{"shorter", "3007 020105 04026162", 1, "", "3005 020105 0400"},
		{"short form becomes long", "307e 047c" + long, 0, long + "616161616161", "308185 048182" + long + "616161616161"},
		{"long form stays long", "30840000000c 0201 05 0407 61616161616161", 1, "62", "308400000006 020105 0401 62"},
		{"nested", "3009 3007 3105 0403 313233", 0, "31323334", "300a 3008 3106 0404 31323334"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := unhex(t, tc.in)
			before := bytes.Clone(in)
			var e Edits
			e.Replace(leaf(t, in, tc.n), unhex(t, tc.with))
			got, err := e.Apply(in)
			if err != nil || !bytes.Equal(got, unhex(t, tc.want)) {
				t.Errorf("got %x, %v; want %s", got, err, tc.want)
			}
			if !bytes.Equal(in, before) {
				t.Error("the message itself was changed")
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	in := unhex(t, "3007 0405 3003020105")
	var e Edits
	e.Replace(Element{Tag: Integer, Start: 4, Body: 6, End: 9}, []byte{1})
	if out, err := e.Apply(in); !errors.Is(err, ErrEdit) {
		t.Errorf("an edit inside of a primitive: %x, %v", out, err)
	}
	var twice Edits
	at := Element{Tag: OctetString, Start: 2, Body: 4, End: 9}
	twice.Replace(at, nil)
	twice.Replace(at, nil)
	if out, err := twice.Apply(in); !errors.Is(err, ErrEdit) {
		t.Errorf("the same element twice: %x, %v", out, err)
	}
}

func TestInt(t *testing.T) {
	for _, v := range []int32{0, 1, 127, 128, 255, 256, 32767, 32768, 1 << 24, 1<<31 - 1, -1, -128, -129, -1 << 31} {
		b := AppendInt(nil, Integer, v)
		if got, ok := Int(b[2:]); !ok || got != v {
			t.Errorf("%d: encoded %x, read back %d %v", v, b, got, ok)
		}
		if len(b) > 3 && (b[2] == 0 && b[3] < 0x80 || b[2] == 0xff && b[3] >= 0x80) {
			t.Errorf("%d: %x is not the shortest form", v, b)
		}
	}
	if _, ok := Int(nil); ok {
		t.Error("no octets are a number")
	}
	if _, ok := Int(make([]byte, 5)); ok {
		t.Error("five octets are a number")
	}
}

// FuzzBer walks and edits arbitrary octets: no panic, and what was not replaced stays.
func FuzzBer(f *testing.F) {
	for _, s := range []string{
		"300c020101600702010304008000", "3084000000050201034200", "30820369308203653082", "3084ffffffff", "30800000", "1f8101",
		"30190201 05 6614 0403636e3d 300d 300b 0a0102 3006 0402636e 3100",
		"300a020101040561626364653000",
	} {
		f.Add(unhex(f, s), 1, []byte("0123456789"))
	}
	f.Fuzz(func(t *testing.T, b []byte, n int, with []byte) {
		if size, err := Size(b); err == nil && size < 0 {
			t.Fatalf("size %d", size)
		}
		top, err := Next(b, 0, len(b))
		if err != nil {
			return
		}
		var path []Element
		e := top
		for len(path) < 64 && e.Constructed() {
			path = append(path, e)
			w := Walk(b, e)
			c, ok := w.Next()
			for i := 0; ok && i < n%4; i++ {
				if d, more := w.Next(); more {
					c = d
				}
			}
			if !ok {
				return
			}
			e = c
		}
		if e.Constructed() {
			return
		}
		var edits Edits
		edits.Replace(e, with)
		out, err := edits.Apply(b)
		if err != nil {
			return // a sibling is malformed
		}
		again, err := Next(out, 0, len(out))
		if err != nil || again.End != len(out) {
			t.Fatalf("%x became %x: %v", b, out, err)
		}
		if got := len(out) - len(b[:top.End]); got < len(with)-len(e.Of(b))-4*len(path)-4 || got > len(with)-len(e.Of(b))+4*len(path)+4 {
			t.Fatalf("%x became %x", b, out)
		}
		if !bytes.Contains(out, with) {
			t.Fatalf("%x is not in %x", with, out)
		}
		var back Edits
		back.Replace(leafAt(t, out, path, n, e), e.Of(b))
		restored, err := back.Apply(out)
		if err != nil {
			t.Fatal(err)
		}
		if canonical(b[:top.End]) && !bytes.Equal(restored, b[:top.End]) && len(out) < 0x80 {
			t.Fatalf("%x became %x and went back to %x", b, out, restored)
		}
	})
}

// leafAt finds the edited element again by the way that led to it.
func leafAt(t *testing.T, b []byte, path []Element, n int, was Element) Element {
	t.Helper()
	e, err := Next(b, 0, len(b))
	for range path {
		if err != nil {
			t.Fatal(err)
		}
		w := Walk(b, e)
		c, ok := w.Next()
		for i := 0; ok && i < n%4; i++ {
			if d, more := w.Next(); more {
				c = d
			}
		}
		e = c
	}
	if e.Tag != was.Tag {
		t.Fatalf("the edited element has the tag %x, not %x", e.Tag, was.Tag)
	}
	return e
}

// canonical tells whether all lengths are in their shortest form, which an edit there and back keeps.
func canonical(b []byte) bool {
	return bytes.IndexFunc(b, func(r rune) bool { return r >= 0x80 || r == 0xfffd }) < 0
}

package q931

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name string
		in   string
		ref  uint16
		dest bool
		typ  Type
		per  string
		err  error
	}{
		{name: "setup", in: "08 02 1234 05 04 03 8890a2 28 02 6262 7e 0004 05 2080aa", ref: 0x1234, typ: Setup, per: "2080aa"},
		{name: "from the other side", in: "08 02 9234 07 7e 0002 05 aa", ref: 0x1234, dest: true, typ: Connect, per: "aa"},
		{name: "global call reference", in: "08 02 0000 7d", typ: Status},
		{name: "no user-user", in: "08 02 0001 5a 08 02 8090", ref: 1, typ: ReleaseComplete},
		{name: "user-user first", in: "08 02 0001 62 7e 0002 05 aa 28 01 62", ref: 1, typ: Facility, per: "aa"},
		{name: "one-octet elements", in: "08 02 0001 05 a1 96 7e 0002 05 aa 91", ref: 1, typ: Setup, per: "aa"},
		{name: "user-user of length 0", in: "08 02 0001 05 7e 0000", ref: 1, typ: Setup},
		{name: "user-user of length 1", in: "08 02 0001 05 7e 0001 05", ref: 1, typ: Setup},
		{name: "user-user beyond the end", in: "08 02 0001 05 7e 0005 05 aa", err: ErrElement},
		{name: "user-user cut in its length", in: "08 02 0001 05 7e 00", err: ErrElement},
		{name: "two user-user", in: "08 02 0001 05 7e 0002 05 aa 7e 0002 05 bb", err: ErrUserUser},
		{name: "an empty and a full one", in: "08 02 0001 05 7e 0000 7e 0002 05 bb", err: ErrUserUser},
		{name: "other discriminator", in: "08 02 0001 05 7e 0002 04 aa", err: ErrUserUser},
		{name: "element beyond the end", in: "08 02 0001 05 28 05 62", err: ErrElement},
		{name: "element without length", in: "08 02 0001 05 28", err: ErrElement},
		{name: "call reference of 0 octets", in: "08 00 05 7e 0002 05 aa", err: ErrHeader},
		{name: "call reference of 15 octets", in: "08 0f 0001020304050607080910111213 05", err: ErrHeader},
		{name: "other protocol", in: "09 02 0001 05", err: ErrHeader},
		{name: "short", in: "08 02 00", err: ErrHeader},
		{name: "nothing", in: "", err: ErrHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := unhex(t, c.in)
			m, err := Parse(in)
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if c.err != nil {
				return
			}
			if m.CallRef != c.ref || m.FromDest != c.dest || m.Type != c.typ {
				t.Errorf("%d %t %#x", m.CallRef, m.FromDest, m.Type)
			}
			if !bytes.Equal(m.UserUser(), unhex(t, c.per)) || (m.UserUser() == nil) != (c.per == "") {
				t.Errorf("user-user %x, want %s", m.UserUser(), c.per)
			}
			if !bytes.Equal(m.AppendTo(nil), in) {
				t.Error("not written as it came")
			}
		})
	}
}

// TestAppendWith: only the User-User element and its length change.
func TestAppendWith(t *testing.T) {
	m, err := Parse(unhex(t, "08 02 1234 05 28 02 6262 7e 0002 05 aa 70 02 8131"))
	if err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte{7}, 300)
	got, err := m.AppendWith([]byte{1}, long)
	want := append(unhex(t, "01 08 02 1234 05 28 02 6262 7e 012d 05"), append(long, unhex(t, "70 02 8131")...)...)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%v\n%x\n%x", err, got, want)
	}
	if b, ok := m.Element(CalledNumber); !ok || !bytes.Equal(b, []byte{0x81, '1'}) {
		t.Errorf("called number %x", b)
	}
	if _, ok := m.Element(Cause); ok {
		t.Error("a cause that is not there")
	}
	if _, err := m.AppendWith(nil, make([]byte, 65535)); !errors.Is(err, ErrTooLong) {
		t.Errorf("too long: %v", err)
	}
	none, err := Parse(unhex(t, "08 02 1234 5a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.AppendWith(nil, long); !errors.Is(err, ErrUserUser) {
		t.Errorf("no element: %v", err)
	}
}

func TestAppend(t *testing.T) {
	got, err := Append(nil, Setup, 0x1234, true, []Element{{ID: BearerCap, Contents: []byte{0x88, 0x90}}, {ID: 0xa1}}, []byte{0xaa})
	if want := unhex(t, "08 02 9234 05 04 02 8890 a1 7e 0002 05 aa"); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%x, %v", got, err)
	}
	for name, e := range map[string]Element{
		"long": {ID: Display, Contents: make([]byte, 256)}, "user-user": {ID: 0x7e, Contents: []byte{5}},
	} {
		if got, err := Append([]byte{1}, Setup, 1, false, []Element{e}, nil); !errors.Is(err, ErrTooLong) || len(got) != 1 {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{8, 2, 0x12, 0x34, 5, 4, 3, 0x88, 0x90, 0xa2, 0x7e, 0, 4, 5, 0x20, 0x80, 0xaa})
	f.Add([]byte{8, 2, 0, 1, 5, 0x7e, 0, 0})
	f.Add([]byte{8, 2, 0, 1, 5, 0x7e, 0, 1, 5, 0x28, 1, 0x62})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			return
		}
		if !bytes.Equal(m.AppendTo(nil), data) {
			t.Fatal("not written as it came")
		}
		if m.UserUser() == nil {
			return
		}
		if same, err := m.AppendWith(nil, m.UserUser()); err != nil || !bytes.Equal(same, data) {
			t.Fatalf("with its own contents: %x, %v", same, err)
		}
		longer := append(bytes.Clone(m.UserUser()), 1, 2, 3)
		out, err := m.AppendWith(nil, longer)
		if err != nil {
			return
		}
		again, err := Parse(out)
		if err != nil || !bytes.Equal(again.UserUser(), longer) || again.Type != m.Type || again.CallRef != m.CallRef {
			t.Fatalf("%x, %v", out, err)
		}
	})
}

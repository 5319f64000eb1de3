package tpkt

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// split pushes the pieces and returns the packets as second octet and payload.
func split(s *Splitter, pieces ...[]byte) ([][]byte, error) {
	var out [][]byte
	for _, p := range pieces {
		s.Push(p)
		for {
			pkt, ok, err := s.Next()
			if err != nil {
				return out, err
			}
			if !ok {
				break
			}
			out = append(out, append([]byte{pkt.Second}, pkt.Payload...))
		}
	}
	return out, nil
}

// octets cuts b into pieces of one octet.
func octets(b []byte) [][]byte {
	return slices.Collect(slices.Chunk(b, 1))
}

func TestSplit(t *testing.T) {
	full := append([]byte{3, 0, 0xff, 0xff}, bytes.Repeat([]byte{7}, MaxPayload)...)
	for _, c := range []struct {
		name  string
		in    []byte
		want  [][]byte
		err   error
		bogus int
		left  int
	}{
		{name: "nothing"},
		{name: "one", in: []byte{3, 0, 0, 6, 1, 2}, want: [][]byte{{0, 1, 2}}},
		{name: "two in a segment", in: []byte{3, 0, 0, 5, 1, 3, 0, 0, 5, 2}, want: [][]byte{{0, 1}, {0, 2}}},
		{name: "garbage in the second octet", in: []byte{3, 0xa5, 0, 5, 1}, want: [][]byte{{0xa5, 1}}},
		{name: "keep-alive", in: []byte{3, 0, 0, 4, 3, 0, 0, 5, 9}, want: [][]byte{{0}, {0, 9}}},
		{name: "bogus keep-alive", in: []byte{0, 3, 4, 0, 3, 0, 0, 5, 9}, want: [][]byte{{0, 9}}, bogus: 1},
		{name: "bogus keep-alives", in: []byte{3, 0, 0, 5, 1, 0, 3, 4, 0, 0, 3, 4, 0}, want: [][]byte{{0, 1}}, bogus: 2},
		{name: "never finished", in: []byte{3, 0, 0, 9, 1}, left: 5},
		{name: "header cut", in: []byte{3, 0, 0}, left: 3},
		{name: "length 0", in: []byte{3, 0, 0, 0}, err: ErrLength},
		{name: "length 3", in: []byte{3, 0, 0, 5, 1, 3, 0, 0, 3}, want: [][]byte{{0, 1}}, err: ErrLength},
		{name: "version 2", in: []byte{2, 0, 0, 5, 1}, err: ErrVersion},
		{name: "nearly bogus", in: []byte{0, 3, 4, 1}, err: ErrVersion},
		{name: "TLS", in: []byte{0x16, 3, 1}, err: ErrVersion},
		{name: "largest", in: full, want: [][]byte{append([]byte{0}, full[4:]...)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, pieces := range [][][]byte{{c.in}, octets(c.in)} {
				var s Splitter
				got, err := split(&s, pieces...)
				if !errors.Is(err, c.err) || !slices.EqualFunc(got, c.want, bytes.Equal) {
					t.Fatalf("got %.40x, %v; want %.40x, %v", got, err, c.want, c.err)
				}
				if s.Bogus() != c.bogus || c.err == nil && s.Pending() != c.left {
					t.Fatalf("bogus %d, pending %d; want %d, %d", s.Bogus(), s.Pending(), c.bogus, c.left)
				}
			}
		})
	}
}

func TestErrorIsFinal(t *testing.T) {
	var s Splitter
	if _, err := split(&s, []byte{4}); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
	if _, err := split(&s, []byte{3, 0, 0, 5, 1}); !errors.Is(err, ErrVersion) {
		t.Fatalf("after a fault: %v", err)
	}
}

func TestAppend(t *testing.T) {
	got, err := Append([]byte{9}, 0xa5, []byte{1, 2})
	if err != nil || !bytes.Equal(got, []byte{9, 3, 0xa5, 0, 6, 1, 2}) {
		t.Fatalf("%x, %v", got, err)
	}
	if _, err := Append(nil, 0, make([]byte, MaxPayload+1)); !errors.Is(err, ErrTooLong) {
		t.Fatal(err)
	}
	if b, err := Append(nil, 0, make([]byte, MaxPayload)); err != nil || len(b) != 65535 {
		t.Fatal(len(b), err)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte{3, 0, 0, 6, 1, 2, 3, 0, 0, 4, 0, 3, 4, 0, 3, 9, 0, 5, 1}, uint8(1))
	f.Add([]byte{3, 0, 0, 3}, uint8(2))
	f.Add([]byte{3, 0, 0xff, 0xff, 1}, uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		var whole, cut Splitter
		want, wantErr := split(&whole, data)
		got, err := split(&cut, slices.Collect(slices.Chunk(data, int(step)+1))...)
		if !slices.EqualFunc(got, want, bytes.Equal) || (err == nil) != (wantErr == nil) {
			t.Fatalf("cut every %d octets: %x, %v; whole: %x, %v", int(step)+1, got, err, want, wantErr)
		}
		if cap(cut.buf) > 2*(65535+256)+64 && cap(cut.buf) > 4*len(data) {
			t.Fatalf("holds %d octets", cap(cut.buf))
		}
		var out []byte
		for _, p := range want {
			out, _ = Append(out, p[0], p[1:])
		}
		var again Splitter
		if back, err := split(&again, out); err != nil || !slices.EqualFunc(back, want, bytes.Equal) {
			t.Fatalf("written and read: %x, %v", back, err)
		}
	})
}

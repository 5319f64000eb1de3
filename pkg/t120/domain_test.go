package t120

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/t120/gcc"
	"edged.dev/edged/pkg/t120/mcs"
	"edged.dev/edged/pkg/t120/x224"
)

// openFront is a front in a conference, whose side 0 is inside.
func openFront() *front {
	cfg := DefaultConfig()
	f := newFront(&cfg, Call{}, func(*Call, bool) error { return nil }, func(from int) (gcc.Translate, bool) {
		return func(a netip.Addr) (netip.Addr, bool) {
			return netip.MustParseAddr("198.51.100.1"), a == netip.MustParseAddr("10.77.1.2")
		}, from == 0
	})
	f.stage = open
	return f
}

// in cuts data into SendData of at most segment octets on a channel, and each into DTs of at most dt octets.
func in(t testing.TB, channel byte, data []byte, segment, dt int) (out []tpkt.Packet) {
	t.Helper()
	d, _ := mcs.ParseSendData([]byte{0x64, 0, 4, 0, channel, 0x70, 0})
	for at := 0; at < len(data); at += segment {
		end := min(at+segment, len(data))
		b, err := cut(nil, d.AppendSegment(nil, data[at:end], at == 0, end == len(data)), dt)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, packets(t, b)...)
	}
	return out
}

func packets(t testing.TB, b []byte) (out []tpkt.Packet) {
	t.Helper()
	var s tpkt.Splitter
	s.Push(b)
	for {
		p, ok, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out
		}
		p.Payload = bytes.Clone(p.Payload)
		out = append(out, p)
	}
}

// through gives packets of a side to a front and returns what comes out.
func through(t testing.TB, f *front, from int, list []tpkt.Packet) (out []tpkt.Packet) {
	t.Helper()
	for _, p := range list {
		b, err := f.receive(from, p)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, packets(t, b)...)
	}
	return out
}

func equal(a, b []tpkt.Packet) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Second != b[i].Second || !bytes.Equal(a[i].Payload, b[i].Payload) {
			return false
		}
	}
	return true
}

// TestSegments: a PDU of GCC is edited however it is cut, and cut no coarser than it was; from outside, on other channels
// and without such an address it passes as it came.
func TestSegments(t *testing.T) {
	named, hidden, other := addRequest(t, "10.77.1.2:1503"), addRequest(t, "198.51.100.1:1503"), addRequest(t, "203.0.113.7:1503")
	for _, segment := range []int{1, 5, 20, 1000} {
		for _, dt := range []int{1, 6, 7, 8, 1000} {
			t.Run(fmt.Sprintf("segments of %d in DTs of %d", segment, dt), func(t *testing.T) {
				f := openFront()
				if got := through(t, f, 0, in(t, 1, named, segment, dt)); !equal(got, in(t, 1, hidden, segment, dt)) {
					t.Errorf("got %d packets with %x", len(got), join(t, got))
				}
				for _, same := range []struct {
					from    int
					channel byte
					pdu     []byte
				}{{1, 1, named}, {0, 8, named}, {0, 1, other}} {
					list := in(t, same.channel, same.pdu, segment, dt)
					if got := through(t, f, same.from, list); !equal(got, list) {
						t.Errorf("from %d on channel %d: changed", same.from, same.channel)
					}
				}
				if p := f.parts[0]; len(p.held)+len(p.segments)+p.octets != 0 {
					t.Errorf("something is still held: %+v", p)
				}
			})
		}
	}
}

// join returns the data of all segments.
func join(t testing.TB, list []tpkt.Packet) (data []byte) {
	t.Helper()
	var unit []byte
	e := gcc.NewEditor()
	for _, p := range list {
		d, err := x224.Parse(p.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if unit = append(unit, d.User...); !d.Last {
			continue
		}
		user, err := e.UserData(unit)
		if err != nil {
			t.Fatal(err)
		}
		data, unit = append(data, user...), nil
	}
	return data
}

// TestInterleaved: segments of others, and other PDUs, come between.
func TestInterleaved(t *testing.T) {
	f := openFront()
	list := in(t, 1, addRequest(t, "10.77.1.2:1503"), 8, 1000)
	whiteboard := in(t, 8, bytes.Repeat([]byte("x"), 100), 30, 1000)
	var got []tpkt.Packet
	for i, p := range list {
		got = append(got, through(t, f, 0, []tpkt.Packet{p})...)
		if i < len(whiteboard) {
			out := through(t, f, 0, whiteboard[i:i+1])
			if !equal(out, whiteboard[i:i+1]) {
				t.Errorf("the whiteboard's segment %d waits", i)
			}
		}
	}
	if data := join(t, got); !bytes.Equal(data, addRequest(t, "198.51.100.1:1503")) {
		t.Errorf("got %x", data)
	}
}

// TestBrokenSegments: a PDU that begins anew leaves what was held of the first to pass; a segment of nothing passes.
func TestBrokenSegments(t *testing.T) {
	f := openFront()
	list := in(t, 1, addRequest(t, "10.77.1.2:1503"), 20, 1000)
	if got := through(t, f, 0, list[1:]); !equal(got, list[1:]) {
		t.Errorf("without a beginning: %d packets", len(got))
	}
	if got := through(t, f, 0, list[:1]); len(got) != 0 {
		t.Errorf("the first segment did not wait")
	}
	got := through(t, f, 0, list)
	if !equal(got[:1], list[:1]) || !bytes.Equal(join(t, got[1:]), addRequest(t, "198.51.100.1:1503")) {
		t.Errorf("begun again: %d packets", len(got))
	}
}

// TestHeld: what a side can have the edge hold is bounded.
func TestHeld(t *testing.T) {
	endless := func(f *front, p func(i int) tpkt.Packet) error {
		for i := range 20_000 {
			if _, err := f.receive(0, p(i)); err != nil {
				return err
			}
			if s := f.parts[0]; len(s.held) > 3*maxConnect || s.octets > maxHeld || len(s.segments) > maxAssemblies {
				t.Fatalf("%d and %d octets in %d pieces are held", len(s.held), s.octets, len(s.segments))
			}
		}
		return nil
	}
	segment := func(initiator byte, begin bool) tpkt.Packet {
		d, _ := mcs.ParseSendData([]byte{0x64, 0, initiator, 0, 1, 0x40, 0})
		return tpkt.Packet{Payload: x224.AppendData(nil, d.AppendSegment(nil, make([]byte, 1000), begin, false))}
	}
	for name, p := range map[string]func(int) tpkt.Packet{
		"a PDU without end": func(i int) tpkt.Packet { return segment(1, i == 0) },
		"PDUs without end":  func(i int) tpkt.Packet { return segment(byte(i), true) },
		"a unit without end": func(int) tpkt.Packet {
			return tpkt.Packet{Payload: append([]byte{2, 0xf0, 0}, segment(1, true).Payload[3:]...)}
		},
		"a unit of nothing": func(int) tpkt.Packet { return tpkt.Packet{Payload: []byte{2, 0xf0, 0}} },
	} {
		if err := endless(openFront(), p); !errors.Is(err, errSize) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

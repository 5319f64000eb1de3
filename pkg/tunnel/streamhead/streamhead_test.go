package streamhead

import (
	"bytes"
	"strings"
	"testing"

	"edged.dev/edged/pkg/tunnel/device"
)

func heads() []Head {
	a, b := device.ID{1, 2}, device.ID{31: 9}
	return []Head{
		{Kind: Open, Peer: a, Service: "ssh"}, {Kind: Offer, Peer: b, Service: "rtp-1", Datagrams: true},
		{Kind: Hop, Peer: a, Caller: b, Service: strings.Repeat("x", 63)}, {Kind: Presence},
		{Kind: Bulk, Peer: a, Token: [16]byte{3, 15: 4}, Service: "ssh"}, {Kind: BulkOffer, Peer: b, Token: [16]byte{5}, Service: "x"},
	}
}

func TestHead(t *testing.T) {
	for _, h := range heads() {
		b, err := h.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Parse(b); err != nil || got != h {
			t.Errorf("%+v: %+v, %v", h, got, err)
		}
		for i := range b { // cut anywhere, it is refused or is the head of a shorter name
			if got, err := Parse(b[:i]); err == nil && !strings.HasPrefix(h.Service, got.Service) {
				t.Errorf("%d of %d octets: %+v", i, len(b), got)
			}
		}
	}
	if _, err := (Head{Kind: 9, Service: "x"}).MarshalBinary(); err == nil {
		t.Error("an unknown kind is written")
	}
	if _, err := (Head{Kind: Open}).MarshalBinary(); err == nil {
		t.Error("a head without a service is written")
	}
	id := make([]byte, 32)
	for name, b := range map[string][]byte{
		"nothing": nil, "unknown kind": append([]byte{77, 0}, id...), "unknown flag": append([]byte{1, 2}, append(id, "ssh"...)...),
		"no service": append([]byte{1, 0}, id...), "long service": append(append([]byte{1, 0}, id...), strings.Repeat("x", 64)...),
		"odd service": append(append([]byte{1, 0}, id...), "A\x00"...), "presence and more": {4, 0},
	} {
		if h, err := Parse(b); err == nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, h := range heads() {
		b, err := h.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		if again, err := h.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x is read as %+v and written as %x, %v", b, h, again, err)
		}
	})
}

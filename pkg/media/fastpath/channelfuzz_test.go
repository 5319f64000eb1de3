package fastpath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// fuzzChannel is the number of the channel that the peer's data leaves by, and the client's comes by.
const fuzzChannel = 0x4123

// FuzzChannel: whatever arrives where channels are either goes up unchanged, or leaves with the header of the channel cut or
// put, lengths that say so, and a checksum that is right if it was; nothing is dropped, and XDP carries nothing that tc
// would not.
func FuzzChannel(f *testing.F) {
	tc := newEntry(f, "tc")
	k := tc.k
	must(f, k.objs.Hops.Put(uint32(0), &tcHop{Device: 1, Mtu: 1500, Flags: hopMAC | hopXDP}))
	for _, name := range []string{"4 to 4", "6 to 6"} {
		for _, number := range []uint16{0, fuzzChannel} {
			r := routes()[name]
			v := r.value(false, dscp)
			v.Device = 1
			if number == 0 {
				v.Number = port(fuzzChannel)
			}
			key := tcChannelKey{Port: port(r.in.Port()), PeerPort: port(r.from.Port()), Number: port(number)}
			key.Local.Word, key.Peer.Word = words(r.in.Addr()), words(r.from.Addr())
			must(f, k.objs.Channels.Put(&key, &v))
			data := rtpPacket(40)
			f.Add(r.arriving(data).wire())
			f.Add(r.arriving(channelData(fuzzChannel, data)).wire())
			f.Add(r.arriving(append(channelData(fuzzChannel, data), 0, 0)).wire())
			f.Add(r.arriving(channelData(fuzzChannel, nil)).wire())
			f.Add(r.arriving(rtpPacket(1500 - 68)).wire())
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before, out, err := entry{"xdp", k}.try(in, nil)
		if err == nil && before == redirected {
			checkChannel(t, in, out)
		} else if err == nil && (before != up || !bytes.Equal(out, in)) {
			t.Errorf("XDP: verdict %d:\n got %x\nsent %x", before, out, in)
		}
		verdict, out, err := tc.try(in, nil)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOMEM) || errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("the kernel does not accept it as a packet")
		}
		must(t, err)
		switch {
		case verdict == redirected:
			checkChannel(t, in, out)
		case verdict != up || !bytes.Equal(out, in) || before != up:
			t.Errorf("verdict %d, of XDP %d:\n got %x\nsent %x", verdict, before, out, in)
		}
	})
}

// checkChannel checks a packet that was carried.
func checkChannel(t *testing.T, in, out []byte) {
	t.Helper()
	was, sound := datagramOf(t, in)
	is, still := datagramOf(t, out)
	want := channelData(fuzzChannel, was)
	if len(was) >= 4 && binary.BigEndian.Uint16(was) == fuzzChannel {
		want = was[4:]
	}
	if out[12] == 8 && checksum(out[14:34]) != 0xffff {
		t.Errorf("the IPv4 header does not add up: %x", out)
	}
	if !bytes.Equal(is, want) || sound != still {
		t.Errorf("checksum right %v, then %v:\n got %x\nsent %x", sound, still, out, in)
	}
}

// datagramOf returns the data of a frame by its own lengths, and whether its checksum is right, or none.
func datagramOf(t *testing.T, b []byte) (data []byte, sound bool) {
	t.Helper()
	udp, addresses, length := 34, b[26:34], int(binary.BigEndian.Uint16(b[16:]))-20
	if b[12] == 0x86 {
		udp, addresses, length = 54, b[22:54], int(binary.BigEndian.Uint16(b[18:]))
	}
	d := b[udp:]
	if length < 8 || length > len(d) || int(binary.BigEndian.Uint16(d[4:])) != length {
		t.Fatalf("a datagram of %d bytes in %x", length, b)
	}
	d = d[:length]
	if binary.BigEndian.Uint16(d[6:]) == 0 {
		return d[8:], true
	}
	pseudo := append(append([]byte(nil), addresses...), 0, unix.IPPROTO_UDP, d[4], d[5])
	if len(d)%2 != 0 {
		d = append(append([]byte(nil), d...), 0)
	}
	return d[8:length], checksum(append(pseudo, d...)) == 0xffff
}

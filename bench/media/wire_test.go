package main

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func testTraffic() traffic {
	return traffic{
		srcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, dstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		src: netip.MustParseAddr("192.0.2.1"), dst: netip.MustParseAddr("198.51.100.7"),
		to: []uint16{40000, 40002, 40004}, size: 172, burst: 1,
	}
}

// rfc1071 is the Internet checksum's sum as RFC 1071 §4.1 writes it: big endian, word by word.
func rfc1071(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		}
		for s>>16 != 0 {
			s = s&0xffff + s>>16
		}
	}
	return uint16(s)
}

// ipRight and udpRight verify checksums (RFC 791 §3.1, RFC 768).
func ipRight(frame []byte) bool { return rfc1071(frame[ethLen:ethLen+ipLen]) == 0xffff }

func udpRight(frame []byte) bool {
	ip, udp := frame[ethLen:], frame[ethLen+ipLen:]
	return rfc1071(ip[12:20], []byte{0, 17}, udp[4:6], udp) == 0xffff
}

func TestSum(t *testing.T) {
	// RFC 1071 §3.
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	var got [2]byte
	binary.NativeEndian.PutUint16(got[:], fold(sum(b)))
	if got != [2]byte{0xdd, 0xf2} {
		t.Errorf("sum of the RFC's example is %x, not ddf2", got)
	}
}

func TestFrame(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		tr := testTraffic()
		tr.size = minSize + 4*random.IntN((maxSize-minSize)/4+1)
		tr.to[1] = uint16(random.Uint32())
		f := tr.frame(1)
		if !ipRight(f) {
			t.Fatalf("wrong IP checksum: %x", f)
		}
		// What the generator adds: any number, timestamp, trial and time.
		rtp := f[ethLen+ipLen+udpLen:]
		before := udpSum(f)
		binary.BigEndian.PutUint16(rtp[2:], uint16(random.Uint32()))
		binary.BigEndian.PutUint32(rtp[4:], random.Uint32())
		for i := 12; i < minSize; i += 4 {
			binary.NativeEndian.PutUint32(rtp[i:], random.Uint32())
		}
		check := ^fold(before + sum(rtp[2:8]) + sum(rtp[12:minSize]))
		binary.NativeEndian.PutUint16(f[ethLen+ipLen+6:], check)
		if !udpRight(f) {
			t.Fatalf("wrong UDP checksum: %x", f)
		}
	}
}

// newTestWire loads the programs, or skips the test.
func newTestWire(t *testing.T, tr traffic) *wire {
	t.Helper()
	w, err := newWire()
	if errors.Is(err, unix.EPERM) {
		t.Skip("SKIPPED: needs root, for BPF: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	if err := w.aim(tr); err != nil {
		t.Fatal(err)
	}
	w.plan.Run, w.plan.Length, w.run = 7, 1<<60, 7
	if err := errors.Join(w.objs.Current.Set(w.plan), w.objs.Run.Set(uint32(7))); err != nil {
		t.Fatal(err)
	}
	return w
}

// through runs a program on a frame and returns its verdict and the frame.
func through(t *testing.T, p *ebpf.Program, frame []byte) (uint32, []byte) {
	t.Helper()
	out := make([]byte, len(frame))
	verdict, err := p.Run(&ebpf.RunOptions{Data: frame, DataOut: out})
	if err != nil {
		t.Fatal(err)
	}
	return verdict, out
}

const xdpDrop, xdpPass, xdpRedirect = 1, 2, 4

func TestGenerator(t *testing.T) {
	for _, burst := range []int{1, 3} {
		tr := testTraffic()
		tr.burst = burst
		w := newTestWire(t, tr)
		numbers := make(map[uint32]uint16)
		var last uint64
		for n := range 20 {
			// What becomes of a frame on its way does not matter when it comes back.
			dirty := make([]byte, len(w.frame))
			copy(dirty, w.frame)
			for i := range ethLen + ipLen + udpLen {
				dirty[i] = 0xee
			}
			verdict, f := through(t, w.objs.Generate, dirty)
			if verdict != xdpRedirect {
				t.Fatalf("verdict %d", verdict)
			}
			i := n / burst % len(tr.to)
			rtp := f[ethLen+ipLen+udpLen:]
			if !ipRight(f) || !udpRight(f) {
				t.Fatalf("packet %d: wrong checksum: %x", n, f)
			}
			if got := binary.BigEndian.Uint16(f[ethLen+ipLen+2:]); got != tr.to[i] {
				t.Errorf("packet %d goes to port %d, not %d", n, got, tr.to[i])
			}
			ssrc, seq := binary.BigEndian.Uint32(rtp[8:]), binary.BigEndian.Uint16(rtp[2:])
			if ssrc != uint32(i+1) || seq != numbers[ssrc] || binary.BigEndian.Uint32(rtp[4:]) != uint32(seq)*160 {
				t.Errorf("packet %d: RTP %x, want number %d of stream %d", n, rtp[:12], numbers[ssrc], i+1)
			}
			numbers[ssrc]++
			if binary.NativeEndian.Uint32(rtp[12:]) != 7 {
				t.Errorf("packet %d is of another trial", n)
			}
			if at := binary.NativeEndian.Uint64(rtp[16:]); at <= last {
				t.Errorf("packet %d was sent at %d, the one before at %d", n, at, last)
			} else {
				last = at
			}
		}
	}
}

func TestGeneratorEnds(t *testing.T) {
	w := newTestWire(t, testTraffic())
	w.plan.Length = 0
	if err := w.objs.Current.Set(w.plan); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if verdict, _ := through(t, w.objs.Generate, w.frame); verdict != xdpDrop {
			t.Fatalf("verdict %d after the end", verdict)
		}
	}
	var m wireMade
	if err := w.objs.Progress.Get(&m); err != nil || m.Ended == 0 || m.Packets != 0 {
		t.Fatalf("%+v, %v", m, err)
	}
}

func TestGeneratorKeepsTime(t *testing.T) {
	w := newTestWire(t, testTraffic())
	w.plan.Interval = 3600e9 * 256 // one an hour
	if err := w.objs.Current.Set(w.plan); err != nil {
		t.Fatal(err)
	}
	for n, want := range []uint32{xdpRedirect, xdpDrop, xdpDrop} {
		if verdict, _ := through(t, w.objs.Generate, w.frame); verdict != want {
			t.Fatalf("packet %d: verdict %d, want %d", n, verdict, want)
		}
	}
}

func TestSink(t *testing.T) {
	udp := ethLen + ipLen
	for _, c := range []struct {
		name    string
		change  func([]byte)
		verdict uint32
		want    wireTally
	}{
		{"right", func([]byte) {}, xdpDrop, wireTally{Packets: 1, Verified: 1}},
		{"wrong payload", func(f []byte) { f[len(f)-1] ^= 1 }, xdpDrop, wireTally{Packets: 1, Verified: 1, Bad: 1}},
		{"wrong address", func(f []byte) { f[ethLen+12] ^= 1 }, xdpDrop, wireTally{Packets: 1, Verified: 1, Bad: 1}},
		{"wrong IP header", func(f []byte) { f[ethLen+8]-- }, xdpDrop, wireTally{Packets: 1, Verified: 1, Bad: 1}},
		{"no checksum", func(f []byte) { f[udp+6], f[udp+7] = 0, 0 }, xdpDrop, wireTally{Packets: 1, Verified: 1, Bad: 1}},
		{"longer than it is", func(f []byte) { f[udp+4] = 5 }, xdpDrop, wireTally{Packets: 1, Verified: 1, Bad: 1}},
		{"left to the card", func(f []byte) {
			ip := f[ethLen:]
			binary.BigEndian.PutUint16(f[udp+6:], rfc1071(ip[12:20], []byte{0, 17}, f[udp+4:udp+6]))
		}, xdpDrop, wireTally{Packets: 1, Unfinished: 1}},
		{"another trial", func(f []byte) { f[udp+udpLen+12]++ }, xdpDrop, wireTally{Strange: 1}},
		{"TCP", func(f []byte) { f[ethLen+9] = 6 }, xdpPass, wireTally{}},
	} {
		w := newTestWire(t, testTraffic())
		_, f := through(t, w.objs.Generate, w.frame)
		c.change(f)
		for _, p := range []struct {
			program *ebpf.Program
			tally   *ebpf.Variable
			delays  uint64
		}{{w.objs.Sink, w.objs.Sunk, c.want.Packets}, {w.objs.Discard, w.objs.Discarded, c.want.Packets}} {
			if verdict, _ := through(t, p.program, f); verdict != c.verdict {
				t.Errorf("%s: %v: verdict %d", c.name, p.program, verdict)
			}
			got, delays, err := w.received(p.tally)
			if err != nil {
				t.Fatal(err)
			}
			if c.want.Packets > 0 {
				c.want.Bytes = uint64(len(f))
			}
			if got != c.want {
				t.Errorf("%s: %v: %+v, want %+v", c.name, p.program, got, c.want)
			}
			var n uint64
			for _, d := range delays {
				n += d
			}
			if n != p.delays {
				t.Errorf("%s: %v: %d delays", c.name, p.program, n)
			}
		}
	}
}

package userpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// unit is what one message received holds: packets of size bytes, the last perhaps shorter.
type unit struct{ length, size int }

// TestQueue: whatever leaves in one piece arrives as the packets that it was made of, in order.
func TestQueue(t *testing.T) {
	equal := func(n, size int) (us []unit) {
		for range n {
			us = append(us, unit{size, size})
		}
		return us
	}
	for _, tt := range []struct {
		name  string
		units []unit
		// messages is how many the kernel is given, singly if it takes none in a piece.
		messages, singly int
	}{
		{"one", equal(1, 172), 1, 1},
		{"equal", equal(batch, 172), 1, batch},
		{"last is shorter", append(equal(9, 1200), unit{7, 7}), 1, 10},
		{"shorter in the middle", append(append(equal(3, 1200), unit{7, 7}), equal(3, 1200)...), 2, 7},
		{"then longer", append(equal(3, 172), equal(3, 1200)...), 2, 6},
		{"all different", []unit{{3, 3}, {4, 4}, {5, 5}}, 3, 3},
		{"empty", []unit{{0, 0}, {0, 0}, {5, 5}, {0, 0}, {5, 5}, {5, 5}}, 5, 6},
		{"long", equal(4, 30000), 2, 4},
		{"merged", []unit{{6000, 1200}, {1200, 1200}, {2500, 1200}, {1200, 1200}}, 2, 10},
		{"too many segments", []unit{{64 * 100, 100}, {100, 100}, {63 * 100, 100}}, 2, 128},
	} {
		for _, noGSO := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, refused %v", tt.name, noGSO), func(t *testing.T) {
				testQueue(t, tt.units, tt.messages, tt.singly, noGSO)
			})
		}
	}
}

func testQueue(t *testing.T, units []unit, messages, singly int, noGSO bool) {
	from, to := peerSocket(t, "127.0.5.7"), peerSocket(t, "127.0.6.7")
	if noGSO {
		// Without checksums the kernel refuses to cut.
		if err := unix.SetsockoptInt(from, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetsockoptInt(to, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20); err != nil {
		t.Fatal(err)
	}
	f := &media.Flow{Out: &media.Socket{FD: from}, To: media.SockaddrOf(socketAddr(t, to)), Counters: &media.Counters{}}
	e, q := &entry{}, &queue{}
	var want [][]byte
	for i, u := range units {
		b := bytes.Repeat([]byte{byte(i + 1)}, u.length)
		q.add(e, f, b, u.size)
		for rest := b; ; rest = rest[u.size:] {
			want = append(want, rest[:min(u.size, len(rest))])
			if len(rest) <= u.size {
				break
			}
		}
	}
	if q.n != messages {
		t.Errorf("%d messages, want %d", q.n, messages)
	}
	q.flush()
	buf := make([]byte, slot)
	for i, w := range want {
		if n, err := readAgain(to, buf); err != nil || !bytes.Equal(buf[:n], w) {
			t.Fatalf("packet %d of %d: %d bytes %v, want %d", i, len(want), n, err, len(w))
		}
	}
	if e.single != (noGSO && singly > messages) || len(want) != singly {
		t.Errorf("refused: %v; %d packets", e.single, len(want))
	}
}

func readAgain(fd int, b []byte) (int, error) {
	for {
		if n, err := unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

// rtp returns n RTP packets of size bytes, from sequence number seq on.
func rtp(seq, n, size int) []byte {
	b := make([]byte, n*size)
	for i := range n {
		p := b[i*size:]
		p[0] = 0x80
		binary.BigEndian.PutUint16(p[2:], uint16(seq+i))
		binary.BigEndian.PutUint32(p[4:], uint32(160*(seq+i)))
		p[11] = 7
	}
	return b
}

// openCall returns a lease between two peers' sockets, the first of which is connected to it.
func openCall(t *testing.T, r *media.Relay) (l pinhole.Lease, a, b int) {
	t.Helper()
	l, err := r.Open(context.Background(), pinhole.Request{Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}})
	if err != nil {
		t.Fatal(err)
	}
	a, b = peerSocket(t, "127.0.5.7"), peerSocket(t, "127.0.6.7")
	for s, fd := range []int{a, b} {
		at := socketAddr(t, fd)
		if err := l.Declare(pinhole.Side(s), pinhole.Remote{Addr: at, Source: at.Addr()}); err != nil {
			t.Fatal(err)
		}
	}
	to := l.Local(pinhole.Near).Addr
	if err := unix.Connect(a, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	return l, a, b
}

// TestMerged: a stream that comes in bursts is merged by the kernel after some of them, and neither its
// packets nor what is counted of them change.
func TestMerged(t *testing.T) {
	r, p := newRelay(t)
	serve(t, r)
	l, a, b := openCall(t, r)
	const size, each = 200, 20
	if err := unix.SetsockoptInt(a, unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
		t.Skipf("UDP_SEGMENT: %v", err)
	}
	buf := make([]byte, slot)
	seq := 0
	for ; seq < 10000; seq += each {
		last := size - seq%7 // the last packet of a burst may be shorter
		burst := rtp(seq, each, size)
		if _, err := unix.Write(a, burst[:len(burst)-size+last]); err != nil {
			t.Fatal(err)
		}
		for i := range each {
			want := burst[i*size : min((i+1)*size, len(burst)-size+last)]
			if n, err := readAgain(b, buf); err != nil || !bytes.Equal(buf[:n], want) {
				t.Fatalf("packet %d: %d bytes, %v, want %d", seq+i, n, err, len(want))
			}
		}
	}
	if st := l.Close().From[pinhole.Near]; st.Packets != uint64(seq) || st.Lost != 0 || st.Dropped != 0 {
		t.Errorf("%+v", st)
	}
	if p.merges.Load() == 0 {
		t.Error("the kernel was never asked to merge")
	}
}

// TestReceiveQueue: what the kernel had no room for is counted.
func TestReceiveQueue(t *testing.T) {
	r, _ := newRelay(t)
	l, a, _ := openCall(t, r)
	const sent = 3000
	for i := range sent {
		if _, err := unix.Write(a, rtp(i, 1, 172)); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, r)
	for end := time.Now().Add(20 * time.Second); ; <-time.After(time.Millisecond) {
		// What was dropped comes with the next packet that is not.
		if _, err := unix.Write(a, rtp(sent, 1, 172)); err != nil {
			t.Fatal(err)
		}
		st := r.Pinholes()[0].Ends[pinhole.Near].Stats
		if n := st.Dropped["receive_queue"]; n > 0 && n+st.Packets >= sent {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v", st)
		}
	}
	if st := l.Close().From[pinhole.Near]; st.Packets == 0 || st.Packets >= sent {
		t.Errorf("%+v", st)
	}
}

// newRelay returns a relay on loopback that does not serve yet, and its path.
func newRelay(t *testing.T) (*media.Relay, *Path) {
	t.Helper()
	p, err := New(1)
	if err != nil {
		t.Fatal(err)
	}
	nets := pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.0.5.1")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("127.0.6.1")}},
	}
	pin := media.DefaultPinholeConfig()
	pin.PerOwner, pin.Quarantine = 1000, 0
	r, err := media.New(pin, media.DefaultConfig(), nets, p, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return r, p
}

// serve lets the relay serve until the test ends.
func serve(t *testing.T, r *media.Relay) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

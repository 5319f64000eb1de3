package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func testFront(t testing.TB, flows ...*Flow) *Channels {
	t.Helper()
	c := &Channels{clients: newChannelTable(), counters: &Counters{}}
	c.inbox.init(1 << 12)
	for i, f := range flows {
		c.clients.set(channelKeyOf(&f.From, uint16(0x4000+i)), f)
	}
	return c
}

// TestChannelTable: all are found while it grows and shrinks, and nothing else is.
func TestChannelTable(t *testing.T) {
	table := newChannelTable()
	key := func(i int) channelKey {
		client := SockaddrOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), uint16(i/256)))
		return channelKeyOf(&client, 0x4000)
	}
	flows := make([]Flow, 5000)
	for i := range flows {
		table.set(key(i), &flows[i])
		table.set(key(i), &flows[i]) // again, which is no second one
	}
	if n := len(*table.buckets.Load()); table.n != len(flows) || n < len(flows)/2 {
		t.Errorf("%d in %d buckets", table.n, n)
	}
	for i := range flows {
		if table.get(key(i)) != &flows[i] {
			t.Fatalf("%d is not found", i)
		}
		table.set(key(i), nil)
		if table.get(key(i)) != nil {
			t.Fatalf("%d is found", i)
		}
	}
	if n := len(*table.buckets.Load()); table.n != 0 || n != minBuckets {
		t.Errorf("%d in %d buckets", table.n, n)
	}
}

// TestChannelKey: the family is part of the key's meaning, and so are address, port and number.
func TestChannelKey(t *testing.T) {
	seen := make(map[channelKey]string)
	for _, a := range []string{"192.0.2.1:5", "192.0.2.1:6", "192.0.2.2:5", "[2001:db8::1]:5", "[::c000:201]:5"} {
		for _, number := range []uint16{0x4000, 0x4001} {
			sa := SockaddrOf(netip.MustParseAddrPort(a))
			k := channelKeyOf(&sa, number)
			if other, ok := seen[k]; ok {
				t.Errorf("%s %#x is the same as %s", a, number, other)
			}
			seen[k] = a
		}
	}
}

func TestMalformedChannelData(t *testing.T) {
	from := SockaddrOf(nearPhone)
	c := testFront(t, &Flow{From: from, Counters: &Counters{}})
	if f, _ := c.Pick([]byte{0x40, 0, 0, 2, 1}, &from); f != nil || c.malformed.Load() != 1 {
		t.Errorf("got %v, %d are malformed", f, c.malformed.Load())
	}
	// It must not go to the reader, who would find it no less malformed.
	if c.inbox.size != 0 {
		t.Error("it was kept")
	}
}

// TestInbox: what is kept is bounded, and is there again when it has been read.
func TestInbox(t *testing.T) {
	c, src := testFront(t), SockaddrOf(nearPhone)
	kept := 0
	for ; c.inbox.put(make([]byte, 1000), &src); kept++ {
		if kept > 100 {
			t.Fatal("it takes all")
		}
	}
	if c.Pick(make([]byte, 1000), &src); c.counters.dropped[ReceiveQueue].Load() != 1 {
		t.Error("what did not fit was not counted")
	}
	b := make([]byte, 10)
	for range kept {
		if n, from, err := c.inbox.get(b); n != len(b) || from != nearPhone || err != nil {
			t.Fatal(n, from, err)
		}
	}
	if c.inbox.size != 0 || !c.inbox.put(nil, &src) {
		t.Errorf("%d bytes are left", c.inbox.size)
	}
}

func TestInboxDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, src := testFront(t), SockaddrOf(nearPhone)
		q, start := &c.inbox, time.Now()
		q.setDeadline(start.Add(time.Minute))
		if _, _, err := q.get(nil); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		q.setDeadline(time.Time{})
		time.AfterFunc(time.Hour, func() { q.put([]byte("late"), &src) })
		if n, _, err := q.get(make([]byte, 9)); n != 4 || err != nil {
			t.Error(n, err)
		}
		q.setDeadline(time.Now().Add(time.Hour))
		time.AfterFunc(time.Second, q.close)
		if _, _, err := q.get(nil); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if q.put(nil, &src) {
			t.Error("it takes something when it is closed")
		}
	})
}

// FuzzChannelData: data is what the header says and nothing else, and comes from who has the channel.
func FuzzChannelData(f *testing.F) {
	for _, s := range []string{"", "\x40", "\x40\x00\x00\x00", "\x40\x00\x00\x01a", "\x40\x00\x00\x01a\x00\x00\x00", "\x40\x00\xff\xffa", "\x40\x01\x00\x01a", "\x00\x01\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		from, other := SockaddrOf(nearPhone), SockaddrOf(farPhone)
		flow := &Flow{From: from, Counters: &Counters{}}
		c := testFront(t, flow)
		if got, _ := c.Pick(b, &other); got != nil {
			t.Fatal("another client has the channel too")
		}
		got, data := c.Pick(b, &from)
		bound := len(b) >= ChannelHeader && binary.BigEndian.Uint16(b) == 0x4000
		fits := bound && int(binary.BigEndian.Uint16(b[2:])) <= len(b)-ChannelHeader
		if (got != nil) != fits || got != nil && got != flow || (c.malformed.Load() == 1) != (bound && !fits) {
			t.Fatalf("%x: %v", b, got)
		}
		if !fits {
			return
		}
		head, ok := (&Flow{Channel: 0x4000}).Header(len(data))
		if again := append(head[:], data...); !ok || !bytes.HasPrefix(b, again) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

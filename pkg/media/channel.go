package media

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
	"time"
)

// Channels of TURN (RFC 8656 §12). A front is a socket to which clients send, a client's port the one to which peers do:
//
//	client ─► ChannelData ─► front ─► Channels.Pick ─► flow ─► data ─► the port ─► peer
//	client ◄─ ChannelData ◄─ front ◄─ Flow.Channel ◄─ flow ◄─ data ◄─ the port ◄─ peer
//
// What belongs to no channel is kept for who reads the front or the port (inbox).

// ChannelHeader is how many octets go before the data of a channel: its number and the length, in network order.
const ChannelHeader = 4

// Channels finds the flows of a socket at which channels begin or end, and keeps what belongs to none.
type Channels struct {
	// clients are the flows of a front, nil at a port.
	clients *channelTable
	// peers are the flows of a port, replaced as a whole.
	peers atomic.Pointer[[]*Flow]
	inbox inbox
	// counters count what came from where nobody has a channel, and what could not be sent there.
	counters *Counters
	// malformed counts packets that are shorter than they say.
	malformed atomic.Uint64
}

// Pick returns the flow of packet b that came from src, and the data in it, or nil if it belongs to no channel
// or is malformed; then it has been kept or counted.
func (c *Channels) Pick(b []byte, src *Sockaddr) (*Flow, []byte) {
	if c.clients == nil {
		for _, f := range *c.peers.Load() {
			if f.From.Equal(src) {
				return f, b
			}
		}
	} else if len(b) >= ChannelHeader && b[0]>>6 == 1 {
		if f := c.clients.get(channelKeyOf(src, binary.BigEndian.Uint16(b))); f != nil {
			// Over UDP the padding need not be there, and may be (RFC 8656 §12.5).
			n := int(binary.BigEndian.Uint16(b[2:]))
			if n > len(b)-ChannelHeader {
				c.malformed.Add(1)
				return nil, nil
			}
			return f, b[ChannelHeader : ChannelHeader+n]
		}
	}
	if !c.inbox.put(b, src) {
		c.counters.Drop(ReceiveQueue, 1)
	}
	return nil, nil
}

// Unreachable counts an ICMP error that answered a packet sent from the socket.
func (c *Channels) Unreachable(now time.Time) { c.counters.Unreachable(now) }

// channelKey names a channel at a front: the client's address, IPv4 mapped into IPv6, its port, and the number.
type channelKey [20]byte

func channelKeyOf(client *Sockaddr, number uint16) (k channelKey) {
	if client.v4() {
		k[10], k[11] = 0xff, 0xff
		copy(k[12:16], client.Raw[4:8])
	} else {
		copy(k[:16], client.Raw[8:24])
	}
	copy(k[16:18], client.Raw[2:4])
	binary.BigEndian.PutUint16(k[18:], number)
	return k
}

// channelTable finds flows by channel. Anybody may read it, without a lock; writers take turns. Clients choose the
// keys, so they must not know the seed.
type channelTable struct {
	seed    maphash.Seed
	buckets atomic.Pointer[[]channelBucket]
	n       int
}

type channelBucket = atomic.Pointer[channelNode]

// channelNode never changes once it can be found.
type channelNode struct {
	key  channelKey
	flow *Flow
	next *channelNode
}

// minBuckets is a power of two, as every number of buckets.
const minBuckets = 64

func newChannelTable() *channelTable {
	t := &channelTable{seed: maphash.MakeSeed()}
	b := make([]channelBucket, minBuckets)
	t.buckets.Store(&b)
	return t
}

func (t *channelTable) bucket(buckets []channelBucket, k *channelKey) *channelBucket {
	return &buckets[maphash.Bytes(t.seed, k[:])&uint64(len(buckets)-1)]
}

func (t *channelTable) get(k channelKey) *Flow {
	for n := t.bucket(*t.buckets.Load(), &k).Load(); n != nil; n = n.next {
		if n.key == k {
			return n.flow
		}
	}
	return nil
}

// set puts the flow of a channel in, nil takes it out.
func (t *channelTable) set(k channelKey, f *Flow) {
	b := t.bucket(*t.buckets.Load(), &k)
	var kept *channelNode
	t.n++
	for n := b.Load(); n != nil; n = n.next {
		if n.key == k {
			t.n--
		} else {
			kept = &channelNode{n.key, n.flow, kept}
		}
	}
	if f != nil {
		kept = &channelNode{k, f, kept}
	} else {
		t.n--
	}
	b.Store(kept)
	switch buckets := len(*t.buckets.Load()); {
	case t.n > buckets:
		t.resize(2 * buckets)
	case t.n < buckets/8 && buckets > minBuckets:
		t.resize(buckets / 2)
	}
}

// resize moves all to a new set of buckets, which readers find when it is complete.
func (t *channelTable) resize(size int) {
	buckets := make([]channelBucket, size)
	for i := range *t.buckets.Load() {
		for n := (*t.buckets.Load())[i].Load(); n != nil; n = n.next {
			b := t.bucket(buckets, &n.key)
			b.Store(&channelNode{n.key, n.flow, b.Load()})
		}
	}
	t.buckets.Store(&buckets)
}

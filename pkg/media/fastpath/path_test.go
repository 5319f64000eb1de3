package fastpath

import (
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// TestCarried: every packet of a confirmed call passes in the kernel, with the right header and
// checksum, and none comes to a socket of the gateway.
func TestCarried(t *testing.T) {
	needKernel(t)
	for _, tt := range []struct {
		name     string
		families []pinhole.Family
		rig      func(*testing.T) *rig
	}{
		{"v4", []pinhole.Family{4, 4}, newTCRig},
		{"v6", []pinhole.Family{6, 6}, newTCRig},
		{"v4 to v6", []pinhole.Family{4, 6}, newTCRig},
		{"clsact", []pinhole.Family{4, 4}, func(t *testing.T) *rig { return newRig(t, rigOptions{options: options{clsact: true}}) }},
		{"xdp v4", []pinhole.Family{4, 4}, newXDPRig},
		{"xdp v6", []pinhole.Family{6, 6}, newXDPRig},
		{"xdp v4 to v6", []pinhole.Family{4, 6}, newXDPRig},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.rig(t)
			c := r.call(pinhole.RTP, tt.families...)
			c.offload()
			before, runs := datagrams(t), r.runs()
			const n = 100
			for range n {
				for _, s := range []pinhole.Side{near, far} {
					got := c.pass(s, c.rtp(s))
					if got.tos != dscp<<2 || got.ttl != 63 {
						t.Fatalf("tos %#x, ttl %d", got.tos, got.ttl)
					}
				}
			}
			if after := datagrams(t); after != before {
				t.Errorf("%d packets came to the gateway's sockets", after-before)
			}
			// Neighbours are looked for all the time, but that is little.
			if ran := r.runs() - runs; (ran < n) != (r.want == "xdp") {
				t.Errorf("tc's program ran %d times", ran)
			}
			for _, s := range []pinhole.Side{near, far} {
				if got := c.moved(s); got != n {
					t.Errorf("side %d: %d packets carried, want %d", s, got, n)
				}
				st := c.info().Ends[s].Stats
				if st.Packets != n+1 || st.Bytes != 172*(n+1) || st.Lost != 0 {
					t.Errorf("side %d: %+v", s, st)
				}
			}
			sum := c.lease.Close()
			if sum.From[near].Packets != n+1 || sum.From[far].MOS < 4 {
				t.Errorf("%+v", sum)
			}
			var k tcKey
			if err := r.path.kern.objs.Flows.NextKey(nil, &k); err == nil {
				t.Error("a flow is left in the kernel")
			}
		})
	}
}

// TestLease: a daemon that does nothing any more is not missed until the lease ends; then nothing is
// forwarded, and media goes on by the sockets if there is somebody.
func TestLease(t *testing.T) { rigs(t, testLease) }

func testLease(t *testing.T, newRig func(*testing.T) *rig) {
	r := newRig(t)
	c := r.call(pinhole.RTP)
	c.offload()
	renew := func(in time.Duration) {
		at, err := readClock()
		must(t, err)
		at.ns += uint64(in) - uint64(leaseTime)
		must(t, r.path.kern.renew(at))
	}
	// The relay would renew it; under this lock it cannot.
	r.path.mu.Lock()
	renew(-time.Millisecond)
	before := c.moved(near)
	c.pass(near, c.rtp(near))
	if got := c.moved(near); got != before {
		t.Error("carried after the end of the lease")
	}
	renew(leaseTime)
	c.pass(near, c.rtp(near))
	if got := c.moved(near); got != before+1 {
		t.Errorf("%d carried with a new lease, want 1", got-before)
	}
	r.path.mu.Unlock()
	if st := c.info().Ends[near].Stats; st.Packets != 3 {
		t.Errorf("%+v", st)
	}
}

// TestChanges: a flow leaves the kernel when signalling says something new, and comes back.
func TestChanges(t *testing.T) {
	r := newRig(t, rigOptions{})
	c := r.call(pinhole.RTP)
	c.offload()
	c.pass(near, c.rtp(near))
	moved := r.hosts[far].peer(r.hosts[far].addrs[0])
	must(t, c.lease.Declare(far, pinhole.Remote{Addr: moved.addr(), Source: moved.addr().Addr()}))
	if i := c.info(); i.Path != "user" || i.Ends[far].Why == "" {
		t.Errorf("after a new address: %+v", i)
	}
	c.peers[far].send(c.local[far], c.rtp(far)) // late
	c.peers[far] = moved
	c.pass(near, c.rtp(near))
	c.offload()
	c.pass(near, c.rtp(near))
	// The same again changes nothing.
	at := c.peers[near].addr()
	must(t, c.lease.Declare(near, pinhole.Remote{Addr: at, Source: at.Addr(), Quiet: true}))
	if i := c.info(); i.Path != "tc" {
		t.Errorf("after the same address: %+v", i)
	}
	fork, err := c.lease.Fork()
	must(t, err)
	c.waitPath("user")
	c.pass(far, c.rtp(far))
	fork.Close()
	c.waitPath("tc")
	// 172 bytes each: first, one carried, one to the new address, first, one carried.
	if st := c.info().Ends[near].Stats; st.Packets != 5 || st.Bytes != 5*172 || st.Lost != 0 {
		t.Errorf("%+v", st)
	}
}

// TestMany: calls that come and go at the same time leave nothing behind, and each has its own figures.
func TestMany(t *testing.T) {
	r := newRig(t, rigOptions{})
	flows := func() (n int) {
		r.path.mu.Lock()
		defer r.path.mu.Unlock()
		must(t, r.path.kern.each(func(tcKey, *tcFlow) { n++ }))
		return n
	}
	for range 3 {
		const n = 60
		var calls []*call
		for range n {
			c := r.call(pinhole.RTP)
			c.pass(near, c.rtp(near))
			c.pass(far, c.rtp(far))
			calls = append(calls, c)
		}
		for _, c := range calls {
			c.waitPath("tc")
		}
		if got := flows(); got != 2*n {
			t.Errorf("%d flows, want %d", got, 2*n)
		}
		for i, c := range calls {
			for range i % 7 {
				c.pass(near, c.rtp(near))
			}
		}
		for i, c := range calls {
			if st := c.lease.Close().From[near]; int(st.Packets) != 1+i%7 || st.Bytes != 172*st.Packets || st.Lost != 0 {
				t.Errorf("call %d: %+v", i, st)
			}
		}
		if got := flows(); got != 0 {
			t.Errorf("%d flows are left", got)
		}
	}
	r.path.mu.Lock()
	defer r.path.mu.Unlock()
	if len(r.path.streams)+len(r.path.byKey)+len(r.path.dirty)+len(r.path.known) != 0 || len(r.path.bySlot) != len(r.path.free) {
		t.Errorf("left: %d streams, %d keys, %d dirty, %d ways, %d places of %d free", len(r.path.streams),
			len(r.path.byKey), len(r.path.dirty), len(r.path.known), len(r.path.free), len(r.path.bySlot))
	}
}

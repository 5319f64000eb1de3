package fastpath

import (
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

// TestCarried: every packet of a confirmed call passes in the kernel, with the right header and
// checksum, and none comes to a socket of the gateway.
func TestCarried(t *testing.T) {
	for _, tt := range []struct {
		name     string
		families []pinhole.Family
		o        options
	}{
		{"v4", []pinhole.Family{4, 4}, options{}},
		{"v6", []pinhole.Family{6, 6}, options{}},
		{"v4 to v6", []pinhole.Family{4, 6}, options{}},
		{"clsact", []pinhole.Family{4, 4}, options{clsact: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.o)
			c := r.call(pinhole.RTP, tt.families...)
			c.offload()
			before := datagrams(t)
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

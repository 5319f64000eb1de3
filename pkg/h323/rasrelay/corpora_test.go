package rasrelay

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/ras"
)

// TestCorpora plays the captures of two real stacks and a real gatekeeper through the relay: each request
// comes out at the gatekeeper, each reply at who has asked, without the other side's address and else unchanged.
func TestCorpora(t *testing.T) {
	root := tpkttest.Corpora(t, "../../..", "h323-lab")
	files, _ := filepath.Glob(filepath.Join(root, "*.pcap"))
	played, replies := 0, 0
	for _, f := range files {
		c, err := tpkttest.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(f), func(t *testing.T) {
			var w *world
			var r *Relay
			forwarded := map[uint16]uint16{} // the recorded number to that of the relay
			for _, d := range c.UDP {
				m, err := ras.NewCodec().Decode(d.Payload)
				if d.Dst.Port() != 1719 && d.Src.Port() != 1719 || err != nil || m.Kind == ras.SCI || m.Kind == ras.SCR {
					continue // of H.460.18, which the relay takes out
				}
				if w == nil {
					w = newWorld(t)
					w.relay.cfg.Gatekeeper, w.relay.cfg.PerHost = d.Dst, 10
					w.relay.ras = d.Dst
					r = w.relay
				}
				gk := r.cfg.Gatekeeper
				// The recorded host that plays the gatekeeper is the one that was asked first.
				if d.Dst == gk {
					got, ok := r.Handle(begin, "inside", insideRAS, d.Src, d.Payload)
					if !ok || got.To != gk {
						t.Fatalf("%s of %v: %v", m.Kind, d.Src, r.Outcomes)
					}
					forwarded[m.SeqNum()] = restored(t, m, got.Data, d.Src.Addr())
					played++
				} else if d.Src == gk {
					seq, asked := forwarded[m.SeqNum()]
					if !asked {
						continue
					}
					got, ok := r.Handle(begin, "outside", outsideRAS, gk, numbered(t, d.Payload, seq))
					if !ok || got.To != d.Dst {
						t.Fatalf("%s to %v went to %v: %v", m.Kind, d.Dst, got.To, r.Outcomes)
					}
					restored(t, m, got.Data, gk.Addr())
					replies++
				}
			}
			if w != nil && r.Outcomes[Malformed]+r.Outcomes[Limit]+r.Outcomes[Address] != 0 {
				t.Errorf("outcomes %v", r.Outcomes)
			}
		})
	}
	if played < 50 || replies < 50 {
		t.Errorf("only %d requests and %d replies", played, replies)
	}
	t.Logf("%d requests, %d replies", played, replies)
}

// numbered returns a message with another number.
func numbered(t *testing.T, b []byte, seq uint16) []byte {
	t.Helper()
	c := ras.NewCodec()
	m, err := c.Decode(b)
	if err == nil {
		err = c.Editor().SetInt(m.Tree.Child(m.Body, "requestSeqNum"), int64(seq))
	}
	out, err2 := c.Apply(nil)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return out
}

// restored checks that what came out is free of a host's address and, with numbers and addresses put back, is what
// came in, if nothing was removed or added. It returns the number.
func restored(t *testing.T, in *ras.Message, b []byte, host netip.Addr) uint16 {
	t.Helper()
	octets := host.As4()
	if bytes.Contains(b, octets[:]) {
		t.Errorf("%s: %v is still in %x", in.Kind, host, b)
	}
	c := ras.NewCodec()
	out, err := c.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	_, lived := in.TimeToLive()
	was, now := in.Addresses(nil), out.Addresses(nil)
	if len(was) != len(now) || len(in.Features(nil)) != len(out.Features(nil)) || in.Kind == ras.RCF && !lived {
		return out.SeqNum()
	}
	for i, a := range now {
		if err := a.Set(c.Editor(), out.Tree, was[i].AddrPort); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Editor().SetInt(out.Tree.Child(out.Body, "requestSeqNum"), int64(in.SeqNum())); err != nil {
		t.Fatal(err)
	}
	back, err := c.Apply(nil)
	if err != nil || !bytes.Equal(back, append(in.Tree.Source(), in.Tree.Rest()...)) {
		t.Errorf("%s: more than addresses has changed: %v\n%x\n%x", in.Kind, err, in.Tree.Source(), b)
	}
	return out.SeqNum()
}

// FuzzRelay: sequences of anything, from either side, neither panic nor grow what is kept beyond its bounds. Each
// message of the input is its length in two octets, who sends it, and its octets.
func FuzzRelay(f *testing.F) {
	frame := func(who byte, b []byte) []byte { return append([]byte{who, byte(len(b) >> 8), byte(len(b))}, b...) }
	if root, ok := tpkttest.Find("../../..", "h323-lab"); ok {
		for _, name := range []string{"ras_helper-capA.pcap", "gk_in-capA.pcap", "gk_h46018-capA.pcap"} {
			c, err := tpkttest.Read(filepath.Join(root, name))
			if err != nil {
				f.Fatal(err)
			}
			var seed []byte
			for _, d := range c.UDP {
				if d.Dst.Port() == 1719 {
					seed = append(seed, frame(0, d.Payload)...)
				} else if d.Src.Port() == 1719 {
					seed = append(seed, frame(2, d.Payload)...)
				}
			}
			f.Add(seed)
		}
	}
	f.Add(frame(1, []byte{0x0e, 0x40, 0x07}))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t)
		now := begin
		for len(b) >= 3 {
			who, n := b[0], min(int(b[1])<<8|int(b[2]), len(b)-3)
			data := b[3 : 3+n]
			b = b[3+n:]
			now = now.Add(time.Duration(who>>2) * time.Second)
			switch who & 3 {
			case 0:
				w.relay.Handle(now, "inside", insideRAS, alice, data)
			case 1:
				w.relay.Handle(now, "inside", insideRAS, bob, data)
			case 2:
				w.relay.Handle(now, "outside", outsideRAS, remoteGK, data)
			default:
				w.relay.Handle(now, "outside", outsideRAS, bob, data)
			}
		}
		if len(w.relay.table.byAddr) > 3 || w.opened-w.closed != len(w.relay.table.byAddr) || len(w.relay.pending) > maxPending {
			t.Errorf("%d endpoints, %d doors, %d pending", len(w.relay.table.byAddr), w.opened-w.closed, len(w.relay.pending))
		}
		w.relay.Sweep(now.Add(200 * 365 * 24 * time.Hour))
		if len(w.relay.pending)+len(w.relay.table.byAddr)+len(w.relay.table.byID)+len(w.relay.table.byRAS)+len(w.relay.table.byAlias)+
			len(w.relay.table.calls)+len(w.relay.routes)+len(w.relay.asked)+len(w.relay.perHost) != 0 {
			t.Error("something is kept for ever")
		}
		for _, id := range []h225.ID{{}, {1}} {
			if _, ok := w.relay.Admitted(now, alice.Addr(), id); ok {
				t.Error("admitted for ever")
			}
		}
	})
}

package t120

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/t120/gcc"
	"edged.dev/edged/pkg/t120/x224"
)

// outcome is what a front made of a connection.
type outcome struct {
	stage stage
	call  Call
	rdp   bool
}

// replay gives both streams of a connection to a front, each up to the TPKT that waits for the other side, and
// compares what comes out with what went in. It returns how far the front came; ok is false if it refused.
func replay(t *testing.T, name string, a, b []byte, piece int) (out outcome, err error) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.RDP = true
	f := newFront(&cfg, Call{}, func(*Call, bool) error { return nil }, func(int) (gcc.Translate, bool) {
		return func(a netip.Addr) (netip.Addr, bool) { return a, false }, true
	})
	in := [2][]byte{a, b}
	var sent, got [2][]byte
	var split [2]tpkt.Splitter
	step := func(side int) bool {
		for {
			p, ok, err2 := split[side].Next()
			if err2 != nil {
				err = err2
				return false
			}
			if ok {
				var part []byte
				sent[side], _ = tpkt.Append(sent[side], p.Second, p.Payload)
				part, err = f.receive(side, p)
				got[side] = append(got[side], part...)
				return err == nil
			}
			if len(in[side]) == 0 {
				return false
			}
			n := min(piece, len(in[side]))
			split[side].Push(in[side][:n])
			in[side] = in[side][n:]
		}
	}
	turn := 0
	for f.stage != opaque && err == nil {
		switch {
		case f.stage == wantRequest, f.stage == wantConnect:
			turn = 0
		case f.stage == wantConfirm, f.stage == wantAnswer:
			turn = 1
		}
		if !step(turn) && (err != nil || f.stage != open || !step(1-turn)) {
			break
		}
	}
	for i := range got {
		if err == nil && len(f.held) == 0 && !bytes.Equal(got[i], sent[i]) {
			t.Errorf("%s in pieces of %d: side %d: %d octets became %d", name, piece, i, len(sent[i]), len(got[i]))
		}
	}
	return outcome{f.stage, f.call, f.info.RDP}, err
}

// TestCorpora replays captures of conferences and terminal sessions: what is not changed stays octet by octet,
// in pieces of any size; what is another protocol with the same transport is refused after that.
func TestCorpora(t *testing.T) {
	dir := tpkttest.Corpora(t, "../..", ".")
	var files []string
	for _, pattern := range []string{"t120/*.pcap", "h323-lab/rdp-cap.pcap", "h323-lab/*t120*.pcap"} {
		list, _ := filepath.Glob(filepath.Join(dir, pattern))
		files = append(files, list...)
	}
	conferences, sessions, sealed, others := 0, 0, 0, 0
	for _, file := range files {
		c, err := tpkttest.Read(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range c.TCP {
			i := slices.IndexFunc(c.TCP, func(b *tpkttest.Stream) bool { return b.Src == a.Dst && b.Dst == a.Src })
			if !requests(a.Data) || i < 0 {
				continue
			}
			for _, piece := range []int{1 << 20, 1} {
				got, err := replay(t, filepath.Base(file), a.Data, c.TCP[i].Data, piece)
				switch {
				case a.Dst.Port() == 102: // S7 and MMS
					others++
					if got.stage > wantAnswer {
						t.Errorf("%s: came to %d: %v", file, got.stage, err)
					}
				case err != nil:
					t.Errorf("%s %v: %v at %d", file, a.Src, err, got.stage)
				case got.rdp:
					sessions++
				case got.stage == opaque:
					sealed++
				case got.stage == open:
					conferences++
				}
			}
		}
	}
	t.Logf("conferences %d, terminal sessions %d, under TLS %d, other protocols refused %d", conferences/2, sessions/2, sealed/2, others/2)
	if conferences < 12 || sessions < 8 || sealed < 6 || others < 4 {
		t.Error("too few were found")
	}
}

// requests tells whether a stream begins with a CR.
func requests(b []byte) bool {
	if len(b) < 11 || b[0] != 3 {
		return false
	}
	p, err := x224.Parse(b[4:min(len(b), int(b[2])<<8|int(b[3]))])
	return err == nil && p.Kind == x224.ConnectionRequest
}

// FuzzFront gives arbitrary streams to a front: no panic, bounded memory, and while it accepts what comes it
// returns what went in, but for what it holds.
func FuzzFront(f *testing.F) {
	packet := func(payload []byte) []byte {
		return append([]byte{3, 0, byte((len(payload) + 4) >> 8), byte(len(payload) + 4)}, payload...)
	}
	dt := func(user []byte) []byte { return packet(x224.AppendData(nil, user)) }
	cc := packet([]byte{6, 0xd0, 0, 9, 0, 1, 0})
	f.Add(append(packet(request), dt(connectInitial(joinRequest(f, "Staff", "Alice")))...), append(slices.Clone(cc), dt(connectResponse(1, createResponse(f)))...))
	f.Add(append(packet(request), dt(connectAdditional(3))...), append(slices.Clone(cc), dt([]byte{0x7f, 0x68, 3, 0x0a, 1, 0})...))
	f.Add(packet([]byte{0x0e, 0xe0, 0, 0, 0, 9, 0, 1, 0, 8, 0, 3, 0, 0, 0}), packet([]byte{0x0e, 0xd0, 0, 9, 0, 1, 0, 2, 0, 8, 0, 1, 0, 0, 0}))
	f.Add(dt(sendData(addRequest(f, "10.77.1.2"))), cc)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		replay(t, "fuzz", a, b, 1<<20)
	})
}

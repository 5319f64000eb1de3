package h245_test

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h245"
)

func mediaName(m h245.Media) string {
	return [...]string{"none", "audio", "video", "data", "t120", "other"}[m]
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// seeds are messages of real stacks, with addresses for documentation.
func seeds() map[string]string {
	return map[string]string{
		"olcack": "22 c0 0064 02 80 13 5c 00 00 cb007102 1388 00 cb007102 1389 01 01 00",
		"t120": "03 c0 0064 10 18 30 01 00 80 0c 96 a8 80 03 00 00 03 50 18 30 01 00 80 0c 96 a8 80 03 00 00 03 01 0c c2 00" +
			"cb007101 05df 00 80 01 00",
		"fastStart": "40 0000 06 04 01 00 4c 20 13 80 11 1c 00 01 00 cb007101 1388 00 cb007101 1389",
	}
}

func ap(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

// brief is a Channel without what only its tree understands.
func brief(c h245.Channel) map[string]any {
	return map[string]any{
		"number": c.Number, "session": c.SessionID, "both": c.Bidirectional, "setup": c.SetupProc,
		"forward": mediaName(c.Forward.Media) + " " + c.Forward.Codec, "reverse": mediaName(c.Reverse.Media) + " " + c.Reverse.Codec,
		"fmc": c.Forward.MediaChannel.AddrPort, "fmcc": c.Forward.MediaControlChannel.AddrPort,
		"rmc": c.Reverse.MediaChannel.AddrPort, "rmcc": c.Reverse.MediaControlChannel.AddrPort,
		"stack": c.SeparateStack.AddrPort,
	}
}

func TestChannels(t *testing.T) {
	for _, c := range []struct {
		name string
		want map[string]any
	}{
		{"olcack", map[string]any{
			"number": uint16(101), "session": uint8(1), "both": false, "setup": "", "forward": "none ", "reverse": "none ",
			"fmc": ap("203.0.113.2:5000"), "fmcc": ap("203.0.113.2:5001"), "rmc": ap(""), "rmcc": ap(""), "stack": ap(""),
		}},
		{"t120", map[string]any{
			"number": uint16(101), "session": uint8(3), "both": true, "setup": "originateCall", "forward": "t120 t120", "reverse": "t120 t120",
			"fmc": ap(""), "fmcc": ap(""), "rmc": ap(""), "rmcc": ap(""), "stack": ap("203.0.113.1:1503"),
		}},
		{"fastStart", map[string]any{
			"number": uint16(1), "session": uint8(1), "both": false, "setup": "", "forward": "none ", "reverse": "audio g711Alaw64k",
			"fmc": ap(""), "fmcc": ap(""), "rmc": ap("203.0.113.1:5000"), "rmcc": ap("203.0.113.1:5001"), "stack": ap(""),
		}},
	} {
		b := unhex(t, seeds()[c.name])
		var ch h245.Channel
		var ok bool
		if c.name == "fastStart" {
			tree, err := h245.NewDecoder().Decode(schema.H245OpenLogicalChannel, b)
			if err != nil {
				t.Fatal(err)
			}
			ch, ok = h245.ChannelAt(tree, tree.Root())
		} else {
			m, rest, err := h245.Decode(h245.NewDecoder(), b)
			if err != nil || len(rest) > 0 {
				t.Fatalf("%s: %v, rest %x", c.name, err, rest)
			}
			ch, ok = m.Channel()
		}
		if d := cmp.Diff(c.want, brief(ch), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || d != "" {
			t.Errorf("%s: %t (-want +got):\n%s", c.name, ok, d)
		}
	}
}

// TestAppend: messages of our own are what the real stacks send.
func TestAppend(t *testing.T) {
	media := func(port uint16) per.Value {
		return h245.MediaAddress(netip.AddrPortFrom(netip.MustParseAddr("203.0.113.2"), port))
	}
	got, err := h245.Append(nil, "response", h245.OpenLogicalChannelAck, per.Fields(
		per.F("forwardLogicalChannelNumber", per.Number(101)),
		per.F("forwardMultiplexAckParameters", per.Alternative("h2250LogicalChannelAckParameters", per.Fields(
			per.F("sessionID", per.Number(1)), per.F("mediaChannel", media(5000)), per.F("mediaControlChannel", media(5001)),
			per.F("flowControlToZero", per.Truth(false)))))))
	if want := unhex(t, seeds()["olcack"]); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%v\n got %x\nwant %x", err, got, want)
	}
	// H.239 and H.460.19 parameters: what is put in is found.
	v := h245.Traversal{KeepAliveChannel: ap("198.51.100.1:3000"), MultiplexID: 7, Multiplexed: true, KeepAlivePayload: 127, KeepAlive: true, KeepAliveInterval: 19e9}
	octets, err := v.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	back, err := h245.DecodeTraversal(octets)
	if err != nil || back != v {
		t.Fatalf("%+v, %v", back, err)
	}
	if _, err := h245.DecodeTraversal([]byte{0x10}); err == nil {
		t.Error("cut traversal parameters are accepted")
	}
}

// TestSet: IPv6 for IPv4 in T.120's OpenLogicalChannel, whose address is in an open type.
func TestSet(t *testing.T) {
	src := unhex(t, seeds()["t120"])
	m, _, err := h245.Decode(h245.NewDecoder(), src)
	if err != nil {
		t.Fatal(err)
	}
	ed := h245.NewEditor()
	ed.Begin(m.Tree)
	addrs := h245.Addresses(nil, m.Tree, m.Root)
	if len(addrs) != 1 || addrs[0].Field != h245.LocalAreaAddress || addrs[0].Carrier != "" {
		t.Fatalf("%+v", addrs)
	}
	to := ap("[2001:db8::1]:1503")
	if err := addrs[0].Set(ed, m.Tree, to); err != nil {
		t.Fatal(err)
	}
	out, err := ed.Apply(nil)
	if err != nil || len(out) != len(src)+12 {
		t.Fatalf("%d octets of %d: %v", len(out), len(src), err)
	}
	got, _, err := h245.Decode(h245.NewDecoder(), out)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := got.Channel(); !ok || c.SeparateStack.AddrPort != to || c.SetupProc != "originateCall" || c.Number != 101 {
		t.Errorf("%+v", c)
	}
}

// messages returns every H.245 message of the corpora's own connections.
func messages(tb testing.TB) map[string][][]byte {
	tb.Helper()
	out := map[string][][]byte{}
	for _, dir := range []string{"h323", "h323-lab"} {
		root := tpkttest.Corpora(tb, "../../..", dir)
		files, _ := filepath.Glob(filepath.Join(root, "*.*"))
		for _, f := range files {
			name := filepath.Base(f)
			c, err := tpkttest.Read(f)
			if err != nil {
				if b, ok := plain(f); ok {
					out[name] = append(out[name], b...)
				}
				continue
			}
			for _, s := range c.TCP {
				if s.Src.Port() != 1720 && s.Dst.Port() != 1720 {
					out[name] = append(out[name], h245Stream(s)...)
				}
			}
		}
	}
	return out
}

// plain reads the files that hold H.245 without a capture around it.
func plain(path string) ([][]byte, bool) {
	switch filepath.Base(path) {
	case "netmeeting3-h245-msd.bin", "netmeeting3-h245-tcs.bin", "h245-uii-basicstring.bin":
		b, err := os.ReadFile(path)
		return [][]byte{b}, err == nil
	case "netmeeting3-h245-stream.tpkt.bin":
		b, err := os.ReadFile(path)
		return h245Stream(&tpkttest.Stream{Data: b}), err == nil
	}
	return nil, false
}

// h245Stream splits a stream, unless it is T.120 or no TPKT at all.
func h245Stream(s *tpkttest.Stream) [][]byte {
	var out [][]byte
	for _, b := range s.Packets() {
		if len(b) == 0 {
			continue
		}
		x224 := len(b) > 1 && int(b[0]) == len(b)-1 && (b[1]&0xf0 == 0xe0 || b[1]&0xf0 == 0xd0)
		if len(out) == 0 && (x224 || b[0] == 8 && b[1] == 2) {
			return nil // Q.931 on another port, or X.224
		}
		out = append(out, b)
	}
	return out
}

// TestCorpora: every message of the H.245 connections decodes, is itself without
// edits, and keeps all but its addresses when they are replaced.
func TestCorpora(t *testing.T) {
	counts := map[h245.Kind]int{}
	addresses := 0
	d, again, ed := h245.NewDecoder(), h245.NewDecoder(), h245.NewEditor()
	for name, list := range messages(t) {
		for _, payload := range list {
			for rest := payload; len(rest) > 0; {
				var m h245.Message
				var err error
				if m, rest, err = h245.Decode(d, rest); err != nil {
					t.Fatalf("%s: %x: %v", name, payload, err)
				}
				counts[m.Kind]++
				addrs := h245.Addresses(nil, m.Tree, m.Root)
				addresses += len(addrs)
				rewrite(t, name, ed, again, m, addrs)
			}
		}
	}
	for _, k := range []h245.Kind{h245.MasterSlaveDetermination, h245.TerminalCapabilitySet, h245.OpenLogicalChannel,
		h245.OpenLogicalChannelAck, h245.EndSession} {
		if counts[k] == 0 {
			t.Errorf("no %s in the corpora", k)
		}
	}
	var kinds []h245.Kind
	for k := range counts {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	for _, k := range kinds {
		t.Logf("%-32s %5d", k, counts[k])
	}
	t.Logf("%-32s %5d", "addresses", addresses)
}

func rewrite(t *testing.T, name string, ed *per.Editor, again *per.Decoder, m h245.Message, addrs []h245.Address) {
	t.Helper()
	ed.Begin(m.Tree)
	if same, err := ed.Apply(nil); err != nil || !bytes.Equal(same, m.Tree.Source()) {
		t.Fatalf("%s: without edits: %x, %v", name, same, err)
	}
	to := ap("198.51.100.9:29999")
	want := bytes.Clone(m.Tree.Source())
	for _, a := range addrs {
		if err := a.Set(ed, m.Tree, to); err != nil {
			t.Fatal(err)
		}
		_, end := m.Tree.Span(a.Ref)
		copy(want[end-6:end], []byte{198, 51, 100, 9, 29999 >> 8, 29999 & 0xff})
	}
	out, err := ed.Apply(nil)
	if err != nil || !bytes.Equal(out, want) {
		t.Fatalf("%s: %s: %v\n got %x\nwant %x", name, m.Kind, err, out, want)
	}
	got, _, err := h245.Decode(again, out)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range h245.Addresses(nil, got.Tree, got.Root) {
		if a.AddrPort != to {
			t.Errorf("%s: %s is %s", name, a.Field, a.AddrPort)
		}
	}
}

// TestCut: a message cut anywhere is refused or understood, and does not panic.
func TestCut(t *testing.T) {
	d := h245.NewDecoder()
	seen := map[int]bool{}
	for _, list := range messages(t) {
		for _, b := range list {
			if key := int(b[0])<<16 | len(b); seen[key] {
				continue
			} else {
				seen[key] = true
			}
			for n := range b {
				if m, _, err := h245.Decode(d, b[:n:n]); err == nil {
					m.Channel()
					h245.Addresses(nil, m.Tree, m.Root)
				}
			}
		}
	}
}

// TestNetMeeting: the capability set and master-slave determination of NetMeeting 3.0.
func TestNetMeeting(t *testing.T) {
	root := tpkttest.Corpora(t, "../../..", "h323")
	for file, want := range map[string]h245.Kind{
		"netmeeting3-h245-msd.bin": h245.MasterSlaveDetermination,
		"netmeeting3-h245-tcs.bin": h245.TerminalCapabilitySet,
	} {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		m, rest, err := h245.Decode(h245.NewDecoder(), b)
		if err != nil || len(rest) > 0 || m.Kind != want {
			t.Errorf("%s: %s, rest %x, %v", file, m.Kind, rest, err)
		}
		for n := range b {
			if _, _, err := h245.Decode(h245.NewDecoder(), b[:n]); err == nil && n < len(b)-2 {
				t.Errorf("%s: %d of %d octets are a message", file, n, len(b))
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range seeds() {
		f.Add(unhex(f, s))
	}
	f.Add([]byte{0x4a, 0x40}) // endSessionCommand
	if _, ok := tpkttest.Find("../../..", "h323-lab"); ok {
		seen := map[int]bool{}
		for _, list := range messages(f) {
			for _, b := range list {
				if key := int(b[0])<<16 | len(b); !seen[key] {
					seen[key] = true
					f.Add(b)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, _, err := h245.Decode(h245.NewDecoder(), data)
		if err != nil {
			return
		}
		m.Channel()
		h245.TraversalAt(m.Tree, m.Root)
		ed := h245.NewEditor()
		ed.Begin(m.Tree)
		for _, a := range h245.Addresses(nil, m.Tree, m.Root) {
			to := ap("198.51.100.9:29999")
			if len(data)%2 == 0 {
				to = ap("[2001:db8::1]:29999")
			}
			if err := a.Set(ed, m.Tree, to); err != nil {
				t.Fatal(err)
			}
		}
		out, err := ed.Apply(nil)
		if err != nil {
			return
		}
		got, _, err := h245.Decode(h245.NewDecoder(), out)
		if err != nil || got.Kind != m.Kind {
			t.Fatalf("%x: %v", out, err)
		}
	})
}

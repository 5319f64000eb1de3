package schema_test

import (
	"bytes"
	"encoding/hex"
	"path/filepath"
	"slices"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/internal/tpkt/tpkttest"
)

// TestT120: the GCC user data and the MCS domain PDUs of the captures decode and are
// themselves without edits.
func TestT120(t *testing.T) {
	dec, ed := per.NewDecoder(schema.Tables()), per.NewEditor(schema.Tables())
	counts := map[string]int{}
	check := func(file string, id per.TypeID, b []byte) {
		tree, err := dec.Decode(id, b)
		if err != nil {
			t.Errorf("%s: %x: %v", file, b, err)
			return
		}
		name, _ := tree.Chosen(tree.Root())
		if in := tree.Child(tree.Root(), "connectPDU"); in != per.None {
			// RDP servers announce a wrong length for theirs, which stays opaque.
			if name, _ = tree.Chosen(tree.Inside(in)); name == "" {
				name = "opaque connectPDU"
			}
		}
		counts[name]++
		ed.Begin(tree)
		if same, err := ed.Apply(nil); err != nil || !bytes.Equal(same, tree.Source()) {
			t.Errorf("%s: without edits: %x, %v", file, same, err)
		}
	}
	for dir, pattern := range map[string]string{"t120": "*.pcap", "h323-lab": "rdp-*.pcap"} {
		files, _ := filepath.Glob(filepath.Join(tpkttest.Corpora(t, "../../..", dir), pattern))
		for _, f := range files {
			c, err := tpkttest.Read(f)
			if err != nil {
				continue
			}
			for _, s := range c.TCP {
				for _, b := range dataUnits(s) {
					if at := bytes.Index(b, []byte{0x00, 0x05, 0x00, 0x14, 0x7c, 0x00, 0x01}); b[0] == 0x7f && at > 0 {
						check(filepath.Base(f), schema.T124ConnectData, b[at:])
					} else if b[0] != 0x7f {
						check(filepath.Base(f), schema.T125DomainMCSPDU, b)
					}
				}
			}
		}
	}
	if counts["conferenceCreateRequest"] == 0 || counts["sendDataRequest"] == 0 || counts["erectDomainRequest"] == 0 {
		t.Errorf("some are missing: %v", counts)
	}
	var names []string
	for n := range counts {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		t.Logf("%-32s %5d", n, counts[n])
	}
}

// dataUnits returns the contents of X.224 DT units in a stream that begins with CR or CC.
func dataUnits(s *tpkttest.Stream) [][]byte {
	var out [][]byte
	for i, b := range s.Packets() {
		if i == 0 && (len(b) < 7 || b[1]&0xf0 != 0xe0 && b[1]&0xf0 != 0xd0) {
			return nil
		}
		if len(b) > 3 && b[0] == 2 && b[1] == 0xf0 && b[2] == 0x80 {
			if out = append(out, b[3:]); out[0][0] != 0x7f {
				return nil // another protocol over X.224
			}
		}
	}
	return out
}

// TestConferenceName: text of T.124 in octets, digits in four bits.
func TestConferenceName(t *testing.T) {
	v := per.Alternative("conferenceJoinRequest", per.Fields(
		per.F("conferenceName", per.Alternative("text", per.Text("café"))),
		per.F("conferenceNameModifier", per.Text("42"))))
	b, err := schema.Tables().Encode(nil, schema.T124ConnectGCCPDU, v)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte{1, 0x42}) || !bytes.Contains(b, []byte("caf\xe9")) {
		t.Errorf("digits or octets are not where they should be: %s", hex.EncodeToString(b))
	}
}

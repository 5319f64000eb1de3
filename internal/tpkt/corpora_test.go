package tpkt_test

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/internal/tpkt/tpkttest"
)

// packets splits a stream that comes in pieces of n octets.
func packets(data []byte, n int) (out [][]byte, err error) {
	var s tpkt.Splitter
	for piece := range slices.Chunk(data, n) {
		s.Push(piece)
		for {
			p, ok, err := s.Next()
			if err != nil {
				return out, err
			}
			if !ok {
				break
			}
			out = append(out, append([]byte{p.Second}, p.Payload...))
		}
	}
	return out, nil
}

// TestCorpora: every stream of the H.323 captures splits the same whatever its segments
// are, and is written again as it was.
func TestCorpora(t *testing.T) {
	streams, count := 0, 0
	for _, dir := range []string{"h323", "h323-lab"} {
		files, _ := filepath.Glob(filepath.Join(tpkttest.Corpora(t, "../..", dir), "*.pcap*"))
		for _, f := range files {
			c, err := tpkttest.Read(f)
			if err != nil {
				continue
			}
			for _, s := range c.TCP {
				want, wantErr := packets(s.Data, max(1, len(s.Data)))
				for _, n := range []int{1, 3, 7} {
					if got, err := packets(s.Data, n); (err == nil) != (wantErr == nil) || !slices.EqualFunc(got, want, bytes.Equal) {
						t.Fatalf("%s: in pieces of %d: %d packets, %v; whole: %d, %v", filepath.Base(f), n, len(got), err, len(want), wantErr)
					}
				}
				var again []byte
				for _, p := range want {
					again, _ = tpkt.Append(again, p[0], p[1:])
				}
				if !bytes.HasPrefix(s.Data, again) {
					t.Fatalf("%s: written otherwise", filepath.Base(f))
				}
				if wantErr == nil && len(want) > 0 {
					streams++
				}
				count += len(want)
			}
		}
	}
	if count == 0 {
		t.Error("no TPKT in the corpora")
	}
	t.Logf("%d streams, %d packets", streams, count)
}

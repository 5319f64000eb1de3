package demophone

import (
	"math/rand/v2"
	"testing"
)

func TestULawRoundTrip(t *testing.T) {
	for c := range 256 {
		v := ulawDecode(byte(c))
		if got := ulawDecode(ulawEncode(v)); got != v {
			t.Errorf("code %#x: decoded %d, again %d", c, v, got)
		}
	}
	// Anchors from ITU-T G.711: full scale, and the two zeros.
	for c, want := range map[byte]int16{0x00: -32124, 0x80: 32124, 0xff: 0, 0x7f: 0} {
		if got := ulawDecode(c); got != want {
			t.Errorf("decode %#x = %d, want %d", c, got, want)
		}
	}
}

func TestDetectHearsEverySymbol(t *testing.T) {
	for s := range byte(16) {
		if got, ok := detect(toneFrame(s)); !ok || got != s {
			t.Errorf("symbol %d: heard %d, ok %v", s, got, ok)
		}
	}
}

func TestDetectRefusesWhatIsNoPattern(t *testing.T) {
	silence := make([]byte, frameSamples)
	noise := make([]byte, frameSamples)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range silence {
		silence[i], noise[i] = 0xff, byte(rnd.Uint32())
	}
	half := toneFrame(3)
	copy(half[frameSamples/2:], silence)
	for name, frame := range map[string][]byte{
		"silence": silence, "noise": noise, "short": toneFrame(1)[:100], "empty": nil, "half a frame": half,
	} {
		if s, ok := detect(frame); ok {
			t.Errorf("%s was heard as symbol %d", name, s)
		}
	}
}

func TestPatternsDiffer(t *testing.T) {
	const frames = 1000
	a, again := NewPattern("a84b4c76e66710", Caller), NewPattern("a84b4c76e66710", Caller)
	for _, b := range []Pattern{NewPattern("a84b4c76e66710", Callee), NewPattern("a84b4c76e66711", Caller)} {
		same := 0
		for i := range uint32(frames) {
			if a.Symbol(i) != again.Symbol(i) {
				t.Fatalf("frame %d: the same call has two patterns", i)
			}
			if a.Symbol(i) == b.Symbol(i) {
				same++
			}
		}
		// Chance is 1/16; a stream that is confused with another must stay far below any threshold.
		if same > frames/5 {
			t.Errorf("%d of %d frames are the same in two patterns", same, frames)
		}
	}
}

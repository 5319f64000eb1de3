package demophone

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
)

// frameSamples is the number of samples in a frame of 20 ms at 8 kHz.
const frameSamples = 160

// Tone frequencies in Hz. All are multiples of 50 Hz, so that each fits a whole number of times
// into a frame and none leaks into another's Goertzel bin.
func lowTones() [4]int  { return [4]int{400, 550, 700, 850} }
func highTones() [4]int { return [4]int{1150, 1400, 1650, 1900} }

const (
	toneAmplitude = 8000
	// minLevel is the mean square below which a frame counts as silence.
	minLevel = 1000 * 1000
	// minPurity is the share of a frame's energy that its two tones must hold.
	minPurity = 0.9
)

// Role names the sender of a direction of a call.
type Role string

const (
	// Caller sent the INVITE.
	Caller Role = "caller"
	// Callee answered it.
	Callee Role = "callee"
)

// Pattern is the audio of one direction of one call: an endless sequence of symbols 0-15, one
// per frame of 20 ms. Both ends derive it from the Call-ID, which no edge may change.
type Pattern struct {
	key [32]byte
}

// NewPattern returns the pattern that the given role sends in the call named by callID.
func NewPattern(callID string, from Role) Pattern {
	return Pattern{key: sha256.Sum256([]byte(string(from) + "\x00" + callID))}
}

// SSRC is the synchronisation source of the pattern's RTP stream.
func (p Pattern) SSRC() uint32 { return binary.BigEndian.Uint32(p.key[0:]) }

// Timestamp is the RTP timestamp of the first frame.
func (p Pattern) Timestamp() uint32 { return binary.BigEndian.Uint32(p.key[4:]) }

// Sequence is the RTP sequence number of the first frame.
func (p Pattern) Sequence() uint16 { return binary.BigEndian.Uint16(p.key[8:]) }

// Symbol returns the symbol (0-15) of frame i.
func (p Pattern) Symbol(i uint32) byte {
	var block [36]byte
	copy(block[:], p.key[:])
	binary.BigEndian.PutUint32(block[32:], i/64)
	sum := sha256.Sum256(block[:])
	return sum[i%64/2] >> (4 * (i % 2)) & 0x0f
}

// Frame returns frame i as 160 bytes of µ-law.
func (p Pattern) Frame(i uint32) []byte { return toneFrame(p.Symbol(i)) }

// toneFrame returns the µ-law frame of a symbol.
func toneFrame(symbol byte) []byte {
	lo, hi := lowTones()[symbol>>2&3], highTones()[symbol&3]
	out := make([]byte, frameSamples)
	for n := range out {
		t := 2 * math.Pi * float64(n) / 8000
		out[n] = ulawEncode(int16(toneAmplitude * (math.Sin(t*float64(lo)) + math.Sin(t*float64(hi)))))
	}
	return out
}

// detect returns the symbol heard in a µ-law frame; ok is false for silence, noise, other tones
// and frames of another length.
func detect(frame []byte) (symbol byte, ok bool) {
	if len(frame) != frameSamples {
		return 0, false
	}
	var x [frameSamples]float64
	energy := 0.0
	for n, c := range frame {
		x[n] = float64(ulawDecode(c))
		energy += x[n] * x[n]
	}
	if energy < minLevel*frameSamples {
		return 0, false
	}
	lo, lowPower := strongest(x[:], lowTones())
	hi, highPower := strongest(x[:], highTones())
	// A pure tone of power P has Goertzel power P·N/2 times its energy.
	if (lowPower+highPower)*2/frameSamples < minPurity*energy {
		return 0, false
	}
	return byte(lo<<2 | hi), true
}

// strongest returns the index and the Goertzel power of the strongest of the tones in x.
func strongest(x []float64, tones [4]int) (index int, power float64) {
	for i, f := range tones {
		if p := goertzel(x, f); p > power {
			index, power = i, p
		}
	}
	return index, power
}

// goertzel returns the squared magnitude of x at f Hz.
func goertzel(x []float64, f int) float64 {
	c := 2 * math.Cos(2*math.Pi*float64(f)/8000)
	s1, s2 := 0.0, 0.0
	for _, v := range x {
		s1, s2 = v+c*s1-s2, s1
	}
	return s1*s1 + s2*s2 - c*s1*s2
}

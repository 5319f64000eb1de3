//go:build lab

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"time"
)

const rate = 8000 // samples per second, of every recording and tone of the lab

// Sound says what a recording holds.
type Sound struct {
	Length time.Duration
	Hz     int           // the tone that most voiced frames hold, 0 if none
	Voiced time.Duration // total of the 20 ms frames that hold Hz
	Other  time.Duration // total of the voiced frames that hold something else
	frames map[int]int   // voiced frames by tone
}

// String is one line for a person.
func (s Sound) String() string {
	return fmt.Sprintf("%.2fs of %d Hz (%.2fs of others) in %.2fs", s.Voiced.Seconds(), s.Hz, s.Other.Seconds(), s.Length.Seconds())
}

// near tells whether the dominant tone is hz, within a step of the search.
func (s Sound) near(hz int) bool { return s.Hz >= hz-20 && s.Hz <= hz+20 }

// Part returns how long hz was heard.
func (s Sound) Part(hz int) time.Duration {
	n := 0
	for f, c := range s.frames {
		if f >= hz-20 && f <= hz+20 {
			n += c
		}
	}
	return time.Duration(n) * 20 * time.Millisecond
}

// hear finds the dominant tone among 200-1500 Hz, 20 ms frame by frame, by the Goertzel algorithm.
func hear(pcm []int16) Sound {
	const frame = rate / 50
	votes := map[int]int{}
	voiced := 0
	for at := 0; at+frame <= len(pcm); at += frame {
		x := pcm[at : at+frame]
		if energy(x) < 1e4 {
			continue
		}
		voiced++
		votes[loudest(x)]++
	}
	s := Sound{Length: time.Duration(len(pcm)) * time.Second / rate, frames: votes}
	best := 0
	for hz, n := range votes {
		if n > best {
			s.Hz, best = hz, n
		}
	}
	// a frame on the border of two cells of the search may vote for the neighbour
	same := votes[s.Hz] + votes[s.Hz-20] + votes[s.Hz+20]
	s.Voiced = time.Duration(same) * 20 * time.Millisecond
	s.Other = time.Duration(voiced-same) * 20 * time.Millisecond
	return s
}

func energy(x []int16) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return sum / float64(len(x))
}

// loudest returns the frequency with the most power in x, in steps of 20 Hz.
func loudest(x []int16) int {
	best, power := 0, -1.0
	for hz := 200; hz < 1500; hz += 20 {
		k := 2 * math.Cos(2*math.Pi*float64(hz)/rate)
		a, b := 0.0, 0.0
		for _, v := range x {
			a, b = float64(v)+k*a-b, a
		}
		if p := a*a + b*b - k*a*b; p > power {
			best, power = hz, p
		}
	}
	return best
}

// tone returns d of a sine at half amplitude.
func tone(hz int, d time.Duration) []int16 {
	pcm := make([]int16, int(d.Seconds()*rate))
	for i := range pcm {
		pcm[i] = int16(16000 * math.Sin(2*math.Pi*float64(hz)*float64(i)/rate))
	}
	return pcm
}

// writeWAV writes a mono 16-bit file.
func writeWAV(name string, pcm []int16) error {
	b := make([]byte, 44, 44+2*len(pcm))
	copy(b, "RIFF")
	binary.LittleEndian.PutUint32(b[4:], uint32(36+2*len(pcm)))
	copy(b[8:], "WAVEfmt ")
	binary.LittleEndian.PutUint32(b[16:], 16)
	binary.LittleEndian.PutUint16(b[20:], 1)
	binary.LittleEndian.PutUint16(b[22:], 1)
	binary.LittleEndian.PutUint32(b[24:], rate)
	binary.LittleEndian.PutUint32(b[28:], 2*rate)
	binary.LittleEndian.PutUint16(b[32:], 2)
	binary.LittleEndian.PutUint16(b[34:], 16)
	copy(b[36:], "data")
	binary.LittleEndian.PutUint32(b[40:], uint32(2*len(pcm)))
	for _, v := range pcm {
		b = binary.LittleEndian.AppendUint16(b, uint16(v))
	}
	return os.WriteFile(name, b, 0o644)
}

// readWAV reads the first channel of a 16-bit file at 8000 Hz. Its data is read to the end of the file,
// whatever the header says: the header of a file still being written is wrong.
func readWAV(name string) ([]int16, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if len(b) < 44 || string(b[:4]) != "RIFF" {
		return nil, errors.New("not a WAV file")
	}
	channels := 1
	for at := 12; at+8 <= len(b); {
		id, n := string(b[at:at+4]), int(binary.LittleEndian.Uint32(b[at+4:]))
		body := b[at+8:]
		switch id {
		case "fmt ":
			channels = int(binary.LittleEndian.Uint16(body[2:]))
			if hz := binary.LittleEndian.Uint32(body[4:]); hz != rate {
				return nil, fmt.Errorf("%d samples per second, want %d", hz, rate)
			}
		case "data":
			return firstChannel(body, channels), nil
		}
		at += 8 + n
	}
	return nil, errors.New("WAV without data")
}

func firstChannel(b []byte, channels int) []int16 {
	pcm := make([]int16, 0, len(b)/2/max(1, channels))
	for at := 0; at+2 <= len(b); at += 2 * max(1, channels) {
		pcm = append(pcm, int16(binary.LittleEndian.Uint16(b[at:])))
	}
	return pcm
}

// ulaw encodes one sample (ITU-T G.711).
func ulaw(v int16) byte {
	s, x := byte(0), int(v)
	if x < 0 {
		s, x = 0x80, -x
	}
	x = min(x, 32635) + 132
	e := 7
	for m := 0x4000; x&m == 0 && e > 0; m >>= 1 {
		e--
	}
	return ^(s | byte(e)<<4 | byte(x>>(e+3)&15))
}

// unulaw decodes one sample (ITU-T G.711).
func unulaw(c byte) int16 {
	c = ^c
	v := (int(c&15)<<3+132)<<(c>>4&7) - 132
	if c&0x80 != 0 {
		v = -v
	}
	return int16(v)
}

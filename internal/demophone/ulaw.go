package demophone

import "math/bits"

// ulawBias is added to a magnitude before its segment is found (ITU-T G.711).
const ulawBias = 0x84

// ulawClip is the largest magnitude that the code can express.
const ulawClip = 32635

// ulawEncode returns the µ-law code of a 16-bit linear sample (ITU-T G.711).
func ulawEncode(s int16) byte {
	v, sign := int(s), byte(0)
	if v < 0 {
		v, sign = -v, 0x80
	}
	v = min(v, ulawClip) + ulawBias
	exp := bits.Len(uint(v)) - 8
	return ^(sign | byte(exp<<4) | byte(v>>(exp+3))&0x0f)
}

// ulawDecode returns the 16-bit linear sample of a µ-law code (ITU-T G.711).
func ulawDecode(c byte) int16 {
	c = ^c
	exp := int(c>>4) & 7
	v := (int(c&0x0f)<<3+ulawBias)<<exp - ulawBias
	if c&0x80 != 0 {
		v = -v
	}
	return int16(v)
}

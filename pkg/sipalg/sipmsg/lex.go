package sipmsg

// Character classes of RFC 3261 §25.1 as bit sets: characters 0-63 and 64-127.
const (
	alnumLo = 0x03ff000000000000
	alnumHi = 0x07fffffe07fffffe
	// token adds - . ! % * _ + ` ' ~
	tokenLo = alnumLo | 1<<'-' | 1<<'.' | 1<<'!' | 1<<'%' | 1<<'*' | 1<<'+' | 1<<'\''
	tokenHi = alnumHi | 1<<('_'-64) | 1<<('`'-64) | 1<<('~'-64)
	// host adds - . _ to alphanum; the underscore is no RFC 3261 but is common in private DNS.
	hostLo = alnumLo | 1<<'-' | 1<<'.'
	hostHi = alnumHi | 1<<('_'-64)
	// lws is all below 64.
	lws uint64 = 1<<' ' | 1<<'\t' | 1<<'\r' | 1<<'\n'
)

// inSet has no branch, as names mix letters with dashes and digits: shifts by 64 and more give 0.
func inSet(c byte, lo, hi uint64) bool { return (lo>>c|hi>>(c-64))&1 != 0 }

func isToken(c byte) bool { return inSet(c, tokenLo, tokenHi) }
func isHost(c byte) bool  { return inSet(c, hostLo, hostHi) }
func isDigit(c byte) bool { return c-'0' < 10 }

// isLWS tells whether c is part of linear white space. A CR or LF inside a header
// field's value can only be a fold, because Parse rejects bare ones.
func isLWS(c byte) bool { return c <= ' ' && lws>>c&1 != 0 }

func lower(c byte) byte {
	if c-'A' < 26 {
		return c | 0x20
	}
	return c
}

func skipLWS(b []byte, i int) int {
	for i < len(b) && isLWS(b[i]) {
		i++
	}
	return i
}

func skipToken(b []byte, i int) int {
	for i < len(b) && isToken(b[i]) {
		i++
	}
	return i
}

// trim returns b without LWS at its ends; the result is a sub-slice even when empty.
func trim(b []byte) []byte {
	s, e := 0, len(b)
	for s < e && isLWS(b[s]) {
		s++
	}
	for e > s && isLWS(b[e-1]) {
		e--
	}
	return b[s:e]
}

// skipQuoted returns the index behind the quoted-string that starts at b[i], or -1
// when its closing quote is missing.
func skipQuoted(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// equalFold compares in ASCII without case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		if b[i] != s[i] && lower(b[i]) != lower(s[i]) {
			return false
		}
	}
	return true
}

// number reads decimal digits, all of b. It saturates at 2^32-1 with over set.
func number(b []byte) (n uint32, over, ok bool) {
	if len(b) == 0 {
		return 0, false, false
	}
	var v uint64
	for _, c := range b {
		if !isDigit(c) {
			return 0, false, false
		}
		if v = v*10 + uint64(c-'0'); v > 1<<32-1 {
			v, over = 1<<32-1, true
		}
	}
	return uint32(v), over, true
}

// port reads a port number 1-65535, all of b.
func port(b []byte) (uint16, bool) {
	n, _, ok := number(b)
	return uint16(n), ok && n >= 1 && n <= 65535
}

package sipmsg

// Character classes of RFC 3261 §25.1.
const (
	classToken = 1 << iota
	// classHost adds the underscore to the RFC's host, as it is common in private DNS.
	classHost
	classScheme
	classLWS
	// classValueEnd ends a parameter's value that is not quoted.
	classValueEnd
	// classNoURI stands in no URI.
	classNoURI
	// classNoAddress stands in no URI of an address, classNoDisplay in no display name without quotes.
	classNoAddress
	classNoDisplay
)

//nolint:gochecknoglobals // a table, never written once it is made
var classes = classTable()

func classTable() (t [256]uint8) {
	mark := func(class uint8, chars string) {
		for _, c := range []byte(chars) {
			t[c] |= class
		}
	}
	const alnum = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	const blanks = " \t\r\n"
	mark(classToken, alnum+"-.!%*_+`'~")
	mark(classHost, alnum+"-._")
	mark(classScheme, alnum+"+-.")
	mark(classLWS, blanks)
	mark(classValueEnd, blanks+";\",")
	mark(classNoURI, "<>\"\x7f")
	mark(classNoAddress, blanks+"<\"")
	mark(classNoDisplay, ",;\">")
	for c := range byte(' ' + 1) {
		t[c] |= classNoURI
	}
	return t
}

func isToken(c byte) bool { return classes[c]&classToken != 0 }
func isHost(c byte) bool  { return classes[c]&classHost != 0 }
func isDigit(c byte) bool { return c-'0' < 10 }

// isLWS tells whether c is part of linear white space. A CR or LF inside a header
// field's value can only be a fold, because Parse rejects bare ones.
func isLWS(c byte) bool { return classes[c]&classLWS != 0 }

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

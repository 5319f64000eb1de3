package imfilter

import (
	"bytes"
	"strconv"
)

// view is a text as its reader sees it: escapes undone, lower case.
type view struct {
	text []byte
	at   []int32 // where each byte comes from; nil: from the same place
}

func newView(k kind, raw []byte) *view {
	v := &view{text: make([]byte, 0, len(raw))}
	switch k {
	case html:
		v.readHTML(raw)
	case rtf:
		v.readRTF(raw)
	default:
		v.readPlain(raw)
	}
	for i, c := range v.text {
		if c >= 'A' && c <= 'Z' {
			v.text[i] = c | 0x20
		}
	}
	return v
}

// readPlain takes the text as it is, but for NUL: UTF-16 has it in each character of a link.
func (v *view) readPlain(raw []byte) {
	if bytes.IndexByte(raw, 0) < 0 {
		v.text = append(v.text, raw...)
		return
	}
	v.at = make([]int32, 0, len(raw))
	for i, c := range raw {
		if c != 0 {
			v.put(c, i)
		}
	}
}

// origin returns where a byte of the view stands in the text itself.
func (v *view) origin(i int) int {
	if v.at == nil {
		return i
	}
	return int(v.at[i])
}

func (v *view) put(c byte, at int) {
	v.text = append(v.text, c)
	v.at = append(v.at, int32(at))
}

// readHTML undoes character references, and takes out those of line ends and tabs: browsers skip them in links.
func (v *view) readHTML(raw []byte) {
	v.at = make([]int32, 0, len(raw))
	for i := 0; i < len(raw); {
		c, n := reference(raw[i:])
		if n > 1 && (c == '\t' || c == '\r' || c == '\n') {
			i += n
			continue
		}
		v.put(c, i)
		i += n
	}
}

// reference reads one character or character reference, and returns its length. What is not ASCII is shown
// as 0x80.
func reference(b []byte) (c byte, n int) {
	if b[0] != '&' {
		return b[0], 1
	}
	end := 1
	for end < len(b) && end < 12 && (isAlnum(b[end]) || b[end] == '#') {
		end++
	}
	name := b[1:end]
	if end < len(b) && b[end] == ';' {
		end++
	}
	if len(name) > 1 && name[0] == '#' {
		digits, base := name[1:], 10
		if digits[0] == 'x' || digits[0] == 'X' {
			digits, base = digits[1:], 16
		}
		u, err := strconv.ParseUint(string(digits), base, 32)
		switch {
		case err != nil:
			return '&', 1
		case u > 0x7f:
			return 0x80, end
		}
		return byte(u), end
	}
	switch string(name) {
	case "colon":
		return ':', end
	case "sol":
		return '/', end
	case "period":
		return '.', end
	case "lowbar":
		return '_', end
	case "Tab":
		return '\t', end
	case "NewLine":
		return '\n', end
	case "amp":
		return '&', end
	}
	return '&', 1
}

// readRTF takes out what a reader does not see: groups' braces and control words. Characters may be written
// as \'hh or \uN, the latter with a replacement for old readers behind it.
func (v *view) readRTF(raw []byte) {
	v.at = make([]int32, 0, len(raw))
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '{' || c == '}' || c == '\r' || c == '\n':
			i++
		case c != '\\' || i+1 == len(raw):
			v.put(c, i)
			i++
		case raw[i+1] == '\'':
			i = v.hexChar(raw, i)
		case !isLetter(raw[i+1]):
			v.put(raw[i+1], i)
			i += 2
		default:
			i = v.controlWord(raw, i)
		}
	}
}

// hexChar reads \'hh at i.
func (v *view) hexChar(raw []byte, i int) int {
	end := min(i+4, len(raw))
	if u, err := strconv.ParseUint(string(raw[i+2:end]), 16, 8); err == nil {
		v.put(byte(u), i)
	}
	return end
}

// controlWord reads \word, its number and the blank that ends it, at i.
func (v *view) controlWord(raw []byte, i int) int {
	end := i + 1
	for end < len(raw) && isLetter(raw[end]) {
		end++
	}
	word := raw[i+1 : end]
	digits := end
	for end < len(raw) && (raw[end] >= '0' && raw[end] <= '9' || raw[end] == '-' && end == digits) {
		end++
	}
	number := raw[digits:end]
	if end < len(raw) && raw[end] == ' ' {
		end++
	}
	switch string(word) {
	case "par", "line", "tab", "sect", "page", "cell", "row":
		v.put('\n', i)
	case "u":
		if u, err := strconv.ParseInt(string(number), 10, 32); err == nil && u >= 0 && u < 0x80 {
			v.put(byte(u), i)
			if end < len(raw) && raw[end] == '?' {
				end++
			}
		}
	}
	return end
}

// next finds the first link from i on: where it starts, and where to go on looking.
func (v *view) next(i int) (start, end int, ok bool) {
	for ; i < len(v.text); i++ {
		switch v.text[i] {
		case ':':
			if start, ok = v.scheme(i); ok {
				return start, i + 1, true
			}
		case '.':
			if start, ok = v.hostPrefix(i); ok {
				return start, i + 1, true
			}
		}
	}
	return 0, 0, false
}

// scheme tells whether the colon at i ends a link's scheme, and where that starts.
func (v *view) scheme(i int) (start int, ok bool) {
	rest := v.text[i+1:]
	slashes := bytes.HasPrefix(rest, []byte("//")) || bytes.HasPrefix(rest, []byte(`\\`))
	start = i
	for start > 0 && i-start < 32 && isScheme(v.text[start-1]) {
		start--
	}
	for start < i && !isLetter(v.text[start]) {
		start++
	}
	name := v.text[start:i]
	for _, web := range [...]string{"https", "http", "ftp"} {
		if bytes.HasSuffix(name, []byte(web)) {
			start = i - len(web)
			return start, len(rest) > 0 && !isBlank(rest[0])
		}
	}
	if slashes {
		return start, len(name) > 0
	}
	if len(rest) == 0 || isBlank(rest[0]) {
		return 0, false
	}
	switch string(name) {
	case "mailto", "callto", "news", "snews", "nntp", "file", "telnet", "gopher", "ldap", "mhtml", "hsc", "javascript", "vbscript":
		return start, true
	}
	return 0, false
}

// hostPrefix tells whether the dot at i belongs to a "www." or "ftp." with which a link starts.
func (v *view) hostPrefix(i int) (start int, ok bool) {
	start = i - 3
	if start < 0 || i+1 >= len(v.text) || !isAlnum(v.text[i+1]) {
		return 0, false
	}
	if name := string(v.text[start:i]); name != "www" && name != "ftp" {
		return 0, false
	}
	if start == 0 {
		return start, true
	}
	before := v.text[start-1]
	return start, !isScheme(before) && before != '/' && before != '\\' && before != '@' && before != ':'
}

// maxLink bounds what of a link is compared with the allow-list.
const maxLink = 2048

// linkEnd returns where the link that starts at i ends.
func (v *view) linkEnd(i int) int {
	most := min(len(v.text), i+maxLink)
	for i < most && !isBlank(v.text[i]) && bytes.IndexByte([]byte(`"'<>`), v.text[i]) < 0 {
		i++
	}
	return i
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isAlnum(c byte) bool  { return isLetter(c) || c >= '0' && c <= '9' }
func isBlank(c byte) bool  { return c <= ' ' }

// isScheme tells whether a character may stand in a scheme (RFC 3986 §3.1).
func isScheme(c byte) bool { return isAlnum(c) || c == '+' || c == '-' || c == '.' }

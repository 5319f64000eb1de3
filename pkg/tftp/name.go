package tftp

import (
	"html"
	"mime"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// maxName is the longest file name in octets; file systems take 255.
const maxName = 1024

// separators are what splits a path, and what Windows turns into it when it narrows a name to a code page; the
// colon names a stream of a file.
const separators = "/\\:\u2044\u2215\u2216\u29f5\u29f8\u29f9\ufe68\uff0f\uff3c"

// readings returns a file name, and what it would be to clients that undo the escapes of URIs, HTML or mail headers.
func readings(name string) []string {
	out := []string{name}
	add := func(other string) {
		if other = strings.ToValidUTF8(other, ""); !slices.Contains(out, other) {
			out = append(out, other)
		}
	}
	if len(name) > maxName || !utf8.ValidString(name) {
		return out // it is refused as it is
	}
	add(unescape(name))
	add(html.UnescapeString(name))
	if word, err := new(mime.WordDecoder).DecodeHeader(name); err == nil {
		add(word)
	}
	return out
}

// unescape undoes the %XX of a text; what is none stays.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// extensions returns the parts of a file name after its dots, as a system that strips, folds and composes would
// read them: every one, for "a.exe.txt" is opened by what a user sees as much as by what comes last. It
// returns false for what is no plain file name.
func extensions(name string) ([]string, bool) {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsAny(name, separators) {
		return nil, false
	}
	for _, r := range name {
		if unicode.IsControl(r) || bidi(r) || unicode.Is(unicode.Co, r) {
			return nil, false
		}
	}
	folded := cases.Fold().String(norm.NFKC.String(strings.Map(visible, name)))
	folded = norm.NFKC.String(folded)
	if strings.ContainsAny(folded, separators) {
		return nil, false // composed of what looked harmless, e.g. U+2105
	}
	folded = strings.TrimRightFunc(folded, func(r rune) bool { return r == '.' || around(r) })
	parts := strings.Split(folded, ".")
	for i, p := range parts {
		parts[i] = strings.TrimFunc(p, around)
	}
	return parts[1:], strings.Trim(folded, ". ") != ""
}

// around tells what does not count at the ends of an extension: blanks, also the one of Braille, and quotes and commas
// that a list of names may leave.
func around(r rune) bool {
	return unicode.IsSpace(r) || strings.ContainsRune("\u2800'`\u2018\u2019\u201c\u201d,;", r)
}

// bidi tells whether r turns the direction of the text around it, so that "exe.txt" shows for "txt.exe".
func bidi(r rune) bool {
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// visible drops what nobody sees: joiners, marks of direction, soft hyphens, variation selectors, fillers; and what no file
// name of Windows holds.
func visible(r rune) rune {
	if strings.ContainsRune(`"<>|?*`, r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Variation_Selector, r) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) {
		return -1
	}
	return r
}

// extensionAllowed applies the lists. Any part may deny; the last one must be on the list of what is allowed, if
// there is one. A part in braces is a class identifier, which Windows hides and obeys.
func extensionAllowed(parts, deny, allow []string) bool {
	for _, p := range parts {
		if slices.Contains(deny, p) || len(deny) > 0 && strings.HasPrefix(p, "{") {
			return false
		}
	}
	return len(allow) == 0 || len(parts) > 0 && slices.Contains(allow, parts[len(parts)-1])
}

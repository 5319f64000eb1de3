// Package imfilter finds links in the texts of instant messages and defuses them, as the filter
// of Live Communications Server did: an underscore before a link makes text of it. It is no
// filter of web contents: it sees what a client would make clickable, not what lies behind.
//
//	text/plain, text/html, text/rtf ──► view (escapes undone) ──► links ──► allow-list
//	                                                                          │
//	         the text itself, "_" before each link that is left ◄─────────────┘
//
// It does no I/O and keeps nothing between texts.
package imfilter

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"edged.dev/edged/pkg/pinhole"
)

// Mode says what happens to a message with a link.
type Mode string

const (
	Off    Mode = "off"    // nobody looks
	Allow  Mode = "allow"  // it passes and is counted
	Defuse Mode = "defuse" // an underscore before each link
	Block  Mode = "block"  // it is refused; on a leg with Microsoft's signatures, a notice replaces it
)

// Config is the section "sip.im_urls".
type Config struct {
	Mode Mode `yaml:"mode" json:"mode,omitempty" jsonschema:"enum=off,enum=allow,enum=defuse,enum=block,default=off,description=links in instant messages: off or allow (they are counted) or defuse (an underscore before each) or block"`
	// Allow are hosts, with all below them, and beginnings of links (SCHEME://HOST/PATH) that pass.
	Allow []string `yaml:"allow" json:"allow,omitempty" jsonschema:"description=hosts (with all below them) and beginnings of links (SCHEME://HOST/PATH) that pass"`
	// From are the networks whose senders' messages are looked at; empty: all.
	From []string `yaml:"from" json:"from,omitempty" jsonschema:"description=networks whose senders' messages are looked at; empty = all"`
}

// Validate returns all faults, each a [pinhole.Fault] with its key under "im_urls", joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var faults pinhole.Faults
	if !slices.Contains([]Mode{"", Off, Allow, Defuse, Block}, c.Mode) {
		faults.Add("im_urls.mode", "%q is not off, allow, defuse or block", c.Mode)
	}
	for i, a := range c.Allow {
		if _, _, ok := cutAllowed(a); !ok {
			faults.Add(fmt.Sprintf("im_urls.allow[%d]", i), "%q is neither a host nor SCHEME://HOST/PATH", a)
		}
	}
	for i, name := range c.From {
		faults.Network(fmt.Sprintf("im_urls.from[%d]", i), name, nets)
	}
	return faults.Err()
}

// Filter is a compiled [Config]. It may be used concurrently.
type Filter struct {
	mode     Mode
	from     []string
	hosts    []string // lower case
	prefixes []string // lower case, with a path
}

// New returns the filter of a configuration that is valid, nil if it is off.
func New(c Config) *Filter {
	if c.Mode == "" || c.Mode == Off {
		return nil
	}
	f := &Filter{mode: c.Mode, from: c.From}
	for _, a := range c.Allow {
		if host, prefix, _ := cutAllowed(a); prefix != "" {
			f.prefixes = append(f.prefixes, prefix)
		} else {
			f.hosts = append(f.hosts, host)
		}
	}
	return f
}

// cutAllowed reads an entry of Allow: a host, or the beginning of a link.
func cutAllowed(a string) (host, prefix string, ok bool) {
	a = strings.ToLower(a)
	scheme, rest, isLink := strings.Cut(a, "://")
	if !isLink {
		return a, "", isHost([]byte(a))
	}
	if !strings.Contains(rest, "/") {
		a += "/" // else example.org would allow example.org.evil.example
	}
	host, _, _ = strings.Cut(rest, "/")
	name, _, _ := strings.Cut(host, ":")
	return "", a, scheme != "" && isHost([]byte(name))
}

func isHost(b []byte) bool {
	for _, c := range b {
		if !isAlnum(c) && c != '.' && c != '-' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 255
}

// Mode returns what is to happen to a message with links.
func (f *Filter) Mode() Mode { return f.mode }

// From tells whether messages of senders on a network are looked at.
func (f *Filter) From(network string) bool {
	return len(f.from) == 0 || slices.Contains(f.from, network)
}

// kind is how a text is written.
type kind byte

const (
	other kind = iota
	plain
	html
	rtf
)

func kindOf(mediaType []byte) kind {
	if i := bytes.IndexByte(mediaType, ';'); i >= 0 {
		mediaType = mediaType[:i]
	}
	name := strings.ToLower(string(bytes.Join(bytes.Fields(mediaType), nil)))
	if name == "" {
		return plain
	}
	for _, k := range []struct {
		name string
		kind kind
	}{{"text/plain", plain}, {"text/html", html}, {"text/rtf", rtf}, {"application/rtf", rtf}} {
		if strings.HasPrefix(name, k.name) { // clients look no further
			return k.kind
		}
	}
	return other
}

// Look finds the links in a text that are not allowed, and returns the text with an underscore before each;
// nil if there are none, or the media type is not one that it reads. Text is not changed.
func (f *Filter) Look(mediaType, text []byte) (defused []byte, links int) {
	k := kindOf(mediaType)
	if k == other {
		return nil, 0
	}
	v := newView(k, text)
	from := 0
	for i := 0; ; {
		start, end, ok := v.next(i)
		if !ok {
			break
		}
		i = end
		switch stop := v.linkEnd(start); {
		case start > 0 && v.text[start-1] == '_':
		case f.allowed(v.text[start:stop]):
			i = max(stop, end)
		default:
			links++
			at := v.origin(start)
			defused = append(append(defused, text[from:at]...), '_')
			from = at
		}
	}
	if links == 0 {
		return nil, 0
	}
	return append(defused, text[from:]...), links
}

// allowed tells whether a link, in lower case, is on the list.
func (f *Filter) allowed(link []byte) bool {
	for _, p := range f.prefixes {
		if bytes.HasPrefix(link, []byte(p)) {
			return true
		}
	}
	if len(f.hosts) == 0 {
		return false
	}
	if i := bytes.Index(link, []byte("://")); i >= 0 {
		link = link[i+3:]
	}
	if i := bytes.IndexAny(link, "/\\?#"); i >= 0 {
		link = link[:i]
	}
	host, _, _ := bytes.Cut(link[bytes.LastIndexByte(link, '@')+1:], []byte{':'})
	if !isHost(host) {
		return false
	}
	for _, h := range f.hosts {
		if rest, ok := bytes.CutSuffix(host, []byte(h)); ok && (len(rest) == 0 || rest[len(rest)-1] == '.') {
			return true
		}
	}
	return false
}

const notice = "[A message with a link was removed on its way.]"

// Notice returns a text of the media type that says that a message was removed.
func Notice(mediaType []byte) []byte {
	if kindOf(mediaType) == rtf {
		return []byte(`{\rtf1\ansi ` + notice + `}`)
	}
	return []byte(notice)
}

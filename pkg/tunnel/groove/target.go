package groove

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Mode is how a virtual connection is carried by HTTP.
type Mode uint8

// The modes, best first.
const (
	// LongLived is one GET and one POST that do not end: real time, through proxies that do not buffer.
	LongLived Mode = iota + 1
	// KeepAlive is a sequence of GETs and one of POSTs of at most 32 KiB, through proxies that buffer.
	KeepAlive
	// Polling is one POST after the other. The end of its response is edged's own, since no document has it.
	Polling
)

// String returns the value of ConnType.
func (m Mode) String() string {
	switch m {
	case LongLived:
		return "LongLived"
	case KeepAlive:
		return "KeepAlive"
	case Polling:
		return "Polling"
	}
	return "none"
}

func modeOf(text string) Mode {
	for _, m := range []Mode{LongLived, KeepAlive, Polling} {
		if m.String() == text {
			return m
		}
	}
	return 0
}

const (
	// TunnelName is how edged's own tunnel is called in URIs.
	TunnelName = "edged.tunnel"
	// Path is what the paths of all URIs begin with.
	Path = "/2.0/"
)

const (
	// echo is what both ends of a new virtual connection say first ([MS-GRVHENC] §2.2).
	echo = "GroovePing: 1.0,Ping\r\n"
	// maxBody bounds what one request or response of KeepAlive and Polling carries.
	maxBody = 32768
	// longLength is the Content-Length of LongLived; minLength the least that is accepted of a client.
	longLength, minLength = 0x7ffff000, 4096
	// guidLen is the length of a Virtual-Connection-GUID. Its alphabet is not documented beyond samples of
	// small letters and digits.
	guidLen = 39
	// maxName bounds a relay's name: that of a host in the DNS.
	maxName = 253
)

// target is the URI of a request of ours.
type target struct {
	version string
	relay   string
	guid    string
	mode    Mode
	length  int64 // LongLived
}

// Why a request's URI is not served, as the reason label of metrics.
var (
	errNotGroove = errors.New("not_groove")
	errVersion   = errors.New("version")
	errURI       = errors.New("uri")
)

// parseTarget reads "/2.0/RELAY/GUID,ConnType=…", with or without "http://HOST" before it.
func parseTarget(uri string) (target, error) {
	path := uri
	if scheme, rest, ok := strings.Cut(uri, "://"); ok && !strings.HasPrefix(uri, "/") {
		_, rest, ok = strings.Cut(rest, "/")
		if !ok || !strings.EqualFold(scheme, "http") {
			return target{}, errNotGroove
		}
		path = "/" + rest
	}
	path, ok := strings.CutPrefix(path, "/")
	version, rest, cut := strings.Cut(path, "/")
	if !ok || !cut || !isVersion(version) {
		return target{}, errNotGroove
	}
	relay, rest, cut := strings.Cut(rest, "/")
	if !cut {
		return target{}, errNotGroove
	}
	t := target{version: version, relay: strings.ToLower(relay)}
	if version != "2.0" {
		return t, errVersion
	}
	return t.parameters(rest)
}

// parameters reads "GUID,NAME=VALUE,…".
func (t target) parameters(text string) (target, error) {
	guid, list, ok := strings.Cut(text, ",")
	if !ok || !isGUID(guid) || !isName(t.relay) {
		return t, errURI
	}
	t.guid = guid
	for p := range strings.SplitSeq(list, ",") {
		name, value, ok := strings.Cut(p, "=")
		switch {
		case !ok:
			return t, errURI
		case name == "ConnType" && t.mode == 0:
			t.mode = modeOf(value)
		case name == "ContentLength" && t.length == 0:
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil || n < minLength {
				return t, errURI
			}
			t.length = int64(n)
		case name != "ID": // which only keeps caches out
			return t, errURI
		}
	}
	if t.mode == 0 || (t.mode == LongLived) != (t.length > 0) {
		return t, errURI
	}
	return t, nil
}

// String returns the path of the URI.
func (t target) String() string {
	s := fmt.Sprintf(Path+"%s/%s,ConnType=%s", t.relay, t.guid, t.mode)
	if t.mode == LongLived {
		s += fmt.Sprintf(",ContentLength=%d", t.length)
	}
	return s
}

func isVersion(s string) bool {
	major, minor, ok := strings.Cut(s, ".")
	return ok && isDigits(major) && isDigits(minor)
}

func isDigits(s string) bool { return s != "" && len(s) <= 9 && strings.Trim(s, "0123456789") == "" }

func isGUID(s string) bool {
	return len(s) == guidLen && !strings.ContainsFunc(s, func(r rune) bool { return !isAlnum(r) })
}

// isName tells whether s can be the name of a relay.
func isName(s string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool {
		return !isAlnum(r) && r != '.' && r != '-' && r != '_'
	})
}

func isAlnum(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// newToken returns n random characters of the alphabet that samples of GUIDs show.
func newToken(n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 0, n)
	for raw := make([]byte, n); len(b) < n; {
		rand.Read(raw) // it never fails
		for _, c := range raw {
			if c < 252 && len(b) < n { // 7 × 36: each is as likely
				b = append(b, alphabet[c%36])
			}
		}
	}
	return string(b)
}

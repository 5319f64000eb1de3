package tftp

import (
	"mime"
	"strconv"
	"strings"
	"unicode/utf8"

	"edged.dev/edged/pkg/tftp/invitation"
)

// fileTransfer is the Application-GUID of file transfers.
const fileTransfer = "{5D3E02AB-6190-11D3-BBBB-00C04F795683}"

// Why an invitation is denied, as the reason label of metrics and logs.
const (
	reasonMalformed   = "malformed"
	reasonApplication = "application"
	reasonName        = "name"
	reasonExtension   = "extension"
	reasonSize        = "size"
	reasonDirection   = "direction"
	reasonUser        = "user"
	reasonFull        = "full"
	reasonDraining    = "draining"
	reasonUnknown     = "unknown"
	reasonAddress     = "address"
	reasonPort        = "port"
	reasonOwnAddress  = "own_address"
	reasonTarget      = "target"
	reasonExhausted   = "exhausted"
	reasonLimit       = "limit"
	reasonNetwork     = "network"
	reasonKeys        = "keys"
	reasonStranger    = "stranger"
)

// isInvitation tells whether a media type is that of invitations, and whether its text is UTF-8.
func isInvitation(mediaType []byte) (is, utf8 bool) {
	const kind = "text/x-msmsgsinvite"
	name, rest, _ := strings.Cut(string(mediaType), ";")
	if name = strings.Join(strings.Fields(name), ""); len(name) < len(kind) || !strings.EqualFold(name[:len(kind)], kind) {
		return false, false
	}
	if len(name) > len(kind) {
		return true, false // clients look at the beginning only
	}
	if strings.TrimSpace(rest) == "" {
		return true, true
	}
	_, params, err := mime.ParseMediaType(kind + ";" + rest)
	charset := strings.ToLower(params["charset"])
	return true, err == nil && (charset == "" || charset == "utf-8" || charset == "us-ascii")
}

// judge returns why an invitation is denied, "" if it is not. Foreign tells that it is for another
// application that may pass.
func (e *Editor) judge(c Content, inv *invitation.Invitation) (reason string, foreign bool) {
	guid := inv.Value(invitation.GUID)
	if !strings.EqualFold(guid, fileTransfer) {
		for _, g := range e.cfg.GUIDs {
			if strings.EqualFold(g, guid) {
				return "", true
			}
		}
		return reasonApplication, false
	}
	switch {
	case e.draining:
		return reasonDraining, false
	case !e.cfg.allowedUsers(address(c.From), address(c.To)):
		return reasonUser, false
	case !e.allowedDirection(c.Sender.Network, c.Receiver.Network):
		return reasonDirection, false
	}
	return e.cfg.judgeFile(inv.Value(invitation.File), inv.Value(invitation.FileSize)), false
}

// judgeFile applies the rules for names and sizes.
func (c *Config) judgeFile(name, size string) string {
	for _, reading := range readings(name) {
		parts, plain := extensions(reading)
		switch {
		case !plain:
			return reasonName
		case !extensionAllowed(parts, c.Deny, c.Allow):
			return reasonExtension
		}
	}
	n, known := fileSize(size)
	switch {
	case !known && size != "":
		return reasonMalformed
	case c.MaxSize > 0 && (!known || n > int64(c.MaxSize)):
		return reasonSize
	}
	return ""
}

// fileSize reads Application-FileSize.
func fileSize(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}

// allowedUsers applies the rules for who sends to whom, both user@domain in lower case.
func (c *Config) allowedUsers(from, to string) bool {
	for _, r := range c.Policy {
		if fits(r.From, from) && fits(r.To, to) {
			return r.Allow
		}
	}
	return true
}

// allowedDirection compares the networks by their trust: between two of the same trust files may always go.
func (e *Editor) allowedDirection(from, to string) bool {
	in, out := e.nets[to].Trusted, e.nets[from].Trusted
	switch {
	case in == out || e.cfg.Directions == Both:
		return true
	case in:
		return e.cfg.Directions == In
	}
	return e.cfg.Directions == Out
}

// address reduces a URI to user@domain in lower case, without port, password, parameters and needless escapes.
func address(uri string) string {
	uri = strings.Trim(uri, "<> \t")
	_, rest, ok := strings.Cut(uri, ":")
	if !ok {
		rest = uri
	}
	user, host := "", rest
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		user, host = rest[:at], rest[at+1:]
		user, _, _ = strings.Cut(user, ";")
		user, _, _ = strings.Cut(user, ":")
		if plain := unescape(user); plain != user && utf8.ValidString(plain) && !strings.ContainsAny(plain, "@:;? %") {
			user = plain
		}
		user += "@"
	}
	if i := strings.IndexAny(host, ";?"); i >= 0 {
		host = host[:i]
	}
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	return strings.ToLower(user + strings.TrimRight(strings.TrimSpace(host), "."))
}

// fits matches a text in lower case with a pattern of * and ?; the empty one fits all. (path.Match would stop at slashes.)
func fits(pattern, text string) bool {
	if pattern == "" {
		return true
	}
	pattern = strings.ToLower(pattern)
	p, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

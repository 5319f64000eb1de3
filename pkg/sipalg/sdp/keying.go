package sdp

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strconv"
)

// Keys of SRTP in a description. With SDES (RFC 4568) each side says the keys of what it sends, in lines of which
// the answer takes one, and the profile in the m-line is RTP/SAVP or RTP/SAVPF:
//
//	a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:BASE64(key, salt)|2^31|1:1

// Security is how one m-line's media are protected for the receiver.
type Security struct {
	// Profile replaces the transport of the m-line, e.g. RTP/SAVP. The m-line of a rejected stream gets it too.
	Profile string
	// Attributes are put where the m-line is not rejected, without "a=". All lines of SRTP's keys are removed.
	Attributes []string
	// Ends says that the sender's transport ends at the edge, whatever Rewrite.ICE is: what it says of ICE, of multiplexing
	// and bundling (rtcp-mux, mid, group), of its sources (ssrc, msid) and of extensions of the packets' headers is removed, and
	// feedback (rtcp-fb) where Profile has none. So is a=sendrecv where the address says hold, which is not written: say it by Attributes.
	Ends bool
	// MID is put as a=mid, also where the m-line is rejected; empty: there is none.
	MID string
}

// Crypto is an a=crypto line that can be used as it is: one key, and no session parameters but those that may be ignored.
type Crypto struct {
	Tag   uint32
	Suite []byte
	// Key is the master key and the master salt.
	Key []byte
	// MKI stands in each packet; empty: nothing does.
	MKI []byte
}

// maxCryptos bounds the lines of an m-line that are looked at.
const maxCryptos = 16

// Cryptos returns the lines of m-line i that can be used, in their order.
func (s *Session) Cryptos(i int) []Crypto {
	var all []Crypto
	seen := 0
	for n := range s.marks {
		k := &s.marks[n]
		if k.kind != markKeying || int(k.media) != i || !prefixFold(s.raw[k.start+2:], "crypto:") {
			continue
		}
		if seen++; seen > maxCryptos {
			break
		}
		if c, ok := parseCrypto(s.raw[k.from:k.to]); ok {
			all = append(all, c)
		}
	}
	return all
}

// Certificate returns what a=fingerprint (RFC 8122 §5) says of the certificate of m-line i: the hash's name in lower
// case, and the value. Of several lines the first with SHA-256 counts, of the m-line's level before the session's.
func (s *Session) Certificate(i int) (hash string, value []byte, ok bool) {
	for _, level := range [...]int{i, -1} {
		seen := 0
		for n := range s.marks {
			k := &s.marks[n]
			if k.kind != markKeying || int(k.media) != level || !prefixFold(s.raw[k.start+2:], "fingerprint:") {
				continue
			}
			if seen++; seen > maxCryptos {
				break
			}
			name, v, good := parseFingerprint(s.raw[k.from:k.to])
			if good && (!ok || hash != "sha-256" && name == "sha-256") {
				hash, value, ok = name, v, true
			}
		}
		if ok {
			return hash, value, true
		}
	}
	return "", nil, false
}

// parseFingerprint reads "sha-256 4A:AD:B9:...".
func parseFingerprint(b []byte) (hash string, value []byte, ok bool) {
	f := bytes.Fields(b)
	if len(f) != 2 || len(f[0]) > 16 || len(f[1]) > 3*64 {
		return "", nil, false
	}
	for _, c := range f[0] {
		if c > 0x7e {
			return "", nil, false
		}
	}
	value, err := hex.DecodeString(string(bytes.ReplaceAll(f[1], []byte{':'}, nil)))
	return string(bytes.ToLower(f[0])), value, err == nil && len(f[1]) == 3*len(value)-1
}

func parseCrypto(value []byte) (c Crypto, ok bool) {
	f := bytes.Fields(value)
	if len(f) < 3 || len(f[0]) > 9 {
		return c, false
	}
	tag, err := strconv.ParseUint(string(f[0]), 10, 32)
	if err != nil {
		return c, false
	}
	for _, p := range f[3:] {
		// WSH is a hint (RFC 4568 §6.3.6); what begins with "-" may be ignored (§6.3.7). All others change the packets.
		if !prefixFold(p, "wsh=") && p[0] != '-' {
			return c, false
		}
	}
	c.Tag, c.Suite = uint32(tag), f[1]
	return c, c.parseKey(f[2])
}

// parseKey reads "inline:BASE64|LIFETIME|MKI:LENGTH" (RFC 4568 §6.1), of which the last two may be missing.
func (c *Crypto) parseKey(b []byte) bool {
	if !prefixFold(b, "inline:") || len(b) > 256 || bytes.IndexByte(b, ';') >= 0 {
		return false
	}
	parts := bytes.Split(b[len("inline:"):], []byte{'|'})
	key, err := base64.RawStdEncoding.DecodeString(string(bytes.TrimRight(parts[0], "=")))
	if err != nil {
		return false
	}
	c.Key = key
	for _, p := range parts[1:] {
		value, length, isMKI := bytes.Cut(p, []byte{':'})
		if isMKI && !c.parseMKI(value, length) {
			return false
		}
	}
	return len(parts) <= 3
}

// parseMKI reads a decimal value and its length in octets. Longer ones than a 64-bit number are in no use.
func (c *Crypto) parseMKI(value, length []byte) bool {
	v, err := strconv.ParseUint(string(value), 10, 64)
	n, err2 := strconv.ParseUint(string(length), 10, 8)
	if err != nil || err2 != nil || n < 1 || n > 8 || n < 8 && v>>(8*n) != 0 {
		return false
	}
	c.MKI = make([]byte, n)
	for i := range c.MKI {
		c.MKI[i] = byte(v >> (8 * (int(n) - 1 - i)))
	}
	return true
}

// AppendCrypto appends the value of an attribute that says c, without an MKI: "crypto:1 SUITE inline:BASE64".
func (c Crypto) AppendCrypto(dst []byte) []byte {
	dst = strconv.AppendUint(append(dst, "crypto:"...), uint64(c.Tag), 10)
	dst = append(append(append(dst, ' '), c.Suite...), " inline:"...)
	return base64.StdEncoding.AppendEncode(dst, c.Key)
}

// security returns what is to be said of m-line i, nil if what the sender says stays.
func (w *writer) security(i int) *Security {
	if i < 0 || i >= len(w.r.Media) {
		return nil
	}
	return w.r.Media[i].Security
}

// editProfile replaces the third field of an m= line.
func (w *writer) editProfile(k *mark) {
	sec := w.security(int(k.media))
	if sec == nil {
		return
	}
	var t [3][2]int
	w.s.tokens(k.start+2, k.next, t[:])
	from, proto := t[2][0], w.s.media[k.media].Proto
	if string(proto) == sec.Profile {
		return
	}
	w.upTo(from)
	w.dst = append(w.dst, sec.Profile...)
	w.pos = from + len(proto)
}

// editKeying removes a line of the sender's keys where others are written, or none.
func (w *writer) editKeying(k *mark) {
	drop := w.security(int(k.media)) != nil
	for i := 0; k.media < 0 && !drop && i < len(w.r.Media); i++ {
		drop = w.r.Media[i].Security != nil
	}
	if drop {
		w.drop(k)
	}
}

// ends tells whether the sender's transport of m-line i ends at the edge; at the session level (-1), whether that of any does.
func (w *writer) ends(i int) bool {
	if i < 0 {
		return slices.ContainsFunc(w.r.Media, func(p Placement) bool { return p.Security != nil && p.Security.Ends })
	}
	sec := w.security(i)
	return sec != nil && sec.Ends
}

// editTransport removes a line that is between the sender and the edge.
func (w *writer) editTransport(k *mark) {
	switch {
	case !w.ends(int(k.media)):
	case k.kind == markSendRecv && (k.media < 0 || !w.s.media[k.media].heldByAddress()):
	case k.kind == markFeedback && k.media >= 0 && suffixFold([]byte(w.security(int(k.media)).Profile), "f"):
	default:
		w.drop(k)
	}
}

// Credentials returns what a=ice-ufrag and a=ice-pwd (RFC 8839 §5.4) say of m-line i, at its level or the session's. It is not ok
// if one is missing, or cannot be.
func (s *Session) Credentials(i int) (ufrag, pwd string, ok bool) {
	ufrag, pwd = s.ice(i, "ice-ufrag:"), s.ice(i, "ice-pwd:")
	return ufrag, pwd, len(ufrag) >= 4 && len(pwd) >= 22
}

// ice returns the value of an attribute of ICE, empty if it is none of ICE's characters.
func (s *Session) ice(i int, name string) string {
	for _, level := range [...]int{i, -1} {
		for n := range s.marks {
			k := &s.marks[n]
			if k.kind != markICE || int(k.media) != level || !prefixFold(s.raw[k.start+2:], name) {
				continue
			}
			v := bytes.Trim(s.raw[k.from:k.to], " \t")
			if len(v) > 256 || bytes.ContainsFunc(v, notICE) {
				return ""
			}
			return string(v)
		}
	}
	return ""
}

// notICE tells whether a character is none of RFC 8839's ice-char.
func notICE(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '+' && r != '/'
}

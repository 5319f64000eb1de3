package sipalg

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"edged.dev/edged/pkg/sipalg/flow"
)

// msg is a message as a test reads it: by a reader of its own, so that no fault of the codec hides.
type msg struct {
	raw, start string
	method     string
	status     int
	lines      []string
	body       string
}

func parseMsg(raw string) *msg {
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	m := &msg{raw: raw, body: body}
	for i, l := range strings.Split(head, "\r\n") {
		switch {
		case i == 0:
			m.start = l
		case l != "" && (l[0] == ' ' || l[0] == '\t'):
			m.lines[len(m.lines)-1] += "\r\n" + l
		default:
			m.lines = append(m.lines, l)
		}
	}
	if rest, ok := strings.CutPrefix(m.start, "SIP/2.0 "); ok {
		fmt.Sscan(rest, &m.status)
	} else {
		m.method, _, _ = strings.Cut(m.start, " ")
	}
	return m
}

func name(line string) string {
	n, _, _ := strings.Cut(line, ":")
	n = strings.ToLower(strings.TrimSpace(n))
	long := map[string]string{"v": "via", "m": "contact", "l": "content-length", "c": "content-type", "f": "from", "t": "to", "i": "call-id", "r": "refer-to"}
	if l, ok := long[n]; ok {
		return l
	}
	return n
}

// all returns the elements of a header field.
func (m *msg) all(want string) (list []string) {
	for _, l := range m.lines {
		if name(l) != strings.ToLower(want) {
			continue
		}
		_, v, _ := strings.Cut(l, ":")
		for e := range strings.SplitSeq(v, ",") {
			list = append(list, strings.TrimSpace(e))
		}
	}
	return list
}

func (m *msg) get(want string) string {
	for _, l := range m.lines {
		if name(l) == strings.ToLower(want) {
			_, v, _ := strings.Cut(l, ":")
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (m *msg) cseq() string { return strings.Join(strings.Fields(m.get("CSeq")), " ") }

func (m *msg) ruri() string { return strings.Fields(m.start)[1] }

// untouchable returns the header fields that the edge must pass byte for byte.
func (m *msg) untouchable() (list []string) {
	for _, l := range m.lines {
		switch name(l) {
		case "via", "record-route", "route", "max-forwards", "contact", "content-length", "refer-to":
		default:
			list = append(list, l)
		}
	}
	return list
}

// uriOf takes the URI out of a name-addr.
func uriOf(v string) string {
	if i := strings.IndexByte(v, '<'); i >= 0 {
		return v[i+1 : i+strings.IndexByte(v[i:], '>')]
	}
	v, _, _ = strings.Cut(v, ";")
	return v
}

// hostOf returns where a URI leads and by which transport.
func hostOf(t testing.TB, uri string) (netip.AddrPort, flow.Proto) {
	t.Helper()
	_, rest, _ := strings.Cut(uri, ":")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	rest, _, _ = strings.Cut(rest, "?")
	host, params, _ := strings.Cut(rest, ";")
	proto := flow.UDP
	for p := range strings.SplitSeq(params, ";") {
		if v, ok := strings.CutPrefix(p, "transport="); ok {
			proto = flow.ParseProto(v)
		}
	}
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return netip.AddrPortFrom(a, 5060), proto
	}
	a, err := netip.ParseAddrPort(host)
	if err != nil {
		t.Fatalf("%s leads nowhere: %v", uri, err)
	}
	return a, proto
}

func tagOf(v string) string {
	_, tag, _ := strings.Cut(v, ";tag=")
	tag, _, _ = strings.Cut(tag, ";")
	return tag
}

func withBody(head, body string) string { return withType(head, "application/sdp", body) }

func withType(head, contentType, body string) string {
	head = crlf(head)
	if body == "" {
		return head + "Content-Length: 0\r\n\r\n"
	}
	return head + "Content-Type: " + contentType + "\r\nContent-Length: " + fmt.Sprint(len(body)) + "\r\n\r\n" + body
}

// sdpOf is a phone's session description.
func sdpOf(addr string, port int) string {
	fam := "IP4"
	if bytes.ContainsRune([]byte(addr), ':') {
		fam = "IP6"
	}
	return fmt.Sprintf("v=0\r\no=- 1 1 IN %s %s\r\ns=-\r\nc=IN %s %s\r\nt=0 0\r\nm=audio %d RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n", fam, addr, fam, addr, port)
}

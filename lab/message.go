//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
)

// Message is a SIP message as a peer of the lab received it. The reader is simple on purpose: it is
// the judge of edged's messages and shares no code with it.
type Message struct {
	Start  string
	Fields []Field
	Body   string
	Remote netip.AddrPort
	conn   net.Conn // the connection that it came on, nil for UDP
}

// Field is one header field line.
type Field struct{ Name, Value string }

// compact forms (RFC 3261 §7.3.3) of the fields that the lab reads
var compact = map[string]string{"v": "Via", "f": "From", "t": "To", "i": "Call-Id", "m": "Contact", "l": "Content-Length", "c": "Content-Type"}

// parseMessage reads one message; the body is what Content-Length says, or all that is left in a datagram.
func parseMessage(r *bufio.Reader, datagram bool) (*Message, error) {
	m := &Message{}
	for m.Start == "" { // CRLF between messages is a keep-alive
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		m.Start = strings.TrimRight(line, "\r\n")
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("cut header: %w", err)
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("header line %q", line)
		}
		m.Fields = append(m.Fields, Field{strings.TrimSpace(name), strings.TrimSpace(value)})
	}
	return m, m.readBody(r, datagram)
}

func (m *Message) readBody(r *bufio.Reader, datagram bool) error {
	n, err := strconv.Atoi(m.Get("Content-Length"))
	if err != nil || n < 0 || n > 1<<20 {
		if !datagram {
			return fmt.Errorf("Content-Length %q", m.Get("Content-Length"))
		}
		b, err := io.ReadAll(r)
		m.Body = string(b)
		return err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("cut body: %w", err)
	}
	m.Body = string(b)
	return nil
}

func parseDatagram(b []byte) (*Message, error) {
	return parseMessage(bufio.NewReader(bytes.NewReader(b)), true)
}

func canonical(name string) string {
	if long, ok := compact[strings.ToLower(name)]; ok {
		return long
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

// Get returns the first value of a field, "" if there is none.
func (m *Message) Get(name string) string {
	if all := m.All(name); len(all) > 0 {
		return all[0]
	}
	return ""
}

// All returns all values of a field; Via, Route and Record-Route lists are split at their commas.
func (m *Message) All(name string) (values []string) {
	want := canonical(name)
	for _, f := range m.Fields {
		if canonical(f.Name) != want {
			continue
		}
		switch want {
		case "Via", "Route", "Record-Route":
			for v := range strings.SplitSeq(f.Value, ",") {
				values = append(values, strings.TrimSpace(v))
			}
		default:
			values = append(values, f.Value)
		}
	}
	return values
}

// Method returns the method of a request, or of the request that a response answers.
func (m *Message) Method() string {
	if m.Status() == 0 {
		method, _, _ := strings.Cut(m.Start, " ")
		return method
	}
	_, method, _ := strings.Cut(m.Get("CSeq"), " ")
	return strings.TrimSpace(method)
}

// URI returns the Request-URI, "" for a response.
func (m *Message) URI() string {
	if parts := strings.Split(m.Start, " "); m.Status() == 0 && len(parts) == 3 {
		return parts[1]
	}
	return ""
}

// Status returns the status code, 0 for a request.
func (m *Message) Status() int {
	rest, ok := strings.CutPrefix(m.Start, "SIP/2.0 ")
	if !ok {
		return 0
	}
	code, _, _ := strings.Cut(rest, " ")
	n, _ := strconv.Atoi(code)
	return n
}

// CallID returns the Call-ID.
func (m *Message) CallID() string { return m.Get("Call-ID") }

// Tag returns the tag parameter of From or To, "" if there is none.
func (m *Message) Tag(field string) string { return param(m.Get(field), "tag") }

func param(value, name string) string {
	for p := range strings.SplitSeq(value[strings.LastIndexByte(value, '>')+1:], ";") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(p), name+"="); ok {
			return v
		}
	}
	return ""
}

// uriOf returns the URI of a name-addr or addr-spec.
func uriOf(value string) string {
	if a, b := strings.IndexByte(value, '<'), strings.IndexByte(value, '>'); a >= 0 && b > a {
		return value[a+1 : b]
	}
	uri, _, _ := strings.Cut(value, ";")
	return strings.TrimSpace(uri)
}

// hostPort returns the address in a URI whose host is an IP address; port 5060 if it names none.
func hostPort(uri string) (netip.AddrPort, error) {
	s := uri[strings.IndexByte(uri, ':')+1:]
	s = s[strings.LastIndexByte(s, '@')+1:]
	if i := strings.IndexAny(s, ";?>"); i >= 0 {
		s = s[:i]
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("URI %q: %w", uri, err)
	}
	return netip.AddrPortFrom(a, 5060), nil
}

// Offer is a session description to be sent.
type Offer struct {
	Addr  netip.AddrPort
	Lines []string // more lines of the media section
	Media string   // "audio PORT RTP/AVP 0" if empty
	Dir   string   // sendrecv if empty
	Ver   int
}

// String returns the text.
func (o Offer) String() string {
	ip := addressType(o.Addr.Addr())
	if o.Media == "" {
		o.Media = fmt.Sprintf("audio %d RTP/AVP 0", o.Addr.Port())
	}
	if o.Dir == "" {
		o.Dir = "sendrecv"
	}
	lines := []string{"v=0", fmt.Sprintf("o=- 77 %d IN %s", o.Ver+1, ip), "s=-", "c=IN " + ip, "t=0 0", "m=" + o.Media, "a=" + o.Dir}
	return strings.Join(append(lines, o.Lines...), "\r\n") + "\r\n"
}

func addressType(a netip.Addr) string {
	if a.Is4() {
		return "IP4 " + a.String()
	}
	return "IP6 " + a.String()
}

// mediaAddr returns the address of the n-th media section of a session description.
func mediaAddr(sdp string, n int) (netip.AddrPort, error) {
	var session, current netip.Addr
	var port uint16
	at := -1
	for line := range strings.SplitSeq(sdp, "\n") {
		line = strings.TrimRight(line, "\r")
		switch {
		case strings.HasPrefix(line, "m="):
			if at == n {
				return netip.AddrPortFrom(current, port), nil
			}
			at++
			current = session
			if f := strings.Fields(line); len(f) > 1 {
				p, _ := strconv.ParseUint(f[1], 10, 16)
				port = uint16(p)
			}
		case strings.HasPrefix(line, "c=IN "):
			if f := strings.Fields(line); len(f) == 3 {
				current, _ = netip.ParseAddr(f[2])
			}
			if at < 0 {
				session = current
			}
		}
	}
	if at != n || !current.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("no address for media %d in %q", n, sdp)
	}
	return netip.AddrPortFrom(current, port), nil
}

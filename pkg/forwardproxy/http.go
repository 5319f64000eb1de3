package forwardproxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxHead bounds a request with its header: clients of a domain may send a ticket that nobody has asked for.
	maxHead = 16 << 10
	// maxRequests bounds the attempts on one connection: without a password, with one, with another.
	maxRequests = 4
)

// What is wrong with a request.
var (
	errLong   = errors.New("request too long")
	errForm   = errors.New("malformed request")
	errMethod = errors.New("only CONNECT is served")
)

// connectRequest is a request of HTTP.
type connectRequest struct {
	host string
	port uint16
	// login is the value of Proxy-Authorization.
	login string
	// keep says that the client sends another request on the connection if this one fails (RFC 9112 §9.3).
	keep bool
}

// readHead reads a request up to its empty line, at most maxHead octets. An [io.EOF] before the first octet is the end.
func readHead(r *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := r.ReadSlice('\n')
		if len(head)+len(line) > maxHead {
			return nil, errLong
		}
		head = append(head, line...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(head) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case len(head) == 2 && string(head) == "\r\n": // before a request line (RFC 9112 §2.2)
			head = head[:0]
		case bytes.HasSuffix(head, []byte("\r\n\r\n")):
			return head, nil
		}
	}
}

// parseConnect reads what readHead has returned. After errMethod keep is right, after other errors nothing is.
func parseConnect(head []byte) (connectRequest, error) {
	if bytes.ContainsAny(head, "\x00") {
		return connectRequest{}, errForm
	}
	lines := strings.Split(strings.TrimSuffix(string(head), "\r\n\r\n"), "\r\n")
	method, rest, ok := strings.Cut(lines[0], " ")
	authority, version, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || method == "" || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return connectRequest{}, errForm
	}
	q := connectRequest{keep: version == "HTTP/1.1"}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.ContainsAny(name, " \t\r\n") || name == "" || strings.ContainsAny(value, "\r\n") {
			return connectRequest{}, errForm // folded lines (RFC 9112 §5.2), and what is no field
		}
		if err := q.field(strings.ToLower(name), strings.Trim(value, " \t")); err != nil {
			return connectRequest{}, err
		}
	}
	if method != "CONNECT" {
		return q, errMethod
	}
	host, port, err := readAuthority(authority)
	q.host, q.port = host, port
	return q, err
}

// field takes what a field of the header says.
func (q *connectRequest) field(name, value string) error {
	switch name {
	case "proxy-authorization":
		if _, _, basic := readBasic(value); basic || q.login == "" { // some offer Basic and NTLM at once
			q.login = value
		}
	case "connection", "proxy-connection":
		switch {
		case strings.EqualFold(value, "close"):
			q.keep = false
		case strings.EqualFold(value, "keep-alive"):
			q.keep = true
		}
	case "content-length": // what follows a CONNECT is the tunnel's (RFC 9110 §9.3.6)
		if value != "0" {
			return errForm
		}
	case "transfer-encoding":
		return errForm
	}
	return nil
}

// readAuthority reads "host:port" (RFC 9112 §3.2.3).
func readAuthority(text string) (string, uint16, error) {
	colon := strings.LastIndexByte(text, ':')
	if colon <= 0 {
		return "", 0, errHost
	}
	host := text[:colon]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if a, err := netip.ParseAddr(inner); !ok || err != nil || !a.Is6() {
			return "", 0, errHost
		}
		host = inner
	} else if strings.Contains(host, ":") {
		return "", 0, errHost
	}
	port, err := strconv.ParseUint(text[colon+1:], 10, 16)
	if err != nil || port == 0 {
		return "", 0, errHost
	}
	host, err = readHost(host)
	return host, uint16(port), err
}

// established is the answer after which the tunnel begins.
const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// refusal returns the answer for a request that got no tunnel. keep says that the connection stays open.
func refusal(status, text string, keep bool, fields ...string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %s\r\n", status)
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	connection := map[bool]string{true: "keep-alive", false: "close"}[keep]
	fmt.Fprintf(&b, "Connection: %s\r\nProxy-Connection: %s\r\n", connection, connection)
	fmt.Fprintf(&b, "Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s\n", len(text)+1, text)
	return b.Bytes()
}

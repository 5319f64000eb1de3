package groove

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

const (
	// maxHead bounds the header of a request or response; maxFields its fields.
	maxHead, maxFields = 8192, 64
	// requestAgent and responseServer are those of [MS-GRVHENC]'s examples; old proxies know no others.
	requestAgent   = "Mozilla/4.0 (compatible; MSIE 5.5; Win32)"
	responseServer = "Groove-Relay/12.0"
	// noCache are the fields that keep caches out, in requests and responses.
	noCache = "Pragma: no-cache\r\nCache-Control: no-cache\r\nCache-Control: max-age=0\r\nExpires: 0\r\n"
)

// Faults of a header.
var (
	errTooLong   = errors.New("header too long")
	errMalformed = errors.New("malformed header")
)

// head is the header of a request or a response of HTTP/1.0 or 1.1.
type head struct {
	raw   []byte // as it came, for who gets what is not ours
	first [3]string
	// length is Content-Length, -1 if there is none. Bodies that are framed otherwise are refused: the documents
	// have none.
	length  int64
	chunked bool
	persist bool // the connection goes on after this
	// challenge are the values of Proxy-Authenticate.
	challenge []string
}

// readHead reads a header. The reader's buffer bounds a line.
func readHead(br *bufio.Reader) (*head, error) {
	h := &head{length: -1}
	for n := 0; ; n++ {
		line, err := br.ReadSlice('\n')
		h.raw = append(h.raw, line...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull), len(h.raw) > maxHead, n > maxFields:
			return nil, errTooLong
		case err != nil:
			if len(h.raw) > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		text := strings.TrimRight(string(line), "\r\n")
		switch {
		case n == 0:
			err = h.firstLine(text)
		case text == "":
			return h, nil
		default:
			err = h.field(text)
		}
		if err != nil {
			return nil, err
		}
	}
}

// firstLine takes the line apart; that of a response may have words after its code.
func (h *head) firstLine(text string) error {
	parts := strings.SplitN(text, " ", 3)
	copy(h.first[:], parts)
	version := h.first[2]
	if response := strings.HasPrefix(h.first[0], "HTTP/"); response {
		version = h.first[0]
	}
	if len(parts) < 2 || version != "HTTP/1.0" && version != "HTTP/1.1" {
		return errMalformed
	}
	h.persist = version == "HTTP/1.1"
	return nil
}

func (h *head) field(text string) error {
	name, value, ok := strings.Cut(text, ":")
	value = strings.Trim(value, " \t")
	if !ok || name == "" || strings.ContainsAny(name, " \t") {
		return errMalformed
	}
	switch strings.ToLower(name) {
	case "content-length":
		n, err := strconv.ParseUint(value, 10, 62)
		if err != nil || h.length >= 0 && h.length != int64(n) {
			return errMalformed
		}
		h.length = int64(n)
	case "transfer-encoding":
		h.chunked = true
	case "connection", "proxy-connection":
		for token := range strings.SplitSeq(strings.ToLower(value), ",") {
			switch strings.Trim(token, " \t") {
			case "close":
				h.persist = false
			case "keep-alive":
				h.persist = true
			}
		}
	case "proxy-authenticate":
		h.challenge = append(h.challenge, value)
	}
	return nil
}

// request returns the header of a request. length -1 is none.
func request(method, uri, host string, keep bool, length int64, more string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.0\r\nAccept: */*\r\n", method, uri)
	if length >= 0 {
		b.WriteString("Content-Type: application/octet-stream\r\n")
	}
	fmt.Fprintf(&b, "User-Agent: %s\r\nHost: %s\r\n%s", requestAgent, host, noCache)
	if keep {
		b.WriteString("Connection: Keep-Alive\r\n")
	}
	b.WriteString(more)
	if length >= 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", length)
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// response returns the header of a response.
func response(status string, keep bool, length int64) []byte {
	connection := "close"
	if keep {
		connection = "Keep-Alive"
	}
	return fmt.Appendf(nil, "HTTP/1.0 %s\r\nDate: %s\r\nServer: %s\r\nContent-Type: application/octet-stream\r\n%sConnection: %s\r\nContent-Length: %d\r\n\r\n",
		status, time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"), responseServer, noCache, connection, length)
}

package content

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// maxHead bounds the headers of one message.
	maxHead = 32 << 10
	// icapHost is the host of which the scanner is told that the file comes from (RFC 2606 §2: nobody has it).
	icapHost = "file-transfer.invalid"
)

// icap is a file on its way to an ICAP server (RFC 3507), as the body of an HTTP response (RESPMOD §4.9) or, where the
// service has that only, of a request (REQMOD §4.8). An answer that leaves the file as it is, 204 or the same
// file again, says that nothing was found.
type icap struct {
	conn    net.Conn
	r       *bufio.Reader
	w       *bufio.Writer
	timeout time.Duration
	sum     hash.Hash
	// answer gets the one answer, which may begin before the file has ended.
	answer chan icapAnswer
}

type icapAnswer struct {
	virus string
	// sum is that of the file that came back, nil if none did.
	sum []byte
	err error
}

func beginICAP(ctx context.Context, at address, timeout time.Duration, f File) (scan, error) {
	c := &icap{timeout: timeout, sum: sha256.New(), answer: make(chan icapAnswer, 1)}
	if err := c.connect(ctx, at); err != nil {
		return nil, err
	}
	method, again, err := c.options(at)
	if err != nil {
		c.conn.Close()
		return nil, err
	}
	if again {
		c.conn.Close()
		if err := c.connect(ctx, at); err != nil {
			return nil, err
		}
	}
	if err := c.begin(at, method, f); err != nil {
		c.conn.Close()
		return nil, err
	}
	go c.listen(method)
	return c, nil
}

func (c *icap) connect(ctx context.Context, at address) error {
	conn, err := dial(ctx, at)
	if err != nil {
		return err
	}
	c.conn, c.r, c.w = conn, bufio.NewReaderSize(conn, 16<<10), bufio.NewWriterSize(conn, 64<<10)
	return nil
}

// options asks which methods the service has (RFC 3507 §4.10), and whether it wants a new connection.
func (c *icap) options(at address) (method string, again bool, err error) {
	c.conn.SetDeadline(time.Now().Add(c.timeout))
	fmt.Fprintf(c.w, "OPTIONS icap://%s/%s ICAP/1.0\r\nHost: %s\r\nEncapsulated: null-body=0\r\n\r\n", at.host, at.path, at.host)
	if err := c.w.Flush(); err != nil {
		return "", false, fmt.Errorf("icap: options: %w", err)
	}
	status, head, err := readHead(c.r)
	switch {
	case err != nil:
		return "", false, fmt.Errorf("icap: options: %w", err)
	case status != 200:
		return "", false, fmt.Errorf("icap: options: status %d", status)
	}
	again = strings.EqualFold(head.Get("Connection"), "close")
	methods := strings.ToUpper(strings.Join(head.Values("Methods"), ","))
	switch {
	case strings.Contains(methods, "RESPMOD"):
		return "RESPMOD", again, nil
	case strings.Contains(methods, "REQMOD"):
		return "REQMOD", again, nil
	}
	return "", false, fmt.Errorf("icap: options: methods %.40q are of no use", methods)
}

// begin sends all that stands before the file.
func (c *icap) begin(at address, method string, f File) error {
	c.conn.SetDeadline(time.Time{})
	c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	name := url.PathEscape(f.Name)
	length := fmt.Sprintf("Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", f.Size)
	req, res, parts := "", "", ""
	if method == "RESPMOD" {
		req = fmt.Sprintf("GET http://%s/%s HTTP/1.1\r\nHost: %s\r\n\r\n", icapHost, name, icapHost)
		res = "HTTP/1.1 200 OK\r\n" + length
		parts = fmt.Sprintf("req-hdr=0, res-hdr=%d, res-body=%d", len(req), len(req)+len(res))
	} else {
		req = fmt.Sprintf("PUT http://%s/%s HTTP/1.1\r\nHost: %s\r\n%s", icapHost, name, icapHost, length)
		parts = fmt.Sprintf("req-hdr=0, req-body=%d", len(req))
	}
	fmt.Fprintf(c.w, "%s icap://%s/%s ICAP/1.0\r\nHost: %s\r\nAllow: 204\r\nConnection: close\r\nEncapsulated: %s\r\n\r\n%s%s",
		method, at.host, at.path, at.host, parts, req, res)
	if err := c.w.Flush(); err != nil {
		return fmt.Errorf("icap: %w", err)
	}
	return nil
}

// Write implements scan.
func (c *icap) Write(b []byte) (int, error) {
	c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	c.sum.Write(b)
	if _, err := fmt.Fprintf(c.w, "%x\r\n%s\r\n", len(b), b); err != nil {
		return 0, fmt.Errorf("icap: %w", err)
	}
	return len(b), nil
}

// result implements scan.
func (c *icap) result() (string, error) {
	defer c.conn.Close()
	c.conn.SetDeadline(time.Now().Add(c.timeout))
	_, broken := c.w.WriteString("0\r\n\r\n")
	if broken == nil {
		broken = c.w.Flush()
	}
	a := <-c.answer
	switch {
	case a.err != nil:
		return "", fmt.Errorf("icap: %w", errors.Join(broken, a.err))
	case a.virus != "":
		return a.virus, nil
	case broken != nil:
		return "", fmt.Errorf("icap: %w: %w", errNotJudged, broken)
	case a.sum != nil && !bytes.Equal(a.sum, c.sum.Sum(nil)):
		return "changed by the scanner", nil
	}
	return "", nil
}

// listen waits for the answer. It ends with the connection.
func (c *icap) listen(method string) {
	a, err := c.read(method)
	a.err = err
	c.answer <- a
}

func (c *icap) read(method string) (a icapAnswer, err error) {
	status, head, err := readHead(c.r)
	if err != nil {
		return a, err
	}
	if a.virus = infection(head); a.virus != "" {
		return a, nil
	}
	switch status {
	case 204:
		return a, nil
	case 200:
	default:
		return a, fmt.Errorf("status %d: %w", status, errNotJudged)
	}
	refused, err := c.encapsulated(head.Get("Encapsulated"), method)
	if err != nil {
		return a, err
	}
	if refused {
		a.virus = "refused by the scanner"
		return a, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, httputil.NewChunkedReader(c.r)); err != nil {
		return a, fmt.Errorf("answer: %w", err)
	}
	a.sum = sum.Sum(nil)
	return a, nil
}

// infection returns what a scanner says that it found, by the headers that are usual (draft-stecher-icap-subid).
func infection(head textproto.MIMEHeader) string {
	if v := head.Get("X-Infection-Found"); v != "" {
		for field := range strings.SplitSeq(v, ";") {
			if name, ok := strings.CutPrefix(strings.TrimSpace(field), "Threat="); ok {
				return name
			}
		}
		return v
	}
	if v := head.Get("X-Virus-ID"); v != "" && !strings.EqualFold(v, "no threats") {
		return v
	}
	if lines := strings.Fields(head.Get("X-Violations-Found")); len(lines) > 0 && lines[0] != "0" {
		return "violation " + lines[0]
	}
	return ""
}

// encapsulated reads the HTTP headers of an answer, and tells whether the file is refused by them: by a status, by
// a response to a request, by there being no file.
func (c *icap) encapsulated(parts, method string) (refused bool, err error) {
	body, at := "", 0
	for part := range strings.SplitSeq(parts, ",") {
		name, offset, _ := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.Atoi(offset)
		if err != nil || n < at || n > maxHead {
			return false, fmt.Errorf("encapsulated %.80q: %w", parts, errNotJudged)
		}
		body, at = name, n
	}
	head := make([]byte, at)
	if _, err := io.ReadFull(c.r, head); err != nil {
		return false, fmt.Errorf("encapsulated: %w", err)
	}
	switch {
	case method == "RESPMOD" && body == "res-body":
		// HTTP/1.x 200 ...
		f := strings.Fields(string(head[:min(len(head), 40)]))
		return len(f) < 2 || f[1] != "200", nil
	case method == "REQMOD" && body == "req-body":
		return false, nil
	}
	return true, nil
}

// readHead reads a status line and headers.
func readHead(r *bufio.Reader) (status int, head textproto.MIMEHeader, err error) {
	var text []byte
	for !bytes.HasSuffix(text, []byte("\r\n\r\n")) {
		l, err := r.ReadSlice('\n')
		if err != nil {
			return 0, nil, fmt.Errorf("answer: %w", err)
		}
		if text = append(text, l...); len(text) > maxHead {
			return 0, nil, fmt.Errorf("answer of more than %d octets: %w", maxHead, errNotJudged)
		}
	}
	first, rest, _ := bytes.Cut(text, []byte("\r\n"))
	version, reason, _ := strings.Cut(string(first), " ")
	code, _, _ := strings.Cut(reason, " ")
	if status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(version, "ICAP/") {
		return 0, nil, fmt.Errorf("answer %.40q: %w", first, errNotJudged)
	}
	head, err = textproto.NewReader(bufio.NewReader(bytes.NewReader(rest))).ReadMIMEHeader()
	if err != nil {
		return 0, nil, fmt.Errorf("answer: %w", err)
	}
	return status, head, nil
}

package msnftp

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"

	"edged.dev/edged/pkg/pinhole"
)

const (
	// maxLine bounds a line, its end included: a verb, a URI and a number.
	maxLine = 1024
	// maxPassing bounds the lines that pass without meaning anything to the edge.
	maxPassing = 16
	// maxSize is the largest file that can be said, so that sums of sizes do not overflow.
	maxSize = 1 << 50
)

// line is a line as it came, its end included: CRLF, LF, and a NUL before it after a MAC.
type line []byte

// nextLine returns the first line of b and what follows it; false if none is complete. A line that is too
// long is an error, also before its end has come.
func nextLine(b []byte) (l line, rest []byte, ok bool, err error) {
	n := bytes.IndexByte(b, '\n') + 1
	switch {
	case n > maxLine || n == 0 && len(b) >= maxLine:
		return nil, b, false, fmt.Errorf("a line of %d octets and more: %w", maxLine, ErrProtocol)
	case n == 0:
		return nil, b, false, nil
	}
	return line(b[:n]), b[n:], true, nil
}

// words returns the words of a line, the verb first and in capitals; at least one.
func (l line) words() []string {
	w := strings.Fields(strings.TrimRight(string(l), "\x00\r\n"))
	if len(w) == 0 {
		return []string{""}
	}
	w[0] = strings.ToUpper(w[0])
	return w
}

// end returns what ends the line.
func (l line) end() string {
	if bytes.HasSuffix(l, []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

// dialects of the protocol, as VER names them.
const (
	secure = "MSN_SECURE_FTP"
	plain  = "MSNFTP"
)

// dialect returns the best one that a VER line names.
func dialect(words []string, plainToo bool) (string, error) {
	best := ""
	if words[0] != "VER" {
		return "", fmt.Errorf("%.20q instead of VER: %w", words[0], ErrProtocol)
	}
	for _, w := range words[1:] {
		switch {
		case strings.EqualFold(w, secure):
			return secure, nil
		case strings.EqualFold(w, plain) && plainToo:
			best = plain
		}
	}
	if best == "" {
		return "", fmt.Errorf("%.80q: %w", strings.Join(words[1:], " "), ErrVersion)
	}
	return best, nil
}

// fileSize reads a FIL line.
func fileSize(words []string) (int64, error) {
	if len(words) < 2 {
		return 0, fmt.Errorf("FIL without a size: %w", ErrProtocol)
	}
	n, err := strconv.ParseInt(words[1], 10, 64)
	if err != nil || n < 0 || n > maxSize || strings.HasPrefix(words[1], "+") {
		return 0, fmt.Errorf("FIL %.40q: %w", words[1], ErrProtocol)
	}
	return n, nil
}

// reader reads one side's lines. What it has read and not returned is rest.
type reader struct {
	conn net.Conn
	side pinhole.Side
	rest []byte
	// moved hears of all that is read.
	moved func(pinhole.Side, int)
}

// line waits for the next one.
func (r *reader) line() (line, error) {
	for {
		l, rest, ok, err := nextLine(r.rest)
		if ok || err != nil {
			r.rest = rest
			return l, err
		}
		b := make([]byte, maxLine)
		n, err := r.conn.Read(b)
		r.rest = append(r.rest, b[:n]...)
		r.moved(r.side, n)
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

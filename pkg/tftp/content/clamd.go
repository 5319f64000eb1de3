package content

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	dialTimeout = 5 * time.Second
	// maxReply bounds what clamd answers: one line.
	maxReply = 4 << 10
)

// clamd is a file on its way to a ClamAV daemon: zINSTREAM, chunks with their length before them (four octets, the high
// one first), an empty one last; then "stream: OK", "stream: NAME FOUND", or "... ERROR" (clamd(8)).
type clamd struct {
	conn    net.Conn
	w       *bufio.Writer
	timeout time.Duration
}

// dial connects to a scanner; the connection is closed when ctx ends.
func dial(ctx context.Context, at address) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, at.network, at.host)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at.scheme, err)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	return conn, nil
}

func beginClamd(ctx context.Context, at address, timeout time.Duration) (scan, error) {
	conn, err := dial(ctx, at)
	if err != nil {
		return nil, err
	}
	c := &clamd{conn: conn, w: bufio.NewWriterSize(conn, 64<<10), timeout: timeout}
	c.w.WriteString("zINSTREAM\x00") //nolint:errcheck // the next write would tell
	return c, nil
}

// Write implements scan.
func (c *clamd) Write(b []byte) (int, error) {
	c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	if err := binary.Write(c.w, binary.BigEndian, uint32(len(b))); err != nil {
		return 0, fmt.Errorf("clamd: %w", err)
	}
	n, err := c.w.Write(b)
	if err != nil {
		return n, fmt.Errorf("clamd: %w", err)
	}
	return n, nil
}

// result implements scan. After a write that broke off clamd has said why.
func (c *clamd) result() (string, error) {
	defer c.conn.Close()
	c.conn.SetDeadline(time.Now().Add(c.timeout))
	broken := binary.Write(c.w, binary.BigEndian, uint32(0))
	if broken == nil {
		broken = c.w.Flush()
	}
	reply, err := bufio.NewReader(io.LimitReader(c.conn, maxReply)).ReadString(0)
	if reply == "" {
		return "", fmt.Errorf("clamd: no answer: %w", errors.Join(broken, err))
	}
	text := strings.TrimSpace(strings.TrimRight(reply, "\x00"))
	text = strings.TrimPrefix(text, "stream: ")
	if name, ok := strings.CutSuffix(text, " FOUND"); ok {
		return name, nil
	}
	if text != "OK" || broken != nil {
		return "", fmt.Errorf("clamd: %s: %w", text, errors.Join(errNotJudged, broken))
	}
	return "", nil
}

var errNotJudged = errors.New("the file was not judged")

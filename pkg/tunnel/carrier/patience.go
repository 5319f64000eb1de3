package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// waitRecord says "wait" to a device whose handshake has not begun: TLS's change_cipher_spec in clear, which means nothing
// in TLS 1.3 (RFC 8446 §5) and is dropped here before the first record of the handshake.
const waitRecord = "\x14\x03\x03\x00\x01\x01"

// remind tells a device to wait for its place, or why it does not wait any more.
func remind(conn net.Conn) error {
	if tcp, _ := tcpBelow(conn); tcp != nil && hungUp(tcp) {
		return errLeft
	}
	conn.SetWriteDeadline(time.Now().Add(time.Second))
	defer conn.SetWriteDeadline(time.Time{})
	_, err := io.WriteString(conn, waitRecord)
	if errors.Is(err, os.ErrDeadlineExceeded) { // this process was short of time, or a pipe is slow: that is no end
		return nil
	}
	return err
}

// patient is a device's end of a pipe, below its TLS. It drops what remind writes, and gives up when nothing has been
// heard for some time, unlike a relay where thousands wait.
type patient struct {
	net.Conn
	limit  time.Duration
	silent *time.Timer

	// of the one reader, which crypto/tls is
	begun bool // the handshake
	first [len(waitRecord)]byte
	have  int // octets of first that have come
	given int // of those, to TLS
}

func newPatient(conn net.Conn, limit time.Duration, giveUp context.CancelCauseFunc) *patient {
	why := fmt.Errorf("no answer within %v", limit)
	return &patient{Conn: conn, limit: limit, silent: time.AfterFunc(limit, func() { giveUp(why) })}
}

// Read gives what is not to be dropped.
func (p *patient) Read(b []byte) (int, error) {
	for !p.begun {
		n, err := p.Conn.Read(p.first[p.have:])
		p.have += n
		if n > 0 {
			p.silent.Reset(p.limit)
		}
		switch {
		case string(p.first[:p.have]) != waitRecord[:p.have]:
			p.begun = true
		case err != nil:
			return 0, err
		case p.have == len(waitRecord):
			p.have = 0
		}
	}
	if p.given < p.have {
		n := copy(b, p.first[p.given:p.have])
		p.given += n
		return n, nil
	}
	return p.Conn.Read(b)
}

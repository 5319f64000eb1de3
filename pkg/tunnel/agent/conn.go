package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"time"

	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/sealed"
)

// chunk is how much is written to TLS at once: its record then fits into one frame of the session.
const chunk = 16<<10 - 64

// tokenLabel is that of the exporter (RFC 8446 §7.5) that a Conn's token comes from.
const tokenLabel = "EXPORTER-edged-bulk"

// handshakeTime bounds the handshake of two devices, and the called one's answer.
const handshakeTime = 20 * time.Second

// Conn is a stream to another device: TLS from end to end. It is a net.Conn whose directions end separately.
type Conn struct {
	*tls.Conn
	below  *bulk.Conn
	reads  *records // between the two
	peer   device.ID
	token  [16]byte     // names it to both ends, and to nobody else
	sealed *sealed.Conn // nil without datagrams
}

// awayTime is how long a new stream waits for a relay that is not reached: an application had better hear of it.
const awayTime = 8 * time.Second

// ErrCut says that the stream ended without the other device's word. Whoever is between could end it like that.
var ErrCut = errors.New("the stream is cut off")

// handshake secures a stream. The configuration pins the other's key. worth is called when the stream is worth a
// connection of its own; nil: it is the other's to say.
func handshake(ctx context.Context, s *mux.Stream, cfg *tls.Config, client, datagrams bool, peer device.ID, worth func(*Conn)) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	c := &Conn{peer: peer}
	var say func()
	if worth != nil {
		say = func() { worth(c) }
	}
	c.below = bulk.New(s, say)
	c.reads = &records{Conn: c.below}
	if c.Conn = tls.Server(c.reads, cfg); client {
		c.Conn = tls.Client(c.reads, cfg)
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake with %s: %w", peer.Short(), err)
	}
	state := c.ConnectionState()
	name, err := state.ExportKeyingMaterial(tokenLabel, nil, len(c.token))
	if err != nil {
		return nil, fmt.Errorf("handshake with %s: %w", peer.Short(), err)
	}
	c.token = [16]byte(name)
	if datagrams {
		if c.sealed, err = sealed.New(s, &state, client); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Peer returns whose key is at the other end.
func (c *Conn) Peer() device.ID { return c.peer }

// Datagrams returns what seals and opens the stream's datagrams; nil if it has none.
func (c *Conn) Datagrams() *sealed.Conn { return c.sealed }

// Read reads one record, and those behind it that have come already.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for n > 0 && n < len(b) && err == nil && c.reads.ready.Load() {
		var more int
		more, err = c.Conn.Read(b[n:])
		n += more
	}
	return n, err
}

// Write writes b in records that fit frames.
func (c *Conn) Write(b []byte) (total int, err error) {
	if len(b) > chunk {
		c.below.Hold()
		defer c.below.Release()
	}
	for len(b) > 0 && err == nil {
		var n int
		n, err = c.Conn.Write(b[:min(len(b), chunk)])
		total += n
		b = b[n:]
	}
	return total, err
}

// CloseWrite ends the direction to the other device, after what was written: by TLS's own end, so that nobody between
// can end it instead, and then that of the stream.
func (c *Conn) CloseWrite() error {
	if err := c.Conn.CloseWrite(); err != nil {
		return err
	}
	_ = c.below.SetWriteDeadline(time.Time{}) // crypto/tls leaves one that is over
	return c.below.CloseWrite()
}

// Reset ends both directions at both ends; what is under way is lost.
func (c *Conn) Reset(code mux.Code) { c.below.Reset(code) }

// Close ends both directions. What was written arrives.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	_ = c.below.Close() // TLS has closed it, unless it was closed before
	return err
}

// answer tells the calling device how it went: 0 and the stream is the service's, or why not.
func (c *Conn) answer(code mux.Code) error {
	c.SetWriteDeadline(time.Now().Add(handshakeTime))
	defer c.SetWriteDeadline(time.Time{})
	_, err := c.Write([]byte{byte(code)})
	return err
}

// answered reads what answer wrote.
func (c *Conn) answered(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var code [1]byte
	if _, err := io.ReadFull(c, code[:]); err != nil {
		return err
	}
	if code[0] != byte(mux.CodeClosed) {
		return &mux.ResetError{Code: mux.Code(code[0])}
	}
	return nil
}

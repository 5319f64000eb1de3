package carrier

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 6455 §4.2.2 has nothing else
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// WebSocketPath is where the relay takes WebSockets (RFC 6455).
const WebSocketPath = "/edged/tunnel"

// Opcodes and bits of a frame (RFC 6455 §5.2).
const (
	opContinue = 0x0
	opBinary   = 0x2
	opClose    = 0x8
	opPing     = 0x9
	opPong     = 0xa
	bitFinal   = 0x80
	bitMask    = 0x80

	maxControl = 125      // octets of a control frame's body
	wsChunk    = 32 << 10 // octets of one frame that we send
)

// webSocket carries bytes in binary messages. What frames they came in means nothing: a middlebox may cut and join them.
type webSocket struct {
	net.Conn
	br     *bufio.Reader
	client bool // frames of clients are masked

	// of the reader
	left   uint64 // octets of the frame's body that are still to be read
	mask   [4]byte
	masked int // octets of the body that were read: where in the mask the next one is
	inside bool

	mu     sync.Mutex // of who writes
	out    []byte
	closed bool
}

func newWebSocket(conn net.Conn, br *bufio.Reader, client bool) *webSocket {
	return &webSocket{Conn: conn, br: br, client: client}
}

// Read returns bytes of binary messages; a close frame is the end.
func (w *webSocket) Read(b []byte) (int, error) {
	for w.left == 0 {
		if err := w.next(); err != nil {
			return 0, err
		}
	}
	n, err := w.br.Read(b[:min(uint64(len(b)), w.left)])
	w.unmask(b[:n])
	w.left -= uint64(n)
	return n, err
}

// next reads the header of the next frame that has data, and deals with control frames.
func (w *webSocket) next() error {
	op, size, err := w.header()
	if err != nil {
		return err
	}
	switch {
	case op >= opClose:
		return w.control(op, size)
	case op == opContinue && !w.inside, op != opContinue && op != opBinary:
		return fmt.Errorf("websocket: opcode %#x", op)
	}
	w.left = size
	return nil
}

// header reads a frame's header, and notes whether its message goes on.
func (w *webSocket) header() (op byte, size uint64, err error) {
	var h [8]byte
	if _, err := io.ReadFull(w.br, h[:2]); err != nil {
		return 0, 0, err
	}
	op = h[0] & 0x0f
	final, masked := h[0]&bitFinal != 0, h[1]&bitMask != 0
	size = uint64(h[1] &^ bitMask)
	switch {
	case h[0]&0x70 != 0:
		return 0, 0, errors.New("websocket: an extension that nobody asked for")
	case masked == w.client:
		return 0, 0, errors.New("websocket: a frame of the wrong side")
	case op >= opClose && (!final || size > maxControl):
		return 0, 0, errors.New("websocket: a control frame in parts, or too long")
	case op == opBinary && w.inside:
		return 0, 0, errors.New("websocket: a message within a message")
	}
	ext := map[uint64]int{126: 2, 127: 8}[size]
	if ext > 0 {
		if _, err := io.ReadFull(w.br, h[:ext]); err != nil {
			return 0, 0, unexpected(err)
		}
		size = 0
		for _, c := range h[:ext] {
			size = size<<8 | uint64(c)
		}
		if size>>63 != 0 {
			return 0, 0, errors.New("websocket: a length with the highest bit")
		}
	}
	w.mask, w.masked = [4]byte{}, 0
	if masked {
		if _, err := io.ReadFull(w.br, w.mask[:]); err != nil {
			return 0, 0, unexpected(err)
		}
	}
	if op < opClose {
		w.inside = !final
	}
	return op, size, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// control answers a ping, and a close, which is the end.
func (w *webSocket) control(op byte, size uint64) error {
	body := make([]byte, size)
	if _, err := io.ReadFull(w.br, body); err != nil {
		return unexpected(err)
	}
	w.unmask(body)
	switch op {
	case opClose:
		_ = w.send(opClose, body[:min(len(body), 2)])
		return io.EOF
	case opPing:
		return w.send(opPong, body)
	case opPong:
		return nil
	}
	return fmt.Errorf("websocket: opcode %#x", op)
}

func (w *webSocket) unmask(b []byte) {
	maskBytes(b, w.mask, w.masked)
	w.masked = (w.masked + len(b)) & 3
}

// maskBytes combines b with the mask (RFC 6455 §5.3), from its octet at on.
func maskBytes(b []byte, mask [4]byte, at int) {
	if mask == [4]byte{} {
		return
	}
	turned := [8]byte{}
	for i := range turned {
		turned[i] = mask[(at+i)&3]
	}
	word := binary.LittleEndian.Uint64(turned[:])
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^word)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= turned[i]
	}
}

// Write sends b in binary messages.
func (w *webSocket) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) || n == 0 {
		part := b[n:min(len(b), n+wsChunk)]
		if err := w.send(opBinary, part); err != nil {
			return n, err
		}
		if n += len(part); len(part) == 0 {
			break
		}
	}
	return n, nil
}

// send writes one final frame.
func (w *webSocket) send(op byte, body []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return net.ErrClosed
	}
	w.closed = op == opClose
	w.out = append(w.out[:0], bitFinal|op, 0)
	switch n := len(body); {
	case n <= maxControl:
		w.out[1] = byte(n)
	case n <= 0xffff:
		w.out[1] = 126
		w.out = binary.BigEndian.AppendUint16(w.out, uint16(n))
	default:
		w.out[1] = 127
		w.out = binary.BigEndian.AppendUint64(w.out, uint64(n))
	}
	if !w.client {
		w.out = append(w.out, body...)
	} else {
		w.out[1] |= bitMask
		var mask [4]byte
		_, _ = rand.Read(mask[:]) // never fails
		w.out = append(append(w.out, mask[:]...), body...)
		maskBytes(w.out[len(w.out)-len(body):], mask, 0)
	}
	_, err := w.Conn.Write(w.out)
	return err
}

// Close says so (RFC 6455 §7.4.1: 1000) and closes the connection, without waiting for an answer.
func (w *webSocket) Close() error {
	w.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = w.send(opClose, []byte{1000 >> 8, 1000 & 0xff})
	return w.Conn.Close()
}

// acceptKey answers the key of a handshake (RFC 6455 §4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // see the import
	return base64.StdEncoding.EncodeToString(sum[:])
}

// upgrade says the client's handshake on conn. authorization is the value of Proxy-Authorization, "" for none.
func upgrade(ctx context.Context, conn net.Conn, uri, host, authorization string) (net.Conn, error) {
	key := rand.Text()[:16]
	key = base64.StdEncoding.EncodeToString([]byte(key))
	text := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\nUser-Agent: edged\r\n", uri, host, key)
	if authorization != "" {
		text += "Proxy-Authorization: " + authorization + "\r\n"
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	limit := &io.LimitedReader{R: conn, N: 64 << 10}
	br := bufio.NewReaderSize(limit, 16<<10)
	_, err := io.WriteString(conn, text+"\r\n")
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(br, &http.Request{Method: http.MethodGet})
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("websocket: %w", err)
	case resp.StatusCode != http.StatusSwitchingProtocols:
		return nil, fmt.Errorf("websocket: the answer is %s", resp.Status)
	case resp.Header.Get("Sec-WebSocket-Accept") != acceptKey(key) || !hasToken(resp.Header, "Upgrade", "websocket") || resp.Header.Get("Sec-WebSocket-Extensions") != "":
		return nil, errors.New("websocket: the answer does not fit the request")
	}
	limit.N = 1<<63 - 1
	return newWebSocket(conn, br, true), nil
}

// hasToken tells whether a header's comma-separated values have a token.
func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for _, t := range strings.Split(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// Handler takes WebSockets at [WebSocketPath] over, inside of TLS of the web (rung wss) or not (ws), and blocks as long
// as they live. Everything else is not found. ctx ends the connections, which no http.Server does.
func (s *Server) Handler(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(WebSocketPath, func(w http.ResponseWriter, r *http.Request) {
		conn := s.hijack(w, r)
		if conn == nil {
			return
		}
		rung := WS
		// A shared port has ended TLS before net/http saw the connection.
		if _, secured := conn.Conn.(interface{ ConnectionState() tls.ConnectionState }); secured {
			rung = WSS
		}
		s.ServeVirtual(ctx, conn, rung)
	})
	return mux
}

// hijack answers the handshake; nil: it was none, and that was answered.
func (s *Server) hijack(w http.ResponseWriter, r *http.Request) *webSocket {
	key := r.Header.Get("Sec-WebSocket-Key")
	raw, err := base64.StdEncoding.DecodeString(key)
	if r.Method != http.MethodGet || !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket") ||
		r.Header.Get("Sec-WebSocket-Version") != "13" || err != nil || len(raw) != 16 {
		s.counted[reasonUpgrade].Add(1)
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Sec-WebSocket-Version", "13")
		http.Error(w, "this is a WebSocket", http.StatusUpgradeRequired)
		return nil
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.counted[reasonUpgrade].Add(1)
		http.Error(w, "not over this version of HTTP", http.StatusHTTPVersionNotSupported)
		return nil
	}
	conn.SetDeadline(time.Now().Add(tlsTime))
	answer := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + acceptKey(key) + "\r\n\r\n"
	if _, err := io.WriteString(conn, answer); err != nil {
		s.refuse(reasonUpgrade, conn, err)
		return nil
	}
	conn.SetDeadline(time.Time{})
	return newWebSocket(conn, rw.Reader, false)
}

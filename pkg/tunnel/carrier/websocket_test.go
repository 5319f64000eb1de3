package carrier

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// TestWebSocketWithOtherServer has our client at the server of another library, which cuts messages as it likes.
func TestWebSocketWithOtherServer(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		go func() { _ = c.Ping(r.Context()) }() // answered between data
		conn := websocket.NetConn(r.Context(), c, websocket.MessageBinary)
		_, _ = io.Copy(conn, conn)
	}))
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ws, err := upgrade(within(t), conn, "/", "relay.example.org", "")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	for _, n := range []int{1, 125, 126, 65535, 65536, 300_000} {
		wantEcho(t, ws, n)
	}
}

// TestWebSocketWithOtherClient has another library's client at our server.
func TestWebSocketWithOtherClient(t *testing.T) {
	server := &Server{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := server.hijack(w, r); c != nil {
			defer c.Close()
			_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		}
	}))
	defer s.Close()
	c, _, err := websocket.Dial(within(t), s.URL+WebSocketPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	conn := websocket.NetConn(context.Background(), c, websocket.MessageBinary)
	for _, n := range []int{1, 125, 126, 65535, 65536, 300_000} {
		wantEcho(t, conn, n)
	}
	if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestWebSocketHandshakeRefused(t *testing.T) {
	server := &Server{}
	s := httptest.NewServer(server.Handler(t.Context()))
	defer s.Close()
	for path, want := range map[string]int{"/": 404, WebSocketPath: 426, "/../" + WebSocketPath[1:] + "x": 404} {
		resp, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	for _, answer := range []string{
		"HTTP/1.1 426 Upgrade Required\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
		"garbage\r\n\r\n",
	} {
		a, b := net.Pipe()
		go func() {
			_, _ = http.ReadRequest(bufio.NewReader(b))
			_, _ = io.WriteString(b, answer)
		}()
		if _, err := upgrade(within(t), a, "/", "relay.example.org", ""); err == nil {
			t.Errorf("%q was taken", strings.TrimSpace(answer))
		}
		a.Close()
		b.Close()
	}
}

func TestMask(t *testing.T) {
	mask := [4]byte{1, 2, 3, 4}
	for n := range 40 {
		for at := range 9 {
			b := make([]byte, n)
			maskBytes(b, mask, at)
			for i, c := range b {
				if c != mask[(at+i)&3] {
					t.Fatalf("%d octets from %d: %v", n, at, b)
				}
			}
		}
	}
}

func FuzzWebSocket(f *testing.F) {
	f.Add([]byte{0x82, 0x83, 1, 2, 3, 4, 5, 6, 7, 0x88, 0x80, 0, 0, 0, 0}, false)
	f.Add([]byte{0x02, 1, 'a', 0x80, 1, 'b', 0x89, 0, 0x8a, 1, 'c'}, true)
	f.Add([]byte{0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255}, true)
	f.Add([]byte{0x82, 126, 0, 1, 'a'}, true)
	f.Fuzz(func(t *testing.T, b []byte, client bool) {
		c := &scripted{in: bytes.NewReader(nil)}
		w := newWebSocket(c, bufio.NewReaderSize(bytes.NewReader(b), 64), client)
		n, err := io.Copy(io.Discard, struct{ io.Reader }{w})
		if n > int64(len(b)) {
			t.Fatalf("%d octets of %d, %v", n, len(b), err)
		}
		if c.out > len(b)+16*8 && c.out > 16*len(b) {
			t.Fatal(fmt.Sprint(c.out, " octets were answered to ", len(b)))
		}
	})
}

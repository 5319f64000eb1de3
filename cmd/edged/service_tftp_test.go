package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// talker is a SIP client on one TCP connection.
type talker struct {
	t    *testing.T
	conn net.Conn
	r    *textproto.Reader
}

func newTalker(t *testing.T, c net.Conn) *talker {
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return &talker{t, c, textproto.NewReader(bufio.NewReader(c))}
}

// hear reads one message.
func (a *talker) hear() (first string, header textproto.MIMEHeader, body string) {
	a.t.Helper()
	first, err := a.r.ReadLine()
	if err != nil {
		a.t.Fatal(err)
	}
	if header, err = a.r.ReadMIMEHeader(); err != nil {
		a.t.Fatal(err)
	}
	n, err := strconv.Atoi(header.Get("Content-Length"))
	if err != nil {
		a.t.Fatal(err)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(a.r.R, b); err != nil {
		a.t.Fatal(err)
	}
	return first, header, string(b)
}

// message sends a MESSAGE with an invitation from alice to bob.
func (a *talker) message(seq int, body string) {
	a.t.Helper()
	_, err := fmt.Fprintf(a.conn, "MESSAGE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/TCP %s;branch=z9hG4bK%d\r\nMax-Forwards: 70\r\n"+
		"From: <sip:alice@example.org>;tag=1\r\nTo: <sip:bob@example.org>\r\nCall-ID: file@example.org\r\nCSeq: %d MESSAGE\r\n"+
		"Content-Type: text/x-msmsgsinvite; charset=UTF-8\r\nContent-Length: %d\r\n\r\n%s", a.conn.LocalAddr(), seq, seq, len(body), body)
	if err != nil {
		a.t.Fatal(err)
	}
}

// ok answers the request at hand.
func (a *talker) ok(header textproto.MIMEHeader) {
	a.t.Helper()
	answer := "SIP/2.0 200 OK\r\n"
	for _, name := range []string{"Via", "From", "To", "Call-Id", "Cseq"} {
		for _, v := range header[name] {
			answer += name + ": " + v + "\r\n"
		}
	}
	if _, err := io.WriteString(a.conn, answer+"Content-Length: 0\r\n\r\n"); err != nil {
		a.t.Fatal(err)
	}
}

// TestFileTransfer sends a file from inside to outside through the daemon, and one that is not allowed; then the same
// between two hosts inside.
func TestFileTransfer(t *testing.T) {
	t.Run("outwards", func(t *testing.T) { testFileTransfer(t, "outside") })
	t.Run("inside", func(t *testing.T) { testFileTransfer(t, "inside") })
}

func testFileTransfer(t *testing.T, network string) {
	pid := os.Getpid()
	host := func(network, n int) string { return fmt.Sprintf("127.%d.%d.%d", network, pid>>8&255, 1+(pid+n)%250) }
	edgeIn, alice, edgeOut, bob := host(87, 0), host(87, 1), host(88, 0), host(88, 1)
	edge := edgeOut // as bob is told
	if network == "inside" {
		edge, bob = edgeIn, host(87, 2)
	}
	listen := func(at string) net.Listener {
		var lc net.ListenConfig
		ln, err := lc.Listen(t.Context(), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	dial := func(from, to string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}
		c, err := d.DialContext(t.Context(), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	server, files := listen(bob+":5060"), listen(alice+":6895")
	d := startDaemon(t, fmt.Sprintf("admin: {listen: '127.0.0.1:0'}\nstate: {dir: %s}\n"+
		"networks: {inside: {addresses: [%s], subnets: [127.87.0.0/16], trusted: true}, outside: {addresses: [%s], trusted: false}}\n"+
		"sip: {listen: ['tcp://inside:5060', 'tcp://outside:5060'], domains: {example.org: {network: %s, server: 'tcp:%s:5060'}}}\n"+
		"tftp: {ports: 6891-6901, deny: [exe]}\n", t.TempDir(), edgeIn, edgeOut, network, bob))

	a := newTalker(t, dial(alice, edgeIn+":5060"))
	invite := "Application-GUID: {5D3E02AB-6190-11d3-BBBB-00C04F795683}\r\nInvitation-Command: INVITE\r\nInvitation-Cookie: %d\r\n" +
		"Application-File: %s\r\nApplication-FileSize: 100000\r\n"
	a.message(1, fmt.Sprintf(invite, 1, "virus.EXE."))
	if first, header, body := a.hear(); !strings.HasPrefix(first, "SIP/2.0 606 ") || !strings.HasPrefix(header.Get("Warning"), "309 ") || body != fmt.Sprintf(invite, 1, "virus.EXE.") {
		t.Fatalf("%s, %v, %q", first, header, body)
	}

	a.message(2, fmt.Sprintf(invite, 2, "file.bin"))
	c, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b := newTalker(t, c)
	pass := func() (body string) {
		t.Helper()
		_, header, body := b.hear()
		b.ok(header)
		if first, _, _ := a.hear(); !strings.HasPrefix(first, "SIP/2.0 200 ") {
			t.Fatal(first)
		}
		return body
	}
	if got := pass(); got != fmt.Sprintf(invite, 2, "file.bin") {
		t.Fatalf("%q", got)
	}
	accept := "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 2\r\nIP-Address: %s\r\nPort: %d\r\nPortX: %d\r\nAuthCookie: 4711\r\n"
	a.message(3, fmt.Sprintf(accept, alice, 6895, 6895^0x3141))
	edited := pass()
	port := 0
	for p := 6891; p <= 6901; p++ {
		if edited == fmt.Sprintf(accept, edge, p, p^0x3141) {
			port = p
		}
	}
	if port == 0 {
		t.Fatalf("%q", edited)
	}
	at := fmt.Sprintf("%s:%d", edge, port)
	stranger := dial(bob, at)
	if got, _ := talk(stranger, "VER MSN_SECURE_FTP", "USR bob@example.org 1234"); len(got) != 1 {
		t.Fatalf("a stranger heard %q", got)
	}
	sent := make(chan error, 1)
	go func() { sent <- sendFile(files, strings.Repeat("x", 1000), 100) }()
	got, err := receiveFile(dial(bob, at), 100_000)
	if err != nil || got != strings.Repeat("x", 100_000) {
		t.Fatalf("%d octets came, %v", len(got), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the transfer to end", func() bool {
		body, err := d.get(context.Background(), "/metrics")
		return err == nil && strings.Contains(string(body), `edged_tftp_ended_total{result="completed"} 1`)
	})
	if body, err := d.get(context.Background(), "/api/v1/transfers"); err != nil || strings.Join(strings.Fields(string(body)), "") != `{"transfers":[]}` {
		t.Fatalf("%s, %v", body, err)
	}
}

// waitFor polls a condition.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// talk says lines and returns the line heard after each; it ends with the connection.
func talk(c net.Conn, lines ...string) (heard []string, err error) {
	c.SetDeadline(time.Now().Add(time.Minute))
	r := textproto.NewReader(bufio.NewReader(c))
	for _, line := range lines {
		if _, err := io.WriteString(c, line+"\r\n"); err != nil {
			return heard, err
		}
		got, err := r.ReadLine()
		if err != nil {
			return heard, err
		}
		heard = append(heard, got)
	}
	return heard, nil
}

// sendFile is the sender's part on the first connection that comes: so many blocks.
func sendFile(ln net.Listener, block string, blocks int) error {
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	r := textproto.NewReader(bufio.NewReader(c))
	for _, say := range []string{"VER MSN_SECURE_FTP\r\n", fmt.Sprintf("FIL %d\r\n", len(block)*blocks)} {
		if _, err := r.ReadLine(); err != nil {
			return err
		}
		if _, err := io.WriteString(c, say); err != nil {
			return err
		}
	}
	if line, err := r.ReadLine(); err != nil || line != "TFR" {
		return fmt.Errorf("%q instead of TFR: %w", line, err)
	}
	for range blocks {
		if _, err := c.Write(append([]byte{0, byte(len(block)), byte(len(block) >> 8)}, block...)); err != nil {
			return err
		}
	}
	if line, err := r.ReadLine(); err != nil || line != "BYE 16777989" {
		return fmt.Errorf("%q instead of BYE: %w", line, err)
	}
	_, err = io.WriteString(c, "MAC "+base64.StdEncoding.EncodeToString(make([]byte, 20))+"\x00\r\n")
	return err
}

// receiveFile is the receiver's part; it returns the blocks' contents.
func receiveFile(c net.Conn, size int) (string, error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReader(c)
	r := textproto.NewReader(br)
	for _, say := range []string{"VER MSN_SECURE_FTP", "USR bob@example.org 4711"} {
		if _, err := io.WriteString(c, say+"\r\n"); err != nil {
			return "", err
		}
		if _, err := r.ReadLine(); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(c, "TFR\r\n"); err != nil {
		return "", err
	}
	var file strings.Builder
	for file.Len() < size {
		var head [3]byte
		if _, err := io.ReadFull(br, head[:]); err != nil {
			return "", err
		}
		if _, err := io.CopyN(&file, br, int64(head[1])|int64(head[2])<<8); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(c, "BYE 16777989\r\n"); err != nil {
		return "", err
	}
	_, err := r.ReadLine()
	return file.String(), err
}

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
	"syscall"
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

// say sends a request between two users of example.org.
func (a *talker) say(request, from, to string, seq int, lines, body string) {
	a.t.Helper()
	method, _, _ := strings.Cut(request, " ")
	_, err := fmt.Fprintf(a.conn, "%s SIP/2.0\r\nVia: SIP/2.0/TCP %s;branch=z9hG4bK%s%d\r\nMax-Forwards: 70\r\n"+
		"From: <sip:%s@example.org>;tag=1\r\nTo: <sip:%s@example.org>\r\nCall-ID: %s@example.org\r\nCSeq: %d %s\r\n"+
		"%s\r\nContent-Length: %d\r\n\r\n%s", request, a.conn.LocalAddr(), method, seq, from, to, method, seq, method, lines, len(body), body)
	if err != nil {
		a.t.Fatal(err)
	}
}

// message sends an invitation of alice.
func (a *talker) message(to string, seq int, body string) {
	a.t.Helper()
	a.say("MESSAGE sip:"+to+"@example.org", "alice", to, seq, "Content-Type: text/x-msmsgsinvite; charset=UTF-8", body)
}

// heardOK reads a 200.
func (a *talker) heardOK() {
	a.t.Helper()
	if first, _, _ := a.hear(); !strings.HasPrefix(first, "SIP/2.0 200 ") {
		a.t.Fatal(first)
	}
}

// ok answers the request at hand.
func (a *talker) ok(header textproto.MIMEHeader, lines ...string) {
	a.t.Helper()
	answer := "SIP/2.0 200 OK\r\n"
	for _, name := range []string{"Via", "From", "To", "Call-Id", "Cseq"} {
		for _, v := range header[name] {
			answer += name + ": " + v + "\r\n"
		}
	}
	for _, line := range lines {
		answer += line + "\r\n"
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

// ground is where a test of file transfers takes place: addresses that no other process uses.
type ground struct{ t *testing.T }

// host returns the n-th address of 127.NETWORK.0.0/16.
func (g ground) host(network, n int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", network, pid>>8&255, 1+(pid+n)%250)
}

func (g ground) listen(at string) net.Listener {
	g.t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(g.t.Context(), "tcp", at)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { ln.Close() })
	return ln
}

func (g ground) dial(from, to string) net.Conn {
	g.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}
	c, err := d.DialContext(g.t.Context(), "tcp", to)
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// daemon starts a daemon between edgeIn and edgeOut; the server of example.org is on a network.
func (g ground) daemon(edgeIn, edgeOut, network, server string) *testDaemon {
	return startDaemon(g.t, fmt.Sprintf("admin: {listen: '127.0.0.1:0'}\nstate: {dir: %s}\n"+
		"networks: {inside: {addresses: [%s], subnets: [127.87.0.0/16], trusted: true}, outside: {addresses: [%s], trusted: false}}\n"+
		"sip: {listen: ['tcp://inside:5060', 'tcp://outside:5060'], domains: {example.org: {network: %s, server: 'tcp:%s:5060'}}}\n"+
		"tftp: {ports: 6891-6901, deny: [exe]}\n", g.t.TempDir(), edgeIn, edgeOut, network, server))
}

// Invitations, with the cookie and the file's name, and with an address.
const (
	inviteForm = "Application-GUID: {5D3E02AB-6190-11d3-BBBB-00C04F795683}\r\nInvitation-Command: INVITE\r\nInvitation-Cookie: %d\r\n" +
		"Application-File: %s\r\nApplication-FileSize: 100000\r\n"
	acceptForm = "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 2\r\nIP-Address: %s\r\nPort: %d\r\nPortX: %d\r\nAuthCookie: 4711\r\n"
)

// portIn returns the port of an acceptance that names a host, and is as acceptForm else.
func (g ground) portIn(body, host string) int {
	g.t.Helper()
	for p := 6891; p <= 6901; p++ {
		if body == fmt.Sprintf(acceptForm, host, p, p^0x3141) {
			return p
		}
	}
	g.t.Fatalf("%q", body)
	return 0
}

// transfers sends a file of a hundred thousand octets from the first connection of files to the host from, which dials at.
func (g ground) transfers(files net.Listener, from, at string) {
	g.t.Helper()
	sent := make(chan error, 1)
	go func() { sent <- sendFile(files, strings.Repeat("x", 1000), 100) }()
	got, err := receiveFile(g.dial(from, at), 100_000)
	if err != nil || got != strings.Repeat("x", 100_000) {
		g.t.Fatalf("%d octets came, %v", len(got), err)
	}
	if err := <-sent; err != nil {
		g.t.Fatal(err)
	}
}

func testFileTransfer(t *testing.T, network string) {
	g := ground{t}
	edgeIn, alice, edgeOut, bob := g.host(87, 0), g.host(87, 1), g.host(88, 0), g.host(88, 1)
	edge := edgeOut // as bob is told
	if network == "inside" {
		edge, bob = edgeIn, g.host(87, 2)
	}
	server, files := g.listen(bob+":5060"), g.listen(alice+":6895")
	d := g.daemon(edgeIn, edgeOut, network, bob)

	a := newTalker(t, g.dial(alice, edgeIn+":5060"))
	a.message("bob", 1, fmt.Sprintf(inviteForm, 1, "virus.EXE."))
	if first, header, body := a.hear(); !strings.HasPrefix(first, "SIP/2.0 606 ") || !strings.HasPrefix(header.Get("Warning"), "309 ") || body != fmt.Sprintf(inviteForm, 1, "virus.EXE.") {
		t.Fatalf("%s, %v, %q", first, header, body)
	}

	a.message("bob", 2, fmt.Sprintf(inviteForm, 2, "file.bin"))
	c, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b := newTalker(t, c)
	pass := func() (body string) {
		t.Helper()
		_, header, body := b.hear()
		b.ok(header)
		a.heardOK()
		return body
	}
	if got := pass(); got != fmt.Sprintf(inviteForm, 2, "file.bin") {
		t.Fatalf("%q", got)
	}
	a.message("bob", 3, fmt.Sprintf(acceptForm, alice, 6895, 6895^0x3141))
	at := fmt.Sprintf("%s:%d", edge, g.portIn(pass(), edge))
	if got, _ := talk(g.dial(bob, at), "VER MSN_SECURE_FTP", "USR bob@example.org 1234"); len(got) != 1 {
		t.Fatalf("a stranger heard %q", got)
	}
	g.transfers(files, bob, at)
	d.wantCompleted()

	text, err := os.ReadFile(d.file)
	if err != nil {
		t.Fatal(err)
	}
	d.write(strings.Replace(string(text), "deny: [exe]", "deny: [exe, bin]", 1))
	d.signals <- syscall.SIGHUP
	waitFor(t, "the reload", func() bool { return d.logs.FilterMessage("configuration reloaded").Len() == 1 })
	a.message("bob", 4, fmt.Sprintf(inviteForm, 4, "file.bin"))
	if first, _, _ := a.hear(); !strings.HasPrefix(first, "SIP/2.0 606 ") {
		t.Fatalf("%s after the reload", first)
	}
}

// wantCompleted waits for the one transfer to end.
func (d *testDaemon) wantCompleted() {
	d.t.Helper()
	waitFor(d.t, "the transfer to end", func() bool {
		body, err := d.get(context.Background(), "/metrics")
		return err == nil && strings.Contains(string(body), `edged_tftp_ended_total{result="completed"} 1`)
	})
	if body, err := d.get(context.Background(), "/api/v1/transfers"); err != nil || strings.Join(strings.Fields(string(body)), "") != `{"transfers":[]}` {
		d.t.Fatalf("%s, %v", body, err)
	}
}

// TestFileTransferTwice: two hosts inside whose registrar is outside invite each other through the daemon twice. The
// file goes from inside to inside, and nobody is given an address that he cannot reach.
func TestFileTransferTwice(t *testing.T) {
	g := ground{t}
	edgeIn, edgeOut, alice, carol, registrar := g.host(87, 10), g.host(88, 10), g.host(87, 11), g.host(87, 12), g.host(88, 11)
	server, files := g.listen(registrar+":5060"), g.listen(alice+":6895")
	d := g.daemon(edgeIn, edgeOut, "outside", registrar)

	b := newTalker(t, g.dial(carol, edgeIn+":5060"))
	b.say("REGISTER sip:example.org", "carol", "carol", 1, "Contact: <sip:"+b.conn.LocalAddr().String()+";transport=tcp>\r\nExpires: 600", "")
	c, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := newTalker(t, c)
	_, header, _ := s.hear()
	contact := header.Get("Contact")
	s.ok(header, "Contact: "+contact, "Expires: 600")
	b.heardOK()

	a := newTalker(t, g.dial(alice, edgeIn+":5060"))
	uri := contact[strings.IndexByte(contact, '<')+1 : strings.IndexByte(contact, '>')]
	pass := func(seq int, body string) (outside, inside string) {
		t.Helper()
		a.message("carol", seq, body)
		_, header, outside := s.hear()
		s.ok(header)
		a.heardOK()
		s.say("MESSAGE "+uri, "alice", "carol", seq, "Content-Type: "+header.Get("Content-Type"), outside)
		_, header, inside = b.hear()
		b.ok(header)
		s.heardOK()
		return outside, inside
	}
	if _, got := pass(2, fmt.Sprintf(inviteForm, 2, "file.bin")); got != fmt.Sprintf(inviteForm, 2, "file.bin") {
		t.Fatalf("%q", got)
	}
	outside, inside := pass(3, fmt.Sprintf(acceptForm, alice, 6895, 6895^0x3141))
	g.portIn(outside, edgeOut)
	g.transfers(files, carol, fmt.Sprintf("%s:%d", edgeIn, g.portIn(inside, edgeIn)))
	d.wantCompleted()
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

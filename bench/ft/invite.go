package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The invitation of a transfer: alice sends bob what it is, and then where she listens; the gateway puts itself there.
const (
	invitation = "Application-Name: File Transfer\r\nApplication-GUID: {5D3E02AB-6190-11d3-BBBB-00C04F795683}\r\n" +
		"Invitation-Command: INVITE\r\nInvitation-Cookie: %d\r\nApplication-File: file.bin\r\nApplication-FileSize: %d\r\n"
	acceptance = "Invitation-Command: ACCEPT\r\nInvitation-Cookie: %d\r\nIP-Address: %s\r\nPort: %d\r\nPortX: %d\r\nAuthCookie: %d\r\n" +
		"Encryption-Key: %s\r\nHash-Key: %s\r\n"
)

// phone is a SIP client on one TCP connection.
type phone struct {
	conn net.Conn
	r    *textproto.Reader
	seq  int
}

func newPhone(c net.Conn) *phone {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &phone{conn: c, r: textproto.NewReader(bufio.NewReader(c))}
}

// hear reads one message.
func (p *phone) hear() (first string, header textproto.MIMEHeader, body string, err error) {
	if first, err = p.r.ReadLine(); err != nil {
		return "", nil, "", fmt.Errorf("sip: %w", err)
	}
	if header, err = p.r.ReadMIMEHeader(); err != nil {
		return "", nil, "", fmt.Errorf("sip: %w", err)
	}
	n, err := strconv.Atoi(header.Get("Content-Length"))
	if err != nil || n < 0 || n > 64<<10 {
		return "", nil, "", errors.New("sip: no Content-Length")
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(p.r.R, b); err != nil {
		return "", nil, "", fmt.Errorf("sip: %w", err)
	}
	return first, header, string(b), nil
}

// message sends a MESSAGE from alice to bob.
func (p *phone) message(body string) error {
	p.seq++
	_, err := fmt.Fprintf(p.conn, "MESSAGE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/TCP %s;branch=z9hG4bK%d\r\nMax-Forwards: 70\r\n"+
		"From: <sip:alice@example.org>;tag=1\r\nTo: <sip:bob@example.org>\r\nCall-ID: %d@example.org\r\nCSeq: %d MESSAGE\r\n"+
		"Content-Type: text/x-msmsgsinvite; charset=UTF-8\r\nContent-Length: %d\r\n\r\n%s", p.conn.LocalAddr(), p.seq, p.conn.LocalAddr().(*net.TCPAddr).Port, p.seq, len(body), body)
	return err
}

// answer says 200 to a request.
func (p *phone) answer(request textproto.MIMEHeader) error {
	text := "SIP/2.0 200 OK\r\n"
	for _, name := range []string{"Via", "From", "To", "Call-Id", "Cseq"} {
		for _, v := range request[name] {
			text += name + ": " + v + "\r\n"
		}
	}
	_, err := io.WriteString(p.conn, text+"Content-Length: 0\r\n\r\n")
	return err
}

// inviteBySIP invites bob, and returns the address that he is told.
func (r *rig) inviteBySIP(c *clients) (address string, done func(), err error) {
	var conn net.Conn
	// The gateway may be starting.
	for range 100 {
		if conn, err = r.dial(r.client, fmt.Sprintf("%s:%d", nearIP, sipPort)); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	alice := newPhone(conn)
	if _, err := c.tell(alice, fmt.Sprintf(invitation, 1, fileSize)); err != nil {
		return "", nil, err
	}
	told, err := c.tell(alice, fmt.Sprintf(acceptance, 1, clientIP, clientPort, clientPort^0x3141, authCookie, key(1), key(2)))
	if err != nil {
		return "", nil, err
	}
	m := regexp.MustCompile(`(?s)IP-Address: (\S+)\r\nPort: (\d+)\r\n`).FindStringSubmatch(told)
	if m == nil || m[1] != farIP {
		return "", nil, fmt.Errorf("bob is told %q", told)
	}
	return net.JoinHostPort(m[1], m[2]), func() { conn.Close() }, nil
}

// tell sends bob a message from alice, and returns what he got.
func (c *clients) tell(alice *phone, body string) (told string, err error) {
	if err := alice.message(body); err != nil {
		return "", err
	}
	if c.bob == nil {
		conn, err := c.sip.Accept()
		if err != nil {
			return "", fmt.Errorf("sip: %w", err)
		}
		c.bob = newPhone(conn)
	}
	c.bob.conn.SetDeadline(time.Now().Add(30 * time.Second))
	first, header, told, err := c.bob.hear()
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(first, "MESSAGE ") {
		return "", fmt.Errorf("bob hears %q", first)
	}
	if err := c.bob.answer(header); err != nil {
		return "", err
	}
	if first, _, _, err = alice.hear(); err != nil || !strings.HasPrefix(first, "SIP/2.0 200 ") {
		return "", fmt.Errorf("alice hears %q: %w", first, err)
	}
	return told, nil
}

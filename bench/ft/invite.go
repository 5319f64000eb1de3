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

	"edged.dev/edged/bench/veth"
)

// The invitation of a transfer: alice tells bob what it is, he tells her the keys, and she where she listens; the gateway
// puts itself there.
const (
	invitation = "Application-Name: File Transfer\r\nApplication-GUID: {5D3E02AB-6190-11d3-BBBB-00C04F795683}\r\n" +
		"Invitation-Command: INVITE\r\nInvitation-Cookie: 1\r\nApplication-File: file.bin\r\nApplication-FileSize: %d\r\nEncryption: R\r\n"
	keys    = "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\nEncryption-Key: %s\r\nHash-Key: %s\r\n"
	address = "Invitation-Command: ACCEPT\r\nInvitation-Cookie: 1\r\nIP-Address: %s\r\nPort: %d\r\nPortX: %d\r\nAuthCookie: %d\r\n"
)

// party is one of the two who talk by SIP, each in a domain of his own, by which the gateway finds him.
type party struct {
	uri string
	ln  net.Listener
	// in is the connection on which the gateway reaches him, out that on which he reaches the gateway; nil if there is none.
	in, out *phone
}

// hangUp ends both connections.
func (p *party) hangUp() {
	for _, c := range []*phone{p.in, p.out} {
		if c != nil {
			c.conn.Close()
		}
	}
	p.in, p.out = nil, nil
}

// phone is a SIP client on one TCP connection.
type phone struct {
	conn net.Conn
	r    *textproto.Reader
	seq  int
}

func newPhone(c net.Conn) *phone {
	c.SetDeadline(time.Now().Add(2 * time.Minute))
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

// message sends a MESSAGE.
func (p *phone) message(call string, from, to *party, body string) error {
	p.seq++
	_, err := fmt.Fprintf(p.conn, "MESSAGE sip:%s SIP/2.0\r\nVia: SIP/2.0/TCP %s;branch=z9hG4bK%s%d\r\nMax-Forwards: 70\r\n"+
		"From: <sip:%s>;tag=1\r\nTo: <sip:%s>\r\nCall-ID: %s\r\nCSeq: %d MESSAGE\r\n"+
		"Content-Type: text/x-msmsgsinvite; charset=UTF-8\r\nContent-Length: %d\r\n\r\n%s",
		to.uri, p.conn.LocalAddr(), call, p.seq, from.uri, to.uri, call, p.seq, len(body), body)
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
func (r *rig) inviteBySIP(c *clients) (at string, done func(), err error) {
	if err := r.connect(&c.alice, r.Client, veth.NearIP); err != nil {
		return "", nil, err
	}
	if err := r.connect(&c.bob, r.Server, veth.FarIP); err != nil {
		return "", nil, err
	}
	c.calls++
	call := fmt.Sprintf("%d@example.net", c.calls)
	if _, err := tell(&c.alice, &c.bob, call, fmt.Sprintf(invitation, int64(fileSize))); err != nil {
		return "", nil, err
	}
	if _, err := tell(&c.bob, &c.alice, call, fmt.Sprintf(keys, key(1), key(2))); err != nil {
		return "", nil, err
	}
	told, err := tell(&c.alice, &c.bob, call, fmt.Sprintf(address, veth.ClientIP, clientPort, clientPort^0x3141, authCookie))
	if err != nil {
		return "", nil, err
	}
	m := regexp.MustCompile(`(?s)IP-Address: (\S+)\r\nPort: (\d+)\r\n`).FindStringSubmatch(told)
	if m == nil || m[1] != veth.FarIP {
		return "", nil, fmt.Errorf("bob is told %q", told)
	}
	return net.JoinHostPort(m[1], m[2]), func() {}, nil
}

// connect has a party reach the gateway, which may be starting.
func (r *rig) connect(p *party, ns, gateway string) (err error) {
	for range 100 {
		if p.out != nil {
			return nil
		}
		var conn net.Conn
		if conn, err = r.dial(ns, fmt.Sprintf("%s:%d", gateway, sipPort)); err == nil {
			p.out = newPhone(conn)
			continue
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// tell sends a message from one to the other, and returns what that one got.
func tell(from, to *party, call, body string) (told string, err error) {
	if err := from.out.message(call, from, to, body); err != nil {
		return "", err
	}
	if to.in == nil {
		conn, err := to.ln.Accept()
		if err != nil {
			return "", fmt.Errorf("sip: %w", err)
		}
		to.in = newPhone(conn)
	}
	first, header, told, err := to.in.hear()
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(first, "MESSAGE ") {
		return "", fmt.Errorf("%s hears %q", to.uri, first)
	}
	if err := to.in.answer(header); err != nil {
		return "", err
	}
	if first, _, _, err = from.out.hear(); err != nil || !strings.HasPrefix(first, "SIP/2.0 200 ") {
		return "", fmt.Errorf("%s hears %q: %w", from.uri, first, err)
	}
	return told, nil
}

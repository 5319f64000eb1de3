package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// messenger is a client on the loopback: SIP over UDP, and T.120 on 1503.
type messenger struct {
	t    *testing.T
	host string
	edge string // the edge's address on its network
	sip  net.PacketConn
	t120 net.Listener
}

func newMessenger(t *testing.T, host, edge string) *messenger {
	t.Helper()
	m := &messenger{t: t, host: host, edge: edge}
	var err error
	if m.sip, err = net.ListenPacket("udp4", host+":5060"); err != nil {
		t.Fatal(err)
	}
	if m.t120, err = net.Listen("tcp4", host+":1503"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.sip.Close()
		m.t120.Close()
	})
	return m
}

// send sends a message to the edge; body may be empty.
func (m *messenger) send(head []string, body string) {
	m.t.Helper()
	if body != "" {
		head = append(head, "Content-Type: application/sdp")
	}
	text := strings.Join(append(head, fmt.Sprintf("Content-Length: %d", len(body)), "", body), "\r\n")
	to, err := net.ResolveUDPAddr("udp4", m.edge+":5060")
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.sip.WriteTo([]byte(text), to); err != nil {
		m.t.Fatal(err)
	}
}

// expect returns the next message that begins with start, and passes over others.
func (m *messenger) expect(start string) string {
	m.t.Helper()
	buf := make([]byte, 65536)
	m.sip.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		n, _, err := m.sip.ReadFrom(buf)
		if err != nil {
			m.t.Fatalf("%s: no %s: %v", m.host, start, err)
		}
		if text := string(buf[:n]); strings.HasPrefix(text, start) {
			return text
		}
	}
}

// reply answers a request.
func (m *messenger) reply(req, body string) {
	m.t.Helper()
	head := []string{"SIP/2.0 200 OK"}
	for line := range strings.SplitSeq(req, "\r\n") {
		name, _, _ := strings.Cut(line, ":")
		switch name {
		case "Via", "Record-Route", "From", "Call-ID", "CSeq":
			head = append(head, line)
		case "To":
			if !strings.Contains(line, ";tag=") {
				line += ";tag=b"
			}
			head = append(head, line)
		}
	}
	m.send(append(head, "Contact: <sip:bob@"+m.host+">"), body)
}

// request makes a request of the only call; routes are those of the answer.
func (m *messenger) request(method, uri string, cseq int, to string, routes ...string) []string {
	head := []string{method + " " + uri + " SIP/2.0", fmt.Sprintf("Via: SIP/2.0/UDP %s;branch=z9hG4bK-%s-%d", m.host, method, cseq)}
	number := cseq
	if method == "ACK" {
		number = 1
	}
	return append(append(head, routes...), "Max-Forwards: 70", "From: <sip:alice@example.org>;tag=a", "To: "+to, "Call-ID: conference@example.org",
		fmt.Sprintf("CSeq: %d %s", number, method), "Contact: <sip:alice@"+m.host+">")
}

func (m *messenger) sdp() string {
	return fmt.Sprintf("v=0\r\no=- 0 0 IN IP4 %[1]s\r\ns=session\r\nc=IN IP4 %[1]s\r\nt=0 0\r\nm=application 1503 tcp msdata\r\na=encryption:optional\r\n", m.host)
}

// call connects to the edge's 1503 and speaks X.224 with whom it is brought to.
func (m *messenger) call(other *messenger) (own, at net.Conn) {
	m.t.Helper()
	own, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(m.host)}, Timeout: time.Minute}).Dial("tcp4", m.edge+":1503")
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { own.Close() })
	request, confirm := []byte{3, 0, 0, 11, 6, 0xe0, 0, 0, 0, 9, 0}, []byte{3, 0, 0, 11, 6, 0xd0, 0, 9, 0, 1, 0}
	if _, err := own.Write(request); err != nil {
		m.t.Fatal(err)
	}
	other.t120.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
	if at, err = other.t120.Accept(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { at.Close() })
	read := func(c net.Conn, want []byte) {
		m.t.Helper()
		c.SetReadDeadline(time.Now().Add(time.Minute))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			m.t.Fatalf("%x, %v; want %x", got, err, want)
		}
	}
	read(at, request)
	if _, err := at.Write(confirm); err != nil {
		m.t.Fatal(err)
	}
	read(own, confirm)
	return own, at
}

// TestConferenceBySIP: a whiteboard that SIP announces, by the whole daemon and real connections, whoever calls.
func TestConferenceBySIP(t *testing.T) {
	pid := os.Getpid()
	at := func(net int) string { return fmt.Sprintf("127.%d.%d.%d", net, pid>>8&255, pid&255) }
	startDaemon(t, fmt.Sprintf(`admin: {listen: '127.0.0.1:0'}
state: {dir: %s}
networks:
  inside: {addresses: [%s], subnets: [127.82.0.0/16]}
  outside: {addresses: [%s], subnets: [127.83.0.0/16], trusted: false}
sip:
  listen: ['udp://inside:5060', 'udp://outside:5060']
  domains: {example.org: {network: outside, server: "udp:%s:5060"}}
  probe: 0s
t120: {listen: ['tcp://inside:1503', 'tcp://outside:1503']}
`, t.TempDir(), at(80), at(81), at(83)))
	alice, bob := newMessenger(t, at(82), at(80)), newMessenger(t, at(83), at(81))
	alice.send(alice.request("INVITE", "sip:bob@example.org", 1, "<sip:bob@example.org>"), alice.sdp())
	invite := bob.expect("INVITE ")
	if strings.Contains(invite, alice.host) || !strings.Contains(invite, "c=IN IP4 "+bob.edge) || !strings.Contains(invite, "m=application 1503 tcp msdata") {
		t.Errorf("bob got\n%s", invite)
	}
	bob.reply(invite, bob.sdp())
	ok := alice.expect("SIP/2.0 200")
	if strings.Contains(ok, "c=IN IP4 "+bob.host) || !strings.Contains(ok, "c=IN IP4 "+alice.edge) || !strings.Contains(ok, "m=application 1503 tcp msdata") {
		t.Errorf("alice got\n%s", ok)
	}
	field := func(name string) string {
		return regexp.MustCompile(`(?m)^` + name + `: (.*?)\r$`).FindStringSubmatch(ok)[1]
	}
	target, to, route := strings.Trim(field("Contact"), "<>"), field("To"), "Route: "+field("Record-Route")
	alice.send(alice.request("ACK", target, 1, to, route), "")
	bob.expect("ACK ")

	a, b := alice.call(bob)
	c, e := bob.call(alice)
	// another call of the same host could not be told from this one
	again := alice.request("INVITE", "sip:bob@example.org", 2, "<sip:bob@example.org>")
	for i := range again {
		again[i] = strings.NewReplacer("conference@", "another@", "tag=a", "tag=c").Replace(again[i])
	}
	alice.send(again, alice.sdp())
	alice.expect("SIP/2.0 488")
	alice.send(alice.request("BYE", target, 3, to, route), "")
	bob.reply(bob.expect("BYE "), "")
	alice.expect("SIP/2.0 200")
	for _, conn := range []net.Conn{a, b, c, e} {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("the connection is left open: %v", err)
		}
	}
}

//go:build lab

package lab

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Agent is a scripted SIP peer with a socket in a host's namespace. It answers nothing by itself:
// a case says each message, right or wrong.
type Agent struct {
	Host  *Host
	Proto string // udp, tcp or tls
	Addr  netip.AddrPort
	Name  string // the user part of its URIs
	t     testing.TB
	pc    net.PacketConn
	tls   *tls.Config

	mu    sync.Mutex
	inbox []*Message
	seen  map[string]bool
	conns map[netip.AddrPort]net.Conn
	wg    sync.WaitGroup
}

// Agent opens the socket: UDP, or a TCP or TLS listener (conf) of the same address.
func (h *Host) Agent(t testing.TB, name, proto string, addr netip.AddrPort, conf *tls.Config) *Agent {
	t.Helper()
	a := &Agent{Host: h, Proto: proto, Addr: addr, Name: name, t: t, tls: conf, seen: map[string]bool{}, conns: map[netip.AddrPort]net.Conn{}}
	var ln net.Listener
	must(t, "agent "+name, h.Do(func() (err error) {
		if proto == "udp" {
			a.pc, err = net.ListenPacket("udp", addr.String())
			return err
		}
		ln, err = net.Listen("tcp", addr.String())
		return err
	}))
	t.Cleanup(func() {
		a.close(ln)
		if t.Failed() {
			t.Logf("%s at %v, not taken: %s", name, addr, a.inboxText())
		}
	})
	if proto == "udp" {
		a.wg.Go(a.readPackets)
	} else {
		a.wg.Go(func() { a.accept(ln) })
	}
	return a
}

func (a *Agent) close(ln net.Listener) {
	if a.pc != nil {
		_ = a.pc.Close()
	}
	if ln != nil {
		_ = ln.Close()
	}
	a.CloseConns()
	a.wg.Wait()
}

// CloseConns ends all connections, as a NAT or a restart does.
func (a *Agent) CloseConns() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for at, c := range a.conns {
		_ = c.Close()
		delete(a.conns, at)
	}
}

func (a *Agent) readPackets() {
	buf := make([]byte, 65536)
	for {
		n, from, err := a.pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier packet
		}
		if m, err := parseDatagram(slices.Clone(buf[:n])); err == nil {
			m.Remote = from.(*net.UDPAddr).AddrPort()
			a.deliver(m)
		}
	}
}

func (a *Agent) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		if a.tls != nil {
			c = tls.Server(c, a.tls)
		}
		a.keep(c)
	}
}

func (a *Agent) keep(c net.Conn) {
	a.mu.Lock()
	a.conns[c.RemoteAddr().(*net.TCPAddr).AddrPort()] = c
	a.mu.Unlock()
	a.wg.Go(func() { a.readStream(c) })
}

func (a *Agent) readStream(c net.Conn) {
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for {
		m, err := parseMessage(r, false)
		if err != nil {
			return
		}
		m.conn = c
		if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok { // a WebSocket does not say
			m.Remote = tcp.AddrPort()
		}
		a.deliver(m)
	}
}

// deliver puts a message into the inbox; a request seen before (a retransmission) is dropped.
func (a *Agent) deliver(m *Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.Status() == 0 {
		key := m.Method() + m.Get("Via") + m.Get("CSeq") + m.CallID()
		if a.seen[key] {
			return
		}
		a.seen[key] = true
	}
	a.inbox = append(a.inbox, m)
}

// Conn returns the connection to an address, dialled if there is none.
func (a *Agent) Conn(to netip.AddrPort) (net.Conn, error) {
	a.mu.Lock()
	c := a.conns[to]
	a.mu.Unlock()
	if c != nil {
		return c, nil
	}
	err := a.Host.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: a.Addr.Addr().AsSlice()}}
		c, err = d.Dial("tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	if a.tls != nil {
		c = tls.Client(c, a.tls)
	}
	a.keep(c)
	return c, nil
}

// Send sends raw bytes.
func (a *Agent) Send(raw string, to netip.AddrPort) error {
	if a.Proto == "udp" {
		_, err := a.pc.WriteTo([]byte(raw), net.UDPAddrFromAddrPort(to))
		return err
	}
	c, err := a.Conn(to)
	if err != nil {
		return err
	}
	_, err = c.Write([]byte(raw))
	return err
}

// take removes the first message that match accepts from the inbox.
func (a *Agent) take(match func(*Message) bool) *Message {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, m := range a.inbox {
		if match(m) {
			a.inbox = slices.Delete(a.inbox, i, i+1)
			return m
		}
	}
	return nil
}

// Expect waits for a message that match accepts.
func (a *Agent) Expect(what string, d time.Duration, match func(*Message) bool) *Message {
	a.t.Helper()
	var m *Message
	if !until(d, func() bool { m = a.take(match); return m != nil }) {
		a.t.Fatalf("%s got no %s within %v; inbox: %s", a.Name, what, d, a.inboxText())
	}
	return m
}

// ExpectRequest waits for a request of the method.
func (a *Agent) ExpectRequest(method string) *Message {
	a.t.Helper()
	return a.Expect(method, 8*time.Second, func(m *Message) bool { return m.Status() == 0 && m.Method() == method })
}

// Never checks that no message that match accepts comes within d.
func (a *Agent) Never(what string, d time.Duration, match func(*Message) bool) {
	a.t.Helper()
	var m *Message
	if until(d, func() bool { m = a.take(match); return m != nil }) {
		a.t.Errorf("%s got %s: %s", a.Name, what, m.Start)
	}
}

func (a *Agent) inboxText() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lines []string
	for _, m := range a.inbox {
		lines = append(lines, m.Start+" ("+m.Get("CSeq")+")")
	}
	return strings.Join(lines, "; ")
}

// Contact returns the agent's Contact URI; that of a WebSocket client has no address (RFC 7118 §5).
func (a *Agent) Contact() string {
	if a.Proto == "ws" {
		return "sip:" + a.Name + "@df7jal23ls0d.invalid;transport=ws"
	}
	uri := "sip:" + a.Name + "@" + a.Addr.String()
	if a.Proto != "udp" {
		uri += ";transport=" + a.Proto
	}
	return uri
}

// via returns a new Via value.
func (a *Agent) via() string {
	if a.Proto == "ws" {
		return "SIP/2.0/WS df7jal23ls0d.invalid;branch=z9hG4bK" + token() + ";rport"
	}
	return fmt.Sprintf("SIP/2.0/%s %v;branch=z9hG4bK%s;rport", strings.ToUpper(a.Proto), a.Addr, token())
}

func token() string { return fmt.Sprintf("%08x", rand.Uint64()) }

// Reply answers a request; the dialog that it makes or belongs to is returned.
func (a *Agent) Reply(req *Message, code int, reason, body string, extra ...string) *Dialog {
	a.t.Helper()
	tag := req.Tag("To")
	to := req.Get("To")
	if tag == "" {
		tag = "t" + token()
		to += ";tag=" + tag
	}
	a.replyTo(req, code, reason, to, body, extra)
	return dialogOf(a, req, to)
}

// ReplyTag answers with a To tag of the case's choice: a fork's branch.
func (a *Agent) ReplyTag(req *Message, code int, reason, tag, body string, extra ...string) *Dialog {
	a.t.Helper()
	to := req.Get("To") + ";tag=" + tag
	a.replyTo(req, code, reason, to, body, extra)
	return dialogOf(a, req, to)
}

func (a *Agent) replyTo(req *Message, code int, reason, to, body string, extra []string) {
	a.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "SIP/2.0 %d %s\r\n", code, reason)
	for _, f := range req.Fields {
		switch canonical(f.Name) {
		case "Via", "Record-Route", "From", "Call-Id", "Cseq":
			fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
		}
	}
	fmt.Fprintf(&b, "To: %s\r\nContact: <%s>\r\n", to, a.Contact())
	finish(&b, body, extra)
	if err := a.sendBack(req, b.String()); err != nil {
		a.t.Errorf("%s: reply: %v", a.Name, err)
	}
}

func (a *Agent) sendBack(req *Message, raw string) error {
	if req.conn != nil {
		_, err := req.conn.Write([]byte(raw))
		return err
	}
	return a.Send(raw, req.Remote)
}

// finish writes the extra fields, the length and the body.
func finish(b *strings.Builder, body string, extra []string) {
	for _, x := range extra {
		b.WriteString(x + "\r\n")
	}
	if body != "" && !slices.ContainsFunc(extra, func(x string) bool { return strings.HasPrefix(x, "Content-Type") }) {
		b.WriteString("Content-Type: application/sdp\r\n")
	}
	fmt.Fprintf(b, "Content-Length: %d\r\n\r\n%s", len(body), body)
}

// sipPort returns the default port of a SIP transport.
func sipPort(proto string) uint16 {
	if proto == "tls" {
		return 5061
	}
	return 5060
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

const probePort = 5090

// probe is a caller inside and a callee outside in one process, so that the time of a message from
// one to the other is the difference of two readings of one clock.
type probe struct {
	caller, callee *net.UDPConn
	edge           netip.AddrPort
	n              int
}

// delays are the times that the two messages with SDP took through the edge.
type delays struct {
	invite, answer time.Duration
}

func newProbe(r *rig) (*probe, error) {
	p := &probe{edge: addr(insideIP, 5060)}
	listen := func(ns string, at netip.AddrPort, c **net.UDPConn) error {
		return in(ns, func() (err error) {
			*c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			return err
		})
	}
	err := errors.Join(listen(r.inside, addr(callerIP, probePort), &p.caller), listen(r.outside, addr(calleeIP, probePort), &p.callee))
	if err != nil {
		p.close()
		return nil, fmt.Errorf("probe: %w", err)
	}
	return p, nil
}

func (p *probe) close() {
	for _, c := range []*net.UDPConn{p.caller, p.callee} {
		if c != nil {
			c.Close()
		}
	}
}

// call makes one call through the edge and ends it; each message may take as long as limit.
func (p *probe) call(limit time.Duration) (delays, error) {
	p.n++
	id := fmt.Sprintf("probe-%d-%d", p.n, time.Now().UnixNano())
	var d delays
	begin := time.Now()
	if err := send(p.caller, p.edge, request(id, "INVITE", "sip:probe@"+addr(calleeIP, probePort).String(), nil, "", sdp("alice", callerIP))); err != nil {
		return d, err
	}
	invite, from, err := receive(p.callee, id, "INVITE ", limit)
	if err != nil {
		return d, err
	}
	d.invite = time.Since(begin)
	begin = time.Now()
	if err := send(p.callee, from, response(invite, ";tag=callee", sdp("bob", calleeIP))); err != nil {
		return d, err
	}
	answer, _, err := receive(p.caller, id, "SIP/2.0 200", limit)
	if err != nil {
		return d, err
	}
	d.answer = time.Since(begin)
	return d, p.end(id, answer, limit)
}

// end acknowledges the answer and hangs up.
func (p *probe) end(id string, answer []byte, limit time.Duration) error {
	target, routes := dialog(answer)
	if err := send(p.caller, p.edge, request(id, "ACK", target, routes, ";tag=callee", "")); err != nil {
		return err
	}
	if _, _, err := receive(p.callee, id, "ACK ", limit); err != nil {
		return err
	}
	if err := send(p.caller, p.edge, request(id, "BYE", target, routes, ";tag=callee", "")); err != nil {
		return err
	}
	bye, from, err := receive(p.callee, id, "BYE ", limit)
	if err != nil {
		return err
	}
	if err := send(p.callee, from, response(bye, "", "")); err != nil {
		return err
	}
	_, _, err = receive(p.caller, id, "SIP/2.0 200", limit)
	return err
}

func send(c *net.UDPConn, to netip.AddrPort, text string) error {
	_, err := c.WriteToUDPAddrPort([]byte(text), to)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}

// receive returns the next message of the call that begins as told; others are dropped.
func receive(c *net.UDPConn, id, begin string, limit time.Duration) ([]byte, netip.AddrPort, error) {
	buf := make([]byte, 65536)
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("probe: %w", err)
	}
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return nil, from, fmt.Errorf("probe waits for %s: %w", begin, err)
		}
		if bytes.HasPrefix(buf[:n], []byte(begin)) && bytes.Contains(buf[:n], []byte(id)) {
			return buf[:n], from, nil
		}
	}
}

func request(id, method, uri string, routes []string, toTag, body string) string {
	var b strings.Builder
	cseq := map[string]int{"INVITE": 1, "ACK": 1, "BYE": 2}[method]
	own := addr(callerIP, probePort)
	fmt.Fprintf(&b, "%s %s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%s%s\r\n", method, uri, own, method, id)
	for _, r := range routes {
		fmt.Fprintf(&b, "Route: %s\r\n", r)
	}
	fmt.Fprintf(&b, "From: <sip:alice@example.org>;tag=caller\r\nTo: <sip:probe@example.org>%s\r\nCall-ID: %s\r\nCSeq: %d %s\r\n"+
		"Contact: <sip:alice@%s>\r\nMax-Forwards: 70\r\n", toTag, id, cseq, method, own)
	return b.String() + payload(body)
}

func payload(body string) string {
	if body == "" {
		return "Content-Length: 0\r\n\r\n"
	}
	return fmt.Sprintf("Content-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// response answers a request with 200 and the fields that a response repeats.
func response(req []byte, toTag, body string) string {
	var b strings.Builder
	b.WriteString("SIP/2.0 200 OK\r\n")
	head, _, _ := strings.Cut(string(req), "\r\n\r\n")
	for line := range strings.SplitSeq(head, "\r\n") {
		name, _, _ := strings.Cut(line, ":")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "to":
			b.WriteString(line + toTag + "\r\n")
		case "via", "from", "call-id", "cseq", "record-route":
			b.WriteString(line + "\r\n")
		}
	}
	fmt.Fprintf(&b, "Contact: <sip:probe@%s>\r\n", addr(calleeIP, probePort))
	return b.String() + payload(body)
}

// dialog returns the remote target and the route set of the caller (RFC 3261 §12.1.2).
func dialog(answer []byte) (target string, routes []string) {
	head, _, _ := strings.Cut(string(answer), "\r\n\r\n")
	for line := range strings.SplitSeq(head, "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "contact":
			_, rest, _ := strings.Cut(value, "<")
			target, _, _ = strings.Cut(rest, ">")
		case "record-route":
			for v := range strings.SplitSeq(value, ",") {
				routes = append([]string{strings.TrimSpace(v)}, routes...)
			}
		}
	}
	return target, routes
}

func sdp(user, host string) string {
	return strings.Join([]string{
		"v=0", "o=" + user + " 1 1 IN IP4 " + host, "s=-", "c=IN IP4 " + host, "t=0 0",
		"m=audio 40000 RTP/AVP 0 8 101", "a=rtpmap:0 PCMU/8000", "a=rtpmap:8 PCMA/8000",
		"a=rtpmap:101 telephone-event/8000", "a=fmtp:101 0-16", "a=sendrecv", "",
	}, "\r\n")
}

package forwardproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Why a client got nothing, beside what dialling said.
var (
	errLogin   = errors.New("wrong name or password")
	errNoLogin = errors.New("name and password are needed")
	errLocked  = errors.New("too many wrong passwords")
	errCommand = errors.New("command not served")
	errLimit   = errors.New("too many associations")
	errSocket  = errors.New("no socket for an association")
)

// Reason labels of these.
const (
	reasonLogin  = "login"
	reasonLocked = "locked"
)

// reasonOf returns the reason label of an error.
func reasonOf(err error) string {
	var refused *Refused
	var dns *net.DNSError
	if errors.As(err, &refused) {
		return refused.Reason
	}
	for _, x := range []struct {
		err    error
		reason string
	}{
		{errLogin, reasonLogin}, {errNoLogin, "no_login"}, {errLocked, reasonLocked}, {errCommand, "command"}, {errMethod, "command"},
		{errLimit, "associations"}, {errSocket, "socket"}, {errHost, "host"}, {errAddress, "host"}, {errLong, "malformed"}, {errForm, "malformed"},
		{errSOCKS4, "socks4"}, {errDatagram, "malformed"}, {errFragment, "fragment"},
		{ErrNotAllowed, notListed}, {os.ErrDeadlineExceeded, "timeout"}, {context.DeadlineExceeded, "timeout"},
		{syscall.ECONNREFUSED, "refused"}, {syscall.EHOSTUNREACH, "unreachable"}, {syscall.ENETUNREACH, "unreachable"},
		{io.EOF, "ended"}, {io.ErrUnexpectedEOF, "ended"}, {syscall.ECONNRESET, "ended"},
	} {
		if errors.Is(err, x.err) {
			return x.reason
		}
	}
	switch {
	case isTimeout(err):
		return "timeout"
	case errors.As(err, &dns):
		return "name"
	}
	return "failed"
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// tell says something last: whether that arrives changes nothing.
func (c *client) tell(answer []byte) { _, _ = c.conn.Write(answer) }

// serveHTTP answers requests until one is good for a tunnel, which it carries to its end.
func (c *client) serveHTTP(ctx context.Context) error {
	var last error
	for range maxRequests {
		head, err := readHead(c.r)
		switch {
		case errors.Is(err, io.EOF) && last != nil:
			return last // it has the answer that it wanted
		case errors.Is(err, errLong):
			c.tell(refusal("431 Request Header Fields Too Large", err.Error(), false))
			return err
		case err != nil:
			return err
		}
		target, keep, err := c.tryHTTP(ctx, head)
		if err == nil {
			return c.tunnel(ctx, target, []byte(established))
		}
		if last = err; !keep {
			return err
		}
	}
	return last
}

// tryHTTP answers one request; without an error it wants a tunnel to the connection. keep says that another may follow.
func (c *client) tryHTTP(ctx context.Context, head []byte) (target net.Conn, keep bool, err error) {
	q, err := parseConnect(head)
	switch {
	case errors.Is(err, errMethod):
		c.tell(refusal("405 Method Not Allowed", err.Error(), false, "Allow: CONNECT"))
		return nil, false, err
	case err != nil:
		c.tell(refusal("400 Bad Request", err.Error(), false))
		return nil, false, err
	}
	if err := c.loginHTTP(q.login); err != nil {
		status := "407 Proxy Authentication Required"
		if errors.Is(err, errLocked) {
			status = "429 Too Many Requests"
			q.keep = false
		}
		_, werr := c.conn.Write(refusal(status, err.Error(), q.keep, `Proxy-Authenticate: Basic realm="edged", charset="UTF-8"`))
		return nil, q.keep && werr == nil, err
	}
	target, err = c.dial(ctx, q.host, q.port)
	if err != nil {
		c.tell(refusal(statusOf(err), reasonOf(err), false))
	}
	return target, false, err
}

// loginHTTP judges the value of Proxy-Authorization.
func (c *client) loginHTTP(value string) error {
	name, password, given := readBasic(value)
	switch {
	case c.anonymous() && (!given || c.now.users == nil):
		return nil
	case !given:
		return errNoLogin
	}
	return c.login(name, password)
}

// statusOf returns the status for a destination that could not be had (RFC 9110 §15.5.4, §15.6.3, §15.6.5).
func statusOf(err error) string {
	switch {
	case errors.Is(err, ErrNotAllowed):
		return "403 Forbidden"
	case reasonOf(err) == "timeout":
		return "504 Gateway Timeout"
	}
	return "502 Bad Gateway"
}

// tunnel tells the client that it has its connection, and carries that to its end.
func (c *client) tunnel(ctx context.Context, target net.Conn, answer []byte) error {
	c.conn.SetDeadline(time.Now().Add(answerTime))
	if _, err := c.conn.Write(answer); err != nil {
		target.Close()
		return err
	}
	c.join(ctx, target)
	return nil
}

// serveSOCKS speaks SOCKS until the client has its connection or association, which it carries to its end.
func (c *client) serveSOCKS(ctx context.Context) error {
	if err := c.loginSOCKS(); err != nil {
		return err
	}
	q, err := readSOCKS(c.r)
	switch {
	case errors.Is(err, errAddress):
		c.tell(socksReply(replyAddressType, netip.AddrPort{}))
		return err
	case errors.Is(err, errHost):
		c.tell(socksReply(replyFailure, netip.AddrPort{}))
		return err
	case err != nil:
		return err
	case q.command == commandAssociate && c.s.deps.ListenPacket != nil:
		return c.associate(ctx, q)
	case q.command != commandConnect:
		c.tell(socksReply(replyCommand, netip.AddrPort{}))
		return errCommand
	case q.port == 0:
		c.tell(socksReply(replyFailure, netip.AddrPort{}))
		return errHost
	}
	target, err := c.dial(ctx, q.host, q.port)
	if err != nil {
		c.tell(socksReply(replyOf(err), netip.AddrPort{}))
		return err
	}
	// The address is that of this host on the other network, which is no client's business (RFC 1928 §6 has no need of it).
	return c.tunnel(ctx, target, socksReply(replyOK, netip.AddrPort{}))
}

// loginSOCKS agrees on a method, and judges name and password if that is the one.
func (c *client) loginSOCKS() error {
	methods, err := readGreeting(c.r)
	if errors.Is(err, errSOCKS4) {
		c.tell([]byte{0, 91, 0, 0, 0, 0, 0, 0}) // "request rejected", in the form of version 4
	}
	if err != nil {
		return err
	}
	switch {
	case c.anonymous() && slices.Contains(methods, methodNone):
		_, err := c.conn.Write([]byte{socksVersion, methodNone})
		return err
	case c.now.users == nil || !slices.Contains(methods, methodPassword):
		c.tell([]byte{socksVersion, methodNobody})
		return errNoLogin
	}
	if _, err := c.conn.Write([]byte{socksVersion, methodPassword}); err != nil {
		return err
	}
	name, password, err := readLogin(c.r)
	if err != nil {
		return err
	}
	if err := c.login(name, password); err != nil {
		c.tell([]byte{loginVersion, 1})
		return err
	}
	_, err = c.conn.Write([]byte{loginVersion, 0})
	return err
}

// replyOf returns the reply for a destination that could not be had.
func replyOf(err error) byte {
	switch {
	case errors.Is(err, ErrNotAllowed):
		return replyNotAllowed
	case errors.Is(err, syscall.ECONNREFUSED):
		return replyRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return replyNetwork
	}
	switch reasonOf(err) {
	case "name", "unreachable":
		return replyHost
	case "timeout":
		return replyExpired
	}
	return replyFailure
}

func joinHostPort(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

package proxydial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// SOCKSError is the reply of a SOCKS5 proxy that does not connect (RFC 1928 §6).
type SOCKSError struct{ Reply byte }

func (e SOCKSError) Error() string {
	texts := [...]string{1: "general failure", 2: "not allowed", 3: "network unreachable", 4: "host unreachable",
		5: "connection refused", 6: "TTL expired", 7: "command not supported", 8: "address type not supported"}
	if e.Reply > 0 && int(e.Reply) < len(texts) {
		return "SOCKS5 proxy: " + texts[e.Reply]
	}
	return fmt.Sprintf("SOCKS5 proxy: reply %d", e.Reply)
}

// dialSOCKS opens a connection by SOCKS5 (RFC 1928, 1929). It reads no byte more than the proxy's replies have.
//
//	05 n methods ─► ◄─ 05 method │ 01 len user len password ─► ◄─ 01 status │ 05 01 00 type address port ─► ◄─ 05 reply 00 bound
func (d *Dialer) dialSOCKS(ctx context.Context, p Proxy, target string) (Connected, error) {
	conn, err := d.tcp(ctx, p.Address)
	if err != nil {
		return Connected{}, err
	}
	release := guard(ctx, conn)
	login, err := d.socksLogin(conn, p)
	began := time.Now()
	if err == nil {
		err = socksConnect(conn, target)
	}
	turn := time.Since(began)
	if ended := release(); ended != nil {
		err = ended
	}
	if err != nil {
		conn.Close()
		return Connected{}, err
	}
	return Connected{conn, turn, login}, nil
}

const (
	socksVersion  = 5
	socksNone     = 0
	socksPassword = 2
)

// socksLogin agrees on a method and logs in.
func (d *Dialer) socksLogin(conn net.Conn, p Proxy) (string, error) {
	user, password, err := d.credentials(p)
	if err != nil {
		return "", err
	}
	hello := []byte{socksVersion, 1, socksNone}
	if user != "" && d.held(p) == nil {
		hello = []byte{socksVersion, 2, socksNone, socksPassword}
	}
	if _, err := conn.Write(hello); err != nil {
		return "", err
	}
	var reply [2]byte
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return "", fmt.Errorf("SOCKS5 methods: %w", err)
	}
	switch {
	case reply[0] != socksVersion:
		return "", fmt.Errorf("SOCKS5 methods: version %d", reply[0])
	case reply[1] == socksNone:
		return "none", nil
	case reply[1] != socksPassword || len(hello) < 4:
		if err := d.held(p); err != nil {
			return "", err
		}
		return "", errNoScheme
	}
	if len(user) > 255 || len(password) > 255 || password == "" {
		return "", errors.New("SOCKS5: user and password have 1 to 255 octets each")
	}
	msg := append([]byte{1, byte(len(user))}, user...)
	msg = append(append(msg, byte(len(password))), password...)
	if _, err := conn.Write(msg); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(conn, reply[:]); err != nil {
		return "", fmt.Errorf("SOCKS5 login: %w", err)
	}
	if reply[1] != 0 {
		return "", d.refused(p, "password")
	}
	return "password", nil
}

// socksConnect asks for the target. A name goes to the proxy as a name.
func socksConnect(conn net.Conn, target string) error {
	host, portText, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return fmt.Errorf("port: %w", err)
	}
	msg := []byte{socksVersion, 1, 0}
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil && addr.Unmap().Is4():
		msg = append(append(msg, 1), addr.Unmap().AsSlice()...)
	case err == nil:
		msg = append(append(msg, 4), addr.AsSlice()...)
	case len(host) > 255 || host == "":
		return errors.New("SOCKS5: a host name has 1 to 255 octets")
	default:
		msg = append(append(msg, 3, byte(len(host))), host...)
	}
	if _, err := conn.Write(append(msg, byte(port>>8), byte(port))); err != nil {
		return err
	}
	return socksReply(conn)
}

// socksReply reads the reply to its last byte.
func socksReply(conn io.Reader) error {
	var b [256 + 2]byte
	if _, err := io.ReadFull(conn, b[:5]); err != nil {
		return fmt.Errorf("SOCKS5 reply: %w", err)
	}
	if b[0] != socksVersion {
		return fmt.Errorf("SOCKS5 reply: version %d", b[0])
	}
	if b[1] != 0 {
		return SOCKSError{b[1]}
	}
	rest := 0 // after the first byte of the address
	switch b[3] {
	case 1:
		rest = 4 - 1 + 2
	case 4:
		rest = 16 - 1 + 2
	case 3:
		rest = int(b[4]) + 2
	default:
		return fmt.Errorf("SOCKS5 reply: address type %d", b[3])
	}
	if _, err := io.ReadFull(conn, b[:rest]); err != nil {
		return fmt.Errorf("SOCKS5 reply: %w", err)
	}
	return nil
}

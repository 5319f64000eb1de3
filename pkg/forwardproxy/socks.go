package forwardproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// Numbers of RFC 1928 and RFC 1929.
const (
	socksVersion = 5
	loginVersion = 1

	methodNone     = 0x00
	methodPassword = 0x02
	methodNobody   = 0xff // none of the client's is accepted

	commandConnect   = 1
	commandAssociate = 3

	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4

	replyOK          = 0
	replyFailure     = 1
	replyNotAllowed  = 2
	replyNetwork     = 3
	replyHost        = 4
	replyRefused     = 5
	replyExpired     = 6 // "TTL expired": what clients are told of a timeout
	replyCommand     = 7
	replyAddressType = 8
)

// What is wrong with a message of SOCKS, beside errForm and errHost.
var (
	errSOCKS4  = errors.New("SOCKS 4")
	errAddress = errors.New("unknown type of address")
)

// readGreeting reads the version and the methods (RFC 1928 §3).
func readGreeting(r io.Reader) (methods []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	switch {
	case head[0] == 4:
		return nil, errSOCKS4
	case head[0] != socksVersion || head[1] == 0:
		return nil, errForm
	}
	methods = make([]byte, head[1])
	_, err = io.ReadFull(r, methods)
	return methods, err
}

// readLogin reads a name and a password (RFC 1929 §2).
func readLogin(r io.Reader) (name, password string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", "", err
	}
	if head[0] != loginVersion {
		return "", "", errForm
	}
	if name, err = readText(r, head[1]); err != nil {
		return "", "", err
	}
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return "", "", err
	}
	password, err = readText(r, head[0])
	return name, password, err
}

func readText(r io.Reader, n byte) (string, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return string(b), err
}

// socksRequest is a request of SOCKS (RFC 1928 §4).
type socksRequest struct {
	command byte
	host    string
	port    uint16
}

// readSOCKS reads a request. After errHost and errAddress command is right.
func readSOCKS(r io.Reader) (q socksRequest, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return q, err
	}
	if head[0] != socksVersion {
		return q, errForm
	}
	q.command = head[1]
	n := 0
	switch head[3] {
	case typeIPv4:
		n = 4
	case typeIPv6:
		n = 16
	case typeName:
		if _, err := io.ReadFull(r, head[:1]); err != nil {
			return q, err
		}
		n = int(head[0])
	default:
		return q, errAddress
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return q, err
	}
	q.host, err = socksHost(head[3], b[:n])
	q.port = binary.BigEndian.Uint16(b[n:])
	return q, err
}

// socksHost returns a host in the form in which it is judged and dialled.
func socksHost(kind byte, b []byte) (string, error) {
	if kind == typeName {
		return readHost(string(b))
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return "", errAddress
	}
	return a.Unmap().String(), nil
}

// appendSOCKS appends the type, address and port of a reply or datagram: what is not valid is written as 0.0.0.0:0.
func appendSOCKS(b []byte, at netip.AddrPort) []byte {
	a := at.Addr().Unmap()
	switch {
	case !a.IsValid():
		b = append(b, typeIPv4, 0, 0, 0, 0)
	case a.Is4():
		b = append(append(b, typeIPv4), a.AsSlice()...)
	default:
		b = append(append(b, typeIPv6), a.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, at.Port())
}

// socksReply returns a reply (RFC 1928 §6).
func socksReply(code byte, at netip.AddrPort) []byte {
	return appendSOCKS([]byte{socksVersion, code, 0}, at)
}

// Why datagrams are dropped, as the reason label of metrics; beside these are the reasons of dialling.
var (
	errDatagram = errors.New("malformed")
	errFragment = errors.New("fragment") // RFC 1928 §7: who implements no fragments must drop them
)

// splitDatagram takes the header off a client's datagram (RFC 1928 §7): to is its type, address and port as they stand there.
func splitDatagram(b []byte) (to, data []byte, err error) {
	if len(b) < 5 || b[0] != 0 || b[1] != 0 {
		return nil, nil, errDatagram
	}
	if b[2] != 0 {
		return nil, nil, errFragment
	}
	n := 0
	switch b[3] {
	case typeIPv4:
		n = 3 + 1 + 4 + 2
	case typeIPv6:
		n = 3 + 1 + 16 + 2
	case typeName:
		n = 3 + 2 + int(b[4]) + 2
	default:
		return nil, nil, errDatagram
	}
	if len(b) < n {
		return nil, nil, errDatagram
	}
	return b[3:n], b[n:], nil
}

// readDestination reads what splitDatagram has returned.
func readDestination(to []byte) (host string, port uint16, err error) {
	skip := 1
	if to[0] == typeName {
		skip = 2
	}
	end := len(to) - 2
	host, err = socksHost(to[0], to[skip:end])
	if port = binary.BigEndian.Uint16(to[end:]); err == nil && port == 0 {
		err = fmt.Errorf("port 0: %w", errHost)
	}
	return host, port, err
}

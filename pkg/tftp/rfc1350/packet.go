package rfc1350

import (
	"encoding/binary"
	"errors"
	"strconv"
)

// The packets (RFC 1350 §5, RFC 2347):
//
//	RRQ, WRQ   1|2  name 0 mode 0 [option 0 value 0]...
//	DATA       3    block  octets
//	ACK        4    block
//	ERROR      5    code   message 0
//	OACK       6    [option 0 value 0]...
const (
	opRead uint16 = 1 + iota
	opWrite
	opData
	opAck
	opError
	opOptions
)

// Error codes of RFC 1350 §5 and RFC 2347.
const (
	codeUndefined uint16 = 0
	codeAccess    uint16 = 2
	codeFull      uint16 = 3
	codeIllegal   uint16 = 4
	codeUnknown   uint16 = 5
	codeOptions   uint16 = 8
)

const (
	// maxRequest is the longest request and list of options, in octets (RFC 2347).
	maxRequest = 512
	// maxOptions bounds the options of a packet.
	maxOptions = 16
	// defaultBlock is the size of a block that nobody has negotiated (RFC 1350 §2).
	defaultBlock = 512
	// maxBlock is the largest that may be (RFC 2348).
	maxBlock = 65464
)

var errMalformed = errors.New("malformed packet")

// option is a name, in lower case, and a value.
type option struct{ name, value string }

// request is what a client begins with.
type request struct {
	write   bool
	name    string
	mode    string // in lower case
	options []option
}

// packet is any other packet. Its slices point into what was parsed.
type packet struct {
	op      uint16
	block   uint16 // or the error's code
	data    []byte
	options []option
}

// parseRequest reads RRQ or WRQ.
func parseRequest(b []byte) (request, error) {
	if len(b) < 2 || len(b) > maxRequest {
		return request{}, errMalformed
	}
	op := binary.BigEndian.Uint16(b)
	if op != opRead && op != opWrite {
		return request{}, errMalformed
	}
	name, rest, ok := text(b[2:])
	mode, rest, ok2 := text(rest)
	if !ok || !ok2 || name == "" {
		return request{}, errMalformed
	}
	options, err := parseOptions(rest)
	return request{write: op == opWrite, name: name, mode: lower(mode), options: options}, err
}

// text takes a string that ends with a zero.
func text(b []byte) (s string, rest []byte, ok bool) {
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), b[i+1:], true
		}
	}
	return "", nil, false
}

// lower folds the letters of ASCII: case does not matter in modes and options.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// parseOptions reads pairs of strings. An option may stand once (RFC 2347).
func parseOptions(b []byte) ([]option, error) {
	var list []option
	for len(b) > 0 {
		name, rest, ok := text(b)
		value, rest, ok2 := text(rest)
		if !ok || !ok2 || name == "" || len(list) == maxOptions {
			return nil, errMalformed
		}
		o := option{lower(name), value}
		if _, twice := find(list, o.name); twice {
			return nil, errMalformed
		}
		list, b = append(list, o), rest
	}
	return list, nil
}

func find(list []option, name string) (value string, ok bool) {
	for _, o := range list {
		if o.name == name {
			return o.value, true
		}
	}
	return "", false
}

// number reads an option's value; false if it is not there or not between low and high.
func number(list []option, name string, low, high int64) (int64, bool) {
	value, ok := find(list, name)
	if !ok || len(value) == 0 || len(value) > 19 || value[0] < '0' || value[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseInt(value, 10, 64)
	return n, err == nil && n >= low && n <= high
}

// parsePacket reads what follows a request.
func parsePacket(b []byte) (packet, error) {
	if len(b) < 2 {
		return packet{}, errMalformed
	}
	p := packet{op: binary.BigEndian.Uint16(b)}
	switch p.op {
	case opOptions:
		if len(b) > maxRequest {
			return p, errMalformed
		}
		var err error
		p.options, err = parseOptions(b[2:])
		return p, err
	case opData, opAck, opError:
		if len(b) < 4 || p.op == opAck && len(b) != 4 || p.op == opError && len(b) > maxRequest {
			return p, errMalformed
		}
		p.block, p.data = binary.BigEndian.Uint16(b[2:]), b[4:]
		return p, nil
	}
	return p, errMalformed
}

// errorPacket returns an ERROR packet.
func errorPacket(code uint16, message string) []byte {
	dst := binary.BigEndian.AppendUint16(nil, opError)
	dst = binary.BigEndian.AppendUint16(dst, code)
	return append(append(dst, message...), 0)
}

package rfc1350

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// ask makes a request; options are names and values in turn.
func ask(op uint16, name, mode string, options ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, op)
	for _, s := range append([]string{name, mode}, options...) {
		b = append(append(b, s...), 0)
	}
	return b
}

// oack makes the server's answer to options.
func oack(options ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, opOptions)
	for _, s := range options {
		b = append(append(b, s...), 0)
	}
	return b
}

func data(block uint16, octets int) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, opData), block)
	return append(b, bytes.Repeat([]byte{'x'}, octets)...)
}

func ack(block uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, opAck), block)
}

func TestParseRequest(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		want string // "" = malformed
	}{
		{"read", ask(opRead, "boot/file.bin", "OCTET"), "get boot/file.bin octet []"},
		{"write", ask(opWrite, "a", "netascii", "BlkSize", "1428", "tsize", "70000"), "put a netascii [{blksize 1428} {tsize 70000}]"},
		{"empty", nil, ""},
		{"no name", ask(opRead, "", "octet"), ""},
		{"no mode", []byte("\x00\x01name\x00"), ""},
		{"no end", []byte("\x00\x01name\x00octet"), ""},
		{"option without value", append(ask(opRead, "a", "octet"), "blksize\x00"...), ""},
		{"option without name", ask(opRead, "a", "octet", "", "1"), ""},
		{"option twice", ask(opRead, "a", "octet", "blksize", "512", "BLKSIZE", "1024"), ""},
		{"too many options", ask(opRead, "a", "octet", slices.Repeat([]string{"o", "1"}, maxOptions+1)...), ""},
		{"too long", ask(opRead, strings.Repeat("a", 600), "octet"), ""},
		{"no request", data(1, 10), ""},
	} {
		got, err := parseRequest(tt.in)
		text := ""
		if err == nil {
			text = fmt.Sprint(map[bool]string{false: "get", true: "put"}[got.write], " ", got.name, " ", got.mode, " ", got.options)
		}
		if text != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.name, text, err, tt.want)
		}
	}
}

func TestParsePacket(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty": nil, "short": {0, 3, 0}, "long ack": append(ack(1), 0), "opcode": {0, 9, 0, 0}, "request": ask(opRead, "a", "octet"),
		"long error": errorPacket(0, strings.Repeat("x", 600)), "option": append(oack(), "blksize"...),
	} {
		if p, err := parsePacket(b); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if p, err := parsePacket(data(7, 3)); err != nil || p.block != 7 || string(p.data) != "xxx" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := parsePacket(errorPacket(codeFull, "full")); err != nil || p.op != opError || p.block != codeFull {
		t.Errorf("%+v, %v", p, err)
	}
}

// FuzzRequest checks that requests are read without harm, and that what was read is what stands there.
func FuzzRequest(f *testing.F) {
	f.Add(ask(opRead, "boot/file.bin", "octet", "blksize", "1428", "tsize", "0", "windowsize", "4"))
	f.Add(ask(opWrite, `..\a`, "netascii"))
	f.Add([]byte{0, 1, 0, 0})
	cfg := DefaultConfig()
	cfg.Write = true
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		rest := []string{}
		for _, o := range r.options {
			rest = append(rest, o.name, o.value)
		}
		op := opRead
		if r.write {
			op = opWrite
		}
		if again := ask(op, r.name, r.mode, rest...); len(again) != len(b) || !strings.EqualFold(string(again[2:]), string(b[2:])) && isASCII(b) {
			t.Fatalf("%q became %q", b, again)
		}
		if cfg.refuses(r) == nil && strings.Contains("/"+slashed(r.name)+"/", "/../") {
			t.Fatalf("%q passes", r.name)
		}
	})
}

func isASCII(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 }) }

// FuzzTransfer checks that no sequence of packets does harm, and that what is counted was sent.
func FuzzTransfer(f *testing.F) {
	f.Add(ask(opRead, "a", "octet", "blksize", "8"), append(append([]byte{1, 12}, oack("blksize", "8")...), append([]byte{1, 12}, data(1, 8)...)...), int64(100))
	f.Add(ask(opWrite, "a", "octet"), append(append([]byte{1, 4}, ack(0)...), append([]byte{0, 104}, data(1, 100)...)...), int64(50))
	f.Fuzz(func(t *testing.T, ask, packets []byte, limit int64) {
		r, err := parseRequest(ask)
		if err != nil {
			return
		}
		x, sent := newTransfer(r, limit), int64(0)
		for len(packets) > 2 {
			n := min(int(packets[1]), len(packets)-2)
			b := packets[2 : 2+n]
			sent += int64(n)
			v := x.receive(side(packets[0]&1), b)
			if v.fail != nil {
				break
			}
			packets = packets[2+n:]
		}
		if x.octets > sent || x.block > maxBlock || x.block+4 > x.largest() && x.block > defaultBlock {
			t.Fatalf("%d octets of %d, blocks of %d", x.octets, sent, x.block)
		}
	})
}

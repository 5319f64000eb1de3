//go:build lab

package lab

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/rc4"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"unicode/utf16"
)

// Flags of NTLM ([MS-NLMP] 2.2.2.5) that the lab's server asks for: Unicode, target, signing, datagrams, NTLM, always
// sign, extended session security, identify, target information, version, 128 bits, key exchange, 56 bits.
const (
	ntlmFlags       = 1 | 4 | 0x10 | 0x40 | 0x200 | 0x8000 | 0x80000 | 0x100000 | 0x800000 | 0x2000000 | 0x20000000 | 0x40000000 | 0x80000000
	ntlmDatagram    = 0x40
	ntlm128         = 0x20000000
	ntlmKeyExchange = 0x40000000
)

// ntlm is the server's side of one NTLM session: a challenge, then the keys that both directions are signed with.
type ntlm struct {
	nonce               [8]byte
	flags               uint32
	user                string
	in, out             []byte // signing keys: client's, server's
	inCipher, outCipher []byte // sealing keys, with which the checksum is hidden
}

func newNTLM() *ntlm {
	n := &ntlm{}
	rand.Read(n.nonce[:])
	return n
}

// challenge returns the CHALLENGE_MESSAGE ([MS-NLMP] 2.2.1.2).
func (n *ntlm) challenge() []byte {
	var info []byte
	for _, av := range []struct {
		id   uint16
		text string
	}{{2, "EXAMPLE"}, {1, "SRV"}, {4, "example.org"}, {3, "srv.example.org"}, {0, ""}} {
		text := utf16le(av.text)
		info = binary.LittleEndian.AppendUint16(info, av.id)
		info = append(binary.LittleEndian.AppendUint16(info, uint16(len(text))), text...)
	}
	const head = 56
	name := utf16le("EXAMPLE")
	field := func(b []byte, length, at int) []byte {
		b = binary.LittleEndian.AppendUint16(b, uint16(length))
		b = binary.LittleEndian.AppendUint16(b, uint16(length))
		return binary.LittleEndian.AppendUint32(b, uint32(at))
	}
	b := binary.LittleEndian.AppendUint32([]byte("NTLMSSP\x00"), 2)
	b = field(b, len(name), head)
	b = binary.LittleEndian.AppendUint32(b, ntlmFlags)
	b = append(append(b, n.nonce[:]...), make([]byte, 8)...)
	b = field(b, len(info), head+len(name))
	b = append(b, 5, 2, 0xce, 0x0e, 0, 0, 0, 15) // version: Windows 5.2
	return append(append(b, name...), info...)
}

// accept checks an AUTHENTICATE_MESSAGE with an NTLMv2 response ([MS-NLMP] 3.3.2) and derives the keys.
func (n *ntlm) accept(b []byte, password func(user string) string) error {
	if len(b) < 64 || string(b[:8]) != "NTLMSSP\x00" || binary.LittleEndian.Uint32(b[8:]) != 3 {
		return errors.New("no AUTHENTICATE_MESSAGE")
	}
	field := func(at int) []byte {
		length, from := int(binary.LittleEndian.Uint16(b[at:])), int(binary.LittleEndian.Uint32(b[at+4:]))
		if from+length > len(b) {
			return nil
		}
		return b[from : from+length]
	}
	response, domain, user, session := field(20), field(28), field(36), field(52)
	if len(response) < 24 {
		return errors.New("no NTLMv2 response")
	}
	n.flags, n.user = binary.LittleEndian.Uint32(b[60:]), fromUTF16(user)
	key := hmacMD5(md4(utf16le(password(n.user))), utf16le(strings.ToUpper(n.user)), domain)
	if !hmac.Equal(hmacMD5(key, n.nonce[:], response[16:]), response[:16]) {
		return fmt.Errorf("wrong password of %q", n.user)
	}
	exported := hmacMD5(key, response[:16])
	if n.flags&ntlmKeyExchange != 0 {
		if len(session) != 16 {
			return errors.New("no session key")
		}
		exported = rc4Once(exported, session)
	}
	n.derive(exported)
	return nil
}

// derive makes the four keys of a session ([MS-NLMP] 3.4.5.2 and 3.4.5.3).
func (n *ntlm) derive(key []byte) {
	seal := key
	if n.flags&ntlm128 == 0 {
		seal = key[:7]
	}
	magic := func(key []byte, way, what string) []byte {
		sum := md5.Sum(append(bytes.Clone(key), "session key to "+way+" "+what+" key magic constant\x00"...))
		return sum[:]
	}
	n.in, n.out = magic(key, "client-to-server", "signing"), magic(key, "server-to-client", "signing")
	n.inCipher, n.outCipher = magic(seal, "client-to-server", "sealing"), magic(seal, "server-to-client", "sealing")
}

// sequence is the number that every SIP message is signed with: they are datagrams ([MS-SIPAE] 3.1).
const sequence = 100

func (n *ntlm) mac(text string, sign, seal []byte) string {
	number := binary.LittleEndian.AppendUint32(nil, sequence)
	if n.flags&ntlmDatagram != 0 {
		sum := md5.Sum(append(bytes.Clone(seal), number...))
		seal = sum[:]
	}
	sum := hmacMD5(sign, number, []byte(text))[:8]
	if n.flags&ntlmKeyExchange != 0 {
		sum = rc4Once(seal, sum)
	}
	return strings.ToUpper(hex.EncodeToString(append(append([]byte{1, 0, 0, 0}, sum...), number...)))
}

// fromClient returns the signature that the client must have made of the text, toClient the server's own.
func (n *ntlm) fromClient(text string) string { return n.mac(text, n.in, n.inCipher) }
func (n *ntlm) toClient(text string) string   { return n.mac(text, n.out, n.outCipher) }

func hmacMD5(key []byte, parts ...[]byte) []byte {
	h := hmac.New(md5.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func rc4Once(key, b []byte) []byte {
	out := make([]byte, len(b))
	c, err := rc4.NewCipher(key)
	if err != nil { // only for keys of no or too great length; ours have 16 octets
		return out
	}
	c.XORKeyStream(out, b)
	return out
}

func utf16le(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

func fromUTF16(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		units = append(units, binary.LittleEndian.Uint16(b))
	}
	return string(utf16.Decode(units))
}

// md4 is RFC 1320's digest, which NTLM takes of a password and nobody should take of anything.
func md4(message []byte) []byte {
	b := append(bytes.Clone(message), 0x80)
	b = append(b, make([]byte, (56-len(b)%64+64)%64)...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(message))*8)
	state := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	for ; len(b) > 0; b = b[64:] {
		md4Block(&state, b[:64])
	}
	var sum []byte
	for _, v := range state {
		sum = binary.LittleEndian.AppendUint32(sum, v)
	}
	return sum
}

func md4Block(state *[4]uint32, block []byte) {
	var x [16]uint32
	for i := range x {
		x[i] = binary.LittleEndian.Uint32(block[4*i:])
	}
	rounds := [3]struct {
		mix   func(x, y, z uint32) uint32
		add   uint32
		order [16]int
		shift [4]int
	}{
		{func(x, y, z uint32) uint32 { return x&y | ^x&z }, 0, [16]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y | x&z | y&z }, 0x5a827999, [16]int{0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1, [16]int{0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15}, [4]int{3, 9, 11, 15}},
	}
	a, b, c, d := state[0], state[1], state[2], state[3]
	for _, r := range rounds {
		for i, k := range r.order {
			a = bits.RotateLeft32(a+r.mix(b, c, d)+x[k]+r.add, r.shift[i%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0], state[1], state[2], state[3] = state[0]+a, state[1]+b, state[2]+c, state[3]+d
}

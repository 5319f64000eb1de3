package turn

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"net/netip"
	"sync"
	"time"
)

const (
	// nonceLife is how long a nonce is good (RFC 8656 §5 suggests an hour).
	nonceLife = time.Hour
	nonceSize = 12 // two octets of time and ten of MAC: 16 characters
)

// nonces makes nonces that need no memory: minutes, and a MAC over these and the client's transport address, so that
// a captured request is worth nothing from another one.
type nonces struct {
	secret [32]byte
	macs   sync.Pool // of hash.Hash: making one costs more than what it is used for
}

func newNonces() *nonces {
	n := &nonces{}
	rand.Read(n.secret[:]) // never fails
	return n
}

func (n *nonces) make(client netip.AddrPort, now time.Time) string {
	b := n.at(client, uint16(now.Unix()/60))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// valid tells whether a nonce was made for the client less than nonceLife ago.
func (n *nonces) valid(nonce []byte, client netip.AddrPort, now time.Time) bool {
	var b [nonceSize]byte
	if len(nonce) != base64.RawURLEncoding.EncodedLen(nonceSize) {
		return false
	}
	if _, err := base64.RawURLEncoding.Decode(b[:], nonce); err != nil {
		return false
	}
	minute := binary.BigEndian.Uint16(b[:])
	if age := uint16(now.Unix()/60) - minute; time.Duration(age)*time.Minute >= nonceLife {
		return false
	}
	want := n.at(client, minute)
	return hmac.Equal(b[:], want[:])
}

func (n *nonces) at(client netip.AddrPort, minute uint16) (b [nonceSize]byte) {
	binary.BigEndian.PutUint16(b[:], minute)
	ip := client.Addr().As16()
	mac, ok := n.macs.Get().(hash.Hash)
	if !ok {
		mac = hmac.New(sha256.New, n.secret[:])
	}
	defer n.macs.Put(mac)
	mac.Reset()
	mac.Write(b[:2])
	mac.Write(ip[:])
	mac.Write(binary.BigEndian.AppendUint16(nil, client.Port()))
	copy(b[2:], mac.Sum(nil))
	return b
}

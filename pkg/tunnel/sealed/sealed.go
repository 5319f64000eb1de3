// Package sealed carries datagrams between two devices so that nobody between them reads, changes or repeats one.
//
// The two have spoken TLS 1.3 on a stream; from it come keys that nobody else has (RFC 8446 §7.5), one for each way.
// Each datagram is sealed by itself, since any of them may be lost or late. It is no VPN and keeps no order.
//
//	Send ─► counter 8 octets | AES-256-GCM(datagram), nonce = IV xor counter ─► SendDatagram of the stream
//	Receive ◄─ opened, then: not seen before? ◄─ ReceiveDatagram
package sealed

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Overhead is by how many octets a sealed datagram is longer.
const Overhead = counterSize + 16

const (
	counterSize = 8
	keySize     = 32
	ivSize      = 12
	label       = "EXPORTER-edged-datagrams" // RFC 8446 §7.5
	// most is how many datagrams one key seals. It is far from what AES-GCM bears and from what anybody sends.
	most = 1 << 60
)

// Datagrams is a stream that carries datagrams too. One Receive runs at a time; sends may be concurrent.
type Datagrams interface {
	SendDatagram(b []byte) error
	ReceiveDatagram(ctx context.Context) ([]byte, error)
}

// Conn seals and opens the datagrams of a stream.
type Conn struct {
	under     Datagrams
	out, in   cipher.AEAD
	outIV     [ivSize]byte
	inIV      [ivSize]byte
	sent      atomic.Uint64
	buffers   sync.Pool // of *[]byte
	forged    atomic.Uint64
	again     atomic.Uint64
	receiving sync.Mutex // guards what follows
	seen      window
}

// New takes the keys from a TLS session that is established on the stream itself. client says that this end was its client.
func New(under Datagrams, session *tls.ConnectionState, client bool) (*Conn, error) {
	if session.Version < tls.VersionTLS13 || !session.HandshakeComplete {
		return nil, errors.New("sealed: no TLS 1.3 session to take keys from")
	}
	material, err := session.ExportKeyingMaterial(label, nil, 2*(keySize+ivSize))
	if err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	c := &Conn{under: under}
	c.buffers.New = func() any { return new([]byte) }
	fromClient, fromServer := material[:keySize+ivSize], material[keySize+ivSize:]
	if !client {
		fromClient, fromServer = fromServer, fromClient
	}
	if c.out, err = newAEAD(fromClient[:keySize]); err != nil {
		return nil, err
	}
	if c.in, err = newAEAD(fromServer[:keySize]); err != nil {
		return nil, err
	}
	c.outIV, c.inIV = [ivSize]byte(fromClient[keySize:]), [ivSize]byte(fromServer[keySize:])
	return c, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	return cipher.NewGCM(block)
}

// nonce is different for each counter.
func nonce(iv [ivSize]byte, counter uint64) []byte {
	tail := iv[ivSize-counterSize:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^counter)
	return iv[:]
}

// Send seals a datagram and sends it; b is the caller's again afterwards.
func (c *Conn) Send(b []byte) error {
	n := c.sent.Add(1)
	if n > most {
		return errors.New("sealed: the key has sealed too many datagrams")
	}
	buf := c.buffers.Get().(*[]byte) //nolint:forcetypeassert // nothing else is put there
	defer c.buffers.Put(buf)
	*buf = binary.BigEndian.AppendUint64((*buf)[:0], n)
	*buf = c.out.Seal(*buf, nonce(c.outIV, n), b, (*buf)[:counterSize])
	return c.under.SendDatagram(*buf)
}

// Receive returns the next datagram that the other device has sealed and that has not come before. It is the caller's.
func (c *Conn) Receive(ctx context.Context) ([]byte, error) {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	for {
		b, err := c.under.ReceiveDatagram(ctx)
		if err != nil {
			return nil, err
		}
		if len(b) < Overhead {
			c.forged.Add(1)
			continue
		}
		n := binary.BigEndian.Uint64(b)
		plain, err := c.in.Open(b[counterSize:counterSize], nonce(c.inIV, n), b[counterSize:], b[:counterSize])
		if err != nil {
			c.forged.Add(1)
			continue
		}
		if !c.seen.first(n) {
			c.again.Add(1)
			continue
		}
		return plain, nil
	}
}

// Dropped returns how many datagrams were not the other device's, and how many came again or far too late.
func (c *Conn) Dropped() (forged, again uint64) { return c.forged.Load(), c.again.Load() }

// windowSize is how much later than the newest a datagram may come.
const windowSize = 1024

// window remembers which counters have been seen. The zero value has seen none.
type window struct {
	newest uint64
	bits   [windowSize / 64]uint64 // of counter n, bit n mod windowSize
}

// first tells whether a counter is seen for the first time, as far as that can be told.
func (w *window) first(n uint64) bool {
	if n == 0 || n+windowSize <= w.newest {
		return false
	}
	for i := w.newest + 1; i <= n && i <= w.newest+windowSize; i++ {
		w.bits[i%windowSize/64] &^= 1 << (i % 64)
	}
	if n > w.newest {
		w.newest = n
	}
	bit := uint64(1) << (n % 64)
	word := &w.bits[n%windowSize/64]
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

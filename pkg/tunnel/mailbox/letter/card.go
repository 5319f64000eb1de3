package letter

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"errors"
	"fmt"

	"edged.dev/edged/pkg/tunnel/mailbox"
)

// Key is what a device seals and opens letters with. All of it comes from the device's Ed25519 key: its signature of a fixed text,
// which is the same every time (RFC 8032 §5.1.6) and is shown to nobody, is the secret from which the rest is derived.
type Key struct {
	public  ed25519.PublicKey
	sign    func([]byte) []byte
	secret  []byte
	private hpke.PrivateKey
	card    []byte
}

const (
	secretLabel = "edged letter secret v1"
	cardLabel   = "edged letter card v1"
	cardVersion = 1
	cardLen     = 1 + ed25519.PublicKeySize + 32 + ed25519.SignatureSize
)

// NewKey derives a device's key from its Ed25519 key.
func NewKey(public ed25519.PublicKey, sign func([]byte) []byte) (*Key, error) {
	k := &Key{public: public, sign: sign}
	seed := sign([]byte(secretLabel))
	if !ed25519.Verify(public, []byte(secretLabel), seed) {
		return nil, errors.New("letter: the key does not sign")
	}
	derive := func(label string) ([]byte, error) { return hkdf.Key(sha256.New, seed, nil, label, 32) }
	scalar, err := derive("X25519")
	if err != nil {
		return nil, fmt.Errorf("letter: %w", err)
	}
	if k.secret, err = derive("content keys"); err != nil {
		return nil, fmt.Errorf("letter: %w", err)
	}
	private, err := ecdh.X25519().NewPrivateKey(scalar)
	if err != nil {
		return nil, fmt.Errorf("letter: %w", err)
	}
	if k.private, err = hpke.NewDHKEMPrivateKey(private); err != nil {
		return nil, fmt.Errorf("letter: %w", err)
	}
	k.card = append(append([]byte{cardVersion}, public...), private.PublicKey().Bytes()...)
	k.card = append(k.card, sign(append([]byte(cardLabel), k.card...))...)
	return k, nil
}

// Device returns the ID of the device.
func (k *Key) Device() mailbox.Device { return sha256.Sum256(k.public) }

// Card returns what a device publishes, for others to seal letters to it.
func (k *Key) Card() []byte { return append([]byte(nil), k.card...) }

// Card is a device's key for letters, verified.
type Card struct {
	device mailbox.Device
	public hpke.PublicKey
}

// Device returns whose card it is.
func (c Card) Device() mailbox.Device { return c.device }

// ErrCard says that a card is not that of the device.
var ErrCard = errors.New("letter: not this device's key")

// ReadCard reads and verifies the card of a device. The ID is all that must be known of it.
func ReadCard(b []byte, d mailbox.Device) (Card, error) {
	if len(b) != cardLen || b[0] != cardVersion {
		return Card{}, ErrCard
	}
	signed, signature := b[:cardLen-ed25519.SignatureSize], b[cardLen-ed25519.SignatureSize:]
	public := ed25519.PublicKey(signed[1 : 1+ed25519.PublicKeySize])
	if sha256.Sum256(public) != d || !ed25519.Verify(public, append([]byte(cardLabel), signed...), signature) {
		return Card{}, ErrCard
	}
	point, err := ecdh.X25519().NewPublicKey(signed[1+ed25519.PublicKeySize:])
	if err != nil {
		return Card{}, fmt.Errorf("%w: %w", ErrCard, err)
	}
	key, err := hpke.NewDHKEMPublicKey(point)
	if err != nil {
		return Card{}, fmt.Errorf("%w: %w", ErrCard, err)
	}
	return Card{d, key}, nil
}

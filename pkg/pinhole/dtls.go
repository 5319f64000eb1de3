package pinhole

import (
	"crypto"
	_ "crypto/sha256" // registers SHA-256
	_ "crypto/sha512" // registers SHA-384 and SHA-512
)

// DTLS has the relay agree on keys with the peer itself (RFC 5764), at each of the peer's ports.
type DTLS struct {
	// Client: the relay begins the handshake, else the peer does.
	Client bool
	// Hash and Fingerprint are what signalling says of the peer's certificate (RFC 8122), for Hash see [FingerprintHash].
	Hash        string
	Fingerprint []byte
}

// FingerprintHash returns the hash of a name as a=fingerprint has it, in lower case.
func FingerprintHash(name string) (crypto.Hash, bool) {
	switch name {
	case "sha-256":
		return crypto.SHA256, true
	case "sha-384":
		return crypto.SHA384, true
	case "sha-512":
		return crypto.SHA512, true
	}
	return 0, false
}

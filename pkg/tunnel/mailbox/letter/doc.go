// Package letter seals what one device leaves for others, so that the relay that keeps it can neither read nor change it.
// It does not carry anything, and it keeps no state: the same message sealed again, from any chunk on, fits what was sent
// before, so a half-sent one can be gone on with after a restart of everything.
//
//	head:    version 1 | sender's public key 32 | recipients 2 | each: device 32, HPKE enc 32, content key 48 | meta 2 | sealed meta
//	chunks:  nonce 12 | AES-256-GCM of 64 KiB, the last one shorter | tag 16
//	trailer: nonce 12 | the sender's signature 64, sealed like a chunk | tag 16
//
// The content key goes to each recipient by HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM). The signature (Ed25519) is over
// who, to whom, which number, the meta data and the hash of the text, so a recipient of a list cannot pass off a
// text of its own as the sender's. All recipients see the list. There is no forward secrecy against a device's stolen key.
package letter

// Package device is who takes part in the tunnel: a device is an Ed25519 key, and its ID is the key's hash.
//
// It makes the TLS configurations by which two devices know each other by key, whatever lies between them, and holds
// what a relay knows of devices: names and groups, who may reach which service, and the tokens by which a new key gets
// in. It opens no connection and knows nothing of sessions.
//
//	key file ─► Key ─► certificate ─► ServerTLS, ClientTLS ◄─► the other's ID, pinned or admitted
//	users file, enrolled devices ─► Registry ─► Policy: from, to, service ─► yes or no
//	operator ─► Tokens (hashes, one-time, expiring) ─► Redeem ─► enrolled device
package device

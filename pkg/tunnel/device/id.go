package device

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// ID names a device: SHA-256 of its Ed25519 public key's 32 octets.
type ID [sha256.Size]byte

const (
	idChars    = 52 // of base32, for 256 bits
	checkChars = 4
	groupChars = 7
)

// alphabet is that of RFC 4648 §6 in lower case.
func alphabet() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

// IDOf returns the ID of a public key.
func IDOf(key ed25519.PublicKey) ID { return sha256.Sum256(key) }

// check returns the characters that show a mistyped ID.
func (id ID) check() string {
	sum := sha256.Sum256(append([]byte("edged device id"), id[:]...))
	return alphabet().EncodeToString(sum[:])[:checkChars]
}

// String returns 8 groups of 7 characters, joined by hyphens: base32 of the hash, then 4 characters that check it.
func (id ID) String() string {
	text := alphabet().EncodeToString(id[:]) + id.check()
	var b strings.Builder
	for i := 0; i < len(text); i += groupChars {
		if i > 0 {
			b.WriteByte('-')
		}
		b.WriteString(text[i : i+groupChars])
	}
	return b.String()
}

// Short returns the first group, for logs beside a name. It does not identify a device.
func (id ID) Short() string { return id.String()[:groupChars] }

// IsZero tells whether id names nobody.
func (id ID) IsZero() bool { return id == ID{} }

// Equal compares without telling by its time where two IDs differ.
func (id ID) Equal(other ID) bool { return subtle.ConstantTimeCompare(id[:], other[:]) == 1 }

// ParseID reads what String writes; hyphens may be missing and letters may be capitals.
func ParseID(text string) (ID, error) {
	if len(text) > 2*(idChars+checkChars) {
		return ID{}, errors.New("too long for a device ID")
	}
	plain := strings.ToLower(strings.ReplaceAll(text, "-", ""))
	if len(plain) != idChars+checkChars {
		return ID{}, fmt.Errorf("a device ID has %d letters and digits, this has %d", idChars+checkChars, len(plain))
	}
	raw, err := alphabet().DecodeString(plain[:idChars])
	if err != nil || len(raw) != len(ID{}) { // encoding/base32 skips ends of lines
		return ID{}, errors.New("a device ID has only the letters a-z and the digits 2-7")
	}
	id := ID(raw)
	if alphabet().EncodeToString(raw) != plain[:idChars] || id.check() != plain[idChars:] {
		return ID{}, errors.New("this device ID is mistyped: its last four characters do not fit")
	}
	return id, nil
}

// MarshalText writes what UnmarshalText reads; nothing for nobody.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText reads an ID; an empty text is nobody.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// maxName is the longest name of a device, group or service: a label of the DNS (RFC 1035 §2.3.4).
const maxName = 63

// CheckName says what is wrong with a name of a device, a group or a service: it must be usable as a label of the DNS.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("a name is needed")
	case len(name) > maxName:
		return fmt.Errorf("a name has at most %d characters", maxName)
	case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return fmt.Errorf("%q has other characters than a-z, 0-9 and -", name)
	case name[0] == '-' || name[len(name)-1] == '-':
		return fmt.Errorf("%q begins or ends with -", name)
	}
	return nil
}

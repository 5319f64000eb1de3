package device

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Key is a device's own secret. The zero value is none.
type Key struct{ private ed25519.PrivateKey }

// pemType is that of PKCS #8 (RFC 7468 §10).
const pemType = "PRIVATE KEY"

// maxKeyFile bounds what is read of a key file.
const maxKeyFile = 16 << 10

// NewKey makes a key.
func NewKey() (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("key: %w", err)
	}
	return Key{private}, nil
}

// LoadKey reads a key file: PEM, PKCS #8, readable by its owner alone.
func LoadKey(file string) (Key, error) {
	st, err := os.Stat(file)
	if err != nil {
		return Key{}, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return Key{}, fmt.Errorf("%s: others than its owner may read it (mode %04o); chmod 600", file, st.Mode().Perm())
	}
	if st.Size() > maxKeyFile {
		return Key{}, fmt.Errorf("%s: too long for a key", file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return Key{}, err
	}
	k, err := parseKey(text)
	if err != nil {
		return Key{}, fmt.Errorf("%s: %w", file, err)
	}
	return k, nil
}

func parseKey(text []byte) (Key, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemType {
		return Key{}, fmt.Errorf("no PEM block %q", pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Key{}, err
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return Key{}, errors.New("the key is not of Ed25519")
	}
	return Key{private}, nil
}

// LoadOrCreateKey reads a key file, or makes it if there is none. made says that it did.
func LoadOrCreateKey(file string) (k Key, made bool, err error) {
	k, err = LoadKey(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, false, err
	}
	if k, err = NewKey(); err != nil {
		return Key{}, false, err
	}
	if err := k.save(file); err != nil {
		if errors.Is(err, fs.ErrExist) { // another process was faster
			k, err = LoadKey(file)
		}
		return k, false, err
	}
	return k, true, nil
}

// save writes a new key file; it never replaces one.
func (k Key) save(file string) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return err
	}
	if err := makeDir(filepath.Dir(file)); err != nil {
		return err
	}
	tmp, err := writeTemp(file, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp) }()
	if err := os.Link(tmp, file); err != nil { // unlike a rename, this fails if the file is there
		return err
	}
	return syncDir(filepath.Dir(file))
}

// ID returns the ID of the device that has the key.
func (k Key) ID() ID { return IDOf(k.Public()) }

// Public returns the public key.
func (k Key) Public() ed25519.PublicKey {
	return k.private.Public().(ed25519.PublicKey) //nolint:forcetypeassert // what an Ed25519 key has
}

// Sign signs a message, which must say in itself what it is for.
func (k Key) Sign(message []byte) []byte { return ed25519.Sign(k.private, message) }

// Certificate returns a certificate of the key, signed by itself. Peers look at the key alone: the name says what it is,
// and the times are such that no clock refuses it.
func (k Key) Certificate() (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edged"},
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k.private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.private}, nil
}

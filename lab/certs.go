//go:build lab

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certificates are the files of a CA and of one certificate that it signed.
type Certificates struct{ CA, Cert, Key string }

// authority signs certificates for the hosts of a rig.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, dir string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, "CA key", err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(t, "CA", err)
	cert, err := x509.ParseCertificate(der)
	must(t, "CA", err)
	writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", der)
	return &authority{dir: dir, cert: cert, key: key}
}

// issue signs a certificate for names and addresses; its files begin with base.
func (a *authority) issue(t testing.TB, base string, names []string, ips ...netip.Addr) *Certificates {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, "key", err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: base},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, ip := range ips {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	must(t, "certificate", err)
	c := &Certificates{CA: filepath.Join(a.dir, "ca.pem"), Cert: filepath.Join(a.dir, base+".pem"), Key: filepath.Join(a.dir, base+".key")}
	writePEM(t, c.Cert, "CERTIFICATE", der)
	kder, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, "key", err)
	writePEM(t, c.Key, "PRIVATE KEY", kder)
	return c
}

// config returns a TLS configuration that shows the certificate and trusts the CA.
func (c *Certificates) config(t testing.TB, serverName string) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	must(t, "certificate", err)
	ca, err := os.ReadFile(c.CA)
	must(t, "CA", err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS12}
}

func writePEM(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	must(t, name, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

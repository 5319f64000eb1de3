package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// writeTestCertificate writes NAME.pem and NAME.key, a certificate for host that signs itself.
func writeTestCertificate(t *testing.T, dir, name, host string, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	writeCertificateOf(t, key, dir, name, host, until)
}

// writeCertificateOf is writeTestCertificate with a key of another kind.
func writeCertificateOf(t *testing.T, key crypto.Signer, dir, name, host string, until time.Time) {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: until.AddDate(-1, 0, 0), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// handshake connects a client to a listener's configuration and returns the certificate that it was shown.
func handshake(server, client *tls.Config) (*x509.Certificate, error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	serverErr := make(chan error, 1)
	go func() {
		s := tls.Server(b, server)
		err := s.Handshake()
		if err != nil {
			b.Close()
		}
		serverErr <- err
	}()
	c := tls.Client(a, client)
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	go c.Read(make([]byte, 1)) // takes what TLS 1.3 sends after the handshake, and an alert
	if err := <-serverErr; err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates[0], nil
}

func TestCertificatesAreReplacedWhileListening(t *testing.T) {
	dir := t.TempDir()
	section := tlsConfig{Certificates: []certConfig{{"a.pem", "a.key"}, {"b.pem", "b.key"}}, ClientCA: "a.pem"}
	load := func(until time.Time) *certificates {
		writeTestCertificate(t, dir, "a", "a.example.org", until)
		writeTestCertificate(t, dir, "b", "b.example.org", until)
		certs, err := loadCertificates(section, dir)
		if err != nil {
			t.Fatal(err)
		}
		return certs
	}
	first, second := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(2*time.Hour).Truncate(time.Second)
	store := newTLSStore(load(first), nil, nil)
	for _, until := range []time.Time{first, second} {
		store.current.Store(load(until))
		for _, host := range []string{"a.example.org", "b.example.org"} {
			client := &tls.Config{ServerName: host, RootCAs: store.current.Load().roots, InsecureSkipVerify: host == "b.example.org"}
			cert, err := handshake(store.Server("outside", flow.TLS), client)
			if err != nil {
				t.Fatal(err)
			}
			if cert.DNSNames[0] != host || !cert.NotAfter.Equal(until) {
				t.Errorf("%s until %v: was shown %s until %v", host, until, cert.DNSNames[0], cert.NotAfter)
			}
		}
	}
}

func TestClientCertificateIsDemanded(t *testing.T) {
	dir := t.TempDir()
	writeTestCertificate(t, dir, "edge", "edge.example.org", time.Now().Add(time.Hour))
	writeTestCertificate(t, dir, "other", "other.example.org", time.Now().Add(time.Hour))
	certs, err := loadCertificates(tlsConfig{Certificates: []certConfig{{"edge.pem", "edge.key"}}, ClientCA: "edge.pem"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := tls.LoadX509KeyPair(filepath.Join(dir, "other.pem"), filepath.Join(dir, "other.key"))
	if err != nil {
		t.Fatal(err)
	}
	store := newTLSStore(certs, []string{"outside"}, nil)
	known := store.Client("outside").Clone()
	known.ServerName = "edge.example.org"
	none, stranger := known.Clone(), known.Clone()
	none.Certificates, stranger.Certificates = nil, []tls.Certificate{other}
	if _, err := handshake(store.Server("outside", flow.TLS), known); err != nil {
		t.Errorf("a client with a certificate of client_ca: %v", err)
	}
	if _, err := handshake(store.Server("outside", flow.TLS), none); err == nil {
		t.Error("a client without a certificate was let in")
	}
	if _, err := handshake(store.Server("outside", flow.TLS), stranger); err == nil {
		t.Error("a client with a certificate of nobody was let in")
	}
	if _, err := handshake(store.Server("inside", flow.TLS), none); err != nil {
		t.Errorf("a network that demands no certificate: %v", err)
	}
}

// TestClientCertificateIsOptional: a server's certificate is verified, a remote user needs none.
func TestClientCertificateIsOptional(t *testing.T) {
	dir := t.TempDir()
	writeTestCertificate(t, dir, "edge", "edge.example.org", time.Now().Add(time.Hour))
	writeTestCertificate(t, dir, "other", "other.example.org", time.Now().Add(time.Hour))
	certs, err := loadCertificates(tlsConfig{Certificates: []certConfig{{"edge.pem", "edge.key"}}, ClientCA: "edge.pem"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := tls.LoadX509KeyPair(filepath.Join(dir, "other.pem"), filepath.Join(dir, "other.key"))
	if err != nil {
		t.Fatal(err)
	}
	store := newTLSStore(certs, nil, []string{"outside"})
	known := store.Client("outside").Clone()
	known.ServerName = "edge.example.org"
	none, stranger := known.Clone(), known.Clone()
	none.Certificates, stranger.Certificates = nil, nil
	stranger.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &other, nil }
	for what, c := range map[string]struct {
		client *tls.Config
		ok     bool
	}{"a known server": {known, true}, "a user without a certificate": {none, true}, "a certificate of nobody": {stranger, false}} {
		if _, err := handshake(store.Server("outside", flow.TLS), c.client); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestLegacyTLS: clients of the time of Windows XP (TLS 1.0, RSA, 3DES or AES in CBC, no server name) come in where
// tls.legacy says so and nowhere else; modern ones get the newest version all the same.
func TestLegacyTLS(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"first", "second"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		writeCertificateOf(t, key, dir, name, name+".example.org", time.Now().Add(time.Hour))
	}
	certs, err := loadCertificates(tlsConfig{Certificates: []certConfig{{"first.pem", "first.key"}, {"second.pem", "second.key"}}, Legacy: []string{"outside"}}, dir)
	if err != nil {
		t.Fatal(err)
	}
	store := newTLSStore(certs, nil, nil)
	for version, suite := range map[uint16]uint16{tls.VersionTLS10: tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.VersionTLS11: tls.TLS_RSA_WITH_AES_128_CBC_SHA} {
		old := &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: version, CipherSuites: []uint16{suite}, InsecureSkipVerify: true}
		cert, err := handshake(store.Server("outside", flow.TLS), old)
		if err != nil {
			t.Fatalf("%s: %v", tls.VersionName(version), err)
		}
		if cert.DNSNames[0] != "first.example.org" {
			t.Errorf("without a server name %s was shown", cert.DNSNames[0])
		}
		if _, err := handshake(store.Server("inside", flow.TLS), old.Clone()); err == nil {
			t.Errorf("%s was accepted on another network", tls.VersionName(version))
		}
	}
	server := &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10, Certificates: certs.own, CipherSuites: []uint16{tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}}
	for network, want := range map[string]bool{"outside": true, "inside": false} {
		dial := store.Client(network).Clone()
		dial.InsecureSkipVerify = true
		if _, err := handshake(server, dial); (err == nil) != want {
			t.Errorf("to a server with TLS 1.0 on %s: %v", network, err)
		}
	}
	modern := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "second.example.org", InsecureSkipVerify: true}
	if cert, err := handshake(store.Server("outside", flow.TLS), modern); err != nil || cert.DNSNames[0] != "second.example.org" {
		t.Errorf("TLS 1.3: %v", err)
	}
	weak := &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_RC4_128_SHA}, InsecureSkipVerify: true}
	if _, err := handshake(store.Server("outside", flow.TLS), weak); err == nil {
		t.Error("RC4 was accepted")
	}
}

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
)

// sectionFault is a fault of one of this package's own sections.
type sectionFault struct{ key, text string }

// Error returns "key: text".
func (f sectionFault) Error() string { return f.key + ": " + f.text }

// FaultKey returns the key relative to the section.
func (f sectionFault) FaultKey() string { return f.key }

// certificates is what the section tls names, read from its files.
type certificates struct {
	own []tls.Certificate
	// peers are the authorities of client certificates; nil if none are configured.
	peers *x509.CertPool
	// roots are the authorities of servers that the edge dials: the system's and peers.
	roots *x509.CertPool
}

// loadCertificates reads the files of the section. All faults come at once, joined.
func loadCertificates(c tlsConfig, dir string) (*certificates, error) {
	out := &certificates{}
	var errs []error
	for i, pair := range c.Certificates {
		key := fmt.Sprintf("certificates[%d]", i)
		if pair.Cert == "" || pair.Key == "" {
			errs = append(errs, sectionFault{key, "needs both cert and key"})
			continue
		}
		cert, err := tls.LoadX509KeyPair(within(dir, pair.Cert), within(dir, pair.Key))
		if err != nil {
			errs = append(errs, sectionFault{key, err.Error()})
			continue
		}
		out.own = append(out.own, cert)
	}
	if c.ClientCA != "" {
		if err := out.loadPeers(within(dir, c.ClientCA)); err != nil {
			errs = append(errs, sectionFault{"client_ca", err.Error()})
		}
	}
	return out, errors.Join(errs...)
}

func (c *certificates) loadPeers(file string) error {
	pem, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c.peers = x509.NewCertPool()
	if !c.peers.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no PEM certificate", file)
	}
	if c.roots, err = x509.SystemCertPool(); err != nil {
		c.roots = x509.NewCertPool()
	}
	c.roots.AppendCertsFromPEM(pem)
	return nil
}

// within returns path, relative to dir if it is not absolute.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// tlsStore hands out TLS configurations whose certificates can be replaced while
// connections live: each handshake asks the store anew.
type tlsStore struct{ current atomic.Pointer[certificates] }

func newTLSStore(c *certificates) *tlsStore {
	s := &tlsStore{}
	s.current.Store(c)
	return s
}

// server returns the configuration of a listener; demandClient asks for a certificate signed by tls.client_ca.
func (s *tlsStore) server(demandClient bool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := s.current.Load()
		cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: now.own}
		if demandClient {
			cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, now.peers
			if now.peers == nil {
				cfg.ClientCAs = x509.NewCertPool() // trusts nobody; nil would mean the system's authorities
			}
		}
		return cfg, nil
	}}
}

// client returns the configuration for connections that the edge opens now. It
// presents the edge's certificate where the server asks for one.
func (s *tlsStore) client() *tls.Config {
	now := s.current.Load()
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: now.own, RootCAs: now.roots}
}

package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/transport"
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
	// roots are the authorities of servers that the edge dials, the system's and peers; nil: the system's.
	roots *x509.CertPool

	// One configuration for each purpose, made once so that sessions can be resumed.
	server, mutual, client *tls.Config
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
	out.configure()
	return out, errors.Join(errs...)
}

func (c *certificates) configure() {
	c.server = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: c.own}
	c.mutual = c.server.Clone()
	c.mutual.ClientAuth, c.mutual.ClientCAs = tls.RequireAndVerifyClientCert, c.peers
	if c.peers == nil {
		c.mutual.ClientCAs = x509.NewCertPool() // trusts nobody; nil would mean the system's authorities
	}
	c.client = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: c.own, RootCAs: c.roots}
}

// warnExpiry says which certificates have ended or soon will. They are used all the
// same: peers that do not verify still connect.
func (c *certificates) warnExpiry(now time.Time, log *zap.Logger) {
	for _, cert := range c.own {
		if left := cert.Leaf.NotAfter.Sub(now); left < expirySoon {
			log.Warn("certificate ends soon or has ended", zap.String("name", certificateName(cert.Leaf)),
				zap.Time("not_after", cert.Leaf.NotAfter))
		}
	}
}

// expirySoon is what remains of a 90 days' certificate that should have been renewed.
const expirySoon = 14 * 24 * time.Hour

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
type tlsStore struct {
	current atomic.Pointer[certificates]
	// demand are the networks on whose listeners clients must show a certificate.
	demand []string
}

func newTLSStore(c *certificates, demand []string) *tlsStore {
	s := &tlsStore{demand: demand}
	s.current.Store(c)
	return s
}

var _ transport.TLSSource = (*tlsStore)(nil)

// Server returns the configuration of a network's TLS and WSS listeners.
func (s *tlsStore) Server(network string, _ flow.Proto) *tls.Config {
	if slices.Contains(s.demand, network) {
		return s.current.Load().mutual
	}
	return s.current.Load().server
}

// Client returns the configuration for connections that the edge opens. It presents
// the edge's certificate where the server asks for one.
func (s *tlsStore) Client(string) *tls.Config { return s.current.Load().client }

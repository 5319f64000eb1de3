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

	// One configuration for each purpose, made once so that sessions can be resumed; servers by whether they
	// take old versions, and by what they ask of clients.
	server [2]map[tls.ClientAuthType]*tls.Config
	// shared are those of ports that services share: they name protocols (ALPN) where the client names one of them.
	shared [2]map[tls.ClientAuthType]*tls.Config
	client [2]*tls.Config
	// legacy are the networks on which TLS 1.0 and 1.1 are taken.
	legacy []string
}

// loadCertificates reads the files of the section. All faults come at once, joined.
func loadCertificates(c tlsConfig, dir string) (*certificates, error) {
	out := &certificates{legacy: c.Legacy}
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
	for i, base := range []*tls.Config{{MinVersion: tls.VersionTLS12}, {MinVersion: tls.VersionTLS10, CipherSuites: legacySuites()}} {
		c.server[i], c.shared[i] = map[tls.ClientAuthType]*tls.Config{}, map[tls.ClientAuthType]*tls.Config{}
		for _, ask := range []tls.ClientAuthType{tls.NoClientCert, tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert} {
			conf := base.Clone()
			conf.Certificates, conf.ClientAuth, conf.ClientCAs = c.own, ask, c.peers
			if c.peers == nil {
				conf.ClientCAs = x509.NewCertPool() // trusts nobody; nil would mean the system's authorities
			}
			c.server[i][ask], c.shared[i][ask] = conf, naming(conf)
		}
		c.client[i] = base.Clone()
		c.client[i].Certificates, c.client[i].RootCAs = c.own, c.roots
	}
}

// naming returns a configuration that agrees on a protocol of RFC 7301 with clients that know one of ours. Others are
// let in without: many send no names, or only their own, and what they speak is seen by their first bytes.
func naming(conf *tls.Config) *tls.Config {
	named := conf.Clone()
	named.NextProtos = []string{"http/1.1", "stun.turn", "stun.nat-discovery", "sip/2", "sip"}
	named.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.ContainsFunc(h.SupportedProtos, func(p string) bool { return slices.Contains(named.NextProtos, p) }) {
			return nil, nil
		}
		return conf, nil
	}
	return named
}

// legacySuites are those of usual servers and, after them, what Windows XP and 2003 have: key exchange by RSA, CBC, and
// 3DES as the only cipher that is not RC4, which RFC 7465 forbids.
func legacySuites() []uint16 {
	var suites []uint16
	for _, s := range tls.CipherSuites() {
		suites = append(suites, s.ID)
	}
	return append(suites,
		tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_256_CBC_SHA, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA)
}

// warn says which certificates have ended or soon will, and where old versions of TLS are taken. All are
// used all the same: peers that do not verify still connect.
func (c *certificates) warn(now time.Time, log *zap.Logger) {
	for _, network := range c.legacy {
		log.Warn("TLS 1.0 and 1.1 are accepted (tls.legacy): they protect little", zap.String("network", network))
	}
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
	// demand are the networks on whose listeners clients must show a certificate, optional those where they may.
	demand, optional []string
}

func newTLSStore(c *certificates, demand, optional []string) *tlsStore {
	s := &tlsStore{demand: demand, optional: optional}
	s.current.Store(c)
	return s
}

var _ transport.TLSSource = (*tlsStore)(nil)

// Server returns the configuration of a network's TLS and WSS listeners.
func (s *tlsStore) Server(network string, _ flow.Proto) *tls.Config {
	c, ask := s.current.Load(), tls.NoClientCert
	switch {
	case slices.Contains(s.demand, network):
		ask = tls.RequireAndVerifyClientCert
	case slices.Contains(s.optional, network):
		ask = tls.VerifyClientCertIfGiven
	}
	return c.server[c.age(network)][ask]
}

// Shared returns the configuration of a port of a network that services share.
func (s *tlsStore) Shared(network string, legacy bool, ask tls.ClientAuthType) *tls.Config {
	c := s.current.Load()
	age := c.age(network)
	if legacy {
		age = 1
	}
	return c.shared[age][ask]
}

// age returns 1 where old versions are taken, else 0.
func (c *certificates) age(network string) int {
	if slices.Contains(c.legacy, network) {
		return 1
	}
	return 0
}

// Client returns the configuration for connections that the edge opens on a network. It presents
// the edge's certificate where the server asks for one.
func (s *tlsStore) Client(network string) *tls.Config {
	c := s.current.Load()
	return c.client[c.age(network)]
}

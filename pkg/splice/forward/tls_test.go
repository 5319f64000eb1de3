package forward

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// pki is an authority and certificates that it has signed.
type pki struct {
	t    *testing.T
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, pool: x509.NewCertPool()}
	p.key, p.ca = p.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	p.pool.AddCert(p.ca)
	return p
}

// sign makes a certificate; the first one signs itself.
func (p *pki) sign(tmpl *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, by := p.ca, p.key
	if parent == nil {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, by)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return key, cert
}

func (p *pki) issue(name string) tls.Certificate {
	key, cert := p.sign(&x509.Certificate{
		DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// edge is the edge's part of it.
type edge struct {
	p   *pki
	own tls.Certificate
}

func (e edge) Accept(_ string, c ClientCerts) *tls.Config {
	modes := map[ClientCerts]tls.ClientAuthType{CertsDemand: tls.RequireAndVerifyClientCert, CertsOptional: tls.VerifyClientCertIfGiven}
	return &tls.Config{Certificates: []tls.Certificate{e.own}, ClientCAs: e.p.pool, ClientAuth: modes[c]}
}

func (e edge) Dial(name string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{e.own}, RootCAs: e.p.pool, ServerName: name}
}

// tlsTarget echoes, for who shows a certificate of the edge.
func tlsTarget(t *testing.T, p *pki, name string) netip.AddrPort {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{p.issue(name)}, ClientCAs: p.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String())
}

// TestTerminate: TLS ends at the edge on both legs, which both show and verify certificates.
func TestTerminate(t *testing.T) {
	p, stranger := newPKI(t), newPKI(t)
	to := tlsTarget(t, p, "psom.example.org")
	mine, foreign := p.issue("client.example.org"), stranger.issue("client.example.org")
	for _, tc := range []struct {
		name    string
		certs   ClientCerts
		target  string // the name that the rule expects
		shown   *tls.Certificate
		carried bool
		reason  string
	}{
		{"no certificate asked for", CertsNone, "psom.example.org", nil, true, endedOrder},
		{"optional, none shown", CertsOptional, "psom.example.org", nil, true, endedOrder},
		{"optional, shown", CertsOptional, "psom.example.org", &mine, true, endedOrder},
		{"optional, a stranger's", CertsOptional, "psom.example.org", &foreign, false, clientTLS},
		{"demanded, shown", CertsDemand, "psom.example.org", &mine, true, endedOrder},
		{"demanded, none shown", CertsDemand, "psom.example.org", nil, false, clientTLS},
		{"another target than expected", CertsNone, "other.example.org", nil, false, targetTLS},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := startTLS(t, Rule{
				To: to, Allow: []netip.Prefix{loopback()}, TLS: TLSTerminate, ClientCerts: tc.certs, ServerName: tc.target,
			}, edge{p, p.issue("edge.example.org")})
			conf := &tls.Config{RootCAs: p.pool, ServerName: "edge.example.org"}
			if tc.shown != nil {
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tc.shown, nil }
			}
			raw := s.dial(t)
			c := tls.Client(raw, conf)
			if got := echoesTLS(c); got != tc.carried {
				t.Errorf("carried: %v, want %v", got, tc.carried)
			}
			c.Close()
			until(t, "the end is counted", func() bool { return s.f.rules[0].count(tc.reason) == 1 })
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// echoesTLS sends much, half-closes, and tells whether all of it came back before an orderly end.
func echoesTLS(c *tls.Conn) bool {
	sent := strings.Repeat("hello ", 100_000)
	go func() {
		io.WriteString(c, sent)
		c.CloseWrite()
	}()
	b, err := io.ReadAll(c)
	return err == nil && string(b) == sent
}

// TestTerminateGarbage: who speaks no TLS is reset, and the target hears nothing.
func TestTerminateGarbage(t *testing.T) {
	p := newPKI(t)
	s := startTLS(t, Rule{
		To: echoServer(t), Allow: []netip.Prefix{loopback()}, TLS: TLSTerminate, ServerName: "psom.example.org",
	}, edge{p, p.issue("edge.example.org")})
	if echoes(t, s.dial(t)) {
		t.Error("garbage was carried")
	}
	until(t, "it is counted", func() bool { return s.f.rules[0].count(clientTLS) == 1 })
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// TestNeverInKernel: the kernel is not asked about what must be looked at.
func TestNeverInKernel(t *testing.T) {
	p := newPKI(t)
	for _, r := range []Rule{{SNI: []string{"web.example.org"}}, {TLS: TLSTerminate, ServerName: "web.example.org"}} {
		r.To, r.Allow = echoServer(t), []netip.Prefix{loopback()}
		s := startWith(t, r, Deps{Kernel: &kernel{}, TLS: edge{p, p.issue("edge.example.org")}, PerSource: 3})
		s.dial(t)
		until(t, "it serves", func() bool { return s.f.rules[0].snapshot().user.Total == 1 })
		if i := s.f.Infos()[0]; i.Path != ViaUser || i.Why != "TLS is looked at in user space" {
			t.Errorf("%+v", i)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}
}

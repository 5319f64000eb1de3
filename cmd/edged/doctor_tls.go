package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"edged.dev/edged/pkg/media/fastpath"
)

// certificateSoon is how long before its end a certificate is worth a warning.
const certificateSoon = 14 * 24 * time.Hour

// certificates looks at those of the configuration.
func (x *exam) certificates(context.Context) []finding { return examineCertificates(x.cfg, x.now) }

// examineCertificates looks at each certificate: its time, its names, its chain.
func examineCertificates(cfg *config, now time.Time) []finding {
	if len(cfg.TLS.Certificates) == 0 {
		return missingCertificate(cfg)
	}
	certs, err := loadCertificates(cfg.TLS, cfg.dir)
	if err != nil {
		return []finding{{
			Level: fastpath.Fail, About: "certificates", Text: err.Error(), Why: "the daemon does not start, and a running one keeps the old ones",
			Remedy: "certificate and key must be a pair, in PEM files that edged may read",
		}}
	}
	var list []finding
	for i, c := range certs.own {
		f := examineCertificate(cfg.TLS.Certificates[i].Cert, c, now)
		if f.Level == fastpath.OK {
			f = examineChain(f, c, certs.peers)
		}
		list = append(list, f)
	}
	return list
}

// missingCertificate is a TLS listener without one.
func missingCertificate(cfg *config) []finding {
	i := slices.IndexFunc(cfg.listeners(), func(p portListener) bool { return slices.Contains([]string{"tls", "wss", "https", "dtls"}, p.Scheme) })
	if i < 0 {
		return nil
	}
	return []finding{{
		Level: fastpath.Fail, About: "certificates", Text: fmt.Sprintf("%s speaks TLS, and tls.certificates is empty", cfg.listeners()[i]), Why: "clients cannot connect there",
		Remedy: "tls: {certificates: [{cert: FILE, key: FILE}]}",
	}}
}

func examineCertificate(file string, c tls.Certificate, now time.Time) finding {
	f := fine("certificate", "%s: %s until %s", file, certificateName(c.Leaf), c.Leaf.NotAfter.Format(time.DateTime))
	const why = "clients that verify refuse the connection"
	switch {
	case now.After(c.Leaf.NotAfter):
		f.Level, f.Text, f.Why = fastpath.Fail, f.Text+": it has ended", why
		f.Remedy = "renew it; a new file is taken over by itself"
	case now.Before(c.Leaf.NotBefore):
		f.Level, f.Text, f.Why = fastpath.Fail, f.Text+": it is not valid before "+c.Leaf.NotBefore.Format(time.DateTime), why
		f.Remedy = "set the clock of this machine (timedatectl), if the certificate is right"
	case now.Add(certificateSoon).After(c.Leaf.NotAfter):
		f.Level, f.Text, f.Why, f.Remedy = fastpath.Warn, f.Text+": it ends soon", why+" from then on", "renew it; a new file is taken over by itself"
	case len(c.Leaf.DNSNames)+len(c.Leaf.IPAddresses)+len(c.Leaf.URIs) == 0:
		f.Level, f.Text, f.Why = fastpath.Warn, f.Text+": it has no name that clients look at (subjectAltName)", why
		f.Remedy = "have it made again with subjectAltName=DNS:NAME for each name that clients use"
	}
	return f
}

// examineChain looks whether a client gets what it needs to verify: what is between the certificate and an authority.
func examineChain(f finding, c tls.Certificate, peers *x509.CertPool) finding {
	self := c.Leaf.CheckSignatureFrom(c.Leaf) == nil
	if self || len(c.Certificate) > 1 {
		return f
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return f
	}
	any := []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	for _, pool := range []*x509.CertPool{roots, peers} {
		if pool == nil {
			continue
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: any, CurrentTime: c.Leaf.NotBefore.Add(time.Second)}); err == nil {
			return f
		}
	}
	f.Level, f.Text = fastpath.Warn, f.Text+": its issuer "+c.Leaf.Issuer.CommonName+" is neither in the file nor an authority that this machine knows"
	f.Why = "clients that do not know the issuer refuse the connection"
	f.Remedy = "append the intermediate certificates to the file (fullchain.pem of certbot)"
	return f
}

package main

import (
	"fmt"
	"time"

	"edged.dev/edged/pkg/media/fastpath"
)

// certificateSoon is how long before its end a certificate is worth a warning.
const certificateSoon = 14 * 24 * time.Hour

// examineCertificates looks at the certificates of a configuration that was good when it was read.
func examineCertificates(cfg *config, now time.Time) []fastpath.Finding {
	if len(cfg.TLS.Certificates) == 0 {
		return nil
	}
	certs, err := loadCertificates(cfg.TLS, cfg.dir)
	if err != nil {
		return []fastpath.Finding{{Level: fastpath.Fail, About: "certificates", Text: err.Error(), Remedy: "certificate and key must be a pair, in PEM files that edged may read"}}
	}
	var list []fastpath.Finding
	for i, c := range certs.own {
		f := fastpath.Finding{
			Level: fastpath.OK, About: "certificate", Text: fmt.Sprintf("%s: %s until %s", cfg.TLS.Certificates[i].Cert, certificateName(c.Leaf), c.Leaf.NotAfter.Format(time.DateTime)),
		}
		switch {
		case now.After(c.Leaf.NotAfter):
			f.Level, f.Text = fastpath.Fail, f.Text+": it has ended"
			f.Remedy = "renew it; a new file is taken over by itself"
		case now.Before(c.Leaf.NotBefore):
			f.Level, f.Text = fastpath.Fail, f.Text+": it is not valid before "+c.Leaf.NotBefore.Format(time.DateTime)
			f.Remedy = "set the clock of this machine (timedatectl), if the certificate is right"
		case now.Add(certificateSoon).After(c.Leaf.NotAfter):
			f.Level, f.Text, f.Remedy = fastpath.Warn, f.Text+": it ends soon", "renew it; a new file is taken over by itself"
		}
		list = append(list, f)
	}
	return list
}

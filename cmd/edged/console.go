package main

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/console"
	"edged.dev/edged/pkg/pinhole"
)

// newConsole returns the console of what the admin listener shows.
func newConsole(d adminDeps, log *zap.Logger) (*console.Console, error) {
	return console.New(console.Deps{API: adminMux(d), Metrics: d.Registry, Token: string(d.Token)}, log)
}

// withConsole puts the console beside the API: it has a login of its own, as browsers cannot be told to send a token.
func withConsole(token pinhole.Secret, pages, api http.Handler) http.Handler {
	if token == "" {
		pages = checkHost(pages)
	}
	mux := http.NewServeMux()
	mux.Handle(console.Prefix, pages)
	mux.Handle("GET /{$}", http.RedirectHandler(console.Prefix, http.StatusFound))
	mux.Handle("/", api)
	return mux
}

// certificateInfo is one of /api/v1/certificates.
type certificateInfo struct {
	Name      string    `json:"name"`
	Names     []string  `json:"names"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	Algorithm string    `json:"algorithm"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA256    string    `json:"sha256"`
}

// certificatesView returns the document "certificates": what the edge shows of itself to others by TLS.
func (s *tlsStore) certificatesView() any {
	list := []certificateInfo{}
	for _, c := range s.current.Load().own {
		x, sum := c.Leaf, sha256.Sum256(c.Leaf.Raw)
		list = append(list, certificateInfo{
			Name: certificateName(x), Names: append([]string{}, x.DNSNames...), Issuer: x.Issuer.String(), Serial: x.SerialNumber.Text(16),
			Algorithm: x.PublicKeyAlgorithm.String(), NotBefore: x.NotBefore.UTC(), NotAfter: x.NotAfter.UTC(), SHA256: hex.EncodeToString(sum[:]),
		})
	}
	return map[string]any{"certificates": list}
}

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// certWatchEvery is how often the files of certificates are looked at.
const certWatchEvery = 5 * time.Second

// watchCertificates has the section tls read again when its files are not as described by taken any more, until ctx
// ends. It looks at the files rather than waiting for the kernel's word: that sees through the symbolic links of certbot
// and of Kubernetes, and renamed folders. What has changed is read once it has stayed the same for one more look:
// certificate and key are two files.
func (r *reloader) watchCertificates(ctx context.Context, taken string, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := taken
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := certFiles(r.config())
		if now != taken && now == last {
			r.reloadCertificates()
			taken = now
		}
		last = now
	}
}

// certFiles describes the files of the section tls; what is missing too.
func certFiles(c *config) string {
	var b strings.Builder
	paths := []string{c.TLS.ClientCA}
	for _, pair := range c.TLS.Certificates {
		paths = append(paths, pair.Cert, pair.Key)
	}
	for _, p := range slices.DeleteFunc(paths, func(p string) bool { return p == "" }) {
		fmt.Fprintf(&b, "%s: %s\n", p, stampOf(within(c.dir, p)))
	}
	return b.String()
}

// reloadCertificates reads the files of the running section again. If anything is wrong with them, what was read before
// stays in use.
func (r *reloader) reloadCertificates() {
	r.mu.Lock()
	defer r.mu.Unlock()
	certs, err := loadCertificates(r.running.TLS, r.running.dir)
	if err != nil {
		r.log.Error("changed certificates refused, the old ones stay", zap.Error(err))
		r.events.publish("certificates", map[string]any{"ok": false, "error": err.Error()})
		return
	}
	certs.warn(time.Now(), r.log)
	r.tls.current.Store(certs)
	r.log.Info("certificates reloaded")
	r.events.publish("certificates", map[string]any{"ok": true})
}

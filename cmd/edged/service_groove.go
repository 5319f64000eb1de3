package main

import (
	"context"
	"net/http"
	"strings"

	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/groove"
	"edged.dev/edged/pkg/tunnel/relay"
)

// buildGroove builds what takes in Groove's HTTP and streams: for relays that are published, and HTTP for the tunnel.
func (t *tunnelService) buildGroove(d *serviceDeps) (err error) {
	t.groove, err = groove.New(d.cfg.Tunnel.Groove, groove.Deps{
		Tunnel:  groove.TunnelName,
		Virtual: func(ctx context.Context, c *groove.Conn) { t.carriers.ServeVirtual(ctx, c, carrier.RungOf(c.Mode)) },
		Joiner:  d.joiner,
		Other:   t.requests.hand,
	}, t.log.Named("groove"))
	return err
}

// orGroove has Groove's URIs served beside others.
func (t *tunnelService) orGroove(others http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, groove.Path) {
			t.groove.ServeHTTP(w, r)
			return
		}
		others.ServeHTTP(w, r)
	})
}

// carriesGroove tells whether a listener brings clients of Groove to a relay.
func (p portListener) carriesGroove(c *config) bool {
	return p.Handler == handlerTunnel && (p.Scheme == relay.Groove || p.Scheme == relay.HTTP) && len(c.Tunnel.Groove.Relays) > 0
}

package main

import (
	"crypto/x509"
	"maps"
	"net/http"
	"os"
	"time"
)

// statusDoc is /api/v1/status. docs/api.md describes it.
type statusDoc struct {
	Build   buildInfo `json:"build"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Uptime  float64   `json:"uptime_seconds"`
	// State is "ready", "starting" or "draining".
	State    string         `json:"state"`
	Config   reloadState    `json:"config"`
	Services map[string]any `json:"services"`
	// Draining is absent while new calls are taken.
	Draining *drainDoc `json:"draining,omitempty"`
}

// drainDoc is how far a drain is.
type drainDoc struct {
	Calls int       `json:"calls"`
	Until time.Time `json:"until"`
}

// statusView returns the view "status"; services are those that it speaks of.
func statusView(build buildInfo, ph *phase, re *reloader, services []*service) func() any {
	started := time.Now()
	return func() any {
		doc := statusDoc{
			Build: build, PID: os.Getpid(), Started: started.UTC(), Uptime: time.Since(started).Seconds(),
			State: ph.notReady(), Config: re.snapshot(), Services: map[string]any{},
		}
		if doc.State == "" {
			doc.State = "ready"
		}
		if until, ok := ph.draining(); ok {
			doc.Draining = &drainDoc{busy(services), until.UTC()}
		}
		for _, s := range services {
			if s.status != nil {
				doc.Services[s.name] = s.status()
			}
		}
		return doc
	}
}

// views gathers the documents of all services.
func views(services []*service, status func() any) map[string]func() any {
	all := map[string]func() any{"status": status}
	for _, s := range services {
		for name, view := range s.views {
			all[name] = view
		}
	}
	return all
}

// certificateName returns the first DNS name of a certificate, or its common name.
func certificateName(c *x509.Certificate) string {
	if len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	return c.Subject.CommonName
}

// actions gathers what may be done by way of the admin listener.
func actions(services []*service) map[string]http.HandlerFunc {
	all := map[string]http.HandlerFunc{}
	for _, s := range services {
		maps.Copy(all, s.actions)
	}
	return all
}

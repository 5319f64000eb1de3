package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

func newTestAdmin(token pinhole.Secret, alive func()) http.Handler {
	return adminHandler(adminDeps{
		Token: token, Registry: newRegistry(buildInfo{Version: "test"}), Events: newEventBroker(), Alive: alive,
		Ready: func() string { return "draining" },
		Views: map[string]func() any{"calls": func() any { return map[string]any{"calls": []int{}} }},
	})
}

func TestAdminAccess(t *testing.T) {
	for _, tc := range []struct {
		name, token, host, auth, path string
		want                          int
	}{
		{"loopback", "", "127.0.0.1:9060", "", "/api/v1/calls", 200},
		{"IPv6", "", "[::1]:9060", "", "/api/v1/calls", 200},
		{"localhost", "", "localhost", "", "/healthz", 200},
		{"a rebound name", "", "evil.example.org", "", "/api/v1/calls", 403},
		{"no token", "sesame", "127.0.0.1:9060", "", "/api/v1/calls", 401},
		{"wrong token", "sesame", "127.0.0.1:9060", "Bearer sesam", "/api/v1/calls", 401},
		{"token as basic", "sesame", "127.0.0.1:9060", "Basic sesame", "/api/v1/calls", 401},
		{"no token for metrics", "sesame", "127.0.0.1:9060", "", "/metrics", 401},
		{"no token for profiles", "sesame", "127.0.0.1:9060", "", "/debug/pprof/", 401},
		{"token", "sesame", "edge.example.org", "Bearer sesame", "/api/v1/calls", 200},
		{"draining", "", "127.0.0.1", "", "/readyz", 503},
		{"unknown", "", "127.0.0.1", "", "/api/v2/calls", 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := httptest.NewRequest(http.MethodGet, "http://"+tc.host+tc.path, nil)
			if tc.auth != "" {
				req.Header.Set("Authorization", tc.auth)
			}
			w := httptest.NewRecorder()
			newTestAdmin(pinhole.Secret(tc.token), func() {}).ServeHTTP(w, req)
			if w.Code != tc.want {
				t.Errorf("%d %s, want %d", w.Code, w.Body, tc.want)
			}
		})
	}
}

func TestViewsAreOnlyRead(t *testing.T) {
	w := httptest.NewRecorder()
	newTestAdmin("", func() {}).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://127.0.0.1/api/v1/calls", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}

func TestHealthzFailsWhileAServiceHangs(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	w := httptest.NewRecorder()
	newTestAdmin("", func() { <-stuck }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1/healthz", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestAdminOnAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	c := adminConfig{Listen: "unix:" + path}
	serve := func() context.CancelFunc {
		t.Helper()
		ln, err := listenAdmin(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- serveAdmin(ctx, ln, newTestAdmin("", func() {}), zap.NewNop()) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	stop := serve()
	if _, err := dialAdmin(c).get(t.Context(), "/healthz"); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", info, err)
	}
	if _, err := listenAdmin(t.Context(), c); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second daemon on the socket: %v", err)
	}
	stop()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenAdmin(t.Context(), c); err == nil {
		t.Error("a file that is no socket was removed")
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	ln, err := listenAdmin(t.Context(), adminConfig{Listen: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	ln.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false) // as kill -9 does
	ln.Close()
	ln, err = listenAdmin(t.Context(), adminConfig{Listen: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

func TestSlowClientOfEventsLosesThem(t *testing.T) {
	b := newEventBroker()
	_, ch := b.subscribe(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10 * eventQueue {
			b.publish("x", nil)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("publish waits for a client")
	}
	if len(ch) != eventQueue || len(b.history) != eventHistory {
		t.Errorf("%d queued, %d kept", len(ch), len(b.history))
	}
	missed, _ := b.subscribe(10*eventQueue - 3)
	if len(missed) != 3 {
		t.Errorf("%d events for a client that missed 3", len(missed))
	}
}

func TestClientsOfEventsAreBounded(t *testing.T) {
	b := newEventBroker()
	for range eventClients {
		if _, ch := b.subscribe(0); ch == nil {
			t.Fatal("refused early")
		}
	}
	if _, ch := b.subscribe(0); ch != nil {
		t.Error("one client too many")
	}
}

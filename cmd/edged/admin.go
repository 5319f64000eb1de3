package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// adminDeps is what the admin listener shows.
type adminDeps struct {
	Token    pinhole.Secret
	Registry *prometheus.Registry
	Events   *eventBroker
	// Ready says why the daemon takes no new calls, "" if it does.
	Ready func() string
	// Alive asks every service for a sign of life; it returns only once all have answered.
	Alive func()
	// Views are the documents under /api/v1/, by name.
	Views map[string]func() any
	// Pages are further documents, by method and path.
	Pages map[string]http.HandlerFunc
	// Actions are what may be done, by method and path. None is a GET, and a POST wants
	// a header of ours: pages of other sites cannot ask for them.
	Actions map[string]http.HandlerFunc
	// Audit is told of each of them, refused ones too.
	Audit *audit
}

// adminHandler returns the tree of the admin listener, as far as it is not the console's.
func adminHandler(d adminDeps) http.Handler {
	mux := adminMux(d)
	if d.Token == "" {
		return checkHost(mux)
	}
	return checkToken(d.Token, d.Audit, mux)
}

// adminMux is the tree for those who may see all of it.
func adminMux(d adminDeps) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", d.healthz)
	mux.HandleFunc("GET /readyz", d.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.Registry, promhttp.HandlerOpts{}))
	for name, view := range d.Views {
		mux.HandleFunc("GET /api/v1/"+name, jsonView(view))
	}
	for pattern, page := range d.Pages {
		mux.HandleFunc(pattern, page)
	}
	for pattern, act := range d.Actions {
		mux.HandleFunc(pattern, d.Audit.of(pattern, d.Token != "", act))
	}
	mux.HandleFunc("GET /api/v1/events", d.Events.serve)
	mux.HandleFunc("GET /api/v1/events/recent", jsonView(d.Events.recent))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// healthz answers 200 as long as every service answers within two seconds.
func (d adminDeps) healthz(w http.ResponseWriter, r *http.Request) {
	alive := make(chan struct{})
	go func() {
		defer close(alive)
		d.Alive()
	}()
	select {
	case <-alive:
		fmt.Fprintln(w, "ok")
	case <-time.After(2 * time.Second):
		http.Error(w, "a service does not answer", http.StatusServiceUnavailable)
	case <-r.Context().Done():
	}
}

func (d adminDeps) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := d.Ready(); why != "" {
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func jsonView(view func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, view()) }
}

// checkToken demands "Authorization: Bearer TOKEN".
func checkToken(token pinhole.Secret, a *audit, next http.Handler) http.Handler {
	want := []byte("Bearer " + string(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="edged"`)
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				a.line(r, r.Method+" "+r.URL.Path, "nobody", "", http.StatusUnauthorized, "no token, or a wrong one")
			}
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// checkHost refuses requests that name the listener by anything but an address
// or localhost: a web page whose name was re-bound to 127.0.0.1 sends its own name.
func checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && host != "localhost" {
			http.Error(w, "name this listener by its address", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// listenAdmin opens the socket of the admin listener; nil if it is turned off.
func listenAdmin(ctx context.Context, c adminConfig) (net.Listener, error) {
	if c.Listen == "" {
		return nil, nil
	}
	path, unix := c.unixPath()
	if !unix {
		var lc net.ListenConfig
		return lc.Listen(ctx, "tcp", c.Listen)
	}
	return listenUnix(ctx, path)
}

// listenUnix opens a socket for its owner and group. One that a killed process has left is replaced, one that answers is not.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStaleSocket(ctx, path); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// removeStaleSocket removes what a killed daemon left behind, and nothing else.
func removeStaleSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil // nothing there; listening says what else is wrong
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	d := net.Dialer{Timeout: time.Second}
	if conn, err := d.DialContext(ctx, "unix", path); err == nil {
		conn.Close()
		return fmt.Errorf("another process listens on %s", path)
	}
	return os.Remove(path)
}

// serveAdmin serves until ctx ends.
func serveAdmin(ctx context.Context, ln net.Listener, h http.Handler, log *zap.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      90 * time.Second, // a CPU profile takes 30 s by default
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(log),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withPeer,
	}
	done := make(chan error, 1) // one value, so that the goroutine always ends
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("admin listener: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin listener: %w", err)
	}
	return nil
}

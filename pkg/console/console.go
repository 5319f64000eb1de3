// Package console is the web console of the daemon: pages that show what the API shows, as tables that work
// without JavaScript and are kept up to date with it. It is a client of the API and of the metrics, nothing
// else: it holds no figure of its own but the last minutes of each stream, for the graphs. It is not a
// listener; whoever serves the API serves it beside, below /console/.
//
//	browser ─ GET page ──► page ──► source ─ GET /api/v1/NAME in process ─► API
//	        ─ same, as text/event-stream ─► live: the page's content again whenever it has changed
//	        ─ POST login ─► sessions (only where the API has a token)
//	Run ─► history: a sample of each stream every two seconds ─► graphs
package console

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

//go:embed templates static
var files embed.FS

// Prefix is the path below which the console serves.
const Prefix = "/console/"

// policy lets a page load nothing but the console's own files, and run nothing that stands in a page.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Deps is what a console shows.
type Deps struct {
	// API serves /api/v1/; it is asked in process, so it must not demand a token itself.
	API http.Handler
	// Metrics are the counters of what was dropped.
	Metrics prometheus.Gatherer
	// Token is what users log in with, "" if whoever reaches the console may read.
	Token string
}

// Console serves the pages. All methods may be called concurrently.
type Console struct {
	deps      Deps
	log       *zap.Logger
	source    *source
	sessions  *sessions
	history   *history
	templates *template.Template
	version   string // of the static files, so that browsers may keep them
	streams   chan struct{}
	handler   http.Handler
}

var _ http.Handler = (*Console)(nil)

// liveClients bounds the pages that are kept up to date at the same time; further ones load themselves anew.
const liveClients = 32

// New returns a console; graphs need Run besides.
func New(d Deps, log *zap.Logger) (*Console, error) {
	c := &Console{
		deps: d, log: log, source: newSource(d), sessions: newSessions(), history: newHistory(),
		streams: make(chan struct{}, liveClients),
	}
	var err error
	if c.templates, err = template.New("").Funcs(template.FuncMap{"static": c.static}).ParseFS(files, "templates/*.html"); err != nil {
		return nil, fmt.Errorf("templates: %w", err)
	}
	static, err := fs.Sub(files, "static")
	if err != nil {
		return nil, err
	}
	if c.version, err = fingerprint(static); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+Prefix+"static/", http.StripPrefix(Prefix+"static/", cached(http.FileServerFS(static))))
	mux.HandleFunc("GET "+Prefix+"login", c.loginPage)
	mux.HandleFunc("POST "+Prefix+"login", c.login)
	mux.HandleFunc("POST "+Prefix+"logout", c.logout)
	mux.Handle("POST "+Prefix+"actions/{action}", c.guard(http.HandlerFunc(c.act)))
	mux.Handle("POST "+Prefix+"calls/{id}/media", c.guard(http.HandlerFunc(c.captureMedia)))
	mux.Handle("GET "+Prefix+"calls/{id}/capture", c.guard(http.HandlerFunc(c.capture)))
	for _, p := range pages() {
		mux.Handle("GET "+Prefix+p.path, c.guard(c.page(p)))
	}
	c.handler = http.NewCrossOriginProtection().Handler(mux)
	return c, nil
}

// fingerprint returns what changes with any of the files.
func fingerprint(static fs.FS) (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(static, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(static, path)
		fmt.Fprintf(sum, "%s %d\n", path, len(b))
		sum.Write(b)
		return err
	})
	return fmt.Sprintf("%x", sum.Sum(nil)[:6]), err
}

// static returns the address of a static file.
func (c *Console) static(name string) string { return Prefix + "static/" + name + "?" + c.version }

// cached lets browsers keep what has the version in its address.
func cached(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		next.ServeHTTP(w, r)
	})
}

// ServeHTTP implements http.Handler for everything below Prefix.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	c.handler.ServeHTTP(w, r)
}

// Run keeps the samples of which the graphs are made, until ctx ends.
func (c *Console) Run(ctx context.Context) error {
	pause := time.NewTimer(samplePeriod)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		began := time.Now()
		if doc, ok, err := get[pinholesDoc](ctx, c.source, "pinholes"); err == nil && ok {
			c.history.add(began, doc.Pinholes)
		}
		// With very many pinholes samples are rarer: they may take a hundredth of one core.
		pause.Reset(max(samplePeriod, 100*time.Since(began)))
	}
}

// shown is what a template is given.
type shown struct {
	Title string
	// Path is the page's own, from the root and with its query.
	Path  string
	Query string
	// Filter says that rows can be searched.
	Filter   bool
	Nav      []link
	View     view
	State    string
	LoggedIn bool
	// FormKey is in each form that changes something; "" where there is no session.
	FormKey  string
	Overview bool
	// Still says that the page tells of a moment and is not kept up to date.
	Still bool
	Fault string
}

type link struct {
	Path, Title string
	Current     bool
}

// page serves one page: as a document, or as a stream of its content to those who ask for that.
func (c *Console) page(p page) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Vary", "Accept, Cookie")
		if r.Header.Get("Accept") == "text/event-stream" {
			c.live(w, r, p)
			return
		}
		s, err := c.show(r, p)
		if err != nil {
			c.fail(w, r, err)
			return
		}
		c.render(w, http.StatusOK, "page.html", s)
	}
}

// show asks the API for what a page shows.
func (c *Console) show(r *http.Request, p page) (shown, error) {
	s := shown{Title: p.title, Path: r.URL.RequestURI(), Query: r.URL.Query().Get("q"), Filter: p.filter, LoggedIn: c.deps.Token != ""}
	if len(s.Query) > 200 {
		s.Query = s.Query[:200]
	}
	current, _, _ := strings.Cut(p.path, "/")
	for _, other := range pages() {
		if other.nav {
			s.Nav = append(s.Nav, link{Prefix + strings.TrimSuffix(other.path, "{$}"), other.title, other.path == p.path || other.path == current})
		}
	}
	if c.deps.Token != "" {
		s.FormKey = formKey(r)
	}
	s.Overview = p.path == "{$}"
	status, _, err := get[statusDoc](r.Context(), c.source, "status")
	if err != nil {
		return s, err
	}
	s.State = status.State
	if s.View, err = p.build(c, r, status); err != nil {
		return s, err
	}
	if s.View.Title != "" {
		s.Title = s.View.Title
	}
	s.View.limit(s.Query)
	s.View.sign(s.FormKey)
	return s, nil
}

func (c *Console) render(w http.ResponseWriter, code int, name string, s shown) {
	var out strings.Builder
	if err := c.templates.ExecuteTemplate(&out, name, s); err != nil {
		c.log.Error("a page cannot be made", zap.String("page", s.Path), zap.Error(err))
		http.Error(w, "this page cannot be made: see the log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprint(w, out.String())
}

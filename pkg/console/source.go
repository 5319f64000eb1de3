package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// freshFor is how long a document is used again: pages of several users ask for the same ones.
const freshFor = 500 * time.Millisecond

// maxKept bounds the documents that are kept for that.
const maxKept = 32

// errNotFound says that nothing has the name that a page was asked for.
var errNotFound = errors.New("there is no such thing (any more)")

// source reads documents of the API.
type source struct {
	deps Deps

	mu   sync.Mutex
	kept map[string]*document
}

// document is an answer of the API; done is closed once the rest can be read.
type document struct {
	done chan struct{}
	at   time.Time
	code int
	body []byte
}

func newSource(d Deps) *source { return &source{deps: d, kept: map[string]*document{}} }

// read returns the answer to GET /api/v1/NAME, at most freshFor old.
func (s *source) read(ctx context.Context, name string) (int, []byte) {
	s.mu.Lock()
	d := s.kept[name]
	mine := d == nil || time.Since(d.at) > freshFor
	if mine {
		if len(s.kept) >= maxKept {
			clear(s.kept)
		}
		d = &document{done: make(chan struct{}), at: time.Now()}
		s.kept[name] = d
	}
	s.mu.Unlock()
	if mine {
		defer close(d.done)
		// Others wait for this answer, too: it is not given up with the first who asked.
		d.code, _, d.body = s.ask(context.WithoutCancel(ctx), http.MethodGet, name, "")
		return d.code, d.body
	}
	select {
	case <-d.done:
		return d.code, d.body
	case <-ctx.Done():
		return http.StatusServiceUnavailable, []byte(ctx.Err().Error())
	}
}

// forget has everything read anew.
func (s *source) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.kept)
}

// ask asks the API in process, for whoever is at client.
func (s *source) ask(ctx context.Context, method, name, client string) (int, http.Header, []byte) {
	return s.send(ctx, method, name, client, http.NoBody)
}

// send is ask with a body.
func (s *source) send(ctx context.Context, method, name, client string, in io.Reader) (int, http.Header, []byte) {
	req, err := http.NewRequestWithContext(ctx, method, "/api/v1/"+name, in) //nolint:gosec // for a handler of this process
	if err != nil {
		return http.StatusBadRequest, nil, []byte(err.Error())
	}
	req.RemoteAddr = client
	if method == http.MethodPost {
		req.Header.Set("X-Edged", "1")
	}
	a := answer{header: http.Header{}, code: http.StatusOK}
	s.deps.API.ServeHTTP(&a, req)
	return a.code, a.header, a.body.Bytes()
}

// get reads one document; false if the API has none of that name, as with a service that is off.
func get[T any](ctx context.Context, s *source, name string) (doc T, ok bool, err error) {
	code, body := s.read(ctx, name)
	switch {
	case code == http.StatusNotFound:
		return doc, false, nil
	case code != http.StatusOK:
		return doc, false, fmt.Errorf("%s: %d %s", name, code, bytes.TrimSpace(body))
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return doc, false, fmt.Errorf("%s: %w", name, err)
	}
	return doc, true, nil
}

// answer keeps what a handler of this process writes.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

var _ http.ResponseWriter = (*answer)(nil)

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(code int) { a.code = code }

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

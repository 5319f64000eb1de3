package otel

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Config is the section otel.
type Config struct {
	Endpoint Endpoint          `yaml:"endpoint" jsonschema:"default=" jsonschema_description:"http:// or https:// URL of a collector that gets a trace of each call by OTLP/HTTP with JSON, at /v1/traces below it; empty = none"`
	Headers  map[string]string `yaml:"headers" jsonschema_description:"header fields of each request, such as Authorization"`
}

// Endpoint is the base URL of a collector; the zero value is none.
type Endpoint struct{ text string }

// UnmarshalText reads an http or https URL without user, query and fragment.
func (e *Endpoint) UnmarshalText(b []byte) error {
	*e = Endpoint{}
	if len(b) == 0 {
		return nil
	}
	u, err := url.Parse(string(b))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not http://HOST[:PORT][/PATH] or https://", b)
	}
	e.text = strings.TrimSuffix(string(b), "/")
	return nil
}

// MarshalText is the reverse of UnmarshalText.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.text), nil }

// IsZero tells whether there is none.
func (e Endpoint) IsZero() bool { return e.text == "" }

// Validate checks the header fields (RFC 9110 §5.1, §5.5).
func (c Config) Validate() error {
	var bad []error
	for name, v := range c.Headers {
		token := strings.IndexFunc(name, func(r rune) bool {
			return !(r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
		}) < 0
		if name == "" || !token || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			bad = append(bad, fmt.Errorf("headers: %q is no header field", name))
		}
	}
	return errors.Join(bad...)
}

// The bounds of an exporter.
const (
	maxQueue = 1024 // calls that wait: some seconds of calls ending at a high rate
	maxBatch = 512  // spans of a request, but for those of its last call
	// gatherTime is how long spans wait for company, requestTime how long a request may take, lastTime how long requests are begun at the end.
	gatherTime, requestTime, lastTime = time.Second, 10 * time.Second, 5 * time.Second
	// A request is tried so many times, with pauses that double.
	maxTries, firstPause, longestPause = 5, time.Second, 30 * time.Second
	maxAnswer                          = 64 << 10
)

// Exporter sends spans. Its methods may be called concurrently.
type Exporter struct {
	cfg      Config
	client   *http.Client
	resource []Attribute
	scope    string
	log      *zap.Logger
	queue    chan func() []Span

	sent, droppedSpans, droppedCalls atomic.Uint64
}

// NewExporter returns an exporter for what a resource does; conf is for https.
func NewExporter(cfg Config, conf *tls.Config, resource []Attribute, scope string, log *zap.Logger) *Exporter {
	return &Exporter{
		cfg: cfg, resource: resource, scope: scope, log: log, queue: make(chan func() []Span, maxQueue),
		client: &http.Client{Timeout: requestTime, Transport: &http.Transport{TLSClientConfig: conf, MaxIdleConns: 1, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
}

// Add queues what builds the spans of a call; it is called by Serve. Add never blocks: if the queue is full the call is dropped and counted.
func (e *Exporter) Add(build func() []Span) {
	select {
	case e.queue <- build:
	default:
		e.droppedCalls.Add(1)
	}
}

// Counts returns the spans that the collector took, those that it did not get, and the calls for which there was no room.
func (e *Exporter) Counts() (sent, droppedSpans, droppedCalls uint64) {
	return e.sent.Load(), e.droppedSpans.Load(), e.droppedCalls.Load()
}

// Serve sends until ctx ends, and then once what has come until then.
func (e *Exporter) Serve(ctx context.Context) error {
	defer e.client.CloseIdleConnections()
	failed := false
	for ctx.Err() == nil {
		batch := e.gather(ctx)
		if len(batch) == 0 {
			continue
		}
		err := e.deliver(ctx, batch)
		if err != nil && !failed {
			e.log.Warn("the collector takes no traces, they are dropped", zap.Error(err))
		}
		failed = err != nil
	}
	for end := time.Now().Add(lastTime); len(e.queue) > 0 && time.Now().Before(end); {
		if e.deliver(ctx, e.gather(ctx)) != nil {
			return nil
		}
	}
	return nil
}

// gather returns the spans of one request: the first call's, and what comes within a second. After the end of ctx it waits for nothing.
func (e *Exporter) gather(ctx context.Context) (batch []Span) {
	over := ctx.Done()
	if ctx.Err() == nil {
		select {
		case build := <-e.queue:
			batch = build()
		case <-over:
		}
	}
	wait := time.NewTimer(gatherTime)
	defer wait.Stop()
	for len(batch) < maxBatch {
		select {
		case build := <-e.queue:
			batch = append(batch, build()...)
			continue
		default:
		}
		select {
		case build := <-e.queue:
			batch = append(batch, build()...)
		case <-wait.C:
			return batch
		case <-over:
			return batch
		}
	}
	return batch
}

// deliver sends a batch, again if that makes sense; what is not taken is counted. After the end of ctx there is one try.
func (e *Exporter) deliver(ctx context.Context, batch []Span) error {
	body, err := Marshal(e.resource, e.scope, batch)
	if err != nil {
		e.droppedSpans.Add(uint64(len(batch)))
		return err
	}
	pause := firstPause
	for try := 1; ; try++ {
		rejected, wait, err := e.post(body, len(batch))
		if err == nil {
			e.droppedSpans.Add(uint64(rejected))
			e.sent.Add(uint64(len(batch) - rejected))
			return nil
		}
		if wait < 0 || try == maxTries || !sleep(ctx, max(pause, wait)) {
			e.droppedSpans.Add(uint64(len(batch)))
			return err
		}
		pause = min(2*pause, longestPause)
	}
}

// sleep returns false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// post makes one request. It returns how many spans were rejected, and with an error how long to wait at least before the next
// try, less than 0 if another makes no sense (OTLP specification, "OTLP/HTTP Response").
func (e *Exporter) post(body []byte, spans int) (rejected int, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime) // that of Serve may have ended
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.cfg.Endpoint.text+"/v1/traces", bytes.NewReader(body))
	if err != nil {
		return 0, -1, err
	}
	for name, v := range e.cfg.Headers {
		req.Header.Set(name, v)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch resp.StatusCode {
	case http.StatusOK:
		return rejectedOf(answer, spans), 0, nil // also if the answer was cut off: they were taken
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if s, bad := strconv.Atoi(resp.Header.Get("Retry-After")); bad == nil && s > 0 {
			wait = min(time.Duration(min(s, 3600))*time.Second, longestPause)
		}
		return 0, wait, fmt.Errorf("%s", resp.Status)
	}
	return 0, -1, errors.Join(fmt.Errorf("%s", resp.Status), err)
}

// rejectedOf reads the partial success of an ExportTraceServiceResponse, whose count may be a string or a number.
func rejectedOf(answer []byte, spans int) int {
	var doc struct {
		Partial struct {
			Rejected json.RawMessage `json:"rejectedSpans"`
		} `json:"partialSuccess"`
	}
	if json.Unmarshal(answer, &doc) != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.Trim(string(doc.Partial.Rejected), `"`))
	if err != nil || n < 0 {
		return 0
	}
	return min(n, spans)
}

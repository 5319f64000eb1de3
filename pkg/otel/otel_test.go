package otel

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

func one(name string) func() []Span {
	at := time.Unix(1767323045, 123456789)
	return func() []Span {
		return []Span{{
			Trace: TraceID{1, 0xab}, ID: SpanID{2}, Parent: SpanID{3}, Name: name, Kind: Client, Start: at, End: at.Add(time.Second),
			Attributes: []Attribute{{"s", ""}, {"i", 5060}, {"b", false}, {"d", 0.5}}, Events: []Event{{at, "ringing"}}, Failed: true, Message: "486",
		}}
	}
}

// TestMarshal compares with what the OTLP specification says of JSON: hex identifiers, integers of 64 bits as strings, numbers
// for enumerations, lower camel case.
func TestMarshal(t *testing.T) {
	b, err := Marshal([]Attribute{{"service.name", "edged"}}, "scope", one("INVITE")())
	const want = `{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"edged"}}]},"scopeSpans":[{"scope":{"name":"scope"},` +
		`"spans":[{"traceId":"01ab0000000000000000000000000000","spanId":"0200000000000000","parentSpanId":"0300000000000000","name":"INVITE","kind":3,` +
		`"startTimeUnixNano":"1767323045123456789","endTimeUnixNano":"1767323046123456789","attributes":[{"key":"s","value":{"stringValue":""}},` +
		`{"key":"i","value":{"intValue":"5060"}},{"key":"b","value":{"boolValue":false}},{"key":"d","value":{"doubleValue":0.5}}],` +
		`"events":[{"timeUnixNano":"1767323045123456789","name":"ringing"}],"status":{"message":"486","code":2}}]}]}]}`
	if err != nil || string(b) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, b, want)
	}
	trace, span := NewTraceID(), NewSpanID()
	if trace == NewTraceID() || span == NewSpanID() {
		t.Error("identifiers repeat")
	}
}

func collector(t *testing.T, answer http.HandlerFunc) Config {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	var c Config
	if err := c.Endpoint.UnmarshalText([]byte(s.URL + "/base/")); err != nil {
		t.Fatal(err)
	}
	c.Headers = map[string]string{"Authorization": "Bearer x"}
	return c
}

// TestDeliver: calls come in one request, are sent again when the collector is busy, and what it does not take is counted.
func TestDeliver(t *testing.T) {
	var tries atomic.Int32
	bodies := make(chan []byte, 10)
	cfg := collector(t, func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 1 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/base/v1/traces" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "Bearer x" {
			t.Errorf("%s %s %v: %v", r.Method, r.URL, r.Header, err)
		}
		bodies <- b
		io.WriteString(w, `{"partialSuccess":{"rejectedSpans":"1","errorMessage":"no"}}`)
	})
	e := NewExporter(cfg, nil, nil, "", zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	for range 3 {
		e.Add(one("call"))
	}
	go func() { ended <- e.Serve(ctx) }()
	var doc request
	d := json.NewDecoder(bytes.NewReader(<-bodies))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil || len(doc.ResourceSpans[0].ScopeSpans[0].Spans) != 3 {
		t.Errorf("%+v, %v", doc, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if sent, dropped, calls := e.Counts(); sent != 2 || dropped != 1 || calls != 0 {
		t.Errorf("sent %d, dropped %d, calls %d", sent, dropped, calls)
	}
}

// TestRefused: what the collector will never take is dropped at once, redirections too.
func TestRefused(t *testing.T) {
	for _, code := range []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusFound} {
		var tries atomic.Int32
		cfg := collector(t, func(w http.ResponseWriter, _ *http.Request) {
			tries.Add(1)
			w.Header().Set("Location", "/base/elsewhere")
			w.WriteHeader(code)
		})
		e := NewExporter(cfg, nil, nil, "", zap.NewNop())
		if err := e.deliver(context.Background(), one("x")()); err == nil || tries.Load() != 1 || e.droppedSpans.Load() != 1 {
			t.Errorf("%d: %v after %d tries", code, err, tries.Load())
		}
	}
}

type nobody struct{}

func (nobody) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }

// TestAway: a collector that is away is tried five times, with pauses; meanwhile the queue takes so much and no more, and nobody waits.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewExporter(Config{Endpoint: Endpoint{"http://otel.example.org"}}, nil, nil, "", zap.NewNop())
		e.client.Transport = nobody{}
		begun := time.Now()
		if e.deliver(t.Context(), one("x")()) == nil || time.Since(begun) != 15*time.Second { // 1+2+4+8
			t.Errorf("given up after %v", time.Since(begun))
		}
		for range maxQueue + 7 {
			e.Add(one("x"))
		}
		if _, spans, calls := e.Counts(); spans != 1 || calls != 7 {
			t.Errorf("%d spans, %d calls dropped", spans, calls)
		}
		if n := len(e.gather(t.Context())); n != maxBatch {
			t.Errorf("a batch of %d", n)
		}
	})
}

func TestConfig(t *testing.T) {
	for text, ok := range map[string]bool{
		"": true, "https://otel.example.org:4318": true, "http://192.0.2.1/x/": true, "otel.example.org:4318": false, "grpc://otel.example.org": false,
		"https://": false, "https://u:p@otel.example.org": false, "https://otel.example.org?x=1": false,
	} {
		var e Endpoint
		if err := e.UnmarshalText([]byte(text)); (err == nil) != ok || ok && e.IsZero() != (text == "") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for name, v := range map[string]string{"X y": "1", "": "1", "X": "a\r\nB: c"} {
		if (Config{Headers: map[string]string{name: v}}).Validate() == nil {
			t.Errorf("%q: %q is taken", name, v)
		}
	}
	if err := (Config{Headers: map[string]string{"X-Scope-OrgID": "a b"}}).Validate(); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]int{"": 0, "{}": 0, `{"partialSuccess":{"rejectedSpans":7}}`: 7, `{"partialSuccess":{"rejectedSpans":"99"}}`: 9, `{"partialSuccess":{"rejectedSpans":-1}}`: 0} {
		if n := rejectedOf([]byte(text), 9); n != want {
			t.Errorf("%s: %d rejected", text, n)
		}
	}
}

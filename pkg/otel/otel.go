// Package otel sends traces to a collector of OpenTelemetry by OTLP/HTTP with JSON (opentelemetry-proto 1.x). It is no SDK:
// it has no context, no sampler and no instruments, only what is needed to describe calls that are over. A collector that is
// slow or away loses spans, and holds nothing up.
//
//	Add ─► queue (bounded) ─► Serve: build, gather ─► POST ENDPOINT/v1/traces, again after a pause
//	                                                  if the collector says so
package otel

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"
)

// The kinds of a span (trace.proto, Span.SpanKind).
const (
	Internal = 1
	Server   = 2
	Client   = 3
)

// TraceID and SpanID are random (W3C Trace Context §3.2.2); the zero value is none.
type (
	TraceID [16]byte
	SpanID  [8]byte
)

// NewTraceID returns a random one.
func NewTraceID() (id TraceID) {
	rand.Read(id[:])
	return id
}

// NewSpanID returns a random one.
func NewSpanID() (id SpanID) {
	rand.Read(id[:])
	return id
}

// Attribute is a key with a value: a string, an int, a float64 or a bool.
type Attribute struct {
	Key   string
	Value any
}

// Event is a moment of a span.
type Event struct {
	Time time.Time
	Name string
}

// Span is something that took time.
type Span struct {
	Trace      TraceID
	ID, Parent SpanID // Parent is zero for the root
	Name       string
	Kind       int
	Start, End time.Time
	Attributes []Attribute
	Events     []Event
	// Failed sets the status to error; Message says why.
	Failed  bool
	Message string
}

// statusError is STATUS_CODE_ERROR (trace.proto, Status).
const statusError = 2

// The messages below are those of trace_service.proto, trace.proto and common.proto in their JSON form: names in lower camel
// case, identifiers in hex, integers of 64 bits as strings, enumerations as numbers (OTLP specification, "JSON Protobuf Encoding").
type (
	request struct {
		ResourceSpans []resourceSpans `json:"resourceSpans"`
	}
	resourceSpans struct {
		Resource   resource     `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	resource struct {
		Attributes []keyValue `json:"attributes"`
	}
	scopeSpans struct {
		Scope scope      `json:"scope"`
		Spans []spanJSON `json:"spans"`
	}
	scope struct {
		Name string `json:"name"`
	}
	spanJSON struct {
		TraceID      string      `json:"traceId"`
		SpanID       string      `json:"spanId"`
		ParentSpanID string      `json:"parentSpanId,omitempty"`
		Name         string      `json:"name"`
		Kind         int         `json:"kind"`
		Start        string      `json:"startTimeUnixNano"`
		End          string      `json:"endTimeUnixNano"`
		Attributes   []keyValue  `json:"attributes,omitempty"`
		Events       []eventJSON `json:"events,omitempty"`
		Status       *statusJSON `json:"status,omitempty"`
	}
	eventJSON struct {
		Time string `json:"timeUnixNano"`
		Name string `json:"name"`
	}
	statusJSON struct {
		Message string `json:"message,omitempty"`
		Code    int    `json:"code"`
	}
	keyValue struct {
		Key   string `json:"key"`
		Value value  `json:"value"`
	}
	value struct {
		String *string  `json:"stringValue,omitempty"`
		Bool   *bool    `json:"boolValue,omitempty"`
		Int    *string  `json:"intValue,omitempty"`
		Double *float64 `json:"doubleValue,omitempty"`
	}
)

// Marshal returns an ExportTraceServiceRequest of spans that one resource made.
func Marshal(of []Attribute, scopeName string, spans []Span) ([]byte, error) {
	list := make([]spanJSON, len(spans))
	for i, s := range spans {
		list[i] = s.json()
	}
	return json.Marshal(request{[]resourceSpans{{resource{keyValues(of)}, []scopeSpans{{scope{scopeName}, list}}}}})
}

func (s *Span) json() spanJSON {
	j := spanJSON{
		TraceID: hex.EncodeToString(s.Trace[:]), SpanID: hex.EncodeToString(s.ID[:]), Name: s.Name, Kind: s.Kind,
		Start: nanos(s.Start), End: nanos(s.End), Attributes: keyValues(s.Attributes),
	}
	if s.Parent != (SpanID{}) {
		j.ParentSpanID = hex.EncodeToString(s.Parent[:])
	}
	for _, e := range s.Events {
		j.Events = append(j.Events, eventJSON{nanos(e.Time), e.Name})
	}
	if s.Failed {
		j.Status = &statusJSON{s.Message, statusError}
	}
	return j
}

func nanos(t time.Time) string { return strconv.FormatInt(t.UnixNano(), 10) }

func keyValues(list []Attribute) []keyValue {
	out := make([]keyValue, 0, len(list))
	for _, a := range list {
		var v value
		switch x := a.Value.(type) {
		case string:
			v.String = &x
		case bool:
			v.Bool = &x
		case int:
			n := strconv.Itoa(x)
			v.Int = &n
		case float64:
			v.Double = &x
		}
		out = append(out, keyValue{a.Key, v})
	}
	return out
}

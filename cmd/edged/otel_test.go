package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/otel"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/trace"
)

// otelSpan is a span as a collector reads it.
type otelSpan struct {
	TraceID, SpanID, ParentSpanID, Name string
	Kind                                int
	StartTimeUnixNano, EndTimeUnixNano  string
	Attributes                          []struct {
		Key   string
		Value map[string]any
	}
	Events []struct{ Name, TimeUnixNano string }
	Status struct {
		Code    int
		Message string
	}
}

// String is the span in a line, its times in seconds of the call.
func (s otelSpan) String() string {
	line := fmt.Sprintf("%s %d %s-%s", s.Name, s.Kind, second(s.StartTimeUnixNano), second(s.EndTimeUnixNano))
	for _, a := range s.Attributes {
		switch a.Key {
		case "network.transport", "network.peer.port", "error.type", "network.protocol.name":
			for _, v := range a.Value {
				line += fmt.Sprint(" ", v)
			}
		}
	}
	for _, e := range s.Events {
		line += " " + e.Name + " " + second(e.TimeUnixNano)
	}
	return fmt.Sprint(line, " status ", s.Status.Code)
}

func second(nanos string) string {
	return strings.TrimPrefix(strings.TrimSuffix(nanos, "000000000"), "17673230")
}

// TestCallSpans: a collector gets each call as one trace, with a span for each set-up.
func TestCallSpans(t *testing.T) {
	bodies := make(chan []otelSpan, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var doc struct {
			ResourceSpans []struct {
				ScopeSpans []struct{ Spans []otelSpan }
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&doc); err != nil || len(doc.ResourceSpans) != 1 || len(doc.ResourceSpans[0].ScopeSpans) != 1 {
			t.Errorf("%+v, %v", doc, err)
			return
		}
		bodies <- doc.ResourceSpans[0].ScopeSpans[0].Spans
	}))
	defer collector.Close()
	var cfg otel.Config
	if err := cfg.Endpoint.UnmarshalText([]byte(collector.URL)); err != nil {
		t.Fatal(err)
	}
	c := &callSpans{otel.NewExporter(cfg, nil, nil, "test", zap.NewNop()), trace.New(1 << 20)}
	at := func(s int) time.Time { return time.Unix(1767323000+int64(s), 0) }
	message := func(s int, out bool, port uint16, first, cseq string) {
		c.ring.Add(trace.Message{Time: at(s), Out: out, Transport: "tls", Remote: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), port),
			Data: []byte(first + "\r\nCall-ID: c1\r\nCSeq: " + cseq + "\r\n\r\n")})
	}
	const invite, ok = "INVITE sip:b SIP/2.0", "SIP/2.0 200 OK"
	message(1, false, 1, invite, "9 INVITE") // an earlier call with this Call-ID
	message(10, false, 1, invite, "1 INVITE")
	message(10, true, 1, "SIP/2.0 100 Trying", "1 INVITE")
	message(11, true, 2, invite, "1 INVITE")
	message(12, true, 2, invite, "1 INVITE") // again
	message(13, false, 2, "SIP/2.0 486 Busy", "1 INVITE")
	message(13, true, 3, invite, "1 INVITE")
	message(14, false, 3, "SIP/2.0 180 Ringing", "1 INVITE")
	message(14, true, 1, "SIP/2.0 180 Ringing", "1 INVITE")
	message(15, false, 3, ok, "1 INVITE")
	message(15, true, 1, ok, "1 INVITE")
	message(16, true, 4, invite, "2 INVITE") // without an answer
	message(30, false, 1, "BYE sip:b SIP/2.0", "3 BYE")
	answered := at(15)
	c.add(sipRecord(sipalg.Record{ID: "1", CallID: "c1", Started: at(10), Answered: &answered, Ended: at(30), Status: 200, Reason: "BYE"}))
	h := func(s int, out bool, port uint16, kind string) {
		c.ring.Add(trace.Message{Time: at(s), Out: out, Transport: "tcp", Protocol: "h225", Call: "h1", Kind: kind, Remote: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), port)})
	}
	h(40, false, 5, "SETUP")
	h(40, true, 6, "SETUP")
	h(41, false, 6, "ALERTING")
	h(42, false, 6, "RELEASE COMPLETE")
	h(42, true, 5, "RELEASE COMPLETE")
	c.add(callRecord{Protocol: "h323", Record: sipalg.Record{ID: "h1", CallID: "h1", Started: at(40), Ended: at(42), Reason: "inConf"}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.exporter.Serve(ctx) }()
	spans := <-bodies
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	want := []string{
		"call 1 10-30 sip answered 15 status 0",
		"INVITE 2 10-15 sip tcp 1 ringing 14 answered 15 status 0",
		"INVITE 3 11-13 sip tcp 2 486 status 2",
		"INVITE 3 13-15 sip tcp 3 ringing 14 answered 15 status 0",
		"INVITE 3 16-30 sip tcp 4 timeout status 2",
		"call 1 40-42 h323 inConf status 2",
		"SETUP 2 40-42 h323 tcp 5 RELEASE COMPLETE status 2",
		"SETUP 3 40-42 h323 tcp 6 RELEASE COMPLETE ringing 41 status 2",
	}
	if len(spans) != len(want) {
		t.Fatalf("%d spans: %v", len(spans), spans)
	}
	root := 0
	for i, s := range spans {
		if s.String() != want[i] {
			t.Errorf("span %d: %s, want %s", i, s, want[i])
		}
		if s.Name == "call" {
			root = i
		} else if s.TraceID != spans[root].TraceID || s.ParentSpanID != spans[root].SpanID || len(s.TraceID) != 32 || len(s.SpanID) != 16 {
			t.Errorf("span %d is no child of %d: %+v", i, root, s)
		}
	}
	if spans[0].TraceID == spans[5].TraceID || spans[0].ParentSpanID != "" {
		t.Error("two calls share a trace, or a root has a parent")
	}
}

// TestSpansAreBounded: somebody who describes his call anew all the time makes no trace that nobody can hold.
func TestSpansAreBounded(t *testing.T) {
	began := time.Now()
	var steps []trace.Step
	for i := range 10 * maxLegs {
		steps = append(steps, trace.Step{Time: began, Kind: "INVITE", CSeq: strconv.Itoa(i) + " INVITE", Remote: netip.MustParseAddrPort("192.0.2.7:5060")})
	}
	r := callRecord{Protocol: "sip"}
	r.Started, r.Ended = began, began.Add(time.Minute)
	if n := len(spansOf(r, steps)); n != maxLegs+1 {
		t.Errorf("%d spans", n)
	}
}

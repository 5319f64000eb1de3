package main

import (
	"context"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/otel"
	"edged.dev/edged/pkg/trace"
)

// A call is a trace of OpenTelemetry once it is over, made from its record and from what is remembered of its signalling:
//
//	call                        from its first message to its record
//	├─ INVITE, SETUP  server    as the caller sent it: until the final response
//	└─ INVITE, SETUP  client    as the edge sent it on, one for each attempt; events "ringing" and "answered"

// callSpans makes traces of calls; nil makes none.
type callSpans struct {
	exporter *otel.Exporter
	ring     *trace.Ring
}

// buildOTel builds the export of traces.
func buildOTel(_ context.Context, d *serviceDeps) (*service, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	resource := []otel.Attribute{{Key: "service.name", Value: "edged"}, {Key: "service.version", Value: version}, {Key: "host.name", Value: host}}
	x := otel.NewExporter(d.cfg.OTel, d.tls.Client(""), resource, "edged.dev/edged", d.log.Named("otel"))
	d.spans = &callSpans{x, d.traces.ring}
	d.reg.MustRegister(otelMetrics(x)...)
	return &service{serve: x.Serve}, nil
}

func otelMetrics(x *otel.Exporter) []prometheus.Collector {
	counter := func(name, help string, pick func(sent, spans, calls uint64) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(pick(x.Counts())) })
	}
	return []prometheus.Collector{
		counter("edged_otel_spans_total", "Spans that the collector of OpenTelemetry took.", func(n, _, _ uint64) uint64 { return n }),
		counter("edged_otel_dropped_spans_total", "Spans that the collector did not get.", func(_, n, _ uint64) uint64 { return n }),
		counter("edged_otel_dropped_calls_total", "Calls without a trace, as too many waited.", func(_, _, n uint64) uint64 { return n }),
	}
}

// add has a trace made of a call that has ended.
func (c *callSpans) add(r callRecord) {
	if c != nil {
		c.exporter.Add(func() []otel.Span { return spansOf(r, c.ring.Steps(r.CallID)) })
	}
}

// beforeStart is how much earlier than a call's start its first message may have been noted.
const beforeStart = 100 * time.Millisecond

// maxLegs bounds the spans below a call: who describes it anew again and again gets no more.
const maxLegs = 100

// spansOf returns the trace of a call: the root, and a span for each set-up among its messages.
func spansOf(r callRecord, steps []trace.Step) []otel.Span {
	root := otel.Span{
		Trace: otel.NewTraceID(), ID: otel.NewSpanID(), Name: "call", Kind: otel.Internal, Start: r.Started, End: r.Ended,
		Attributes: []otel.Attribute{
			{Key: "network.protocol.name", Value: r.Protocol}, {Key: "edged.call.id", Value: r.ID}, {Key: "edged.call.call_id", Value: r.CallID},
			{Key: "edged.call.from", Value: r.From}, {Key: "edged.call.to", Value: r.To}, {Key: "edged.call.reason", Value: r.Reason},
			{Key: "edged.call.seconds", Value: r.Seconds},
		},
	}
	switch {
	case r.Status >= 400:
		fail(&root, strconv.Itoa(r.Status), r.Reason)
	case r.Protocol == "h323" && r.Answered == nil:
		fail(&root, r.Reason, r.Reason)
	}
	if r.Status != 0 {
		root.Attributes = append(root.Attributes, otel.Attribute{Key: "edged.call.status", Value: r.Status})
	}
	if r.Answered != nil {
		root.Events = append(root.Events, otel.Event{Time: *r.Answered, Name: "answered"})
	}
	spans := []otel.Span{root}
	for i, s := range steps {
		if len(spans) > maxLegs {
			break
		}
		if s.Time.Before(r.Started.Add(-beforeStart)) || s.Time.After(r.Ended) || !setsUp(s) || slices.ContainsFunc(steps[:i], func(b trace.Step) bool { return setsUp(b) && sameLeg(b, s) }) {
			continue
		}
		leg := legSpan(s, steps[i+1:], r.Ended)
		leg.Trace, leg.Parent = root.Trace, root.ID
		spans = append(spans, leg)
	}
	if len(spans) > 1 && spans[1].Start.Before(root.Start) {
		spans[0].Start = spans[1].Start
	}
	return spans
}

func fail(s *otel.Span, kind, why string) {
	s.Failed, s.Message = true, why
	s.Attributes = append(s.Attributes, otel.Attribute{Key: "error.type", Value: kind})
}

// setsUp tells whether a message asks for a call, or for another description of one.
func setsUp(s trace.Step) bool { return s.Kind == "INVITE" && s.Status == 0 || s.Kind == "SETUP" }

// sameLeg tells whether two requests are one that was repeated.
func sameLeg(a, b trace.Step) bool {
	return a.Out == b.Out && a.Remote == b.Remote && a.Kind == b.Kind && a.CSeq == b.CSeq
}

// legSpan describes a set-up by what came after it, at the latest until the call's end.
func legSpan(s trace.Step, after []trace.Step, end time.Time) otel.Span {
	span := otel.Span{
		ID: otel.NewSpanID(), Name: s.Kind, Kind: otel.Server, Start: s.Time, End: end,
		Attributes: []otel.Attribute{
			{Key: "network.protocol.name", Value: "sip"}, {Key: "network.transport", Value: transportOf(s.Transport)},
			{Key: "network.peer.address", Value: s.Remote.Addr().String()}, {Key: "network.peer.port", Value: int(s.Remote.Port())},
			{Key: "edged.network", Value: s.Network},
		},
	}
	if s.Protocol != "" {
		span.Attributes[0].Value = "h323"
	}
	if s.Out {
		span.Kind = otel.Client
	}
	for _, a := range after {
		if a.Time.After(end) {
			break
		}
		if a.Out != s.Out && a.Remote == s.Remote && a.CSeq == s.CSeq && takeAnswer(&span, a) {
			return span
		}
	}
	fail(&span, "timeout", "no final response")
	return span
}

// takeAnswer takes a response into a span; true if it is final.
func takeAnswer(span *otel.Span, a trace.Step) bool {
	ringing, answered, refused := a.Kind == "ALERTING", a.Kind == "CONNECT", a.Kind == "RELEASE COMPLETE"
	code := a.Kind
	if a.Protocol == "" {
		if a.Status < 180 || a.Kind != "INVITE" {
			return false
		}
		ringing, answered, refused = a.Status < 200, a.Status >= 200 && a.Status < 300, a.Status >= 400
		code = strconv.Itoa(a.Status)
		if a.Status >= 300 && a.Status < 400 {
			span.End = a.Time
			return true
		}
	}
	if ringing && len(span.Events) == 0 {
		span.Events = append(span.Events, otel.Event{Time: a.Time, Name: "ringing"})
	}
	if answered {
		span.Events = append(span.Events, otel.Event{Time: a.Time, Name: "answered"})
	}
	if refused {
		fail(span, code, "")
	}
	if answered || refused {
		span.End = a.Time
	}
	return answered || refused
}

// transportOf returns network.transport of a transport of the edge: what is below TLS and WebSocket.
func transportOf(t string) string {
	if t == "udp" {
		return "udp"
	}
	return "tcp"
}

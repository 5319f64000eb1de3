package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/trace"
)

type traceConfig struct {
	Memory pinhole.Size `yaml:"memory" jsonschema:"oneof_type=string;integer,default=16MiB" jsonschema_description:"room for the signalling of the last calls, for edged trace; 0 = none is kept"`
	Media  bool         `yaml:"media" jsonschema:"default=true" jsonschema_description:"whether edged capture --media may write down the audio and video of a call, for who has admin.token"`
}

const (
	defaultTraceMemory = 16 << 20
	maxTraceMemory     = 1 << 30
)

func (c traceConfig) validate(l *faultList) {
	if c.Memory != 0 && (c.Memory < trace.MinMemory || c.Memory > maxTraceMemory) {
		l.add("trace.memory", "must be 0 or between 64KiB and 1GiB")
	}
}

// callTraces is the memory of signalling as the services fill it and the API shows it.
type callTraces struct {
	ring *trace.Ring
	// live lists the calls that are up, for their names; nil without SIP.
	live func() []sipalg.CallInfo
	// liveH323 is the same of H.323.
	liveH323 func() []h323.CallInfo
}

// sip is what the SIP service shows its messages to.
func (c *callTraces) sip(f flow.Flow, out bool, raw []byte) {
	c.ring.Add(trace.Message{
		Time: time.Now().UTC(), Out: out, Network: f.Network, Transport: f.Proto.String(), Local: f.Local, Remote: f.Remote, Data: raw,
	})
}

// h323 is what the H.323 service shows its messages to.
func (c *callTraces) h323(t h323.Traced) {
	transport := "tcp"
	if t.Protocol == h323.RAS {
		transport = "udp"
	}
	c.ring.Add(trace.Message{
		Time: time.Now().UTC(), Out: t.Out, Network: t.Network, Transport: transport, Local: t.Local, Remote: t.Remote, Data: t.Data,
		Protocol: string(t.Protocol), Call: t.Call, Placed: t.Placed, Kind: t.Kind, From: t.From, To: t.To,
	})
}

// h323Reader reads what is not SIP.
type h323Reader struct{}

var _ trace.Reader = h323Reader{}

// Read implements trace.Reader.
func (h323Reader) Read(protocol string, data []byte) trace.Reading {
	d := h323.Describe(h323.Protocol(protocol), data)
	return trace.Reading{Method: d.Kind, Summary: d.Summary, Text: d.Text}
}

// Hide implements trace.Reader.
func (h323Reader) Hide(protocol string, data []byte) []byte {
	return h323.Hide(h323.Protocol(protocol), data)
}

// nameLive has the calls that are up found by the edge's names of them; others got theirs from their records.
func (c *callTraces) nameLive() {
	if c.live != nil {
		for _, call := range c.live() {
			c.ring.Name(call.CallID, call.ID)
		}
	}
}

// pages are the documents of the API that take parameters, by pattern.
func (c *callTraces) pages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /api/v1/calls/{id}/trace":   c.serveTrace,
		"GET /api/v1/calls/{id}/capture": c.serveCapture,
		"GET /api/v1/traces":             c.serveList,
	}
}

func (c *callTraces) serveList(w http.ResponseWriter, _ *http.Request) {
	c.nameLive()
	writeJSON(w, map[string]any{"traces": c.ring.List()})
}

func (c *callTraces) serveTrace(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
	if err != nil && r.FormValue("after") != "" {
		http.Error(w, "after: not a number", http.StatusBadRequest)
		return
	}
	c.nameLive()
	t, ok := c.ring.Trace(r.PathValue("id"), after, r.FormValue("secrets") == "1")
	if !ok {
		http.Error(w, "no signalling of this call is known", http.StatusNotFound)
		return
	}
	writeJSON(w, t)
}

// newTraceMetrics shows how full the memory is.
func newTraceMetrics(ring *trace.Ring) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "edged_trace_memory_bytes", Help: "Memory that holds the signalling of the last calls.",
	}, func() float64 {
		n, _ := ring.Used()
		return float64(n)
	})
}

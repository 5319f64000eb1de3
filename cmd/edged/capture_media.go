package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/trace/pcapng"
)

// Media of a call is written down only when it is asked for, as it passes:
//
//	relay ─ tap ─► captureQueue (bounded) ─► pcapng, with the signalling of the call ─► who asked
//
// The relay's loops are not held up: what finds the queue full is counted, and the file says so.

// The bounds of one capture, and of all of them.
const (
	captureTime, maxCaptureTime       = 30 * time.Second, 10 * time.Minute
	capturePackets, maxCapturePackets = 1_000_000, 10_000_000
	captureBytes, maxCaptureBytes     = 64 << 20, 1 << 30
	maxCaptures                       = 4
	// captureRoom is how much may wait for whoever reads: some seconds of video.
	captureRoom = 8 << 20
	// captureBeat is how often what waits is written.
	captureBeat = 100 * time.Millisecond
	// captureGrace is how much longer than the capture its reader may take to read what waits.
	captureGrace = 30 * time.Second
	// captureLook is how often it is looked whether the call is still up.
	captureLook = 500 * time.Millisecond
)

// liveCall is a call that is up, as far as captures need to know it.
type liveCall struct {
	id string // under which its signalling is found
	// owns tells whether a pinhole with that label is the call's.
	owns func(label string) bool
}

// mediaCaptures are the captures of media that run.
type mediaCaptures struct {
	traces *callTraces
	// tap shows packets; nil without a relay. find finds a call that is up.
	tap  func(wants func(label string) bool, show func(media.Seen)) (end func())
	find func(id string) (liveCall, bool)
	// refuse says why nobody may have media, "" if who has the token may.
	refuse string
	log    *zap.Logger
	events *eventBroker

	packets, bytes, dropped prometheus.Counter

	mu      sync.Mutex
	running map[string]bool // by the call
}

func newMediaCaptures(c *config, traces *callTraces, events *eventBroker, reg prometheus.Registerer, log *zap.Logger) *mediaCaptures {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &mediaCaptures{
		traces: traces, find: traces.find, events: events, log: log, running: map[string]bool{},
		packets: counter("edged_media_capture_packets_total", "Packets of media that were written down, as they came and as they left."),
		bytes:   counter("edged_media_capture_bytes_total", "Octets of them."),
		dropped: counter("edged_media_capture_dropped_total", "Packets that a capture lacks, as who asked for it reads too slowly."),
	}
	_, unix := c.Admin.unixPath()
	switch {
	case !c.Trace.Media:
		m.refuse = "the configuration forbids it (trace.media: false)"
	case c.Admin.Token == "" && !unix:
		m.refuse = "it needs admin.token, or an admin listener on a unix socket: whoever may connect could listen in"
	}
	reg.MustRegister(m.packets, m.bytes, m.dropped)
	return m
}

// captureLimits are the bounds of one capture.
type captureLimits struct {
	time           time.Duration
	packets, bytes int
}

func captureLimitsOf(r *http.Request) (l captureLimits, err error) {
	l = captureLimits{captureTime, capturePackets, captureBytes}
	number := func(key string, to *int, most int) {
		if s := r.FormValue(key); s != "" {
			n, bad := strconv.Atoi(s)
			if bad != nil || n < 1 || n > most {
				err = errors.Join(err, fmt.Errorf("%s: not a number from 1 to %d", key, most))
			}
			*to = n
		}
	}
	number("packets", &l.packets, maxCapturePackets)
	number("bytes", &l.bytes, maxCaptureBytes)
	if s := r.FormValue("for"); s != "" {
		var bad error
		if l.time, bad = time.ParseDuration(s); bad != nil || l.time < time.Second || l.time > maxCaptureTime {
			err = errors.Join(err, fmt.Errorf("for: not a duration from 1s to %v", maxCaptureTime))
		}
	}
	return l, err
}

// serve answers with the signalling and the media of a call as they pass, until a limit is reached or the call is over.
func (m *mediaCaptures) serve(w http.ResponseWriter, r *http.Request) {
	if m.refuse != "" || m.tap == nil {
		http.Error(w, "media is not captured: "+cmp.Or(m.refuse, "there is no relay"), http.StatusForbidden)
		return
	}
	limits, err := captureLimitsOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	call, ok := m.find(r.PathValue("id"))
	if !ok {
		http.Error(w, "no such call is up", http.StatusNotFound)
		return
	}
	if code := m.begin(call.id); code != http.StatusOK {
		http.Error(w, "this call is captured already, or too many are", code)
		return
	}
	defer m.end(call.id)
	m.log.Info("media capture begins", zap.String("call", call.id), zap.String("client", r.RemoteAddr), zap.Duration("for", limits.time))
	w.Header().Set("Content-Type", "application/x-pcapng")
	w.Header().Set("Content-Disposition", `attachment; filename="call.pcapng"`)
	w.Header().Set("Cache-Control", "no-store")
	done, err := m.capture(r.Context(), newFlushWriter(w, limits.time+captureGrace), call, limits)
	m.log.Info("media capture ended", zap.String("call", call.id), zap.String("client", r.RemoteAddr), zap.Uint64("packets", done.packets),
		zap.Uint64("bytes", done.bytes), zap.Uint64("dropped", done.dropped), zap.String("why", done.why), zap.Error(err))
	m.events.publish("media_captured", map[string]any{
		"call": call.id, "client": r.RemoteAddr, "packets": done.packets, "bytes": done.bytes, "dropped": done.dropped, "why": done.why,
	})
}

func (m *mediaCaptures) begin(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.running[id]:
		return http.StatusConflict
	case len(m.running) >= maxCaptures:
		return http.StatusTooManyRequests
	}
	m.running[id] = true
	return http.StatusOK
}

func (m *mediaCaptures) end(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.running, id)
}

// captured is what came of a capture.
type captured struct {
	packets, bytes, dropped uint64
	why                     string
}

// capture writes to w until the capture is over.
func (m *mediaCaptures) capture(ctx context.Context, w io.Writer, call liveCall, l captureLimits) (done captured, err error) {
	q := &captureQueue{limits: l, full: make(chan struct{})}
	out := bufio.NewWriterSize(w, 64<<10)
	file, err := pcapng.NewWriter(out)
	if err != nil {
		return done, err
	}
	untap := m.tap(call.owns, q.show)
	defer untap()
	defer time.AfterFunc(l.time, untap).Stop() // the relay does not wait for a slow reader
	begun, looked, seq := time.Now(), time.Now(), uint64(0)
	beat := time.NewTicker(captureBeat)
	defer beat.Stop()
	for done.why == "" {
		select {
		case <-beat.C:
		case <-q.full:
		case <-ctx.Done():
		}
		done.why = q.over(ctx, time.Since(begun))
		if done.why == "" && time.Since(looked) >= captureLook {
			looked = time.Now()
			if _, up := m.find(call.id); !up {
				done.why = "the call is over"
			}
		}
		if done.why != "" {
			untap()
		}
		if seq, err = m.write(file, q, call.id, seq); err == nil {
			err = out.Flush()
		}
		if err != nil {
			done.why = "the client has gone"
		}
	}
	done.packets, done.bytes, done.dropped = q.sums()
	m.packets.Add(float64(done.packets))
	m.bytes.Add(float64(done.bytes))
	m.dropped.Add(float64(done.dropped))
	if err == nil {
		err = errors.Join(file.Statistics(time.Now(), done.packets+done.dropped, done.dropped, "the capture ended: "+done.why), out.Flush())
	}
	return done, err
}

// write writes what waits and the signalling that is new, by their times, and returns the number of the last message.
func (m *mediaCaptures) write(file *pcapng.Writer, q *captureQueue, id string, seq uint64) (uint64, error) {
	packets := q.take()
	msgs, _ := m.traces.ring.Messages(id, seq, false)
	for _, msg := range msgs {
		packets = append(packets, signallingPacket(msg))
		seq = msg.Seq
	}
	slices.SortStableFunc(packets, func(a, b pcapng.Packet) int { return a.Time.Compare(b.Time) })
	for _, p := range packets {
		if err := file.Write(p); err != nil {
			return seq, err
		}
	}
	return seq, nil
}

// captureQueue takes packets from the relay's loops until its limits are reached.
type captureQueue struct {
	limits captureLimits
	// full is closed once there are as many packets or bytes as there may be.
	full chan struct{}

	mu                      sync.Mutex
	waiting                 []pcapng.Packet
	room                    int // taken by those that wait
	packets, bytes, dropped uint64
	reached                 string
}

// show takes a copy of a packet.
func (q *captureQueue) show(s media.Seen) {
	p := pcapng.Packet{
		Time: s.Time, From: s.From, To: s.To, Interface: s.Network, Direction: pcapng.Inbound,
	}
	if s.Out {
		p.Direction = pcapng.Outbound
	}
	if s.Unrelayed {
		p.Comment = "not passed on"
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.reached != "":
	case q.packets >= uint64(q.limits.packets):
		q.reach("the limit of packets")
	case q.bytes+uint64(len(s.Data)) > uint64(q.limits.bytes):
		q.reach("the limit of bytes")
	case q.room+len(s.Data) > captureRoom:
		q.dropped++
	default:
		p.Data = append([]byte(nil), s.Data...)
		q.waiting = append(q.waiting, p)
		q.room += len(s.Data) + 256 // and what a packet costs beside its bytes
		q.packets++
		q.bytes += uint64(len(s.Data))
	}
}

func (q *captureQueue) reach(limit string) {
	q.reached = limit
	close(q.full)
}

// take returns what waits.
func (q *captureQueue) take() (list []pcapng.Packet) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list, q.waiting, q.room = q.waiting, nil, 0
	return list
}

func (q *captureQueue) sums() (packets, bytes, dropped uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.packets, q.bytes, q.dropped
}

// over says why the capture is over, "" if it is not.
func (q *captureQueue) over(ctx context.Context, lasted time.Duration) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.reached != "":
		return q.reached
	case ctx.Err() != nil:
		return "the client has gone"
	case lasted >= q.limits.time:
		return "the time is over"
	}
	return ""
}

// flushWriter sends on at once what is written, and lets a slow reader take some time, but not for ever.
type flushWriter struct {
	w   io.Writer
	out *http.ResponseController
	end time.Time
}

func newFlushWriter(w http.ResponseWriter, all time.Duration) flushWriter {
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // the console's own writer has none
	return flushWriter{w, out, time.Now().Add(all)}
}

// Write implements io.Writer.
func (f flushWriter) Write(b []byte) (int, error) {
	limit := time.Now().Add(10 * time.Second)
	if limit.After(f.end) {
		limit = f.end
	}
	_ = f.out.SetWriteDeadline(limit)
	n, err := f.w.Write(b)
	if err == nil {
		if bad := f.out.Flush(); !errors.Is(bad, errors.ErrUnsupported) {
			err = bad
		}
	}
	return n, err
}

// find finds a call that is up by the edge's name of it or its Call-ID.
func (c *callTraces) find(id string) (liveCall, bool) {
	if c.live != nil {
		for _, call := range c.live() {
			if call.ID == id || call.CallID == id {
				label := call.CallID
				return liveCall{label, func(l string) bool { return l == label }}, true
			}
		}
	}
	if c.liveH323 != nil {
		for _, call := range c.liveH323() {
			if call.CallID == id {
				begin := "h323 " + id + " "
				return liveCall{id, func(l string) bool { return strings.HasPrefix(l, begin) }}, true
			}
		}
	}
	return liveCall{}, false
}

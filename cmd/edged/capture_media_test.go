package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/trace"
)

// capturable returns captures of a call c1 that is up, and what shows packets to the one that runs.
func capturable(c *config) (m *mediaCaptures, up *atomic.Bool, shown chan func(media.Seen)) {
	traces := &callTraces{ring: trace.New(1 << 20)}
	up = new(atomic.Bool)
	up.Store(true)
	traces.live = func() []sipalg.CallInfo {
		if up.Load() {
			return []sipalg.CallInfo{{ID: "1", CallID: "c1"}}
		}
		return nil
	}
	traces.ring.Add(trace.Message{Time: time.Now(), Network: "inside", Transport: "udp", Data: []byte("INVITE sip:b SIP/2.0\r\nCall-ID: c1\r\nCSeq: 1 INVITE\r\n\r\n")})
	m = newMediaCaptures(c, traces, newEventBroker(), prometheus.NewRegistry(), zap.NewNop())
	shown = make(chan func(media.Seen), 1)
	m.tap = func(wants func(string) bool, show func(media.Seen)) func() {
		if wants("c1") && !wants("c2") {
			shown <- show
		}
		return func() {}
	}
	return m, up, shown
}

func rtpSeen(n int) media.Seen {
	return media.Seen{
		Time: time.Now(), Network: "inside", From: netip.MustParseAddrPort("192.0.2.7:4000"), To: netip.MustParseAddrPort("192.0.2.1:50000"),
		Data: bytes.Repeat([]byte{0x80}, n),
	}
}

// TestMediaCaptureLimits: a capture ends where it was told to, and says so in the file.
func TestMediaCaptureLimits(t *testing.T) {
	c := defaultConfig()
	c.Admin.Token = "t"
	for _, tc := range []struct {
		query, why string
		blocks     int // packets, with that of the INVITE
	}{
		{"packets=3", "the limit of packets", 4},
		{"bytes=250", "the limit of bytes", 3},
		{"for=1s", "the time is over", 6},
	} {
		m, _, shown := capturable(&c)
		rec := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			r := httptest.NewRequest(http.MethodPost, "/?"+tc.query, http.NoBody)
			r.SetPathValue("id", "1")
			m.serve(rec, r)
		}()
		show := <-shown
		for range 5 {
			show(rtpSeen(100))
		}
		<-done
		var file bytes.Buffer
		n, err := copyBlocks(&file, bytes.NewReader(rec.Body.Bytes()))
		if err != nil || n != tc.blocks || !bytes.Equal(file.Bytes(), rec.Body.Bytes()) || !strings.Contains(file.String(), "the capture ended: "+tc.why) ||
			!strings.Contains(file.String(), "inside") {
			t.Errorf("%s: %d packets, %v: %q", tc.query, n, err, file.String())
		}
	}
}

// TestMediaCaptureEndsWithTheCall, and counts what nobody read in time.
func TestMediaCaptureEndsWithTheCall(t *testing.T) {
	c := defaultConfig()
	c.Admin.Token = "t"
	m, up, shown := capturable(&c)
	go func() {
		show := <-shown
		for range 200 {
			show(rtpSeen(60_000)) // more than may wait
		}
		up.Store(false)
	}()
	call, _ := m.find("c1")
	var file bytes.Buffer
	done, err := m.capture(context.Background(), &file, call, captureLimits{time.Minute, 1000, 1 << 30})
	if err != nil || done.why != "the call is over" || done.packets+done.dropped != 200 || done.packets == 0 {
		t.Errorf("%+v, %v", done, err)
	}
}

// TestMediaCaptureOfASlowReader: somebody who does not read keeps the call's packets from the fast path no longer than he
// may capture, and is not written to for ever.
func TestMediaCaptureOfASlowReader(t *testing.T) {
	c := defaultConfig()
	c.Admin.Token = "t"
	m, _, shown := capturable(&c)
	tapped, untapped := m.tap, make(chan struct{})
	m.tap = func(wants func(string) bool, show func(media.Seen)) func() {
		tapped(wants, show)
		return sync.OnceFunc(func() { close(untapped) })
	}
	call, _ := m.find("c1")
	unread, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := m.capture(context.Background(), w, call, captureLimits{time.Second, 1000, 1 << 30})
		ended <- err
	}()
	(<-shown)(rtpSeen(1000))
	select {
	case <-untapped:
	case <-time.After(time.Minute):
		t.Error("the tap stays as long as the reader does not read")
	}
	unread.Close()
	if err := <-ended; err == nil {
		t.Error("nobody has read the file")
	}
	f := flushWriter{end: time.Now().Add(-time.Second)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		f.w, f.out = w, http.NewResponseController(w)
		_, err := f.Write([]byte("late"))
		ended <- err
	}))
	defer srv.Close()
	if resp, err := http.Get(srv.URL); err == nil {
		resp.Body.Close()
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the end: %v", err)
	}
}

// TestMediaCaptureRefused: who may not, and what cannot be.
func TestMediaCaptureRefused(t *testing.T) {
	c := defaultConfig()
	ask := func(m *mediaCaptures, id, query string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/?"+query, http.NoBody)
		r.SetPathValue("id", id)
		m.serve(rec, r)
		return rec
	}
	open, _, _ := capturable(&c)
	if rec := ask(open, "1", ""); rec.Code != http.StatusForbidden || !strings.Contains(rec.Body.String(), "admin.token") {
		t.Errorf("without a token: %d %s", rec.Code, rec.Body)
	}
	c.Admin.Token = "t"
	m, _, _ := capturable(&c)
	m.running = map[string]bool{"c1": true}
	for query, want := range map[string]int{"for=11m": 400, "for=x": 400, "packets=0": 400, "bytes=-1": 400, "": 409} {
		if rec := ask(m, "1", query); rec.Code != want {
			t.Errorf("%q: %d %s, want %d", query, rec.Code, rec.Body, want)
		}
	}
	if rec := ask(m, "2", ""); rec.Code != http.StatusNotFound {
		t.Errorf("no such call: %d", rec.Code)
	}
	m.running = map[string]bool{"a": true, "b": true, "c": true, "d": true}
	if rec := ask(m, "1", ""); rec.Code != http.StatusTooManyRequests {
		t.Errorf("a fifth one: %d", rec.Code)
	}
	c.Trace.Media = false
	off, _, _ := capturable(&c)
	if rec := ask(off, "1", ""); rec.Code != http.StatusForbidden || !strings.Contains(rec.Body.String(), "trace.media") {
		t.Errorf("forbidden: %d %s", rec.Code, rec.Body)
	}
	c.Trace.Media, c.Admin = true, adminConfig{Listen: "unix:/run/edged.sock"}
	if unix, _, _ := capturable(&c); unix.refuse != "" {
		t.Errorf("a unix socket: %s", unix.refuse)
	}
}

// TestCopyBlocks: what is cut off ends with the last whole block.
func TestCopyBlocks(t *testing.T) {
	var whole bytes.Buffer
	if err := writeCapture(&whole, []trace.Message{{Time: time.Now(), Data: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	n, err := copyBlocks(&out, bytes.NewReader(whole.Bytes()[:whole.Len()-1]))
	if n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || out.Len() == 0 {
		t.Errorf("%d packets, %v, %d octets", n, err, out.Len())
	}
	if _, err := copyBlocks(&out, strings.NewReader("\x06\x00\x00\x00\xff\xff\xff\xff")); err == nil {
		t.Error("a block of 4 GiB is taken")
	}
}

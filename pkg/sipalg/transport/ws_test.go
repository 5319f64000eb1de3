package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"edged.dev/edged/pkg/sipalg/flow"
)

// browser opens a WebSocket as a page would.
func browser(t testing.TB, addr netip.AddrPort, opts *websocket.DialOptions) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, "ws://"+addr.String()+"/any/path", opts)
	if err == nil {
		t.Cleanup(func() { ws.CloseNow() })
		ws.SetReadLimit(1 << 20)
	}
	return ws, resp, err
}

func expectFrame(t testing.TB, ws *websocket.Conn, typ websocket.MessageType, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, msg, err := ws.Read(ctx)
	if err != nil || got != typ || string(msg) != want {
		t.Fatalf("got %v %.200q, %v; want %v %.200q", got, msg, err, typ, want)
	}
}

func TestWebSocket(t *testing.T) {
	tr, rec := newTransport(Config{MaxMessage: 40000}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.WS, "127.0.0.1:0")
	ws, _, err := browser(t, own, &websocket.DialOptions{Subprotocols: []string{"sip"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	small, large := sipMessage(1, "hello"), sipMessage(2, strings.Repeat("x", 30000))
	ws.Write(ctx, websocket.MessageText, []byte(small))
	f := rec.message(t, small)
	if f.Proto != flow.WS || f.Local != own || f.Conn == 0 {
		t.Errorf("flow %+v", f)
	}
	ws.Write(ctx, websocket.MessageBinary, []byte(large))
	rec.message(t, large)
	w, err := ws.Writer(ctx, websocket.MessageText) // several frames, one message
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(small, " ") {
		write(t, w, part+" ")
	}
	w.Close()
	rec.message(t, small+" ")

	ws.Write(ctx, websocket.MessageText, []byte("\r\n"))
	ws.Write(ctx, websocket.MessageText, []byte("\r\n\r\n"))
	expectFrame(t, ws, websocket.MessageText, "\r\n")
	go ws.Read(ctx) // takes the pong
	pingCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := ws.Ping(pingCtx); err != nil {
		t.Errorf("ping: %v", err)
	}
	rec.quiet(t)
	ws.CloseNow()
	rec.ended(t, f)
}

func TestWebSocketSend(t *testing.T) {
	tr, rec := newTransport(Config{Queue: 8 << 20}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.WS, "127.0.0.1:0")
	ws, _, err := browser(t, own, &websocket.DialOptions{Subprotocols: []string{"other", "sip"}})
	if err != nil {
		t.Fatal(err)
	}
	ws.Write(t.Context(), websocket.MessageText, []byte("hello"))
	f := rec.message(t, "hello")
	for i := range 100 { // each stays a message of its own, however they queue
		if err := tr.Send(f, []byte(sipMessage(i, strings.Repeat("y", 20000)))); err != nil {
			t.Fatal(err)
		}
	}
	tr.Send(f, []byte("latin \xe9"))
	for i := range 100 {
		expectFrame(t, ws, websocket.MessageText, sipMessage(i, strings.Repeat("y", 20000)))
	}
	expectFrame(t, ws, websocket.MessageBinary, "latin \xe9")
}

func TestWebSocketRefusals(t *testing.T) {
	tr, rec := newTransport(Config{MaxMessage: 1024, Origins: []string{"*.example.org"}}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.WS, "127.0.0.1:0")
	sip := []string{"sip"}
	origin := func(s string) http.Header { return http.Header{"Origin": {s}} }
	if _, _, err := browser(t, own, &websocket.DialOptions{Subprotocols: sip, HTTPHeader: origin("https://phone.example.org")}); err != nil {
		t.Errorf("an origin that is allowed: %v", err)
	}
	if _, _, err := browser(t, own, &websocket.DialOptions{Subprotocols: sip, HTTPHeader: origin("http://" + own.String())}); err != nil {
		t.Errorf("the host's own origin: %v", err)
	}
	if _, resp, err := browser(t, own, &websocket.DialOptions{Subprotocols: sip, HTTPHeader: origin("https://evil.example.net")}); err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another origin: %v, %v; want 403", resp, err)
	}
	if ws, _, err := browser(t, own, nil); err == nil {
		if _, _, err := ws.Read(t.Context()); err == nil {
			t.Error("a client without the subprotocol was served")
		}
	}
	for _, req := range []string{
		"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
		"OPTIONS sip:example.org SIP/2.0\r\n\r\n",
		"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 2*requestMax) + "\r\n\r\n",
	} {
		nc := dialTCP(t, own)
		nc.Write([]byte(req))
		if answer, _ := io.ReadAll(nc); strings.HasPrefix(string(answer), "HTTP/1.1 101") {
			t.Errorf("%.30q was upgraded", req)
		}
	}
	waitFor(t, "the count", func() bool { return drops(tr, upgrade) == 5 })

	ws, _, err := browser(t, own, &websocket.DialOptions{Subprotocols: sip})
	if err != nil {
		t.Fatal(err)
	}
	ws.Write(t.Context(), websocket.MessageText, make([]byte, 1025))
	for e := rec.next(t); !e.closed; e = rec.next(t) {
		t.Errorf("received %d bytes", len(e.raw))
	}
	waitFor(t, "the count", func() bool { return drops(tr, oversize) == 1 })
}

func TestWSS(t *testing.T) {
	ca := newAuthority(t)
	conf := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "edge.example.org")}}
	src := &certs{server: conf, client: &tls.Config{RootCAs: ca.pool}}
	server, heard := newTransport(Config{}, src)
	own, _ := serveTCP(t, server, "inside", flow.WSS, "127.0.0.1:0")
	// The other end is an edge too: it dials.
	edge, answers := newTransport(Config{}, src)
	serveUDP(t, edge, "outside", "127.0.0.2:0")
	waitLocal(t, edge, "outside", flow.UDP)
	tg := flow.Target{Network: "outside", Proto: flow.WSS, Addr: own, ServerName: "edge.example.org"}
	out := sendTo(t, edge, tg, sipMessage(1, ""))
	if out.err != nil {
		t.Fatal(out.err)
	}
	in := heard.message(t, sipMessage(1, ""))
	if err := server.Send(in, []byte(sipMessage(2, ""))); err != nil {
		t.Fatal(err)
	}
	if f := answers.message(t, sipMessage(2, "")); f != out.flow || f.Local != in.Remote {
		t.Errorf("answer on %+v, want %+v", f, out.flow)
	}
	if again := sendTo(t, edge, tg, sipMessage(3, "")); again != out {
		t.Errorf("again on %+v, want %+v", again, out)
	}
	heard.message(t, sipMessage(3, ""))
	tg.ServerName = "other.example.org"
	if s := sendTo(t, edge, tg, "x"); s.err == nil {
		t.Errorf("a wrong name was taken: %+v", s)
	}
	edge.Hangup(out.flow)
	answers.ended(t, out.flow)
	heard.ended(t, in)
}

func TestWSDialNeedsSIP(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	serveUDP(t, tr, "inside", "127.0.0.1:0")
	waitLocal(t, tr, "inside", flow.UDP)
	plain := http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ws, err := websocket.Accept(w, r, nil); err == nil {
			ws.Close(websocket.StatusNormalClosure, "")
		}
	})}
	addr := serveHTTP(t, &plain)
	if s := sendTo(t, tr, flow.Target{Network: "inside", Proto: flow.WS, Addr: addr}, "x"); !errors.Is(s.err, errNoSIP) {
		t.Errorf("a server without the subprotocol: %+v", s)
	}
	rec.quiet(t)
}

// Only messages keep a WebSocket open at first, later pings do too.
func TestWebSocketTimers(t *testing.T) {
	inBubble(t, Config{FirstByte: 30 * time.Second, Complete: 10 * time.Second, Idle: time.Hour}, flow.WS, func(t *testing.T, tr *Transport, rec *recorder, ln *memory) {
		dial := func() *websocket.Conn {
			one := &http.Transport{DisableKeepAlives: true, DialContext: pipeDialer(ln)}
			ws, _, err := websocket.Dial(t.Context(), "ws://edge.example.org/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: one}, Subprotocols: []string{"sip"}})
			if err != nil {
				t.Fatal(err)
			}
			return ws
		}
		ws := dial()
		start := time.Now()
		go ws.Read(t.Context())
		time.Sleep(20 * time.Second)
		ws.Ping(t.Context())
		rec.next(t)
		if d := time.Since(start); d != 30*time.Second || drops(tr, firstByte) != 1 {
			t.Errorf("a WebSocket that only pings lasted %v, counted %d", d, drops(tr, firstByte))
		}
		ws.CloseNow()

		ws = dial()
		ws.Write(t.Context(), websocket.MessageText, []byte("hello"))
		f := rec.message(t, "hello")
		go ws.Read(t.Context())
		time.Sleep(50*time.Minute + time.Second) // not when the edge pings: a pipe has no buffer for both
		ws.Ping(t.Context())
		start = time.Now()
		rec.ended(t, f)
		if d := time.Since(start); d != time.Hour || drops(tr, idle) != 1 {
			t.Errorf("lasted %v after the last ping, counted %d", d, drops(tr, idle))
		}
		ws.CloseNow()

		ws = dial()
		w, _ := ws.Writer(t.Context(), websocket.MessageText)
		w.Write([]byte(strings.Repeat("x", 9000))) // more than it buffers
		start = time.Now()
		rec.next(t)
		if d := time.Since(start); d != 10*time.Second || drops(tr, incomplete) != 1 {
			t.Errorf("half a message lasted %v, counted %d", d, drops(tr, incomplete))
		}
		ws.CloseNow()
		synctest.Wait()
	})
}

// A WebSocket whose peer answers no pings is dropped; the others are kept.
func TestWebSocketPings(t *testing.T) {
	inBubble(t, Config{Ping: 25 * time.Second, Write: 20 * time.Second}, flow.WS, func(t *testing.T, tr *Transport, rec *recorder, ln *memory) {
		pings := 0
		open := func() *websocket.Conn {
			one := &http.Transport{DisableKeepAlives: true, DialContext: pipeDialer(ln)}
			ws, _, err := websocket.Dial(t.Context(), "ws://edge.example.org/", &websocket.DialOptions{
				HTTPClient: &http.Client{Transport: one}, Subprotocols: []string{"sip"},
				OnPingReceived: func(context.Context, []byte) bool { pings++; return pings <= 10 },
			})
			if err != nil {
				t.Fatal(err)
			}
			ws.Write(t.Context(), websocket.MessageText, []byte("hello"))
			rec.message(t, "hello")
			return ws
		}
		ws := open()
		start := time.Now()
		go ws.Read(t.Context())
		if e := rec.next(t); !e.closed {
			t.Errorf("got %+v, want the end", e)
		}
		if d := time.Since(start); d != 11*25*time.Second+20*time.Second || drops(tr, noPong) != 1 {
			t.Errorf("ended after %v and %d pings, counted %d", d, pings, drops(tr, noPong))
		}
		ws.CloseNow()
	})
}

func TestCollector(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	nc := dialTCP(t, own)
	write(t, nc, sipMessage(1, "")+sipMessage(2, ""))
	f := rec.message(t, sipMessage(1, ""))
	rec.message(t, sipMessage(2, ""))
	tr.Send(f, []byte("x"))
	tr.count.drop(slowPeer)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(tr)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, fam := range families {
		for _, m := range fam.GetMetric() {
			key := fam.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			got[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for key, want := range map[string]float64{
		"edged_sip_connections in inside tcp": 1, "edged_sip_messages_total in tcp": 2, "edged_sip_messages_total out tcp": 1,
		"edged_sip_transport_drops_total slow_peer": 1, "edged_sip_transport_drops_total idle": 0, "edged_sip_messages_total in udp": 0,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", key, v, ok, want)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
	err := Config{MaxMessage: 10, Dscp: 64, PerSource: -1, Idle: -1}.Validate()
	for _, key := range []string{"max_message", "dscp", "per_source", "idle"} {
		if err == nil || !strings.Contains(err.Error(), key+": ") {
			t.Errorf("%s is not in %q", key, err)
		}
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// sipHost is where the test's daemon listens.
func sipHost() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.77.%d.%d", pid>>8&255, pid&255)
}

// pings sends an OPTIONS from an address over UDP, and tells whether it was answered.
func pings(t *testing.T, from string, wait time.Duration) bool {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("udp4", net.JoinHostPort(sipHost(), "5060"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "OPTIONS sip:%s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%d;rport\r\nFrom: <sip:x@example.org>;tag=1\r\nTo: <sip:%s>\r\n"+
		"Call-ID: %d\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n", sipHost(), c.LocalAddr(), time.Now().UnixNano(), sipHost(), time.Now().UnixNano())
	c.SetReadDeadline(time.Now().Add(wait))
	n, err := c.Read(make([]byte, 2000))
	return err == nil && n > 0
}

// TestBan: who is banned is not heard by UDP, his connections are cut and new ones refused; another is served. It lasts
// over a restart, and ends when it is lifted.
func TestBan(t *testing.T) {
	const bad, good = "127.0.0.66", "127.0.0.65"
	dir := t.TempDir()
	d := startDaemon(t, sipAt(dir, sipOnly))
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(bad)}}
	open, err := dialer.Dial("tcp4", net.JoinHostPort(sipHost(), "5060"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if !pings(t, bad, time.Minute) || !pings(t, good, time.Minute) {
		t.Fatal("nobody is served")
	}
	open.Write([]byte("\r\n\r\n"))
	if _, err := io.ReadFull(open, make([]byte, 2)); err != nil { // the daemon has the connection
		t.Fatal(err)
	}
	code, out, errs := d.edged("ban", bad, "--for", "2h", "--why", "it sweeps")
	if code != 0 || !strings.HasPrefix(out, "banned: "+bad+" until ") || !strings.Contains(out, "cut: 1 connections\n") {
		t.Fatalf("exit code %d:\n%s%s", code, out, errs)
	}
	open.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := open.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the open connection: %v", err)
	}
	served := func(from string) bool { return pings(t, from, 300*time.Millisecond) }
	if served(bad) || !pings(t, good, time.Minute) {
		t.Error("the wrong one is served")
	}
	if c, err := dialer.Dial("tcp4", net.JoinHostPort(sipHost(), "5060")); err == nil {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("a new connection: %v", err)
		}
		c.Close()
	}
	if code, out, _ := d.edged("bans"); code != 0 || !strings.Contains(out, bad+" ") || !strings.Contains(out, "it sweeps") {
		t.Errorf("bans: %s", out)
	}
	d.signals <- os.Interrupt
	if err := d.wait(); err != nil {
		t.Fatal(err)
	}
	d = startDaemon(t, sipAt(dir, sipOnly))
	if served(bad) || !pings(t, good, time.Minute) {
		t.Error("after a restart the wrong one is served")
	}
	if code, out, errs := d.edged("unban", bad); code != 0 || out != "lifted: "+bad+"\n" {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	if !pings(t, bad, time.Minute) {
		t.Error("the ban was lifted in vain")
	}
	if code, _, errs := d.edged("unban", bad); code != exitFailed || !strings.Contains(errs, "is not banned") {
		t.Errorf("twice: %d %s", code, errs)
	}
}

// TestBansThatAreRefused: those of the edge itself, of everybody, and of what is no name.
func TestBansThatAreRefused(t *testing.T) {
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly))
	for _, args := range [][]string{{sipHost()}, {"127.0.0.0/8"}, {"0.0.0.0/0"}, {"nonsense"}, {"192.0.2.1", "--for", "-1s"}, {"192.0.2.1", "--why", strings.Repeat("x", 300)}} {
		if code, out, errs := d.edged(append([]string{"ban"}, args...)...); code != exitFailed || !strings.Contains(errs, "not banned: ") {
			t.Errorf("%q: exit code %d %s%s", args, code, out, errs)
		}
	}
	if _, out, _ := d.edged("bans"); out != "nobody is banned\n" {
		t.Errorf("bans:\n%s", out)
	}
	if code, _, errs := d.edged("calls", "hangup", "0123456789abcdef"); code != exitFailed || !strings.Contains(errs, "no such call") {
		t.Errorf("hangup: %d %s", code, errs)
	}
}

// TestAudit: whatever is asked for leaves a line and an event, with who, from where, what and the outcome; what is refused, too.
func TestAudit(t *testing.T) {
	d := startDaemon(t, strings.Replace(sipAt(t.TempDir(), sipOnly), "'127.0.0.1:0'", "'127.0.0.1:0', token: sesame-sesame-sesame", 1))
	ask := func(method, path, token, header, body string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(context.Background(), method, d.base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if header != "" {
			req.Header.Set("X-Edged", header)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	const good = "sesame-sesame-sesame"
	for i, c := range []struct {
		method, path, token, header, body string
		status                            int
		action, by, subject               string
	}{
		{"POST", "/api/v1/bans", "wrong", "1", `{}`, 401, "POST /api/v1/bans", "nobody", ""},
		{"POST", "/api/v1/bans", good, "", `{"target":"192.0.2.1"}`, 403, "bans", "token", ""},
		{"POST", "/api/v1/bans", good, "1", `{"target":"192.0.2.1","more":1}`, 400, "bans", "token", ""},
		{"POST", "/api/v1/bans", good, "1", `{"target":"192.0.2.1","for":"soon"}`, 422, "bans", "token", "192.0.2.1"},
		{"POST", "/api/v1/bans", good, "1", `{"target":"192.0.2.1"}`, 200, "bans", "token", "192.0.2.1"},
		{"DELETE", "/api/v1/bans?target=192.0.2.1", "wrong", "1", "", 401, "DELETE /api/v1/bans", "nobody", ""},
		{"DELETE", "/api/v1/bans?target=192.0.2.1", good, "", "", 200, "delete bans", "token", "192.0.2.1"},
		{"POST", "/api/v1/calls/abc/hangup", good, "1", "", 404, "calls/{id}/hangup", "token", "abc"},
		{"POST", "/api/v1/reload", good, "1", "", 200, "reload", "token", ""},
	} {
		if status := ask(c.method, c.path, c.token, c.header, c.body); status != c.status {
			t.Errorf("%s %s: %d, not %d", c.method, c.path, status, c.status)
		}
		lines := d.logs.FilterMessage("admin action").All()
		if len(lines) != i+1 {
			t.Fatalf("%s %s: %d lines", c.method, c.path, len(lines))
		}
		f := lines[i].ContextMap()
		if f["action"] != c.action || f["by"] != c.by || f["subject"] != c.subject || f["status"] != int64(c.status) || !strings.HasPrefix(f["client"].(string), "127.0.0.1:") || f["outcome"] == "" {
			t.Errorf("%s %s: %v", c.method, c.path, f)
		}
	}
	body, err := d.get(context.Background(), "/api/v1/events/recent")
	if err != nil || strings.Count(string(body), `"admin_action"`) != 9 {
		t.Errorf("%v %s", err, body)
	}
}

// TestCutSparesTheOperator: a ban leaves connections to the admin listener alone, also where that listens on all addresses.
func TestCutSparesTheOperator(t *testing.T) {
	for _, c := range []struct {
		admin, local string
		spared       bool
	}{
		{"127.0.0.1:9090", "127.0.0.1:9090", true}, {"127.0.0.1:9090", "127.0.0.1:5060", false}, {"127.0.0.1:9090", "192.0.2.1:9090", false},
		{"0.0.0.0:9090", "192.0.2.1:9090", true}, {"[::]:9090", "192.0.2.1:9090", true}, {"[::]:9090", "192.0.2.1:5060", false},
	} {
		o := operator{admin: netip.MustParseAddrPort(c.admin)}
		if got := o.isAdmin(netip.MustParseAddrPort(c.local)); got != c.spared {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if (&operator{}).isAdmin(netip.AddrPort{}) {
		t.Error("without an admin listener of TCP nothing is its")
	}
}

// TestAuditIsBounded: neither a path as long as a head may be fills the log, nor is a body read to its end.
func TestAuditIsBounded(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	a := &audit{log: zap.New(core), events: newEventBroker()}
	long := strings.Repeat("ü", 8000)
	checkToken("sesame", a, http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/"+url.PathEscape(long), http.NoBody))
	body := strings.NewReader("--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n" + strings.Repeat("y", 1<<20))
	r := httptest.NewRequest(http.MethodPost, "/api/v1/calls/x/hangup", body)
	r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	r.Header.Set(ownHeader, "1")
	a.of("POST /api/v1/calls/{id}/hangup", true, func(w http.ResponseWriter, r *http.Request) {
		about(w, long)
		r.FormValue("limit")
	})(httptest.NewRecorder(), r)
	if read := 1<<20 - body.Len(); read > 2*maxAsked {
		t.Errorf("%d octets of the body were read", read)
	}
	if logs.Len() != 2 {
		t.Fatalf("%d lines", logs.Len())
	}
	for _, l := range logs.All() {
		f := l.ContextMap()
		if n := len(f["action"].(string)) + len(f["subject"].(string)); n > 2*maxOutcome {
			t.Errorf("a line of %d octets", n)
		}
	}
}

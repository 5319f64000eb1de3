package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"edged.dev/edged/pkg/audiocall"
	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/forwardproxy"
	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/otel"
	"edged.dev/edged/pkg/syslog"
	"edged.dev/edged/pkg/tftp"
	"edged.dev/edged/pkg/tftp/rfc1350"
	"edged.dev/edged/pkg/tunnel/agent"
	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/link"
	"edged.dev/edged/pkg/tunnel/mailbox"
	tunnelrelay "edged.dev/edged/pkg/tunnel/relay"
	"edged.dev/edged/pkg/tunnel/uplink"
	"edged.dev/edged/pkg/turn"
	"edged.dev/edged/pkg/turn/msturn"
)

// testDaemon is a daemon in this process, with a configuration file that tests rewrite.
type testDaemon struct {
	*apiClient
	t       *testing.T
	file    string
	signals chan os.Signal
	logs    *observer.ObservedLogs
	level   zap.AtomicLevel
	ended   chan error
}

// sipAt returns a configuration whose SIP listener is at an address that no other process uses.
func sipAt(dir, more string) string {
	pid := os.Getpid()
	return fmt.Sprintf("admin: {listen: '127.0.0.1:0'}\nstate: {dir: %s}\n"+
		"networks: {inside: {addresses: [127.77.%d.%d]}}\n%s", dir, pid>>8&255, pid&255, more)
}

const sipOnly = "sip: {listen: ['udp://inside:5060', 'tcp://inside:5060']}\n"

// startDaemon runs a daemon until the test ends; it is ready on return.
func startDaemon(t *testing.T, text string) *testDaemon {
	t.Helper()
	return startHanded(t, text, nil)
}

// startHanded is startDaemon with listeners that systemd holds.
func startHanded(t *testing.T, text string, handed []*os.File) *testDaemon {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	d := &testDaemon{
		t: t, file: filepath.Join(t.TempDir(), "edged.yaml"), logs: logs,
		signals: make(chan os.Signal, 2), level: zap.NewAtomicLevel(), ended: make(chan error, 1),
	}
	d.write(text)
	cfg, err := loadConfig(d.file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan net.Addr, 1)
	go func() {
		d.ended <- runDaemon(ctx, runOptions{
			config: cfg, load: func() (*config, error) { return loadConfig(d.file) }, log: zap.New(core),
			level: d.level, drain: time.Second, signals: d.signals, ready: func(a net.Addr) { ready <- a },
			handed: takeHanded(handed, zap.New(core)),
		})
	}()
	select {
	case a := <-ready:
		d.apiClient = dialAdmin(adminConfig{Listen: a.String(), Token: cfg.Admin.Token})
	case err := <-d.ended:
		t.Fatalf("the daemon ended: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := d.wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	return d
}

// wait returns how the daemon ended.
func (d *testDaemon) wait() error {
	select {
	case err := <-d.ended:
		d.ended <- err // for who asks again
		return err
	case <-time.After(time.Minute):
		return errors.New("it did not end")
	}
}

func (d *testDaemon) write(text string) {
	d.t.Helper()
	if err := os.WriteFile(d.file, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *testDaemon) status() statusDoc {
	d.t.Helper()
	body, err := d.get(context.Background(), "/api/v1/status")
	if err != nil {
		d.t.Fatal(err)
	}
	var doc statusDoc
	if err := json.Unmarshal(body, &doc); err != nil {
		d.t.Fatal(err)
	}
	return doc
}

// until polls a condition for as long as a busy machine may need.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// reload sends SIGHUP and waits until the daemon has said what became of it.
func (d *testDaemon) reload() {
	d.t.Helper()
	said := func() int {
		return d.logs.FilterMessage("configuration reloaded").Len() + d.logs.FilterMessageSnippet("reload refused").Len()
	}
	before := said()
	d.signals <- syscall.SIGHUP
	until(d.t, "a reload", func() bool { return said() > before })
}

func TestDaemonServes(t *testing.T) {
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly))
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ready", "/metrics": "edged_build_info{", "/api/v1/calls": `"calls": []`,
		"/api/v1/pinholes": `"pinholes": []`, "/api/v1/registrations": `"registrations": []`, "/debug/pprof/": "goroutine",
	} {
		body, err := d.get(context.Background(), path)
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %v, %.200s", path, err, body)
		}
	}
	st := d.status()
	sip, _ := st.Services["sip"].(map[string]any)
	if list, _ := sip["listeners"].([]any); st.State != "ready" || len(list) != 2 {
		t.Errorf("status: %+v", st)
	}
}

func TestReloadTakesLiveKeysAndNamesTheOthers(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, sipAt(dir, sipOnly))
	d.write(sipAt(dir, "sip: {listen: ['udp://inside:5060'], dscp: 8, domains: {example.org: {network: inside, server: 'udp:192.0.2.1'}}}\n"+
		"log: {level: debug}\nlimits: {per_source: {connections: 3}}\npinholes: {idle: 90s}\n"))
	d.reload()
	want := []string{"pinholes.idle", "sip.dscp", "sip.listen"}
	if got := d.status().Config; got.Error != "" || !slices.Equal(got.RestartRequired, want) {
		t.Errorf("status %+v, want restart for %v", got, want)
	}
	for _, key := range want {
		if d.logs.FilterMessage("restart required: "+key).Len() != 1 {
			t.Errorf("the log does not say that %s needs a restart", key)
		}
	}
	if d.level.Level() != zap.DebugLevel {
		t.Errorf("log level %v", d.level.Level())
	}
	d.write(sipAt(dir, sipOnly))
	d.reload()
	if got := d.status().Config.RestartRequired; len(got) != 0 {
		t.Errorf("the old file is back, but a restart is needed for %v", got)
	}
}

func TestReloadRefusesABrokenFileWhole(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, sipAt(dir, sipOnly))
	metric := func(line string) {
		t.Helper()
		body, err := d.get(context.Background(), "/metrics")
		if err != nil || !strings.Contains(string(body), line+"\n") {
			t.Errorf("no line %q (%v)", line, err)
		}
	}
	metric("edged_config_last_reload_successful 1")
	d.write(sipAt(dir, sipOnly+"log: {level: debug}\nsipp: {}\n"))
	d.reload()
	if got := d.status().Config.Error; !strings.Contains(got, "edged.yaml:6: sipp: unknown key") {
		t.Errorf("error %q", got)
	}
	if d.level.Level() == zap.DebugLevel {
		t.Error("a part of the refused file was taken over")
	}
	metric("edged_config_last_reload_successful 0")
	d.write(sipAt(dir, sipOnly))
	d.reload()
	metric("edged_config_last_reload_successful 1")
}

func TestRenewedCertificateIsServedAfterReload(t *testing.T) {
	dir := t.TempDir()
	first, second := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(60*24*time.Hour).Truncate(time.Second)
	writeTestCertificate(t, dir, "edge", "edge.example.org", first)
	text := sipAt(dir, "sip: {listen: ['tls://inside:5061']}\ntls: {certificates: [{cert: "+dir+"/edge.pem, key: "+dir+"/edge.key}]}\n")
	d := startDaemon(t, text)
	serves := func(until time.Time) {
		t.Helper()
		sip, _ := d.status().Services["sip"].(map[string]any)
		list, _ := sip["listeners"].([]any)
		addr := strings.TrimPrefix(fmt.Sprint(list...), "tls://")
		dialer := tls.Dialer{Config: &tls.Config{ServerName: "edge.example.org", InsecureSkipVerify: true}}
		conn, err := dialer.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter; !got.Equal(until) {
			t.Errorf("%s serves a certificate until %v, want %v", addr, got, until)
		}
	}
	serves(first)
	if d.logs.FilterMessageSnippet("certificate ends soon").Len() != 1 {
		t.Error("the log does not say that the certificate ends soon")
	}
	writeTestCertificate(t, dir, "edge", "edge.example.org", second)
	serves(first) // nobody said reload yet
	d.reload()
	serves(second)
}

func TestTermEndsTheDaemon(t *testing.T) {
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly))
	d.signals <- syscall.SIGTERM
	if err := d.wait(); err != nil {
		t.Error(err)
	}
	if _, err := d.get(context.Background(), "/healthz"); err == nil {
		t.Error("the admin listener is still there")
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	text := sipAt(t.TempDir(), sipOnly)
	startDaemon(t, text)
	cfg, err := parseConfig("t.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	err = runDaemon(context.Background(), runOptions{config: cfg, log: zap.NewNop(), level: zap.NewAtomicLevel()})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "sip.listen[0]") {
		t.Errorf("error %v", err)
	}
}

func TestDrain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		calls  time.Duration // when the last call ends
		signal time.Duration // when a second SIGTERM comes
		want   time.Duration
	}{
		{"no calls", 0, time.Hour, 0},
		{"calls end", 3 * time.Second, time.Hour, 3 * time.Second},
		{"calls stay", time.Hour, time.Hour, 10 * time.Second},
		{"second signal", time.Hour, 2 * time.Second, 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, signals, drained := time.Now(), make(chan os.Signal, 1), false
				time.AfterFunc(tc.signal, func() { signals <- syscall.SIGTERM })
				s := &service{drain: func() { drained = true }, busy: func() int {
					if time.Since(start) >= tc.calls {
						return 0
					}
					return 1
				}}
				ph := &phase{}
				ph.set("")
				drainAll(t.Context(), runOptions{log: zap.NewNop(), drain: 10 * time.Second, signals: signals}, ph, []*service{s})
				if took := time.Since(start); took < tc.want || took > tc.want+100*time.Millisecond {
					t.Errorf("took %v, want %v", took, tc.want)
				}
				if !drained || ph.notReady() != "draining" {
					t.Errorf("drained %v, phase %q", drained, ph.notReady())
				}
			})
		})
	}
}

func TestServiceThatEndsEndsTheDaemon(t *testing.T) {
	boom := errors.New("boom")
	services := []*service{
		{name: "good", serve: func(ctx context.Context) error { <-ctx.Done(); return nil }},
		{name: "bad", serve: func(context.Context) error { return boom }},
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := serveAll(ctx, services)
	err := supervise(ctx, runOptions{log: zap.NewNop()}, nil, &phase{}, services, ended, nil)
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "bad: ") {
		t.Errorf("error %v", err)
	}
	cancel()
}

// TestSystemdIsToldOfTheStates reads what the daemon sends to the notify socket.
func TestSystemdIsToldOfTheStates(t *testing.T) {
	sock, err := net.ListenPacket("unixgram", filepath.Join(t.TempDir(), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	t.Setenv("NOTIFY_SOCKET", sock.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "300000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	next := func(want ...string) {
		t.Helper()
		buf := make([]byte, 4096)
		for {
			sock.SetReadDeadline(time.Now().Add(time.Minute))
			n, _, err := sock.ReadFrom(buf)
			if err != nil {
				t.Fatalf("%v is not told: %v", want, err)
			}
			got := string(buf[:n])
			if got == "WATCHDOG=1" && want[0] != got || strings.HasPrefix(got, "FDSTORE=1\n") {
				continue
			}
			for _, w := range want {
				if !strings.Contains(got, w) {
					t.Fatalf("got %q, want %q", got, w)
				}
			}
			return
		}
	}
	dir := t.TempDir()
	d := startDaemon(t, sipAt(dir, sipOnly))
	next("READY=1")
	next("WATCHDOG=1")
	d.reload()
	next("RELOADING=1", "MONOTONIC_USEC=")
	next("READY=1")
	d.signals <- syscall.SIGTERM
	next("STOPPING=1", "EXTEND_TIMEOUT_USEC=")
}

// TestDrainTellsProgress: the log and systemd are told how many calls are left, at most once a second.
func TestDrainTellsProgress(t *testing.T) {
	sock, err := net.ListenPacket("unixgram", filepath.Join(t.TempDir(), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	t.Setenv("NOTIFY_SOCKET", sock.LocalAddr().String())
	core, logs := observer.New(zapcore.InfoLevel)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := &service{busy: func() int { return max(0, 3-int(time.Since(start)/(400*time.Millisecond))) }}
		ph := &phase{}
		drainAll(t.Context(), runOptions{log: zap.New(core), drain: 10 * time.Second}, ph, []*service{s})
		if until, ok := ph.draining(); !ok || !until.Equal(start.Add(10*time.Second)) {
			t.Errorf("draining %v until %v", ok, until)
		}
	})
	var said []string
	buf := make([]byte, 4096)
	for len(said) < 3 {
		sock.SetReadDeadline(time.Now().Add(time.Minute))
		n, _, err := sock.ReadFrom(buf)
		if err != nil {
			t.Fatalf("said %q: %v", said, err)
		}
		said = append(said, string(buf[:n]))
	}
	if said[1] != "STATUS=draining, calls left: 3" || said[2] != "STATUS=draining, calls left: 1" {
		t.Errorf("systemd is told %q", said)
	}
	if logs.FilterMessage("draining goes on").FilterField(zap.Int("calls", 1)).Len() != 1 || logs.FilterMessage("drained").Len() != 1 {
		t.Errorf("logged: %v", logs.All())
	}
}

func TestEventsAreStreamed(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, sipAt(dir, sipOnly))
	d.reload() // event 1, before anybody listens
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.base+"/api/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Scan() // the greeting: from here on we are subscribed
	d.write("broken")
	d.reload()
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e event
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			if m, _ := e.Data.(map[string]any); e.ID != 2 || e.Type != "reload" || m["ok"] != false {
				t.Errorf("event %+v", e)
			}
			return
		}
	}
	t.Fatal("the stream ended")
}

// otherMetrics returns the names of the metrics of H.323 and of file transfers, which this daemon does not serve.
func otherMetrics(t *testing.T) (names []string) {
	t.Helper()
	server, err := h323.New(h323.DefaultConfig(), h323.Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	trivial, err := rfc1350.New(rfc1350.DefaultConfig(), rfc1350.Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	files, err := tftp.New(tftp.DefaultConfig(), tftp.Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	audio, err := audiocall.New(audiocall.DefaultConfig(), audiocall.Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	relay, err := turn.New(turn.DefaultConfig(), turn.Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ocs, err := msturn.New(msturn.DefaultConfig(), msturn.Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := forwardproxy.New(forwardproxy.DefaultConfig(), forwardproxy.Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	rules, err := firewall.NewKeeper(firewall.Rules{Config: firewall.DefaultConfig()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	reg.MustRegister(rules.Collector())
	tunnel := tunnelrelay.New(tunnelrelay.Rules{}, tunnelrelay.Deps{}, zap.NewNop())
	device := agent.New(agent.Config{}, agent.Deps{Uplink: uplink.New(nil, uplink.Config{}, zap.NewNop())}, zap.NewNop())
	reg.MustRegister(tunnel.Collector(), newCarrierMetrics(&carrier.Server{}), device.Collector())
	reg.MustRegister(server.Collector(), trivial.Collector(), files.Collector(), audio.Collector(), relay.Collector(), ocs.Collector(), proxy.Collector(), link.Collector([]*link.Link{link.New(link.Config{Name: "x"}, nil, zap.NewNop())}))
	mail, err := mailbox.Open(t.TempDir(), mailbox.Options{Config: mailbox.Default()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mail.Close() })
	reg.MustRegister(&mailService{store: mail})
	reg.MustRegister(new(hepExport).metrics()...)
	reg.MustRegister(otelMetrics(new(otel.Exporter))...)
	reg.MustRegister((&cdrSyslog{Sender: syslog.NewSender(syslog.Target{}, nil, zap.NewNop())}).metrics()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		names = append(names, f.GetName())
	}
	return names
}

// TestMetricsAreDocumented: docs/operations.md names every metric of the daemon, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly))
	body, err := d.get(context.Background(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{ // these come with the first of their kind
		"edged_sip_requests_total": true, "edged_sip_responses_total": true, "edged_sip_failures_total": true,
		"edged_sip_drops_total": true, "edged_tls_certificate_not_after_timestamp_seconds": true, "edged_media_refused_total": true,
		"edged_media_packets_total": true, "edged_media_bytes_total": true, "edged_media_ports_in_use": true, "edged_media_ports_limit": true,
		"edged_forward_connections": true, "edged_forward_connections_total": true, "edged_forward_bytes_total": true,
		"edged_forward_refused_total": true, "edged_forward_ended_total": true,
		"edged_mux_connections_total": true, "edged_mux_rejected_total": true, "edged_mux_handshake_duration_seconds": true, "edged_blocked_total": true,
		"edged_h323_messages_total": true, "edged_h323_refused_calls_total": true, "edged_h323_dropped_messages_total": true,
		"edged_h323_ras_requests_total": true, "edged_audiocall_drops_total": true,
		"edged_tftp_denials_total": true, "edged_tftp_ended_total": true, "edged_tftp_refused_connections_total": true,
		"edged_msturn_drops_total": true, "edged_msturn_requests_total": true,
		"edged_turn_allocations": true, "edged_turn_allocations_total": true, "edged_turn_requests_total": true, "edged_turn_dropped_total": true,
		"edged_turn_permissions_denied_total": true, "edged_turn_quota_rejections_total": true, "edged_turn_auth_failures_total": true,
		"edged_tunnel_attached_total": true, "edged_tunnel_resumes_total": true, "edged_tunnel_refused_total": true,
		"edged_tunnel_streams_refused_total": true, "edged_tunnel_streams_total": true, "edged_mailbox_refused_total": true,
		"edged_agent_served_total": true, "edged_agent_refused_total": true, "edged_agent_dials_total": true,
		"edged_agent_datagrams_dropped_total": true, "edged_agent_probes_total": true,
		"edged_link_dropped_packets_total": true, "edged_proxy_requests_total": true, "edged_proxy_refused_total": true, "edged_proxy_dropped_datagrams_total": true,
		"edged_firewall_pinholes": true, "edged_firewall_packets_total": true, "edged_firewall_bytes_total": true,
		"edged_tftp_trivial_transfers_total": true, "edged_tftp_trivial_drops_total": true,
		"edged_groove_connections": true, "edged_groove_connections_total": true, "edged_groove_refused_total": true, "edged_groove_ended_total": true,
	}
	for _, name := range otherMetrics(t) {
		shown[name] = true
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (edged_\w+) `).FindAllStringSubmatch(string(body), -1) {
		shown[m[1]] = true
	}
	named := map[string]bool{}
	for _, name := range regexp.MustCompile(`\bedged_\w+[a-z]\b`).FindAllString(string(page), -1) {
		named[name] = true
		if !shown[name] {
			t.Errorf("docs/operations.md names %s, which is no metric", name)
		}
	}
	for name := range shown {
		if !named[name] {
			t.Errorf("docs/operations.md does not name %s", name)
		}
	}
}

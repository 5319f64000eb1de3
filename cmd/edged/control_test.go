package main

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func (d *testDaemon) edged(args ...string) (code int, stdout, stderr string) {
	d.t.Helper()
	var out, errs bytes.Buffer
	code = execute(append(args, "--config", d.file, "--admin", strings.TrimPrefix(d.base, "http://")), &out, &errs)
	return code, out.String(), errs.String()
}

// TestReloadAnswers: edged reload prints what changed, what needs a restart, and all faults of a broken file.
func TestReloadAnswers(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, sipAt(dir, sipOnly))
	d.write(sipAt(dir, sipOnly+"log: {level: debug}\npinholes: {idle: 90s}\n"))
	if code, out, errs := d.edged("reload"); code != 0 || out != "changed: log.level\nrestart required: pinholes.idle\n" {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	d.write("nonsense: 1\nsip: {listen: ['udp://nowhere:5060']}\n")
	code, out, errs := d.edged("reload")
	if code != exitFailed || out != "" || !strings.Contains(errs, ":1: nonsense") || !strings.Contains(errs, ":2: sip.listen[0]") {
		t.Errorf("a broken file: exit code %d:\n%s%s", code, out, errs)
	}
	if st := d.status().Config; st.Error == "" || !slices.Equal(st.RestartRequired, []string{"pinholes.idle"}) {
		t.Errorf("status: %+v", st)
	}
	if code, _, _ := d.edged("reload", "--json"); code != exitFailed {
		t.Errorf("with --json: exit code %d", code)
	}
}

// TestControlIsNotForPages: without the header that no page of another site can send, nothing happens.
func TestControlIsNotForPages(t *testing.T) {
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly))
	for _, path := range []string{"/api/v1/reload", "/api/v1/drain"} {
		resp, err := http.Post(d.base+path, "application/x-www-form-urlencoded", strings.NewReader("limit=1s"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if d.status().State != "ready" || d.logs.FilterMessage("configuration reloaded").Len() != 0 {
		t.Error("a page was obeyed")
	}
}

func TestDrainEndsTheDaemon(t *testing.T) {
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly))
	if code, out, errs := d.edged("drain", "--limit", "20s"); code != 0 || out != "draining, 0 calls\nended\n" {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	if err := d.wait(); err != nil {
		t.Error(err)
	}
}

// TestCertificatesAreWatched replaces the files of a certificate, first by broken ones.
func TestCertificatesAreWatched(t *testing.T) {
	dir := t.TempDir()
	writeTestCertificate(t, dir, "edge", "old.example.org", time.Now().Add(time.Hour))
	cfg := defaultConfig()
	cfg.dir, cfg.TLS.Certificates = dir, []certConfig{{Cert: "edge.pem", Key: "edge.key"}}
	certs, err := loadCertificates(cfg.TLS, dir)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.InfoLevel)
	store := newTLSStore(certs, nil, nil)
	r := &reloader{tls: store, log: zap.New(core), events: newEventBroker(), running: &cfg}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	taken := certFiles(&cfg)
	go func() { ended <- r.watchCertificates(ctx, taken, 20*time.Millisecond) }()
	name := func() string { return certificateName(store.current.Load().own[0].Leaf) }

	if err := os.WriteFile(filepath.Join(dir, "edge.key"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "the broken key is seen", func() bool { return logs.FilterMessageSnippet("refused").Len() == 1 })
	if name() != "old.example.org" {
		t.Errorf("%s is in use", name())
	}
	writeTestCertificate(t, dir, "edge", "new.example.org", time.Now().Add(time.Hour))
	until(t, "the new certificate is in use", func() bool { return name() == "new.example.org" })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestReloadIsWholeOrNot: if a service cannot take over a file that was good when it was checked, the others keep the old one.
func TestReloadIsWholeOrNot(t *testing.T) {
	running, next := defaultConfig(), defaultConfig()
	running.Log.Level, next.Log.Level = "info", "debug"
	var has [2]string
	takes := func(i int) func(*config) error {
		return func(c *config) error { has[i] = c.Log.Level; return nil }
	}
	r := &reloader{
		load: func() (*config, error) { return &next, nil }, running: &running, log: zap.NewNop(), events: newEventBroker(),
		metrics: newReloadMetrics(prometheus.NewRegistry()), tls: newTLSStore(&certificates{}, nil, nil), level: zap.NewAtomicLevel(),
		services: []*service{
			{name: "first", reload: takes(0)}, {name: "has none"}, {name: "second", reload: takes(1)},
			{name: "third", reload: func(c *config) error { return os.ErrNotExist }},
		},
	}
	if out := r.reload(); out.OK || !strings.Contains(out.Error, "third") {
		t.Errorf("outcome %+v", out)
	}
	if has != [2]string{"info", "info"} || r.config() != &running || r.level.Level() != zapcore.InfoLevel {
		t.Errorf("the others have %q, level %v", has, r.level)
	}
	r.services = r.services[:3]
	if out := r.reload(); !out.OK || has != [2]string{"debug", "debug"} {
		t.Errorf("outcome %+v, the services have %q", out, has)
	}
}

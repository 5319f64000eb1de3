package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/media/fastpath"
)

// TestDoctorSeesCertificates plants faults in certificates, and wants each found with its remedy.
func TestDoctorSeesCertificates(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name   string
		until  time.Time
		at     time.Time
		level  string
		remedy string
	}{
		{"good", now.Add(90 * 24 * time.Hour), now, string(fastpath.OK), ""},
		{"ends soon", now.Add(5 * 24 * time.Hour), now, string(fastpath.Warn), "renew"},
		{"has ended", now.Add(time.Hour), now.Add(2 * time.Hour), string(fastpath.Fail), "renew"},
		{"clock is wrong", now.Add(time.Hour), now.AddDate(-20, 0, 0), string(fastpath.Fail), "timedatectl"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := defaultConfig()
			cfg.dir, cfg.TLS.Certificates = t.TempDir(), []certConfig{{Cert: "edge.pem", Key: "edge.key"}}
			writeTestCertificate(t, cfg.dir, "edge", "edge.example.org", tc.until)
			list := examineCertificates(&cfg, tc.at)
			if len(list) != 1 || string(list[0].Level) != tc.level || !strings.Contains(list[0].Remedy, tc.remedy) {
				t.Errorf("%+v", list)
			}
			if err := os.WriteFile(filepath.Join(cfg.dir, "edge.key"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if list = examineCertificates(&cfg, tc.at); len(list) != 1 || list[0].Level != fastpath.Fail || list[0].Remedy == "" {
				t.Errorf("without a key: %+v", list)
			}
		})
	}
}

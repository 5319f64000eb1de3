package main

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// TestLogFlood: what strangers can repeat at will does not fill the disk, and other messages are still seen.
func TestLogFlood(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, "json", zap.NewAtomicLevel()).Named("sip")
	for i := range 100_000 {
		log.Warn("banned", zap.Int("n", i))
	}
	log.Info("ready")
	if n := strings.Count(out.String(), "banned"); n < 10 || n > 2000 {
		t.Errorf("%d of 100000 equal messages were written", n)
	}
	if !strings.Contains(out.String(), "ready") {
		t.Error("another message was lost")
	}
}

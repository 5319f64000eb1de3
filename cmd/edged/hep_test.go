package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHEPReachesTheCollector has a phone knock, and reads what the collector gets of it.
func TestHEPReachesTheCollector(t *testing.T) {
	collector, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Close()
	traceable(t, "c1@example.org", "hep: {to: 'udp://"+collector.LocalAddr().String()+"', id: 7}\n")
	collector.SetReadDeadline(time.Now().Add(time.Minute))
	for _, first := range []string{"INVITE sip:bob", "SIP/2.0 483"} {
		b := make([]byte, 1<<16)
		n, _, err := collector.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		b = b[:n]
		if !bytes.HasPrefix(b, []byte("HEP3")) || !bytes.Contains(b, []byte("\x00\x00\x00\x0c\x00\x0a\x00\x00\x00\x07")) ||
			!bytes.Contains(b, []byte("\x00\x11\x00\x14c1@example.org")) || !bytes.Contains(b, []byte(first)) {
			t.Errorf("the collector got %q", b)
		}
		if bytes.Contains(b, []byte("0123456789abcdef")) {
			t.Error("the digest response is not masked")
		}
	}
}

// TestCaptureOfACall writes a file, and nobody else may read it.
func TestCaptureOfACall(t *testing.T) {
	d, _ := traceable(t, "c1@example.org", "")
	file := filepath.Join(t.TempDir(), "a.pcapng")
	if code, _, errs := d.edged("capture", "c1@example.org", "-o", file); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if !bytes.HasPrefix(b, []byte("\x0a\x0d\x0d\x0a")) || bytes.Count(b, []byte("Call-ID: c1@example.org")) != 2 ||
		!strings.Contains(string(b), "received, network inside, udp") || bytes.Contains(b, []byte("0123456789abcdef")) {
		t.Errorf("the file: %q", b)
	}
	if code, _, errs := d.edged("capture", "unknown", "-o", file); code != exitFailed || !strings.Contains(errs, "404") {
		t.Errorf("an unknown call: exit code %d: %s", code, errs)
	}
}

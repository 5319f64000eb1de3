package content

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rc4"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

func newChecker(t testing.TB, change func(*Config)) *Checker {
	t.Helper()
	cfg := DefaultConfig()
	change(&cfg)
	c, err := New(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func begin(t testing.TB, c *Checker, f File) *Check {
	t.Helper()
	k, err := c.Begin(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// reason returns why something was denied, "" for not at all.
func reason(t testing.TB, err error) string {
	t.Helper()
	var d *Denied
	if err != nil && !errors.As(err, &d) {
		t.Fatalf("%v is no *Denied", err)
	}
	if d == nil {
		return ""
	}
	return d.Reason + " " + d.Name
}

// feed gives a file to a check in pieces, and asks for the verdict.
func feed(k *Check, wire []byte, piece int) error {
	for len(wire) > 0 {
		n := min(piece, len(wire))
		if _, err := k.Write(wire[:n]); err != nil {
			return err
		}
		wire = wire[n:]
	}
	return k.Verdict()
}

// encrypt does what the sending client does.
func encrypt(f File, plain []byte) (wire []byte, mac string) {
	key := sha1.Sum(f.EncryptionKey)
	c, _ := rc4.NewCipher(key[:16])
	wire = make([]byte, len(plain))
	c.XORKeyStream(wire, plain)
	key = sha1.Sum(f.HashKey)
	h := hmac.New(sha1.New, key[:16])
	h.Write(plain)
	return wire, base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func testFile(size int) File {
	return File{
		Name: "a file.txt", Size: int64(size), EncryptionKey: bytes.Repeat([]byte{7}, 24), HashKey: bytes.Repeat([]byte{9}, 24),
	}
}

// TestKinds: a file is known by what it begins with, encrypted and cut as it may be.
func TestKinds(t *testing.T) {
	c := newChecker(t, func(c *Config) { c.Types = []string{"executable", "zip", "tar"} })
	for _, tt := range []struct{ head, want string }{
		{"MZ\x90\x00", "type exe"},
		{"MZ" + strings.Repeat("\x00", 2000), "type exe"},
		{"\x7fELF\x02\x01\x01", "type elf"},
		{"#!/bin/sh\n", "type script"},
		{"\r\n @ECHO off\r\n", "type script"},
		{"\xef\xbb\xbf<ScRiPt>", "type script"},
		{"\xff\xfe@\x00e\x00c\x00h\x00o\x00 \x00", "type script"},
		{"Windows Registry Editor Version 5.00", "type reg"},
		{"L\x00\x00\x00\x01\x14\x02\x00\x00", "type lnk"},
		{"PK\x03\x04", "type zip"},
		{strings.Repeat("x", 257) + "ustar\x00", "type tar"},
		{strings.Repeat("x", 257) + "usta", ""},
		{"Rar!\x1a\x07\x00", ""},
		{"%PDF-1.4", ""},
		{"M", ""},
		{"", ""},
		{"hello, MZ", ""},
	} {
		for _, piece := range []int{1, 100, 4096} {
			f := testFile(len(tt.head))
			wire, mac := encrypt(f, []byte(tt.head))
			k := begin(t, c, f)
			if got := reason(t, feed(k, wire, piece)); got != tt.want {
				t.Errorf("%q: %q, want %q", tt.head, got, tt.want)
			} else if got == "" && k.MAC(mac) != nil {
				t.Errorf("%q: its MAC does not fit", tt.head)
			}
		}
	}
}

// TestDeniedEarly: a large file of a denied kind is known before its end.
func TestDeniedEarly(t *testing.T) {
	c := newChecker(t, func(c *Config) { c.Types = []string{"exe"} })
	f := testFile(1 << 20)
	wire, _ := encrypt(f, append([]byte("MZ"), make([]byte, 1022)...))
	k := begin(t, c, f)
	if _, err := k.Write(wire[:511]); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write(wire[511:512]); reason(t, err) != "type exe" {
		t.Errorf("%v", err)
	}
}

func TestMAC(t *testing.T) {
	c := newChecker(t, func(c *Config) { c.Verify = true })
	f := testFile(5)
	wire, mac := encrypt(f, []byte("hello"))
	other := f
	other.EncryptionKey = f.HashKey
	for _, tt := range []struct {
		name, mac string
		file      File
		ok        bool
	}{
		{"right", mac, f, true},
		{"other octets", mac, other, false},
		{"other MAC", base64.StdEncoding.EncodeToString(make([]byte, 20)), f, false},
		{"no base64", "!", f, false},
		{"empty", "", f, false},
		{"no keys", "", File{Size: 5}, true},
	} {
		k := begin(t, c, tt.file)
		if err := feed(k, wire, 2); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err := k.MAC(tt.mac); (err == nil) != tt.ok || err != nil && reason(t, err) != "mac does not fit the file" {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil || DefaultConfig().Enabled() {
		t.Error("the default", err)
	}
	for _, s := range []string{"clamd://192.0.2.9", "clamd://[2001:db8::9]:3310", "clamd:///run/clamav/clamd.ctl", "icap://192.0.2.9/avscan", "icap://scan.example.org:1344/a/b"} {
		c := DefaultConfig()
		c.Scanner = s
		if err := c.Validate(); err != nil || !c.Enabled() {
			t.Errorf("%s: %v", s, err)
		}
	}
	for key, change := range map[string]func(*Config){
		"types[1]": func(c *Config) { c.Types = []string{"exe", "virus"} },
		"scanner":  func(c *Config) { c.Scanner = "http://192.0.2.9/x" },
		"on_error": func(c *Config) { c.OnError = "" },
		"timeout":  func(c *Config) { c.Timeout = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		var f pinhole.Fault
		if err := c.Validate(); !errors.As(err, &f) || f.Key != key {
			t.Errorf("%s: %v", key, err)
		}
		if _, err := New(c, zap.NewNop()); err == nil {
			t.Errorf("%s: taken", key)
		}
	}
	for _, s := range []string{"clamd:", "clamd:///", "icap://192.0.2.9", "icap://192.0.2.9/", "icap:///x", "::", "icap://%zz/x"} {
		if _, err := parseScanner(s); err == nil {
			t.Errorf("%q taken", s)
		}
	}
}

// TestNoScanner: what becomes of files without one is for the configuration to say.
func TestNoScanner(t *testing.T) {
	for _, scanner := range []string{"clamd:///nowhere/clamd.ctl", "clamd://127.0.0.1:1", "icap://127.0.0.1:1/x"} {
		deny := newChecker(t, func(c *Config) { c.Scanner = scanner })
		if _, err := deny.Begin(context.Background(), testFile(5)); !strings.HasPrefix(reason(t, err), "scanner ") {
			t.Errorf("%s: %v", scanner, err)
		}
		pass := newChecker(t, func(c *Config) { c.Scanner, c.OnError = scanner, OnErrorPass })
		if err := feed(begin(t, pass, testFile(5)), []byte("hello"), 5); err != nil {
			t.Errorf("%s: %v", scanner, err)
		}
	}
}

package sdp

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// TestCryptos: which lines can be used, and what is read from them.
func TestCryptos(t *testing.T) {
	for value, want := range map[string]string{
		"1 SUITE inline:AQID":                      "1 SUITE 010203 []",
		"007 SUITE inline:AQIDBA==":                "7 SUITE 01020304 []",
		"7  SUITE\tinline:AQIDBA":                  "7 SUITE 01020304 []",
		"1 SUITE inline:AQID|2^20":                 "1 SUITE 010203 []",
		"1 SUITE inline:AQID|1:1":                  "1 SUITE 010203 [1]",
		"1 SUITE inline:AQID|2^31|258:4":           "1 SUITE 010203 [0 0 1 2]",
		"1 SUITE inline:AQID WSH=64 -X=1":          "1 SUITE 010203 []",
		"1 SUITE inline:AQID UNENCRYPTED_SRTCP":    "",
		"1 SUITE inline:AQID KDR=1":                "",
		"1 SUITE inline:AQID|2^20|1:4;inline:AQID": "",
		"1 SUITE inline:AQID|2^20|256:1":           "",
		"1 SUITE inline:AQID|2^20|1:9":             "",
		"1 SUITE inline:AQID|2^20|1:0":             "",
		"1 SUITE inline:AQID|2^20|1:1|x":           "",
		"1 SUITE inline:A*":                        "",
		"1 SUITE uri:http://example.org/":          "",
		"-1 SUITE inline:AQID":                     "",
		"4294967296 SUITE inline:AQID":             "",
		"1 SUITE":                                  "",
		"":                                         "",
	} {
		var s Session
		if err := s.Parse([]byte("m=video 1 RTP/SAVP 31\na=crypto:9 OTHER inline:AQID\nm=audio 1 RTP/SAVP 0\na=crypto:" + value + "\n")); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range s.Cryptos(1) {
			got += fmt.Sprintf("%d %s %x %v", c.Tag, c.Suite, c.Key, c.MKI)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
		if n := s.Media(1).Cryptos; n != 1 {
			t.Errorf("%q: %d lines", value, n)
		}
	}
}

// TestManyCryptos: no more lines than anybody has are read.
func TestManyCryptos(t *testing.T) {
	var s Session
	if err := s.Parse([]byte("m=audio 1 RTP/SAVP 0\n" + strings.Repeat("a=crypto:1 SUITE inline:AQID\n", 100))); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Cryptos(0)); n != maxCryptos {
		t.Errorf("%d lines", n)
	}
}

// FuzzCrypto checks that a line that can be used is written as it was read.
func FuzzCrypto(f *testing.F) {
	for _, v := range []string{"1 SUITE inline:AQID", "1 SUITE inline:AQID|2^31|1:1 WSH=3", "4294967295 X inline:", "1 A inline:=|:|", ""} {
		f.Add([]byte(v))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		c, ok := parseCrypto(value)
		if !ok {
			return
		}
		text := c.AppendCrypto(nil)
		again, ok := parseCrypto(bytes.TrimPrefix(text, []byte("crypto:")))
		if !ok || again.Tag != c.Tag || !bytes.Equal(again.Suite, c.Suite) || !bytes.Equal(again.Key, c.Key) || len(c.MKI) > 8 {
			t.Fatalf("%q became %q, which reads %+v", value, text, again)
		}
	})
}

// TestCertificate: the m-line's own fingerprint counts before the session's, SHA-256 before others.
func TestCertificate(t *testing.T) {
	for _, c := range []struct{ session, media, want string }{
		{"sha-256 01:ab:FF", "", "sha-256 01abff"},
		{"sha-256 01:02", "SHA-384 03:04", "sha-384 0304"},
		{"", "sha-1 01:02\na=fingerprint:sha-512 05:06\na=fingerprint:sha-256 03:04", "sha-256 0304"},
		{"sha-256 01:02", "sha-256 0304", "sha-256 0102"},
		{"", "sha-256", ""},
		{"", "sha-256 ", ""},
		{"", "sha-256 1:02", ""},
		{"", "sha-256 01:02:", ""},
		{"", "sha-256 01:0g", ""},
		{"", "sha-256 " + strings.Repeat("00:", 64) + "00", ""},
	} {
		var s Session
		raw := "v=0\n"
		if c.session != "" {
			raw += "a=fingerprint:" + c.session + "\n"
		}
		raw += "m=audio 1 UDP/TLS/RTP/SAVP 0\n"
		if c.media != "" {
			raw += "a=fingerprint:" + c.media + "\n"
		}
		if err := s.Parse([]byte(raw + "m=video 1 UDP/TLS/RTP/SAVP 31\na=fingerprint:sha-256 77\n")); err != nil {
			t.Fatal(err)
		}
		got := ""
		if hash, value, ok := s.Certificate(0); ok {
			got = fmt.Sprintf("%s %x", hash, value)
		}
		if got != c.want {
			t.Errorf("%q: %q, want %q", raw, got, c.want)
		}
	}
}

// FuzzFingerprint checks that what is read is what was written.
func FuzzFingerprint(f *testing.F) {
	for _, v := range []string{"sha-256 01:ab:FF", "SHA-1 00", "x :", "sha-256 0102", ""} {
		f.Add([]byte(v))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		hash, value, ok := parseFingerprint(b)
		if !ok {
			return
		}
		text := fmt.Sprintf("%s %s", hash, strings.ReplaceAll(fmt.Sprintf("% x", value), " ", ":"))
		again, v, ok := parseFingerprint([]byte(text))
		if !ok || again != hash || !bytes.Equal(v, value) || len(value) > 64 {
			t.Fatalf("%q became %q", b, text)
		}
	})
}

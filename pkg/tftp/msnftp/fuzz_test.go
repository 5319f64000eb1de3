package msnftp

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// corpus reads a file of the corpora, or skips.
func corpus(t testing.TB, name string) []byte {
	t.Helper()
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = "../../../../shared/corpora"
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Skipf("SKIP: no corpus %s (set EDGED_CORPORA): %v", name, err)
	}
	return b
}

// FuzzLines: lines put together are what came, however it was cut, and none is longer than allowed.
func FuzzLines(f *testing.F) {
	for _, s := range []string{
		"VER MSN_SECURE_FTP\r\nUSR bob@example.com 863489474\r\nTFR\r\nBYE 16777989\r\n", "FIL 70000\n",
		"MAC fVP3xwW0penYcb0y6z89z0f2x8k=\x00\r\n", "\n\r\n \n", "VER msnftp msn_secure_ftp\r\n", "FIL +5\n", "FIL 99999999999999999999\n",
	} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		if cut < 1 {
			cut = 1
		}
		var pending, out []byte
		for i := 0; i < len(b); i += cut {
			pending = append(pending, b[i:min(len(b), i+cut)]...)
			for {
				l, rest, ok, err := nextLine(pending)
				if err != nil {
					return
				}
				if !ok {
					if len(pending) >= maxLine {
						t.Fatalf("%d octets wait for the end of a line", len(pending))
					}
					break
				}
				w := l.words()
				if len(l) > maxLine || bytes.IndexByte(l, '\n') != len(l)-1 || len(w) == 0 {
					t.Fatalf("line %q", l)
				}
				if n, err := fileSize(w); err == nil && (n < 0 || mostOctets(n) < leastOctets(n)-headerSize || mostOctets(n) < n) {
					t.Fatalf("size %d", n)
				}
				if d, err := dialect(w, false); err == nil && d != secure {
					t.Fatalf("dialect %q", d)
				}
				out, pending = append(out, l...), rest
			}
		}
		if !bytes.Equal(append(out, pending...), b) {
			t.Fatalf("%q became %q and %q", b, out, pending)
		}
	})
}

// FuzzBlocks: pieces put together are what came, and its data do not depend on how it was cut.
func FuzzBlocks(f *testing.F) {
	f.Add([]byte("\x00\x0b\x00hello world\x01\x00\x00"), 1)
	f.Add([]byte("\x00\x00\x00\x00\x01\x00x"), 2)
	_, wire := file(5000, 2045)
	f.Add(wire, 1000)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		whole, stops := split(t, b, len(b)+1)
		cutting, alsoStops := split(t, b, max(1, cut))
		if !bytes.Equal(whole, cutting) || stops != alsoStops {
			t.Fatalf("%q and %q, %d and %d", whole, cutting, stops, alsoStops)
		}
	})
}

// split returns the data of a stream that comes cut, and at which octet they stop, -1 if they do not.
func split(t *testing.T, b []byte, cut int) (data []byte, stops int) {
	var d blocks
	for at := 0; at < len(b); {
		p := d.next(b[at:min(len(b), at+cut)])
		if p.size < 1 || p.size > cut || len(p.data) > p.size {
			t.Fatalf("piece %+v", p)
		}
		at += p.size
		if data = append(data, p.data...); p.stop {
			return data, at
		}
	}
	return data, -1
}

// TestDocumentedExample: the transfer that third parties documented.
func TestDocumentedExample(t *testing.T) {
	said := corpus(t, "msn/msnftp-doc-example.server.bin")
	var lines []line
	for range 2 {
		l, rest, ok, err := nextLine(said)
		if !ok || err != nil {
			t.Fatal(err)
		}
		lines, said = append(lines, l), rest
	}
	if d, err := dialect(lines[0].words(), true); err != nil || d != plain {
		t.Error(d, err)
	}
	size, err := fileSize(lines[1].words())
	data, stops := split(t, said, 4)
	if err != nil || size != int64(len(data)) || string(data) != "hello world" || stops != len(said) {
		t.Errorf("%d, %q, %d, %v", size, data, stops, err)
	}
}

package msnftp

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
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

// sinkConn is a connection that keeps what is written, and from which nothing comes.
type sinkConn struct {
	net.Conn
	got bytes.Buffer
}

func (c *sinkConn) Write(b []byte) (int, error)      { return c.got.Write(b) }
func (c *sinkConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *sinkConn) SetReadDeadline(time.Time) error  { return nil }
func (c *sinkConn) SetWriteDeadline(time.Time) error { return nil }
func (c *sinkConn) Close() error                     { return nil }

// FuzzPassage: what the receiver gets is what the sender sent, octet by octet, up to where it is denied, and then it
// ends at the end of a block.
func FuzzPassage(f *testing.F) {
	_, wire := file(6000, 2045)
	f.Add(append(wire, "MAC bWFj\x00\r\n"...), 1000, uint32(6000), false)
	f.Add(wire, 5000, uint32(tailSize+4100), true)
	f.Add([]byte("\x00\x0b\x00hello world\x01\x00\x00MAC x\r\n"), 3, uint32(11), false)
	f.Add([]byte("\x00\x00\x00\x00\x05\x00virus"), 1, uint32(5), true)
	f.Add([]byte("\x01\x00\x00"), 1, uint32(0), false)
	f.Fuzz(func(t *testing.T, sent []byte, cut int, size uint32, deny bool) {
		var r, s sinkConn
		x := &session{Transfer: &Transfer{}, size: int64(size), tell: func(pinhole.Side, int) {}, conns: [2]net.Conn{&r, &s}}
		x.to, x.from = &reader{conn: &r, moved: x.moved}, &reader{conn: &s, side: 1, moved: x.moved}
		var c Check = &testCheck{}
		if deny {
			c = verdictOnly{}
		}
		p := newPassage(x, c)
		cut = 1 + cut&0xffff
		var err error
		for at := 0; at < len(sent) && err == nil; at += cut {
			err = p.feed(sent[at:min(len(sent), at+cut)])
			if len(p.held) > maxHeld+cut || len(p.trailer) > maxLine+cut {
				t.Fatalf("%d and %d octets are held", len(p.held), len(p.trailer))
			}
		}
		got := r.got.Bytes()
		if errors.Is(err, ErrDenied) || errors.Is(err, ErrLimit) {
			if s.got.String() != "BYE "+byeAbort+"\r\n" {
				t.Fatalf("the sender heard %q", s.got.String())
			}
			if p.over {
				return
			}
			passed, ok := bytes.CutSuffix(got, []byte{1, 0, 0})
			if _, stops := split(t, append(bytes.Clone(passed), 1, 0, 0), 1<<20); !ok || !bytes.HasPrefix(sent, passed) || stops != len(got) {
				t.Fatalf("%q of %q", got, sent)
			}
			return
		}
		if err == nil {
			got = append(append(bytes.Clone(got), p.held...), p.trailer...)
		}
		if !bytes.HasPrefix(sent, got) || err == nil && len(got) != len(sent) {
			t.Fatalf("%q of %q, %v", got, sent, err)
		}
	})
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

package content

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tftp/msnftp"
)

// TestCaptures: files that real clients sent are decrypted, and their MACs fit; with other keys they do not.
func TestCaptures(t *testing.T) {
	for name, want := range map[string]int{"ft1.pcap": 1, "ntlm_edge.pcap": 4} {
		streams := tcpStreams(t, corpus(t, "ms-edge/"+name))
		var all []byte
		for _, s := range streams {
			all = append(all, s...)
		}
		seen := 0
		for _, s := range streams {
			m := regexp.MustCompile(`^VER MSN_SECURE_FTP\r\nFIL (\d+)\r\n`).FindSubmatch(s)
			if m == nil {
				continue
			}
			seen++
			size, _ := strconv.Atoi(string(m[1]))
			fits := 0
			for _, f := range invitations(t, all) {
				c := newChecker(t, func(c *Config) { c.Verify, c.Types = true, []string{"executable"} })
				f.Size = int64(size)
				k := begin(t, c, f)
				mac := checkStream(t, k, s[len(m[0]):], size)
				if k.MAC(mac) == nil {
					fits++
				}
			}
			if fits != 1 {
				t.Errorf("%s: %d keys fit a file of %d octets", name, fits, size)
			}
		}
		if seen != want {
			t.Errorf("%s: %d transfers, not %d", name, seen, want)
		}
	}
}

// invitations returns the pairs of keys of all invitations.
func invitations(t *testing.T, all []byte) (files []File) {
	seen := make(map[string]bool)
	for _, m := range regexp.MustCompile(`Encryption-Key: (\S+)\r\nHash-Key: (\S+)\r\n`).FindAllSubmatch(all, -1) {
		if seen[string(m[1])] {
			continue
		}
		seen[string(m[1])] = true
		e, err := base64.StdEncoding.DecodeString(string(m[1]))
		h, err2 := base64.StdEncoding.DecodeString(string(m[2]))
		if err != nil || err2 != nil || len(e) != 24 || len(h) != 24 {
			t.Fatalf("keys %q", m)
		}
		files = append(files, File{EncryptionKey: e, HashKey: h})
	}
	return files
}

// checkStream gives a check the blocks of a stream, and returns the MAC behind them.
func checkStream(t *testing.T, k *Check, s []byte, size int) (mac string) {
	t.Helper()
	for got := 0; got < size; {
		n := int(s[1]) | int(s[2])<<8
		if _, err := k.Write(s[3 : 3+n]); err != nil {
			t.Fatal(err)
		}
		got, s = got+n, s[3+n:]
	}
	if err := k.Verdict(); err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`^MAC (\S+)\x00\r\n$`).FindSubmatch(s)
	if m == nil {
		t.Fatalf("no MAC in %q", s)
	}
	return string(m[1])
}

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

// tcpStreams returns what was sent each way on each connection of a capture (Ethernet, or Linux cooked v2; IPv4).
func tcpStreams(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	le, be := binary.LittleEndian, binary.BigEndian
	link := map[uint32]int{1: 14, 276: 20}[le.Uint32(b[20:])]
	if le.Uint32(b) != 0xa1b2c3d4 || link == 0 {
		t.Fatal("not a capture of that kind")
	}
	out, next := make(map[string][]byte), make(map[string]uint32)
	for b = b[24:]; len(b) >= 16; {
		n := int(le.Uint32(b[8:]))
		ip := b[16+link : 16+n]
		b = b[16+n:]
		if len(ip) < 40 || ip[0]>>4 != 4 || ip[9] != 6 {
			continue
		}
		head := int(ip[0]&15) * 4
		tcp := ip[head:be.Uint16(ip[2:])]
		way, seq := string(ip[12:20])+string(tcp[:4]), be.Uint32(tcp[4:])
		data := tcp[int(tcp[12]>>4)*4:]
		if want, known := next[way]; len(data) == 0 || known && int32(seq-want) < 0 {
			continue
		}
		next[way] = seq + uint32(len(data))
		out[way] = append(out[way], data...)
	}
	return out
}

// TestThroughRelay: a virus sent through the relay of the data connection does not arrive, a harmless file does,
// as it was sent.
func TestThroughRelay(t *testing.T) {
	c := newChecker(t, func(c *Config) { c.Verify, c.Scanner, c.Timeout = true, "clamd://"+startClamd(t), patience })
	harmless := bytes.Repeat([]byte("harmless text\n"), 50_000)
	for _, tt := range []struct {
		name, want string
		plain      []byte
	}{
		{"harmless", "completed", harmless},
		{"virus", "denied", append(harmless[:100_000:100_000], virus...)},
	} {
		f := testFile(len(tt.plain))
		wire, mac := encrypt(f, tt.plain)
		ended := make(chan msnftp.Outcome, 1)
		x := &msnftp.Transfer{
			Receiver: pinhole.Far, Cookie: "42",
			Check: func(ctx context.Context, size int64) (msnftp.Check, error) {
				return c.Begin(ctx, File{"x", size, f.EncryptionKey, f.HashKey})
			},
			Ended: func(o msnftp.Outcome) { ended <- o },
		}
		sender, near := tcpPair(t)
		receiver, far := tcpPair(t)
		go x.Serve(t.Context(), [2]net.Conn{near, far}, func(pinhole.Side, int) {})
		go send(sender, wire, mac)
		got := receive(t, receiver, len(wire))
		if whole := bytes.Equal(got, wire); whole != (tt.want == "completed") {
			t.Errorf("%s: %d octets of %d arrived", tt.name, len(got), len(wire))
		}
		if o := <-ended; msnftp.Reason(o.Err) != tt.want {
			t.Errorf("%s: %v", tt.name, o.Err)
		}
	}
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	a.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// send is the sending client. It sends its lines without waiting for the other's, but for the last one.
func send(c net.Conn, wire []byte, mac string) {
	io.WriteString(c, "VER MSN_SECURE_FTP\r\nFIL "+strconv.Itoa(len(wire))+"\r\n")
	for len(wire) > 0 {
		n := min(2045, len(wire))
		c.Write(append([]byte{0, byte(n), byte(n >> 8)}, wire[:n]...))
		wire = wire[n:]
	}
	var said []byte
	for b := make([]byte, 100); !bytes.Contains(said, []byte("BYE")); {
		n, err := c.Read(b)
		if err != nil {
			break
		}
		said = append(said, b[:n]...)
	}
	io.WriteString(c, "MAC "+mac+"\x00\r\n")
	c.Close()
}

// receive is the receiving client, and returns the file's octets.
func receive(t *testing.T, c net.Conn, size int) (file []byte) {
	t.Helper()
	io.WriteString(c, "VER MSN_SECURE_FTP\r\nUSR bob@example.org 42\r\nTFR\r\n")
	head := make([]byte, len("VER MSN_SECURE_FTP\r\nFIL \r\n")+len(strconv.Itoa(size)))
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for len(file) < size {
		b := make([]byte, 3+2045)
		if _, err := io.ReadFull(c, b[:3]); err != nil || b[0] != 0 {
			return file
		}
		n := int(b[1]) | int(b[2])<<8
		if _, err := io.ReadFull(c, b[3:3+n]); err != nil {
			return file
		}
		file = append(file, b[3:3+n]...)
	}
	io.WriteString(c, "BYE 16777989\r\n")
	mac, _ := io.ReadAll(c)
	if !bytes.HasPrefix(mac, []byte("MAC ")) {
		t.Errorf("%q instead of the MAC", mac)
	}
	return file
}

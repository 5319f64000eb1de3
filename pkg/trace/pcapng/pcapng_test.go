package pcapng

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func sample(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	const sip = "OPTIONS sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7\r\nCall-ID: c1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
	a4, b4 := netip.MustParseAddrPort("192.0.2.7:5060"), netip.MustParseAddrPort("192.0.2.1:5060")
	a6, b6 := netip.MustParseAddrPort("[2001:db8::7]:5062"), netip.MustParseAddrPort("[2001:db8::1]:5060")
	at := time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.UTC)
	for _, p := range []Packet{
		{Time: at, From: a4, To: b4, Data: []byte(sip), Comment: "as it came"},
		{Time: at, From: b4, To: a4, Data: []byte("odd")},
		{Time: at, From: a6, To: b6, Stream: true, Data: []byte(sip)},
		{Time: at, From: a6, To: b6, Stream: true, Data: []byte(sip)},
		{Time: at, From: a4, Data: bytes.Repeat([]byte("x"), 1<<17)},
		{Time: at, To: a6, Data: []byte(sip)},
	} {
		if err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	out := Packet{Time: at, From: b4, To: a4, Data: []byte("media"), Interface: "inside", Direction: Outbound}
	if err := errors.Join(w.Write(out), w.Write(out), w.Statistics(at, 2, 1, "why it ended")); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBlocks reads the file block by block: lengths agree at both ends, packets stand whole in them.
func TestBlocks(t *testing.T) {
	var kinds []uint32
	for b := sample(t); len(b) > 0; {
		n := binary.LittleEndian.Uint32(b[4:])
		if n%4 != 0 || int(n) > len(b) || binary.LittleEndian.Uint32(b[n-4:]) != n {
			t.Fatalf("block %d has length %d of %d", len(kinds), n, len(b))
		}
		kind := binary.LittleEndian.Uint32(b)
		if kinds = append(kinds, kind); kind == 6 {
			packet := b[28+14 : 28+binary.LittleEndian.Uint32(b[20:])]
			at := int64(binary.LittleEndian.Uint32(b[12:]))<<32 | int64(binary.LittleEndian.Uint32(b[16:]))
			if time.Unix(0, at).UTC().Nanosecond() != 123456789 {
				t.Errorf("time %v", time.Unix(0, at))
			}
			if kind := binary.BigEndian.Uint16(b[28+12:]); (packet[0]>>4 == 4) != (kind == 0x0800) || (packet[0]>>4 == 6) != (kind == 0x86dd) {
				t.Errorf("a packet of IP version %d in a frame of type %#x", packet[0]>>4, kind)
			}
			length := len(packet)
			if packet[0]>>4 == 4 {
				length = int(binary.BigEndian.Uint16(packet[2:]))
			} else if want := int(binary.BigEndian.Uint16(packet[4:])) + 40; want != length {
				length = want
			}
			if length != len(packet) {
				t.Errorf("packet %d: %d octets, its head says %d", len(kinds)-2, len(packet), length)
			}
		}
		b = b[n:]
	}
	if want := []uint32{0x0a0d0d0a, 1, 6, 6, 6, 6, 6, 6, 1, 6, 6, 5}; !slices.Equal(kinds, want) {
		t.Errorf("blocks %x", kinds)
	}
}

// TestTshark has Wireshark's own reader judge the file.
func TestTshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is missing")
	}
	file := filepath.Join(t.TempDir(), "a.pcapng")
	if err := os.WriteFile(file, sample(t), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tshark, "-r", file, "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE",
		"-T", "fields", "-e", "_ws.col.Protocol", "-e", "sip.Method", "-e", "ip.checksum.status", "-e", "udp.checksum.status",
		"-e", "tcp.checksum.status", "-e", "frame.comment", "-e", "frame.interface_name", "-e", "frame.packet_flags_direction").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	const noName = "\tunknown\t"
	want := []string{
		"SIP\tOPTIONS\t1\t1\t\tas it came" + noName, "", "SIP\tOPTIONS\t\t\t1\t" + noName, "SIP\tOPTIONS\t\t\t1\t" + noName, "",
		"SIP\tOPTIONS\t\t1\t\t" + noName, "UDP\t\t1\t1\t\t\tinside\t0x00000002", "UDP\t\t1\t1\t\t\tinside\t0x00000002",
	}
	if len(lines) != len(want) {
		t.Fatalf("%d packets:\n%s", len(lines), out)
	}
	for i, w := range want {
		if w != "" && lines[i] != w {
			t.Errorf("packet %d: %q, want %q", i, lines[i], w)
		}
	}
}

// TestTcpdump has libpcap's reader judge the file, which refuses some link types from the second interface on.
func TestTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("tcpdump is missing")
	}
	cmd := exec.Command(tcpdump, "-n", "-e", "-t", "-r", "-")
	cmd.Stdin = bytes.NewReader(sample(t))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, &said)
	}
	var frames []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "02:00:00:00:00:0") {
			frames = append(frames, line)
		}
	}
	if len(frames) != 8 {
		t.Fatalf("%d packets:\n%s", len(frames), out)
	}
	const last = "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype IPv4 (0x0800), length 47: 192.0.2.1.5060 > 192.0.2.7.5060: "
	if !strings.HasPrefix(frames[7], last) || !strings.Contains(frames[2], "ethertype IPv6") {
		t.Errorf("%q", frames)
	}
}

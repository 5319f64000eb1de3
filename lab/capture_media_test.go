//go:build lab

package lab

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// noted is a packet of a file that edged capture has written.
type noted struct {
	Packet
	network string
	out     bool
}

// readPcapng reads what edged capture writes: frames with the names of networks and directions.
func readPcapng(t testing.TB, file string) (list []noted) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, "capture", err)
	var networks []string
	for len(b) >= 12 {
		n := int(binary.LittleEndian.Uint32(b[4:]))
		if n < 12 || n > len(b) {
			t.Fatalf("%s: a block of %d octets", file, n)
		}
		switch body := b[8 : n-4]; binary.LittleEndian.Uint32(b) {
		case 1:
			networks = append(networks, string(pcapngOptions(body[8:])[2]))
		case 6:
			size := int(binary.LittleEndian.Uint32(body[12:]))
			p, ok := parseFrame(body[20 : 20+size])
			if !ok {
				t.Fatalf("%s: a packet that is none: %x", file, body)
			}
			options := pcapngOptions(body[20+(size+3)&^3:])
			list = append(list, noted{p, networks[binary.LittleEndian.Uint32(body)], len(options[2]) == 4 && options[2][0]&3 == 2})
		}
		b = b[n:]
	}
	return list
}

func pcapngOptions(b []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for len(b) >= 4 {
		kind, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		all[kind] = b[4 : 4+n]
		b = b[4+(n+3)&^3:]
	}
	return all
}

// rtpSeqs returns the sequence numbers of the voices' RTP from one address to another, in order. What the edge sends in
// a burst is one packet to tcpdump, which the kernel cuts later.
func rtpSeqs(ps []Packet, src, dst netip.Addr) (seqs []uint16) {
	const size = 172
	for _, p := range ps {
		if p.TCP || len(p.Payload) == 0 || len(p.Payload)%size != 0 || p.Payload[0] != 0x80 || p.Src.Addr() != src || p.Dst.Addr() != dst {
			continue
		}
		for b := p.Payload; len(b) > 0; b = b[size:] {
			seqs = append(seqs, binary.BigEndian.Uint16(b[2:]))
		}
	}
	return seqs
}

// TestCaptureMedia: what the phones send during a capture is in the file, all of it, as it came and as it left, whoever
// carries the call; afterwards the kernel has it again. Without --media there is no RTP in the file.
func TestCaptureMedia(t *testing.T) {
	onlyEdged(t, "the reference has no capture")
	for _, path := range []string{"user", "tc"} {
		t.Run(path, func(t *testing.T) {
			s := newScene(t, plan{Edge: EdgeConfig{Token: "a token of the lab", More: "media: {datapath: " + path + "}\n"}})
			kernel := path == "tc"
			if kernel {
				s.needKernelPath(t)
			}
			lan, wan := s.rig.Capture("lan", "udp"), s.rig.Capture("wan", "udp")
			a, b := s.call()
			s.hearEachOther(300 * time.Millisecond)
			if kernel {
				s.inKernel()
				short := s.captureMedia(a.ID, "short.pcapng", "--media", "--for", "1s")
				must(t, "capture for a second", short.Wait(20*time.Second))
				s.inKernel()
			}
			plain := s.captureMedia(a.ID, "plain.pcapng")
			must(t, "capture", plain.Wait(20*time.Second))
			media := s.captureMedia(a.ID, "media.pcapng", "--media")
			s.edge.proc.Logged(t, 10*time.Second, "media capture begins")
			if kernel {
				eventually(t, 10*time.Second, "user space has the call", func() bool {
					c := s.carried()
					return len(c.Pinholes) == 1 && c.Pinholes[0].Ends[0].Why == "its packets are captured" && c.Pinholes[0].Path == "user"
				})
			}
			s.hearEachOther(time.Second)
			s.va.Talk(netip.AddrPort{})
			s.vb.Talk(netip.AddrPort{})
			pass(200 * time.Millisecond) // what is under way arrives
			a.Bye(b.Agent)
			must(t, "capture", media.Wait(20*time.Second))
			s.wantAllMedia(t, "media.pcapng", lan.Stop(t), wan.Stop(t))
			wantTcpdumpReads(t, filepath.Join(s.rig.Dir, "plain.pcapng"))
			for _, p := range readPcapng(t, filepath.Join(s.rig.Dir, "plain.pcapng")) {
				if len(p.Payload) > 0 && p.Payload[0] == 0x80 {
					t.Fatal("RTP without --media")
				}
			}
			s.wantAudit(t)
		})
	}
}

// captureMedia starts edged capture on the gateway.
func (s *scene) captureMedia(call, file string, args ...string) *Proc {
	s.Helper()
	bin, err := edgedBinary()
	must(s, "build edged", err)
	argv := append([]string{bin, "capture", "--config", s.edge.file, "-o", filepath.Join(s.rig.Dir, file), call}, args...)
	return s.rig.GW.Start(s, "capture-"+file, argv...)
}

// wantAllMedia compares the file with what tcpdump saw on both wires since the file's first packet.
func (s *scene) wantAllMedia(t *testing.T, name string, lan, wan []Packet) {
	t.Helper()
	file := filepath.Join(s.rig.Dir, name)
	byNetwork := map[string][]Packet{}
	messages := 0
	for _, p := range readPcapng(t, file) {
		byNetwork[p.network] = append(byNetwork[p.network], p.Packet)
		if strings.Contains(string(p.Payload), "\r\nCall-ID: ") {
			messages++
		}
		if p.out != s.rig.GW.owns(inside, p.Src.Addr()) && p.out != s.rig.GW.owns(outside, p.Src.Addr()) {
			t.Errorf("direction of %v → %v", p.Src, p.Dst)
		}
	}
	if messages < 12 { // INVITE, 180, 200, ACK, BYE, 200, each as it came and as it left
		t.Errorf("%d messages of signalling in %s", messages, name)
	}
	total := 0
	for _, c := range []struct {
		network  string
		wire     []Packet
		src, dst netip.Addr
	}{
		{"inside", lan, s.va.Addr.Addr(), s.inGate.Addr()}, {"outside", wan, s.outGate.Addr(), s.vb.Addr.Addr()},
		{"outside", wan, s.vb.Addr.Addr(), s.outGate.Addr()}, {"inside", lan, s.inGate.Addr(), s.va.Addr.Addr()},
	} {
		got, sent := rtpSeqs(byNetwork[c.network], c.src, c.dst), rtpSeqs(c.wire, c.src, c.dst)
		if len(got) < 40 || len(sent) < len(got) {
			t.Fatalf("%s, %v → %v: %d packets in the file, %d on the wire", c.network, c.src, c.dst, len(got), len(sent))
		}
		want := sent[len(sent)-len(got):]
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s, %v → %v: the file has %v, on the wire were %v", c.network, c.src, c.dst, got, want)
		}
		t.Logf("%s, %v → %v: %d of %d packets of the call, none missing since the capture began", c.network, c.src, c.dst, len(got), len(sent))
		total += len(got)
	}
	wantTcpdumpReads(t, file)
	need(t, "tshark")
	out, err := exec.Command("tshark", "-r", file, "-Y", "rtp", "-T", "fields", "-e", "frame.interface_name").Output()
	if n := strings.Count(string(out), "\n"); err != nil || n != total {
		t.Errorf("tshark sees %d packets of RTP, want %d: %v", n, total, err)
	}
	t.Logf("%.300s", out)
}

// wantTcpdumpReads: libpcap reads every packet of a file.
func wantTcpdumpReads(t *testing.T, file string) {
	t.Helper()
	want := len(readPcapng(t, file))
	out, err := exec.Command("tcpdump", "-n", "-e", "-r", file).Output()
	if n := strings.Count(string(out), ", ethertype IPv"); err != nil || n != want || n == 0 {
		t.Errorf("tcpdump sees %d packets of %d in %s: %v", n, want, file, err)
	}
	t.Logf("%.1200s", out)
}

// wantAudit checks that the events say who has captured what.
func (s *scene) wantAudit(t *testing.T) {
	t.Helper()
	var doc struct {
		Events []struct {
			Type string
			Data struct {
				Why     string
				Packets int
				Dropped int
			}
		}
	}
	eventually(t, 10*time.Second, "an event of the capture", func() bool {
		code, body := s.edge.get("/api/v1/events/recent")
		if code != http.StatusOK || json.Unmarshal(body, &doc) != nil {
			return false
		}
		for _, e := range doc.Events {
			if e.Type == "media_captured" && e.Data.Why == "the call is over" && e.Data.Packets >= 160 && e.Data.Dropped == 0 {
				return true
			}
		}
		return false
	})
}

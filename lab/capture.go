//go:build lab

package lab

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Capture is a tcpdump on one interface of the gateway.
type Capture struct {
	proc *Proc
	file string
}

// Capture starts tcpdump on lan or wan of the gateway; it has begun when the call returns.
func (r *Rig) Capture(dev string, filter ...string) *Capture {
	r.t.Helper()
	r.captures++
	c := &Capture{file: filepath.Join(r.Dir, fmt.Sprintf("%s-%d.pcap", dev, r.captures))}
	argv := append([]string{"tcpdump", "-i", dev, "-n", "-U", "-s", "65535", "-B", "16384", "-Z", "root", "--immediate-mode", "-w", c.file}, filter...)
	c.proc = r.GW.Start(r.t, fmt.Sprintf("tcpdump-%s-%d", dev, r.captures), argv...)
	c.proc.Logged(r.t, 10*time.Second, "listening on")
	return c
}

// captured is what tcpdump says when it is asked.
var captured = regexp.MustCompile(`(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped`)

// settle waits until tcpdump has written what the kernel has for it: what is left there is lost at its end.
func (c *Capture) settle(t testing.TB) {
	t.Helper()
	eventually(t, 10*time.Second, "the capture is written", func() bool {
		before, err := os.ReadFile(c.proc.Log)
		if err != nil || c.proc.cmd.Process.Signal(syscall.SIGUSR1) != nil {
			return true // it has ended, and that is told elsewhere
		}
		var said [][]byte
		until(time.Second, func() bool {
			log, err := os.ReadFile(c.proc.Log)
			if err == nil {
				said = captured.FindSubmatch(log[len(before):])
			}
			return said != nil
		})
		if said == nil {
			return false
		}
		var n [3]int
		for i, text := range said[1:] {
			n[i], _ = strconv.Atoi(string(text))
		}
		return n[0]+n[2] >= n[1]
	})
}

// Stop ends the capture and returns its packets.
func (c *Capture) Stop(t testing.TB) []Packet {
	t.Helper()
	c.settle(t)
	c.proc.Stop(syscall.SIGINT)
	b, err := os.ReadFile(c.file)
	must(t, "capture", err)
	ps, err := readPcap(b)
	must(t, "capture", err)
	return ps
}

// Packet is one UDP datagram or TCP segment of a capture.
type Packet struct {
	Time     time.Duration // since the epoch
	TCP      bool
	Src, Dst netip.AddrPort
	Seq      uint32 // TCP only
	Payload  []byte
}

// readPcap reads a classic pcap file of Ethernet frames; a cut last record is the end.
func readPcap(b []byte) ([]Packet, error) {
	if len(b) < 24 || binary.LittleEndian.Uint32(b) != 0xa1b2c3d4 {
		return nil, errors.New("not a little-endian pcap file")
	}
	if link := binary.LittleEndian.Uint32(b[20:]); link != 1 {
		return nil, fmt.Errorf("link type %d, want Ethernet", link)
	}
	var ps []Packet
	for b = b[24:]; len(b) >= 16; {
		n := int(binary.LittleEndian.Uint32(b[8:]))
		if len(b) < 16+n {
			break
		}
		if p, ok := parseFrame(b[16 : 16+n]); ok {
			p.Time = time.Duration(binary.LittleEndian.Uint32(b))*time.Second + time.Duration(binary.LittleEndian.Uint32(b[4:]))*time.Microsecond
			ps = append(ps, p)
		}
		b = b[16+n:]
	}
	return ps, nil
}

func parseFrame(b []byte) (p Packet, ok bool) {
	if len(b) < 14+20 {
		return p, false
	}
	ip := b[14:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if head < 20 || total < head || len(ip) < total {
			return p, false
		}
		src, dst := netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 { // a later fragment has payload only
			return Packet{Src: netip.AddrPortFrom(src, 0), Dst: netip.AddrPortFrom(dst, 0), Payload: ip[head:total]}, true
		}
		return parseTransport(ip[9], src, dst, ip[head:total])
	case 0x86dd:
		total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if len(ip) < total {
			return p, false
		}
		src, dst := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		return parseTransport(ip[6], src, dst, ip[40:total])
	}
	return p, false
}

func parseTransport(proto byte, src, dst netip.Addr, b []byte) (p Packet, ok bool) {
	if len(b) < 8 || proto != 6 && proto != 17 {
		return p, false
	}
	p.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	p.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	if proto == 17 {
		p.Payload = b[8:]
		return p, true
	}
	if len(b) < 20 || len(b) < int(b[12]>>4)*4 {
		return p, false
	}
	p.TCP, p.Seq, p.Payload = true, binary.BigEndian.Uint32(b[4:]), b[int(b[12]>>4)*4:]
	return p, true
}

// Texts returns what each source sent, as one text per UDP datagram and one per TCP direction
// (segments in order, retransmissions once), so that nothing hides on a segment's border.
func Texts(ps []Packet) []Packet {
	type key struct{ src, dst netip.AddrPort }
	streams := map[key][]Packet{}
	var out []Packet
	for _, p := range ps {
		if !p.TCP {
			out = append(out, p)
		} else if len(p.Payload) > 0 {
			k := key{p.Src, p.Dst}
			streams[k] = append(streams[k], p)
		}
	}
	for _, s := range streams {
		out = append(out, joinStream(s))
	}
	return out
}

func joinStream(s []Packet) Packet {
	first := s[0].Seq
	slices.SortStableFunc(s, func(a, b Packet) int { return cmp.Compare(int32(a.Seq-first), int32(b.Seq-first)) })
	joined, next := s[0], s[0].Seq
	joined.Payload = nil
	for _, p := range s {
		if skip := int(int32(next - p.Seq)); skip >= 0 && skip < len(p.Payload) {
			joined.Payload = append(joined.Payload, p.Payload[skip:]...)
			next = p.Seq + uint32(len(p.Payload))
		} else if skip < 0 { // a hole: keep what is there
			joined.Payload = append(joined.Payload, p.Payload...)
			next = p.Seq + uint32(len(p.Payload))
		}
	}
	return joined
}

// insideMarks are the texts by which an inside address is recognised in a message.
func insideMarks() [][]byte {
	return [][]byte{[]byte(nets4[inside]), []byte("fd77:1:"), []byte("FD77:1:")}
}

// privateLeaves returns what the gateway sent on wan and shows an inside address: in a packet's
// header, or as text anywhere in its payload.
func privateLeaves(r *Rig, wan []Packet) (leaks []string) {
	for _, p := range Texts(wan) {
		if in(inside, p.Src.Addr()) || in(inside, p.Dst.Addr()) {
			leaks = append(leaks, fmt.Sprintf("header: %v > %v", p.Src, p.Dst))
		}
		if !r.GW.owns(outside, p.Src.Addr()) {
			continue
		}
		for _, m := range insideMarks() {
			if at := bytes.Index(p.Payload, m); at >= 0 {
				leaks = append(leaks, fmt.Sprintf("%v > %v: %q", p.Src, p.Dst, around(p.Payload, at)))
			}
		}
	}
	return leaks
}

// foreignTargets returns the lines of messages that the gateway sent to the inside and that name an
// outside address where the client would send to: Contact, c=, o=, a=candidate, a=rtcp.
func foreignTargets(r *Rig, lan []Packet) (lines []string) {
	for _, p := range Texts(lan) {
		if !r.GW.owns(inside, p.Src.Addr()) {
			continue
		}
		for line := range bytes.Lines(p.Payload) {
			if namesTarget(line) && (bytes.Contains(line, []byte(nets4[outside])) || bytes.Contains(line, []byte("2001:db8:77:"))) {
				lines = append(lines, fmt.Sprintf("%v > %v: %q", p.Src, p.Dst, line))
			}
		}
	}
	return lines
}

// wantNoLeaks fails the test if the captures show an inside address outside, or an outside target
// inside, or too little to judge.
func wantNoLeaks(t testing.TB, r *Rig, lan, wan []Packet) {
	t.Helper()
	if sentBy(wan, r.GW, outside) == 0 || sentBy(lan, r.GW, inside) == 0 {
		t.Error("the captures show nothing from the gateway")
	}
	for _, l := range privateLeaves(r, wan) {
		t.Errorf("inside address leaves: %s", l)
	}
	for _, l := range foreignTargets(r, lan) {
		t.Errorf("outside address reaches inside: %s", l)
	}
}

func sentBy(ps []Packet, gw *Host, s side) (n int) {
	for _, p := range ps {
		if gw.owns(s, p.Src.Addr()) {
			n++
		}
	}
	return n
}

func namesTarget(line []byte) bool {
	for _, s := range []string{"Contact:", "m:", "c=", "o=", "a=candidate:", "a=rtcp:"} {
		if bytes.HasPrefix(line, []byte(s)) {
			return true
		}
	}
	return false
}

func around(b []byte, at int) []byte { return b[max(0, at-60):min(len(b), at+60)] }

// in tells whether a is an address of side s.
func in(s side, a netip.Addr) bool {
	p4 := netip.MustParsePrefix(nets4[s] + "0/24")
	p6 := netip.MustParsePrefix(nets6[s] + "/64")
	return p4.Contains(a.Unmap()) || p6.Contains(a)
}

// rtpTo returns the RTP packets (version 2, even port) that the gateway sent to an address.
func rtpTo(ps []Packet, gw *Host, to netip.Addr) (rtp []Packet) {
	for _, p := range ps {
		if !p.TCP && (gw.owns(inside, p.Src.Addr()) || gw.owns(outside, p.Src.Addr())) && p.Dst.Addr() == to &&
			len(p.Payload) > 12 && p.Payload[0]>>6 == 2 && p.Dst.Port()%2 == 0 {
			rtp = append(rtp, p)
		}
	}
	return rtp
}

// heardOnWire decodes the PCMU of RTP packets in the order of the capture.
func heardOnWire(rtp []Packet) Sound {
	var pcm []int16
	for _, p := range rtp {
		for _, c := range p.Payload[12:] {
			pcm = append(pcm, unulaw(c))
		}
	}
	return hear(pcm)
}

// Package tpkttest reads captures for tests: the payloads of UDP, and the octets
// of TCP streams in order. It holds no product and no general pcap library: the
// formats are those of the corpora (classic pcap; Ethernet, raw IP, cooked or loopback).
//
//	file(.gz) ─► packets ─► IPv4/IPv6 ─► UDP datagrams, TCP streams by direction
package tpkttest

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"edged.dev/edged/internal/tpkt"
)

// Corpora returns the folder of the corpora, or skips the test if it lacks dir.
// root is the way from the test's folder to the repository's root.
func Corpora(tb testing.TB, root, dir string) string {
	tb.Helper()
	path, ok := Find(root, dir)
	if !ok {
		tb.Skipf("no corpora at %s (set EDGED_CORPORA)", path)
	}
	return path
}

// Find is Corpora for those that can do without: seeds of fuzz targets.
func Find(root, dir string) (string, bool) {
	base := os.Getenv("EDGED_CORPORA")
	if base == "" {
		base = filepath.Join(root, "..", "shared", "corpora")
	}
	path := filepath.Join(base, dir)
	_, err := os.Stat(path)
	return path, err == nil
}

// Datagram is the payload of a UDP packet.
type Datagram struct {
	Src, Dst netip.AddrPort
	Payload  []byte
}

// Stream is one direction of a TCP connection.
type Stream struct {
	Src, Dst netip.AddrPort
	Data     []byte
	Gap      bool // octets are missing after Data
}

// Packets returns the payloads of the TPKTs in the stream, up to what is none.
func (s *Stream) Packets() [][]byte {
	var sp tpkt.Splitter
	var out [][]byte
	sp.Push(s.Data)
	for {
		p, ok, err := sp.Next()
		if err != nil || !ok {
			return out
		}
		out = append(out, p.Payload)
	}
}

// Capture is what was in a file.
type Capture struct {
	UDP []Datagram
	TCP []*Stream
}

// Read reads a capture.
func Read(path string) (*Capture, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return parse(data)
}

type segment struct {
	src, dst netip.AddrPort
	seq      uint32
	syn      bool
	data     []byte
}

func parse(data []byte) (*Capture, error) {
	if len(data) < 24 {
		return nil, fmt.Errorf("no pcap: %d octets", len(data))
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.BigEndian.Uint32(data) {
	case 0xa1b2c3d4, 0xa1b23c4d:
		order = binary.BigEndian
	case 0xd4c3b2a1, 0x4d3cb2a1:
	default:
		return nil, fmt.Errorf("no pcap: magic %x", data[:4])
	}
	link := order.Uint32(data[20:])
	c := &Capture{}
	var segs []segment
	for b := data[24:]; len(b) >= 16; {
		n := int(order.Uint32(b[8:]))
		if n > len(b)-16 {
			break
		}
		if ip := network(link, b[16:16+n]); len(ip) > 20 {
			segs = c.transport(ip, segs)
		}
		b = b[16+n:]
	}
	c.reassemble(segs)
	return c, nil
}

// network strips the link's header.
func network(link uint32, b []byte) []byte {
	skip, proto := 0, -1
	switch link {
	case 0:
		skip = 4
	case 1:
		skip, proto = 14, 12
		for len(b) > skip && b[proto] == 0x81 && b[proto+1] == 0 {
			skip, proto = skip+4, proto+4
		}
	case 113:
		skip = 16
	case 276:
		skip = 20
	}
	if len(b) < skip || proto > 0 && b[proto] != 8 && b[proto] != 0x86 {
		return nil
	}
	return b[skip:]
}

// transport files one IP packet.
func (c *Capture) transport(ip []byte, segs []segment) []segment {
	var src, dst netip.Addr
	var proto byte
	var b []byte
	switch ip[0] >> 4 {
	case 4:
		total, ihl := int(binary.BigEndian.Uint16(ip[2:])), int(ip[0]&15)*4
		if total > len(ip) || total < ihl || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return segs
		}
		src, dst, proto, b = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:])), ip[9], ip[ihl:total]
	case 6:
		if len(ip) < 40 {
			return segs
		}
		src, dst, proto, b = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:])), ip[6], ip[40:]
	}
	if len(b) < 8 {
		return segs
	}
	s := netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	d := netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	switch {
	case proto == 17:
		c.UDP = append(c.UDP, Datagram{s, d, b[8:]})
	case proto == 6 && len(b) >= 20 && int(b[12]>>4)*4 <= len(b):
		segs = append(segs, segment{s, d, binary.BigEndian.Uint32(b[4:]), b[13]&2 != 0, b[int(b[12]>>4)*4:]})
	}
	return segs
}

// reassemble puts the segments of each direction in order. A stream ends where
// octets are missing; a SYN begins a new one.
func (c *Capture) reassemble(segs []segment) {
	type key struct{ src, dst netip.AddrPort }
	runs := map[key][][]segment{}
	var order []key
	for _, s := range segs {
		k := key{s.src, s.dst}
		have := runs[k]
		if have == nil {
			order = append(order, k)
		}
		if again := len(have) > 0 && s.syn && have[len(have)-1][0].seq != s.seq; have == nil || again {
			have = append(have, nil)
		}
		have[len(have)-1] = append(have[len(have)-1], s)
		runs[k] = have
	}
	for _, k := range order {
		for _, run := range runs[k] {
			c.TCP = append(c.TCP, join(run))
		}
	}
}

func join(run []segment) *Stream {
	first := run[0].seq
	rel := func(s segment) int { return int(int32(s.seq - first)) }
	slices.SortStableFunc(run, func(a, b segment) int { return cmp.Compare(rel(a), rel(b)) })
	out := &Stream{Src: run[0].src, Dst: run[0].dst}
	next := rel(run[0])
	for _, s := range run {
		at := rel(s)
		if s.syn {
			at++
			next = max(next, at)
		}
		if len(s.data) == 0 || at+len(s.data) <= next {
			continue
		}
		if at > next {
			out.Gap = true
			break
		}
		out.Data = append(out.Data, s.data[next-at:]...)
		next = at + len(s.data)
	}
	out.Data = bytes.Clone(out.Data)
	return out
}

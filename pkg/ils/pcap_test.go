package ils

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// corpus reads a file of the corpora, or skips.
func corpus(t testing.TB, name string) []byte {
	t.Helper()
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = "../../../shared/corpora"
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Skipf("SKIP: no corpus %s (set EDGED_CORPORA): %v", name, err)
	}
	return b
}

// corpusFiles lists a folder of the corpora, or skips.
func corpusFiles(t testing.TB, folder string) (names []string) {
	t.Helper()
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = "../../../shared/corpora"
	}
	list, err := os.ReadDir(filepath.Join(dir, folder))
	if err != nil {
		t.Skipf("SKIP: no corpora %s (set EDGED_CORPORA): %v", folder, err)
	}
	for _, e := range list {
		names = append(names, folder+"/"+e.Name())
	}
	return names
}

// turn is what one side of a TCP connection said before the other did.
type turn struct {
	src, dst netip.AddrPort
	data     []byte
}

// turns puts the TCP connections of a capture together, by connection, each in order.
func turns(t testing.TB, file []byte) map[string][]turn {
	t.Helper()
	out, next := map[string][]turn{}, map[string]uint32{}
	for _, frame := range frames(t, file) {
		src, dst, seq, data := segment(frame)
		if len(data) == 0 {
			continue
		}
		way := fmt.Sprint(src, dst)
		if want, known := next[way]; known && int32(seq-want) < 0 {
			continue // sent again
		}
		next[way] = seq + uint32(len(data))
		key := fmt.Sprint(min(way, fmt.Sprint(dst, src)))
		list := out[key]
		if n := len(list); n > 0 && list[n-1].src == src {
			list[n-1].data = append(list[n-1].data, data...)
			continue
		}
		out[key] = append(list, turn{src, dst, append([]byte(nil), data...)})
	}
	return out
}

// frames returns the IP packets of a pcap or pcapng file.
func frames(t testing.TB, b []byte) (out [][]byte) {
	t.Helper()
	le := binary.LittleEndian
	if le.Uint32(b) == 0xa1b2c3d4 {
		link := le.Uint32(b[20:])
		for b = b[24:]; len(b) >= 16; {
			n := min(int(le.Uint32(b[8:])), len(b)-16)
			out = append(out, network(link, b[16:16+n]))
			b = b[16+n:]
		}
		return out
	}
	link := uint32(1)
	for len(b) >= 12 {
		n := int(le.Uint32(b[4:]))
		switch le.Uint32(b) {
		case 1: // interface description
			link = uint32(le.Uint16(b[8:]))
		case 6: // enhanced packet
			out = append(out, network(link, b[28:28+le.Uint32(b[20:])]))
		}
		b = b[n:]
	}
	return out
}

// network strips the link layer.
func network(link uint32, b []byte) []byte {
	off := map[uint32]int{0: 4, 1: 14, 101: 0, 228: 0, 276: 20}[link]
	if link == 1 && len(b) > 14 && binary.BigEndian.Uint16(b[12:]) == 0x8100 {
		off += 4
	}
	if len(b) < off {
		return nil
	}
	return b[off:]
}

// segment returns the TCP segment of an IP packet.
func segment(ip []byte) (src, dst netip.AddrPort, seq uint32, data []byte) {
	be := binary.BigEndian
	var a, b netip.Addr
	var tcp []byte
	switch {
	case len(ip) >= 40 && ip[0]>>4 == 4 && ip[9] == 6:
		a, _ = netip.AddrFromSlice(ip[12:16])
		b, _ = netip.AddrFromSlice(ip[16:20])
		tcp = ip[int(ip[0]&15)*4 : max(20, min(len(ip), int(be.Uint16(ip[2:]))))]
	case len(ip) >= 60 && ip[0]>>4 == 6 && ip[6] == 6:
		a, _ = netip.AddrFromSlice(ip[8:24])
		b, _ = netip.AddrFromSlice(ip[24:40])
		tcp = ip[40:min(len(ip), 40+int(be.Uint16(ip[4:])))]
	}
	if len(tcp) < 20 || int(tcp[12]>>4)*4 > len(tcp) {
		return src, dst, 0, nil
	}
	return netip.AddrPortFrom(a, be.Uint16(tcp)), netip.AddrPortFrom(b, be.Uint16(tcp[2:])), be.Uint32(tcp[4:]), tcp[int(tcp[12]>>4)*4:]
}

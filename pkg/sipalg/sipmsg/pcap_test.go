package sipmsg

import (
	"encoding/binary"
	"testing"
)

// pcap reads just enough of pcap, pcapng, Ethernet, IP, UDP and TCP to get at the
// SIP in the corpora. Broken captures end early.

// packets returns the link type and data of each packet.
func packets(t testing.TB, b []byte) (out [][]byte, links []uint32) {
	t.Helper()
	if len(b) < 24 {
		return nil, nil
	}
	if binary.LittleEndian.Uint32(b) == 0x0a0d0d0a {
		return pcapng(b)
	}
	var order binary.ByteOrder = binary.LittleEndian
	if m := binary.BigEndian.Uint32(b); m == 0xa1b2c3d4 || m == 0xa1b23c4d {
		order = binary.BigEndian
	}
	link := order.Uint32(b[20:])
	for b = b[24:]; len(b) >= 16; {
		n := int(order.Uint32(b[8:]))
		if n > len(b)-16 {
			break
		}
		out, links = append(out, b[16:16+n]), append(links, link)
		b = b[16+n:]
	}
	return out, links
}

func pcapng(b []byte) (out [][]byte, links []uint32) {
	le := binary.LittleEndian
	var faces []uint32
	for len(b) >= 12 {
		kind, n := le.Uint32(b), int(le.Uint32(b[4:]))
		if n < 12 || n > len(b) {
			break
		}
		switch body := b[8 : n-4]; kind {
		case 1:
			faces = append(faces, uint32(le.Uint16(body)))
		case 6:
			face, size := int(le.Uint32(body)), int(le.Uint32(body[12:]))
			if face < len(faces) && size <= len(body)-20 {
				out, links = append(out, body[20:20+size]), append(links, faces[face])
			}
		}
		b = b[n:]
	}
	return out, links
}

// transport strips the headers below UDP or TCP.
func transport(link uint32, p []byte) (proto byte, addrs string, seg []byte) {
	skip := map[uint32]int{0: 4, 1: 12, 12: 0, 101: 0, 113: 14, 108: 4}
	n, ok := skip[link]
	if !ok || len(p) < n+2 {
		return 0, "", nil
	}
	p = p[n:]
	if link == 1 || link == 113 {
		for len(p) > 6 && binary.BigEndian.Uint16(p) == 0x8100 {
			p = p[4:]
		}
		p = p[2:]
	}
	for range 3 {
		if len(p) < 20 {
			return 0, "", nil
		}
		if p[0]>>4 == 6 {
			if len(p) < 40 {
				return 0, "", nil
			}
			proto, addrs, p = p[6], string(p[8:40]), p[40:min(len(p), 40+int(binary.BigEndian.Uint16(p[4:])))]
		} else {
			h, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
			if h > total || total > len(p) || binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
				return 0, "", nil
			}
			proto, addrs, p = p[9], string(p[12:20]), p[h:total]
		}
		if proto != 4 && proto != 41 {
			return proto, addrs, p
		}
	}
	return 0, "", nil
}

// capture is the SIP-like content of a capture: datagrams, and each direction of
// each TCP connection as far as it is without gaps.
func capture(t testing.TB, b []byte) (datagrams, streams [][]byte) {
	t.Helper()
	type flow struct {
		next  uint32
		bytes []byte
	}
	flows := map[string]*flow{}
	var order []string
	ps, links := packets(t, b)
	for i, p := range ps {
		proto, addrs, seg := transport(links[i], p)
		switch {
		case proto == 17 && len(seg) > 8:
			datagrams = append(datagrams, seg[8:])
		case proto == 6 && len(seg) >= 20 && len(seg) > int(seg[12]>>4)*4:
			data := seg[int(seg[12]>>4)*4:]
			key, seq := addrs+string(seg[:4]), binary.BigEndian.Uint32(seg[4:])
			f := flows[key]
			if f == nil {
				f = &flow{next: seq}
				flows[key] = f
				order = append(order, key)
			}
			if f.next == seq {
				f.bytes = append(f.bytes, data...)
				f.next += uint32(len(data))
			}
		}
	}
	for _, k := range order {
		streams = append(streams, flows[k].bytes)
	}
	return datagrams, streams
}

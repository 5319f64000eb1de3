package fastpath

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
)

// The flags of tc.bpf.c.
const (
	flowV6Out = 1
	flowRTP   = 2
	hopMAC    = 1
	hopXDP    = 2
)

// words returns an address as the program compares it: IPv4 mapped into IPv6, in network byte order.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// port returns a port in network byte order.
func port(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

// headAndLast returns the words of an address as a flow has those that it writes: the last is all of IPv4.
func headAndLast(a netip.Addr) (head [3]uint32, last uint32) {
	w := words(a)
	return [3]uint32(w[:3]), w[3]
}

// joined undoes headAndLast.
func joined(head [3]uint32, last uint32) [4]uint32 { return [4]uint32{head[0], head[1], head[2], last} }

func keyOf(local netip.AddrPort) (k tcKey) {
	k.Local.Word = words(local.Addr())
	k.Port = port(local.Port())
	k.Proto = unix.IPPROTO_UDP
	return k
}

// route is the rewriting of a flow: what arrives from, at in, leaves from out, to.
type route struct {
	from, in, out, to netip.AddrPort
}

// value returns what the program needs to know of a flow, but for the way that it takes.
func (r route) value(rtp bool, dscp int) (v tcFlow) {
	v.Src.Word, v.Sport = words(r.from.Addr()), port(r.from.Port())
	v.NewSrcHead, v.NewSrc = headAndLast(r.out.Addr())
	v.NewDstHead, v.NewDst = headAndLast(r.to.Addr())
	v.NewSport, v.NewDport = port(r.out.Port()), port(r.to.Port())
	v.Tos = uint8(dscp << 2)
	if r.to.Addr().Is6() {
		v.Flags |= flowV6Out
	}
	if rtp {
		v.Flags |= flowRTP
	}
	v.SumAddr = folded(difference(
		append(r.from.Addr().AsSlice(), r.in.Addr().AsSlice()...),
		append(r.out.Addr().AsSlice(), r.to.Addr().AsSlice()...)))
	return v
}

// difference returns what a checksum changes by when old is replaced by new (RFC 1624), not folded, in
// the byte order of packets. Both have an even length of at most 32 bytes.
func difference(old, new []byte) (sum uint32) {
	for ; len(old) > 0; old = old[2:] {
		sum += uint32(^binary.NativeEndian.Uint16(old))
	}
	for ; len(new) > 0; new = new[2:] {
		sum += uint32(binary.NativeEndian.Uint16(new))
	}
	return sum
}

// folded returns the sum of the two halves of a sum, which to a checksum is the same.
func folded(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// lost returns the cumulative number of packets lost (RFC 3550 A.3); it wraps as an int32 does.
func (v *tcFlow) lost() int32 { return int32(v.Rtp.Expected - v.Rtp.Received) }

func (v *tcFlow) jitter() time.Duration {
	if v.Clock.Rate == 0 {
		return 0
	}
	return time.Duration(float64(v.Rtp.Jitter) / 16 / float64(v.Clock.Rate) * float64(time.Second))
}

// since returns what the program has counted between two looks at a flow.
func (v *tcFlow) since(seen *tcFlow, c clock) media.Carried {
	d := media.Carried{
		Packets: v.Packets - seen.Packets, Bytes: v.Bytes - seen.Bytes,
		Received: int64(v.Rtp.Received - seen.Rtp.Received), Lost: int64(v.lost() - seen.lost()), Jitter: v.jitter(),
	}
	if v.Last > seen.Last {
		d.Last = c.time(v.Last)
	}
	return d
}

// clock is one moment on two clocks: the monotonic one, which the program uses, and Go's.
type clock struct {
	ns  uint64
	now time.Time
}

func readClock() (clock, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return clock{}, err
	}
	return clock{ns: uint64(ts.Nano()), now: time.Now()}, nil
}

func (c clock) time(ns uint64) time.Time { return c.now.Add(-time.Duration(c.ns - ns)) }

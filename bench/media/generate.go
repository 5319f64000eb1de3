package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// burst is how many packets leave in one system call.
const burst = 32

// generator sends RTP packets of many streams, in turn, as whole frames: a socket per stream would
// cost more than the relay that is measured. The UDP checksum is 0 (none), as IPv4 allows.
type generator struct {
	fd     int
	frames [][]byte
	msgs   [burst]mmsghdr
	vecs   [burst]unix.Iovec
	next   int
}

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

const (
	ethLen = 14
	ipLen  = 20
	udpLen = 8
)

func newGenerator(r *rig, ports []uint16, size int) (*generator, error) {
	g := &generator{fd: -1}
	for i, p := range ports {
		g.frames = append(g.frames, frame(r, uint16(firstPort+2*i), p, uint32(i), size))
	}
	for i := range g.msgs {
		g.msgs[i].hdr.Iov = &g.vecs[i]
		g.msgs[i].hdr.SetIovlen(1)
	}
	err := within(r.gen, func() error {
		var err error
		if g.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		dev, err := net.InterfaceByName("gen0")
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(g.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return err
		}
		return unix.Bind(g.fd, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	})
	return g, err
}

func (g *generator) close() { unix.Close(g.fd) }

// frame returns an Ethernet frame with an RTP packet of G.711 in size bytes of UDP payload.
func frame(r *rig, src, dst uint16, ssrc uint32, size int) []byte {
	b := make([]byte, ethLen+ipLen+udpLen+size)
	copy(b, r.gwMAC)
	copy(b[6:], r.genMAC)
	b[12] = 8
	ip := b[ethLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+udpLen+size))
	from, to := netip.MustParseAddr(genAddr).As4(), netip.MustParseAddr(gwInAddr).As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	sum := uint32(0)
	for i := 0; i < ipLen; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	udp := ip[ipLen:]
	binary.BigEndian.PutUint16(udp, src)
	binary.BigEndian.PutUint16(udp[2:], dst)
	binary.BigEndian.PutUint16(udp[4:], uint16(udpLen+size))
	rtp := udp[udpLen:]
	rtp[0] = 0x80
	binary.BigEndian.PutUint32(rtp[8:], ssrc)
	return b
}

// run sends at a rate (packets/s) for a time, and returns how many packets left in how long.
func (g *generator) run(rate float64, length time.Duration) (sent uint64, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return 0, 0, err
	}
	if err := pin(0, genCPU); err != nil {
		return 0, 0, err
	}
	defer func() {
		err = errors.Join(err, unix.SchedSetaffinity(0, &old), unix.Setpriority(unix.PRIO_PROCESS, 0, 0))
	}()
	start := time.Now()
	for {
		took = time.Since(start)
		if took >= length {
			return sent, took, nil
		}
		due := uint64(took.Seconds() * rate)
		if due < sent+min(burst, uint64(rate/2000)+1) {
			rest := unix.NsecToTimespec(50_000)
			// An early end of the sleep is as good.
			_ = unix.Nanosleep(&rest, nil)
			continue
		}
		n, err := g.send(int(min(due-sent, burst)))
		sent += uint64(n)
		if err != nil {
			return sent, took, err
		}
	}
}

// send sends the next n packets.
func (g *generator) send(n int) (int, error) {
	for i := range n {
		b := g.frames[g.next]
		g.next = (g.next + 1) % len(g.frames)
		rtp := b[ethLen+ipLen+udpLen:]
		binary.BigEndian.PutUint16(rtp[2:], binary.BigEndian.Uint16(rtp[2:])+1)
		binary.BigEndian.PutUint32(rtp[4:], binary.BigEndian.Uint32(rtp[4:])+160)
		g.vecs[i].Base = &b[0]
		g.vecs[i].SetLen(len(b))
	}
	done := 0
	for done < n {
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(g.fd),
			uintptr(unsafe.Pointer(&g.msgs[done])), uintptr(n-done), 0, 0, 0)
		switch {
		case errno == unix.ENOBUFS || errno == unix.EAGAIN || errno == unix.EINTR:
			// The link's ring is full: the gateway lost these, as it would from a real network.
			done++
		case errno != 0:
			return done, errno
		default:
			done += int(sent)
		}
	}
	return done, nil
}

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"edged.dev/edged/bench/veth"
)

const (
	ethLen, ipLen, udpLen = 14, 20, 8
	// minSize holds the RTP header and the time stamp of wire.bpf.c; maxSize is its limit, and what a link of
	// 1,500 bytes carries.
	minSize, maxSize = 24, 1472
	maxStreams       = 16384
	// slot is how much later the packets in the next slot of the histogram were.
	slot  = 1024 * time.Nanosecond
	slots = 32768
	// overdue is how long the generator may take to begin and to end.
	overdue = 10 * time.Second
	// busy is the part of a trial, in per cent, for which a gateway that is at its limit works at least. The kernel
	// leaves 5 % of a core to programs without real-time priority.
	busy = 88
)

// wire is the programs of wire.bpf.c: what sends, and what receives.
type wire struct {
	objs  wireObjects
	links []link.Link
	// gen is the namespace of the generator, device its index there.
	gen    string
	device uint32
	plan   wirePlan
	frame  []byte
	run    uint32
}

func newWire() (*wire, error) {
	w := &wire{}
	if err := loadWireObjects(&w.objs, nil); err != nil {
		return nil, fmt.Errorf("load the generator: %w", err)
	}
	return w, nil
}

func (w *wire) close() {
	for _, l := range w.links {
		l.Close()
	}
	w.objs.Close()
}

// attach puts a program before the network stack of a device, in its driver.
func attach(ns, device string, p *ebpf.Program) (l link.Link, err error) {
	err = veth.Within(ns, func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: d.Index, Flags: link.XDPDriverMode})
		return err
	})
	return l, err
}

// traffic is what the generator sends: streams in turn, one for each port in to, burst packets of each.
type traffic struct {
	srcMAC, dstMAC net.HardwareAddr
	src, dst       netip.Addr
	to             []uint16
	// size is that of the UDP payload, minSize to maxSize and a multiple of 4.
	size, burst int
	// channel goes before the data, 4 bytes, if it is not nil.
	channel []byte
}

// peerPort is the port from which the peers of stream i send, on both sides.
func peerPort(i int) uint16 { return uint16(firstPort + 2*i) }

// aim has the generator send t from now on.
func (w *wire) aim(t traffic) error {
	w.frame = t.frame(0)
	w.plan = wirePlan{
		UdpLen: binary.NativeEndian.Uint16(w.frame[ethLen+ipLen+4:]), Device: w.device,
		Streams: uint32(len(t.to)), Burst: uint32(t.burst),
	}
	copy(w.plan.Head[:], w.frame)
	if t.channel != nil {
		w.plan.Channel = binary.NativeEndian.Uint32(t.channel)
	}
	keys, values := make([]uint32, len(t.to)), make([]wireStream, len(t.to))
	for i := range t.to {
		f := t.frame(i)
		udp := f[ethLen+ipLen:]
		keys[i] = uint32(i)
		values[i] = wireStream{
			Sport: binary.NativeEndian.Uint16(udp), Dport: binary.NativeEndian.Uint16(udp[2:]),
			Ssrc: binary.NativeEndian.Uint32(udp[udpLen+len(t.channel)+8:]), Sum: uint32(udpSum(f)),
		}
	}
	if _, err := w.objs.Streams.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("streams: %w", err)
	}
	return nil
}

// frame returns an Ethernet frame of stream i, complete but for what the generator writes: sequence number,
// timestamp, number of the trial and time of sending are 0, and so is the UDP checksum.
func (t traffic) frame(i int) []byte {
	size := len(t.channel) + t.size
	b := make([]byte, ethLen+ipLen+udpLen+size)
	copy(b, t.dstMAC)
	copy(b[6:], t.srcMAC)
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	ip := b[ethLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+udpLen+size))
	copy(ip[12:], t.src.AsSlice())
	copy(ip[16:], t.dst.AsSlice())
	binary.NativeEndian.PutUint16(ip[10:], ^fold(sum(ip[:ipLen])))
	udp := ip[ipLen:]
	binary.BigEndian.PutUint16(udp, peerPort(i))
	binary.BigEndian.PutUint16(udp[2:], t.to[i])
	binary.BigEndian.PutUint16(udp[4:], uint16(udpLen+size))
	rtp := udp[udpLen+copy(udp[udpLen:], t.channel):]
	rtp[0] = 0x80
	binary.BigEndian.PutUint32(rtp[8:], uint32(i+1))
	for j := minSize; j < len(rtp); j++ {
		rtp[j] = 0xd5 // silence of G.711
	}
	return b
}

// sum adds the 16-bit words of b (of even length) in the machine's own order: RFC 1071 §2 (B), the order
// does not matter.
func sum(b []byte) (s uint64) {
	for i := 0; i < len(b); i += 2 {
		s += uint64(binary.NativeEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// udpSum is the sum that the UDP checksum of a frame completes (RFC 768): pseudo header, header and data.
func udpSum(frame []byte) uint64 {
	ip, udp := frame[ethLen:], frame[ethLen+ipLen:]
	proto := [2]byte{0, unix.IPPROTO_UDP}
	return sum(ip[12:20]) + sum(proto[:]) + sum(udp[4:6]) + sum(udp)
}

// trial is what happened at one rate.
type trial struct {
	sent, arrived uint64
	took          time.Duration
	cpu           time.Duration
	mallocs       uint64
	// verified packets had their checksums verified, bad had a wrong one; unfinished are those that a network
	// card was to complete.
	verified, bad, unfinished uint64
	// delays counts the packets by their delay in slots.
	delays []uint64
}

// send sends at a rate (packets/s, 0: as fast as possible) for a time.
func (w *wire) send(rate float64, length time.Duration) (trial, error) {
	w.run++
	plan, batch := w.plan, 16
	plan.Run, plan.Length = w.run, uint64(length)
	if plan.Interval = 0; rate > 0 {
		plan.Interval = uint64(256e9 / rate)
	} else {
		batch = 64
	}
	err := errors.Join(w.objs.Run.Set(w.run), w.objs.Current.Set(plan), w.objs.Progress.Set(wireMade{}))
	if err != nil {
		return trial{}, err
	}
	err = veth.Within(w.gen, func() error {
		if err := realTime(0, genCPU, prioGenerator); err != nil {
			return err
		}
		over, watched, thread := make(chan struct{}), make(chan error, 1), unix.Gettid()
		go func() { watched <- w.endIt(thread, length, over) }()
		err := w.testRun(batch)
		close(over)
		return errors.Join(err, <-watched)
	})
	var m wireMade
	if err = errors.Join(err, w.objs.Progress.Get(&m)); err != nil {
		return trial{}, fmt.Errorf("generator: %w", err)
	}
	return trial{sent: m.Packets, took: time.Duration(m.Ended - m.Began)}, nil
}

// endIt ends the generator's system call, which has no end of its own, when its time is over.
func (w *wire) endIt(thread int, length time.Duration, over <-chan struct{}) error {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := realTime(0, genCPU, prioWatch); err != nil {
		return err
	}
	rest, late := unix.NsecToTimespec(int64(length)), time.Now().Add(length+overdue)
	for {
		// An early end of the sleep is as good.
		_ = unix.Nanosleep(&rest, nil)
		select {
		case <-over:
			return nil
		default:
		}
		var m wireMade
		if err := w.objs.Progress.Get(&m); err != nil {
			return err
		}
		if m.Ended != 0 || time.Now().After(late) {
			if err := unix.Tgkill(os.Getpid(), thread, unix.SIGURG); err != nil {
				return err
			}
		}
		rest = unix.NsecToTimespec(int64(time.Millisecond))
	}
}

// testRun runs the generator on live frames, batch of them at a time, until a signal ends it.
func (w *wire) testRun(batch int) error {
	const progTestRun, liveFrames = 10, 2 // BPF_PROG_TEST_RUN, BPF_F_TEST_XDP_LIVE_FRAMES
	attr := struct {
		fd, result, sizeIn, sizeOut uint32
		in, out                     uint64
		repeat, duration            uint32
		contextIn, contextOut       uint32
		contextAt, contextTo        uint64
		flags, cpu, batch, zero     uint32
	}{
		fd: uint32(w.objs.Generate.FD()), sizeIn: uint32(len(w.frame)),
		in: uint64(uintptr(unsafe.Pointer(&w.frame[0]))), repeat: 1<<31 - 1, flags: liveFrames, batch: uint32(batch),
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(w)
	if errno != 0 && errno != unix.EINTR {
		return fmt.Errorf("BPF_PROG_TEST_RUN: %w", errno)
	}
	return nil
}

// received returns what t has received of the current trial, and the delays, so far.
func (w *wire) received(t *ebpf.Variable) (tally wireTally, delays []uint64, err error) {
	if err := t.Get(&tally); err != nil {
		return tally, nil, fmt.Errorf("tally: %w", err)
	}
	var cursor ebpf.MapBatchCursor
	keys := make([]uint32, slots)
	delays = make([]uint64, slots)
	if _, err := w.objs.Delays.BatchLookup(&cursor, keys, delays, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return tally, nil, fmt.Errorf("delays: %w", err)
	}
	return tally, delays, nil
}

// percentile returns the delay that p % of the packets did not exceed.
func (t trial) percentile(p float64) time.Duration {
	var all, seen uint64
	for _, n := range t.delays {
		all += n
	}
	for i, n := range t.delays {
		if seen += n; n > 0 && float64(seen) >= p/100*float64(all) {
			return time.Duration(i+1) * slot
		}
	}
	return 0
}

func (t trial) loss() float64 { return 1 - float64(t.arrived)/float64(max(t.sent, 1)) }

// rate is what arrived, in packets/s.
func (t trial) rate() float64 { return float64(t.arrived) / max(t.took, 1).Seconds() }

// asked is what was sent, in packets/s.
func (t trial) asked() float64 { return float64(t.sent) / max(t.took, 1).Seconds() }

// cost is the CPU time of the gateway per packet that arrived, in ns.
func (t trial) cost() float64 { return float64(t.cpu) / float64(max(t.arrived, 1)) }

// disturbed tells whether packets were lost, or late, although the gateway had time: then somebody else had its core
// (another's real-time threads, the hypervisor), or the sink's.
func (t trial) disturbed() bool { return t.cpu < t.took*busy/100 }

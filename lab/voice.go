//go:build lab

package lab

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Voice is an RTP peer: it speaks a tone (PCMU, 20 ms) and keeps what it hears.
type Voice struct {
	Hz   int
	Addr netip.AddrPort
	pc   *net.UDPConn
	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	pcm  []int16
	got  map[netip.AddrPort]int // packets by source
	sent int
	to   netip.AddrPort
}

// Voice binds addr (port 0: any) in the host's namespace and listens.
func (h *Host) Voice(t testing.TB, addr netip.AddrPort, hz int) *Voice {
	t.Helper()
	v := &Voice{Hz: hz, stop: make(chan struct{}), got: map[netip.AddrPort]int{}}
	must(t, "voice", h.Do(func() (err error) {
		v.pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	}))
	v.Addr = v.pc.LocalAddr().(*net.UDPAddr).AddrPort()
	v.Addr = netip.AddrPortFrom(v.Addr.Addr().Unmap(), v.Addr.Port())
	v.wg.Go(v.listen)
	v.wg.Go(v.speak)
	t.Cleanup(v.Close)
	return v
}

// Close ends the voice; a second call does nothing.
func (v *Voice) Close() {
	select {
	case <-v.stop:
		return
	default:
	}
	close(v.stop)
	_ = v.pc.Close()
	v.wg.Wait()
}

// Talk sends the tone to an address from now on; the zero value stops it.
func (v *Voice) Talk(to netip.AddrPort) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.to = to
}

func (v *Voice) speak() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	wave := tone(v.Hz, time.Second)
	packet := make([]byte, 12+160)
	packet[0] = 0x80
	binary.BigEndian.PutUint32(packet[8:], uint32(v.Hz)<<16|uint32(v.Addr.Port()))
	for n := 0; ; n++ {
		select {
		case <-v.stop:
			return
		case <-tick.C:
		}
		v.mu.Lock()
		to := v.to
		v.mu.Unlock()
		binary.BigEndian.PutUint16(packet[2:], uint16(n))
		binary.BigEndian.PutUint32(packet[4:], uint32(n*160))
		for i := range 160 {
			packet[12+i] = ulaw(wave[(n*160+i)%len(wave)])
		}
		if !to.IsValid() {
			continue
		}
		if _, err := v.pc.WriteToUDPAddrPort(packet, to); err == nil {
			v.mu.Lock()
			v.sent++
			v.mu.Unlock()
		}
	}
}

func (v *Voice) listen() {
	buf := make([]byte, 2048)
	for {
		n, from, err := v.pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier packet
		}
		v.hear(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), buf[:n])
	}
}

func (v *Voice) hear(from netip.AddrPort, b []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.got[from]++
	if len(b) > 12 && b[0]>>6 == 2 && b[1]&0x7f == 0 {
		for _, c := range b[12:] {
			v.pcm = append(v.pcm, unulaw(c))
		}
	}
}

// Heard says what the voice heard since Forget.
func (v *Voice) Heard() Sound {
	v.mu.Lock()
	defer v.mu.Unlock()
	return hear(v.pcm)
}

// Packets returns how many packets came since Forget, from whomever.
func (v *Voice) Packets() (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.got {
		n += c
	}
	return n
}

// Sent returns how many packets the voice sent since Forget: on a busy machine fewer than one in 20 ms.
func (v *Voice) Sent() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.sent
}

// Forget drops what was heard, and counts anew.
func (v *Voice) Forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pcm, v.got, v.sent = nil, map[netip.AddrPort]int{}, 0
}

// wantVoice waits until v has heard d of hz, and checks that it heard next to nothing else.
func wantVoice(t testing.TB, who string, v *Voice, hz int, d time.Duration) {
	t.Helper()
	until(d+10*time.Second, func() bool { s := v.Heard(); return s.near(hz) && s.Voiced >= d })
	s := v.Heard()
	t.Logf("%s heard %v", who, s)
	if !s.near(hz) || s.Voiced < d || s.Other > s.Voiced/5 {
		t.Errorf("%s heard %v, want %v of %d Hz", who, s, d, hz)
	}
}

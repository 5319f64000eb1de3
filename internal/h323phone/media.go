package h323phone

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// media receives RTP and RTCP on a pair of ports, and sends RTP from a third one; behind a NAT from the first.
type media struct {
	rtp, rtcp, out *net.UDPConn
	// Wrong counts packets that are not the other phone's audio.
	heard, wrong atomic.Int64
	// missed counts numbers of packets that did not come before a later one.
	missed atomic.Int64
	// own and peer are what packets to this phone and to the other begin with at shared ports; nil: nothing.
	own, peer   atomic.Pointer[uint32]
	stop        chan struct{}
	once, talks sync.Once
	work        sync.WaitGroup
}

// newMedia binds an even port and the next one.
func newMedia(at netip.Addr, symmetric bool) (*media, error) {
	for range 100 {
		rtp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		if err != nil {
			return nil, err
		}
		a := local(rtp)
		if a.Port()%2 == 0 {
			rtcp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, a.Port()+1)))
			if err == nil {
				return begin(rtp, rtcp, at, symmetric)
			}
		}
		rtp.Close()
	}
	return nil, fmt.Errorf("no pair of ports at %s", at)
}

func begin(rtp, rtcp *net.UDPConn, at netip.Addr, symmetric bool) (*media, error) {
	out, err := rtp, error(nil)
	if !symmetric {
		out, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	}
	if err != nil {
		rtp.Close()
		rtcp.Close()
		return nil, err
	}
	m := &media{rtp: rtp, rtcp: rtcp, out: out, stop: make(chan struct{})}
	m.work.Go(m.listen)
	return m, nil
}

func local(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func (m *media) rtpAddr() netip.AddrPort  { return local(m.rtp) }
func (m *media) rtcpAddr() netip.AddrPort { return local(m.rtcp) }

const (
	payload = 160
	size    = 12 + payload
)

// listen counts the audio that arrives: each octet says which packet it belongs to.
func (m *media) listen() {
	buf := make([]byte, 2048)
	next, begun := uint16(0), false
	for {
		n, _, err := m.rtp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		b := buf[:n]
		if own := m.own.Load(); own != nil {
			if n < 4 || binary.BigEndian.Uint32(b) != *own {
				m.wrong.Add(1)
				continue
			}
			b = b[4:]
		}
		n = len(b)
		if n == 12 && b[0] == 0x80 {
			continue // a keep-alive of a phone behind a NAT
		}
		if n == size && b[0] == 0x80 && b[1] == 8 && b[12] == b[3] && b[size-1] == b[3] {
			m.heard.Add(1)
			seq := binary.BigEndian.Uint16(b[2:])
			switch gap := int16(seq - next); {
			case !begun || gap == 0:
			case gap > 0:
				m.missed.Add(int64(gap))
			default: // it is late, and was counted
				m.missed.Add(-1)
				continue
			}
			next, begun = seq+1, true
		} else {
			m.wrong.Add(1)
		}
	}
}

// talk sends audio until the call ends; only the first address counts.
func (m *media) talk(to netip.AddrPort) {
	m.talks.Do(func() { m.work.Go(func() { m.send(to) }) })
}

func (m *media) send(to netip.AddrPort) {
	tick := time.NewTicker(frame)
	defer tick.Stop()
	var b [size]byte
	b[0], b[1] = 0x80, 8 // version 2, PCMA
	binary.BigEndian.PutUint32(b[8:], 0x48323233)
	for seq := uint16(0); ; seq++ {
		binary.BigEndian.PutUint16(b[2:], seq)
		binary.BigEndian.PutUint32(b[4:], uint32(seq)*payload)
		for i := 12; i < size; i++ {
			b[i] = byte(seq)
		}
		_, _ = m.out.WriteToUDPAddrPort(m.tagged(b[:]), to) // a refusal (ICMP) is the other's, and may pass
		select {
		case <-m.stop:
			return
		case <-tick.C:
		}
	}
}

// tagged returns a packet with what it must begin with.
func (m *media) tagged(b []byte) []byte {
	if id := m.peer.Load(); id != nil {
		return append(binary.BigEndian.AppendUint32(nil, *id), b...)
	}
	return b
}

func (m *media) close() {
	m.once.Do(func() {
		close(m.stop)
		m.rtp.Close()
		m.rtcp.Close()
		m.work.Wait()
		m.out.Close()
	})
}

// Heard returns how many packets of the other phone's audio have arrived, and how many others.
func (c *Call) Heard() (audio, wrong int64) { return c.media.heard.Load(), c.media.wrong.Load() }

// Missed returns how many packets of the other phone's audio have not arrived since the first that has, by their numbers.
func (c *Call) Missed() int64 { return c.media.missed.Load() }

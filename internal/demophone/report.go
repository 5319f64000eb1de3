package demophone

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/pion/rtcp"
)

// sendReport sends an RTCP sender report after frame i (RFC 3550 §6.4.1).
func (s *Stream) sendReport(i uint32, remote netip.AddrPort) {
	now := time.Now()
	s.mu.Lock()
	sr := rtcp.SenderReport{
		SSRC:        s.send.SSRC(),
		NTPTime:     binary.BigEndian.Uint64(ntpTime(now)),
		RTPTime:     s.send.Timestamp() + i*frameSamples,
		PacketCount: uint32(s.stats.Sent),
		OctetCount:  uint32(s.stats.Sent * frameSamples),
		Reports:     s.receptionLocked(now),
	}
	s.mu.Unlock()
	name := rtcp.SourceDescription{Chunks: []rtcp.SourceDescriptionChunk{{
		Source: sr.SSRC,
		Items:  []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: "demo"}},
	}}}
	b, err := rtcp.Marshal([]rtcp.Packet{&sr, &name})
	if err != nil {
		return // cannot be: all fields are in range
	}
	// A lost report is the far end's to count.
	_, _ = s.rtcp.WriteToUDPAddrPort(b, netip.AddrPortFrom(remote.Addr(), remote.Port()+1))
}

// receptionLocked reports on what was heard, nothing before the first frame.
func (s *Stream) receptionLocked(now time.Time) []rtcp.ReceptionReport {
	k := &s.heard
	if k.places == 0 {
		return nil
	}
	r := rtcp.ReceptionReport{
		SSRC:               s.recv.SSRC(),
		TotalLost:          uint32(int(k.places) - k.unique),
		LastSequenceNumber: uint32(s.recv.Sequence()) + k.places - 1,
		Jitter:             uint32(k.jitter),
	}
	if !s.lastSRAt.IsZero() {
		r.LastSenderReport = s.lastSR
		r.Delay = uint32(now.Sub(s.lastSRAt).Seconds() * 65536)
	}
	return []rtcp.ReceptionReport{r}
}

func (s *Stream) receiveReports() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.rtcp.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // an ICMP error of an earlier send
		}
		s.report(buf[:n], from.Addr().Unmap())
	}
}

// report counts a received sender report of the expected source.
func (s *Stream) report(b []byte, from netip.Addr) {
	packets, err := rtcp.Unmarshal(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if from != s.source {
		s.stats.Refused++
		return
	}
	if err != nil || len(packets) == 0 {
		return
	}
	if sr, ok := packets[0].(*rtcp.SenderReport); ok && sr.SSRC == s.recv.SSRC() {
		s.stats.Reports++
		s.lastSR, s.lastSRAt = uint32(sr.NTPTime>>16), time.Now()
	}
}

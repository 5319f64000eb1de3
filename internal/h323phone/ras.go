package h323phone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

// Registration is a phone's registration with a gatekeeper.
type Registration struct {
	phone *Phone
	conn  *net.UDPConn
	seq   int64
	id    string
	// Expires is after how long it ends.
	Expires time.Duration
}

// rasTries is how often a request is sent, rasWait how long an answer is waited for.
const (
	rasTries = 5
	rasWait  = time.Second
)

// Discover asks all gatekeepers, by multicast, and returns where the first takes requests that answers.
func (p *Phone) Discover(ctx context.Context) (netip.AddrPort, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.addr, 0)))
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer conn.Close()
	if err := multicastBy(conn, p.addr); err != nil {
		return netip.AddrPort{}, err
	}
	b, err := ras.Append(nil, ras.GRQ, append(p.traversal(), per.F("rasAddress", h245.CallAddress(local(conn))),
		per.F("endpointType", endpoint()), per.F("requestSeqNum", per.Number(1)))...)
	if err != nil {
		return netip.AddrPort{}, err
	}
	buf := make([]byte, 4096)
	for range rasTries {
		if _, err := conn.WriteToUDPAddrPort(b, netip.MustParseAddrPort("224.0.1.41:1718")); err != nil {
			return netip.AddrPort{}, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(rasWait))
		n, err := conn.Read(buf)
		if ctx.Err() != nil {
			return netip.AddrPort{}, ctx.Err()
		}
		if err != nil {
			continue
		}
		m, err := ras.NewCodec().Decode(buf[:n])
		if err != nil || m.Kind != ras.GCF {
			continue
		}
		for _, a := range m.Addresses(nil) {
			if a.Field == h245.RasAddress {
				return a.AddrPort, nil
			}
		}
	}
	return netip.AddrPort{}, errors.New("no gatekeeper was found")
}

// multicastBy has multicasts leave by the interface of an address.
func multicastBy(conn *net.UDPConn, at netip.Addr) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInet4Addr(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, at.As4())
	})
	return errors.Join(err, failed)
}

// Register discovers the gatekeeper at an address and registers the phone's name there.
func (p *Phone) Register(ctx context.Context, gatekeeper netip.AddrPort) (*Registration, error) {
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.addr, 0)), net.UDPAddrFromAddrPort(gatekeeper))
	if err != nil {
		return nil, err
	}
	r := &Registration{phone: p, conn: conn}
	own := h245.CallAddress(conn.LocalAddr().(*net.UDPAddr).AddrPort())
	if _, err := r.ask(ctx, ras.GRQ, ras.GCF,
		append(p.traversal(), per.F("rasAddress", own), per.F("endpointType", endpoint()))...); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	m, err := r.ask(ctx, ras.RRQ, ras.RCF, append(p.traversal(),
		per.F("discoveryComplete", per.Truth(true)), per.F("callSignalAddress", per.Elements(h245.CallAddress(p.Addr()))),
		per.F("rasAddress", per.Elements(own)), per.F("terminalType", endpoint()),
		per.F("terminalAlias", per.Elements(h225.H323ID(p.Name))),
		per.F("endpointVendor", per.Fields(per.F("vendor", per.Fields(per.F("t35CountryCode", per.Number(181)),
			per.F("t35Extension", per.Number(0)), per.F("manufacturerCode", per.Number(1)))))),
		per.F("keepAlive", per.Truth(false)), per.F("willSupplyUUIEs", per.Truth(false)))...)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	r.id = m.EndpointID()
	r.Expires, _ = m.TimeToLive()
	return r, nil
}

// Admit asks whether a name may be called, and returns where to call it.
func (r *Registration) Admit(ctx context.Context, called string) (netip.AddrPort, error) {
	m, err := r.ask(ctx, ras.ARQ, ras.ACF,
		per.F("callType", per.Alternative("pointToPoint", per.Nothing())), per.F("endpointIdentifier", per.Text(r.id)),
		per.F("destinationInfo", per.Elements(h225.H323ID(called))), per.F("srcInfo", per.Elements(h225.H323ID(r.phone.Name))),
		per.F("bandWidth", per.Number(1280)), per.F("callReferenceValue", per.Number(1)),
		per.F("conferenceID", per.Octet(make([]byte, 16))), per.F("activeMC", per.Truth(false)), per.F("answerCall", per.Truth(false)),
		per.F("canMapAlias", per.Truth(true)), per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(make([]byte, 16))))),
		per.F("willSupplyUUIEs", per.Truth(false)))
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, a := range m.Addresses(nil) {
		if a.Field == h245.DestCallSignalAddress {
			return a.AddrPort, nil
		}
	}
	return netip.AddrPort{}, errors.New("admitted, but to nowhere")
}

// ask sends a request until it is answered.
func (r *Registration) ask(ctx context.Context, k, want ras.Kind, f ...per.Field) (*ras.Message, error) {
	r.seq++
	b, err := ras.Append(nil, k, append(f, per.F("requestSeqNum", per.Number(r.seq)))...)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	for range rasTries {
		if _, err := r.conn.Write(b); err != nil {
			return nil, err
		}
		_ = r.conn.SetReadDeadline(time.Now().Add(rasWait))
		n, err := r.conn.Read(buf)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			continue
		}
		m, err := ras.NewCodec().Decode(buf[:n])
		switch {
		case err != nil:
			return nil, err
		case int64(m.SeqNum()) != r.seq:
			continue
		case m.Kind != want:
			return nil, fmt.Errorf("%s was answered by %s: %s", k, m.Kind, m.RejectReason())
		}
		return m, nil
	}
	return nil, fmt.Errorf("%s was not answered", k)
}

// Close forgets the registration; the gatekeeper does so when it expires.
func (r *Registration) Close() error { return r.conn.Close() }

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"

	"edged.dev/edged/pkg/media/fastpath"
)

// sharedAddresses are those of carriers' NATs (RFC 6598).
func sharedAddresses() netip.Prefix { return netip.MustParsePrefix("100.64.0.0/10") }

// nat looks whether the addresses that the edge writes into messages are those at which it is reached.
func (x *exam) nat(ctx context.Context) []finding {
	var out []finding
	for _, name := range x.cfg.byName() {
		n := x.cfg.Networks[name]
		_, own := x.deviceOf(name, false)
		if n.trusted() && (n.Trusted != nil || !n.Advertise.IsValid()) || !own.IsValid() {
			continue
		}
		if x.flags.stun != "" {
			out = append(out, x.askSTUN(ctx, name, own))
			continue
		}
		hidden := own.IsPrivate() || sharedAddresses().Contains(own)
		if hidden && !n.Advertise.IsValid() && len(n.Subnets) == 0 {
			out = append(out, finding{
				Level: fastpath.Warn, About: "NAT " + name, Text: fmt.Sprintf("%s is private: there is a NAT in front", own), Why: "messages name an address that nobody outside reaches: no audio, no incoming calls",
				Remedy: fmt.Sprintf("networks.%s.advertise: the public address (edged doctor --stun HOST:PORT finds it), and the NAT forwards all ports 1:1", name),
			})
		}
	}
	return out
}

// askSTUN compares what the edge says of its address with what a server outside sees.
func (x *exam) askSTUN(ctx context.Context, name string, own netip.Addr) finding {
	about, n := "NAT "+name, x.cfg.Networks[name]
	seen, err := stunAddress(ctx, own, x.flags.stun)
	if err != nil {
		return finding{
			Level: fastpath.Warn, About: about, Text: fmt.Sprintf("the STUN server %s does not answer %s: %v", x.flags.stun, own, err), Why: "whether there is a NAT in front is not known",
			Remedy: "name another server with --stun; if none answers, UDP does not get out",
		}
	}
	says := own
	if n.Advertise.IsValid() && n.Advertise.Is4() {
		says = n.Advertise
	}
	if seen == says {
		return fine(about, "%s is seen as %s, which is what messages say", own, seen)
	}
	return finding{
		Level: fastpath.Fail, About: about, Text: fmt.Sprintf("%s is seen as %s, but messages say %s", own, seen, says), Why: "peers send audio and calls to the wrong address",
		Remedy: fmt.Sprintf("networks.%s.advertise: %s, and the NAT forwards all ports 1:1", name, seen),
	}
}

// stunAddress asks a server (RFC 8489 Binding) how it sees an address of this machine. It takes two seconds at most.
func stunAddress(ctx context.Context, own netip.Addr, server string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0))}
	conn, err := d.DialContext(ctx, "udp4", server)
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	msg, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.Fingerprint)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("stun: %w", err)
	}
	for range 4 {
		if _, err := conn.Write(msg.Raw); err != nil {
			return netip.Addr{}, err
		}
		answer, err := readSTUN(conn, msg.TransactionID)
		if err == nil || ctx.Err() != nil {
			return answer, err
		}
	}
	return netip.Addr{}, errors.New("no answer")
}

func readSTUN(conn net.Conn, id [stun.TransactionIDSize]byte) (netip.Addr, error) {
	if err := conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		return netip.Addr{}, err
	}
	var resp stun.Message
	if err := stun.Decode(buf[:n], &resp); err != nil || resp.TransactionID != id {
		return netip.Addr{}, errors.New("what answers is no STUN server")
	}
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(&resp); err != nil {
		return netip.Addr{}, fmt.Errorf("the answer has no address: %w", err)
	}
	a, _ := netip.AddrFromSlice(mapped.IP)
	return a.Unmap(), nil
}

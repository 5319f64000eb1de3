package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"time"

	"github.com/pion/stun/v4"

	"edged.dev/edged/bench/veth"
	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

const (
	turnPort = 3478
	// channel is the number of every client's only channel; channelLen is how long what goes before its data is.
	channel    = 0x4000
	channelLen = 4
	// answerTime is how long coturn may take to answer, of so many requests.
	answerTime, requests = 500 * time.Millisecond, 10
)

// channelHeader is what goes before n bytes of data.
func channelHeader(n int) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, channel), uint16(n))
}

// sides are who is where: clients and the edge's address that they know, the edge's address that peers know, and peers.
type sides struct {
	client, front, relay, peer, relayNetwork string
}

func sidesOf(peerSends bool) sides {
	if peerSends {
		return sides{sinkAddr, gwOutAddr, gwInAddr, genAddr, "in"}
	}
	return sides{genAddr, gwInAddr, gwOutAddr, sinkAddr, "out"}
}

func at(host string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), port)
}

// openChannels binds a channel of each of n clients to a peer of its own.
func openChannels(ctx context.Context, r *media.Relay, n int, peerSends bool) (opened, error) {
	var o opened
	s := sidesOf(peerSends)
	l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at(s.front, turnPort)))
	if err != nil {
		return o, err
	}
	front, err := r.Front(l)
	if err != nil {
		return o, err
	}
	for i := range n {
		client := at(s.client, peerPort(i))
		p, err := r.OpenPort(ctx, pinhole.PortRequest{Owner: "bench", Network: s.relayNetwork, Client: client})
		if err != nil {
			return o, err
		}
		if err := p.Bind(pinhole.Channel{Number: channel, Client: client, Front: front, Peer: at(s.peer, peerPort(i))}); err != nil {
			return o, err
		}
		o.Near = append(o.Near, destination(peerSends, p.Local().Addr.Port()))
	}
	return o, nil
}

// destination is the port that the generator sends a stream to.
func destination(peerSends bool, relayed uint16) uint16 {
	if peerSends {
		return relayed
	}
	return turnPort
}

// startCoturn has coturn serve on one core, without authentication, which packets of a channel do not have anyway.
func startCoturn(r *rig, k caseKey) (*gateway, error) {
	if _, err := exec.LookPath("turnserver"); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	peerSends := k.kind == kindPeer
	s := sidesOf(peerSends)
	cmd := r.command("turnserver", "-n", "--no-auth", "--no-cli", "--no-tls", "--no-dtls", "-m", "1",
		"--listening-ip", s.front, "--relay-ip", s.relay, "--listening-port", fmt.Sprint(turnPort), "--realm", "example.org",
		"--min-port", "20000", "--max-port", "59999", "--log-file", "/dev/null", "--pidfile", "/dev/null")
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("coturn: %w", err)
	}
	g := &gateway{addr: netip.MustParseAddr(gwInAddr), pid: cmd.Process.Pid, stop: func() {
		_ = cmd.Process.Kill() // it has no state worth an orderly end
		_ = cmd.Wait()
	}}
	ports, err := r.allocateAll(s, k.streams)
	if err != nil {
		g.stop()
		return nil, fmt.Errorf("coturn: %w", err)
	}
	for _, p := range ports {
		g.ports = append(g.ports, destination(peerSends, p))
	}
	return g, nil
}

// allocateAll has n clients allocate a port and bind their channel. Meanwhile their network is not quiet.
func (r *rig) allocateAll(s sides, n int) (ports []uint16, err error) {
	ns := r.gen
	if s.client == sinkAddr {
		ns = r.sink
	}
	if err := r.objs.Run.Set(uint32(0)); err != nil { // the sink passes everything
		return nil, err
	}
	quiet := func(args ...string) error {
		_, err := veth.Run("ip", append([]string{"netns", "exec", ns, "nft"}, args...)...)
		return err
	}
	if err := quiet("flush", "chain", "ip", "quiet", "in"); err != nil {
		return nil, err
	}
	err = veth.Within(ns, func() error {
		for i := range n {
			port, err := allocate(s, i)
			if err != nil {
				return fmt.Errorf("client %d: %w", i, err)
			}
			ports = append(ports, port)
		}
		return nil
	})
	return ports, errors.Join(err, quiet("add rule ip quiet in ip protocol udp drop"))
}

// allocate is client i: it returns its relayed port. The allocation outlives its socket.
func allocate(s sides, i int) (uint16, error) {
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(at(s.client, peerPort(i))), net.UDPAddrFromAddrPort(at(s.front, turnPort)))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw := func(t stun.AttrType, value ...byte) stun.Setter { return stun.RawAttribute{Type: t, Value: value} }
	reply, err := ask(c, stun.MethodAllocate, raw(stun.AttrRequestedTransport, 17, 0, 0, 0))
	if err != nil {
		return 0, err
	}
	var relayed stun.XORMappedAddress
	if err := relayed.GetFromAs(reply, stun.AttrXORRelayedAddress); err != nil {
		return 0, err
	}
	peer := stun.XORMappedAddress{IP: net.ParseIP(s.peer), Port: int(peerPort(i))}
	_, err = ask(c, stun.MethodChannelBind, raw(stun.AttrChannelNumber, channel>>8, channel&0xff, 0, 0), peerAddress(peer))
	return uint16(relayed.Port), err
}

// peerAddress is the attribute XOR-PEER-ADDRESS.
type peerAddress stun.XORMappedAddress

func (p peerAddress) AddTo(m *stun.Message) error {
	return (*stun.XORMappedAddress)(&p).AddToAs(m, stun.AttrXORPeerAddress)
}

// ask sends a request until it is answered.
func ask(c *net.UDPConn, method stun.Method, attributes ...stun.Setter) (*stun.Message, error) {
	m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attributes...)...)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1500)
	for range requests {
		// Before it listens, an ICMP error says so.
		_, _ = c.Write(m.Raw)
		c.SetReadDeadline(time.Now().Add(answerTime))
		n, err := c.Read(buf)
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		reply := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if err := reply.Decode(); err != nil || reply.TransactionID != m.TransactionID {
			continue
		}
		if reply.Type.Class != stun.ClassSuccessResponse {
			return nil, fmt.Errorf("%s: %s", method, reply)
		}
		return reply, nil
	}
	return nil, fmt.Errorf("%s: no answer", method)
}

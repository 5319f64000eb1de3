package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

const (
	clientIP, nearIP = "192.0.2.10", "192.0.2.1"
	farIP, serverIP  = "198.51.100.1", "198.51.100.20"
	// callTime is after how long a call has failed.
	callTime = 5 * time.Second
)

// load is a process of the load: "server", or "client TARGET FIRST CALLS PARALLEL".
func load(role string) error {
	f := strings.Fields(role)
	if f[0] == "server" {
		return serve()
	}
	var first, calls, parallel int
	if _, err := fmt.Sscan(strings.Join(f[2:], " "), &first, &calls, &parallel); err != nil {
		return err
	}
	return callAll(f[1], first, calls, parallel)
}

// serve answers every call, and says at its end how many Setups bore the gateway's addresses.
func serve() error {
	ln, err := net.Listen("tcp", serverIP+":1720")
	if err != nil {
		return err
	}
	var calls, rewritten atomic.Int64
	var open sync.WaitGroup
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer c.Close()
				calls.Add(1)
				if answer(c) {
					rewritten.Add(1)
				}
			})
		}
	}()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the client has ended
	open.Wait()
	return json.NewEncoder(os.Stdout).Encode([2]int64{calls.Load(), rewritten.Load()})
}

// answer takes a call, and tells whether all media addresses of its Setup were the gateway's.
func answer(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(callTime))
	b, err := receive(c)
	if err != nil {
		return false
	}
	m, err := h225.NewCodec().Decode(b)
	if err != nil || m.Type != q931.Setup {
		return false
	}
	all := len(m.FastStart(nil)) > 0
	for _, a := range m.Addresses(nil) {
		if a.Carrier == h245.FastStart && a.AddrPort.Addr() != netip.MustParseAddr(farIP) {
			all = false
		}
	}
	id, _ := m.CallID()
	connect := []per.Field{
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")), per.F("destinationInfo", endpoint()), per.F("conferenceID", per.Octet(id[:])),
		per.F("callIdentifier", guid(id)), per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)),
		// One port for each call: the kernel drops a Connect whose address it expects a connection to already.
		per.F("h245Address", h245.CallAddress(netip.AddrPortFrom(netip.MustParseAddr(serverIP), 2000+m.CallRef))),
	}
	if send(c, q931.Connect, m.CallRef, true, h225.Connect, connect...) != nil {
		return false
	}
	_, err = receive(c) // ReleaseComplete
	return all && err == nil
}

// callAll makes calls, whose ports follow from their numbers, and prints the rate.
func callAll(target string, first, calls, parallel int) error {
	var next atomic.Int64
	next.Store(int64(first))
	var failed atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range parallel {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(first+calls); n = next.Add(1) {
				if err := callOnce(target, uint16(n%30000+1), n); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	good := calls - int(failed.Load())
	return json.NewEncoder(os.Stdout).Encode(result{Rate: float64(good) / time.Since(start).Seconds(), Calls: calls, Failed: calls - good})
}

func callOnce(target string, ref uint16, n int64) error {
	c, err := net.DialTimeout("tcp", target, callTime)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(callTime))
	var id h225.ID
	binary.BigEndian.PutUint64(id[:], uint64(n))
	if err := send(c, q931.Setup, ref, false, h225.Setup, setup(id, 10000+uint16(n%20000)*2)...); err != nil {
		return err
	}
	b, err := receive(c)
	if err != nil {
		return err
	}
	m, err := h225.NewCodec().Decode(b)
	if err != nil || m.Type != q931.Connect {
		return fmt.Errorf("not connected: %v %s %w", m.Type, m.Reason(), err)
	}
	return send(c, q931.ReleaseComplete, ref, false, h225.ReleaseComplete, per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")),
		per.F("callIdentifier", guid(id)), per.F("reason", per.Alternative("undefinedReason", per.Nothing())))
}

func guid(id h225.ID) per.Value { return per.Fields(per.F("guid", per.Octet(id[:]))) }

func endpoint() per.Value {
	return per.Fields(per.F("terminal", per.Fields()), per.F("mc", per.Truth(false)), per.F("undefinedNode", per.Truth(false)))
}

// setup are the components of a Setup with a channel each way.
func setup(id h225.ID, port uint16) []per.Field {
	client := netip.MustParseAddr(clientIP)
	rtp, rtcp := netip.AddrPortFrom(client, port), netip.AddrPortFrom(client, port+1)
	audio := per.F("dataType", per.Alternative("audioData", per.Alternative("g711Alaw64k", per.Number(20))))
	params := func(f ...per.Field) per.Field {
		return per.F("multiplexParameters", per.Alternative("h2250LogicalChannelParameters", per.Fields(append([]per.Field{per.F("sessionID", per.Number(1))}, f...)...)))
	}
	control := per.F("mediaControlChannel", h245.MediaAddress(rtcp))
	none := per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", per.Alternative("nullData", per.Nothing())),
		per.F("multiplexParameters", per.Alternative("none", per.Nothing()))))
	return []per.Field{
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")), per.F("sourceInfo", endpoint()),
		per.F("destinationAddress", per.Elements(h225.H323ID("server"))), per.F("activeMC", per.Truth(false)), per.F("conferenceID", per.Octet(id[:])),
		per.F("conferenceGoal", per.Alternative("create", per.Nothing())), per.F("callType", per.Alternative("pointToPoint", per.Nothing())),
		per.F("callIdentifier", guid(id)), per.F("mediaWaitForConnect", per.Truth(false)), per.F("canOverlapSend", per.Truth(false)),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)),
		per.F("fastStart", per.Elements(
			per.Encoded(per.Fields(per.F("forwardLogicalChannelNumber", per.Number(1)), per.F("forwardLogicalChannelParameters", per.Fields(audio, params(control))))),
			per.Encoded(per.Fields(per.F("forwardLogicalChannelNumber", per.Number(2)), none,
				per.F("reverseLogicalChannelParameters", per.Fields(audio, params(per.F("mediaChannel", h245.MediaAddress(rtp)), control))))))),
	}
}

func send(c net.Conn, kind q931.Type, ref uint16, fromDest bool, body h225.Body, f ...per.Field) error {
	b, err := h225.Build(nil, kind, ref, fromDest, nil, h225.Info(body, per.Fields(f...)))
	if err == nil {
		b, err = tpkt.Append(nil, 0, b)
	}
	if err == nil {
		_, err = c.Write(b)
	}
	return err
}

func receive(c net.Conn) ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(header[2:]))
	if header[0] != 3 || n < 4 {
		return nil, fmt.Errorf("no TPKT: %x", header)
	}
	b := make([]byte, n-4)
	_, err := io.ReadFull(c, b)
	return b, err
}

//go:build lab

package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/gatekeeper"
	"edged.dev/edged/pkg/h323/h225"
)

// A gatekeeper on a host of its own, which is no edge: it registers endpoints as they are seen, and routes
// call signalling without changing an octet.

const gatekeeperVariable = "EDGED_LAB_H323GK"

// labGatekeeper is the gatekeeper process.
type labGatekeeper struct {
	mu sync.Mutex
	gk *gatekeeper.Gatekeeper
}

// runH323Gatekeeper serves at the address until it is killed.
func runH323Gatekeeper(text string) int {
	var at netip.Addr
	if err := json.Unmarshal([]byte(text), &at); err != nil {
		fmt.Println(err)
		return 2
	}
	g := &labGatekeeper{gk: gatekeeper.New(gatekeeper.Config{
		ID: "real", Lifetime: time.Minute, MaxEndpoints: 100, PerHost: 100,
		MayRegister: func(string) bool { return true }, Reachable: func(string, string) bool { return false },
		MayLocate:  func(string, netip.Addr) bool { return true },
		Signalling: func(string, netip.Addr) netip.AddrPort { return netip.AddrPortFrom(at, 1720) },
		RAS:        func(string, netip.Addr) netip.AddrPort { return netip.AddrPortFrom(at, 1719) },
	})}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(at, 1720).String())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	pc, err := net.ListenPacket("udp", netip.AddrPortFrom(at, 1719).String())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go g.route(ln)
	fmt.Println("ready")
	buf := make([]byte, 4096)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return 1
		}
		g.mu.Lock()
		reply := g.gk.Handle(time.Now(), "", netip.MustParseAddrPort(from.String()), buf[:n])
		g.mu.Unlock()
		if reply != nil {
			_, _ = pc.WriteTo(reply, from)
		}
	}
}

// route passes calls on to whom they call.
func (g *labGatekeeper) route(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if err := g.call(c); err != nil {
				fmt.Println("call:", err)
			}
		}()
	}
}

func (g *labGatekeeper) call(c net.Conn) error {
	var header [4]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return err
	}
	setup := make([]byte, int(header[2])<<8|int(header[3])-4)
	if _, err := io.ReadFull(c, setup); err != nil {
		return err
	}
	to, err := g.called(setup)
	if err != nil {
		return err
	}
	out, err := net.Dial("tcp", to.String())
	if err != nil {
		return err
	}
	defer out.Close()
	first, err := tpkt.Append(nil, header[1], setup)
	if err != nil {
		return err
	}
	if _, err := out.Write(first); err != nil {
		return err
	}
	fmt.Println("routed to", to)
	go func() {
		_, _ = io.Copy(c, out)
		c.Close()
	}()
	_, err = io.Copy(out, c)
	return err
}

// called returns where the endpoint takes calls that a Setup names.
func (g *labGatekeeper) called(setup []byte) (netip.AddrPort, error) {
	m, err := h225.NewCodec().Decode(setup)
	if err != nil {
		return netip.AddrPort{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range m.Aliases(nil) {
		if to, ok := g.gk.Lookup(time.Now(), a.Text); ok && a.Field == "destinationAddress" {
			return to, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("%s calls nobody that is known", m.Body)
}

// H323Gatekeeper starts a gatekeeper on the host.
func (h *Host) H323Gatekeeper(t testing.TB) netip.AddrPort {
	t.Helper()
	b, err := json.Marshal(h.IP)
	must(t, h.Name, err)
	p := h.startSelf(t, "h323-gk", gatekeeperVariable+"="+string(b))
	eventually(t, h323Time, "the gatekeeper is ready", func() bool { return logged(p, "ready") || !p.Alive() })
	return netip.AddrPortFrom(h.IP, 1719)
}

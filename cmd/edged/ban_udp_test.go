package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/proxydial"
)

// udpDaemon is a daemon with the tunnel over QUIC and the relay of TFTP.
type udpDaemon struct {
	*testDaemon
	t     *testing.T
	relay device.ID
	key   device.Key
}

func startUDPDaemon(t *testing.T) *udpDaemon {
	t.Helper()
	dir := t.TempDir()
	key, err := device.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "users"), fmt.Appendf(nil, "%s site-a\n", key.ID()), 0o600); err != nil {
		t.Fatal(err)
	}
	relay, _, err := device.LoadOrCreateKey(filepath.Join(dir, "tunnel", relayKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return &udpDaemon{startDaemon(t, fmt.Sprintf(`admin: {listen: '127.0.0.1:0'}
state: {dir: %s}
networks: {outside: {addresses: [%s]}}
tunnel: {listen: ['quic://outside:14443'], users_file: %s/users, policy: [{from: site-a, to: "*", services: ["*"]}]}
tftp: {trivial: {listen: ['udp://outside:14069'], servers: {outside: '127.0.0.9:69'}}}
`, dir, sipHost(), dir)), t, relay.ID(), key}
}

// attach connects to the tunnel from an address.
func (d *udpDaemon) attach(from string) (*carrier.Carrier, error) {
	d.t.Helper()
	secure, err := device.ClientTLS(d.key, d.relay, "")
	if err != nil {
		d.t.Fatal(err)
	}
	direct, err := proxydial.New(proxydial.Config{URL: "none"}, zap.NewNop())
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	dialer := &carrier.Dialer{Relay: sipHost(), TLS: secure, PortQUIC: 14443, Rungs: []carrier.Rung{carrier.QUIC}, Attempt: 30 * time.Second, Proxy: direct, Log: zap.NewNop(),
		UDP: func(ctx context.Context) (net.PacketConn, error) {
			return new(net.ListenConfig).ListenPacket(ctx, "udp4", from+":0")
		}}
	return dialer.Dial(ctx)
}

// tftp tells whether a request from an address is answered; the request is a wrong one.
func (d *udpDaemon) tftp(from string, wait time.Duration) bool {
	d.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.Dial("udp4", sipHost()+":14069")
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte{0, 1, 'x'})
	c.SetReadDeadline(time.Now().Add(wait))
	n, err := c.Read(make([]byte, 600))
	return err == nil && n > 4
}

// TestBanOverUDP: the tunnel over QUIC and TFTP serve nobody who is banned, and what he has there is cut.
func TestBanOverUDP(t *testing.T) {
	const bad, good = "127.0.0.66", "127.0.0.65"
	d := startUDPDaemon(t)
	open, err := d.attach(bad)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	other, err := d.attach(good)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if !d.tftp(bad, time.Minute) {
		t.Fatal("TFTP serves nobody")
	}
	if code, out, errs := d.edged("ban", bad); code != 0 || !strings.Contains(out, "tunnel") {
		t.Fatalf("exit code %d:\n%s%s", code, out, errs)
	}
	open.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := open.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the open connection: %v", err)
	}
	if c, err := d.attach(bad); err == nil {
		c.Close()
		t.Error("the tunnel lets him in again")
	}
	if c, err := d.attach(good); err != nil {
		t.Errorf("another: %v", err)
	} else {
		c.Close()
	}
	other.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := other.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("another's open connection: %v", err)
	}
	if d.tftp(bad, 300*time.Millisecond) || !d.tftp(good, time.Minute) {
		t.Error("TFTP serves the wrong one")
	}
	text, err := d.get(t.Context(), "/metrics")
	if err != nil || !strings.Contains(string(text), `edged_ban_drops_total{reason="datagram"} 1`) || strings.Contains(string(text), `edged_ban_drops_total{reason="connection"} 0`) {
		t.Errorf("not counted: %v", err)
	}
	if code, _, errs := d.edged("unban", bad); code != 0 {
		t.Fatal(errs)
	}
	if c, err := d.attach(bad); err != nil || !d.tftp(bad, time.Minute) {
		t.Errorf("the ban was lifted in vain: %v", err)
	} else {
		c.Close()
	}
}

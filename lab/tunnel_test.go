//go:build lab

package lab

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// servicesOfB are what site b offers: an echo of TCP and of UDP, ssh, a closed port, and one that a may not reach.
const servicesOfB = `services:
  echo: {tcp: "192.0.2.2:7000", allow: [a]}
  packets: {udp: "192.0.2.2:7001", allow: [a]}
  ssh: {tcp: "192.0.2.2:2200", allow: [a]}
  ends: {tcp: "192.0.2.2:7002", allow: [a]}
  closed: {tcp: "192.0.2.2:7009", allow: [a]}
  private: {tcp: "192.0.2.2:7000", allow: [c]}
`

// forwardsOfA are where site a reaches them.
const forwardsOfA = `forwards:
- {listen: "tcp://127.0.0.1:7000", device: b, service: echo}
- {listen: "udp://127.0.0.1:7001", device: b, service: packets}
- {listen: "tcp://127.0.0.1:2200", device: b, service: ssh}
- {listen: "tcp://127.0.0.1:7002", device: b, service: ends}
- {listen: "tcp://127.0.0.1:7009", device: b, service: closed}
- {listen: "tcp://127.0.0.1:7010", device: b, service: private}
`

// tunnelLab begins a case.
func tunnelLab(t *testing.T, c tunnelConfig) *tunnelRig {
	r := lab(t)
	onlyEdged(t, "the reference has no tunnel")
	c.A, c.B = forwardsOfA+c.A, servicesOfB+c.B
	x := newTunnelRig(t, r, c)
	x.b.echo(t)
	return x
}

// echo answers what comes to TCP 7000 and UDP 7001.
func (e *tunnelEnd) echo(t *testing.T) {
	t.Helper()
	ln, pc := e.listenTCP(t, 7000), e.listenUDP(t, 7001)
	_ = ln.(*net.TCPListener).SetDeadline(time.Time{})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

// echoes sends n octets through a connection, ends its direction, and wants all back and then the end.
func echoes(c *net.TCPConn, n int64) error {
	want := sha256.New()
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(c, want), rand.Reader, n)
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	got := sha256.New()
	m, err := io.Copy(got, c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if m != n || !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("%d octets sent, %d came back, or other ones", n, m)
	}
	return nil
}

// refused wants a connection to a port of the site to be reset, at once or a little later.
func (e *tunnelEnd) refused(t *testing.T, port uint16) error {
	t.Helper()
	err := e.Do(func() error {
		c, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, err = c.Read(make([]byte, 1))
		return err
	})
	if !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("port %d is not reset: %w", port, err)
	}
	return nil
}

// TestTunnelClosedSites: two sites that may only dial out to TCP 443 meet: bytes, datagrams, half-close, ssh.
func TestTunnelClosedSites(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{})
	x.Join(t)
	for _, e := range []*tunnelEnd{x.a, x.b} {
		e.comesBy(t, x, "tls")
	}
	if err := echoes(x.a.local(t, 7000), 16<<20); err != nil {
		t.Errorf("TCP: %v", err)
	}
	if err := x.a.datagrams(t, 200); err != nil {
		t.Errorf("UDP: %v", err)
	}
	for _, port := range []uint16{7009, 7010} {
		if err := x.a.refused(t, port); err != nil {
			t.Error(err)
		}
	}
	if err := x.direct(t); err == nil {
		t.Error("site b is reached without the tunnel")
	}
}

// datagrams sends packets to the agent's UDP port and wants nearly all back; what waits for the first stream may be lost.
func (e *tunnelEnd) datagrams(t *testing.T, n int) error {
	t.Helper()
	var c net.Conn
	must(t, "dial", e.Do(func() (err error) {
		c, err = net.Dial("udp4", "127.0.0.1:7001")
		return err
	}))
	defer func() { _ = c.Close() }()
	buf, got := make([]byte, 2000), 0
	for i := range n {
		text := fmt.Sprintf("%d %s", i, strings.Repeat("x", i%1200))
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		m, err := c.Read(buf)
		if err == nil && string(buf[:m]) != text {
			return fmt.Errorf("%.20q is answered by %.20q", text, buf[:m])
		}
		if err == nil {
			got++
		}
	}
	if got < n {
		return fmt.Errorf("%d of %d packets came back", got, n)
	}
	return nil
}

// direct tries to reach the service of b at its router, as if there were no firewall.
func (x *tunnelRig) direct(t *testing.T) error {
	t.Helper()
	return x.a.Do(func() error {
		c, err := net.DialTimeout("tcp4", x.b.router.Addr(4, 7000).String(), 3*time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// TestTunnelControl: without an open port no agent is attached, and without a rule of the policy nothing passes.
func TestTunnelControl(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{Policy: "[{from: b, to: a, services: [echo]}, {from: a, to: b, services: [ssh]}]"})
	x.Join(t)
	if err := x.a.refused(t, 7000); err != nil {
		t.Error(err)
	}
	if n := x.relay.attached(x); n != 2 {
		t.Errorf("%d devices are attached", n)
	}
	x.b.kill()
	x.b.router.shut(t)
	x.b.start(t, x, "tunnel")
	eventually(t, 30*time.Second, "b has tried every way", func() bool {
		out, err := x.b.edged(x, "tunnel", "status")
		return err == nil && strings.Contains(out, "polling")
	})
	if rung := x.b.attachedBy(x); rung != "" {
		t.Errorf("b is attached by %s through a firewall that is shut", rung)
	}
}

// TestTunnelRelayKilled: after the relay was killed both sites come back, and what is opened then passes.
func TestTunnelRelayKilled(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{})
	x.Join(t)
	c := x.a.local(t, 7000)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	x.relay.kill()
	x.relay.start(t, x, "run")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what was open before: %v", err)
	}
	eventually(t, 60*time.Second, "both are attached again", func() bool { return x.a.refused(t, 7009) == nil && x.relay.attached(x) == 2 })
	if err := echoes(x.a.local(t, 7000), 1<<20); err != nil {
		t.Error(err)
	}
}

// TestTunnelRemoved: a device that the operator removes is cut off.
func TestTunnelRemoved(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{})
	x.Join(t)
	if err := echoes(x.a.local(t, 7000), 1000); err != nil {
		t.Fatal(err)
	}
	_, err := x.relay.edged(x, "tunnel", "remove", "b")
	must(t, "remove", err)
	eventually(t, 30*time.Second, "b is cut off", func() bool { return x.b.attachedBy(x) == "" })
	if err := x.a.refused(t, 7000); err != nil {
		t.Error(err)
	}
}

// TestTunnelSSH: OpenSSH through both firewalls, with a file each way.
func TestTunnelSSH(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{})
	x.Join(t)
	if err := x.sshd(t).talk(t, 3<<20); err != nil {
		t.Error(err)
	}
}

// TestTunnelApplications: a program that knows proxies reaches a service by its name, and nothing else by that proxy.
func TestTunnelApplications(t *testing.T) {
	need(t, "curl")
	x := tunnelLab(t, tunnelConfig{
		A: "applications:\n  listen: [\"socks5://127.0.0.1:1080\", \"http://127.0.0.1:3128\"]\n  routes: {\"www.example.org:80\": b/web}\n",
		B: "  web: {tcp: \"192.0.2.2:8080\", allow: [a]}\n",
	})
	x.b.page(t, 8080, "the site of b\n")
	x.Join(t)
	if err := x.a.associated(t, "packets.b.edged", 50); err != nil {
		t.Error(err)
	}
	if err := x.a.associated(t, "private.b.edged", 1); err == nil {
		t.Error("a service of bytes answers datagrams")
	}
	for _, proxy := range [][]string{{"--socks5-hostname", "127.0.0.1:1080"}, {"--proxytunnel", "--proxy", "http://127.0.0.1:3128"}} {
		for url, want := range map[string]string{
			"http://web.b.edged/": "the site of b\n", "http://www.example.org/": "the site of b\n", "http://www.example.org:81/": "", "http://192.0.2.2:8080/": "",
		} {
			var out []byte
			err := x.a.Do(func() (err error) {
				out, err = exec.Command("curl", append(proxy, "-sS", "--max-time", "20", url)...).Output()
				return err
			})
			if string(out) != want || (err == nil) != (want != "") {
				t.Errorf("%s by %s: %q, %v", url, proxy[0], out, err)
			}
		}
	}
}

// associated sends packets to a name by SOCKS 5 (RFC 1928 §7), and wants all back under that name.
func (e *tunnelEnd) associated(t *testing.T, name string, n int) error {
	t.Helper()
	control := e.local(t, 1080)
	if _, err := control.Write([]byte{5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
		return err
	}
	answer := make([]byte, 2+10)
	if _, err := io.ReadFull(control, answer); err != nil {
		return err
	}
	if answer[3] != 0 || answer[5] != 1 {
		return fmt.Errorf("UDP ASSOCIATE: %x", answer)
	}
	var c net.Conn
	must(t, "dial", e.Do(func() (err error) {
		c, err = net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", int(answer[10])<<8|int(answer[11])))
		return err
	}))
	defer func() { _ = c.Close() }()
	head := append(append([]byte{0, 0, 0, 3, byte(len(name))}, name...), 0, 7)
	buf := make([]byte, 2000)
	for i := range n {
		text := string(head) + fmt.Sprintf("%d %s", i, strings.Repeat("x", i*20))
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		if m, err := c.Read(buf); err != nil || string(buf[:m]) != text {
			return fmt.Errorf("packet %d: %.40q, %w", i, buf[:m], err)
		}
	}
	return nil
}

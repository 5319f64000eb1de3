//go:build lab

package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"edged.dev/edged/pkg/ils"
	"edged.dev/edged/pkg/t120"
)

// desktop is the colour of the desktop behind xrdp, as X stores a pixel: blue, green, red.
var desktop = [3]byte{0x60, 0xa0, 0x20}

// tile is the size of one client's window.
const tileW, tileH = 320, 240

// xrdpConf serves a VNC desktop on 1503 without encryption of its own: FreeRDP 2 and xrdp 0.9 do not agree on
// RDP's old checksums. With TLS they do.
const xrdpConf = `[Globals]
ini_version=1
fork=true
port=tcp://%s:1503
security_layer=negotiate
certificate=%s
key_file=%s
crypt_level=none
autorun=desk
max_bpp=32
allow_channels=true
use_fastpath=none
[Logging]
LogFile=%s
LogLevel=INFO
EnableSyslog=false
[Channels]
[desk]
name=desk
lib=libvnc.so
username=na
password=none
ip=127.0.0.1
port=5900
`

// display waits until an X server has printed its number.
func (p *Proc) display(t *testing.T) string {
	t.Helper()
	number := ""
	eventually(t, 20*time.Second, p.Name+" is up", func() bool {
		b, err := os.ReadFile(p.Log)
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(b)) {
			if n, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				number = fmt.Sprint(":", n)
			}
		}
		return number != ""
	})
	return number
}

// xrdp runs a terminal server with a desktop on the host.
func (h *Host) xrdp(t *testing.T) {
	t.Helper()
	vnc := h.Start(t, "xvnc-"+h.Name, "Xvnc", "-displayfd", "1", "-rfbport", "5900", "-localhost", "-SecurityTypes", "None", "-AlwaysShared",
		"-geometry", fmt.Sprintf("%dx%d", tileW, tileH), "-depth", "24")
	paint := h.Start(t, "xsetroot", "xsetroot", "-display", vnc.display(t), "-solid", fmt.Sprintf("#%02x%02x%02x", desktop[2], desktop[1], desktop[0]))
	must(t, "xsetroot", paint.Wait(20*time.Second))
	conf, cert := filepath.Join(h.dir, "xrdp.ini"), newAuthority(t, h.dir).issue(t, "xrdp", nil, h.IP)
	must(t, "xrdp", os.WriteFile(conf, fmt.Appendf(nil, xrdpConf, h.IP, cert.Cert, cert.Key, filepath.Join(h.dir, "xrdp-own.log")), 0o644))
	h.Start(t, "xrdp", "xrdp", "-n", "-c", conf)
	eventually(t, 20*time.Second, "xrdp listens", func() bool { return h.listens(t, 1503) })
}

// screen is an X server without a monitor.
type screen struct {
	host    *Host
	display string
	file    string
	clients int
}

func (h *Host) screen(t *testing.T, columns, rows int) *screen {
	t.Helper()
	dir := filepath.Join(h.dir, "screen-"+h.Name)
	must(t, "screen", os.MkdirAll(dir, 0o755))
	x := h.Start(t, "xvfb-"+h.Name, "Xvfb", "-displayfd", "1", "-screen", "0", fmt.Sprintf("%dx%dx24", columns*tileW, rows*tileH), "-fbdir", dir)
	return &screen{host: h, display: x.display(t), file: filepath.Join(dir, "Xvfb_screen0")}
}

// freerdp starts a client whose window has a place of its own on the screen.
func (s *screen) freerdp(t *testing.T, to netip.AddrPort, columns int, args ...string) *Proc {
	t.Helper()
	at := fmt.Sprintf("/window-position:%dx%d", s.clients%columns*tileW, s.clients/columns*tileH)
	s.clients++
	argv := append([]string{"env", "DISPLAY=" + s.display, "HOME=" + s.host.dir, "xfreerdp", "/v:" + to.String(), "/u:na", "/p:none", "/cert-ignore",
		fmt.Sprintf("/w:%d", tileW), fmt.Sprintf("/h:%d", tileH), at}, args...)
	return s.host.Start(t, fmt.Sprintf("xfreerdp-%d", s.clients), argv...)
}

// shown counts the tiles that are the desktop's colour, at 48 places each.
func (s *screen) shown(t *testing.T, columns int) (n int) {
	t.Helper()
	b, err := os.ReadFile(s.file) // an XWD file: a header of numbers, a table of colours, pixels
	if err != nil || len(b) < 100 {
		return 0
	}
	field := func(i int) int { return int(binary.BigEndian.Uint32(b[4*i:])) }
	pixels, line := field(0)+12*field(19), field(12)
	for i := range s.clients {
		whole := true
		for p := range 48 {
			x, y := i%columns*tileW+20+p%8*36, i/columns*tileH+20+p/8*36
			at := pixels + y*line + x*4
			whole = whole && at+3 <= len(b) && [3]byte(b[at:at+3]) == desktop
		}
		if whole {
			n++
		}
	}
	return n
}

// conferenceGate serves 1503 on the outside of the gateway.
func (r *Rig) conferenceGate(t *testing.T, cfg t120.Config, router t120.Router) *observer.ObservedLogs {
	t.Helper()
	level, logs := observer.New(zap.InfoLevel)
	dial := r.dialer()
	server, err := t120.New(cfg, t120.Deps{Networks: r.gateNetworks(), Router: router, Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return dial(ctx, to.String())
	}}, zap.New(level))
	must(t, "t120", err)
	ctx, cancel := context.WithCancel(context.Background())
	ln := r.listen(t, outside, 1503)
	var work sync.WaitGroup
	work.Go(func() {
		if err := server.ServeListener(ctx, "outside", ln); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
	return logs
}

// desktopLab begins a case with a terminal server.
func desktopLab(t *testing.T) *Rig {
	t.Helper()
	for _, name := range []string{"xrdp", "xfreerdp", "Xvnc", "Xvfb", "xsetroot"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: xrdp, freerdp2-x11, tigervnc-standalone-server, xvfb, x11-xserver-utils)", err)
		}
	}
	return lab(t)
}

// TestT120Desktop: RDP's front is T.120's; through the edge a desktop appears, in the clear and under TLS.
func TestT120Desktop(t *testing.T) {
	for security, args := range map[string][]string{"rdp": {"/sec:rdp", "-fast-path"}, "tls": {"/sec:tls"}} {
		t.Run(security, func(t *testing.T) {
			r := desktopLab(t)
			in, out := r.Inside("in1"), r.Outside("out1")
			in.xrdp(t)
			cfg := t120.DefaultConfig()
			cfg.RDP, cfg.Targets = true, map[string]netip.AddrPort{"outside": netip.AddrPortFrom(in.IP, 1503)}
			logs := r.conferenceGate(t, cfg, nil)
			s := out.screen(t, 1, 1)
			s.freerdp(t, netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503), 1, args...)
			eventually(t, 60*time.Second, "the desktop appears", func() bool { return s.shown(t, 1) == 1 })
			up := logs.FilterMessage("t120 up").All()
			if len(up) == 0 || up[len(up)-1].ContextMap()["target"] != netip.AddrPortFrom(in.IP, 1503).String() {
				t.Errorf("the log says %v", up)
			}
		})
	}
}

// TestT120TwentyDesktops: twenty at once.
func TestT120TwentyDesktops(t *testing.T) {
	r := desktopLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	in.xrdp(t)
	cfg := t120.DefaultConfig()
	cfg.RDP, cfg.Targets = true, map[string]netip.AddrPort{"outside": netip.AddrPortFrom(in.IP, 1503)}
	logs := r.conferenceGate(t, cfg, nil)
	s := out.screen(t, 5, 4)
	for range 20 {
		s.freerdp(t, netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503), 5, "/sec:rdp", "-fast-path")
	}
	n := 0
	if !until(3*time.Minute, func() bool { n = s.shown(t, 5); return n == 20 }) {
		t.Fatalf("%d of 20 desktops appeared", n)
	}
	if ended := logs.FilterMessage("t120 ended").Len() + logs.FilterMessage("t120 refused").Len(); ended > 0 {
		t.Errorf("%d connections have ended", ended)
	}
}

// TestT120Control: without the edge, and where RDP is not allowed, no desktop appears.
func TestT120Control(t *testing.T) {
	r := desktopLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	in.xrdp(t)
	s := out.screen(t, 1, 1)
	gate := netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503)
	if err := s.freerdp(t, gate, 1, "/sec:rdp").Wait(60 * time.Second); err == nil || s.shown(t, 1) > 0 {
		t.Errorf("with nobody at %v: %v", gate, err)
	}
	cfg := t120.DefaultConfig()
	cfg.Targets = map[string]netip.AddrPort{"outside": netip.AddrPortFrom(in.IP, 1503)}
	logs := r.conferenceGate(t, cfg, nil)
	if err := s.freerdp(t, gate, 1, "/sec:rdp").Wait(60 * time.Second); err == nil || s.shown(t, 2) > 0 {
		t.Errorf("with RDP not allowed: %v", err)
	}
	if !until(10*time.Second, func() bool {
		return logs.FilterMessage("t120 refused").FilterField(zap.String("reason", "rdp")).Len() > 0
	}) {
		t.Errorf("no reason is logged: %v", logs.All())
	}
}

// exchange connects from a host, sends octets and returns what comes until the other side closes.
func (h *Host) exchange(t *testing.T, to netip.AddrPort, send []byte) []byte {
	t.Helper()
	var conn net.Conn
	must(t, "dial", h.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", to.String(), 10*time.Second)
		return err
	}))
	defer conn.Close()
	must(t, "deadline", conn.SetDeadline(time.Now().Add(20*time.Second)))
	if _, err := conn.Write(send); err != nil {
		t.Fatalf("send: %v", err)
	}
	got, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%x is not answered by closing: %x, %v", send, got, err)
	}
	return got
}

// TestT120Garbage: what is no T.120 does not reach the inside, and the log says why.
func TestT120Garbage(t *testing.T) {
	r := lab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	reached := in.answerer(t, 1503, 1)
	cfg := t120.DefaultConfig()
	cfg.Targets = map[string]netip.AddrPort{"outside": netip.AddrPortFrom(in.IP, 1503)}
	logs := r.conferenceGate(t, cfg, nil)
	gate := netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503)
	for reason, send := range map[string][]byte{
		"tpkt": []byte("GET / HTTP/1.0\r\n\r\n"), "x224": {3, 0, 0, 11, 0x20, 0xe0, 0, 0, 0, 1, 0}, "sequence": {3, 0, 0, 7, 2, 0xf0, 0x80},
	} {
		out.exchange(t, gate, send)
		if !until(10*time.Second, func() bool {
			return logs.FilterMessage("t120 refused").FilterField(zap.String("reason", reason)).Len() > 0
		}) {
			t.Errorf("%q: no reason is logged: %v", send, logs.All())
		}
	}
	if n := reached(); n != 0 {
		t.Errorf("%d of them reached the inside", n)
	}
	request, garbage := []byte{3, 0, 0, 11, 6, 0xe0, 0, 0, 0, 1, 0}, []byte{3, 0, 0, 9, 2, 0xf0, 0x80, 0x7f, 0x65}
	out.exchange(t, gate, append(request, garbage...)) // out of turn: the front is not up
	if logs.FilterMessage("t120 refused").Len() != 4 {
		t.Errorf("garbage behind a request was not refused: %v", logs.All())
	}
}

// answerer is a T.120 host that confirms connections with a reference of its own, and closes after a second
// request. It returns how many have come.
func (h *Host) answerer(t *testing.T, port uint16, ref byte) func() int {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp4", netip.AddrPortFrom(h.IP, port).String())
		return err
	}))
	var mu sync.Mutex
	var work sync.WaitGroup
	n := 0
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			n++
			mu.Unlock()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			io.ReadFull(conn, make([]byte, 11))
			conn.Write([]byte{3, 0, 0, 11, 6, 0xd0, 0, 1, 0, ref, 0})
			conn.Close()
		}
	})
	t.Cleanup(func() {
		ln.Close()
		work.Wait()
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// registryRouter sends calls to whom the caller has looked up.
type registryRouter struct{ *ils.Registry }

// Route implements [t120.Router].
func (r registryRouter) Route(c t120.Call) (netip.AddrPort, bool) {
	return r.Registry.Route(c.Conference, c.Local.Addr(), c.Client.Addr(), ils.T120)
}

// TestT120ByDirectory: two names behind one address. An outside host looks one up and calls the address that it
// has been told, which is the same for both, and reaches the host that it meant.
func TestT120ByDirectory(t *testing.T) {
	r := ilsLab(t)
	in1, in2, out := r.Inside("in1"), r.Inside("in2"), r.Outside("out1")
	cfg := ils.DefaultConfig()
	cfg.Server = ils.Builtin
	reg := r.directoryGate(t, cfg, true)
	r.conferenceGate(t, t120.DefaultConfig(), registryRouter{reg})
	fromIn, fromOut := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 389), netip.AddrPortFrom(r.GW.IPOn(outside, 4), 389)
	for i, h := range []*Host{in1, in2} {
		h.answerer(t, 1503, byte(i+1))
		h.enlist(t, fromIn, fmt.Sprintf("user%d@example.org", i+1))
	}
	public := r.GW.IPOn(outside, 4)
	for _, i := range []byte{2, 1, 2} {
		if got := out.address(t, fromOut, fmt.Sprintf("user%d@example.org", i)); got != littleEndian(public) {
			t.Fatalf("user %d is at %s", i, got)
		}
		got := out.exchange(t, netip.AddrPortFrom(public, 1503), []byte{3, 0, 0, 11, 6, 0xe0, 0, 0, 0, 1, 0})
		if want := []byte{3, 0, 0, 11, 6, 0xd0, 0, 1, 0, i, 0}; !bytes.Equal(got, want) {
			t.Errorf("the call to user %d was answered with %x, want %x", i, got, want)
		}
	}
}

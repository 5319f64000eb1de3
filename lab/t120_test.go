//go:build lab

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"edged.dev/edged/pkg/ils"
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
	eventually(t, time.Minute, p.Name+" is up", func() bool {
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
	name    string
	display string
	file    string
	// clients counts those that were started; the rest is the last one's.
	clients int
	client  *Proc
	to      netip.AddrPort
	args    []string
}

// screen starts one that is as large as a client's window: clients that share one are not always where they are
// told to be.
func (h *Host) screen(t *testing.T, name string) *screen {
	t.Helper()
	dir := filepath.Join(h.dir, "screen-"+name)
	must(t, "screen", os.MkdirAll(dir, 0o755))
	x := h.Start(t, "xvfb-"+name, "Xvfb", "-displayfd", "1", "-screen", "0", fmt.Sprintf("%dx%dx24", tileW, tileH), "-fbdir", dir)
	return &screen{host: h, name: name, display: x.display(t), file: filepath.Join(dir, "Xvfb_screen0")}
}

// freerdp starts a client whose window fills the screen.
func (s *screen) freerdp(t *testing.T, to netip.AddrPort, args ...string) *Proc {
	t.Helper()
	s.clients++
	argv := append([]string{"env", "DISPLAY=" + s.display, "HOME=" + s.host.dir, "xfreerdp", "/v:" + to.String(), "/u:na", "/p:none", "/cert-ignore",
		fmt.Sprintf("/w:%d", tileW), fmt.Sprintf("/h:%d", tileH), "/window-position:0x0"}, args...)
	s.to, s.args = to, args
	s.client = s.host.Start(t, fmt.Sprintf("xfreerdp-%s-%d", s.name, s.clients), argv...)
	return s.client
}

// shown tells whether the screen has the desktop's colour, at 48 places.
func (s *screen) shown() bool {
	b, err := os.ReadFile(s.file) // an XWD file: a header of numbers, a table of colours, pixels
	if err != nil || len(b) < 100 {
		return false
	}
	field := func(i int) int { return int(binary.BigEndian.Uint32(b[4*i:])) }
	pixels, line := field(0)+12*field(19), field(12)
	for p := range 48 {
		x, y := 20+p%8*36, 20+p/8*36
		at := pixels + y*line + x*4
		if at+3 > len(b) || [3]byte(b[at:at+3]) != desktop {
			return false
		}
	}
	return true
}

// appear waits until the desktop is shown. A client that shows nothing is started again: on a busy machine FreeRDP
// 2 now and then draws nothing of what it has received in full (edged's log counts the same octets for all).
func (s *screen) appear(t *testing.T) {
	t.Helper()
	begun := time.Now()
	eventually(t, 2*time.Minute, "the desktop appears on screen "+s.name, func() bool {
		if s.shown() {
			return true
		}
		if time.Since(begun) > 15*time.Second {
			begun = time.Now()
			s.client.Stop(syscall.SIGTERM)
			s.freerdp(t, s.to, s.args...)
		}
		return false
	})
}

// conferenceGate is an edged that serves 1503 outside and brings callers to a host.
func (r *Rig) conferenceGate(t *testing.T, to netip.Addr, rdp bool) *Edge {
	t.Helper()
	return r.Edge(t, EdgeConfig{More: fmt.Sprintf("t120: {listen: [\"tcp://outside:1503\"], targets: {outside: \"%v:1503\"}, rdp: %v}\n", to, rdp)})
}

// logged returns the lines of edged's log that hold all of the texts.
func (e *Edge) logged(texts ...string) (lines []string) {
	b, _ := os.ReadFile(e.proc.Log)
	for line := range strings.Lines(string(b)) {
		if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(line, s) }) {
			lines = append(lines, line)
		}
	}
	return lines
}

// desktopLab begins a case with a terminal server.
func desktopLab(t *testing.T) *Rig {
	t.Helper()
	for _, name := range []string{"xrdp", "xfreerdp", "Xvnc", "Xvfb", "xsetroot"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: xrdp, freerdp2-x11, tigervnc-standalone-server, xvfb, x11-xserver-utils)", err)
		}
	}
	onlyEdged(t, "it knows no T.120")
	return lab(t)
}

// TestT120Desktop: RDP's front is T.120's; through the edge a desktop appears, in the clear and under TLS.
func TestT120Desktop(t *testing.T) {
	for security, args := range map[string][]string{"rdp": {"/sec:rdp", "-fast-path"}, "tls": {"/sec:tls"}} {
		t.Run(security, func(t *testing.T) {
			r := desktopLab(t)
			in, out := r.Inside("in1"), r.Outside("out1")
			in.xrdp(t)
			e := r.conferenceGate(t, in.IP, true)
			s := out.screen(t, "0")
			s.freerdp(t, netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503), args...)
			s.appear(t)
			if len(e.logged("t120 up", netip.AddrPortFrom(in.IP, 1503).String())) == 0 {
				t.Error("the log does not say where the session went")
			}
		})
	}
}

// TestT120TwentyDesktops: twenty at once.
func TestT120TwentyDesktops(t *testing.T) {
	r := desktopLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	in.xrdp(t)
	e := r.conferenceGate(t, in.IP, true)
	var screens [20]*screen
	for i := range screens {
		screens[i] = out.screen(t, fmt.Sprint(i))
	}
	for _, s := range screens {
		s.freerdp(t, netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503), "/sec:rdp", "-fast-path")
	}
	restarted := 0
	for _, s := range screens {
		s.appear(t)
		restarted += s.clients - 1
	}
	if ended := append(e.logged("t120 ended"), e.logged("t120 refused")...); len(ended) > restarted {
		t.Errorf("connections have ended, %d of them restarted: %s", restarted, ended)
	}
}

// TestT120Control: without the edge, and where RDP is not allowed, no desktop appears.
func TestT120Control(t *testing.T) {
	r := desktopLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	in.xrdp(t)
	s := out.screen(t, "0")
	gate := netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503)
	if err := s.freerdp(t, gate, "/sec:rdp").Wait(60 * time.Second); err == nil || s.shown() {
		t.Errorf("with nobody at %v: %v", gate, err)
	}
	e := r.conferenceGate(t, in.IP, false)
	if err := s.freerdp(t, gate, "/sec:rdp").Wait(60 * time.Second); err == nil || s.shown() {
		t.Errorf("with RDP not allowed: %v", err)
	}
	eventually(t, 10*time.Second, "the reason is logged", func() bool { return len(e.logged("t120 refused", "rdp")) > 0 })
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
	onlyEdged(t, "it knows no T.120")
	r := lab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	reached := in.answerer(t, 1503, 1)
	e := r.conferenceGate(t, in.IP, false)
	gate := netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1503)
	for reason, send := range map[string][]byte{
		"tpkt": []byte("GET / HTTP/1.0\r\n\r\n"), "x224": {3, 0, 0, 11, 0x20, 0xe0, 0, 0, 0, 1, 0}, "sequence": {3, 0, 0, 7, 2, 0xf0, 0x80},
	} {
		out.exchange(t, gate, send)
		eventually(t, 10*time.Second, "the reason is logged: "+reason, func() bool { return len(e.logged("t120 refused", reason)) > 0 })
		if n := e.Metric("edged_t120_drops_total", "reason", reason); n != 1 {
			t.Errorf("%s is counted %v times", reason, n)
		}
	}
	if n := reached(); n != 0 {
		t.Errorf("%d of them reached the inside", n)
	}
	request, garbage := []byte{3, 0, 0, 11, 6, 0xe0, 0, 0, 0, 1, 0}, []byte{3, 0, 0, 9, 2, 0xf0, 0x80, 0x7f, 0x65}
	out.exchange(t, gate, append(request, garbage...)) // out of turn: the front is not up
	eventually(t, 10*time.Second, "garbage behind a request is refused", func() bool { return len(e.logged("t120 refused")) == 4 })
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

// reaches calls the address with T.120, and checks who answers.
func (h *Host) reaches(t *testing.T, to netip.Addr, ref byte) {
	t.Helper()
	got := h.exchange(t, netip.AddrPortFrom(to, 1503), []byte{3, 0, 0, 11, 6, 0xe0, 0, 0, 0, 1, 0})
	if want := []byte{3, 0, 0, 11, 6, 0xd0, 0, 1, 0, ref, 0}; !bytes.Equal(got, want) {
		t.Errorf("%s's call is answered with %x, want %x", h.Name, got, want)
	}
}

// TestT120ByDirectory: two names behind one address. An outside host looks one up and calls the address that it
// has been told, which is the same for both, and reaches the host that it meant; who has looked nobody up reaches
// nobody.
func TestT120ByDirectory(t *testing.T) {
	r := ilsLab(t)
	in1, in2, out, other := r.Inside("in1"), r.Inside("in2"), r.Outside("out1"), r.Outside("out2")
	e := r.directoryGate(t, ils.Builtin, "t120: {listen: [\"tcp://outside:1503\"]}\n")
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
		out.reaches(t, public, i)
	}
	other.exchange(t, netip.AddrPortFrom(public, 1503), []byte{3, 0, 0, 11, 6, 0xe0, 0, 0, 0, 1, 0, 3, 0, 0, 7, 2, 0xf0, 0x80})
	eventually(t, 10*time.Second, "a stranger's call is refused", func() bool { return len(e.logged("t120 refused", other.IP.String())) == 1 })
}

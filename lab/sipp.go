//go:build lab

package lab

import (
	"bytes"
	"crypto/tls"
	_ "embed"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

//go:embed sipp/uac.xml
var sippCaller string

//go:embed sipp/uas.xml
var sippCallee string

// Load is a run of sipp against sipp through the edge.
type Load struct {
	Calls, PerSecond int
	Talk             time.Duration // of each call
	Proto            string        // udp, tcp or tls of both sippen
	Domain           string        // in the Request-URI
	From, To         *Host
	Next             netip.AddrPort // the caller's next hop: the edge
	FromFam, ToFam   int
	Certs            [2]*Certificates // of the caller's and the callee's side, with tls
	Limit            time.Duration    // for the whole run; 0: what it should take, and 40 s
}

// callee is where the callee's sipp listens.
func (l Load) callee() netip.AddrPort { return l.To.Addr(l.ToFam, sipPort(l.Proto)) }

// Run starts both and returns what is wrong, nil if every call succeeded on both sides.
func (l Load) Run(t testing.TB) error {
	t.Helper()
	dir := l.From.dir
	must(t, "tone", os.WriteFile(filepath.Join(dir, "tone.ul"), encode(tone(440, 10*time.Second)), 0o644))
	must(t, "scenario", os.WriteFile(filepath.Join(dir, "uac.xml"), []byte(strings.ReplaceAll(sippCaller, "DOMAIN", l.Domain)), 0o644))
	must(t, "scenario", os.WriteFile(filepath.Join(dir, "uas.xml"), []byte(sippCallee), 0o644))
	mode, callee, next := "u1", l.callee(), l.Next
	if l.Proto != "udp" {
		mode = "t1"
	}
	if l.Proto == "tls" { // Debian's sipp speaks no TLS: a wrapper on its host does
		plain := netip.AddrPortFrom(callee.Addr(), 6062)
		l.To.wrap(t, callee, plain, l.Certs[1].config(t, ""), false)
		next = netip.AddrPortFrom(l.From.Addr(l.FromFam, 0).Addr(), 6063)
		l.From.wrap(t, next, l.Next, l.Certs[0].config(t, "edge.example.org"), true)
		callee = plain
	}
	uas := l.To.Start(t, "sipp-uas", l.args(callee.Addr(), callee.Port(), mode, "-sf", "uas.xml", "-rtp_echo", "-mp", "40000")...)
	eventually(t, 10*time.Second, "sipp listens", func() bool { return l.To.listens(t, int(callee.Port())) })
	from := l.From.Addr(l.FromFam, 5064)
	argv := l.args(from.Addr(), from.Port(), mode, "-sf", "uac.xml", "-r", fmt.Sprint(l.PerSecond), "-d", fmt.Sprint(l.Talk.Milliseconds()),
		"-s", "uas", "-cid_str", "%u-%p@caller.example.org")
	uac := l.From.Start(t, "sipp-uac", append(argv, next.String())...)
	limit := time.Duration(l.Calls/l.PerSecond)*time.Second + l.Talk + 40*time.Second
	if err := uac.Wait(or(l.Limit, limit)); err != nil {
		return fmt.Errorf("caller: %w: %s", err, sippErrors(dir))
	}
	if err := uas.Wait(15 * time.Second); err != nil {
		return fmt.Errorf("callee: %w: %s", err, sippErrors(dir))
	}
	return nil
}

func (l Load) args(ip netip.Addr, port uint16, mode string, more ...string) []string {
	return append([]string{
		"sipp", "-i", ip.String(), "-mi", ip.String(), "-p", fmt.Sprint(port), "-t", mode, "-m", fmt.Sprint(l.Calls),
		"-nostdin", "-trace_err", "-timeout", "600s", "-max_socket", "1000",
	}, more...)
}

// sippErrors returns the beginning of what sipp found unexpected.
func sippErrors(dir string) string {
	files, _ := filepath.Glob(filepath.Join(dir, "*_errors.log"))
	var b bytes.Buffer
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			b.Write(text[:min(len(text), 2000)])
		}
	}
	return b.String()
}

func encode(pcm []int16) []byte {
	b := make([]byte, len(pcm))
	for i, v := range pcm {
		b[i] = ulaw(v)
	}
	return b
}

// wrap listens on from and joins each connection with one to to: plain to TLS if client, TLS to plain
// otherwise. The texts that name the transport change with it; they have the same length.
func (h *Host) wrap(t testing.TB, from, to netip.AddrPort, conf *tls.Config, client bool) {
	t.Helper()
	var ln net.Listener
	must(t, "TLS wrapper", h.Do(func() (err error) {
		ln, err = net.Listen("tcp", from.String())
		return err
	}))
	w := &wrapper{host: h, ln: ln, to: to, conf: conf, client: client}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		w.closeAll()
		w.wg.Wait()
	})
}

type wrapper struct {
	host   *Host
	ln     net.Listener
	to     netip.AddrPort
	conf   *tls.Config
	client bool
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
}

func (w *wrapper) accept() {
	for {
		in, err := w.ln.Accept()
		if err != nil {
			return
		}
		var out net.Conn
		if w.host.Do(func() (err error) { out, err = net.DialTimeout("tcp", w.to.String(), 5*time.Second); return err }) != nil {
			_ = in.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, in, out)
		w.mu.Unlock()
		plain, secret := in, net.Conn(tls.Client(out, w.conf))
		if !w.client {
			plain, secret = out, tls.Server(in, w.conf)
		}
		w.wg.Go(func() { pipe(secret, plain, "TCP", "TLS", "tcp", "tls") })
		w.wg.Go(func() { pipe(plain, secret, "TLS", "TCP", "tls", "tcp") })
	}
}

func (w *wrapper) closeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
}

// pipe copies from src to dst, with the name of the transport changed in Via and in URIs. A cut
// at the end of a read holds its last bytes back until more comes or the name is complete.
func pipe(dst, src net.Conn, via, newVia, uri, newURI string) {
	defer func() {
		_ = dst.Close()
		_ = src.Close()
	}()
	from := [][]byte{[]byte("SIP/2.0/" + via), []byte("transport=" + via), []byte("transport=" + uri)}
	to := [][]byte{[]byte("SIP/2.0/" + newVia), []byte("transport=" + newURI), []byte("transport=" + newURI)}
	buf := make([]byte, 0, 128<<10)
	chunk := make([]byte, 64<<10)
	for {
		n, err := src.Read(chunk)
		buf = append(buf, chunk[:n]...)
		for i := range from {
			buf = bytes.ReplaceAll(buf, from[i], to[i])
		}
		hold := 0
		if err == nil {
			hold = pending(buf, from)
		}
		if _, werr := dst.Write(buf[:len(buf)-hold]); werr != nil || err != nil {
			return
		}
		buf = append(buf[:0], buf[len(buf)-hold:]...)
	}
}

// pending returns how many bytes at the end of b may be the beginning of one of the names.
func pending(b []byte, names [][]byte) int {
	longest := 0
	for _, name := range names {
		for n := min(len(name)-1, len(b)); n > longest; n-- {
			if bytes.HasSuffix(b, name[:n]) {
				longest = n
			}
		}
	}
	return longest
}

package content

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The real scanners know one virus: this text.
const virus = "this is what the tests of edged call a virus"

const patience = 60 * time.Second

// fakeScanner serves each connection by f, and returns where it listens.
func fakeScanner(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				f(c)
			}()
		}
	}()
	return ln.Addr().String()
}

// instream reads what a client of clamd sends.
func instream(c net.Conn) []byte {
	r := bufio.NewReader(c)
	if cmd, err := r.ReadString(0); err != nil || cmd != "zINSTREAM\x00" {
		return nil
	}
	var file []byte
	for {
		var n uint32
		if binary.Read(r, binary.BigEndian, &n) != nil || n == 0 {
			return file
		}
		b := make([]byte, n)
		io.ReadFull(r, b)
		file = append(file, b...)
	}
}

func TestClamdAnswers(t *testing.T) {
	for _, tt := range []struct{ reply, want string }{
		{"stream: OK\x00", ""},
		{"stream: Win.Test FOUND\x00", "virus Win.Test"},
		{"INSTREAM size limit exceeded. ERROR\x00", "scanner"},
		{"UNKNOWN COMMAND\x00", "scanner"},
		{"", "scanner"},
		{strings.Repeat("x", 10_000), "scanner"},
	} {
		at := fakeScanner(t, func(c net.Conn) {
			if string(instream(c)) == "hello" {
				io.WriteString(c, tt.reply)
			}
		})
		f := testFile(5)
		wire, _ := encrypt(f, []byte("hello"))
		for how, want := range map[string]string{OnErrorDeny: tt.want, OnErrorPass: strings.TrimPrefix(tt.want, "scanner")} {
			c := newChecker(t, func(c *Config) { c.Scanner, c.OnError = "clamd://"+at, how })
			got := reason(t, feed(begin(t, c, f), wire, 2))
			if want == "scanner" && strings.HasPrefix(got, want) {
				continue
			}
			if got != want {
				t.Errorf("%.20q, on_error %s: %q", tt.reply, how, got)
			}
		}
	}
}

// TestClamdEarly: a scanner that has had enough is asked why, and one that stands still is not awaited.
func TestClamdEarly(t *testing.T) {
	at := fakeScanner(t, func(c net.Conn) {
		io.CopyN(io.Discard, c, 100_000)
		io.WriteString(c, "stream: Early.Test FOUND\x00")
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	})
	c := newChecker(t, func(c *Config) { c.Scanner = "clamd://" + at })
	if got := reason(t, feed(begin(t, c, testFile(1<<20)), make([]byte, 1<<20), 2045)); got != "virus Early.Test" {
		t.Errorf("%q", got)
	}
	still := fakeScanner(t, func(c net.Conn) {
		var b [1]byte
		c.Read(b[:])
		io.Copy(io.Discard, c)
	})
	c = newChecker(t, func(c *Config) { c.Scanner, c.Timeout = "clamd://"+still, time.Second })
	if got := reason(t, feed(begin(t, c, testFile(5)), []byte("hello"), 5)); !strings.HasPrefix(got, "scanner") {
		t.Errorf("%q", got)
	}
}

func TestICAPAnswers(t *testing.T) {
	const ok = "ICAP/1.0 200 OK\r\nMethods: %s\r\n\r\n"
	same := "HTTP/1.1 200 OK\r\n\r\n"
	forbidden := "HTTP/1.1 403 Forbidden\r\n\r\n"
	for _, tt := range []struct{ name, methods, reply, want string }{
		{"204", "RESPMOD", "ICAP/1.0 204 No Content\r\n\r\n", ""},
		{"204 to a request", "REQMOD", "ICAP/1.0 204 No Content\r\n\r\n", ""},
		{"found", "RESPMOD", "ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Resolution=2; Threat=Win.Test;\r\n\r\n", "virus Win.Test"},
		{"found by id", "RESPMOD", "ICAP/1.0 200 OK\r\nX-Virus-ID: Win.Test\r\n\r\n", "virus Win.Test"},
		{"violation", "RESPMOD", "ICAP/1.0 200 OK\r\nX-Violations-Found: 1\r\n\tname\r\n\r\n", "virus violation 1"},
		{"blank violation", "RESPMOD", "ICAP/1.0 204 No Content\r\nX-Violations-Found: \u00a0\r\n\r\n", ""},
		{"same", "RESPMOD", fmt.Sprintf("ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=%d\r\n\r\n%s5\r\nhello\r\n0\r\n\r\n", len(same), same), ""},
		{"changed", "RESPMOD", fmt.Sprintf("ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=%d\r\n\r\n%s5\r\nhullo\r\n0\r\n\r\n", len(same), same), "virus changed by the scanner"},
		{"forbidden", "RESPMOD", fmt.Sprintf("ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=%d\r\n\r\n%s5\r\nhello\r\n0\r\n\r\n", len(forbidden), forbidden), "virus refused by the scanner"},
		{"response to a request", "REQMOD", fmt.Sprintf("ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=%d\r\n\r\n%s", len(same), same), "virus refused by the scanner"},
		{"error", "RESPMOD", "ICAP/1.0 500 Error\r\n\r\n", "scanner"},
		{"no ICAP", "RESPMOD", "HTTP/1.1 200 OK\r\n\r\n", "scanner"},
		{"cut", "RESPMOD", "ICAP/1.0 20", "scanner"},
		{"wild offset", "RESPMOD", "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=999999999\r\n\r\n", "scanner"},
		{"offset backwards", "RESPMOD", "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=9, res-body=-9\r\n\r\n", "scanner"},
		{"long line", "RESPMOD", "ICAP/1.0 200 " + strings.Repeat("x", 50_000), "scanner"},
		{"no methods", "", "", "scanner"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := fakeScanner(t, func(c net.Conn) {
				r := bufio.NewReader(c)
				if head(r) != "" {
					fmt.Fprintf(c, ok, tt.methods)
				}
				if h := head(r); !strings.HasPrefix(h, tt.methods+" icap://") {
					return
				}
				for l := ""; l != "0\r\n"; l, _ = r.ReadString('\n') {
					if l != "" && l[0] == 0 {
						return
					}
				}
				io.WriteString(c, tt.reply)
			})
			c := newChecker(t, func(c *Config) { c.Scanner = "icap://" + at + "/scan" })
			f := testFile(5)
			wire, _ := encrypt(f, []byte("hello"))
			k, err := c.Begin(t.Context(), f)
			if err == nil {
				err = feed(k, wire, 2)
			}
			if got := reason(t, err); got != tt.want && (tt.want != "scanner" || !strings.HasPrefix(got, "scanner")) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// head reads a header.
func head(r *bufio.Reader) string {
	var b strings.Builder
	for {
		l, err := r.ReadString('\n')
		if err != nil {
			return ""
		}
		if b.WriteString(l); l == "\r\n" {
			return b.String()
		}
	}
}

// TestAbandoned: a transfer that ends leaves nothing of its scan behind.
func TestAbandoned(t *testing.T) {
	ended := make(chan bool, 2)
	at := fakeScanner(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		if head(r) != "" {
			io.WriteString(c, "ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\n\r\n")
		}
		io.Copy(io.Discard, r)
		ended <- true
	})
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	c := newChecker(t, func(c *Config) { c.Scanner = "icap://" + at + "/scan" })
	k, err := c.Begin(ctx, testFile(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, before %d", runtime.NumGoroutine(), before)
		}
	}
}

// startClamd starts a real ClamAV daemon that knows one virus, or skips.
func startClamd(t *testing.T) (socket string) {
	t.Helper()
	bin, err := exec.LookPath("clamd")
	if err != nil {
		t.Skip("SKIP: no clamd (Debian: clamav-daemon)")
	}
	dir, err := os.MkdirTemp("", "clamd") // a short name: a socket's path has 107 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	write(t, filepath.Join(dir, "edged.ndb"), "Edged.Test:0:*:"+hex.EncodeToString([]byte(virus))+"\n")
	write(t, filepath.Join(dir, "clamd.conf"), fmt.Sprintf(
		"LocalSocket %s\nDatabaseDirectory %s\nForeground yes\nTemporaryDirectory %s\nStreamMaxLength 4M\nMaxThreads 2\n", socket, dir, dir))
	run(t, exec.Command(bin, "-c", filepath.Join(dir, "clamd.conf")), "unix", socket)
	return socket
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run starts a server, and waits until it accepts.
func run(t *testing.T, cmd *exec.Cmd, network, at string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its children end with it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		if t.Failed() {
			t.Logf("%s: %s", cmd.Path, out.String())
		}
	})
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		c, err := net.Dial(network, at)
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v", cmd.Path, err)
		default:
		}
	}
	t.Fatalf("%s does not listen", cmd.Path)
}

// startICAP starts a real c-icap, whose service virus_scan asks clamd and whose service echo sends all back, or skips.
func startICAP(t *testing.T, clamd string) (at string) {
	t.Helper()
	bin, err := exec.LookPath("c-icap")
	if err != nil {
		t.Skip("SKIP: no c-icap (Debian: c-icap, libc-icap-mod-virus-scan)")
	}
	found, _ := filepath.Glob("/usr/lib/*/c_icap/virus_scan.so")
	if len(found) == 0 {
		t.Skip("SKIP: no c-icap virus_scan (Debian: libc-icap-mod-virus-scan)")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at = ln.Addr().String()
	ln.Close()
	dir, modules := t.TempDir(), filepath.Dir(found[0])
	conf := filepath.Join(dir, "c-icap.conf")
	write(t, conf, strings.ReplaceAll(fmt.Sprintf(`PidFile DIR/pid
CommandsSocket DIR/ctl
Port %s
StartServers 1
MaxServers 1
ThreadsPerChild 10
TmpDir DIR
ModulesDir %s
ServicesDir %s
LoadMagicFile /etc/c-icap/c-icap.magic
TemplateDir /usr/share/c_icap/templates/
TemplateDefaultLanguage en
ServerLog DIR/server.log
AccessLog DIR/access.log
Module common clamd_mod.so
clamd_mod.ClamdSocket %s
Service echo srv_echo.so
Service antivirus_module virus_scan.so
ServiceAlias avscan virus_scan?allow204=on&sizelimit=off&mode=simple
virus_scan.DefaultEngine clamd
virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE
virus_scan.MaxObjectSize 5M
`, at, modules, modules, clamd), "DIR", dir))
	run(t, exec.Command(bin, "-N", "-D", "-f", conf), "tcp", at)
	return at
}

// scanned has files scanned by a real scanner.
func scanned(t *testing.T, scanner string, deniesVirus bool) {
	c := newChecker(t, func(c *Config) { c.Scanner, c.Timeout = scanner, patience })
	for _, tt := range []struct {
		name  string
		plain []byte
		bad   bool
	}{
		{"small", []byte("a harmless text, repeated by nobody\n"), false},
		{"large", bytes.Repeat([]byte("harmless text\n"), 100_000), false},
		{"empty", nil, false},
		{"virus", []byte(virus), true},
		{"virus at the end", append(bytes.Repeat([]byte("harmless text\n"), 100_000), virus...), true},
	} {
		f := testFile(len(tt.plain))
		wire, mac := encrypt(f, tt.plain)
		k := begin(t, c, f)
		got := reason(t, feed(k, wire, 2045))
		if bad := strings.HasPrefix(got, "virus "); bad != (tt.bad && deniesVirus) || !bad && got != "" {
			t.Errorf("%s: %q", tt.name, got)
		}
		if got == "" && k.MAC(mac) != nil {
			t.Errorf("%s: its MAC does not fit", tt.name)
		}
	}
}

// TestRealClamd asks a real ClamAV daemon.
func TestRealClamd(t *testing.T) {
	socket := startClamd(t)
	scanned(t, "clamd://"+socket, true)
	// More than it takes.
	c := newChecker(t, func(c *Config) { c.Scanner, c.Timeout = "clamd://"+socket, patience })
	f := testFile(8 << 20)
	if got := reason(t, feed(begin(t, c, f), make([]byte, f.Size), 2045)); !strings.HasPrefix(got, "scanner ") {
		t.Errorf("8 MiB: %q", got)
	}
}

// TestRealICAP asks a real c-icap that asks clamd, and one that asks nobody and sends all back.
func TestRealICAP(t *testing.T) {
	at := startICAP(t, startClamd(t))
	t.Run("avscan", func(t *testing.T) { scanned(t, "icap://"+at+"/avscan", true) })
	t.Run("echo", func(t *testing.T) { scanned(t, "icap://"+at+"/echo", false) })
	c := newChecker(t, func(c *Config) { c.Scanner = "icap://" + at + "/nothing" })
	if _, err := c.Begin(t.Context(), testFile(1)); !strings.HasPrefix(reason(t, err), "scanner ") {
		t.Errorf("a service that does not exist: %v", err)
	}
}

// FuzzICAPHead: the header of an answer is bounded, and wild ones are errors.
func FuzzICAPHead(f *testing.F) {
	for _, s := range []string{
		"ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\n\r\n", "ICAP/1.0 204\r\n\r\n", "ICAP/1.0 200 OK\r\nX-Infection-Found: Threat=a;\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n", "ICAP/1.0 x\r\n\r\n", "\r\n\r\n", "\v ICAP/1.0 200 OK\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		status, head, err := readHead(bufio.NewReaderSize(bytes.NewReader(b), 4096))
		if err != nil {
			if errors.Is(err, errNotJudged) && len(b) == 0 {
				t.Fatal("nothing came, and was judged")
			}
			return
		}
		if !bytes.HasPrefix(b, []byte("ICAP/")) {
			t.Fatalf("%q has status %d", b, status)
		}
		if name := infection(head); len(name) > len(b) {
			t.Fatalf("%q of %q", name, b)
		}
	})
}

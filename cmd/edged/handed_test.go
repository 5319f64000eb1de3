package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// fakeSystemd is a notify socket, and the store of files behind it.
type fakeSystemd struct {
	*net.UnixConn
	t     *testing.T
	store map[string]*os.File
}

func newFakeSystemd(t *testing.T) *fakeSystemd {
	t.Helper()
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", sock.LocalAddr().String())
	s := &fakeSystemd{sock, t, map[string]*os.File{}}
	t.Cleanup(func() {
		sock.Close()
		for _, f := range s.store {
			f.Close()
		}
	})
	return s
}

// until reads what the daemon says up to a text, and keeps and removes files as systemd does.
func (s *fakeSystemd) until(text string) (said []string) {
	s.t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		s.SetReadDeadline(time.Now().Add(time.Minute))
		n, m, _, _, err := s.ReadMsgUnix(buf, oob)
		if err != nil {
			s.t.Fatalf("%q is not told, but %q: %v", text, said, err)
		}
		line := string(buf[:n])
		said = append(said, line)
		_, name, _ := strings.Cut(line, "FDNAME=")
		switch {
		case strings.HasPrefix(line, "FDSTORE=1\n"):
			s.keep(name, oob[:m])
		case strings.HasPrefix(line, "FDSTOREREMOVE=1\n"):
			s.store[name].Close()
			delete(s.store, name)
		}
		if strings.Contains(line, text) {
			return said
		}
	}
}

func (s *fakeSystemd) keep(name string, oob []byte) {
	s.t.Helper()
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(list) != 1 {
		s.t.Fatalf("%s: %d control messages, %v", name, len(list), err)
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 1 || s.store[name] != nil || strings.ContainsAny(name, ": \n") {
		s.t.Fatalf("%q: %d files, %v", name, len(fds), err)
	}
	s.store[name] = os.NewFile(uintptr(fds[0]), name)
}

// handed returns copies of the store, as a new process gets them.
func (s *fakeSystemd) handed() (files []*os.File) {
	s.t.Helper()
	for name, f := range s.store {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			s.t.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	return files
}

// TestListenersStayWithSystemd: while no daemon runs connections are taken and datagrams kept, and the next daemon answers
// both; what it does not want any more is taken from the store.
func TestListenersStayWithSystemd(t *testing.T) {
	systemd := newFakeSystemd(t)
	dir := t.TempDir()
	first := startDaemon(t, sipAt(dir, sipOnly))
	systemd.until("READY=1")
	if len(systemd.store) != 2 {
		t.Fatalf("systemd has %v", systemd.store)
	}
	first.signals <- syscall.SIGTERM
	if err := first.wait(); err != nil {
		t.Fatal(err)
	}
	systemd.until("STOPPING=1")
	pid := os.Getpid()
	at := fmt.Sprintf("127.77.%d.%d:5060", pid>>8&255, pid&255)
	udp, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatalf("refused between two daemons: %v", err)
	}
	defer tcp.Close()
	ask(t, udp, 1)
	ask(t, tcp, 2)
	startHanded(t, sipAt(dir, sipOnly), systemd.handed())
	wantPong(t, udp, 1)
	wantPong(t, tcp, 2)
	if said := systemd.until("READY=1"); len(said) != 1 {
		t.Errorf("what systemd has is sent again: %q", said)
	}
}

// TestUnwantedSocketsAreGivenBack: a listener that has left the configuration is removed from the store.
func TestUnwantedSocketsAreGivenBack(t *testing.T) {
	systemd := newFakeSystemd(t)
	dir := t.TempDir()
	first := startDaemon(t, sipAt(dir, sipOnly))
	systemd.until("READY=1")
	first.signals <- syscall.SIGTERM
	if err := first.wait(); err != nil {
		t.Fatal(err)
	}
	systemd.until("STOPPING=1")
	startHanded(t, sipAt(dir, "sip: {listen: ['udp://inside:5060']}\n"), systemd.handed())
	systemd.until("READY=1")
	if len(systemd.store) != 1 {
		t.Errorf("systemd has %v", systemd.store)
	}
	for name := range systemd.store {
		if !strings.HasPrefix(name, "stored-udp-") {
			t.Errorf("systemd has %s", name)
		}
	}
}

// TestSocketActivation: a socket unit's name says for which service it is; what is no listener, and what nobody wants, is
// told and closed.
func TestSocketActivation(t *testing.T) {
	newFakeSystemd(t)
	core, logs := observer.New(zapcore.WarnLevel)
	log := zap.New(core)
	ln := listenOn(t, "127.0.0.1:0")
	at := netip.MustParseAddrPort(ln.Addr().String())
	plain, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := takeHanded([]*os.File{
		fileOf(t, ln, "sip"), fileOf(t, listenOn(t, "127.0.0.1:0"), "edged.socket"), os.NewFile(uintptr(plain), "sip"), os.NewFile(uintptr(^uint(0)>>1), "none"),
	}, log)
	if n := logs.FilterMessageSnippet("of no use").Len(); n != 2 {
		t.Errorf("%d sockets are of no use: %v", n, logs.All())
	}
	if _, err := h.listenTCP(t.Context(), "turn", at, &net.ListenConfig{}); err == nil || !strings.Contains(err.Error(), `for "sip", not for turn`) {
		t.Errorf("for turn: %v", err)
	}
	controlled := 0
	taken, err := h.listenTCP(t.Context(), "sip", at, &net.ListenConfig{Control: func(network, _ string, _ syscall.RawConn) error {
		controlled++
		return nil
	}})
	if err != nil || controlled != 1 {
		t.Fatalf("for sip: %v, %d options set", err, controlled)
	}
	defer taken.Close()
	ln.Close()
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got, err := taken.Accept(); err != nil {
		t.Error(err)
	} else {
		got.Close()
	}
	h.settle(log)
	if n := logs.FilterMessageSnippet("no listener of the configuration").Len(); n != 1 {
		t.Errorf("%d unwanted sockets told", n)
	}
}

func listenOn(t *testing.T, at string) *net.TCPListener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

func fileOf(t *testing.T, ln *net.TCPListener, name string) *os.File {
	t.Helper()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

// TestPassedSockets: a count that is wrong, or another's, costs neither a file of this process nor memory.
func TestPassedSockets(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const far = 600 // where this process has no files
	first, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, far)
	if err != nil {
		t.Fatal(err)
	}
	second, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, first+1)
	if err != nil || second != first+1 {
		t.Fatal(second, err)
	}
	defer unix.Close(second)
	for _, c := range []struct {
		pid  int
		fds  string
		want int
	}{{os.Getpid() + 1, "1", 0}, {os.Getpid(), "", 0}, {os.Getpid(), "-1", 0}, {os.Getpid(), "99999999999999999999", 0}, {os.Getpid(), "2000000000", 1}} {
		t.Setenv("LISTEN_PID", strconv.Itoa(c.pid))
		t.Setenv("LISTEN_FDS", c.fds)
		t.Setenv("LISTEN_FDNAMES", "%s%n")
		files := passedSockets(first, zap.NewNop())
		if len(files) != c.want || c.want == 1 && files[0].Name() != "%s%n" || os.Getenv("LISTEN_FDS") != "" {
			t.Errorf("%+v: %v", c, files)
		}
		for _, f := range files {
			f.Close()
		}
	}
	if _, err := unix.FcntlInt(uintptr(second), unix.F_GETFD, 0); err != nil {
		t.Errorf("a file that is no socket was closed: %v", err)
	}
}

package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"edged.dev/edged/pkg/splice"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = time.Minute

func loopback() netip.Prefix { return netip.MustParsePrefix("127.0.0.0/8") }

// started is a forwarder with one rule, in front of a target that echoes.
type started struct {
	f      *Forwarder
	addr   string
	stop   func() error
	logged *observer.ObservedLogs
}

func start(t *testing.T, r Rule, k Kernel) *started {
	t.Helper()
	return startWith(t, r, Deps{Kernel: k, PerSource: 3})
}

func startTLS(t *testing.T, r Rule, c TLSConfigs) *started {
	t.Helper()
	return startWith(t, r, Deps{TLS: c, PerSource: 3})
}

func startWith(t *testing.T, r Rule, d Deps) *started {
	t.Helper()
	j, err := splice.New(1)
	if err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.DebugLevel)
	r.Name = "echo"
	d.Joiner = j
	f := New([]Rule{r}, d, zap.New(core))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- j.Serve(ctx) }()
	go func() { ended <- f.ServeListener(ctx, "echo", ln) }()
	return &started{f: f, addr: ln.Addr().String(), logged: logged, stop: func() error {
		cancel()
		return errors.Join(<-ended, <-ended)
	}}
}

func echoServer(t *testing.T) netip.AddrPort {
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
				io.Copy(c, c)
			}()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String())
}

// dial connects; nil if the connection was reset so soon that connect tells.
func (s *started) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// echoes tells whether a connection is carried; if not, it was reset.
func echoes(t *testing.T, c *net.TCPConn) bool {
	t.Helper()
	if c == nil {
		return false
	}
	b := make([]byte, 5)
	_, err := c.Write([]byte("hello"))
	if err == nil {
		_, err = io.ReadFull(c, b)
	}
	if err == nil && string(b) == "hello" {
		return true
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("%q, %v", b, err)
	}
	return false
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestForward(t *testing.T) {
	to := echoServer(t)
	s := start(t, Rule{To: to, Allow: []netip.Prefix{loopback()}, Via: ViaUser}, nil)
	c := s.dial(t)
	if !echoes(t, c) {
		t.Fatal("the connection was reset")
	}
	c.CloseWrite()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	until(t, "the end is counted", func() bool { return s.f.Open() == 0 })
	want := Info{Name: "echo", To: to, Path: ViaUser, Why: "via is user", Total: 1, FromClients: 5, FromTarget: 5, Refused: map[string]uint64{}}
	if diff := cmp.Diff([]Info{want}, s.f.Infos(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got, want := exported(t, s.f, "edged_forward_bytes_total"), "clients kernel 0, target kernel 0, clients user 5, target user 5"; !sameItems(got, want) {
		t.Errorf("bytes: %s", got)
	}
	if got := exported(t, s.f, "edged_forward_ended_total"); got != "closed 1" {
		t.Errorf("ended: %s", got)
	}
	until(t, "the end is logged", func() bool { return s.logged.FilterMessage("connection ended").Len() == 1 })
	open := s.dial(t)
	if !echoes(t, open) {
		t.Fatal("the second connection was reset")
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if echoes(t, open) {
		t.Error("a connection outlives the forwarder")
	}
}

// exported returns the values of a metric with their labels but for the forward's name.
func exported(t *testing.T, f *Forwarder, name string) string {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(f)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var items []string
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			item := ""
			for _, l := range m.GetLabel() {
				if l.GetName() != "forward" {
					item += l.GetValue() + " "
				}
			}
			items = append(items, fmt.Sprint(item, m.GetCounter().GetValue()))
		}
	}
	return strings.Join(items, ", ")
}

func sameItems(a, b string) bool {
	x, y := strings.Split(a, ", "), strings.Split(b, ", ")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// count returns how often a reason was counted, however that was.
func (r *rule) count(reason string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused[reason] + r.ended[reason]
}

func TestRefused(t *testing.T) {
	to := echoServer(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	all := []netip.Prefix{loopback()}
	for _, tc := range []struct {
		name   string
		rule   Rule
		before int // connections that are carried
		reason string
	}{
		{"stranger", Rule{To: to, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, 0, notAllowed},
		{"max", Rule{To: to, Allow: all, MaxConnections: 2}, 2, limited},
		{"source", Rule{To: to, Allow: all, PerSource: 1}, 1, sourceLimit},
		{"source default", Rule{To: to, Allow: all}, 3, sourceLimit},
		{"draining", Rule{To: to, Allow: all}, 1, draining},
		{"dial", Rule{To: netip.MustParseAddrPort(closed.Addr().String()), Allow: all}, 0, dialFailed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, tc.rule, nil)
			var carried []*net.TCPConn
			for range tc.before {
				c := s.dial(t)
				if !echoes(t, c) {
					t.Fatal("a connection was reset")
				}
				carried = append(carried, c)
			}
			if tc.reason == draining {
				s.f.Drain()
			}
			if echoes(t, s.dial(t)) {
				t.Error("one more is carried")
			}
			for _, c := range carried {
				if !echoes(t, c) {
					t.Error("one of the others was reset")
				}
				c.Close()
			}
			until(t, "the others end", func() bool { return s.f.Open() == 0 })
			r := s.f.rules[0]
			until(t, "the refusal is counted", func() bool { return r.count(tc.reason) == 1 })
			if tc.before > 0 && tc.reason != draining && !echoes(t, s.dial(t)) {
				t.Error("nothing is carried after the end of the others")
			}
			if err := s.stop(); err != nil {
				t.Error(err)
			}
			if n := r.count(tc.reason); n != 1 || len(r.sources) != 0 {
				t.Errorf("counted %d, sources %v", n, r.sources)
			}
		})
	}
}

// TestStrangerIsLogged: who is not allowed is logged once in a while, whatever the log's level.
func TestStrangerIsLogged(t *testing.T) {
	s := start(t, Rule{To: echoServer(t), Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, nil)
	r := s.f.rules[0]
	for n := range uint64(3) {
		if echoes(t, s.dial(t)) {
			t.Error("a stranger is carried")
		}
		until(t, "it is counted", func() bool { return r.count(notAllowed) == n+1 })
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	lines := s.logged.FilterMessage("connection refused")
	if loud := lines.FilterLevelExact(zap.InfoLevel).Len(); lines.Len() != 3 || loud != 1 {
		t.Errorf("%d lines, %d of them loud", lines.Len(), loud)
	}
}

func TestIdleConnectionEnds(t *testing.T) {
	s := start(t, Rule{To: echoServer(t), Allow: []netip.Prefix{loopback()}, Idle: 200 * time.Millisecond}, nil)
	c := s.dial(t)
	if !echoes(t, c) {
		t.Fatal("the connection was reset")
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	until(t, "the end is counted", func() bool { return s.f.Open() == 0 })
	if n := s.f.rules[0].count(endedIdle); n != 1 {
		t.Errorf("%d counted", n)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// kernel stands in for the kernel path.
type kernel struct {
	refuses error
	listen  netip.AddrPort
	closed  atomic.Bool
	drained atomic.Bool
}

func (k *kernel) Carry(_ Rule, listen netip.AddrPort) (Carried, error) {
	k.listen = listen
	return k, k.refuses
}

func (k *kernel) Figures() (Figures, error) {
	return Figures{Open: 2, Total: 7, Bytes: [2]uint64{70, 700}, Refused: map[string]uint64{notAllowed: 4}}, nil
}

func (k *kernel) Drain() error {
	k.drained.Store(true)
	return nil
}

func (k *kernel) Close() error {
	k.closed.Store(true)
	return nil
}

func TestKernel(t *testing.T) {
	for _, tc := range []struct {
		via       string
		refuses   error
		path, why string
		warned    int
	}{
		{ViaAuto, nil, ViaKernel, "", 0},
		{ViaAuto, errors.ErrUnsupported, ViaUser, errors.ErrUnsupported.Error(), 0},
		{ViaKernel, errors.ErrUnsupported, ViaUser, errors.ErrUnsupported.Error(), 1},
		{ViaUser, nil, ViaUser, "via is user", 0},
	} {
		k := &kernel{refuses: tc.refuses}
		s := start(t, Rule{To: echoServer(t), Allow: []netip.Prefix{loopback()}, Via: tc.via}, k)
		if !echoes(t, s.dial(t)) {
			t.Error("what the kernel leaves alone is not carried")
		}
		i := s.f.Infos()[0]
		if i.Path != tc.path || i.Why != tc.why {
			t.Errorf("%s: path %s, %q", tc.via, i.Path, i.Why)
		}
		asked := tc.via != ViaUser
		if carries := asked && tc.refuses == nil; carries && (i.Connections != 3 || i.Kernel != 2 || i.Total != 8 || i.Refused[notAllowed] != 4) {
			t.Errorf("%+v", i)
		}
		if asked && k.listen.String() != s.addr {
			t.Errorf("the kernel was asked for %s", k.listen)
		}
		if n := s.f.Open(); n != i.Connections {
			t.Errorf("%s: %d open, %d listed", tc.via, n, i.Connections)
		}
		s.f.Drain()
		if k.drained.Load() != (asked && tc.refuses == nil) {
			t.Errorf("%s: drained %v", tc.via, k.drained.Load())
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if k.closed.Load() != (asked && tc.refuses == nil) {
			t.Errorf("%s: closed %v", tc.via, k.closed.Load())
		}
		if n := s.logged.FilterLevelExact(zap.WarnLevel).Len(); n != tc.warned {
			t.Errorf("%s: %d warnings", tc.via, n)
		}
	}
}

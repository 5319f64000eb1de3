//go:build lab

package lab

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// carried is what the tests read of /api/v1/pinholes.
type carried struct {
	Pinholes []struct {
		Path string
		Ends [2]struct {
			Path, Why string
			Stats     struct {
				Packets uint64
				Lost    int64
				MOS     float64
			}
		}
	}
}

func (s *scene) carried() (c carried) {
	s.Helper()
	code, b := s.edge.get("/api/v1/pinholes")
	if code != http.StatusOK {
		s.Fatalf("pinholes: status %d", code)
	}
	must(s, "pinholes", json.Unmarshal(b, &c))
	return c
}

// inKernel waits until the kernel carries the only call.
func (s *scene) inKernel() {
	s.Helper()
	var c carried
	if !until(10*time.Second, func() bool {
		c = s.carried()
		return len(c.Pinholes) == 1 && c.Pinholes[0].Path == "tc"
	}) {
		s.Fatalf("not in the kernel: %+v", c)
	}
}

// fastScene skips where the machine has no kernel path.
func fastScene(t *testing.T, p plan) *scene {
	onlyEdged(t, "the reference has no kernel module here")
	p.Edge.More += "media: {datapath: tc}\n"
	s := newScene(t, p)
	s.needKernelPath(t)
	return s
}

// needKernelPath skips the test where the machine cannot do what the daemon did without, and fails it where the machine
// could, but refused our program.
func (s *scene) needKernelPath(t *testing.T) {
	b, err := os.ReadFile(s.edge.proc.Log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "no kernel media path") && !strings.Contains(line, "no XDP") {
			continue
		}
		for _, lacks := range []string{"operation not permitted", "not supported", "unsupported operation"} {
			if strings.Contains(line, lacks) {
				t.Skipf("SKIPPED: %s", line)
			}
		}
		t.Fatal(line)
	}
}

// datagrams returns how many UDP packets the gateway's sockets have got.
func (h *Host) datagrams(t testing.TB) (n int) {
	t.Helper()
	must(t, "datagrams", h.Do(func() error {
		for file, key := range map[string]string{"snmp": "Udp:", "snmp6": "Udp6InDatagrams"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				var v int
				if f := strings.Fields(line); f[0] != key {
					continue
				} else if _, err := fmt.Sscan(f[1], &v); err == nil { // else the line of names
					n += v
				}
			}
		}
		return nil
	}))
	return n
}

// nothingLost checks that each voice got what the other sent since both forgot, and returns how much that was
// at least.
func (s *scene) nothingLost(t *testing.T) int {
	t.Helper()
	sent := min(s.va.Sent(), s.vb.Sent())
	if sent < 50 {
		t.Fatalf("only %d packets were sent", sent)
	}
	for _, v := range []*Voice{s.va, s.vb} {
		if n := v.Packets(); n < sent-5 { // some are under way
			t.Errorf("%v got %d packets of %d while the daemon stood still", v.Addr, n, sent)
		}
	}
	return sent
}

// TestFastPathStopped: a daemon that is stopped does not interrupt a call, and nothing of the media came to
// its sockets. Then it goes on, and has the figures of the whole call.
func TestFastPathStopped(t *testing.T) {
	for _, f := range [][2]int{{4, 4}, {6, 6}, {6, 4}} {
		t.Run(fmt.Sprintf("inside%d-outside%d", f[0], f[1]), func(t *testing.T) {
			s := fastScene(t, plan{InFamily: f[0], OutFamily: f[1]})
			a, _ := s.call()
			s.hearEachOther(300 * time.Millisecond)
			s.inKernel()
			s.edge.proc.Signal(syscall.SIGSTOP)
			before := s.rig.GW.datagrams(t)
			const stopped = 10 * time.Second
			s.va.Forget()
			s.vb.Forget()
			pass(stopped)
			sent := s.nothingLost(t)
			s.hearEachOther(300 * time.Millisecond)
			if n := s.rig.GW.datagrams(t) - before; n != 0 {
				t.Errorf("%d packets came to the gateway's sockets", n)
			}
			s.edge.proc.Signal(syscall.SIGCONT)
			var c carried
			eventually(t, 10*time.Second, "the figures of the call", func() bool {
				c = s.carried()
				return len(c.Pinholes) == 1 && int(min(c.Pinholes[0].Ends[0].Stats.Packets, c.Pinholes[0].Ends[1].Stats.Packets)) >= sent
			})
			for i, e := range c.Pinholes[0].Ends {
				if e.Stats.Lost != 0 || e.Stats.MOS < 3.5 {
					t.Errorf("end %d: %+v", i, e.Stats)
				}
			}
			a.Bye(s.bob)
			s.edge.Clean(t)
		})
	}
}

// TestFastPathIdle: the timer that ends a silent call sees the packets that the kernel carries.
func TestFastPathIdle(t *testing.T) {
	s := fastScene(t, plan{Edge: EdgeConfig{Pinholes: "{udp: 50000-51999, idle: 2s}"}})
	a, _ := s.call()
	s.hearEachOther(300 * time.Millisecond)
	s.inKernel()
	pass(5 * time.Second)
	s.hearEachOther(300 * time.Millisecond)
	s.inKernel()
	a.Bye(s.bob)
	s.edge.Clean(t)
}

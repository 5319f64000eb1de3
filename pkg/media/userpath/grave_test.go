package userpath

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
)

// TestGrave: a deleted socket stays open as long as a loop is in the round in which it may use it.
func TestGrave(t *testing.T) {
	p, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	socket := func() *media.Socket {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		s := &media.Socket{FD: fd}
		if err := p.Set(s, []*media.Flow{{Out: s, Counters: &media.Counters{}}}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	open := func(s *media.Socket) bool {
		_, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFD, 0)
		return err == nil
	}
	idle := socket()
	p.Delete(idle)
	if open(idle) {
		t.Fatal("no loop is in a round, and the socket is open")
	}
	s := socket()
	p.loops[1].round.Store(7)
	p.Delete(s)
	p.loops[0].round.Add(2)
	if p.reap(); !open(s) {
		t.Fatal("closed while a loop may use it")
	}
	if p.table.get(s.FD) != nil {
		t.Fatal("a loop can still find it")
	}
	p.loops[1].round.Add(2) // the next round began after Delete
	if p.reap(); open(s) {
		t.Fatal("open though the round is over")
	}
	if n := p.buried.Load(); n != 0 {
		t.Fatalf("%d graves left", n)
	}
	p.loops[1].round.Store(8)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Set(s, []*media.Flow{{}}); err == nil {
		t.Fatal("a path that has ended takes a socket")
	}
}

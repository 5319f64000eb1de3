package msnftp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

const patience = 30 * time.Second

// tcpPair returns the two ends of a connection over loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// play is a transfer with its two clients.
type play struct {
	// r and s are what the file's receiver and its sender hold.
	r, s    *net.TCPConn
	ended   chan Outcome
	refused chan error
	moved   chan [2]int
}

// start has a transfer admitted and served; dialler says whose connection came first.
func start(t testing.TB, x *Transfer, dialler pinhole.Side) *play {
	t.Helper()
	p := &play{ended: make(chan Outcome, 1), refused: make(chan error, 1), moved: make(chan [2]int, 1)}
	var conns [2]net.Conn
	for i := range conns {
		mine, its := tcpPair(t)
		mine.SetDeadline(time.Now().Add(patience))
		conns[i] = its
		if pinhole.Side(i) == x.Receiver {
			p.r = mine
		} else {
			p.s = mine
		}
	}
	x.Ended = func(o Outcome) { p.ended <- o }
	x.Refused = func(_ netip.Addr, err error) { p.refused <- err }
	go p.serve(x, dialler, conns)
	return p
}

func (p *play) serve(x *Transfer, dialler pinhole.Side, conns [2]net.Conn) {
	var sum [2]int
	var mu sync.Mutex
	defer func() {
		conns[0].Close()
		conns[1].Close()
		p.moved <- sum
	}()
	conns[dialler].SetDeadline(time.Now().Add(patience))
	c, err := x.Admit(context.Background(), dialler, conns[dialler])
	if err != nil {
		return
	}
	conns[dialler] = c
	x.Serve(context.Background(), conns, func(from pinhole.Side, n int) {
		mu.Lock()
		defer mu.Unlock()
		sum[from] += n
	})
}

// result waits for what became of it.
func (p *play) result() string {
	select {
	case o := <-p.ended:
		return Reason(o.Err)
	case err := <-p.refused:
		return "refused: " + Reason(err)
	case <-time.After(patience):
		return "nothing became of it"
	}
}

// step does one line of a script: who, what he does (">" says, "<" hears, "." ends, "!" hears the end), and the words.
func (p *play) step(t *testing.T, text string) {
	t.Helper()
	c := map[byte]*net.TCPConn{'R': p.r, 'S': p.s}[text[0]]
	words, err := strconv.Unquote(`"` + strings.TrimPrefix(text[2:], " ") + `"`)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	switch text[1] {
	case '>':
		_, err = io.WriteString(c, words)
	case '<':
		got := make([]byte, len(words))
		n, fault := io.ReadFull(c, got)
		if err = fault; err == nil && string(got) != words {
			t.Fatalf("%s: heard %q", text, got)
		} else if err != nil {
			t.Fatalf("%s: heard %q: %v", text, got[:n], err)
		}
	case '.':
		err = c.CloseWrite()
	case '!':
		var got []byte
		if got, err = io.ReadAll(c); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s: heard %q, %v", text, got, err)
		}
		err = nil // a reset is an end too
	default:
		t.Fatalf("%s: no such step", text)
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// TestScripts plays testdata/*.txt: a first line of settings ("want=RESULT" and others), then steps. Each is
// played with both sides of the pinhole, and with either client dialling unless "dials=R" or "dials=S" is set.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		set := make(map[string]string)
		for _, w := range strings.Fields(lines[0]) {
			k, v, _ := strings.Cut(w, "=")
			set[k] = v
		}
		for _, dials := range []string{"R", "S"} {
			if set["dials"] != "" && set["dials"] != dials {
				continue
			}
			for _, receiver := range []pinhole.Side{pinhole.Near, pinhole.Far} {
				name := strings.TrimSuffix(filepath.Base(f), ".txt") + "/" + dials + "-dials/receiver-" + strconv.Itoa(int(receiver))
				t.Run(name, func(t *testing.T) { playScript(t, set, lines[1:], dials == "R", receiver) })
			}
		}
	}
}

func playScript(t *testing.T, set map[string]string, steps []string, receiverDials bool, receiver pinhole.Side) {
	x := &Transfer{Receiver: receiver, Cookie: "863489474", User: set["user"], Plain: set["plain"] != "", MaxSize: 1000}
	dialler := receiver
	if !receiverDials {
		dialler = receiver.Other()
	}
	for _, how := range []string{"joined", "copied", "checked"} {
		if how != "copied" && set["copied-only"] != "" {
			continue
		}
		t.Run(how, func(t *testing.T) {
			y := *x
			switch how {
			case "joined":
				y.Joiner = &testJoiner{}
			case "checked":
				y.Check = func(context.Context, int64) (Check, error) { return &testCheck{}, nil }
			}
			p := start(t, &y, dialler)
			for _, s := range steps {
				if strings.TrimSpace(s) == "" || s[0] == '#' || receiverDials && strings.HasPrefix(s, "S-dials ") || !receiverDials && strings.HasPrefix(s, "R-dials ") {
					continue
				}
				s = strings.TrimPrefix(strings.TrimPrefix(s, "S-dials "), "R-dials ")
				p.step(t, s)
			}
			if got := p.result(); got != strings.ReplaceAll(set["want"], ":", ": ") {
				t.Fatalf("%s, want %s", got, set["want"])
			}
		})
	}
}

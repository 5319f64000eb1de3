package msnftp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

const cookie = "863489474"

func steps(t *testing.T, p *play, script ...string) {
	t.Helper()
	for _, s := range script {
		p.step(t, s)
	}
}

// shaken takes a transfer whose receiver dials as far as TFR.
func shaken(t *testing.T, p *play, size int) {
	t.Helper()
	fil := `FIL ` + strconv.Itoa(size) + `\r\n`
	steps(
		t, p, `R> VER MSN_SECURE_FTP\r\n`, `R< VER MSN_SECURE_FTP\r\n`, `R> USR bob@example.com 863489474\r\n`,
		`S< VER MSN_SECURE_FTP\r\n`, `S> VER MSN_SECURE_FTP\r\n`, `S< USR bob@example.com 863489474\r\n`,
		`S> `+fil, `R< `+fil, `R> TFR\r\n`, `S< TFR\r\n`,
	)
}

func checkedBy(c Check) func(context.Context, int64) (Check, error) {
	return func(context.Context, int64) (Check, error) { return c, nil }
}

// TestDenied: a small file that is denied does not reach the receiver, and both hear of it in the protocol's words.
func TestDenied(t *testing.T) {
	p := start(t, &Transfer{Cookie: cookie, Check: checkedBy(&testCheck{})}, pinhole.Near)
	shaken(t, p, 5)
	steps(t, p, `S> \x00\x03\x00vir\x00\x02\x00us`, `R< \x01\x00\x00`, `R.`, `R!`, `S< BYE 2164261682\r\n`, `S.`, `S!`)
	if o := <-p.ended; !errors.Is(o.Err, ErrDenied) || !errors.Is(o.Err, errVirus) || o.Size != 5 {
		t.Errorf("%+v", o)
	}
}

// TestDeniedAtOnce: what is known to be wrong by its first octets is not awaited.
func TestDeniedAtOnce(t *testing.T) {
	p := start(t, &Transfer{Cookie: cookie, Check: checkedBy(&testCheck{denied: errVirus})}, pinhole.Near)
	shaken(t, p, 1_000_000)
	steps(t, p, `S> \x00\x02\x00MZ`, `R< \x01\x00\x00`, `S< BYE 2164261682\r\n`, `S.`, `R!`, `S!`)
	if o := <-p.ended; Reason(o.Err) != "denied" {
		t.Errorf("%+v", o)
	}
}

// TestDeniedMAC: a MAC that does not fit says that something else was looked at than arrives.
func TestDeniedMAC(t *testing.T) {
	p := start(t, &Transfer{Cookie: cookie, Check: checkedBy(&testCheck{})}, pinhole.Near)
	shaken(t, p, 5)
	steps(
		t, p, `S> \x00\x05\x00hello`, `R< \x00\x05\x00hello`, `R> BYE 16777989\r\n`, `S< BYE 16777989\r\n`,
		`S> MAC d3Jv\x00`, `S> \r\n`, `R!`, `S< BYE 2164261682\r\n`, `S.`, `S!`,
	)
	if o := <-p.ended; Reason(o.Err) != "denied" {
		t.Errorf("%+v", o)
	}
}

// TestNoScanner: where the content cannot be looked at nothing is sent.
func TestNoScanner(t *testing.T) {
	p := start(t, &Transfer{Cookie: cookie, Check: func(context.Context, int64) (Check, error) { return nil, errVirus }}, pinhole.Near)
	steps(
		t, p, `R> VER MSN_SECURE_FTP\r\n`, `R< VER MSN_SECURE_FTP\r\n`, `R> USR bob@example.com 863489474\r\n`,
		`S< VER MSN_SECURE_FTP\r\n`, `S> VER MSN_SECURE_FTP\r\n`, `S< USR bob@example.com 863489474\r\n`,
		`S> FIL 5\r\n`, `R< FIL 5\r\n`, `R> TFR\r\n`, `S< CCL\r\n`, `S.`, `S!`, `R!`,
	)
	if o := <-p.ended; Reason(o.Err) != "denied" {
		t.Errorf("%+v", o)
	}
}

// file returns so many octets and the blocks of them that a client sends.
func file(size, block int) (plain, wire []byte) {
	plain = make([]byte, size)
	for i := range plain {
		plain[i] = byte(i*7 + i>>8)
	}
	for rest := plain; len(rest) > 0; {
		n := min(block, len(rest))
		wire = append(append(wire, 0, byte(n), byte(n>>8)), rest[:n]...)
		rest = rest[n:]
	}
	return plain, wire
}

// TestLarge: a large file passes unchanged, with blocks of any size, and its end only after the verdict.
func TestLarge(t *testing.T) {
	for _, block := range []int{1, 77, 2045, 65535} {
		size := 600_000
		if block == 1 {
			size = 20_000
		}
		plain, wire := file(size, block)
		asked, verdict := make(chan bool), make(chan bool)
		c := &testCheck{slow: func() { close(asked); <-verdict }}
		x := &Transfer{Cookie: cookie, Check: checkedBy(c)}
		if block == 1 {
			x.MaxSize = int64(size)
		}
		p := start(t, x, pinhole.Near)
		shaken(t, p, size)
		got := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(p.r)
			got <- b
		}()
		if _, err := p.s.Write(wire); err != nil {
			t.Fatal(err)
		}
		if block == 1 {
			// A file of one-octet blocks is more than announced.
			if o := <-p.ended; !errors.Is(o.Err, ErrLimit) {
				t.Errorf("blocks of 1: %+v", o)
			}
			<-got
			continue
		}
		<-asked
		if !bytes.Equal(c.got, plain) {
			t.Error("the check has seen something else")
		}
		verdict <- true
		const mac = "MAC bWFj\x00\r\n"
		io.WriteString(p.s, mac)
		p.s.CloseWrite()
		b := <-got
		if !bytes.Equal(b, append(wire, mac...)) {
			t.Errorf("blocks of %d: %d octets of %d arrived", block, len(b), len(wire))
		}
		p.r.CloseWrite()
		if o := <-p.ended; o.Err != nil || o.Octets[1] != uint64(len(wire)+len("VER MSN_SECURE_FTP\r\nFIL 600000\r\n"+mac)) {
			t.Errorf("blocks of %d: %+v", block, o)
		}
		if n := <-p.moved; n[1] != len(wire)+len("VER MSN_SECURE_FTP\r\nFIL 600000\r\n"+mac) {
			t.Errorf("the relay heard of %d", n[1])
		}
	}
}

// TestHeldBack: of a large file that is denied at its end, the receiver has not got the last 32 KiB.
func TestHeldBack(t *testing.T) {
	_, wire := file(200_000, 2045)
	p := start(t, &Transfer{Cookie: cookie, Check: checkedBy(verdictOnly{})}, pinhole.Near)
	shaken(t, p, 200_000)
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(p.r)
		p.r.CloseWrite()
		got <- b
	}()
	if _, err := p.s.Write(wire); err != nil {
		t.Fatal(err)
	}
	steps(t, p, `S< BYE 2164261682\r\n`, `S.`)
	b := <-got
	data, ok := bytes.CutSuffix(b, []byte{1, 0, 0})
	if !ok || !bytes.HasPrefix(wire, data) || len(data)%2048 != 0 || len(data) > len(wire)-tailSize || len(data) < len(wire)/2 {
		t.Errorf("%d octets of %d", len(data), len(wire))
	}
	if o := <-p.ended; Reason(o.Err) != "denied" {
		t.Errorf("%+v", o)
	}
}

// verdictOnly denies all at the end.
type verdictOnly struct{}

func (verdictOnly) Write(b []byte) (int, error) { return len(b), nil }
func (verdictOnly) Verdict() error              { return errVirus }
func (verdictOnly) MAC(string) error            { return nil }

// TestTooMuch: what is more than announced ends the transfer, unread or read.
func TestTooMuch(t *testing.T) {
	for _, tt := range []struct {
		name string
		x    Transfer
	}{{"joined", Transfer{Joiner: &testJoiner{}}}, {"copied", Transfer{}}, {"checked", Transfer{Check: checkedBy(&testCheck{})}}} {
		t.Run(tt.name, func(t *testing.T) {
			tt.x.Cookie = cookie
			p := start(t, &tt.x, pinhole.Near)
			shaken(t, p, 10)
			_, wire := file(20_000, 2045)
			p.s.Write(wire)
			p.r.CloseWrite()
			go io.Copy(io.Discard, p.r)
			io.Copy(io.Discard, p.s)
			p.s.Close()
			if o := <-p.ended; Reason(o.Err) != "too_long" {
				t.Errorf("%+v", o)
			}
		})
	}
}

// TestEmptyBlocks: blocks of nothing do not fill the memory.
func TestEmptyBlocks(t *testing.T) {
	p := start(t, &Transfer{Cookie: cookie, Check: checkedBy(&testCheck{})}, pinhole.Near)
	shaken(t, p, 1<<30)
	go io.Copy(io.Discard, p.r)
	go p.s.Write(make([]byte, maxHeld+100_000))
	steps(t, p, `S< BYE 2164261682\r\n`)
	p.s.Close()
	p.r.Close()
	if o := <-p.ended; Reason(o.Err) != "too_long" {
		t.Errorf("%+v", o)
	}
}

// TestReset: a reset of one is a reset for the other.
func TestReset(t *testing.T) {
	for _, who := range []string{"R", "S"} {
		p := start(t, &Transfer{Cookie: cookie}, pinhole.Near)
		shaken(t, p, 100_000)
		gone, left := p.r, p.s
		if who == "S" {
			gone, left = p.s, p.r
		}
		gone.SetLinger(0)
		gone.Close()
		if _, err := io.ReadAll(left); err == nil {
			t.Errorf("%s was reset, and the other ended in order", who)
		}
		if o := <-p.ended; Reason(o.Err) != "connection" {
			t.Errorf("%+v", o)
		}
	}
}

// TestThirdHost: one who does not know the cookie is refused, and those who do meet afterwards, at the same pinhole.
func TestThirdHost(t *testing.T) {
	ended, refused := make(chan Outcome, 1), make(chan error, 1)
	x := &Transfer{Cookie: cookie, Ended: func(o Outcome) { ended <- o }}
	x.Refused = func(_ netip.Addr, err error) { refused <- err }
	o := pinholetest.New(pinhole.Networks{"a": {Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, "b": {Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}}, 50000)
	lease, err := o.Open(context.Background(), pinhole.Request{
		Kind: pinhole.TCP, Networks: [2]string{"a", "b"}, Ports: [2]uint16{6891, 6901}, Listen: [2]bool{true, false},
		Once: true, Admit: x.Admit, Serve: x.Serve,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &play{}
	var conns [2]net.Conn
	connect := func() chan error {
		its := [2]*net.TCPConn{}
		p.r, its[0] = tcpPair(t)
		p.s, its[1] = tcpPair(t)
		conns = [2]net.Conn{its[0], its[1]}
		done := make(chan error, 1)
		go func() { done <- lease.(*pinholetest.Lease).Connect(context.Background(), pinhole.Near, conns) }()
		return done
	}
	done := connect()
	steps(t, p, `R> VER MSN_SECURE_FTP\r\nUSR eve@example.com 1\r\n`, `R< VER MSN_SECURE_FTP\r\n`, `R!`, `S!`)
	if err := <-done; !errors.Is(err, ErrCookie) || !errors.Is(<-refused, ErrCookie) {
		t.Fatal(err)
	}
	done = connect()
	shaken(t, p, 5)
	steps(t, p, `S> \x00\x05\x00hello`, `R< \x00\x05\x00hello`, `R> BYE 16777989\r\n`, `S< BYE 16777989\r\n`,
		`S> MAC bWFj\x00\r\n`, `R< MAC bWFj\x00\r\n`, `S.`, `R!`, `R.`, `S!`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if o := <-ended; o.Err != nil {
		t.Error(o.Err)
	}
}

// TestTimes: who is slow, or silent, is not awaited for ever; who is not silent is, however long it takes.
func TestTimes(t *testing.T) {
	for _, check := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var near, far [2]net.Conn
			near[0], near[1] = net.Pipe()
			far[0], far[1] = net.Pipe()
			ended := make(chan Outcome, 1)
			x := &Transfer{Cookie: cookie, Ended: func(o Outcome) { ended <- o }}
			if check {
				x.Check = checkedBy(&testCheck{})
			}
			go x.Serve(t.Context(), [2]net.Conn{near[1], far[1]}, func(pinhole.Side, int) {})
			pipes := pipes{t, near[0], far[0]}
			pipes.shake("200000")
			began := time.Now()
			for range 10 {
				time.Sleep(59 * time.Second)
				io.WriteString(pipes.s, "\x00\x00\x02"+strings.Repeat("x", 512))
				io.ReadFull(pipes.r, make([]byte, 515))
			}
			o := <-ended
			if took := time.Since(began); !errors.Is(o.Err, ErrIdle) || took != 650*time.Second {
				t.Errorf("after %v: %v", took, o.Err)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			var near, far [2]net.Conn
			near[0], near[1] = net.Pipe()
			far[0], far[1] = net.Pipe()
			ended := make(chan Outcome, 1)
			x := &Transfer{Cookie: cookie, Ended: func(o Outcome) { ended <- o }}
			began := time.Now()
			go x.Serve(t.Context(), [2]net.Conn{near[1], far[1]}, func(pinhole.Side, int) {})
			time.Sleep(25 * time.Second)
			pipes := pipes{t, near[0], far[0]}
			io.WriteString(pipes.r, "VER MSN_SECURE_FTP\r\n")
			pipes.hears(pipes.r, "VER MSN_SECURE_FTP\r\n")
			if o := <-ended; !errors.Is(o.Err, ErrSlow) || time.Since(began) != DefaultHandshake {
				t.Errorf("after %v: %v", time.Since(began), o.Err)
			}
		})
	}
}

// pipes are two clients in memory.
type pipes struct {
	t    *testing.T
	r, s net.Conn
}

func (p pipes) hears(c net.Conn, words string) {
	p.t.Helper()
	b := make([]byte, len(words))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != words {
		p.t.Fatalf("heard %q, not %q: %v", b, words, err)
	}
}

func (p pipes) shake(size string) {
	p.t.Helper()
	io.WriteString(p.r, "VER MSN_SECURE_FTP\r\n")
	p.hears(p.r, "VER MSN_SECURE_FTP\r\n")
	io.WriteString(p.r, "USR bob@example.com 863489474\r\n")
	p.hears(p.s, "VER MSN_SECURE_FTP\r\n")
	io.WriteString(p.s, "VER MSN_SECURE_FTP\r\n")
	p.hears(p.s, "USR bob@example.com 863489474\r\n")
	io.WriteString(p.s, "FIL "+size+"\r\n")
	p.hears(p.r, "FIL "+size+"\r\n")
	io.WriteString(p.r, "TFR\r\n")
	p.hears(p.s, "TFR\r\n")
}

// TestClosed: a lease that ends, ends its transfer, wherever it is.
func TestClosed(t *testing.T) {
	for _, shakes := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var near, far [2]net.Conn
			near[0], near[1] = net.Pipe()
			far[0], far[1] = net.Pipe()
			ended := make(chan Outcome, 1)
			x := &Transfer{Cookie: cookie, Ended: func(o Outcome) { ended <- o }}
			ctx, cancel := context.WithCancel(t.Context())
			go x.Serve(ctx, [2]net.Conn{near[1], far[1]}, func(pinhole.Side, int) {})
			if shakes {
				pipes{t, near[0], far[0]}.shake("5")
			}
			synctest.Wait()
			cancel()
			if o := <-ended; Reason(o.Err) != "closed" {
				t.Errorf("%+v", o)
			}
		})
	}
}

// TestSlowVerdict: a verdict that takes long is awaited, and nobody is idle meanwhile.
func TestSlowVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var near, far [2]net.Conn
		near[0], near[1] = net.Pipe()
		far[0], far[1] = net.Pipe()
		ended := make(chan Outcome, 1)
		x := &Transfer{Cookie: cookie, Ended: func(o Outcome) { ended <- o }}
		x.Check = checkedBy(&testCheck{slow: func() { time.Sleep(5 * time.Minute) }})
		var told atomic.Int64 // when the relay last heard
		go x.Serve(t.Context(), [2]net.Conn{near[1], far[1]}, func(pinhole.Side, int) { told.Store(time.Now().UnixNano()) })
		p := pipes{t, near[0], far[0]}
		p.shake("5")
		began := time.Now()
		go io.WriteString(p.s, "\x00\x05\x00hello")
		p.hears(p.r, "\x00\x05\x00hello")
		if took := time.Since(began); took != 5*time.Minute || time.Since(time.Unix(0, told.Load())) > time.Second {
			t.Errorf("after %v, told at %v", took, time.Unix(0, told.Load()))
		}
		io.WriteString(p.r, "BYE 16777989\r\n")
		p.hears(p.s, "BYE 16777989\r\n")
		go io.WriteString(p.s, "MAC bWFj\x00\r\n")
		p.hears(p.r, "MAC bWFj\x00\r\n")
		// Neither closes: the file has passed all the same.
		if o := <-ended; o.Err != nil || time.Since(began) != 5*time.Minute+DefaultIdle {
			t.Errorf("after %v: %v", time.Since(began), o.Err)
		}
	})
}

package groove

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/splice"
)

// memory is a server whose connections are in memory, and whose time costs none.
type memory struct {
	s    *Server
	dial DialFunc
}

func inMemory(t *testing.T, virtual func(context.Context, *Conn), f func(*testing.T, memory)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Polling: true}, Deps{Tunnel: "t", Joiner: splice.Copier{}, Virtual: func(ctx context.Context, c *Conn) {
			defer c.Close()
			virtual(ctx, c)
		}}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { s.Run(ctx) })
		f(t, memory{s, func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			work.Go(func() { s.ServeConn(ctx, far) })
			return near, nil
		}})
		cancel()
		work.Wait()
		time.Sleep(2 * linger) // what clients have closed comes to its end
	})
}

func echoing(_ context.Context, c *Conn) { io.Copy(c, c) }

// TestSlow: who says nothing, or drips, has ten seconds.
func TestSlow(t *testing.T) {
	for reason, text := range map[string]string{"silent": "", "slow_header": "GET /2.0/"} {
		inMemory(t, echoing, func(t *testing.T, m memory) {
			c, _ := m.dial(t.Context())
			begun := time.Now()
			go func() {
				for _, octet := range []byte(text) {
					c.Write([]byte{octet})
					time.Sleep(time.Second)
				}
			}()
			io.ReadAll(c)
			if d := time.Since(begun); d != headTime || m.s.counted(t, "edged_groove_refused_total", reason) != 1 {
				t.Errorf("%s: closed after %v", reason, d)
			}
			time.Sleep(time.Minute)
		})
	}
}

// TestQuiet: a connection of KeepAlive or Polling whose users say nothing lives on, since its client still asks; one of
// LongLived has its users' Noops, or is dead.
func TestQuiet(t *testing.T) {
	for mode, alive := range map[Mode]bool{LongLived: false, KeepAlive: true, Polling: true} {
		inMemory(t, echoing, func(t *testing.T, m memory) {
			c, err := Dial(t.Context(), mode, Target{Relay: "t", Host: "h"}, m.dial)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			time.Sleep(defaultIdle - 5*time.Second)
			if got := says(c, "hello"); got != "hello" {
				t.Errorf("%v, in time: %q", mode, got)
			}
			time.Sleep(defaultIdle + 5*time.Second)
			if got := says(c, "hello"); (got == "hello") != alive {
				t.Errorf("%v, late: %q", mode, got)
			}
			if n := m.s.counted(t, "edged_groove_ended_total", endIdle); (n == 0) != alive {
				t.Errorf("%v: %v ended idle", mode, n)
			}
		})
	}
}

// says returns what comes back, or the error.
func says(c net.Conn, text string) string {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, text); err != nil {
		return err.Error()
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err.Error()
	}
	return string(b)
}

// TestPollingEnd: a client that asks no more is gone.
func TestPollingEnd(t *testing.T) {
	var heard chan string
	inMemory(t, func(_ context.Context, c *Conn) {
		b, _ := io.ReadAll(c)
		heard <- string(b)
	}, func(t *testing.T, m memory) {
		heard = make(chan string, 1)
		c, err := Dial(t.Context(), Polling, Target{Relay: "t", Host: "h"}, m.dial)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.Close()
		begun := time.Now()
		if got := <-heard; got != "hello" || time.Since(begun) > lostTime+2*sweepTime {
			t.Errorf("%q after %v", got, time.Since(begun))
		}
	})
}

// TestLost: a client of KeepAlive that closes its connection and does not ask by another is gone.
func TestLost(t *testing.T) {
	var heard chan error
	inMemory(t, func(_ context.Context, c *Conn) {
		_, err := c.Read(make([]byte, 1))
		heard <- err
	}, func(t *testing.T, m memory) {
		heard = make(chan error, 1)
		get, _ := m.dial(t.Context())
		post, _ := m.dial(t.Context())
		defer post.Close()
		go io.WriteString(get, "GET /2.0/t/"+sample+",ConnType=KeepAlive HTTP/1.1\r\n\r\n")
		go io.WriteString(post, "POST /2.0/t/"+sample+",ConnType=KeepAlive HTTP/1.1\r\nContent-Length: 22\r\n\r\n"+echo)
		go io.Copy(io.Discard, post)
		b, br := make([]byte, len(echo)), bufio.NewReader(get)
		if _, err := readHead(br); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(br, b); err != nil || string(b) != echo {
			t.Fatalf("%q, %v", b, err)
		}
		synctest.Wait()
		get.Close()
		begun := time.Now()
		if err := <-heard; !errors.Is(err, io.EOF) || time.Since(begun) > lostTime+2*sweepTime {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// TestSameConnection: a proxy may send the GET of LongLived by a connection that has served a GET of KeepAlive, long ago.
func TestSameConnection(t *testing.T) {
	inMemory(t, echoing, func(t *testing.T, m memory) {
		const keep, long = "/2.0/t/a" + "czn5kctbrpxfgkgxzqs6zmkp9uwvswszvs6f72,ConnType=KeepAlive", "/2.0/t/" + sample + ",ConnType=LongLived,ContentLength=2147479552"
		get, _ := m.dial(t.Context())
		post, _ := m.dial(t.Context())
		defer get.Close()
		defer post.Close()
		br := bufio.NewReader(get)
		go io.Copy(io.Discard, post)
		for _, uri := range []string{keep, long} {
			length := "22"
			if uri == long {
				length = "2147479552"
			}
			go io.WriteString(get, "GET "+uri+" HTTP/1.1\r\n\r\n")
			go io.WriteString(post, "POST "+uri+" HTTP/1.1\r\nContent-Length: "+length+"\r\n\r\n"+echo)
			b := make([]byte, len(echo))
			if _, err := readHead(br); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(br, b); err != nil || string(b) != echo {
				t.Fatalf("%q, %v", b, err)
			}
		}
		time.Sleep(2 * bodyTime)
		go io.WriteString(post, "hello")
		get.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 5)
		if _, err := io.ReadFull(br, b); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// TestNotEstablished: a relay, or a proxy, that never answers costs what ctx allows; the server gives up by itself.
func TestNotEstablished(t *testing.T) {
	inMemory(t, echoing, func(t *testing.T, m memory) {
		for _, mode := range []Mode{LongLived, KeepAlive} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err := Dial(ctx, mode, Target{Relay: "t", Host: "h"}, func(context.Context) (net.Conn, error) {
				near, far := net.Pipe()
				go io.Copy(io.Discard, far) // a proxy that waits for the end of the request
				return near, nil
			})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
		}
		c, _ := m.dial(t.Context())
		defer c.Close()
		io.WriteString(c, "GET /2.0/t/"+sample+",ConnType=KeepAlive HTTP/1.0\r\n\r\n")
		begun := time.Now()
		io.ReadAll(c)
		if d := time.Since(begun); d < defaultEstablish || d > defaultEstablish+2*sweepTime {
			t.Errorf("ended after %v", d)
		}
	})
}

// TestExhausted: LongLived carries what its Content-Length allows and no more, and both ends say so.
func TestExhausted(t *testing.T) {
	var wrote chan error
	inMemory(t, func(_ context.Context, c *Conn) {
		if _, err := c.Write(make([]byte, minLength-len(echo))); err != nil {
			t.Error(err)
		}
		_, err := c.Write([]byte("x"))
		wrote <- err
	}, func(t *testing.T, m memory) {
		wrote = make(chan error, 1)
		d := dialling{Target: Target{Relay: "t", Host: "h"}, uri: target{relay: "t", guid: sample, mode: LongLived, length: minLength}, dial: m.dial}
		c, err := d.longLived(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, c)
		if err2 := <-wrote; n != minLength-int64(len(echo)) || !errors.Is(err, ErrExhausted) || !errors.Is(err2, ErrExhausted) {
			t.Errorf("%d read, %v; written: %v", n, err, err2)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("the other direction goes on")
		}
	})
}

// TestGUIDs: what was used is remembered for a while, and not without bounds.
func TestGUIDs(t *testing.T) {
	g, now := guids{until: map[string]time.Time{}}, time.Now()
	g.add("a", now)
	if !g.has("a", now.Add(usedTime-1)) || g.has("a", now.Add(usedTime)) || g.has("b", now) {
		t.Error("a is not remembered as it should be")
	}
	for range maxUsed {
		g.add(newToken(guidLen), now)
	}
	if g.has("a", now) || len(g.until) != maxUsed || len(g.order) != maxUsed {
		t.Errorf("%d and %d are remembered", len(g.until), len(g.order))
	}
	if g.expire(now.Add(usedTime)); len(g.until)+len(g.order) != 0 {
		t.Errorf("%d are remembered", len(g.until))
	}
}

// TestAuthorize: a proxy that wants to know who asks is told so with each request.
func TestAuthorize(t *testing.T) {
	inMemory(t, echoing, func(t *testing.T, m memory) {
		proxy := func(ctx context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				c := newClient(m.s, far, nil)
				h, err := readHead(c.br)
				if err == nil && strings.Contains(string(h.raw), "Proxy-Authorization: Basic YQ==\r\n") {
					back, _ := m.dial(ctx)
					go io.Copy(far, back)
					io.Copy(back, &handed{Conn: far, r: io.MultiReader(strings.NewReader(string(h.raw)), c.br)})
					back.Close()
					return
				}
				io.WriteString(far, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n")
				far.Close()
			}()
			return near, nil
		}
		for _, mode := range []Mode{LongLived, KeepAlive, Polling} {
			target := Target{Relay: "t", Host: "h", Proxied: true}
			_, err := Dial(t.Context(), mode, target, proxy)
			var status *StatusError
			if !errors.As(err, &status) || status.Code != "407" || len(status.Challenge) != 1 {
				t.Errorf("%v, unknown: %v", mode, err)
			}
			target.Authorize = func(method, uri string) string {
				if (method != "GET" && method != "POST") || !strings.HasPrefix(uri, "http://h/2.0/t/") {
					t.Errorf("%s %s", method, uri)
				}
				return "Basic YQ=="
			}
			c, err := Dial(t.Context(), mode, target, proxy)
			if err != nil {
				t.Fatalf("%v: %v", mode, err)
			}
			if got := says(c, "hello"); got != "hello" {
				t.Errorf("%v: %q", mode, got)
			}
			c.Close()
		}
	})
}

//go:build lab

package lab

import (
	"io"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// TestTunnelBulk: what is much passes beside the sessions, spliced by the relay; all of site a's TCP connections are killed
// while it does, several times, and no byte is lost.
func TestTunnelBulk(t *testing.T) {
	need(t, "ss")
	for name, kills := range map[string]int{"whole": 0, "killed": 4} {
		t.Run(name, func(t *testing.T) {
			x := tunnelLab(t, tunnelConfig{})
			x.Join(t)
			c := x.a.local(t, 7000)
			_ = c.SetDeadline(time.Now().Add(3 * time.Minute))
			done := make(chan error, 1)
			go func() { done <- echoes(c, 192<<20) }()
			killed := 0
			for ; killed < kills; killed++ {
				before := x.relay.spliced()
				eventually(t, time.Minute, "something moves, or all is done", func() bool { return len(done) > 0 || x.a.besideSession() > killed })
				if len(done) > 0 {
					break
				}
				must(t, "ss", x.a.Do(func() error { return exec.Command("ss", "-K", "dst", x.relay.IP.String(), "dport", "=", "443").Run() }))
				eventually(t, time.Minute, "the relay has noticed", func() bool { return x.relay.spliced() > before || len(done) > 0 })
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if kills > 0 && killed == 0 {
				t.Error("nothing was killed")
			}
			eventually(t, time.Minute, "bytes are counted as spliced", func() bool { return x.relay.spliced() > 1<<20 })
			t.Logf("%d kills, %d MiB spliced", killed, x.relay.spliced()>>20)
		})
	}
}

// metric returns a counter of the end's edged, 0 if it is not there.
func (e *tunnelEnd) metric(name string) int {
	var conn net.Conn
	err := e.Do(func() (err error) { // only the dialing is done there
		conn, err = net.DialTimeout("tcp4", "127.0.0.1:9060", 10*time.Second)
		return err
	})
	if err != nil {
		return 0
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:9060\r\n\r\n"); err != nil {
		return 0
	}
	body, err := io.ReadAll(conn)
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return 0
	}
	return int(v)
}

// spliced returns how many bytes the relay has carried beside sessions.
func (e *tunnelEnd) spliced() int {
	return e.metric("edged_tunnel_spliced_bytes_total")
}

// besideSession returns how often a site's streams have moved.
func (e *tunnelEnd) besideSession() int { return e.metric("edged_agent_moved_total") }

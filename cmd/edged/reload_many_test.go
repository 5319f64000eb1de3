package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestManyReloads alternates good and broken files, while a phone asks whether the edge is there: it gets every answer,
// and nothing is left over. EDGED_RELOADS sets how many; 1,000 take a while.
func TestManyReloads(t *testing.T) {
	dir := t.TempDir()
	good := sipAt(dir, sipOnly+"limits: {per_source: {messages_per_second: 0}}\n")
	broken := "sip: {listen: ['udp://nowhere:5060']}\n"
	d := startDaemon(t, good)
	many, err := strconv.Atoi(os.Getenv("EDGED_RELOADS"))
	if err != nil {
		many = 40
	}
	pid := os.Getpid()
	conn, err := net.Dial("udp", fmt.Sprintf("127.77.%d.%d:5060", pid>>8&255, pid&255))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d.reload() // what is made once is there
	before, memory := runtime.NumGoroutine(), heap()
	for i := range many {
		d.write([]string{broken, good}[i%2])
		said := d.saidOfReloads()
		d.signals <- syscall.SIGHUP
		ping(t, conn, i)
		until(t, "a reload", func() bool { return d.saidOfReloads() > said })
	}
	if st := d.status().Config; st.Error != "" {
		t.Errorf("the last file was good, but: %s", st.Error)
	}
	d.http.CloseIdleConnections()
	until(t, "no goroutine is left over", func() bool { return runtime.NumGoroutine() <= before+8 })
	d.logs.TakeAll()
	if now := heap(); now > memory+16<<20 {
		t.Errorf("%d octets of memory in use, %d before", now, memory)
	}
	if body, err := d.get(context.Background(), "/readyz"); err != nil || string(body) != "ready\n" {
		t.Errorf("readyz: %v, %q", err, body)
	}
}

// ping sends OPTIONS to the edge and wants a 200 for it.
func ping(t *testing.T, conn net.Conn, i int) {
	t.Helper()
	ask(t, conn, i)
	wantPong(t, conn, i)
}

// ask sends OPTIONS to the edge.
func ask(t *testing.T, conn net.Conn, i int) {
	t.Helper()
	proto := strings.ToUpper(conn.LocalAddr().Network())
	_, err := fmt.Fprintf(conn, "OPTIONS sip:%s SIP/2.0\r\nVia: SIP/2.0/%s %s;branch=z9hG4bKping%d;rport\r\nMax-Forwards: 70\r\n"+
		"From: <sip:alice@example.org>;tag=1\r\nTo: <sip:edge@example.org>\r\nCall-ID: ping%d\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
		conn.RemoteAddr(), proto, conn.LocalAddr(), i, i)
	if err != nil {
		t.Fatalf("ping %d: %v", i, err)
	}
}

// wantPong wants a 200.
func wantPong(t *testing.T, conn net.Conn, i int) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	answer := make([]byte, 2000)
	if n, err := conn.Read(answer); err != nil || string(answer[:min(n, 11)]) != "SIP/2.0 200" {
		t.Fatalf("ping %d: %v, %q", i, err, answer[:n])
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func (d *testDaemon) saidOfReloads() int {
	return d.logs.FilterMessage("configuration reloaded").Len() + d.logs.FilterMessageSnippet("reload refused").Len()
}

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Datagrams are sent and answered by processes of their own, which do nothing else: this program with one of these set.
const (
	probeEnv = "BENCH_TUNNEL_PROBE" // a probing
	echoEnv  = "BENCH_TUNNEL_ECHO"  // the address to listen at
)

// probing says what is sent: datagrams as of a call, one every so often.
type probing struct {
	To          string
	Every, Time time.Duration
}

// probed is what came back: the time each datagram took to the far place, and until its answer was here.
type probed struct {
	Up, RTT []time.Duration
	Lost    int
}

// probeLen is what G.711 with 20 ms is in RTP: number u32, time of sending u64, time of arrival u64, then nothing.
const probeLen = 172

// late is how long an answer may take that still counts, beyond the time of sending.
const late = time.Second

// monotonic is a clock that all processes of the machine share.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // every Linux has it
	return time.Duration(ts.Nano())
}

// serveProbes does what one of the variables says, and ends the process; without either it does nothing.
func serveProbes() {
	var err error
	switch probe, echo := os.Getenv(probeEnv), os.Getenv(echoEnv); {
	case echo != "":
		err = answer(echo)
	case probe != "":
		err = probeBy(probe)
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/tunnel:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func answer(at string) error {
	pc, err := net.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	b := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return err
		}
		if n == probeLen {
			binary.BigEndian.PutUint64(b[12:], uint64(monotonic()))
			_, _ = pc.WriteTo(b[:n], from) // it is lost then
		}
	}
}

func probeBy(text string) error {
	var p probing
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	c, err := net.Dial("udp", p.To)
	if err != nil {
		return err
	}
	if err := reached(c); err != nil {
		return err
	}
	var found probed
	var wg sync.WaitGroup
	wg.Go(func() { found.receive(c, time.Now().Add(p.Time+late)) })
	tick := time.NewTicker(p.Every)
	defer tick.Stop()
	sent := 0
	for ; time.Duration(sent)*p.Every < p.Time; sent++ {
		<-tick.C
		if err := sendProbe(c, uint32(sent+1)); err != nil {
			return err
		}
	}
	wg.Wait()
	found.Lost = sent - len(found.RTT)
	return json.NewEncoder(os.Stdout).Encode(found)
}

func sendProbe(c net.Conn, number uint32) error {
	b := make([]byte, probeLen)
	binary.BigEndian.PutUint32(b, number)
	binary.BigEndian.PutUint64(b[4:], uint64(monotonic()))
	_, err := c.Write(b)
	return err
}

// reached waits until the first answer is here; what it sends has the number 0.
func reached(c net.Conn) error {
	b := make([]byte, 2048)
	for range 30 {
		if err := sendProbe(c, 0); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if n, err := c.Read(b); err == nil && n == probeLen {
			return nil
		}
	}
	return errors.New("nobody answers datagrams")
}

func (p *probed) receive(c net.Conn, until time.Time) {
	b := make([]byte, 2048)
	_ = c.SetReadDeadline(until)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if n == probeLen && binary.BigEndian.Uint32(b) > 0 {
			sent, there := time.Duration(binary.BigEndian.Uint64(b[4:])), time.Duration(binary.BigEndian.Uint64(b[12:]))
			p.Up, p.RTT = append(p.Up, there-sent), append(p.RTT, monotonic()-sent)
		}
	}
}

// probe sends datagrams to an address from the near place.
func (b *builder) probe(to string, d time.Duration) (found probed, err error) {
	text, err := json.Marshal(probing{to, 10 * time.Millisecond, d})
	if err != nil {
		return found, err
	}
	self, err := os.Executable()
	if err != nil {
		return found, err
	}
	cmd := b.near.command(self)
	cmd.Env, cmd.Stderr = append(os.Environ(), probeEnv+"="+string(text)), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return found, fmt.Errorf("probe %s: %w", to, err)
	}
	return found, json.Unmarshal(out, &found)
}

// startEcho has the far place answer datagrams.
func (b *builder) startEcho() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.echo = b.far.ip + ":" + b.far.port()
	_, err = b.start(b.far, "env", echoEnv+"="+b.echo, self)
	return err
}

// percentile returns that of the times, in milliseconds; of none 0.
func percentile(times []time.Duration, p float64) float64 {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return float64(sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]) / 1e6
}

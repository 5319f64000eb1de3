package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/demophone/scenario"
	"edged.dev/edged/pkg/media/fastpath"
	"edged.dev/edged/pkg/sipalg/flow"
)

const (
	// callTime is how long the phones talk, callAll bounds the whole call.
	callTime = 400 * time.Millisecond
	callAll  = 8 * time.Second
	// optionsWait is how long a listener of the running daemon may take.
	optionsWait = 2 * time.Second
)

// selfCall asks the running daemon's listeners, and makes a call through an edge of its own.
func (x *exam) selfCall(ctx context.Context) []finding {
	var out []finding
	if x.daemon.runs() {
		out = x.options(ctx)
	}
	if !x.flags.call {
		return out
	}
	if lo := x.net.links[1]; lo != nil && lo.Attrs().Flags&net.FlagUp == 0 {
		return append(out, finding{
			Level: fastpath.Fail, About: "call", Text: "a call through an edge on loopback addresses fails: lo is down", Why: "the admin listener is not reached either, nor programs on this machine",
			Remedy: "ip link set lo up",
		})
	}
	ctx, cancel := context.WithTimeout(ctx, callAll)
	defer cancel()
	start := time.Now()
	if err := loopbackCall(ctx); err != nil {
		return append(out, finding{
			Level: fastpath.Fail, About: "call", Text: "a call through an edge on loopback addresses fails: " + err.Error(), Why: "what fails here fails with real phones, too",
			Remedy: "look for rules that drop on lo (nft list ruleset); edged demo shows more",
		})
	}
	return append(out, fine("call", "two phones on loopback addresses registered, called, and heard each other through an edge in %v", time.Since(start).Round(10*time.Millisecond)))
}

// loopbackCall runs an edge in this process, between phones of the demo, and makes one call.
func loopbackCall(ctx context.Context) error {
	plan, err := scenario.NewPlan()
	if err != nil {
		return err
	}
	cfg, err := parseConfig("doctor.yaml", []byte(strings.TrimSuffix(demoConfig(plan), demoH323Config(plan))+"media: {datapath: user}\n"))
	if err != nil {
		return fmt.Errorf("its own configuration: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	log := zap.NewNop()
	stage, err := scenario.New(plan, log, func(string) {})
	if err != nil {
		return err
	}
	ended, ready := make(chan error, 2), make(chan struct{}) // one result each of the phones and the edge
	running.Go(func() { ended <- stage.Serve(ctx) })
	running.Go(func() {
		ended <- runDaemon(ctx, runOptions{config: cfg, log: log, level: zap.NewAtomicLevel(), ready: func(net.Addr) { close(ready) }})
	})
	select {
	case <-ready:
	case err := <-ended:
		return errors.Join(errors.New("the edge or the phones ended"), err)
	case <-ctx.Done():
		return fmt.Errorf("the edge did not start: %w", ctx.Err())
	}
	for _, c := range append(stage.Register(ctx), stage.Talk(ctx, callTime, [2]string{"alice", "bob"})...) {
		if !c.OK {
			return fmt.Errorf("%s: %s", c.Name, c.Detail)
		}
	}
	return nil
}

// options sends OPTIONS to the UDP listeners of SIP, from the edge's own addresses.
func (x *exam) options(ctx context.Context) []finding {
	var out []finding
	good := 0
	for _, w := range x.wanted() {
		if !strings.HasPrefix(w.key, "sip.listen") || w.proto != "udp" {
			continue
		}
		if err := askOptions(ctx, w); err != nil {
			out = append(out, finding{
				Level: fastpath.Fail, About: "SIP " + w.String(), Text: fmt.Sprintf("does not answer OPTIONS: %v", err), Why: "phones get no answer either",
				Remedy: "edged status; journalctl -u edged; compare sip.access with this machine's addresses",
			})
			continue
		}
		good++
	}
	if good > 0 {
		out = append(out, fine("SIP", "%d listeners of the daemon answer OPTIONS", good))
	}
	return out
}

// askOptions sends OPTIONS once, and again if nothing comes: any answer is one.
func askOptions(ctx context.Context, w wantedPort) error {
	ctx, cancel := context.WithTimeout(ctx, optionsWait)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, flow.UDP.String(), w.at.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	id := rand.Text()
	msg := fmt.Sprintf("OPTIONS sip:%[1]s SIP/2.0\r\nVia: SIP/2.0/UDP %[2]s;branch=z9hG4bK%[3]s;rport\r\nMax-Forwards: 70\r\nFrom: <sip:doctor@%[2]s>;tag=%.8[3]s\r\n"+
		"To: <sip:%[1]s>\r\nCall-ID: %[3]s\r\nCSeq: 1 OPTIONS\r\nContact: <sip:doctor@%[2]s>\r\nUser-Agent: edged doctor\r\nContent-Length: 0\r\n\r\n", w.at, conn.LocalAddr(), id)
	buf := make([]byte, 65536)
	for range 2 {
		if _, err = conn.Write([]byte(msg)); err != nil {
			return err
		}
		if err = conn.SetReadDeadline(time.Now().Add(optionsWait / 2)); err != nil {
			return err
		}
		n, rerr := conn.Read(buf)
		if rerr == nil && strings.HasPrefix(string(buf[:n]), "SIP/2.0 ") {
			return nil
		}
		if err = rerr; err == nil {
			err = errors.New("what answers is no SIP")
		}
	}
	return err
}

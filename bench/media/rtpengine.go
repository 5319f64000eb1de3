package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"edged.dev/edged/bench/veth"
)

// engine is rtpengine in the gateway, without its kernel module, driven by its "ng" protocol.
type engine struct {
	cmd    *exec.Cmd
	ng     *net.UDPConn
	cookie int
	where  []uint16
}

const ngAddr = "127.0.0.1:2223"

func startRTPEngine(r *rig, k caseKey) (*gateway, error) {
	e := &engine{cmd: r.command("rtpengine", "--foreground", "--table=-1", "--num-threads=1", "--log-level=2",
		"--interface=in/"+gwInAddr, "--interface=out/"+gwOutAddr, "--listen-ng="+ngAddr,
		"--port-min=20000", "--port-max=59999", "--timeout=600", "--silent-timeout=600", "--pidfile=/dev/null")}
	if _, err := exec.LookPath("rtpengine"); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	if err := e.cmd.Start(); err != nil {
		return nil, fmt.Errorf("rtpengine: %w", err)
	}
	err := veth.Within(r.gw, func() error {
		c, err := net.Dial("udp", ngAddr)
		if err == nil {
			e.ng = c.(*net.UDPConn)
		}
		return err
	})
	if err == nil {
		err = e.ready()
	}
	for i := 0; i < k.streams && err == nil; i++ {
		err = e.call(i)
	}
	if err != nil {
		e.stop()
		return nil, fmt.Errorf("rtpengine: %w", err)
	}
	return &gateway{addr: netip.MustParseAddr(gwInAddr), ports: e.where, pid: e.cmd.Process.Pid, stop: e.stop}, nil
}

func (e *engine) ready() error {
	var err error
	for range 100 {
		if _, err = e.ask("d7:command4:pinge"); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// call makes a call of one stream by an offer and its answer.
func (e *engine) call(i int) error {
	sdp := func(host string) string {
		return fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %s\r\ns=-\r\nc=IN IP4 %s\r\nt=0 0\r\nm=audio %d RTP/AVP 0\r\n", host, host, peerPort(i))
	}
	id := str(fmt.Sprintf("call-%d", i))
	offer := "d7:call-id" + id + "7:command5:offer9:directionl2:in3:oute8:from-tag1:a3:ICE6:remove3:sdp" + str(sdp(genAddr)) + "e"
	if _, err := e.ask(offer); err != nil {
		return err
	}
	reply, err := e.ask("d7:call-id" + id + "7:command6:answer8:from-tag1:a6:to-tag1:b3:ICE6:remove3:sdp" + str(sdp(sinkAddr)) + "e")
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`m=audio (\d+) `).FindStringSubmatch(reply)
	if m == nil {
		return fmt.Errorf("no port in %q", reply)
	}
	port, err := strconv.ParseUint(m[1], 10, 16)
	e.where = append(e.where, uint16(port))
	return err
}

// str is a bencoded string.
func str(s string) string { return strconv.Itoa(len(s)) + ":" + s }

// ask sends a bencoded command and returns the reply.
func (e *engine) ask(command string) (string, error) {
	e.cookie++
	cookie := strconv.Itoa(e.cookie)
	if _, err := e.ng.Write([]byte(cookie + " " + command)); err != nil {
		return "", err
	}
	buf := make([]byte, 65536)
	e.ng.SetReadDeadline(time.Now().Add(2 * time.Second))
	for {
		n, err := e.ng.Read(buf)
		if err != nil {
			return "", err
		}
		reply, ok := strings.CutPrefix(string(buf[:n]), cookie+" ")
		switch {
		case !ok:
			continue // of an earlier question
		case !strings.Contains(reply, "6:result2:ok") && !strings.Contains(reply, "6:result4:pong"):
			return "", errors.New(reply)
		}
		return reply, nil
	}
}

func (e *engine) stop() {
	if e.ng != nil {
		e.ng.Close()
	}
	// It has no state worth an orderly end, and 20,000 sockets to close.
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

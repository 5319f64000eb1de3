//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/internal/h323phone"
)

// h323Spec is what a phone process is told: the test binary runs itself inside a host's namespace.
type h323Spec struct {
	Name   string
	At     netip.AddrPort
	Mode   h323phone.Mode
	To     netip.AddrPort // whom to call; it waits for a call if not valid
	Called string
	// Gatekeeper, if valid, is registered with first, and asked before a call.
	Gatekeeper netip.AddrPort
	// Discover asks for the gatekeeper by multicast.
	Discover bool
}

const h323Variable = "EDGED_LAB_H323PHONE"

// h323Time bounds the set-up of one call.
const h323Time = 15 * time.Second

// runH323Phone is the phone process. It prints "ready", "open", "data" and "ended", and "heard N" when asked by
// a line "report"; "hangup" ends the call.
func runH323Phone(text string) int {
	var s h323Spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		fmt.Println(err)
		return 2
	}
	p, err := h323phone.Listen(s.At, s.Name, s.Mode)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), h323Time)
	defer cancel()
	var r *h323phone.Registration
	if s.Discover {
		if s.Gatekeeper, err = p.Discover(ctx); err != nil {
			fmt.Println("failed:", err)
			return 1
		}
		fmt.Println("found", s.Gatekeeper)
	}
	if s.Gatekeeper.IsValid() {
		r, err = p.Register(ctx, s.Gatekeeper)
		if err == nil && s.Called != "" {
			s.To, err = r.Admit(ctx, s.Called)
		}
		if err != nil {
			fmt.Println("failed:", err)
			return 1
		}
	}
	fmt.Println("ready")
	var c *h323phone.Call
	switch {
	case s.To.IsValid():
		c, err = p.Call(ctx, s.To, s.Called)
	case s.Mode.Traversal:
		c, err = r.Accept(ctx)
	default:
		c, err = p.Accept(ctx)
	}
	if err != nil {
		fmt.Println("failed:", err)
		return 1
	}
	if c.Multiplexed() {
		fmt.Println("multiplexed")
	}
	fmt.Println("open")
	go func() {
		<-c.Data()
		fmt.Println("data")
	}()
	go func() {
		if c.Ended(context.Background()) == nil {
			fmt.Println("ended")
		}
	}()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "report":
			audio, wrong := c.Heard()
			camera, presentation := c.Watched()
			fmt.Printf("watched %d %d\n", camera, presentation)
			fmt.Printf("missed %d\n", c.Missed())
			fmt.Printf("heard %d wrong %d\n", audio, wrong)
		case "hangup":
			if err := c.Hangup(); err != nil {
				fmt.Println("failed:", err)
			}
			fmt.Println("hung up")
		}
	}
	return 0
}

// H323Phone starts a phone on the host; it is ready when the call returns.
func (h *Host) H323Phone(t testing.TB, s h323Spec) *Proc {
	t.Helper()
	p := h.h323PhoneStarts(t, s)
	eventually(t, h323Time, s.Name+" is ready", func() bool { return logged(p, "ready") || !p.Alive() })
	return p
}

// h323PhoneStarts starts a phone that may never be ready.
func (h *Host) h323PhoneStarts(t testing.TB, s h323Spec) *Proc {
	t.Helper()
	b, err := json.Marshal(s)
	must(t, s.Name, err)
	return h.startSelf(t, "h323-"+s.Name, h323Variable+"="+string(b))
}

// startSelf runs the test's own binary on the host, told what to be by a variable.
func (h *Host) startSelf(t testing.TB, name, variable string) *Proc {
	t.Helper()
	self, err := os.Executable()
	must(t, name, err)
	return h.Start(t, name, "env", variable, self)
}

// logged tells whether the process has printed a line that begins so.
func logged(p *Proc, text string) bool {
	b, err := os.ReadFile(p.Log)
	return err == nil && strings.Contains(string(b), "\n"+text)
}

// heard returns the last report of a phone.
func heard(p *Proc) (audio, wrong int) {
	fmt.Fprintln(p.stdin, "report")
	b, err := os.ReadFile(filepath.Clean(p.Log))
	if err != nil {
		return 0, 0
	}
	s := string(b)
	if i := strings.LastIndex(s, "\nheard "); i >= 0 {
		_, _ = fmt.Sscanf(s[i+1:], "heard %d wrong %d", &audio, &wrong)
	}
	return audio, wrong
}

// watched returns the last report of the video that a phone gets: the camera, and the presentation of the other.
func watched(p *Proc) (camera, presentation int) {
	fmt.Fprintln(p.stdin, "report")
	b, err := os.ReadFile(filepath.Clean(p.Log))
	if err != nil {
		return 0, 0
	}
	s := string(b)
	if i := strings.LastIndex(s, "\nwatched "); i >= 0 {
		_, _ = fmt.Sscanf(s[i+1:], "watched %d %d", &camera, &presentation)
	}
	return camera, presentation
}

// wantNoBinaryLeaks fails if what the gateway sent on the outside holds the octets of an inside address.
func wantNoBinaryLeaks(t testing.TB, wan []Packet, gw *Host, host netip.Addr) {
	t.Helper()
	if sentBy(wan, gw, outside) == 0 {
		t.Error("the capture shows nothing from the gateway")
	}
	octets := host.AsSlice()
	for _, p := range Texts(wan) {
		if at := bytes.Index(p.Payload, octets); at >= 0 && gw.owns(outside, p.Src.Addr()) {
			t.Errorf("%v leaves to %v: %x", host, p.Dst, around(p.Payload, at))
		}
	}
}

//go:build lab

package lab

import (
	"fmt"
	"syscall"
	"testing"
)

// TestMessengerOddNames: names that are something else to other readers are refused where what they may stand for is, on
// legs with and without signatures; names that are merely odd are not.
func TestMessengerOddNames(t *testing.T) {
	for _, version := range []int{0, 4} {
		t.Run(fmt.Sprintf("signing-%d", version), func(t *testing.T) {
			p := newPair(t, setting{Office: OfficeConfig{Signing: version}, Edge: EdgeConfig{More: fmt.Sprintf(files, "1m")}})
			p.alice.talks(t, p.bob)
			for _, name := range []string{"a%2Eexe", `b"exe".exe"`, "c.e\u00adxe", "d\uff0eexe", "e.txt.exe", "f\u202etxt.exe", "g.exe\u2800", "h.exe::$DATA", "i&#46;exe", "j.exe\u00a0"} {
				if f := p.alice.refused(t, p.bob, name); len(f.received(t)) != 0 {
					t.Errorf("%q arrived", name)
				}
			}
			for _, name := range []string{"100%25.dat", "R&D;x.dat", "übung.dat"} {
				p.alice.offers(t, p.bob, name, 1000).arrives(t)
			}
			p.office.wantSigned(t)
			p.edge.wantIdle(t)
		})
	}
}

// TestMessengerReload: a file that is under way does not notice a reload that would have denied it; the next one does. A
// client that dies in the middle leaves nothing behind.
func TestMessengerReload(t *testing.T) {
	p := newPair(t, setting{Office: OfficeConfig{Signing: 4}, Edge: EdgeConfig{More: fmt.Sprintf(files, "1m")}})
	running := func() bool { return p.edge.Metric("edged_tftp_transfers", "running") == 1 }
	f := p.alice.offers(t, p.bob, "long.dat", 30_000_000)
	eventually(t, messengerTime, "the file is under way", running)
	p.bob.proc.Signal(syscall.SIGSTOP)
	c := p.edge.config
	c.More = "tftp: {ports: 6891-6901, deny: [dat]}\n"
	before := p.edge.Metric("edged_config_last_reload_success_timestamp_seconds")
	p.edge.Reload(t, c)
	eventually(t, messengerTime, "the reload", func() bool { return p.edge.Metric("edged_config_last_reload_success_timestamp_seconds") > before })
	if !running() {
		t.Fatal("the file was over before the reload")
	}
	p.bob.proc.Signal(syscall.SIGCONT)
	f.arrives(t)
	p.alice.refused(t, p.bob, "next.dat")
	p.edge.wantIdle(t)

	p.alice.offers(t, p.bob, "cut.bin", 30_000_000)
	eventually(t, messengerTime, "the second file is under way", running)
	p.bob.proc.Stop(syscall.SIGKILL)
	p.alice.wants(t, "xfer send-cancel", " cut.bin")
	p.edge.wantIdle(t)
	p.office.wantSigned(t)
}

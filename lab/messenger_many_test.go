//go:build lab

package lab

import (
	"fmt"
	"testing"
)

// TestMessengerThirteenFiles: more files at once than there are ports.
func TestMessengerThirteenFiles(t *testing.T) {
	for _, inbound := range []bool{false, true} {
		t.Run(map[bool]string{false: "out", true: "in"}[inbound], func(t *testing.T) {
			p := newPair(t, setting{Office: OfficeConfig{Signing: 4}, Edge: EdgeConfig{More: fmt.Sprintf(files, "1m")}})
			for _, m := range []*Messenger{p.alice, p.bob} {
				must(t, "buffers", m.Host.writeSysctl("net/ipv4/tcp_rmem", "4096 65536 65536"))
				must(t, "buffers", m.Host.writeSysctl("net/ipv4/tcp_wmem", "4096 65536 65536"))
			}
			from, to := p.alice, p.bob
			if inbound {
				from, to = p.bob, p.alice
			}
			from.talks(t, to)
			var sent []*offered
			for i := range 13 {
				if i >= 11 { // the client that listens has eleven ports too, each until the other has connected
					eventually(t, messengerTime, "ports are free again", func() bool { return to.count("xfer recv-start") >= i-10 })
				}
				sent = append(sent, from.offers(t, to, fmt.Sprintf("part-%02d.dat", i), 3<<20))
			}
			for _, f := range sent {
				f.arrives(t)
			}
			from.talks(t, to)
			p.office.wantSigned(t)
			p.edge.wantIdle(t)
		})
	}
}

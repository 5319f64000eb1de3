package fastpath

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/pinhole"
)

// TestChecksums: of very many packets of all kinds (100,000, or 10 million with EDGED_LAB_FULL=1) none is lost, none
// leaves with a wrong checksum, and none longer than the MTU. The receiver has no checksum offload and adds up itself.
func TestChecksums(t *testing.T) {
	needKernel(t)
	total := 100_000
	if os.Getenv("EDGED_LAB_FULL") == "1" {
		total = 10_000_000
	}
	var cases []stress
	for _, path := range everyPath() {
		for _, families := range [][]pinhole.Family{{4, 4}, {6, 6}, {4, 6}, {6, 4}} {
			for _, offload := range []bool{false, true} {
				cases = append(cases, stress{path.rig, families, offload, false, path.name})
			}
		}
		cases = append(cases, stress{path.rig, []pinhole.Family{4, 4}, false, true, path.name})
	}
	for _, s := range cases {
		name := fmt.Sprintf("%s/%d-%d/offload %v, no sum %v", s.path, s.families[near], s.families[far], s.offload, s.noSum)
		t.Run(name, func(t *testing.T) { s.run(t, total/len(cases)) })
	}
}

// everyPath makes a rig for each program, and each way to attach it.
func everyPath() []struct {
	name string
	rig  func(*testing.T) *rig
} {
	return []struct {
		name string
		rig  func(*testing.T) *rig
	}{
		{"tcx", newTCRig},
		{"clsact", func(t *testing.T) *rig { return newRig(t, rigOptions{options: options{clsact: true}}) }},
		{"xdp", newXDPRig},
	}
}

type stress struct {
	rig            func(*testing.T) *rig
	families       []pinhole.Family
	offload, noSum bool
	path           string
}

func (s stress) run(t *testing.T, n int) {
	r := s.rig(t)
	h := r.hosts[far]
	const mtu = 1400
	l, err := netlink.LinkByName(h.dev)
	must(t, err)
	must(t, netlink.LinkSetMTU(l, mtu))
	must(t, pathtest.TXChecksums(h.dev, false)) // what leaves is whole, as on a cable
	pathtest.Within(t, r.hosts[near].ns, func() { must(t, pathtest.TXChecksums(r.hosts[near].own, s.offload)) })
	c := r.call(pinhole.RTP, s.families...)
	c.offload()
	if s.noSum {
		c.peers[near].set(unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	}
	a, second, before := pathtest.Watch(t, h.ns, h.own, mtu), h.dump(), c.moved(near)
	g := rand.New(rand.NewPCG(uint64(n), 7))
	longest := mtu - 48
	for sent := 0; sent < n; {
		for range min(500, n-sent) {
			c.peers[near].send(c.local[near], noise(g, c.rtp(near), 12+g.IntN(longest-11)))
			sent++
		}
		for end := time.Now().Add(patience); a.Packets.Load() < int64(sent); pause() {
			if time.Now().After(end) {
				t.Fatalf("%d packets came of %d", a.Packets.Load(), sent)
			}
		}
	}
	if faults := a.Faults(); faults != "" || a.Packets.Load() != int64(n) {
		t.Errorf("%d of %d came: %s", a.Packets.Load(), n, faults)
	}
	if got := c.moved(near) - before; got != uint64(n) {
		t.Errorf("the kernel carried %d of %d", got, n)
	}
	second(t)
}

// noise makes the RTP packet size bytes long, and its payload random.
func noise(g *rand.Rand, rtp []byte, size int) []byte {
	b := append(rtp[:12:12], make([]byte, size-12+8)...)
	for i := 12; i+8 <= len(b); i += 8 {
		binary.NativeEndian.PutUint64(b[i:], g.Uint64())
	}
	return b[:size]
}

// dump has tcpdump read the first packets, and returns what checks what it says of their checksums.
func (h *host) dump() func(*testing.T) {
	if _, err := exec.LookPath("tcpdump"); err != nil {
		return func(t *testing.T) { t.Log("SKIPPED tcpdump's opinion:", err) }
	}
	var said strings.Builder
	cmd := exec.Command("tcpdump", "-lnvv", "-s0", "-c200", "-Q", "in", "-i", h.own, "udp")
	cmd.Stdout = &said
	errs, err := cmd.StderrPipe()
	must(h.t, err)
	pathtest.Within(h.t, h.ns, func() { must(h.t, cmd.Start()) })
	h.t.Cleanup(func() { _ = cmd.Process.Kill() })
	listening := make([]byte, 512)
	_, err = errs.Read(listening) // it says so first
	must(h.t, err)
	return func(t *testing.T) {
		must(t, cmd.Wait())
		if text := said.String(); strings.Contains(text, "bad ") || !strings.Contains(text, "UDP, length") && !strings.Contains(text, "udp sum ok") {
			t.Errorf("tcpdump says\n%s", text)
		}
	}
}

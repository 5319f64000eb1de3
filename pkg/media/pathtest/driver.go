// Package pathtest says what every [media.Path] must do: the same packets in, the same packets and counters out.
// The cases are tables: packets in packets.go, calls in calls.go, what the relay promises in loopback.go.
//
//	hosts in namespaces      peer, its other port, a stranger ── device ─┐ the gateway: the namespace of
//	(Wire: packets, calls)   peer, its other port, a stranger ── device ─┘ the test, relay and path
//
//	loopback                 near peer 127.0.1.10 ── 127.0.1.1 relay 127.0.2.1 ── far peer 127.0.2.10
//	(Loopback)               off-path  127.0.1.66 ──┘               └── off-path  127.0.2.66
//
// A path runs the suite with a [Driver], and with [Main] as its TestMain. No test waits for silence: what must not
// come is looked for after something later has come, in order, from the same socket, or was counted as dropped.
package pathtest

import (
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// Driver makes the paths that are tested.
type Driver interface {
	// Path returns a new path, or skips the test where there can be none. The relay that uses it serves and
	// ends it.
	Path(t *testing.T, s Setup) media.Path
	// Name is what [media.Info] calls the path when it carries both directions of a call itself: "user" for user
	// space, of which nothing more is asked.
	Name() string
	// Carried returns how many packets that came to the address local the path p has moved without user space.
	Carried(t *testing.T, p media.Path, local netip.AddrPort) uint64
}

// Setup is what a path needs to know.
type Setup struct {
	Networks pinhole.Networks
	DSCP     int
	// Loopback says that all hosts are on the loopback device.
	Loopback bool
}

// Wire runs the cases between hosts in network namespaces; without root they are skipped.
func Wire(t *testing.T, d Driver) {
	needEdge(t)
	for _, l := range layouts() {
		t.Run(l.name, func(t *testing.T) {
			e := newEdge(t, d, l)
			for _, f := range [][2]pinhole.Family{{4, 4}, {6, 6}, {4, 6}, {6, 4}} {
				family := []string{4: "v4", 6: "v6"}
				t.Run(family[f[0]]+" to "+family[f[1]], func(t *testing.T) {
					t.Run("packets", func(t *testing.T) { testPackets(t, e, f) })
					for _, s := range scripts() {
						t.Run(s.name, func(t *testing.T) { s.run(t, e, f) })
					}
				})
			}
		})
	}
}

//go:build lab

package lab

import (
	"slices"
	"testing"
	"time"
)

// TestMessengerFilesDirect proves the harness: a file each way, nothing in between.
func TestMessengerFilesDirect(t *testing.T) {
	r := messengerLab(t)
	o := r.Outside("office").Office(t, OfficeConfig{Signing: 4})
	alice := r.Outside("out1").Messenger(t, "alice", o.Addr, "tcp")
	bob := r.Outside("out2").Messenger(t, "bob", o.Addr, "tcp")
	alice.offers(t, bob, "there.dat", 70000).arrives(t)
	bob.offers(t, alice, "back.dat", 70000).arrives(t)
}

// TestMessengerFilesControl: without the section nothing is relayed, and no file arrives.
func TestMessengerFilesControl(t *testing.T) {
	p := newPair(t, setting{Capture: true})
	f := p.alice.offers(t, p.bob, "out.dat", 70000)
	p.bob.wants(t, "xfer offered", "out.dat")
	if f.complete(5 * time.Second) {
		t.Error("the file arrived")
	}
	if !slices.ContainsFunc(p.lan.Stop(t), func(k Packet) bool { return k.TCP && k.Src.Addr() == p.alice.Host.IP && k.Dst.Addr() == p.bob.Host.IP }) {
		t.Error("alice did not even try to reach bob")
	}
	p.alice.talks(t, p.bob)
}

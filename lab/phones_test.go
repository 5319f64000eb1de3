//go:build lab

package lab

import (
	"fmt"
	"testing"
	"time"
)

// trio is the usual cast: alice inside, bob outside, both at the registrar of example.org outside.
type trio struct {
	rig        *Rig
	edge       *Edge
	alice, bob *Phone
}

// newTrio starts registrar, edge and both phones; a and b may say more about the phones.
func newTrio(t *testing.T, r *Rig, rc RegistrarConfig, a, b PhoneConfig) *trio {
	t.Helper()
	reg := r.Outside("registrar")
	in, out := r.Inside("in1"), r.Outside("out1")
	reg.Registrar(t, rc)
	c := &trio{rig: r}
	c.edge = r.Edge(t, EdgeConfig{Domains: fmt.Sprintf("example.org: {network: outside, server: \"udp:%v:5060\"}", reg.IP)})
	a.User, a.Hz, a.Register, a.Password = "alice", 440, true, rc.Password
	b.User, b.Hz, b.Register, b.Password = "bob", 1000, true, rc.Password
	a.Proxy = fmt.Sprintf("%v:5060", r.GW.IPOn(inside, 4))
	b.Proxy = fmt.Sprintf("%v:5060", reg.IP)
	c.alice, c.bob = in.Phone(t, a), out.Phone(t, b)
	return c
}

// talk lets from call to, lets them talk for d, and wants both to hear each other's tone.
func talk(t *testing.T, from, to *Phone, d time.Duration) {
	t.Helper()
	from.Forget()
	to.Forget()
	from.Dial(t, to.AOR())
	from.Expect(t, 10*time.Second, "CALL_ESTABLISHED")
	to.Expect(t, 10*time.Second, "CALL_ESTABLISHED")
	pass(d)
	from.Hangup(t)
	to.Expect(t, 10*time.Second, "CALL_CLOSED")
	wantSound(t, from, to.Hz, d)
	wantSound(t, to, from.Hz, d)
}

// wantSound checks that the phone heard hz for at least half of d and next to nothing else.
func wantSound(t *testing.T, p *Phone, hz int, d time.Duration) {
	t.Helper()
	s := p.Heard(t)
	t.Logf("%s@%s heard %v", p.User, p.Host.Name, s)
	if !s.near(hz) || s.Voiced < d/2 || s.Other > s.Voiced/5 {
		t.Errorf("%s@%s heard %v, want at least %v of %d Hz", p.User, p.Host.Name, s, d/2, hz)
	}
}

// TestPhonesUDP: both register with the outside registrar, call each other, hold and resume;
// no private address leaves.
func TestPhonesUDP(t *testing.T) {
	r := lab(t)
	lan, wan := r.Capture("lan"), r.Capture("wan")
	c := newTrio(t, r, RegistrarConfig{}, PhoneConfig{}, PhoneConfig{})
	talk(t, c.alice, c.bob, 3*time.Second)
	talk(t, c.bob, c.alice, 3*time.Second)
	c.edge.Clean(t)
	if !c.edge.isRef {
		wantNoLeaks(t, r, lan.Stop(t), wan.Stop(t))
	}
}

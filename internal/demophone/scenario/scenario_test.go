package scenario

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// stage returns a running stage at addresses of its own.
func stage(t *testing.T) *Stage {
	t.Helper()
	plan, err := NewPlan()
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(plan, zap.NewNop(), func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// nat forwards SIP between alice and the registrar as a NAT router without an ALG would: addresses
// of packets change, messages do not.
func nat(t *testing.T, p Plan) {
	t.Helper()
	in, err := bind(p.EdgeInside)
	if err != nil {
		t.Fatal(err)
	}
	out, err := bind(p.EdgeOutside)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	forward := func(from, by *net.UDPConn, to netip.AddrPort) {
		buf := make([]byte, 65536)
		for {
			n, _, err := from.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if _, err := by.WriteToUDPAddrPort(buf[:n], to); err != nil {
				return
			}
		}
	}
	wg.Go(func() { forward(in, out, p.Registrar) })
	wg.Go(func() { forward(out, in, p.Alice) })
	t.Cleanup(func() { in.Close(); out.Close(); wg.Wait() })
}

// The negative control of the demo: with plain NAT in the place of the edge, signalling passes and
// the verdict is still bad, for the right reasons.
func TestVerdictWithoutALG(t *testing.T) {
	s := stage(t)
	s.patience = 3 * time.Second
	nat(t, s.plan)
	if c := s.Prove(t.Context()); len(c) != 1 || !c[0].OK {
		t.Errorf("without an edge the networks must be apart: %+v", c)
	}
	checks := s.Register(t.Context())
	if !checks[0].OK {
		t.Errorf("bob needs no edge: %+v", checks[0])
	}
	// The registrar took the registration, but of an address that it cannot reach.
	if alice := checks[1]; alice.OK || !strings.Contains(alice.Detail, s.plan.Alice.String()) {
		t.Errorf("alice: %+v", alice)
	}
	call := s.Talk(t.Context(), time.Second, [2]string{"alice", "bob"})[0]
	if call.OK {
		t.Errorf("a call without an ALG was judged good: %+v", call)
	}
	rows := s.Rows()
	if len(rows) != 1 || rows[0].There.Verified+rows[0].Back.Verified != 0 {
		t.Errorf("the call must be answered, and silent: %+v", rows)
	}
	if p := s.Privacy()[0]; p.OK || !strings.Contains(p.Detail, s.plan.Alice.Addr().String()) {
		t.Errorf("the inside address was seen outside: %+v", p)
	}
}

func TestVerdictWithoutEdge(t *testing.T) {
	s := stage(t)
	s.patience = 500 * time.Millisecond
	for i, c := range s.Register(t.Context()) {
		if c.OK != (i == 0) {
			t.Errorf("%+v", c)
		}
	}
	for _, c := range s.Talk(t.Context(), time.Second, [2]string{"alice", "bob"}, [2]string{"bob", "alice"}) {
		if c.OK {
			t.Errorf("a call without an edge was judged good: %+v", c)
		}
	}
}

func TestNewPlanAvoidsPortsInUse(t *testing.T) {
	a, err := NewPlan()
	if err != nil {
		t.Fatal(err)
	}
	c, err := bind(a.Bob)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := NewPlan()
	if err != nil {
		t.Fatal(err)
	}
	if a.Bob == b.Bob {
		t.Errorf("two plans use %v at the same time", a.Bob)
	}
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(b.Admin))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	third, err := NewPlan()
	if err != nil || third.Admin == b.Admin {
		t.Errorf("two plans use %v at the same time (%v)", b.Admin, err)
	}
}

package h323phone

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

const patience = 20 * time.Second

// modes are the ways in which calls are set up.
var modes = []struct {
	Name           string
	Caller, Callee Mode
}{
	{"slow start", Mode{}, Mode{}},
	{"slow start, tunnelled", Mode{Tunnelling: true}, Mode{Tunnelling: true}},
	{"slow start, tunnelling refused", Mode{Tunnelling: true}, Mode{}},
	{"fast start", Mode{FastStart: true}, Mode{FastStart: true}},
	{"fast start, tunnelled", Mode{FastStart: true, Tunnelling: true}, Mode{FastStart: true, Tunnelling: true}},
	{"fast start refused", Mode{FastStart: true}, Mode{}},
	{"H.245 in Setup", Mode{H245InSetup: true}, Mode{}},
	{"startH245 late", Mode{FastStart: true}, Mode{FastStart: true, Late: true}},
	{"T.120 by OpenLogicalChannel", Mode{T120: true}, Mode{}},
	{"video and a presentation (H.239)", Mode{Video: true}, Mode{Video: true}},
	{"T.120 by its Ack, tunnelled", Mode{T120InAck: true, Tunnelling: true}, Mode{Tunnelling: true}},
}

func TestPhones(t *testing.T) {
	for _, m := range modes {
		t.Run(m.Name, func(t *testing.T) {
			a, b := listen(t, "127.0.8.1", "alice", m.Caller), listen(t, "127.0.8.2", "bob", m.Callee)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			accepted := make(chan *Call, 1)
			go func() {
				c, err := b.Accept(ctx)
				if err != nil {
					t.Error(err)
				}
				accepted <- c
			}()
			caller, err := a.Call(ctx, b.Addr(), "bob")
			if err != nil {
				t.Fatal(err)
			}
			callee := <-accepted
			if callee == nil {
				t.FailNow()
			}
			if m.Caller.T120 || m.Caller.T120InAck {
				for _, c := range []*Call{caller, callee} {
					select {
					case <-c.Data():
					case <-ctx.Done():
						t.Fatal("no T.120")
					}
				}
			}
			for _, c := range []*Call{caller, callee} {
				for n, _ := c.Heard(); n < 5; n, _ = c.Heard() {
					if ctx.Err() != nil {
						t.Fatalf("%s heard %d packets", c.phone.Name, n)
					}
					pause(ctx)
				}
			}
			for m.Caller.Video {
				if camera, presentation := caller.Watched(); camera >= 5 && presentation >= 5 {
					break
				}
				if ctx.Err() != nil {
					t.Fatal("no video")
				}
				pause(ctx)
			}
			if err := caller.Hangup(); err != nil {
				t.Error(err)
			}
			if err := callee.Ended(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// pause waits for a frame, or until ctx ends.
func pause(ctx context.Context) {
	select {
	case <-time.After(frame):
	case <-ctx.Done():
	}
}

func listen(t *testing.T, host, name string, m Mode) *Phone {
	t.Helper()
	p, err := Listen(netip.AddrPortFrom(netip.MustParseAddr(host), 0), name, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

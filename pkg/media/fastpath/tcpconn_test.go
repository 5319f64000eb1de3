package fastpath

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestConnState: what the flags of both directions say, and how long silence is taken for life.
func TestConnState(t *testing.T) {
	const open = connSYN | connOpen
	for _, tt := range []struct {
		client, target uint32
		want           string
		patience       time.Duration
	}{
		{connSYN, 0, stateOpening, 30 * time.Second},
		{connSYN, open, stateOpening, 30 * time.Second},
		{open | connCounted, open, stateEstablished, time.Hour},
		{open | connFIN, open, stateHalfClosed, 4 * time.Minute},
		{open, open | connFIN, stateHalfClosed, 4 * time.Minute},
		{open | connFIN, open | connFIN, stateClosing, 15 * time.Second},
		{open | connRST, open, stateReset, 10 * time.Second},
		{connSYN, connRST, stateReset, 10 * time.Second},
		{open | connFIN, open | connFIN | connRST, stateReset, 10 * time.Second},
	} {
		c := conn{forward: &Forward{rule: ForwardRule{Idle: time.Hour}}, have: [2]bool{true, true}}
		c.values[0] = tcConn{Flags: tt.client, Last: 1000}
		c.values[1] = tcConn{Flags: tt.target | connAnswer, Last: 900}
		if got := c.state(); got != tt.want {
			t.Errorf("%#x %#x: %q, want %q", tt.client, tt.target, got, tt.want)
		}
		end := 1000 + uint64(tt.patience)
		if c.over(end) || !c.over(end+1) || c.over(0) {
			t.Errorf("%s is over at another time", tt.want)
		}
		if c.have[1] = false; !c.over(1001 + uint64(halfTime)) {
			t.Errorf("half of %s lives", tt.want)
		}
	}
}

// TestPorts: a port goes round, rests, and nobody else gets it.
func TestPorts(t *testing.T) {
	addr := netip.MustParseAddr("127.0.0.1")
	p := newPorts(addr, 100, ringSize(100))
	defer p.close()
	now, second := uint64(1000*time.Second), uint64(time.Second)
	supply := func(taken uint64) int {
		t.Helper()
		p.take(taken, now)
		list, err := p.next(taken, now)
		must(t, err)
		for _, port := range list {
			p.give(port)
		}
		return len(list)
	}
	if n := supply(0); n != firstPorts {
		t.Fatalf("%d at first", n)
	}
	if n := supply(10); n != 0 {
		t.Errorf("%d more, though there are enough", n)
	}
	if n := supply(40); n != 100-firstPorts {
		t.Errorf("%d more", n)
	}
	if n := supply(100); n != 0 || len(p.out) != 100 {
		t.Errorf("%d more, %d out", n, len(p.out))
	}
	port := p.ring[0]
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
		t.Fatal(err)
	} else if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, port))); err != unix.EADDRINUSE {
		t.Errorf("somebody else may have it: %v", err)
	} else {
		unix.Close(fd)
	}
	p.rest(port, now-10*second, now)
	p.rest(port, now, now) // it is not out any more
	now += 49 * second
	if n := supply(100); n != 0 {
		t.Error("it has not rested")
	}
	now += 2 * second
	if n := supply(100); n != 1 || p.ring[(p.given-1)%uint64(len(p.ring))] != port {
		t.Errorf("%d of which the last is %d, want %d", n, p.ring[(p.given-1)%uint64(len(p.ring))], port)
	}
	for port := range p.out {
		p.out[port] = now
	}
	if list := p.lost(now + uint64(unseenTime)); len(list) != 0 {
		t.Errorf("%d lost too soon", len(list))
	}
	if list := p.lost(now + uint64(unseenTime) + 1); len(list) != 99 {
		t.Errorf("%d lost", len(list))
	}
}

// TestForwardRuleCheck: what the kernel cannot do is said at once.
func TestForwardRuleCheck(t *testing.T) {
	good := ForwardRule{Listen: ap("192.0.2.1:80"), To: ap("198.51.100.2:80"), From: netip.MustParseAddr("198.51.100.1")}
	for name, change := range map[string]func(*ForwardRule){
		"":                  func(*ForwardRule) {},
		"no target":         func(r *ForwardRule) { r.To = netip.AddrPort{} },
		"no port":           func(r *ForwardRule) { r.To = ap("198.51.100.2:0") },
		"any address":       func(r *ForwardRule) { r.Listen = ap("0.0.0.0:80") },
		"two families":      func(r *ForwardRule) { r.To = ap("[2001:db8::2]:80") },
		"another source":    func(r *ForwardRule) { r.From = netip.MustParseAddr("2001:db8::1") },
		"link-local":        func(r *ForwardRule) { r.To = ap("169.254.1.1:80") },
		"mapped":            func(r *ForwardRule) { r.To = ap("[::ffff:198.51.100.2]:80") },
		"multicast":         func(r *ForwardRule) { r.To = ap("224.0.0.1:80") },
		"too many":          func(r *ForwardRule) { r.MaxConnections = maxConnections + 1 },
		"less than none":    func(r *ForwardRule) { r.MaxConnections = -1 },
		"less than no time": func(r *ForwardRule) { r.Idle = -1 },
	} {
		r := good
		change(&r)
		if err := r.check(); (err == nil) != (name == "") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

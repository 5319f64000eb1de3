package sipalg

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
	"edged.dev/edged/pkg/sipalg/flow"
)

// world is a core between two networks, with a clock that the test moves.
//
//	inside 10.0.0.1 (hosts 10.0.0.0/24) | edge | outside 198.51.100.1
type world struct {
	t      testing.TB
	core   *Core
	opener *pinholetest.Opener
	now    time.Time
	out    Output
}

// sent is a message that the core sent.
type sent struct {
	flow   flow.Flow
	target *flow.Target
	tx     uint64
	text   string
}

func testNetworks() pinhole.Networks {
	return pinhole.Networks{
		"inside": {
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			Subnets:   []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}, Trusted: true,
		},
		"outside": {
			Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")},
			Subnets:   []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		},
	}
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Probe = 0
	cfg.Domains = map[string]Domain{"example.com": {Network: "outside", Server: "udp:198.51.100.20:5060"}}
	if change != nil {
		change(&cfg)
	}
	nets := testNetworks()
	if err := cfg.Validate(nets); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, opener: pinholetest.New(nets, 50000), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.core = NewCore(cfg, Limits{MessagesPerSecond: 100}, nets, w.opener, nil, zaptest.NewLogger(t))
	for name, nw := range nets {
		for _, a := range nw.Addresses {
			w.core.AddListener(name, flow.UDP, netip.AddrPortFrom(a, 5060))
			w.core.AddListener(name, flow.TCP, netip.AddrPortFrom(a, 5060))
			w.core.AddListener(name, flow.TLS, netip.AddrPortFrom(a, 5061))
		}
	}
	w.do(func() { w.core.Begin(w.now, &w.out) })
	return w
}

func (w *world) do(f func()) []sent {
	w.out.reset()
	f()
	var list []sent
	for i := range w.out.items {
		it := &w.out.items[i]
		if it.record != nil || it.resolve != nil {
			continue
		}
		list = append(list, sent{it.flow, it.target, it.tx, string(w.out.bytes(i))})
	}
	return list
}

func (w *world) receive(f flow.Flow, msg string) []sent {
	return w.do(func() { w.core.Receive(w.now, f, []byte(crlf(msg)), &w.out) })
}

// after moves the clock and fires what is due.
func (w *world) after(d time.Duration) []sent {
	w.now = w.now.Add(d)
	return w.do(func() { w.core.Tick(w.now, &w.out) })
}

func crlf(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimLeft(s, "\n"), "\r\n", "\n"), "\n", "\r\n")
}

func udp(network, local, remote string) flow.Flow {
	return flow.Flow{Network: network, Proto: flow.UDP, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}

var (
	aliceFlow  = udp("inside", "10.0.0.1:5060", "10.0.0.5:5062")
	serverFlow = udp("outside", "198.51.100.1:5060", "198.51.100.20:5060")
)

const sdpAlice = "v=0\r\no=- 1 1 IN IP4 10.0.0.5\r\ns=-\r\nc=IN IP4 10.0.0.5\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
const sdpBob = "v=0\r\no=- 1 1 IN IP4 198.51.100.77\r\ns=-\r\nc=IN IP4 198.51.100.77\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\n"

func withBody(head, body string) string {
	return crlf(head) + "Content-Type: application/sdp\r\nContent-Length: " + string(appendUint(nil, uint64(len(body)))) + "\r\n\r\n" + body
}

func TestCallOut(t *testing.T) {
	w := newWorld(t, nil)
	out := w.receive(aliceFlow, withBody(`
INVITE sip:bob@example.com SIP/2.0
Via: SIP/2.0/UDP 10.0.0.5:5062;branch=z9hG4bKa1;rport
From: Alice <sip:alice@example.com>;tag=a
To: <sip:bob@example.com>
Call-ID: call-1
CSeq: 1 INVITE
Contact: <sip:alice@10.0.0.5:5062>
Max-Forwards: 70
`, sdpAlice))
	for _, s := range out {
		t.Logf("%v %v\n%s", s.flow.Remote, s.target, s.text)
	}
	if len(out) != 2 {
		t.Fatalf("%d messages", len(out))
	}
	inv := out[1]
	via := inv.text[strings.Index(inv.text, "Via: "):]
	via = via[:strings.Index(via, "\r\n")]
	rr := ""
	for _, l := range strings.Split(inv.text, "\r\n") {
		if strings.HasPrefix(l, "Record-Route") {
			rr += l + "\r\n"
		}
	}
	out = w.receive(serverFlow, withBody("SIP/2.0 200 OK\r\n"+via+"\r\n"+rr+`From: Alice <sip:alice@example.com>;tag=a
To: <sip:bob@example.com>;tag=b
Call-ID: call-1
CSeq: 1 INVITE
Contact: <sip:bob@198.51.100.77:5060>
`, sdpBob))
	for _, s := range out {
		t.Logf("%v %v\n%s", s.flow.Remote, s.target, s.text)
	}
}

package sipalg

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// world is a core between two networks of phones and proxies in memory, with a clock that the test moves.
//
//	phones, proxies ── inside 10.0.0.1, fd00::1 | edge | outside 198.51.100.1, 2001:db8::1 ── phones, proxies
//
// Everything that the edge sends is checked against what it received: see forwarded.
type world struct {
	t       testing.TB
	core    *Core
	opener  *pinholetest.Opener
	now     time.Time
	start   time.Time
	out     Output
	nodes   map[netip.AddrPort]node
	conns   map[connKey]uint64
	ends    map[uint64]netip.AddrPort // who is at the other end of a connection
	refused map[flow.Target]bool      // no connection can be made
	dead    map[netip.AddrPort]bool   // nothing arrives there
	dns     map[string][]flow.Target
	queries []query
	records []*Record
	log     []entry // what passed the edge
	pings   []entry // CRLFs of the edge
	queue   []packet
	showsIn bool              // messages to the outside may name inside addresses
	wild    bool              // what comes in is no message of a phone: its bytes are not compared
	edits   bool              // an editor changes contents
	signed  map[string]string // what a signature covered when it came in
	resent  map[string]bool   // signatures that were sent, with the connection
}

type connKey struct {
	proto    flow.Proto
	far, own netip.AddrPort
}

// node is a phone or a proxy.
type node interface {
	receive(raw string)
	label() string
}

// packet is a message on the wire.
type packet struct {
	proto    flow.Proto
	from, to netip.AddrPort
	conn     uint64
	raw      string
}

// entry is a message that passed between the edge and somebody.
type entry struct {
	at    time.Duration
	proto flow.Proto
	toWho bool // from the edge
	who   string
	raw   string
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

func testConfig(change func(*Config)) Config {
	cfg := DefaultConfig()
	cfg.Probe, cfg.Keepalive = 0, 0
	cfg.Domains = map[string]Domain{"example.com": {Network: "outside", Server: "udp:198.51.100.20:5060"}}
	if change != nil {
		change(&cfg)
	}
	return cfg
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	cfg := testConfig(change)
	nets := testNetworks()
	if err := cfg.Validate(nets); err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &world{
		t: t, opener: pinholetest.New(nets, 50000), now: start, start: start,
		nodes: map[netip.AddrPort]node{}, conns: map[connKey]uint64{}, ends: map[uint64]netip.AddrPort{},
		refused: map[flow.Target]bool{}, dead: map[netip.AddrPort]bool{}, dns: map[string][]flow.Target{},
		signed: map[string]string{}, resent: map[string]bool{},
	}
	w.core = newTestCore(cfg, nets, w.opener, zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)))
	w.core.idle = func(s silence) { w.do(func() { w.core.MediaIdle(w.now, s, &w.out) }) }
	w.do(func() { w.core.Begin(w.now, &w.out) })
	return w
}

func newTestCore(cfg Config, nets pinhole.Networks, opener pinhole.Opener, log *zap.Logger) *Core {
	c := NewCore(cfg, Limits{MessagesPerSecond: 100}, nets, opener, nil, log)
	for _, name := range []string{"inside", "outside"} {
		for _, a := range nets[name].Addresses {
			c.AddListener(name, flow.UDP, netip.AddrPortFrom(a, 5060))
			c.AddListener(name, flow.TCP, netip.AddrPortFrom(a, 5060))
			c.AddListener(name, flow.TLS, netip.AddrPortFrom(a, 5061))
			c.AddListener(name, flow.WS, netip.AddrPortFrom(a, 8080))
		}
	}
	return c
}

// do lets the core act, and everybody react until the wires are empty.
func (w *world) do(f func()) {
	w.t.Helper()
	w.act(f, nil)
	w.settle()
}

// act lets the core act once and puts what it sends on the wires.
func (w *world) act(f func(), in []byte) {
	w.t.Helper()
	w.out.reset()
	f()
	if n := w.core.ed.Conflicts(); n != 0 {
		w.t.Errorf("%d conflicting edits", n)
	}
	items := slices.Clone(w.out.items)
	var texts []string
	for i := range items {
		texts = append(texts, string(w.out.bytes(i)))
	}
	for i, it := range items {
		switch {
		case it.record != nil:
			w.records = append(w.records, it.record)
		case it.resolve != nil:
			w.resolve(*it.resolve)
		default:
			w.emit(it, texts[i], in)
		}
	}
}

func (w *world) resolve(q query) {
	if a, ok := w.dns[q.server.Host]; ok {
		w.act(func() { w.core.Resolved(w.now, q.id, a, &w.out) }, nil)
		return
	}
	w.queries = append(w.queries, q)
}

// answer answers the oldest look-up that waits.
func (w *world) answer(targets ...flow.Target) {
	w.t.Helper()
	if len(w.queries) == 0 {
		w.t.Fatal("nothing is being resolved")
	}
	q := w.queries[0]
	w.queries = w.queries[1:]
	w.do(func() { w.core.Resolved(w.now, q.id, targets, &w.out) })
}

// emit puts one message of the edge on the wire, over a connection that is made if it must be.
func (w *world) emit(it item, raw string, in []byte) {
	w.t.Helper()
	f := it.flow
	if it.target != nil {
		tg := *it.target
		own := w.core.localFor(tg.Network, tg.Proto, tg.Addr.Addr())
		f = flow.Flow{Network: tg.Network, Proto: tg.Proto, Local: own.bind, Remote: tg.Addr}
		if w.refused[tg] {
			w.act(func() { w.core.Sent(w.now, it.tx, flow.Flow{}, errors.New("connection refused"), &w.out) }, nil)
			return
		}
		if tg.Proto.Stream() {
			f.Conn = w.conn(tg.Proto, tg.Addr, own.bind)
		}
		w.sent(f, raw, in)
		w.act(func() { w.core.Sent(w.now, it.tx, f, nil, &w.out) }, nil)
		return
	}
	if f.Conn != 0 && !w.ends[f.Conn].IsValid() {
		if it.tx != 0 {
			w.act(func() { w.core.Sent(w.now, it.tx, f, errors.New("connection closed"), &w.out) }, nil)
		}
		return
	}
	w.sent(f, raw, in)
}

func (w *world) sent(f flow.Flow, raw string, in []byte) {
	w.t.Helper()
	to := f.Remote
	if f.Conn != 0 {
		to = w.ends[f.Conn]
	}
	if raw == "\r\n\r\n" {
		w.pings = append(w.pings, entry{w.now.Sub(w.start), f.Proto, true, w.nameOf(to), raw})
		return
	}
	w.checkOutput(f, raw, in)
	w.log = append(w.log, entry{w.now.Sub(w.start), f.Proto, true, w.nameOf(to), raw})
	w.queue = append(w.queue, packet{proto: f.Proto, to: to, raw: raw})
}

func (w *world) nameOf(a netip.AddrPort) string {
	if n := w.nodes[a]; n != nil {
		return n.label()
	}
	return a.String()
}

// conn returns the connection between somebody and the edge, made if needed.
func (w *world) conn(p flow.Proto, far, own netip.AddrPort) uint64 {
	k := connKey{p, far, own}
	if w.conns[k] == 0 {
		id := uint64(len(w.ends) + 1)
		w.conns[k], w.ends[id] = id, far
	}
	return w.conns[k]
}

// hangUp closes all connections of somebody.
func (w *world) hangUp(far netip.AddrPort) {
	w.t.Helper()
	for k, id := range w.conns {
		if k.far != far {
			continue
		}
		delete(w.conns, k)
		w.ends[id] = netip.AddrPort{}
		f := flow.Flow{Conn: id, Network: w.networkOf(k.own), Proto: k.proto, Local: k.own, Remote: far}
		w.do(func() { w.core.Closed(w.now, f, &w.out) })
	}
}

func (w *world) networkOf(own netip.AddrPort) string {
	for name, n := range w.core.nets {
		if slices.Contains(n.Addresses, own.Addr()) {
			return name
		}
	}
	return ""
}

// settle carries what is on the wires.
func (w *world) settle() {
	w.t.Helper()
	for n := 0; len(w.queue) > 0; n++ {
		if n > 2000 {
			w.t.Fatal("the messages never end")
		}
		p := w.queue[0]
		w.queue = w.queue[1:]
		if w.networkOf(p.to) != "" {
			w.intoEdge(p)
			continue
		}
		if nd := w.nodes[p.to]; nd != nil && !w.dead[p.to] {
			nd.receive(p.raw)
		}
	}
}

func (w *world) intoEdge(p packet) {
	w.t.Helper()
	f := flow.Flow{Network: w.networkOf(p.to), Proto: p.proto, Local: p.to, Remote: p.from, Conn: p.conn}
	if p.proto.Stream() && p.conn == 0 {
		f.Conn = w.conn(p.proto, p.from, p.to)
	}
	w.log = append(w.log, entry{w.now.Sub(w.start), p.proto, false, w.nameOf(p.from), p.raw})
	if sig, covered := signatureOf(parseMsg(p.raw)); sig != "" {
		w.signed[sig] = covered
	}
	w.act(func() { w.core.Receive(w.now, f, []byte(p.raw), &w.out) }, []byte(p.raw))
}

// put puts a message on the wire; the edge is at its listeners' addresses.
func (w *world) put(p flow.Proto, from, to netip.AddrPort, raw string) {
	w.t.Helper()
	w.queue = append(w.queue, packet{proto: p, from: from, to: to, raw: raw})
	w.settle()
}

// after moves the clock and fires what is due, each timer in its own time.
func (w *world) after(d time.Duration) {
	w.t.Helper()
	end := w.now.Add(d)
	for n := w.core.Next(); !n.IsZero() && !n.After(end); n = w.core.Next() {
		if n.After(w.now) {
			w.now = n
		}
		w.do(func() { w.core.Tick(w.now, &w.out) })
	}
	w.now = end
}

// checkOutput holds for every message of the edge: it parses, it tells the outside nothing of the
// inside, and if it is the message that came in it is changed only where the edge may.
func (w *world) checkOutput(f flow.Flow, raw string, in []byte) {
	w.t.Helper()
	var m sipmsg.Message
	var cause sipmsg.Message
	bad := in != nil && cause.Parse(in) != nil // an answer to it repeats its faults
	if err := m.Parse([]byte(raw)); !bad && err != nil || len(m.Raw()) != len(raw) {
		w.t.Errorf("the edge sent what does not parse (%v, %d of %d bytes):\n%s", err, len(m.Raw()), len(raw), raw)
	}
	if f.Network == "outside" && !w.showsIn {
		for _, private := range []string{"10.0.0.", "fd00:"} {
			if strings.Contains(raw, private) {
				w.t.Errorf("%s leaves for the outside:\n%s", private, raw)
			}
		}
	}
	if !w.wild {
		w.checkSignature(f, raw)
	}
	if in != nil && !w.wild {
		if diff := w.changed(string(in), raw); diff != "" {
			w.t.Errorf("changed on the way: %s\nin:\n%s\nout:\n%s", diff, in, raw)
		}
	}
}

// changed returns what the edge may not have changed, "" if nothing, or if out is another message than in.
func (w *world) changed(in, out string) string {
	a, b := parseMsg(in), parseMsg(out)
	if a.method != b.method || a.status != b.status || a.cseq() != b.cseq() || a.get("Call-ID") != b.get("Call-ID") {
		return ""
	}
	if a.method != "" && strings.Fields(a.start)[0] != strings.Fields(b.start)[0] || a.method == "" && a.start != b.start {
		return fmt.Sprintf("start line %q to %q", a.start, b.start)
	}
	x, y := a.untouchable(), b.untouchable()
	if w.edits {
		edited := func(l string) bool { n := name(l); return n == "content-type" || n == "ms-text-format" }
		x, y = slices.DeleteFunc(x, edited), slices.DeleteFunc(y, edited)
	}
	for i := range max(len(x), len(y)) {
		if i >= len(x) || i >= len(y) || x[i] != y[i] {
			return fmt.Sprintf("header fields %q to %q", x[min(i, len(x)):], y[min(i, len(y)):])
		}
	}
	if ct := strings.ToLower(a.get("Content-Type")); !w.edits && !strings.HasPrefix(a.body, b.body) && !strings.Contains(ct, "sdp") && !strings.HasPrefix(ct, "multipart/") {
		return "the body"
	}
	return ""
}

// clean lets time pass until everything must have been forgotten, and checks that it is.
func (w *world) clean() {
	w.t.Helper()
	for far := range w.nodes {
		w.dead[far] = true
	}
	for _, a := range slices.Collect(func(yield func(netip.AddrPort) bool) {
		for k := range w.conns {
			if !yield(k.far) {
				return
			}
		}
	}) {
		w.hangUp(a)
	}
	w.after(30 * time.Minute)
	c := w.core
	probes := 0 // servers are looked up and probed for ever
	for _, d := range c.domains {
		for _, u := range d.servers {
			probes += min(u.probe.index, 1)
		}
	}
	left := map[string]int{
		"client": len(c.client), "server": len(c.server), "sessions": len(c.sessions), "calls": len(c.calls),
		"aliases": len(c.aliases) - len(c.bindings) - len(c.homes), "tokens": len(c.tokens) - len(c.bindings) - len(c.homes),
		"credentials": len(c.credits), "held bytes": c.held, "conns": len(c.conns),
		"waiting": len(c.waiting), "sources": len(c.sources), "timers": len(c.timers) - 1 - len(c.bindings) - probes, "pinholes": w.opener.Count(),
	}
	for what, n := range left {
		if n != 0 {
			w.t.Errorf("%d %s left", n, what)
		}
	}
}

// drops checks how many messages were dropped for a reason.
func (w *world) drops(reason string, want uint64) {
	w.t.Helper()
	if got := w.core.drops[reason]; got != want {
		w.t.Errorf("dropped for %s: %d, want %d (%v)", reason, got, want, w.core.drops)
	}
}

func crlf(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimLeft(s, "\n"), "\r\n", "\n"), "\n", "\r\n")
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

package h323

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

var (
	aliceAt = netip.MustParseAddrPort("10.0.0.7:1720")
	carolAt = netip.MustParseAddrPort("10.0.0.8:1720")
	bobAt   = netip.MustParseAddrPort("203.0.113.9:1720")
	davidAt = netip.MustParseAddrPort("203.0.113.10:1720")
	inEdge  = netip.MustParseAddr("10.0.0.1")
	outEdge = netip.MustParseAddr("198.51.100.1")
)

func trustedNetworks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{inEdge}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{outEdge}},
	}
}

// bench is a core with connections of people on it.
type bench struct {
	t      testing.TB
	core   *Core
	opener *pinholetest.Opener
	now    time.Time
	last   ConnID
	// served is the call whose H.245 pinhole was opened last.
	served *call
	out    Output
}

func newBench(t testing.TB, change func(*Config, *Deps)) *bench {
	b := &bench{t: t, now: testNow, opener: pinholetest.New(trustedNetworks(), 20000)}
	cfg, deps := DefaultConfig(), Deps{Networks: trustedNetworks(), Opener: b.opener}
	cfg.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 1720}, {Proto: "tcp", Network: "outside", Port: 1720}}
	cfg.Aliases = map[string]Target{"bob": Target(bobAt), "alice": Target(aliceAt)}
	if change != nil {
		change(&cfg, &deps)
	}
	if err := cfg.Validate(deps.Networks); err != nil {
		t.Fatal(err)
	}
	b.core = NewCore(cfg, deps, zap.NewNop())
	b.core.serve = func(k *call) func(context.Context, [2]net.Conn, func(pinhole.Side, int)) {
		b.served = k
		return func(context.Context, [2]net.Conn, func(pinhole.Side, int)) {}
	}
	b.core.enter = func([2]string) func(context.Context, [2]net.Conn, func(pinhole.Side, int)) { return nil }
	return b
}

// connect makes a connection from a host to the edge.
func (b *bench) connect(from netip.AddrPort) ConnID {
	network, local := "inside", inEdge
	if !netip.MustParsePrefix("10.0.0.0/24").Contains(from.Addr()) {
		network, local = "outside", outEdge
	}
	b.last++
	b.core.Accept(b.now, b.last, network, netip.AddrPortFrom(local, 1720), netip.AddrPortFrom(from.Addr(), 30000))
	return b.last
}

// say has a connection say something, and returns what is to be done.
func (b *bench) say(id ConnID, payload []byte) []Action {
	b.out = Output{Records: b.out.Records}
	b.core.Message(b.now, id, tpkt.Packet{Payload: payload}, &b.out)
	return b.out.Actions
}

func (b *bench) closed(id ConnID) []Action {
	b.out = Output{Records: b.out.Records}
	b.core.Closed(b.now, id, &b.out)
	return b.out.Actions
}

func (b *bench) tick(after time.Duration) []Action {
	b.now = b.now.Add(after)
	b.out = Output{Records: b.out.Records}
	b.core.Tick(b.now, &b.out)
	return b.out.Actions
}

// empty checks that nothing is left.
func (b *bench) empty() {
	b.t.Helper()
	if n := b.opener.Count(); n != 0 || len(b.core.calls) != 0 || len(b.core.sources) != 0 {
		b.t.Errorf("%d pinholes, %d calls, %d sources are left", n, len(b.core.calls), len(b.core.sources))
	}
	for _, l := range b.core.legs {
		if len(l.calls) != 0 {
			b.t.Errorf("the connection with %v has %d calls", l.remote, len(l.calls))
		}
	}
}

func ident(n byte) h225.ID { return h225.ID(bytes.Repeat([]byte{n}, 16)) }

// setup is a Setup of the call n from a host to a name.
func setup(t testing.TB, n byte, from netip.AddrPort, called string, more ...per.Field) []byte {
	t.Helper()
	return setupOf(t, uint16(n), ident(n), from, called, more...)
}

func setupOf(t testing.TB, ref uint16, id h225.ID, from netip.AddrPort, called string, more ...per.Field) []byte {
	t.Helper()
	f := []per.Field{
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")), per.F("sourceInfo", kindOfEndpoint()),
		per.F("activeMC", per.Truth(false)), per.F("conferenceID", per.Octet(id[:])),
		per.F("conferenceGoal", per.Alternative("create", per.Nothing())), per.F("callType", per.Alternative("pointToPoint", per.Nothing())),
		per.F("sourceCallSignalAddress", h245.CallAddress(from)), per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(id[:])))),
		per.F("mediaWaitForConnect", per.Truth(false)), per.F("canOverlapSend", per.Truth(false)),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)),
	}
	if called != "" {
		f = append(f, per.F("destinationAddress", per.Elements(h225.H323ID(called))))
	}
	b, err := h225.Build(nil, q931.Setup, ref, false, nil, h225.Info(h225.Setup, per.Fields(append(f, more...)...)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func kindOfEndpoint() per.Value {
	return per.Fields(per.F("terminal", per.Fields()), per.F("mc", per.Truth(false)), per.F("undefinedNode", per.Truth(false)))
}

func payload(t testing.TB, kind q931.Type, n byte, fromDest bool, body h225.Body, f ...per.Field) []byte {
	t.Helper()
	return payloadWith(t, kind, n, fromDest, h225.Info(body, per.Fields(f...)))
}

func payloadWith(t testing.TB, kind q931.Type, n byte, fromDest bool, info per.Value) []byte {
	t.Helper()
	b, err := h225.Build(nil, kind, uint16(n), fromDest, nil, info)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// common are the components of most answers.
func common(n byte, more ...per.Field) []per.Field {
	id := ident(n)
	return append([]per.Field{
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")), per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(id[:])))),
	}, more...)
}

func multi() []per.Field {
	return []per.Field{per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false))}
}

func connect(t testing.TB, n byte, more ...per.Field) []byte {
	id := ident(n)
	return payload(t, q931.Connect, n, true, h225.Connect, append(append(common(n, multi()...),
		per.F("destinationInfo", kindOfEndpoint()), per.F("conferenceID", per.Octet(id[:]))), more...)...)
}

func facility(t testing.TB, n byte, fromDest bool, reason string, more ...per.Field) []byte {
	return payload(t, q931.Facility, n, fromDest, h225.Facility, append(append(common(n, multi()...),
		per.F("reason", per.Alternative(reason, per.Nothing()))), more...)...)
}

func release(t testing.TB, n byte, fromDest bool) []byte {
	return payload(t, q931.ReleaseComplete, n, fromDest, h225.ReleaseComplete,
		append(common(n), per.F("reason", per.Alternative("undefinedReason", per.Nothing())))...)
}

// TestRecordCause: the record of a call has the cause of the ReleaseComplete, the edge's own too, and ends with it.
func TestRecordCause(t *testing.T) {
	b := newBench(t, nil)
	near, _ := b.talk(1, aliceAt, per.F("h245Address", h245.CallAddress(at(aliceAt, 4000))))
	over := b.now
	b.core.HangUp(b.now, func(*call) bool { return true }, &b.out)
	b.tick(lingerTime)
	if len(b.out.Records) != 1 {
		t.Fatalf("records %+v, connection %d", b.out.Records, near)
	}
	r := b.out.Records[0]
	if r.Cause != 16 || r.Reason != hungUp || !r.Stopped.Equal(over) || r.Networks != [2]string{"inside", "outside"} || len(r.Streams) != 0 {
		t.Errorf("%+v", r)
	}
	for text, want := range map[string]int{"": 0, "\x80": 0, "\x80\x91": 17, "\x00\x80\xff": 127, "\x00\x80": 0} {
		if got := causeOf([]byte(text)); got != want {
			t.Errorf("cause of %x: %d, want %d", text, got, want)
		}
	}
}

// tunnel is a Facility with H.245 in it.
func tunnel(t testing.TB, n byte, fromDest bool, h ...[]byte) []byte {
	var v []per.Value
	for _, b := range h {
		v = append(v, per.Octet(b))
	}
	return payloadWith(t, q931.Facility, n, fromDest, h225.Info(h225.Empty, per.Nothing(), per.F("h245Tunnelling", per.Truth(true)),
		per.F("h245Control", per.Elements(v...))))
}

func h245Of(t testing.TB, class string, kind h245.Kind, f ...per.Field) []byte {
	t.Helper()
	b, err := h245.Append(nil, class, kind, per.Fields(f...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func params(session int64, rtp, rtcp netip.AddrPort) per.Value {
	f := []per.Field{per.F("sessionID", per.Number(session))}
	if rtp.IsValid() {
		f = append(f, per.F("mediaChannel", h245.MediaAddress(rtp)))
	}
	if rtcp.IsValid() {
		f = append(f, per.F("mediaControlChannel", h245.MediaAddress(rtcp)))
	}
	return per.Alternative("h2250LogicalChannelParameters", per.Fields(f...))
}

func g711() per.Value {
	return per.Alternative("audioData", per.Alternative("g711Alaw64k", per.Number(20)))
}

func lcn(n int64) per.Field { return per.F("forwardLogicalChannelNumber", per.Number(n)) }

func forwardOf(session int64, rtp, rtcp netip.AddrPort) per.Field {
	return per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", g711()), per.F("multiplexParameters", params(session, rtp, rtcp))))
}

func olc(t testing.TB, n, session int64, rtcp netip.AddrPort) []byte {
	return h245Of(t, "request", h245.OpenLogicalChannel, lcn(n), forwardOf(session, netip.AddrPort{}, rtcp))
}

func ack(t testing.TB, n, session int64, rtp, rtcp netip.AddrPort) []byte {
	return h245Of(t, "response", h245.OpenLogicalChannelAck, lcn(n), per.F("forwardMultiplexAckParameters",
		per.Alternative("h2250LogicalChannelAckParameters", per.Fields(per.F("sessionID", per.Number(session)),
			per.F("mediaChannel", h245.MediaAddress(rtp)), per.F("mediaControlChannel", h245.MediaAddress(rtcp)), per.F("flowControlToZero", per.Truth(false))))))
}

func clc(t testing.TB, n int64) []byte {
	return h245Of(t, "request", h245.CloseLogicalChannel, lcn(n), per.F("source", per.Alternative("lcse", per.Nothing())))
}

func at(host netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(host.Addr(), port)
}

// sent returns what was sent on a connection.
func sent(t testing.TB, actions []Action, id ConnID) []*h225.Message {
	t.Helper()
	var out []*h225.Message
	for _, a := range actions {
		if a.Kind == Send && a.Conn == id {
			m, err := h225.NewCodec().Decode(a.Data[4:])
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, m)
		}
	}
	return out
}

// one returns the only message that was sent on a connection.
func one(t testing.TB, actions []Action, id ConnID) *h225.Message {
	t.Helper()
	list := sent(t, actions, id)
	if len(list) != 1 {
		t.Fatalf("%d messages on %d: %v", len(list), id, actions)
	}
	return list[0]
}

// talk sets up the call n between a caller and bob, and returns the connections.
func (b *bench) talk(n byte, from netip.AddrPort, more ...per.Field) (near, far ConnID) {
	b.t.Helper()
	near = b.connect(from)
	far = b.dialled(b.say(near, setup(b.t, n, from, "bob", more...)))
	return near, far
}

// dialled has the connection succeed that the actions ask for.
func (b *bench) dialled(actions []Action) ConnID {
	b.t.Helper()
	for _, a := range actions {
		if a.Kind == Dial {
			b.out = Output{Records: b.out.Records}
			local := outEdge
			if a.Network == "inside" {
				local = inEdge
			}
			b.core.Dialed(b.now, a.Conn, netip.AddrPortFrom(local, 40000), nil, &b.out)
			return a.Conn
		}
	}
	b.t.Fatalf("no connection was asked for: %v, refused %v", actions, b.core.counts.refused)
	return 0
}

// TestEnds: a call ends in every order of what may happen, and leaves nothing.
func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		do     func(b *bench, near, far ConnID)
		reason string
	}{
		{"released by the caller", func(b *bench, near, far ConnID) {
			if m := one(b.t, b.say(near, release(b.t, 1, false)), far); m.Type != q931.ReleaseComplete {
				b.t.Errorf("%v", m.Type)
			}
			b.tick(lingerTime)
		}, "undefinedReason"},
		{"released by the called party, and both close", func(b *bench, near, far ConnID) {
			b.say(far, release(b.t, 1, true))
			b.closed(far)
			b.closed(near)
		}, "undefinedReason"},
		{"released twice", func(b *bench, near, far ConnID) {
			b.say(far, release(b.t, 1, true))
			one(b.t, b.say(near, release(b.t, 1, false)), far)
			b.tick(lingerTime)
		}, "undefinedReason"},
		{"hung up by the operator", func(b *bench, near, far ConnID) {
			b.say(far, connect(b.t, 1))
			b.out = Output{Records: b.out.Records}
			if n := b.core.HangUp(b.now, func(k *call) bool { return k.caller != "nobody" }, &b.out); n != 1 {
				b.t.Errorf("%d calls", n)
			}
			for id, fromDest := range map[ConnID]bool{near: true, far: false} {
				if m := one(b.t, b.out.Actions, id); m.Type != q931.ReleaseComplete || m.FromDest != fromDest {
					b.t.Errorf("%v %v", m.Type, m.FromDest)
				}
			}
			b.tick(lingerTime)
		}, hungUp},
		{"the caller is gone", func(b *bench, near, far ConnID) {
			if m := one(b.t, b.closed(near), far); m.Type != q931.ReleaseComplete || m.FromDest {
				b.t.Errorf("%v %v", m.Type, m.FromDest)
			}
		}, "connection_lost"},
		{"the called party is gone", func(b *bench, near, far ConnID) {
			if m := one(b.t, b.closed(far), near); m.Type != q931.ReleaseComplete || !m.FromDest {
				b.t.Errorf("%v %v", m.Type, m.FromDest)
			}
		}, "connection_lost"},
		{"nobody answers", func(b *bench, near, far ConnID) {
			b.tick(answerTime - time.Second)
			if len(b.core.calls) != 1 {
				b.t.Fatal("ended too early")
			}
			actions := b.tick(time.Second)
			one(b.t, actions, near)
			one(b.t, actions, far)
			b.tick(lingerTime)
		}, refusedTimeout},
		{"answered, then H.245 outlives call signalling", func(b *bench, near, far ConnID) {
			b.say(far, connect(b.t, 1, per.F("h245Address", h245.CallAddress(at(bobAt, 5000)))))
			b.core.controlOpened(b.served)
			b.tick(2 * answerTime)
			b.closed(near)
			b.closed(far)
			if b.opener.Count() == 0 {
				b.t.Fatal("the call ended with its signalling")
			}
			b.core.controlClosed(b.now, b.served, &b.out)
		}, "connection_lost"},
		{"H.245 ends first", func(b *bench, near, far ConnID) {
			b.say(far, connect(b.t, 1, per.F("h245Address", h245.CallAddress(at(bobAt, 5000)))))
			b.core.controlOpened(b.served)
			b.core.controlClosed(b.now, b.served, &b.out)
			if len(b.core.calls) != 1 {
				b.t.Fatal("the call ended with H.245")
			}
			b.closed(near)
		}, "connection_lost"},
		{"one side of the signalling, then H.245", func(b *bench, near, far ConnID) {
			b.say(far, connect(b.t, 1, per.F("h245Address", h245.CallAddress(at(bobAt, 5000)))))
			b.core.controlOpened(b.served)
			b.closed(near)
			b.core.controlClosed(b.now, b.served, &b.out)
			if m := one(b.t, b.out.Actions, far); m.Type != q931.ReleaseComplete {
				b.t.Errorf("%v", m.Type)
			}
		}, "connection_lost"},
		{"the next call on the connection has the same number", func(b *bench, near, far ConnID) {
			b.say(near, release(b.t, 1, false))
			second := b.dialled(b.say(near, setup(b.t, 1, aliceAt, "bob")))
			if second == far || len(b.core.calls) != 1 {
				b.t.Fatalf("%d calls", len(b.core.calls))
			}
			b.say(near, release(b.t, 1, false))
			b.tick(lingerTime)
		}, "undefinedReason"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, nil)
			near, far := b.talk(1, aliceAt, per.F("h245Address", h245.CallAddress(at(aliceAt, 4000))))
			tt.do(b, near, far)
			b.empty()
			if len(b.out.Records) == 0 || b.out.Records[0].Reason != tt.reason {
				t.Errorf("records %+v", b.out.Records)
			}
			for _, id := range []ConnID{near, far} {
				if l := b.core.legs[id]; l != nil && !l.closing {
					t.Errorf("the connection with %v stays", l.remote)
				}
			}
		})
	}
}

// TestDialFails: the caller is told, and nothing is left.
func TestDialFails(t *testing.T) {
	b := newBench(t, nil)
	near := b.connect(aliceAt)
	actions := b.say(near, setup(t, 1, aliceAt, "bob", per.F("h245Address", h245.CallAddress(at(aliceAt, 4000)))))
	b.out = Output{}
	b.core.Dialed(b.now, actions[0].Conn, netip.AddrPort{}, errors.New("refused"), &b.out)
	if m := one(t, b.out.Actions, near); m.Type != q931.ReleaseComplete || m.Reason() != "unreachableDestination" {
		t.Errorf("%v %s", m.Type, m.Reason())
	}
	b.tick(lingerTime)
	b.empty()
	if b.core.counts.refused[refusedDial] != 1 {
		t.Errorf("refused %v", b.core.counts.refused)
	}
}

// TestSeveral: calls on one connection are told apart by their number, and the connection stays for those that are left.
func TestSeveral(t *testing.T) {
	b := newBench(t, nil)
	near := b.connect(aliceAt)
	one1 := b.dialled(b.say(near, setup(t, 1, aliceAt, "bob")))
	two := b.dialled(b.say(near, setup(t, 2, aliceAt, "bob")))
	if m := one(t, b.say(two, connect(t, 2)), near); m.CallRef != 2 {
		t.Errorf("call reference %d", m.CallRef)
	}
	b.say(one1, release(t, 1, true))
	b.tick(lingerTime)
	if l := b.core.legs[near]; l.closing || len(l.calls) != 1 || b.core.legs[two].closing || !b.core.legs[one1].closing {
		t.Error("the end of one call took the other's connection")
	}
	if m := one(t, b.say(near, payload(t, q931.Alerting, 77, true, h225.Alerting, append(common(77, multi()...), per.F("destinationInfo", kindOfEndpoint()))...)), near); m.Type != q931.ReleaseComplete || m.CallRef != 77 {
		t.Errorf("a message of no call was answered by %v", m.Type)
	}
	b.closed(near)
	b.empty()
}

// TestQuietConnections: keep-alives pass; a connection without a call ends after a time, one with a call does not.
func TestQuietConnections(t *testing.T) {
	b := newBench(t, nil)
	near, far := b.talk(1, aliceAt)
	b.say(far, connect(t, 1))
	if a := b.say(near, nil); len(a) != 1 || a[0].Conn != far || !bytes.Equal(a[0].Data, []byte{3, 0, 0, 4}) {
		t.Errorf("a keep-alive became %v", a)
	}
	idle := b.connect(carolAt)
	if a := b.tick(idleTime - time.Second); len(a) != 0 {
		t.Errorf("too early: %v", a)
	}
	if a := b.tick(time.Second); len(a) != 1 || a[0].Kind != Close || a[0].Conn != idle {
		t.Errorf("after the time: %v", a)
	}
	b.tick(time.Hour)
	if len(b.core.calls) != 1 {
		t.Error("the call has ended")
	}
}

// TestLimits: calls of one host, of all, on one connection, and messages that wait.
func TestLimits(t *testing.T) {
	b := newBench(t, func(c *Config, _ *Deps) { c.PerSource, c.MaxCalls = 2, 3 })
	refused := func(from netip.AddrPort, n byte) bool {
		id := b.connect(from)
		for _, m := range sent(t, b.say(id, setup(t, n, from, "bob")), id) {
			return m.Type == q931.ReleaseComplete
		}
		return false
	}
	for i, want := range []bool{false, false, true} {
		if got := refused(aliceAt, byte(i+1)); got != want {
			t.Errorf("call %d of a host: refused %v", i, got)
		}
	}
	if refused(carolAt, 4) || !refused(carolAt, 5) {
		t.Error("the third call of all must pass, and the fourth not")
	}
	b = newBench(t, nil)
	near := b.connect(aliceAt)
	for n := range maxLegCalls + 1 {
		b.say(near, setup(t, byte(n+1), aliceAt, "bob"))
	}
	if len(b.core.calls) != maxLegCalls || b.core.counts.refused[refusedLimit] != 1 {
		t.Errorf("%d calls on a connection", len(b.core.calls))
	}
	for range 2 * maxQueued {
		b.say(near, facility(t, 1, false, "undefinedReason"))
	}
	if n := b.core.counts.dropped[droppedQueue]; n != maxQueued+1 {
		t.Errorf("%d messages did not wait", n)
	}
	b.closed(near)
	b.empty()
	b.core.Drain()
	if !refused(carolAt, 9) {
		t.Error("a call after Drain")
	}
}

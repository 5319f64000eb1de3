package turn

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// cpu returns what this process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// closes fails the test unless the server closes the connection, without an octet.
func closes(t *testing.T, c net.Conn, what string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
		t.Errorf("%s: %d octets, %v", what, n, err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error) //nolint:errorlint // a net.Conn gives it as it is
	return ok && ne.Timeout()
}

// TestFrames: lengths at which pion's reader spins, and frames that are none, end the connection at once.
func TestFrames(t *testing.T) {
	b := serve(t, nil)
	begin := cpu(t)
	for _, transport := range []string{"tcp", "tls"} {
		for _, head := range []string{
			"\x40\x00\xff\xfc", "\x40\x00\xff\xff", "\x00\x03\xff\xec\x21\x12\xa4\x42", "\x00\x03\xff\xfc\x21\x12\xa4\x42", "\x00\x01\x00\x03\x21\x12\xa4\x42",
			"\x00\x01\x00\x00\x00\x00\x00\x00", "GET / HTTP/1.1\r\n", "\x16\x03\x01\x00\x2d", "\xff\xff\xff\xff",
		} {
			c := b.dial(transport)
			if _, err := c.Write(append([]byte(head), make([]byte, 16)...)); err != nil {
				t.Fatal(err)
			}
			closes(t, c, fmt.Sprintf("%s %x", transport, head))
		}
	}
	// A tenth of a second of a busy core for each would be 1.8 s; handshakes take some milliseconds each.
	if used := cpu(t) - begin; used > 1500*time.Millisecond {
		t.Errorf("%v of CPU time for 18 connections", used)
	}
}

// TestLongFrame: who has an allocation may send the longest ChannelData, in pieces; its neighbours in the stream stay whole.
func TestLongFrame(t *testing.T) {
	b := serve(t, nil)
	peer := echo(t)
	r := b.raw("tcp", testUser, testPass)
	r.allocate(nil)
	if code, _ := r.do(channelBind, func(w *composer) { w.uint32(attrChannelNumber, 0x4000<<16); peerAt(peer.LocalAddr().String())(w) }); code != 0 {
		t.Fatal(code)
	}
	var all []byte
	for _, n := range []int{0xFFFF, 1, 2, 3, 5, 1400} { // the first is too long for a datagram
		all = append(all, channelFrame(0x4000, bytes.Repeat([]byte{byte(n)}, n), true)...)
	}
	for len(all) > 0 {
		n := min(len(all), 1+rand.IntN(3000))
		if _, err := r.conn.Write(all[:n]); err != nil {
			t.Fatal(err)
		}
		all = all[n:]
	}
	for _, n := range []int{1, 2, 3, 5, 1400} {
		got, err := r.read(20 * time.Second)
		if err != nil || !bytes.Equal(got, channelFrame(0x4000, bytes.Repeat([]byte{byte(n)}, n), true)) {
			t.Fatalf("%d octets: %x, %v", n, got[:min(len(got), 20)], err)
		}
	}
}

func channelFrame(number uint16, data []byte, stream bool) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, number), uint16(len(data)))
	b = append(b, data...)
	for stream && len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// TestShortPeer: a Send indication that ends in an XOR-PEER-ADDRESS without a value, by which v2 dies, and its like.
func TestShortPeer(t *testing.T) {
	b := serve(t, nil)
	r := b.raw("udp", testUser, testPass)
	r.allocate(nil)
	for size := range 24 {
		w := compose(nil, indication, sendData, r.txid()).text(attrData, "1234")
		if _, err := r.conn.Write(w.attr(attrXORPeerAddress, make([]byte, size)).b); err != nil {
			t.Fatal(err)
		}
		if size == 8 || size == 20 {
			continue // the length that it may have
		}
		for _, m := range []method{createPermission, channelBind} {
			if _, err := r.conn.Write(r.signed(m, r.txid(), func(w *composer) { w.attr(attrXORPeerAddress, make([]byte, size)) })); err != nil {
				t.Fatal(err)
			}
		}
	}
	if code, _ := r.do(refresh, nil); code != 0 {
		t.Errorf("the allocation is gone: %d", code)
	}
}

// TestHandshakes: connections whose handshake fails or never comes are closed, and no descriptor is left.
func TestHandshakes(t *testing.T) {
	b := serve(t, nil)
	before := descriptors(t)
	var conns []net.Conn
	for i := range 30 {
		c, err := net.Dial("tcp4", b.tls.String())
		if err != nil {
			t.Fatal(err)
		}
		if i%3 != 0 { // the others are silent, and have handshakeTime
			_, _ = c.Write([]byte("no hello at all, but more than five octets"))
		}
		conns = append(conns, c)
	}
	for i, c := range conns {
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		for { // an alert may come
			if _, err := c.Read(make([]byte, 100)); err != nil {
				if isTimeout(err) {
					t.Errorf("connection %d is open", i)
				}
				break
			}
		}
		c.Close()
	}
	eventually(t, "all descriptors are closed", func() bool { return descriptors(t) <= before })
}

// TestSilence: connections that do not log in, or dribble, are closed after authTime; unfinished frames take no memory.
func TestSilence(t *testing.T) {
	b := serve(t, nil)
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	before := mem.HeapAlloc
	var conns []net.Conn
	for i := range 120 {
		c := b.dial("tcp")
		switch i % 3 {
		case 1: // a frame that is long and never whole
			_, _ = c.Write(append([]byte("\x00\x03\x06\x00\x21\x12\xa4\x42"), make([]byte, 1000)...))
		case 2: // a STUN request again and again, never signed
			_, _ = c.Write(compose(nil, request, binding, [12]byte{1}).b)
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		conns = append(conns, c)
	}
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if grown := int64(mem.HeapAlloc) - int64(before); grown > 120*20_000 {
		t.Errorf("%d octets for 120 connections", grown)
	}
	end := time.Now().Add(authTime + 30*time.Second)
	for i, c := range conns {
		c.SetReadDeadline(end)
		if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
}

// TestNames: user names and realms that are no text harm nobody and log in nowhere.
func TestNames(t *testing.T) {
	b := serve(t, func(c *Config, d *Deps) { d.Secrets = []string{"s"} })
	r := b.raw("udp", testUser, testPass)
	r.do(refresh, nil)
	for _, name := range []string{"%s%n", "a\nb", "a\x00b", strings.Repeat("u", 600), strings.Repeat("u", 763), "\xff\xfe", "", ":", "9999999999999999999:x", "-5:x"} {
		w := compose(nil, request, allocate, r.txid()).attr(attrRequestedProto, []byte{17, 0, 0, 0}).text(attrUsername, name)
		if code, _ := r.ask(w.text(attrRealm, testRealm).text(attrNonce, r.nonce).sign(r.key).b); code != 401 {
			t.Errorf("%q: %d", name, code)
		}
	}
	w := compose(nil, request, allocate, r.txid()).attr(attrRequestedProto, []byte{17, 0, 0, 0}).text(attrUsername, testUser)
	if code, _ := r.ask(w.text(attrRealm, "other").text(attrNonce, r.nonce).sign(longTermKey(testUser, "other", testPass)).b); code != 401 {
		t.Errorf("a realm of the client's choice: %d", code)
	}
}

// TestGarbage: what is no STUN is dropped without an answer.
func TestGarbage(t *testing.T) {
	b := serve(t, nil)
	r := b.raw("udp", testUser, testPass)
	for _, text := range []string{
		"", "\x00", "\x16\xfe\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x80\x00\x00\x00", "\xc0\x00\x00\x01", "\x40\x00\x00\x00", "\x40\x00\xff\xff",
		"\x01\x01\x00\x00\x21\x12\xa4\x42aaaabbbbcccc", "\x00\x16\x00\x00\x21\x12\xa4\x42aaaabbbbcccc", "\x00\x03\x00\x04\x21\x12\xa4\x42aaaabbbbcccc",
		"\x00\x17\x00\x00\x21\x12\xa4\x42aaaabbbbcccc", "\x0f\xff\x00\x00\x21\x12\xa4\x42aaaabbbbcccc",
	} {
		if _, err := r.conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	r.silent("garbage")
}

// TestStrangers: 20,000 unauthenticated requests of as many sources leave nothing behind.
func TestStrangers(t *testing.T) {
	b := serve(t, func(c *Config, _ *Deps) { c.Challenges = 10 })
	ep := b.s.endpoint("lo", "udp")
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	before := mem.HeapAlloc
	var to void
	var n session
	for i := range 20_000 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 4000)
		o := origin{tuple: tuple{client: from, local: b.udp}, ep: ep, to: &to}
		if b.s.control(o, compose(nil, request, allocate, [12]byte{byte(i)}).attr(attrRequestedProto, []byte{17, 0, 0, 0}).b, &n) != nil {
			t.Fatal("an unsigned request reaches the engine")
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if grown := int64(mem.HeapAlloc) - int64(before); grown > 1<<20 {
		t.Errorf("%d octets for 20,000 strangers", grown)
	}
	if to.n < 10_000 {
		t.Errorf("%d of 20,000 sources were answered", to.n)
	}
}

// void takes answers.
type void struct{ n int }

func (v *void) reply(netip.AddrPort, []byte) error {
	v.n++
	return nil
}

// TestReplyAfterTLS: octets in one-byte records are frames as well.
func TestReplyAfterTLS(t *testing.T) {
	b := serve(t, nil)
	c := b.dial("tls").(*tls.Conn)
	for _, octet := range compose(nil, request, binding, [12]byte{7}).b {
		if _, err := c.Write([]byte{octet}); err != nil {
			t.Fatal(err)
		}
	}
	r := &raw{t: t, conn: c, stream: true}
	got, err := r.read(20 * time.Second)
	var m message
	if err != nil || m.parse(got) != "" || xorAddress(m.get(attrXORMappedAddress), m.txid()) != pinhole.AddrPortOf(c.LocalAddr()) {
		t.Errorf("%x, %v", got, err)
	}
}

// TestBandwidth: two allocations that send to each other in a loop are held to their bandwidth.
func TestBandwidth(t *testing.T) {
	b := newBudget(10_000)
	now := b.at
	passed := 0
	for range 1000 {
		if b.takeAt(100, now) {
			passed++
		}
	}
	if passed != 100 || b.takeAt(100, now.Add(5*time.Millisecond)) || !b.takeAt(100, now.Add(11*time.Millisecond)) {
		t.Errorf("%d of 1,000 passed", passed)
	}
	s := serve(t, func(c *Config, _ *Deps) { c.Quota.Bandwidth = 2 * maxRelayed })
	r, peer := s.raw("udp", testUser, testPass), echo(t)
	r.allocate(nil)
	r.do(createPermission, peerAt(peer.LocalAddr().String()))
	for range 300 {
		w := compose(nil, indication, sendData, r.txid()).address(attrXORPeerAddress, pinhole.AddrPortOf(peer.LocalAddr()), true)
		if _, err := r.conn.Write(w.attr(attrData, make([]byte, 1000)).b); err != nil {
			t.Fatal(err)
		}
	}
	if code, _ := r.do(refresh, nil); code != 0 { // handled after them
		t.Fatal(code)
	}
	if got := s.s.Allocations()[0].FromClient; got == 0 || got > 100_000 {
		t.Errorf("%d octets passed of 300,000", got)
	}
}

// TestPackets: packets are counted as octets are, each way for itself.
func TestPackets(t *testing.T) {
	s := serve(t, func(c *Config, _ *Deps) { c.Quota.Packets = 20 })
	r, peer := s.raw("udp", testUser, testPass), echo(t)
	r.allocate(nil)
	r.do(createPermission, peerAt(peer.LocalAddr().String()))
	begin := time.Now()
	for range 100 {
		w := compose(nil, indication, sendData, r.txid()).address(attrXORPeerAddress, pinhole.AddrPortOf(peer.LocalAddr()), true)
		if _, err := r.conn.Write(w.text(attrData, "x").b); err != nil {
			t.Fatal(err)
		}
	}
	if code, _ := r.do(refresh, nil); code != 0 { // handled after them
		t.Fatal(code)
	}
	most := 20 * (2 + uint64(time.Since(begin).Seconds()))
	if got := s.s.Allocations()[0].FromClient; got < 20 || got > most || most < 100 && s.dropped("packets") == 0 {
		t.Errorf("%d of 100 packets passed, %d were to be the most; %d are counted", got, most, s.dropped("packets"))
	}
}

// TestStorm: two allocations whose owners permit each other and send back what comes are held to their rate, so a packet between
// them does not keep the server busy.
func TestStorm(t *testing.T) {
	b := serve(t, func(c *Config, _ *Deps) { c.Quota.Packets = 50 })
	var relays [2]netip.AddrPort
	var clients [2]*raw
	for i := range clients {
		clients[i] = b.raw("udp", testUser, testPass)
		relays[i] = clients[i].allocate(nil)
	}
	for i, c := range clients {
		other := relays[1-i]
		if code, _ := c.do(channelBind, func(w *composer) { w.uint32(attrChannelNumber, 0x4000<<16).address(attrXORPeerAddress, other, true) }); code != 0 {
			t.Fatal(code)
		}
	}
	for range 120 { // more in flight than may pass in a second
		if _, err := clients[0].conn.Write(channelFrame(0x4000, []byte("storm"), false)); err != nil {
			t.Fatal(err)
		}
	}
	begin, end := time.Now(), make(chan int, 2)
	for _, c := range clients {
		go func() {
			n, buf := 0, make([]byte, 100)
			for c.conn.SetReadDeadline(begin.Add(2*time.Second)) == nil {
				m, err := c.conn.Read(buf)
				if err != nil {
					break
				}
				n++
				_, _ = c.conn.Write(buf[:m]) // and twice, so that nothing but the limit ends it
				_, _ = c.conn.Write(buf[:m])
			}
			end <- n
		}()
	}
	passed := <-end + <-end
	// Each of the two may have a second's worth at once and then 50 a second: in 2 s at most 150, both 300.
	if most := 2 * 50 * (2 + int(time.Since(begin).Seconds())); passed == 0 || passed > most || b.dropped("packets") == 0 {
		t.Errorf("%d packets have passed, %d were to be the most; %d dropped", passed, most, b.dropped("packets"))
	}
}

// TestPortSweep: EVEN-PORT without a reservation, again and again, leaves no port behind; nor does one with.
func TestPortSweep(t *testing.T) {
	b := serve(t, nil)
	r := b.raw("udp", testUser, testPass)
	for i := range 60 {
		octet := byte(i%2) << 7
		r.allocate(func(w *composer) { w.attr(attrEvenPort, []byte{octet}) })
		if code, _ := r.do(refresh, func(w *composer) { w.uint32(attrLifetime, 0) }); code != 0 {
			t.Fatal(code)
		}
	}
	eventually(t, "the ports of ended allocations are closed", func() bool { return b.ports.count() <= 30 }) // those that are held
	b.s.dropReservations()
	eventually(t, "all are closed", func() bool { return b.ports.count() == 0 })
}

// TestQuotaReturns: however an allocation ends, the quota counts it no more: by a lifetime that is over, by the end of its
// connection, by a port that could not be had.
func TestQuotaReturns(t *testing.T) {
	b := serve(t, func(c *Config, _ *Deps) { c.Quota.PerUser = 1 })
	free := func(what string) {
		t.Helper()
		eventually(t, what, func() bool {
			b.s.mu.RLock()
			defer b.s.mu.RUnlock()
			return len(b.s.perUser) == 0 && len(b.s.allocs) == 0
		})
	}
	r := b.raw("tcp", testUser, testPass)
	r.allocate(nil)
	r.conn.Close()
	free("the connection has ended")
	b.ports.mu.Lock()
	b.ports.full = true
	b.ports.mu.Unlock()
	r = b.raw("udp", testUser, testPass)
	if code, _ := r.do(allocate, udpAllocation); code != 508 {
		t.Fatal(code)
	}
	free("there was no port")
	b.ports.mu.Lock()
	b.ports.full = false
	b.ports.mu.Unlock()
	r.allocate(nil)
	// What pion does when the lifetime is over; 600 s are the least that a client may ask for.
	for _, a := range b.s.list() {
		b.s.deleted(net.UDPAddrFromAddrPort(a.from.client), net.UDPAddrFromAddrPort(a.from.local), "", a.id, "")
	}
	free("the lifetime is over")
	r = b.raw("udp", testUser, testPass)
	r.allocate(nil)
	if code, _ := b.raw("udp", testUser, testPass).do(allocate, udpAllocation); code != 486 {
		t.Errorf("the second of a user: %d", code)
	}
}

// FuzzMessage: no message panics, and what is read of one can be composed again.
func FuzzMessage(f *testing.F) {
	key := []byte("key")
	f.Add(compose(nil, request, binding, [12]byte{1}).fingerprint(true).b)
	f.Add(compose(nil, request, allocate, [12]byte{2}).attr(attrRequestedProto, []byte{17, 0, 0, 0}).text(attrUsername, "u").sign(key).fingerprint(true).b)
	f.Add(compose(nil, request, createPermission, [12]byte{3}).address(attrXORPeerAddress, netip.MustParseAddrPort("[2001:db8::1]:1"), true).sign(key).b)
	f.Add(compose(nil, indication, sendData, [12]byte{4}).attr(attrXORPeerAddress, nil).b)
	f.Add([]byte("\x00\x03\xff\xec\x21\x12\xa4\x42aaaabbbbcccc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if m.parse(b) != "" {
			return
		}
		m.signedWith(key)
		w := compose(nil, m.class, m.method, m.txid())
		for _, a := range m.attrs {
			xorAddress(a.val, m.txid())
			w.attr(a.typ, a.val)
		}
		var again message
		if why := again.parse(w.fingerprint(m.fingerprint).b); why != "" || len(again.attrs) != len(m.attrs) || again.method != m.method || again.class != m.class {
			t.Fatalf("%x composed again as %x: %s", b, w.b, why)
		}
		for i, a := range again.attrs {
			if a.typ != m.attrs[i].typ || !bytes.Equal(a.val, m.attrs[i].val) {
				t.Fatalf("attribute %d: %x, was %x", i, a, m.attrs[i])
			}
		}
	})
}

// FuzzClient: a client with an allocation signs whatever attributes: nothing panics, and the allocation lives.
func FuzzClient(f *testing.F) {
	f.Add(uint16(createPermission), []byte{0, attrXORPeerAddress, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7})
	f.Add(uint16(channelBind), []byte{0, attrChannelNumber, 0, 4, 0x40, 0, 0, 0, 0, attrXORPeerAddress, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7})
	f.Add(uint16(refresh), []byte{0, attrLifetime, 0, 4, 0, 0, 0, 0})
	f.Add(uint16(allocate), []byte{0, attrEvenPort, 0, 1, 0x80, 0, 0, 0})
	nets := pinhole.Networks{"lo": {Addresses: []netip.Addr{lo4, lo6}}}
	s, err := New(testConfig(), Deps{Networks: nets, Ports: &testPorts{nets: nets}, Streams: testStreams{}}, nopLog())
	if err != nil {
		f.Fatal(err)
	}
	ep := s.endpoint("lo", "udp")
	key := longTermKey(testUser, testRealm, testPass)
	f.Fuzz(func(t *testing.T, m uint16, attrs []byte) {
		client := netip.MustParseAddrPort("127.0.0.1:4000")
		o := origin{tuple: tuple{client: client, local: netip.AddrPortFrom(lo4, 3478), stream: m&1 == 1}, ep: ep, to: &void{}}
		var n session
		w := compose(nil, request, method(m&0xFFF), [12]byte{1})
		w.b = append(w.b, attrs[:len(attrs)&^3]...)
		b := w.text(attrUsername, testUser).text(attrRealm, testRealm).text(attrNonce, s.nonces.make(client, time.Now())).sign(key).b
		if got := s.control(o, b, &n); got != nil {
			var again message
			if why := again.parse(got); why != "" || !again.signedWith(key) {
				t.Fatalf("for the engine: %s: %x", why, got)
			}
		}
		n.settle()
		if s.Open() != 0 {
			t.Fatal("an allocation is left")
		}
		s.dropReservations()
	})
}

// FuzzServer: a client with an allocation sends whatever it likes, signed or not, to a running server over UDP and TCP; no
// message of its ends the server, and its next request is answered.
func FuzzServer(f *testing.F) {
	f.Add(uint16(createPermission), true, []byte{0, attrXORPeerAddress, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7})
	f.Add(uint16(channelBind), true, []byte{0, attrChannelNumber, 0, 4, 0x40, 0, 0, 0, 0, attrXORPeerAddress, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7})
	f.Add(uint16(refresh), true, []byte{0, attrLifetime, 0, 4, 0, 0, 0, 0})
	f.Add(uint16(sendData), false, []byte{0, attrXORPeerAddress, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 0, attrData, 0, 4, 1, 2, 3, 4})
	f.Add(uint16(0x4000), false, []byte("\x40\x00\x00\x04abcd"))
	f.Add(uint16(connect), true, []byte{0, attrXORPeerAddress, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7})
	b := serve(f, func(c *Config, _ *Deps) { c.Quota.PerUser = 1000 })
	f.Cleanup(b.s.dropReservations) // which EVEN-PORT may have made
	clients := map[string]*raw{"udp": b.raw("udp", testUser, testPass), "tcp": b.raw("tcp", testUser, testPass)}
	f.Fuzz(func(t *testing.T, m uint16, sign bool, body []byte) {
		body = body[:min(len(body), 1200)]
		for transport, r := range clients {
			b.t, r.t = t, t
			frame := body
			if r.stream { // half a frame would take what follows for its other half
				frame = channelFrame(m, body, true)
			}
			if m < 0x4000 {
				w := compose(nil, class(m>>12&3), method(m&0xFFF), [12]byte{'f', 'u', 'z', 'z'})
				w.b = append(w.b, body[:len(body)&^3]...)
				binary.BigEndian.PutUint16(w.b[2:], uint16(len(w.b)-headerSize))
				if sign {
					w.text(attrUsername, testUser).text(attrRealm, testRealm).text(attrNonce, r.nonce).sign(r.key)
				}
				frame = w.b
			}
			_, _ = r.conn.Write(frame) // a stream may have been closed for the input before
			if clients[transport] = b.answers(transport, r); clients[transport] == nil {
				t.Fatalf("%s: no answer after %x", transport, frame)
			}
		}
	})
}

// answers returns a client that the server answers and that has an allocation: this one, or in the place of a stream that the server
// has closed a new one; nil if there is no answer.
func (b *bench) answers(transport string, r *raw) *raw {
	for range 4 {
		for _, m := range []method{refresh, allocate} {
			switch code := r.asked(m); {
			case code == 0:
				return r
			case code == 438, code == 437, code == 401:
				continue
			}
			break
		}
		if r.stream && !r.open() {
			r.conn.Close()
			r = b.raw(transport, testUser, testPass)
		}
	}
	return nil
}

// asked sends a request and returns the code of its answer, -1 if there is none.
func (r *raw) asked(m method) int {
	id := r.txid()
	id[10] = byte(rand.IntN(256))
	_, _ = r.conn.Write(r.signed(m, id, func(w *composer) {
		if m == allocate {
			udpAllocation(w)
		}
	}))
	for {
		got, err := r.read(10 * time.Second)
		var a message
		switch {
		case err != nil:
			return -1
		case a.parse(got) != "" || a.txid() != id:
			continue
		case a.class == success:
			return 0
		}
		if n := a.get(attrNonce); n != nil {
			r.nonce = string(n)
		}
		e := a.get(attrErrorCode)
		return int(e[2])*100 + int(e[3])
	}
}

// open tells whether a stream still is.
func (r *raw) open() bool {
	_, err := r.conn.Write(nil)
	r.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, readErr := r.conn.Read(make([]byte, 1))
	return err == nil && (readErr == nil || isTimeout(readErr))
}

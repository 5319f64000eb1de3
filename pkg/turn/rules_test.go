package turn

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"edged.dev/edged/pkg/pinhole"
)

// raw is a client that sends what it is told to.
type raw struct {
	t      testing.TB
	conn   net.Conn
	stream bool
	user   string
	key    []byte
	nonce  string
	next   byte
}

func (b *bench) raw(transport, user, password string) *raw {
	b.t.Helper()
	r := &raw{t: b.t, user: user, key: longTermKey(user, testRealm, password), stream: transport != "udp"}
	if r.stream {
		r.conn = b.dial(transport)
	} else {
		c, err := net.Dial("udp4", b.udp.String())
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { c.Close() })
		r.conn = c
	}
	return r
}

func (r *raw) txid() [12]byte {
	r.next++
	return [12]byte{'t', 'e', 's', 't', 11: r.next}
}

// signed composes a request with everything that long-term credentials need.
func (r *raw) signed(m method, id [12]byte, add func(*composer)) []byte {
	w := compose(nil, request, m, id)
	if add != nil {
		add(w)
	}
	return w.text(attrUsername, r.user).text(attrRealm, testRealm).text(attrNonce, r.nonce).sign(r.key).b
}

// do sends a signed request, logging in first if need be, and returns the answer's code (0 = success) and message.
func (r *raw) do(m method, add func(*composer)) (int, *message) {
	r.t.Helper()
	for range 2 {
		code, a := r.ask(r.signed(m, r.txid(), add))
		if code != 438 {
			return code, a
		}
		r.nonce = string(a.get(attrNonce))
	}
	r.t.Fatal("a nonce just given is stale")
	return 0, nil
}

// ask sends a request as it is and waits for its answer.
func (r *raw) ask(b []byte) (int, *message) {
	r.t.Helper()
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatal(err)
	}
	for {
		got, err := r.read(20 * time.Second)
		if err != nil {
			r.t.Fatalf("no answer to %x: %v", b[:20], err)
		}
		var m message
		if why := m.parse(got); why != "" {
			r.t.Fatalf("the answer is %s: %x", why, got)
		}
		if m.txid() != [12]byte(b[8:20]) {
			continue
		}
		if m.integrity > 0 && !m.signedWith(r.key) {
			r.t.Error("an answer is signed wrongly")
		}
		if m.class == success {
			return 0, &m
		}
		e := m.get(attrErrorCode)
		return int(e[2])*100 + int(e[3]), &m
	}
}

// read returns the next datagram or frame.
func (r *raw) read(wait time.Duration) ([]byte, error) {
	r.conn.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 70000)
	if !r.stream {
		n, err := r.conn.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(r.conn, buf[:4]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(buf[2:])) + 4
	if buf[0]>>6 == 0 {
		n += 16
	}
	n = (n + 3) &^ 3
	_, err := io.ReadFull(r.conn, buf[4:n])
	return buf[:n], err
}

// silent fails the test if anything comes.
func (r *raw) silent(what string) {
	r.t.Helper()
	if b, err := r.read(200 * time.Millisecond); err == nil {
		r.t.Errorf("%s: answered with %x", what, b)
	}
}

func udpAllocation(w *composer) { w.attr(attrRequestedProto, []byte{17, 0, 0, 0}) }

func (r *raw) allocate(more func(*composer)) netip.AddrPort {
	r.t.Helper()
	code, m := r.do(allocate, func(w *composer) {
		udpAllocation(w)
		if more != nil {
			more(w)
		}
	})
	if code != 0 {
		r.t.Fatalf("allocate: %d", code)
	}
	return xorAddress(m.get(attrXORRelayedAddress), m.txid())
}

func peerAt(text string) func(*composer) {
	return func(w *composer) { w.address(attrXORPeerAddress, netip.MustParseAddrPort(text), true) }
}

// TestRFC5769: the test vectors of STUN.
func TestRFC5769(t *testing.T) {
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = "../../../shared/corpora"
	}
	short := []byte("VOkJxbRl1RmTxUk/WvJxBt")
	for _, tt := range []struct {
		file, mapped string
		key          []byte
	}{
		{"rfc5769-1-sample-request.bin", "", short},
		{"rfc5769-2-sample-ipv4-response.bin", "192.0.2.1:32853", short},
		{"rfc5769-3-sample-ipv6-response.bin", "[2001:db8:1234:5678:11:2233:4455:6677]:32853", short},
		{"rfc5769-4-sample-request-long-term-auth.bin", "", longTermKey("マトリックス", "example.org", "TheMatrIX")},
	} {
		b, err := os.ReadFile(filepath.Join(dir, "stun-turn", tt.file))
		if err != nil {
			t.Skip("SKIPPED: the corpora are missing: ", err)
		}
		var m message
		if why := m.parse(b); why != "" || !m.signedWith(tt.key) || m.signedWith([]byte("x")) {
			t.Errorf("%s: %q, signed rightly %v", tt.file, why, m.signedWith(tt.key))
		}
		if tt.mapped != "" {
			if got := xorAddress(m.get(attrXORMappedAddress), m.txid()); got != netip.MustParseAddrPort(tt.mapped) {
				t.Errorf("%s: %s", tt.file, got)
			}
			again := compose(nil, m.class, m.method, m.txid()).address(attrXORMappedAddress, netip.MustParseAddrPort(tt.mapped), true)
			if !bytes.Contains(b, again.b[headerSize:]) {
				t.Errorf("%s: composed as %x", tt.file, again.b)
			}
		}
		for i := range b { // every octet is protected by the fingerprint, or by the signature
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if m.parse(bad) == "" && m.signedWith(tt.key) && i < len(b)-8 {
				t.Errorf("%s: octet %d can be changed", tt.file, i)
			}
		}
	}
}

// TestRules: what RFC 8656 says to requests, and where the edge is stricter.
func TestRules(t *testing.T) {
	b := serve(t, func(c *Config, _ *Deps) { c.Quota.Permissions = 8 })
	lifetimeIs := func(v uint32) func(*composer) { return func(w *composer) { w.uint32(attrLifetime, v) } }
	for _, transport := range []string{"udp", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			b := *b
			b.t = t
			r := b.raw(transport, testUser, testPass)
			is := func(what string, m method, want int, add func(*composer)) *message {
				t.Helper()
				code, a := r.do(m, add)
				if code != want {
					t.Errorf("%s: %d, want %d", what, code, want)
				}
				return a
			}
			for _, m := range []method{refresh, createPermission, channelBind, connect} {
				is(m.String()+" without allocation", m, 437, peerAt("127.0.0.1:1"))
			}
			is("no transport", allocate, 400, nil)
			is("transport 99", allocate, 442, func(w *composer) { w.attr(attrRequestedProto, []byte{99, 0, 0, 0}) })
			is("family 5", allocate, 440, func(w *composer) { udpAllocation(w); w.attr(attrRequestedFamily, []byte{5, 0, 0, 0}) })
			is("token and even port", allocate, 400, func(w *composer) {
				udpAllocation(w)
				w.attr(attrEvenPort, []byte{0}).text(attrReservationToken, "12345678")
			})
			is("a token of nobody", allocate, 508, func(w *composer) { udpAllocation(w); w.text(attrReservationToken, "12345678") })
			if a := is("DONT-FRAGMENT", allocate, 420, func(w *composer) { udpAllocation(w); w.attr(attrDontFragment, nil) }); !bytes.Equal(a.get(attrUnknown), []byte{0, attrDontFragment}) {
				t.Errorf("unknown attributes %x", a.get(attrUnknown))
			}
			if transport == "udp" {
				is("TCP relayed by UDP", allocate, 400, func(w *composer) { w.attr(attrRequestedProto, []byte{6, 0, 0, 0}) })
			}
			a := is("allocate", allocate, 0, func(w *composer) { udpAllocation(w); w.uint32(attrLifetime, 1) })
			if got := binary.BigEndian.Uint32(a.get(attrLifetime)); got != 600 || a.get(attrReservationToken) != nil {
				t.Errorf("lifetime %d, token %x", got, a.get(attrReservationToken))
			}
			is("allocate again", allocate, 437, udpAllocation)
			for ask, want := range map[uint32]uint32{1: 600, 1200: 1200, 3600: 3600, 100000: 3600} {
				if got := binary.BigEndian.Uint32(is("refresh", refresh, 0, lifetimeIs(ask)).get(attrLifetime)); got != want {
					t.Errorf("lifetime %d for %d", got, want)
				}
			}
			is("refresh of another family", refresh, 443, func(w *composer) { w.attr(attrRequestedFamily, []byte{2, 0, 0, 0}) })
			for number, want := range map[uint16]int{0x3FFF: 400, 0x8000: 400, 0x7FFF: 400, 0x4000: 0, 0x7FFE: 0} {
				is(fmt.Sprintf("channel %x", number), channelBind, want, func(w *composer) {
					w.uint32(attrChannelNumber, uint32(number)<<16)
					w.address(attrXORPeerAddress, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), number), true)
				})
			}
			is("the peer of another channel", channelBind, 400, func(w *composer) {
				w.uint32(attrChannelNumber, 0x4001<<16)
				w.address(attrXORPeerAddress, netip.MustParseAddrPort("127.0.0.1:16384"), true)
			})
			is("a channel to a denied peer", channelBind, 403, func(w *composer) { w.uint32(attrChannelNumber, 0x4002<<16); peerAt("10.0.0.1:1")(w) })
			is("a channel to a denied port", channelBind, 403, func(w *composer) { w.uint32(attrChannelNumber, 0x4002<<16); peerAt("127.0.0.1:53")(w) })
			is("no peer", createPermission, 400, nil)
			is("a peer of the other family", createPermission, 443, peerAt("[2400::1]:1"))
			is("connect at an allocation of UDP", connect, 400, peerAt("127.0.0.1:2000"))
			if transport == "tcp" {
				is("a connection of nobody", connectionBind, 400, func(w *composer) { w.uint32(attrConnectionID, 5) })
			}
			r.user, r.key = "bob", longTermKey("bob", testRealm, "secret")
			for _, m := range []method{refresh, createPermission, channelBind} {
				is(m.String()+" of another user", m, 441, peerAt("127.0.0.1:1"))
			}
			r.key = []byte("wrong")
			is("wrong password", refresh, 401, nil)
			r.user, r.key = testUser, longTermKey(testUser, testRealm, testPass)
			if got := is("end", refresh, 0, lifetimeIs(0)).get(attrLifetime); binary.BigEndian.Uint32(got) != 0 {
				t.Errorf("lifetime %x after the end", got)
			}
			is("end again", refresh, 437, lifetimeIs(0))
		})
	}
}

// TestRetransmission: an Allocate whose answer is lost gets the same one again.
func TestRetransmission(t *testing.T) {
	b := serve(t, nil)
	r := b.raw("udp", testUser, testPass)
	r.do(refresh, nil) // for the nonce
	req := r.signed(allocate, r.txid(), udpAllocation)
	_, first := r.ask(req)
	_, second := r.ask(req)
	if first.class != success || !bytes.Equal(first.raw, second.raw) || b.s.Open() != 1 {
		t.Errorf("%x\n%x\n%d allocations", first.raw, second.raw, b.s.Open())
	}
}

// TestPermissionsAllOrNone: of a list of peers with a denied one none is permitted, in every encoding of IPv4 in the list of advisories;
// and there are only so many.
func TestPermissionsAllOrNone(t *testing.T) {
	b := serve(t, func(c *Config, _ *Deps) { c.Quota.Permissions = 20 })
	v4, v6 := b.raw("udp", testUser, testPass), b.raw("udp", testUser, testPass)
	v4.allocate(nil)
	v6.allocate(func(w *composer) { w.attr(attrRequestedFamily, []byte{2, 0, 0, 0}) })
	for _, text := range []string{"0.0.0.0:1", "10.0.0.1:1", "169.254.169.254:80", "255.255.255.255:1", "224.0.0.1:1"} {
		if code, _ := v4.do(createPermission, func(w *composer) { peerAt("127.0.0.1:1")(w); peerAt(text)(w) }); code != 403 {
			t.Errorf("%s: %d", text, code)
		}
	}
	for _, text := range []string{
		"[::]:1", "[::127.0.0.1]:1", "[64:ff9b::a00:1]:1", "[64:ff9b::a9fe:a9fe]:1", "[2002:a9fe:a9fe::1]:1", "[fe80::1]:1", "[fc00::1]:1", "[ff02::1]:1",
	} {
		if code, _ := v6.do(createPermission, peerAt(text)); code != 403 {
			t.Errorf("%s: %d", text, code)
		}
	}
	mapped := append([]byte{0, 2, 0, 1}, make([]byte, 16)...)
	code, _ := v6.do(createPermission, func(w *composer) {
		ip := netip.MustParseAddr("::ffff:127.0.0.1").As16()
		copy(mapped[4:], xored(ip[:], [12]byte(w.b[8:20])))
		w.attr(attrXORPeerAddress, mapped)
	})
	if code != 403 {
		t.Errorf("IPv4-mapped: %d", code)
	}
	for _, a := range b.s.Allocations() {
		if a.Permissions != 0 {
			t.Errorf("%+v has permissions", a)
		}
	}
	peers := func(from, n int) func(*composer) {
		return func(w *composer) {
			for i := range n {
				w.address(attrXORPeerAddress, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(from + i)}), 1), true)
			}
		}
	}
	for _, tt := range []struct{ from, n, want int }{{0, 17, 508}, {0, 16, 0}, {16, 5, 508}, {16, 4, 0}, {0, 16, 0}, {20, 1, 508}} {
		if code, _ := v4.do(createPermission, peers(tt.from, tt.n)); code != tt.want {
			t.Errorf("%d peers from %d: %d, want %d", tt.n, tt.from, code, tt.want)
		}
	}
}

// TestEvenPort: the neighbour is held for who asks, and found by the token, once, by the same user only.
func TestEvenPort(t *testing.T) {
	b := serve(t, nil)
	r := b.raw("udp", testUser, testPass)
	code, m := r.do(allocate, func(w *composer) { udpAllocation(w); w.attr(attrEvenPort, []byte{0x80}) })
	if code != 0 || len(m.get(attrReservationToken)) != 8 || !m.signedWith(r.key) {
		t.Fatalf("%d, %x", code, m.raw)
	}
	token := bytes.Clone(m.get(attrReservationToken))
	first := xorAddress(m.get(attrXORRelayedAddress), m.txid())
	withToken := func(w *composer) { udpAllocation(w); w.attr(attrReservationToken, token) }
	if code, _ := b.raw("udp", "bob", "secret").do(allocate, withToken); code != 508 {
		t.Errorf("another user's token: %d", code)
	}
	code, m = b.raw("udp", testUser, testPass).do(allocate, withToken)
	second := xorAddress(m.get(attrXORRelayedAddress), m.txid())
	if code != 0 || first.Port()%2 != 0 || second.Port() != first.Port()+1 {
		t.Errorf("%d: %s and %s", code, first, second)
	}
	if code, _ := b.raw("udp", testUser, testPass).do(allocate, withToken); code != 508 {
		t.Errorf("the token again: %d", code)
	}
	code, m = b.raw("udp", testUser, testPass).do(allocate, func(w *composer) { udpAllocation(w); w.attr(attrEvenPort, []byte{0}) })
	if code != 0 || m.get(attrReservationToken) != nil || xorAddress(m.get(attrXORRelayedAddress), m.txid()).Port()%2 != 0 {
		t.Errorf("even port without pair: %d, %x", code, m.raw)
	}
}

// TestQuota: N+1 allocations of a user are one too many; what fails or ends is given back.
func TestQuota(t *testing.T) {
	b := serve(t, func(c *Config, _ *Deps) { c.Quota.PerUser = 3 })
	var all []*raw
	for i := range 4 {
		r := b.raw([]string{"udp", "tcp"}[i%2], testUser, testPass)
		b.ports.mu.Lock()
		b.ports.full = true
		b.ports.mu.Unlock()
		if code, _ := r.do(allocate, udpAllocation); i < 3 && code != 508 {
			t.Errorf("no port: %d", code)
		}
		b.ports.mu.Lock()
		b.ports.full = false
		b.ports.mu.Unlock()
		want := 0
		if i == 3 {
			want = 486
		}
		if code, _ := r.do(allocate, udpAllocation); code != want {
			t.Errorf("allocation %d: %d", i, code)
		}
		all = append(all, r)
	}
	if code, _ := b.raw("udp", "bob", "secret").do(allocate, udpAllocation); code != 0 {
		t.Errorf("another user: %d", code)
	}
	all[1].conn.Close() // of TCP: its allocation ends with it
	eventually(t, "the allocation of a closed connection ends", func() bool { return b.s.Open() == 3 })
	if code, _ := all[3].do(allocate, udpAllocation); code != 0 {
		t.Errorf("after one has ended: %d", code)
	}
}

// TestNonce: of another client, forged, old.
func TestNonce(t *testing.T) {
	b := serve(t, nil)
	one, two := b.raw("udp", testUser, testPass), b.raw("udp", testUser, testPass)
	one.do(refresh, nil)
	two.nonce = one.nonce
	captured := one.signed(allocate, one.txid(), udpAllocation)
	for what, req := range map[string][]byte{
		"of another client": two.signed(allocate, two.txid(), udpAllocation), "captured": captured,
	} {
		if code, _ := two.ask(req); code != 438 {
			t.Errorf("a nonce %s: %d", what, code)
		}
	}
	for _, nonce := range []string{"", "x", "AAAAAAAAAAAAAAAA", one.nonce[:15] + "!", one.nonce + "A"} {
		two.nonce = nonce
		if code, _ := two.ask(two.signed(allocate, two.txid(), udpAllocation)); code != 438 {
			t.Errorf("the nonce %q: %d", nonce, code)
		}
	}
	n, client, now := newNonces(), netip.MustParseAddrPort("192.0.2.1:4000"), time.Unix(1e9, 0)
	text := n.make(client, now)
	for age, want := range map[time.Duration]bool{0: true, 58 * time.Minute: true, 61 * time.Minute: false, 24 * time.Hour: false, -2 * time.Minute: false} {
		if got := n.valid([]byte(text), client, now.Add(age)); got != want {
			t.Errorf("after %v: %v", age, got)
		}
	}
}

// TestUnsigned: an attribute after MESSAGE-INTEGRITY is not believed, and indications need a permission.
func TestUnsigned(t *testing.T) {
	b := serve(t, nil)
	r, peer := b.raw("udp", testUser, testPass), echo(t)
	r.allocate(nil)
	id := r.txid()
	req := &composer{r.signed(createPermission, id, peerAt("127.0.0.9:1"))}
	req.address(attrXORPeerAddress, pinhole.AddrPortOf(peer.LocalAddr()), true)
	if code, _ := r.ask(req.b); code != 0 {
		t.Errorf("%d", code)
	}
	send := func() {
		w := compose(nil, indication, sendData, r.txid()).address(attrXORPeerAddress, pinhole.AddrPortOf(peer.LocalAddr()), true)
		if _, err := r.conn.Write(w.text(attrData, "hello").b); err != nil {
			t.Fatal(err)
		}
	}
	send()
	r.silent("a peer that was appended to a signed request")
	if code, _ := r.do(createPermission, peerAt(peer.LocalAddr().String())); code != 0 {
		t.Fatal(code)
	}
	send()
	got, err := r.read(20 * time.Second)
	var m message
	if err != nil || m.parse(got) != "" || string(m.get(attrData)) != "hello" || xorAddress(m.get(attrXORPeerAddress), m.txid()) != pinhole.AddrPortOf(peer.LocalAddr()) {
		t.Errorf("%x, %v", got, err)
	}
}

// TestBinding: the answer to a Binding request has 32 octets; with a fingerprint, if there was one; a wrong one is dropped.
func TestBinding(t *testing.T) {
	b := serve(t, nil)
	r := b.raw("udp", "", "")
	code, m := r.ask(compose(nil, request, binding, r.txid()).b)
	if code != 0 || len(m.raw) != 32 || xorAddress(m.get(attrXORMappedAddress), m.txid()) != pinhole.AddrPortOf(r.conn.LocalAddr()) {
		t.Errorf("%d: %x", code, m.raw)
	}
	if _, m = r.ask(compose(nil, request, binding, r.txid()).fingerprint(true).b); !m.fingerprint {
		t.Error("no fingerprint for one")
	}
	if code, _ = r.ask(compose(nil, request, binding, r.txid()).uint32(attrChangeRequest, changeIP).b); code != 420 {
		t.Errorf("CHANGE-REQUEST with one address: %d", code)
	}
	bad := compose(nil, request, binding, r.txid()).fingerprint(true).b
	bad[len(bad)-1] ^= 1
	if _, err := r.conn.Write(bad); err != nil {
		t.Fatal(err)
	}
	r.silent("a wrong fingerprint")
	challenge := compose(nil, request, allocate, r.txid()).attr(attrRequestedProto, []byte{17, 0, 0, 0}).b
	if code, m = r.ask(challenge); code != 401 || len(m.raw) > 68 {
		t.Errorf("%d: %d octets for %d", code, len(m.raw), len(challenge))
	}
}

// TestRateLimits: strangers get so many answers, and no more; users are served on.
func TestRateLimits(t *testing.T) {
	b := serve(t, func(c *Config, _ *Deps) { c.Challenges, c.Bindings = 5, 5 })
	for _, m := range []method{binding, allocate} {
		r := b.raw("udp", testUser, testPass)
		for range 200 {
			if _, err := r.conn.Write(compose(nil, request, m, r.txid()).b); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for ; ; n++ {
			if _, err := r.read(300 * time.Millisecond); err != nil {
				break
			}
		}
		if n < 5 || n > 60 { // 10 at once, and 5 a second for as long as this took
			t.Errorf("%d answers to 200 %s requests", n, m)
		}
	}
}

// TestCredentials: time-limited names, by all secrets; hashed passwords; reload.
func TestCredentials(t *testing.T) {
	hash := fmt.Sprintf("md5:%x", longTermKey("carol", testRealm, "c"))
	b := serve(t, func(c *Config, d *Deps) {
		d.Secrets, d.Users = []string{"new", "old"}, map[string]string{"carol": hash}
	})
	now := time.Now()
	for _, tt := range []struct {
		secret string
		until  time.Time
		want   int
	}{{"new", now.Add(time.Hour), 0}, {"old", now.Add(time.Hour), 0}, {"other", now.Add(time.Hour), 401}, {"new", now.Add(-time.Second), 401}} {
		name, password := Credential(tt.secret, "dave", tt.until)
		if code, _ := b.raw("udp", name, password).do(allocate, udpAllocation); code != tt.want {
			t.Errorf("%+v: %d", tt, code)
		}
	}
	if code, _ := b.raw("udp", "carol", "c").do(allocate, udpAllocation); code != 0 {
		t.Errorf("hashed: %d", code)
	}
	r := b.raw("udp", testUser, testPass)
	r.allocate(nil)
	if err := b.s.Reload(b.s.cfg, map[string]string{"carol": "md5:zz"}, nil); err == nil {
		t.Error("a bad hash is taken")
	}
	cfg := b.s.cfg
	cfg.Users = map[string]Password{"erin": "e"}
	if err := b.s.Reload(cfg, nil, nil); err != nil {
		t.Fatal(err)
	}
	if code, _ := r.do(refresh, nil); code != 401 {
		t.Errorf("a user who is no more: %d", code)
	}
	if code, _ := b.raw("udp", "erin", "e").do(allocate, udpAllocation); code != 0 {
		t.Errorf("a new user: %d", code)
	}
}

func TestStrictExpiry(t *testing.T) {
	name, _ := Credential("s", "dave", time.Unix(1000, 0))
	for _, strict := range []bool{false, true} {
		c, err := newCredentials(testRealm, nil, []string{"s"}, strict)
		if err != nil {
			t.Fatal(err)
		}
		after := time.Unix(1001, 0)
		if got := len(c.lookup(name, refresh, after)) == 0; got != strict {
			t.Errorf("strict %v: refused %v", strict, got)
		}
		if len(c.lookup(name, allocate, after)) != 0 || len(c.lookup(name, allocate, time.Unix(999, 0))) != 1 {
			t.Error("allocations by an expired name")
		}
	}
	if _, err := ParseUsers("a:b\n# c\n\nd:md5:00\n"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"a", ":b", "a:", "a:b\na:c"} {
		if _, err := ParseUsers(bad); err == nil {
			t.Errorf("%q taken", bad)
		}
	}
}

// TestAuthFailures: what is wrong with a login is counted by reason.
func TestAuthFailures(t *testing.T) {
	b := serve(t, nil)
	for _, c := range []struct{ user, password, realm, reason string }{
		{testUser, "wrong", testRealm, "password"}, {"nobody", "x", testRealm, "user"}, {testUser, testPass, "example.net", "realm"},
	} {
		r := b.raw("udp", c.user, c.password)
		r.asked(refresh) // for a nonce
		w := compose(nil, request, refresh, r.txid()).text(attrUsername, c.user).text(attrRealm, c.realm).text(attrNonce, r.nonce)
		if code, _ := r.ask(w.sign(longTermKey(c.user, c.realm, c.password)).b); code != 401 {
			t.Errorf("%s: %d", c.reason, code)
		}
		var m dto.Metric
		if err := b.s.count.authFailures.WithLabelValues(c.reason).Write(&m); err != nil || m.GetCounter().GetValue() != 1 {
			t.Errorf("%s: %v, %v", c.reason, m.GetCounter().GetValue(), err)
		}
	}
}

package msturn

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
	"time"
)

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	testID = "000102030405060708090a0b0c0d0e0f"
	// firstAllocate is what a client begins with: MAGIC-COOKIE and MS-VERSION 1.
	firstAllocate = "00030010" + testID + "000f000472c64bc6" + "8008000400000001"
)

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		ok         bool
		check      func(m message) bool
	}{
		{"first", firstAllocate, true, func(m message) bool { return m.kind == allocateRequest && m.version == 1 && m.integrity == 0 }},
		{"odd lengths", "00040014" + testID + "000f000472c64bc6" + "00060003616263" + "0013000178", true,
			func(m message) bool { return string(m.username) == "abc" && string(m.data) == "x" }},
		{"destination", "00060014" + testID + "000f000472c64bc6" + "0011000800010050c0000201", true,
			func(m message) bool { return m.dest == netip.MustParseAddrPort("192.0.2.1:80") }},
		{"the first of two", "00030018" + testID + "000f000472c64bc6" + "000d000400000001" + "000d000400000002", true, func(m message) bool { return m.lifetime == 1 }},
		{"unknown", "0003000c" + testID + "000f000472c64bc6" + "00200000", true, func(m message) bool { return m.unknown == 0x20 }},
		{"unknown, optional", "0003000c" + testID + "000f000472c64bc6" + "80200000", true, func(m message) bool { return m.unknown == 0 }},
		{"after the signature", "00030028" + testID + "000f000472c64bc6" + "00080014" + "0000000000000000000000000000000000000000" + "000d000400000001", true,
			func(m message) bool { return m.integrity == 28 && !m.hasLifetime }},
		{"length of the header", "00030011" + testID + "000f000472c64bc6" + "8008000400000001", false, nil},
		{"no cookie", "00030008" + testID + "8008000400000001", false, nil},
		{"cookie is not first", "00030010" + testID + "8008000400000001" + "000f000472c64bc6", false, nil},
		{"STUN of RFC 8489", "000300082112a442" + "000102030405060708090a0b" + "0006000474657374", false, nil},
		{"attribute too long", "0003000e" + testID + "000f000472c64bc6" + "000600030000", false, nil},
		{"half an attribute", "0003000a" + testID + "000f000472c64bc6" + "0006", false, nil},
		{"lifetime of 2 octets", "0003000e" + testID + "000f000472c64bc6" + "000d00020001", false, nil},
		{"address of family 3", "00040014" + testID + "000f000472c64bc6" + "0011000800030050c0000201", false, nil},
		{"address of no octets", "0004000c" + testID + "000f000472c64bc6" + "00110000", false, nil},
		{"short signature", "00030010" + testID + "000f000472c64bc6" + "0008000400000000", false, nil},
		{"short sequence", "00030010" + testID + "000f000472c64bc6" + "8050000400000000", false, nil},
		{"media", "80000010" + testID + "000f000472c64bc6" + "8008000400000001", false, nil},
		{"nothing", "", false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := decode(unhex(t, tt.text))
			if (err == nil) != tt.ok {
				t.Fatalf("error %v", err)
			}
			if tt.ok && !tt.check(m) {
				t.Errorf("%+v", m)
			}
		})
	}
}

// TestIntegrity: the signature is over the message before it with zeros up to 64 octets, by a key of known value.
func TestIntegrity(t *testing.T) {
	u := newUsers("example.org", map[string]Secret{"alice": "secret"}, nil)
	key := u.lookup("alice", time.Now())[0].key
	if got, want := hex.EncodeToString(key), "543e1aec5d3614f03141652d6ada51b2"; got != want { // printf alice:example.org:secret | md5sum
		t.Errorf("key %s, want %s", got, want)
	}
	b := begin(sendRequest, [16]byte(unhex(t, testID))).bytes(attrUsername, []byte("alice")).sign(key)
	// openssl's HMAC-SHA1 of the first 37 octets and 27 zeros
	if got, want := hex.EncodeToString(b[len(b)-macLen:]), "3fd8142824a17dbbb24d2ef2e099eb72b269c786"; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	m, err := decode(b)
	if err != nil || !m.signed(key) {
		t.Fatalf("own signature: %v", err)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x40
		if m, err := decode(c); err == nil && m.signed(key) {
			t.Errorf("octet %d may be changed", i)
		}
	}
}

func TestXorAddr(t *testing.T) {
	id := [16]byte(unhex(t, "a1b2c3d4000000000000000000000001"))
	v4 := begin(allocateOK, id).xorAddr(attrXorMapped, netip.MustParseAddrPort("192.0.2.1:80"))
	if got, want := hex.EncodeToString(v4[headerLen+cookieLen:]), "802000080001a1e261b2c1d5"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	v6 := begin(allocateOK, id).xorAddr(attrXorMapped, netip.MustParseAddrPort("[2001:db8::1]:80"))
	if got, want := hex.EncodeToString(v6[headerLen+cookieLen:]), "802000140002a1e281b3ce6c000000000000000000000000"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestWindow(t *testing.T) {
	var w window
	for _, s := range []struct {
		n  uint32
		ok bool
	}{{1, true}, {1, false}, {3, true}, {2, true}, {2, false}, {100, true}, {37, true}, {36, false}, {99, true}, {1 << 31, true}, {100, false}} {
		if got := w.accept(s.n); got != s.ok {
			t.Errorf("%d: %v", s.n, got)
		}
	}
}

func TestNonce(t *testing.T) {
	u, now := newUsers("example.org", nil, nil), time.Unix(1e9, 0)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	n := u.nonce(a, now)
	for _, tt := range []struct {
		name  string
		nonce []byte
		from  netip.Addr
		at    time.Time
		ok    bool
	}{
		{"fresh", n, a, now, true}, {"somebody else's", n, b, now, false}, {"old", n, a, now.Add(nonceLife), false},
		{"of the future", n, a, now.Add(-time.Minute), false}, {"none", nil, a, now, false}, {"short", n[:10], a, now, false},
		{"of another server", newUsers("example.org", nil, nil).nonce(a, now), a, now, false},
	} {
		if got := u.fresh(tt.nonce, tt.from, tt.at); got != tt.ok {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestTimeLimited(t *testing.T) {
	now := time.Unix(1e9, 0)
	u := newUsers("example.org", nil, []Secret{"new secret", "old secret"})
	if got := len(u.lookup("1000000001:alice", now)); got != 2 {
		t.Errorf("%d keys, want one for each secret", got)
	}
	if c := u.lookup("1000000001:alice", now)[0]; c.user != "alice" {
		t.Errorf("limits of %q", c.user)
	}
	for _, name := range []string{"999999999:alice", "alice", "-1:alice", "", "99999999999999999999"} {
		if u.lookup(name, now) != nil {
			t.Errorf("%q is a user", name)
		}
	}
}

// TestTrimmedPasswords: the key of a client that cuts quotes and a final zero off its password, as libnice does, is known too.
func TestTrimmedPasswords(t *testing.T) {
	u := newUsers("example.org", map[string]Secret{"alice": "\"p\"\x00", "bob": "secret", "carol": "\"\""}, nil)
	for name, want := range map[string][]string{"alice": {"\"p\"\x00", "p"}, "bob": {"secret"}, "carol": {"\"\""}} {
		got := u.lookup(name, time.Now())
		if len(got) != len(want) {
			t.Errorf("%s: %d keys, want %d", name, len(got), len(want))
			continue
		}
		for i, password := range want {
			if !bytes.Equal(got[i].key, u.key(name, []byte(password))) || got[i].user != name {
				t.Errorf("%s: key %d is not that of %q", name, i, password)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, text := range []string{
		firstAllocate, "00040014" + testID + "000f000472c64bc6" + "00060003616263" + "0013000178",
		"00060014" + testID + "000f000472c64bc6" + "0011000800010050c0000201",
		"00030024" + testID + "000f000472c64bc6" + "80500018" + testID + testID[:16],
	} {
		f.Add(unhex(f, text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		m.signed([]byte("0123456789abcdef"))
		r := begin(m.kind, m.id).bytes(attrUsername, m.username).bytes(attrNonce, m.nonce).bytes(attrData, m.data)
		if m.dest.IsValid() {
			r = r.addr(attrDestination, m.dest)
		}
		if len(r) > 60000 {
			return
		}
		again, err := decode(r.sign([]byte("key")))
		if err != nil || again.dest != m.dest || !bytes.Equal(again.data, m.data) || !bytes.Equal(again.username, m.username) || !again.signed([]byte("key")) {
			t.Errorf("%x is not what it was: %v", r, err)
		}
	})
}

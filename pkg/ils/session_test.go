package ils

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"edged.dev/edged/pkg/ils/ber"
	"edged.dev/edged/pkg/pinhole"
)

var (
	insideHost  = netip.MustParseAddr("10.77.1.2")
	otherInside = netip.MustParseAddr("10.77.1.3")
	publicAddr  = netip.MustParseAddr("198.51.100.1")
	outsideHost = netip.MustParseAddr("198.51.100.77")
)

func networks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("10.77.1.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{publicAddr}},
	}
}

// edge is what all connections of a test share.
type edge struct {
	cfg   Config
	reg   *Registry
	count *counters
}

func newEdge(change ...func(*Config)) *edge {
	cfg := DefaultConfig()
	for _, f := range change {
		f(&cfg)
	}
	return &edge{cfg, newRegistry(cfg), newCounters()}
}

// session returns a connection from a host to a server that is inside or outside.
func (e *edge) session(host netip.Addr, serverInside bool) *session {
	name := map[bool]string{true: "inside", false: "outside"}
	in := netip.MustParsePrefix("10.77.1.0/24").Contains(host)
	return &session{
		cfg: &e.cfg, nets: networks(), reg: e.reg, count: e.count, host: host,
		client: side{name[in], in}, server: side{name[serverInside], serverInside},
	}
}

// attr is an attribute with its values, of an entry to be written.
type attr []string

func str(tag byte, s string) []byte { return ber.Append(nil, tag, []byte(s)) }

func partial(a attr) []byte {
	var vals []byte
	for _, v := range a[1:] {
		vals = append(vals, str(ber.OctetString, v)...)
	}
	return ber.Append(nil, ber.Sequence, str(ber.OctetString, a[0]), ber.Append(nil, ber.Set, vals))
}

// entry writes an AddRequest or a SearchResultEntry.
func entry(id int32, op byte, dn string, attrs ...attr) []byte {
	var list []byte
	for _, a := range attrs {
		list = append(list, partial(a)...)
	}
	return envelope(id, ber.Append(nil, op, str(ber.OctetString, dn), ber.Append(nil, ber.Sequence, list)))
}

// change writes a ModifyRequest; each attribute is replaced.
func change(id int32, dn string, attrs ...attr) []byte {
	var list []byte
	for _, a := range attrs {
		list = append(list, ber.Append(nil, ber.Sequence, []byte{ber.Enumerated, 1, 2}, partial(a))...)
	}
	return envelope(id, ber.Append(nil, opModify, str(ber.OctetString, dn), ber.Append(nil, ber.Sequence, list)))
}

// equal writes an equalityMatch.
func equal(name, value string) []byte {
	return ber.Append(nil, filterEqual, str(ber.OctetString, name), str(ber.OctetString, value))
}

func and(items ...[]byte) []byte { return ber.Append(nil, filterAnd, bytes.Join(items, nil)) }

// query writes a SearchRequest.
func query(id int32, base string, filter []byte, attrs ...string) []byte {
	var list []byte
	for _, a := range attrs {
		list = append(list, str(ber.OctetString, a)...)
	}
	return envelope(id, ber.Append(nil, opSearch, str(ber.OctetString, base), []byte{10, 1, 2, 10, 1, 0, 2, 1, 0, 2, 1, 0, 1, 1, 0},
		filter, ber.Append(nil, ber.Sequence, list)))
}

// what describes an edit: the texts of all primitive elements before and after that differ.
func what(t *testing.T, before, after []byte) string {
	t.Helper()
	a, b := leaves(t, before), leaves(t, after)
	if len(a) != len(b) {
		t.Fatalf("%x has %d elements, became %x with %d", before, len(a), after, len(b))
	}
	var out []string
	for i := range a {
		if a[i] != b[i] {
			out = append(out, a[i]+">"+b[i])
		}
	}
	return strings.Join(out, " ")
}

func leaves(t *testing.T, b []byte) (out []string) {
	t.Helper()
	var down func(e ber.Element)
	down = func(e ber.Element) {
		if !e.Constructed() {
			out = append(out, string(e.Of(b)))
			return
		}
		w := ber.Walk(b, e)
		for c, ok := w.Next(); ok; c, ok = w.Next() {
			down(c)
		}
		if w.Err() != nil {
			t.Fatalf("%x: %v", b, w.Err())
		}
	}
	top, err := ber.Next(b, 0, len(b))
	if err != nil || top.End != len(b) {
		t.Fatalf("%x: %v", b, err)
	}
	down(top)
	return out
}

const (
	aliceDN = "c=-,o=Microsoft,cn=alice@example.org,objectClass=rtPerson"
	bobDN   = "c=-,o=Microsoft,cn=bob@example.org,objectClass=rtPerson"
	base    = "objectClass=RTPerson"
)

// addresses of the tests as ILS writes them
const (
	in2    = "33639690"   // 10.77.1.2
	in3    = "50416906"   // 10.77.1.3
	pub    = "23344070"   // 198.51.100.1
	pool1  = "828650438"  // 198.51.100.49
	other3 = "1298412486" // 198.51.100.77
)

func TestAddressForm(t *testing.T) {
	for _, tc := range []struct {
		in     string
		want   string
		dotted bool
	}{
		{"1613317642", "10.70.41.96", false}, // the examples of [MS-TAIL]
		{"3758139584", "192.168.0.224", false},
		{in2, "10.77.1.2", false}, {in3, "10.77.1.3", false}, {pub, "198.51.100.1", false}, {pool1, "198.51.100.49", false}, {other3, "198.51.100.77", false},
		{"10.77.1.2", "10.77.1.2", true},
		{"0", "0.0.0.0", false}, {"4294967295", "255.255.255.255", false},
		{"4294967296", "", false}, {"-1", "", false}, {"+1", "", false}, {"", "", false}, {" 1", "", false}, {"0x10", "", false}, {"1_0", "", false},
		{"10.77.1", "", false}, {"::1", "", false}, {"99999999999999999999", "", false}, {"1.2.3.4.5.6.7.8", "", false},
	} {
		a, dotted, ok := parseAddr([]byte(tc.in))
		if ok != (tc.want != "") || ok && (a.String() != tc.want || dotted != tc.dotted) {
			t.Errorf("parseAddr(%q) = %v, %v, %v; want %q", tc.in, a, dotted, ok, tc.want)
		}
		if ok && string(formatAddr(a, dotted)) != tc.in {
			t.Errorf("formatAddr(%v) = %s, want %s", a, formatAddr(a, dotted), tc.in)
		}
	}
}

func TestRequests(t *testing.T) {
	add := func(dn string, a ...attr) []byte { return entry(2, opAdd, dn, a...) }
	for _, tc := range []struct {
		name         string
		host         netip.Addr
		serverInside bool
		msg          []byte
		want         string
	}{
		{"registration", insideHost, false, add(aliceDN, attr{"cn", "alice@example.org"}, attr{"sipaddress", in2}, attr{"sport", "1503"}), in2 + ">" + pub},
		{"registration, the server's spelling", insideHost, false, add(aliceDN, attr{"IPADDRESS", in2}), in2 + ">" + pub},
		{"registration, slapd's name", insideHost, false, add("cn=alice@example.org,objectClass=RTPerson", attr{"SIPAddress", in2}), in2 + ">" + pub},
		{"TAPI", insideHost, false, add("CN=alice,DC=example,DC=org", attr{"objectClass", "top", "msTAPI-RtPerson"}, attr{"msTAPI-IpAddress", "10.77.1.2"}), "10.77.1.2>198.51.100.1"},
		{"own port becomes the edge's", insideHost, false, add(aliceDN, attr{"sprotid", "T120", "H323"}, attr{"sport", "2503", "2720"}, attr{"sipaddress", in2}), "2503>1503 2720>1720 " + in2 + ">" + pub},
		{"another inside host's address does not leak either", insideHost, false, add(aliceDN, attr{"sipaddress", in3}), in3 + ">" + pub},
		{"public already", insideHost, false, add(aliceDN, attr{"sipaddress", pub}), ""},
		{"somebody else's public address", insideHost, false, add(aliceDN, attr{"sipaddress", other3}), ""},
		{"outside client at an outside server", outsideHost, false, add(aliceDN, attr{"sipaddress", in2}), ""},
		{"inside client at an inside server", insideHost, true, add(aliceDN, attr{"sipaddress", in2}), ""},
		{"outside client at an inside server, naming an inside host", outsideHost, true, add(aliceDN, attr{"sipaddress", in2}, attr{"sport", "22"}), in2 + ">" + other3},
		{"outside client behind a NAT of its own", outsideHost, true, change(3, bobDN, attr{"sipaddress", "16820416"}), "16820416>" + other3}, // 192.168.0.1
		{"outside client naming the edge", outsideHost, true, add(aliceDN, attr{"sipaddress", pub}), pub + ">" + other3},
		{"outside client naming itself", outsideHost, true, add(aliceDN, attr{"sipaddress", other3}), ""},
		{"other directory", insideHost, false, add("cn=printer,dc=example,dc=org", attr{"objectClass", "device"}, attr{"ipAddress", in2}), ""},
		{"other directory with many values", insideHost, false, add("cn=x,dc=example,dc=org", append(attr{"cn"}, strings.Split(strings.Repeat("x ", maxValues), " ")...)), ""},
		{"not a number", insideHost, false, add(aliceDN, attr{"sipaddress", "4294967296", "-1", ""}), ""},
		{"modification", insideHost, false, change(3, aliceDN, attr{"sipaddress", in2}, attr{"comment", in2}), in2 + ">" + pub},
		{"options of the attribute", insideHost, false, change(3, aliceDN, attr{"sipaddress;x", in2}), in2 + ">" + pub},
		{"filter", insideHost, false, query(4, base, and(equal("objectClass", "RTPerson"), equal("sipaddress", in2)), "cn"), in2 + ">" + pub},
		{"filter of others", insideHost, false, query(4, "dc=example,dc=org", equal("ipAddress", in2), "cn"), ""},
		{"compare", insideHost, false, envelope(5, ber.Append(nil, opCompare, str(4, aliceDN), ber.Append(nil, ber.Sequence, str(4, "sipaddress"), str(4, in2)))), in2 + ">" + pub},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := newEdge().session(tc.host, tc.serverInside).request(tc.msg)
			if err != nil {
				t.Fatal(err)
			}
			if w := what(t, tc.msg, got); w != tc.want {
				t.Errorf("changed %q, want %q", w, tc.want)
			}
		})
	}
}

// TestForeign: what an outside client must not write into an inside directory; and a client with an IPv6 address is
// no reason to fall over.
func TestForeign(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::9")
	e := newEdge()
	if out, err := e.session(v6, true).request(entry(2, opAdd, aliceDN, attr{"sipaddress", in2})); err == nil {
		t.Errorf("an outside client wrote %q", out)
	}
	for _, name := range []string{"1.2.840.113556.1.4.1", "OID.1.2.3"} { // perhaps the server's own name for it
		if out, err := e.session(outsideHost, true).request(entry(2, opAdd, "cn=x,2.5.4.0=y", attr{name, in2})); err == nil {
			t.Errorf("an outside client wrote %q", out)
		}
		if _, err := e.session(outsideHost, false).request(entry(2, opAdd, "cn=x,2.5.4.0=y", attr{name, in2})); err != nil {
			t.Errorf("outside among themselves: %v", err)
		}
	}
	s := e.session(insideHost, false)
	s.host = netip.MustParseAddr("fd00::2")
	s.request(entry(2, opAdd, aliceDN, attr{"sipaddress", in2}))
	s.response(result(2, opAddResponse, 0))
	if got, ok := e.reg.Lookup("alice@example.org"); !ok || got.Host != s.host {
		t.Fatalf("registered %+v, %v", got, ok)
	}
	msg := entry(3, opEntry, aliceDN, attr{"sipaddress", pub})
	if got, err := s.response(msg); err != nil || !bytes.Equal(got, msg) {
		t.Errorf("%q, %v", got, err)
	}
}

// register has a host register at a server and the server agree.
func register(t *testing.T, e *edge, host netip.Addr, serverInside bool, dn, addr string) []byte {
	t.Helper()
	s := e.session(host, serverInside)
	out, err := s.request(entry(2, opAdd, dn, attr{"sipaddress", addr}, attr{"sport", "1503"}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.response(result(2, opAddResponse, 0)); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestForeignEntry: an outside client writes no inside address into an entry of another directory either, which it could
// make a user's later; and such an entry says nothing about who is inside, even if a search for users brings it.
func TestForeignEntry(t *testing.T) {
	e := newEdge()
	s := e.session(outsideHost, true)
	const dn = "cn=carol,dc=example,dc=org"
	attrs := []attr{{"objectClass", "device"}, {"cn", "carol"}, {"ipAddress", in2}}
	written := entry(2, opAdd, dn, attrs...)
	got, err := s.request(written)
	if err != nil {
		t.Fatal(err)
	}
	if w := what(t, written, got); w != in2+">"+other3 {
		t.Errorf("changed %q", w)
	}
	many := entry(4, opAdd, dn, append(attr{"cn"}, strings.Split(strings.Repeat("x ", maxValues), " ")...), attr{"ipAddress", in2})
	if out, err := s.request(many); err == nil {
		t.Errorf("wrote unread %x", out)
	}
	if _, err := s.request(query(3, base, and(equal("objectClass", "RTPerson"), equal("cn", "carol")))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.response(entry(3, opEntry, dn, attrs...)); err != nil {
		t.Fatal(err)
	}
	if got, ok := e.reg.Lookup("carol"); ok {
		t.Errorf("an outside client registered %+v", got)
	}
}

func TestRegistration(t *testing.T) {
	e := newEdge()
	register(t, e, insideHost, false, aliceDN, in2)
	register(t, e, otherInside, false, bobDN, in3)
	for name, want := range map[string]netip.Addr{"ALICE@example.org": insideHost, "bob@example.org": otherInside} {
		if got, ok := e.reg.Lookup(name); !ok || got.Host != want || got.Ports != [2]uint16{1720, 1503} {
			t.Errorf("Lookup(%s) = %+v, %v", name, got, ok)
		}
	}
	if got, ok := e.reg.Route("bob@example.org", publicAddr, outsideHost, H323); !ok || got.String() != "10.77.1.3:1720" {
		t.Errorf("Route = %v, %v", got, ok)
	}
	if got, ok := e.reg.Route("nobody", publicAddr, outsideHost, H323); ok {
		t.Errorf("an unknown name leads to %v", got)
	}

	// what an inside client reads from the outside server is the inside address again
	s := e.session(otherInside, false)
	msg := entry(3, opEntry, aliceDN, attr{"ipAddress", pub}, attr{"sport", "1503"})
	got, err := s.response(msg)
	if err != nil || what(t, msg, got) != pub+">"+in2 {
		t.Errorf("%v: %q", err, what(t, msg, got))
	}
	stranger := entry(4, opEntry, "cn=carol,objectClass=rtPerson", attr{"ipAddress", pub})
	if got, _ := s.response(stranger); !bytes.Equal(got, stranger) {
		t.Error("an entry that is not ours was changed")
	}

	s = e.session(insideHost, false)
	if _, err := s.request(envelope(5, str(opDelete, aliceDN))); err != nil {
		t.Fatal(err)
	}
	if _, ok := e.reg.Lookup("alice@example.org"); !ok {
		t.Error("gone before the server agreed")
	}
	s.response(result(5, opDeleteResponse, 0))
	if got, ok := e.reg.Lookup("alice@example.org"); ok {
		t.Errorf("still there: %+v", got)
	}
}

// TestRegistrationRefused: what the server refuses is not ours to route to.
func TestRegistrationRefused(t *testing.T) {
	e := newEdge()
	s := e.session(insideHost, false)
	s.request(entry(2, opAdd, aliceDN, attr{"sipaddress", in2}))
	s.response(result(2, opAddResponse, 50))
	if got, ok := e.reg.Lookup("alice@example.org"); ok {
		t.Errorf("registered: %+v", got)
	}
}

// TestForeignHost: a host cannot open another to calls from outside.
func TestForeignHost(t *testing.T) {
	e := newEdge()
	register(t, e, insideHost, false, aliceDN, in3)
	if got, _ := e.reg.Lookup("alice@example.org"); got.Host != insideHost {
		t.Errorf("the entry leads to %v, not to who wrote it", got.Host)
	}
	if e.count.drops["other_host"] != 1 {
		t.Errorf("not counted: %v", e.count.drops)
	}
}

// TestResolved: an outside host looks one of two names up, each time a call of its own goes there.
func TestResolved(t *testing.T) {
	for _, serverInside := range []bool{false, true} {
		t.Run(fmt.Sprint("server inside ", serverInside), func(t *testing.T) {
			e := newEdge()
			a := register(t, e, insideHost, serverInside, aliceDN, in2)
			register(t, e, otherInside, serverInside, bobDN, in3)
			stored := map[bool][2]string{true: {in2, in3}, false: {pub, pub}}[serverInside]
			if !bytes.Contains(a, []byte(stored[0])) {
				t.Fatalf("the server got %q", a)
			}
			s := e.session(outsideHost, serverInside)
			for i, dn := range []string{aliceDN, bobDN} {
				id := int32(10 + i)
				s.request(query(id, base, and(equal("cn", commonName([]byte(dn)))), "sipaddress"))
				got, err := s.response(entry(id, opEntry, dn, attr{"sipaddress", stored[i]}))
				if err != nil || !bytes.Contains(got, []byte(pub)) {
					t.Fatalf("the client got %q, %v", got, err)
				}
				s.response(result(id, opSearchDone, 0))
				if got, ok := e.reg.Route("", publicAddr, outsideHost, H323); !ok || got.Addr() != []netip.Addr{insideHost, otherInside}[i] {
					t.Errorf("after looking %s up the call goes to %v, %v", dn, got, ok)
				}
			}
			// a list of everybody says nothing of whom he will call
			s.request(query(20, base, equal("cn", "%"), "sipaddress"))
			for i, dn := range []string{bobDN, aliceDN} {
				s.response(entry(20, opEntry, dn, attr{"sipaddress", stored[1-i]}))
			}
			s.response(result(20, opSearchDone, 0))
			if got, ok := e.reg.Resolved(outsideHost); !ok || got.Host != otherInside {
				t.Errorf("Resolved = %+v, %v", got, ok)
			}
			if got, ok := e.reg.Resolved(netip.MustParseAddr("203.0.113.9")); ok {
				t.Errorf("a host that asked nothing resolved %+v", got)
			}
		})
	}
}

// TestPool: each user has a public address to himself, and gives it back.
func TestPool(t *testing.T) {
	e := newEdge(func(c *Config) { c.Pool = []netip.Addr{netip.MustParseAddr("198.51.100.49")} })
	if a := register(t, e, insideHost, false, aliceDN, in2); !bytes.Contains(a, []byte(pool1)) {
		t.Errorf("registered as %q", a)
	}
	if b := register(t, e, otherInside, false, bobDN, in3); !bytes.Contains(b, []byte(pub)) {
		t.Errorf("registered as %q although the pool is empty", b)
	}
	if got, ok := e.reg.Route("", e.cfg.Pool[0], outsideHost, H323); !ok || got.Addr() != insideHost {
		t.Errorf("a call to the pool's address goes to %v, %v", got, ok)
	}
	// the user moves to another host and keeps the address
	if b := register(t, e, otherInside, false, aliceDN, in3); !bytes.Contains(b, []byte(pool1)) {
		t.Errorf("moved: %q", b)
	}
	if got, ok := e.reg.At(e.cfg.Pool[0]); !ok || got.Host != otherInside {
		t.Errorf("moved, but calls go to %v, %v", got.Host, ok)
	}
	s := e.session(otherInside, false)
	s.request(envelope(5, str(opDelete, aliceDN)))
	s.response(result(5, opDeleteResponse, 0))
	if b := register(t, e, otherInside, false, bobDN, in3); !bytes.Contains(b, []byte(pool1)) {
		t.Errorf("the free address was not taken: %q", b)
	}
}

func TestNames(t *testing.T) {
	for dn, want := range map[string]string{
		aliceDN: "alice@example.org",
		"cn=alice@example.org,objectClass=RTPerson": "alice@example.org",
		`CN = "Smith, Alice" ; O=x`:                 "Smith, Alice",
		`cn=Smith\, Alice,o=x`:                      "Smith, Alice",
		`cn=\41lice\`:                               `Alice\`,
		`o=cn=x,ou=y`:                               "",
		"":                                          "",
	} {
		if got := commonName([]byte(dn)); got != want {
			t.Errorf("commonName(%s) = %q, want %q", dn, got, want)
		}
	}
	for dn, want := range map[string]bool{aliceDN: true, "OBJECTCLASS = rtperson": true, "cn=objectClass\\=rtPerson": false, "cn=rtPerson,dc=org": false} {
		if got := isILSName([]byte(dn)); got != want {
			t.Errorf("isILSName(%s) = %v", dn, got)
		}
	}
}

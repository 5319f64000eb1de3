//go:build lab

package lab

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What a probe of a port finds. The probes of a kind prove that the service is there, by an answer that nothing
// else would give; that of groove is blocked as long as edged does not serve it.
const (
	seenSIP     = "sip"     // answers OPTIONS, in the clear
	seenSIPS    = "sips"    // the same under TLS, with the edge's certificate
	seenNext    = "next"    // a request arrives at the next hop inside, and its answer comes back
	seenWeb     = "web"     // TLS for that name ends at the web farm
	seenPSOM    = "psom"    // TLS for that name ends at the Web Conferencing Server
	seenT120    = "t120"    // garbage is refused, and counted by the T.120 service
	seenH323    = "h323"    // the same by H.323
	seenILS     = "ils"     // a bind is answered
	seenBlocked = "blocked" // reset or dropped, counted for its source, logged
	seenTURN    = "turn"    // MS-TURN: pseudo-TLS is answered, or a request for a port with a challenge
	seenGroove  = "groove"  // Groove's stream is refused by its first bytes, and counted
	seenClosed  = "closed"  // the kernel refuses
)

// roleRow is a row of a port table: "SIDE PROTO PORT WHAT" for each probe.
type roleRow struct {
	no     string
	probes []string
}

// ocsRoles are the rows of OCS 2007 R2 with the four profiles on, by the numbers of docs/protocols/ocs.md's tables. Ranges of media
// and files are closed while there is no call: others open them (TestPhones*, TestMessengerFiles*).
func ocsRoles() []roleRow {
	next, frontEnd := "out tcp 443 next", "out tcp 5060 blocked"
	media := []string{"in udp 50000 closed", "out udp 50000 closed", "in udp 59999 closed", "out udp 59999 closed", "in udp 1024 closed", "out udp 1024 closed"}
	files := []string{"in tcp 6891 closed", "out tcp 6891 closed", "in tcp 6901 closed", "out tcp 6901 closed"}
	rows := []roleRow{
		{"1", []string{next, frontEnd}}, {"2", []string{"out tcp 443 web"}}, {"3", []string{"out tcp 444 blocked"}},
		{"4", []string{"out tcp 80 blocked"}}, {"5", []string{"out tcp 135 blocked"}},
		{"15", []string{"out tcp 8057 blocked"}}, {"16", []string{"out tcp 8404 blocked"}}, {"17", media},
		{"18", []string{next, frontEnd}}, {"19", []string{"out tcp 443 web", "out tcp 444 blocked", "out tcp 135 blocked"}},
		{"20", []string{"out tcp 5065 blocked", "out tcp 5069 blocked", "out tcp 5071 blocked", "out tcp 5074 blocked"}},
		{"21", []string{"out tcp 80 blocked"}}, {"22", []string{"out tcp 88 blocked", "out tcp 389 blocked", "out tcp 3268 blocked"}},
		{"23", []string{"out tcp 443 web"}}, {"24", []string{"in tcp 5061 sips"}}, {"25", media},
		{"26", []string{"out tcp 49152 closed", "out tcp 65335 closed"}}, {"27", []string{"out tcp 443 web"}},
		{"28", []string{"out tcp 8010 blocked", "out tcp 8011 blocked", "out tcp 5041 blocked"}}, {"29", []string{"out tcp 135 blocked"}},
		{"30", []string{next, frontEnd}}, {"31", media}, {"32", []string{"in tcp 5061 sips"}}, {"33", []string{"in tcp 5060 sip"}},
		{"34", []string{"out tcp 443 web"}}, {"35", []string{"out tcp 5061 sips"}}, {"36", []string{"in tcp 5062 sips"}},
		{"37", []string{"out tcp 443 sips"}}, {"38", []string{"out tcp 443 psom"}}, {"39", []string{"out tcp 443 turn"}},
		{"40", []string{"in udp 3478 turn", "out udp 3478 turn"}}, {"41", media}, {"42", []string{"in tcp 8057 blocked"}},
		{"43", []string{"in tcp 443 turn", "in tcp 5061 sips", "in tcp 5062 sips", "in udp 3478 turn"}},
		{"44", []string{"out tcp 443 sips", "out tcp 5061 sips", "out tcp 3478 blocked", "out udp 3478 turn"}},
		{"45", []string{"in tcp 5060 sip", "in tcp 5061 sips"}}, {"46", []string{"out tcp 443 sips"}}, {"47", media}, {"48", files},
		{"49", []string{"out tcp 443 sips", "out tcp 443 psom"}}, {"50", []string{"in tcp 8057 blocked", "out tcp 8057 blocked"}},
		{"51", []string{"in tcp 5061 sips", "out tcp 5061 sips"}}, {"52", slices.Concat(media, files)},
		{"53", []string{"in tcp 5060 sip", "in tcp 5061 sips", "out tcp 443 sips"}},
	}
	for no, port := range map[int]int{6: 5062, 7: 5063, 8: 5064, 9: 5065, 10: 5069, 11: 5071, 12: 5072, 13: 5073, 14: 5074} {
		rows = append(rows, roleRow{strconv.Itoa(no), []string{fmt.Sprintf("out tcp %d blocked", port)}})
	}
	return append(rows, messengerRoles("blocked")...)
}

// messengerRoles are those of Messenger and LCS 2005; plain is what 5060 outside is.
func messengerRoles(plain string) []roleRow {
	return []roleRow{
		{"54", []string{"in udp 5060 sip", "in tcp 5060 sip", "in tcp 5061 sips", "out udp 5060 " + plain, "out tcp 5060 " + plain, "out tcp 5061 sips"}},
		{"55", []string{"in tcp 1503 t120", "out tcp 1503 t120"}},
		{"56", []string{"in udp 50000 closed", "out udp 50000 closed"}},
		{"57", []string{"in tcp 6891 closed", "out tcp 6891 closed", "in tcp 6900 closed", "out tcp 6900 closed"}},
	}
}

// otherRoles are those of NetMeeting and Groove.
func otherRoles() []roleRow {
	return []roleRow{
		{"NetMeeting 389", []string{"in tcp 389 ils", "out tcp 389 blocked"}},
		{"NetMeeting 522", []string{"in tcp 522 blocked", "out tcp 522 blocked"}},
		{"NetMeeting 1503", []string{"in tcp 1503 t120", "out tcp 1503 t120"}},
		{"NetMeeting 1720", []string{"in tcp 1720 h323", "out tcp 1720 h323"}},
		{"NetMeeting 1731", []string{"in tcp 1731 blocked", "out tcp 1731 blocked"}},
		{"NetMeeting dynamic", []string{"in tcp 40000 closed", "out tcp 40000 closed", "in udp 50000 closed", "out udp 50000 closed"}},
		{"Groove 2492", []string{"in tcp 2492 blocked", "out tcp 2492 blocked"}},
		{"Groove 443", []string{"out tcp 443 groove"}},
		{"Groove 80", []string{"out tcp 80 blocked"}},
	}
}

// TestRoles probes each row of the port tables, from the side that it speaks of.
func TestRoles(t *testing.T) {
	s := newRoleScene(t)
	s.edge = s.rig.Edge(t, EdgeConfig{
		Roles: []string{"lcs-2005", "ocs-2007-r2-edge", "netmeeting", "groove"}, TLS: s.certs,
		Domains: fmt.Sprintf("example.org: {network: inside, server: \"tls:%v:5061\"}", s.pool.IP), SIP: "probe: 0s\n",
		More: fmt.Sprintf("ils: {server: builtin}\nmsturn: {users: {alice: secret}, secrets: [\"a secret\"], mras: {host: av.example.org}}\nforwards:\n"+
			"  - {name: web, listen: \"tcp://outside:443\", sni: [web.example.org], to: \"%v:443\", allow: [198.51.100.0/24]}\n"+
			"  - {name: psom, listen: \"tcp://outside:443\", sni: [conf.example.org], to: \"%v:8057\", allow: [198.51.100.0/24]}\n", s.pool.IP, s.pool.IP),
	})
	rows := ocsRoles()
	seen := map[string]bool{}
	for _, r := range rows {
		seen[r.no] = true
	}
	if len(rows) != 57 || len(seen) != 57 {
		t.Errorf("%d rows, %d numbers; want 57", len(rows), len(seen))
	}
	s.probeAll(t, append(rows, otherRoles()...))
	s.agree(t, rows)
	s.call(t)
}

// call makes a call of a user outside, signed on at 443, to one inside: the ports that the tables give to media
// are open for it and for no longer.
func (s *roleScene) call(t *testing.T) {
	t.Helper()
	alice, bob := s.user.Voice(t, s.user.Addr(4, 30000), 440), s.pool.Voice(t, s.pool.Addr(4, 30000), 1000)
	d := s.alice.Invite(netip.AddrPortFrom(s.rig.GW.IPOn(outside, 4), 443), "sip:bob@example.org", Offer{Addr: alice.Addr}.String())
	req := s.next.ExpectRequest("INVITE")
	at, err := mediaAddr(req.Body, 0)
	must(t, "offer", err)
	bob.Talk(at)
	s.next.Reply(req, 200, "OK", Offer{Addr: bob.Addr}.String())
	ok := d.Await("INVITE", 200, 299)
	at, err = mediaAddr(ok.Body, 0)
	must(t, "answer", err)
	alice.Talk(at)
	d.Send("ACK", "")
	wantVoice(t, "alice", alice, bob.Hz, time.Second)
	wantVoice(t, "bob", bob, alice.Hz, time.Second)
	if !s.rig.GW.listens(t, int(at.Port())) || at.Port() < 50000 || at.Port() > 51999 {
		t.Errorf("media at %v, which is no open port of pinholes.udp", at)
	}
	d.Bye(s.next)
	s.edge.Clean(t)
	eventually(t, 10*time.Second, "the port is closed", func() bool { return !s.rig.GW.listens(t, int(at.Port())) })
}

// TestRolesHosted: where the server is outside and not reached by TLS, 5060 is open to it, and nothing of OCS is.
func TestRolesHosted(t *testing.T) {
	s := newRoleScene(t)
	s.edge = s.rig.Edge(t, EdgeConfig{
		Roles: []string{"lcs-2005"}, TLS: s.certs, SIP: "probe: 0s\n",
		Domains: fmt.Sprintf("example.org: {network: outside, server: \"tcp:%v:5060\"}", s.user.IP),
	})
	rows := messengerRoles("sip")
	s.probeAll(t, append(rows, roleRow{"not of LCS", []string{
		"out tcp 443 closed", "out tcp 389 closed", "out tcp 1720 closed", "out tcp 2492 closed", "out tcp 8057 closed", "out tcp 135 closed",
	}}))
	s.agree(t, rows)
}

// TestRolesControl: without profiles every port of the tables is closed, so that the probes see the roles and nothing else.
func TestRolesControl(t *testing.T) {
	s := newRoleScene(t)
	s.edge = s.rig.Edge(t, EdgeConfig{})
	var rows []roleRow
	for _, r := range append(ocsRoles(), otherRoles()...) {
		var probes []string
		for _, p := range r.probes {
			f := strings.Fields(p)
			if f[2] != "5060" {
				probes = append(probes, strings.Join(append(f[:3:3], seenClosed), " "))
			}
		}
		rows = append(rows, roleRow{r.no, probes})
	}
	s.probeAll(t, rows)
}

// roleScene is a pool of servers inside and a user on either side.
type roleScene struct {
	rig                *Rig
	edge               *Edge
	certs              *Certificates // of the edge
	pool, client, user *Host
	next, alice        *Agent // the next hop, and a user outside
	tls                *tls.Config
	done               map[string]error
}

func newRoleScene(t *testing.T) *roleScene {
	onlyEdged(t, "it has no roles")
	r := lab(t)
	s := &roleScene{rig: r, pool: r.Inside("pool"), client: r.Inside("client"), user: r.Outside("user"), done: map[string]error{}}
	ca := newAuthority(t, r.Dir)
	s.certs = ca.issue(t, "edge", []string{"sip.example.org"}, r.GW.IPOn(inside, 4), r.GW.IPOn(outside, 4))
	s.tls = s.certs.config(t, "sip.example.org")
	s.tls.Certificates = nil // users have none
	pool := ca.issue(t, "pool", []string{"pool.example.org"}, s.pool.IP)
	s.next = s.pool.Agent(t, "pool", "tls", s.pool.Addr(4, 5061), pool.config(t, "sip.example.org"))
	s.alice = s.user.Agent(t, "alice", "tls", s.user.Addr(4, 5061), s.tls)
	s.pool.namesItself(t, 443, ca.issue(t, "web", []string{"web.example.org"}).config(t, ""), seenWeb)
	s.pool.namesItself(t, 8057, ca.issue(t, "psom", []string{"conf.example.org"}).config(t, ""), seenPSOM)
	return s
}

// namesItself is a TLS server that says its name to whoever comes.
func (h *Host) namesItself(t *testing.T, port uint16, conf *tls.Config, name string) {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp", h.Addr(4, port).String())
		return err
	}))
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				tc := tls.Server(c, conf)
				defer tc.Close()
				tc.SetDeadline(time.Now().Add(20 * time.Second))
				io.WriteString(tc, name+"\n")
				io.Copy(io.Discard, tc)
			}()
		}
	}()
}

// probeAll does each probe once, and reports every row that is not as its table says.
func (s *roleScene) probeAll(t *testing.T, rows []roleRow) {
	t.Helper()
	for _, r := range rows {
		for _, p := range r.probes {
			err, known := s.done[p]
			if !known {
				err = s.probe(t, p)
				s.done[p] = err
			}
			if err != nil {
				t.Errorf("row %s: %s: %v", r.no, p, err)
			}
		}
	}
	t.Logf("%d rows, %d probes", len(rows), len(s.done))
}

// probe returns nil if a port is what the probe says.
func (s *roleScene) probe(t *testing.T, probe string) error {
	f := strings.Fields(probe)
	port, err := strconv.ParseUint(f[2], 10, 16)
	must(t, probe, err)
	host, on := s.client, inside
	if f[0] == "out" {
		host, on = s.user, outside
	}
	at := netip.AddrPortFrom(s.rig.GW.IPOn(on, 4), uint16(port))
	switch what := f[3]; what {
	case seenNext:
		return s.reachNext(at)
	case seenClosed:
		return host.refused(f[1], at)
	case seenBlocked:
		return s.blocked(host, f[1], at, on)
	case seenTURN:
		if f[1] == "udp" {
			return host.says("udp", at, nil, "\x00\x03\x00\x08"+strings.Repeat("t", 16)+"\x00\x0f\x00\x04\x72\xc6\x4b\xc6", "\x01\x13")
		}
		return host.says("tcp", at, nil, "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01"+strings.Repeat("r", 32)+"\x00\x00\x02\x00\x18\x01\x00", "\x16\x03\x01\x00\x4e\x02")
	case seenGroove:
		return s.byFirstBytes(host, at, "unknown", "\x01\x00\x00\x20"+strings.Repeat("g", 60))
	case seenSIP:
		return host.says(f[1], at, nil, options(), "SIP/2.0 ")
	case seenSIPS:
		return host.says("tcp", at, s.tls, options(), "SIP/2.0 ")
	case seenWeb, seenPSOM:
		conf := s.tls.Clone()
		conf.ServerName = map[string]string{seenWeb: "web.example.org", seenPSOM: "conf.example.org"}[what]
		return host.says("tcp", at, conf, "", what+"\n")
	case seenILS: // an anonymous bind, and that it succeeded (RFC 4511 §4.2)
		return host.says("tcp", at, nil, "\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00", "\x30")
	case seenT120:
		return s.counted(host, at, "edged_t120_drops_total")
	case seenH323:
		return s.counted(host, at, "edged_h323_dropped_messages_total")
	default:
		return fmt.Errorf("no such probe")
	}
}

func options() string {
	return "OPTIONS sip:probe@example.org SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.9:5060;branch=z9hG4bK" + token() + "\r\nMax-Forwards: 0\r\n" +
		"From: <sip:probe@example.org>;tag=" + token() + "\r\nTo: <sip:probe@example.org>\r\nCall-ID: " + token() + "\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
}

// dial connects from the host.
func (h *Host) dial(proto string, at netip.AddrPort) (c net.Conn, err error) {
	err = h.Do(func() error {
		c, err = net.DialTimeout(proto+"4", at.String(), 10*time.Second)
		return err
	})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// says sends something, under TLS where conf is not nil, and wants an answer that begins so.
func (h *Host) says(proto string, at netip.AddrPort, conf *tls.Config, send, want string) error {
	c, err := h.dial(proto, at)
	if err != nil {
		return err
	}
	defer c.Close()
	if conf != nil {
		c = tls.Client(c, conf)
	}
	if _, err := io.WriteString(c, send); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	b := make([]byte, 2000)
	n, err := io.ReadAtLeast(c, b, len(want))
	if err != nil || !strings.HasPrefix(string(b[:n]), want) {
		return fmt.Errorf("answers %q, %w", b[:n], err)
	}
	return nil
}

// refused wants nobody to listen.
func (h *Host) refused(proto string, at netip.AddrPort) error {
	c, err := h.dial(proto, at)
	if err == nil {
		defer c.Close()
		for range 3 { // the first datagram's ICMP error is seen by a later call
			if _, err = c.Write([]byte("anybody?")); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if err != nil {
				break
			}
		}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("want that the kernel refuses: %w", orNone(err))
	}
	return nil
}

// dropped wants no byte back, and a reset where the protocol has one.
func (h *Host) dropped(proto string, at netip.AddrPort, send string) error {
	c, err := h.dial(proto, at)
	if err == nil {
		defer c.Close()
		_, err = io.WriteString(c, send)
	}
	if proto == "udp" {
		must := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, syscall.ECONNREFUSED) || must != nil {
			return fmt.Errorf("want silence: %w", orNone(err))
		}
		return nil
	}
	if err == nil {
		var n int
		if n, err = c.Read(make([]byte, 1)); n > 0 {
			return errors.New("is answered")
		}
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("want a reset: %w", orNone(err))
	}
	return nil
}

// blocked wants a port that answers nothing, counts who came, and logs it.
func (s *roleScene) blocked(h *Host, proto string, at netip.AddrPort, on side) error {
	if err := h.dropped(proto, at, "anybody?"); err != nil {
		return err
	}
	name := fmt.Sprintf("%s://%s:%d", proto, [...]string{"inside", "outside"}[on], at.Port())
	if !until(10*time.Second, func() bool { return s.edge.Metric("edged_blocked_total", `"`+name+`"`) >= 1 }) {
		return errors.New("is not counted")
	}
	if !until(10*time.Second, func() bool { return len(s.edge.logged("blocked", name, h.IP.String())) > 0 }) {
		return errors.New("is not logged")
	}
	code, b := s.edge.get("/api/v1/blocked")
	if code != http.StatusOK || !strings.Contains(string(b), `"`+name+`"`) {
		return fmt.Errorf("is not shown: %d", code)
	}
	return nil
}

// byFirstBytes wants a connection refused for what it begins with.
func (s *roleScene) byFirstBytes(h *Host, at netip.AddrPort, class, send string) error {
	before := s.edge.Metric("edged_mux_rejected_total", "not_served")
	if err := h.dropped("tcp", at, send); err != nil {
		return err
	}
	if !until(10*time.Second, func() bool { return s.edge.Metric("edged_mux_rejected_total", "not_served") > before }) {
		return errors.New("is not counted")
	}
	if s.edge.Metric("edged_mux_connections_total", `class="`+class+`"`) == 0 {
		return errors.New("is of another class")
	}
	if len(s.edge.logged("connection refused", `"class"`, h.IP.String())) == 0 {
		return errors.New("is not logged")
	}
	return nil
}

// counted wants garbage to be counted by the service that is there.
func (s *roleScene) counted(h *Host, at netip.AddrPort, metric string) error {
	before := s.edge.Metric(metric)
	c, err := h.dial("tcp", at)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if !until(10*time.Second, func() bool { return s.edge.Metric(metric) > before }) {
		return fmt.Errorf("%s does not count it", metric)
	}
	return nil
}

// reachNext has a request of a user outside arrive at the next hop inside, by TLS on both legs.
func (s *roleScene) reachNext(at netip.AddrPort) error {
	d := s.alice.NewDialog(at, "sip:bob@example.org")
	d.Send("OPTIONS", "")
	s.next.Reply(s.next.ExpectRequest("OPTIONS"), 200, "OK", "")
	d.Await("OPTIONS", 200, 299)
	return nil
}

// agree wants the table of /api/v1/ports to say of each row what the probes have seen.
func (s *roleScene) agree(t *testing.T, rows []roleRow) {
	t.Helper()
	code, b := s.edge.get("/api/v1/ports")
	var doc struct {
		Tables []struct {
			Profile string
			Rows    []struct {
				Row  string
				Edge []struct{ Network, Protocol, Ports, State, Text string }
			}
		}
	}
	if code != http.StatusOK || json.Unmarshal(b, &doc) != nil {
		t.Fatalf("ports: %d %s", code, b)
	}
	says := map[string][]string{} // row, side, protocol and port → states
	for _, table := range doc.Tables {
		for _, r := range table.Rows {
			for _, v := range r.Edge {
				if table.Profile != "lcs-2005" && table.Profile != "ocs-2007-r2-edge" {
					continue
				}
				for _, part := range strings.Split(v.Ports, ",") {
					key := strings.Join([]string{r.Row, map[string]string{"inside": "in", "outside": "out"}[v.Network], v.Protocol, part}, " ")
					says[key] = append(says[key], v.State)
				}
			}
		}
	}
	states := map[string]string{
		seenSIP: "served", seenSIPS: "served", seenT120: "served", seenWeb: "forwarded", seenPSOM: "forwarded", seenBlocked: "blocked", seenTURN: "served",
	}
	for _, r := range rows {
		for _, p := range r.probes {
			f := strings.Fields(p)
			want := states[f[3]] // ranges are told by the documents, and requests to the next hop need none of their own
			if got := says[strings.Join(append([]string{r.no}, f[:3]...), " ")]; want != "" && !slices.Contains(got, want) {
				t.Errorf("row %s: %s: /api/v1/ports says %v", r.no, p, got)
			}
		}
	}
}

// orNone returns an error that says so where there is none.
func orNone(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

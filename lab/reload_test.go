//go:build lab

package lab

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reloadSize is how many calls are up, and how many files the daemon reads meanwhile.
func reloadSize() (calls, files int) {
	if os.Getenv("EDGED_LAB_FULL") != "" {
		return 200, 1000
	}
	return 50, 60
}

// reloadStage is a gateway with much to read again, and where its configuration is written.
type reloadStage struct {
	*scene
	text  string // a good file
	certs [2]*Certificates
	// loaded is what the daemon has said of the last good file.
	loaded time.Time
}

const reloadSections = `networks:
  inside: {addresses: [%[1]v], subnets: [%[2]s0/24], trusted: true}
  outside: {addresses: [%[3]v], trusted: false}
pinholes: {udp: 50000-51999}
media: {datapath: %[4]s}
limits: {per_source: {messages_per_second: 0, connections: 64}}
tls: {certificates: [{cert: edge.pem, key: edge.key}]}
sip:
  listen: ["udp://inside:5060", "udp://outside:5060", "tls://outside:5061"]
  domains:
    example.org: {network: outside, server: "udp:%[5]v"}
h323: {listen: %[6]s, aliases: {bob: %[7]q}}
turn: {listen: ["udp://outside:3478"], realm: example.org, users: {alice: secret}, peers: {allow: [%[8]s0/24]}}
`

func newReloadStage(t *testing.T, path string) *reloadStage {
	t.Helper()
	s := &reloadStage{scene: newScene(t, plan{NoEdge: true})}
	out := s.outGate.Addr()
	ca := newAuthority(t, s.rig.Dir)
	for i, name := range []string{"first", "second"} {
		s.certs[i] = ca.issue(t, name, []string{"edge.example.org"}, out)
	}
	s.certify(0)
	sections := fmt.Sprintf(reloadSections, s.inGate.Addr(), nets4[inside], out, path, s.bob.Addr, h323Listen, s.outHost.IP, nets4[outside])
	s.edge = s.rig.Edge(t, EdgeConfig{Sections: sections})
	b, err := os.ReadFile(s.edge.file)
	must(t, "configuration", err)
	s.text = string(b)
	return s
}

// certify puts one of the two certificates in the place that the configuration names.
func (s *reloadStage) certify(i int) {
	s.Helper()
	must(s, "certificate", copyOver(s.certs[i].Cert, filepath.Join(s.rig.Dir, "edge.pem")))
	must(s, "key", copyOver(s.certs[i].Key, filepath.Join(s.rig.Dir, "edge.key")))
}

// copyOver replaces a file in one step. All may read it: the edge may run as nobody.
func copyOver(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// brokenFiles change a good file; each must be refused with words that hold what stands first.
var brokenFiles = [][3]string{
	{"no_such_key", "sip:\n", "sip:\n  no_such_key: 1\n"},
	{"edged.yaml:", "sip:\n", "sip: {listen: [\n"},
	{"messages_per_second", "messages_per_second: 0", "messages_per_second: -1"},
	{"missing.pem", "edge.pem", "missing.pem"},
	{"turn.listen", "udp://outside:3478", "udp://outside:5060"},
	{"sip.domains", "network: outside, server", "network: nowhere, server"},
}

// good returns the i-th good file: certificates, routes, limits, users, aliases and the log level change, which live,
// and now and then a port comes or goes, which needs a restart.
func (s *reloadStage) good(i int) (text string, restart []string) {
	s.certify(i % 2)
	text, restart = s.text, []string{}
	with := func(bit bool, pair ...string) {
		if bit {
			text = strings.NewReplacer(pair...).Replace(text)
		}
	}
	with(i%2 == 1, "connections: 64", "connections: 128", "{alice: secret}", "{alice: secret, carol: other}")
	with(i%3 == 1, "  domains:\n", fmt.Sprintf("  domains:\n    new.example.org: {network: outside, server: \"udp:%v\"}\n", s.bob.Addr))
	with(i%5 >= 3, "level: debug", "level: warn", "aliases: {", "aliases: {eve: \"192.0.2.9:1720\", ")
	if i%4 == 2 {
		with(true, `"tls://outside:5061"]`, `"tls://outside:5061", "tcp://outside:5070"]`)
		restart = []string{"sip.listen"}
	}
	return text, restart
}

// hup writes a file and has the daemon read it; it returns what the daemon then says of its configuration.
func (s *reloadStage) hup(text string, done func(reloadSaid) bool) reloadSaid {
	s.Helper()
	must(s, "configuration", os.WriteFile(s.edge.file, []byte(text), 0o600))
	s.edge.proc.Signal(syscall.SIGHUP)
	var doc struct{ Config reloadSaid }
	eventually(s, 20*time.Second, "the file is read", func() bool {
		code, b := s.edge.get("/api/v1/status")
		doc.Config = reloadSaid{}
		return code == http.StatusOK && json.Unmarshal(b, &doc) == nil && done(doc.Config)
	})
	return doc.Config
}

// reloadSaid is the part of /api/v1/status.
type reloadSaid struct {
	LoadedAt        time.Time `json:"loaded_at"`
	Error           string    `json:"error"`
	RestartRequired []string  `json:"restart_required"`
}

// pair has the daemon read a broken file, which it refuses, and then a good one, which it takes.
func (s *reloadStage) pair(i int) {
	s.Helper()
	b := brokenFiles[i%len(brokenFiles)]
	broken := strings.Replace(s.text, b[1], b[2], 1)
	if broken == s.text {
		s.Fatalf("%q does not occur in the file", b[1])
	}
	s.hup(broken, func(c reloadSaid) bool { return strings.Contains(c.Error, b[0]) })
	text, restart := s.good(i)
	said := s.hup(text, func(c reloadSaid) bool { return c.Error == "" && c.LoadedAt.After(s.loaded) })
	s.loaded = said.LoadedAt
	if !slices.Equal(said.RestartRequired, restart) && len(restart)+len(said.RestartRequired) > 0 {
		s.Errorf("file %d: restart required: %q, want %q", i, said.RestartRequired, restart)
	}
}

// inForce checks that what the i-th good file says is so: its certificate is shown, its route used.
func (s *reloadStage) inForce(i int) {
	s.Helper()
	var conn net.Conn
	must(s, "dial", s.outHost.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", fmt.Sprintf("%v:5061", s.outGate.Addr()), 10*time.Second)
		return err
	}))
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(conn, s.certs[i%2].config(s, "edge.example.org"))
	must(s, "handshake", c.Handshake())
	if got, want := c.ConnectionState().PeerCertificates[0].Subject.CommonName, []string{"first", "second"}[i%2]; got != want {
		s.Errorf("file %d: the %s certificate is shown, want the %s", i, got, want)
	}
	d := s.alice.NewDialog(s.inGate, "sip:bob@new.example.org")
	d.Send("MESSAGE", "")
	reached := s.bob.within(map[bool]time.Duration{true: 8 * time.Second, false: 200 * time.Millisecond}[i%3 == 1], func(m *Message) bool { return m.CallID() == d.ID })
	if reached != nil {
		s.bob.Reply(reached, 200, "OK", "")
	}
	if (reached != nil) != (i%3 == 1) {
		s.Errorf("file %d: a message to the domain that it may name arrives: %v", i, reached != nil)
	}
}

// footprint is what a daemon holds.
type footprint struct {
	goroutines, files, maps int
	heap                    float64 // octets after a collection
}

func (e *Edge) footprint(t testing.TB) (f footprint) {
	t.Helper()
	if code, _ := e.get("/debug/pprof/heap?gc=1"); code != http.StatusOK {
		t.Fatalf("no collection: status %d", code)
	}
	f.goroutines, f.heap = int(e.Metric("go_goroutines")), e.Metric("go_memstats_heap_alloc_bytes")
	dir := fmt.Sprintf("/proc/%d/fd", e.proc.cmd.Process.Pid)
	list, err := os.ReadDir(dir)
	must(t, "descriptors", err)
	for _, d := range list {
		to, err := os.Readlink(filepath.Join(dir, d.Name()))
		if err == nil {
			f.files++
		}
		if strings.Contains(to, "bpf-map") {
			f.maps++
		}
	}
	return f
}

// same waits until a daemon holds no more than before. A few goroutines come and go with connections.
func (e *Edge) same(t testing.TB, before footprint) {
	t.Helper()
	var now footprint
	if !until(20*time.Second, func() bool {
		now = e.footprint(t)
		return now.goroutines <= before.goroutines+4 && now.files <= before.files+2 && now.maps == before.maps && now.heap <= before.heap+4<<20
	}) {
		t.Errorf("it holds %+v, before the reloads %+v", now, before)
	}
	t.Logf("before %+v, after %+v", before, now)
}

// heldCall is an H.323 call from the inside that stays up.
func (s *reloadStage) heldCall() (alice, bob *Proc) {
	s.Helper()
	bob = s.outHost.H323Phone(s, h323Spec{Name: "bob", At: s.outHost.Addr(4, 1720)})
	alice = s.inHost.H323Phone(s, h323Spec{Name: "alice", At: s.inHost.Addr(4, 1720), To: netip.AddrPortFrom(s.inGate.Addr(), 1720), Called: "bob"})
	return alice, bob
}

// relayed has coturn's client send n messages in each of two allocations, 20 ms apart.
func (s *reloadStage) relayed(n int) *Proc {
	s.Helper()
	peer := s.rig.Outside("peer")
	p := peer.Start(s, "peer", "turnutils_peer", "-L", peer.IP.String(), "-p", "3480")
	eventually(s, 10*time.Second, "the peer listens", func() bool { return peer.listens(s, 3480) || !p.Alive() })
	return s.rig.Outside("client").Start(s, "uclient", "turnutils_uclient", "-u", "alice", "-w", "secret", "-e", peer.IP.String(), "-r", "3480",
		"-n", fmt.Sprint(n), "-m", "2", "-l", "170", "-z", "20", "-c", s.outGate.Addr().String())
}

// TestReload: SIGHUPs, good and broken files in turn, while calls of SIP and H.323 are up and TURN relays: no packet is lost,
// each good file is in force, each broken one refused, and the daemon holds nothing more afterwards.
func TestReload(t *testing.T) {
	onlyEdged(t, "it has no such reload")
	paths := []string{"user", "tc"}
	if os.Getenv("EDGED_LAB_FULL") != "" {
		paths = append(paths, "xdp")
	}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			if path != "user" && unprivileged() {
				t.Skip("SKIPPED: the kernel path needs root here")
			}
			reloadsDuringCalls(t, path)
		})
	}
}

func reloadsDuringCalls(t *testing.T, path string) {
	need(t, "turnutils_uclient")
	s := newReloadStage(t, path)
	if path != "user" {
		s.needKernelPath(t)
	}
	if path == "xdp" {
		s.forXDP()
	}
	calls, files := reloadSize()
	c := s.crowdedOn(path, calls)
	for i := range 4 { // what is made once is there
		s.pair(i)
	}
	before := s.edge.footprint(t)
	alice, bob := s.heldCall()
	h323Heard(t, alice, bob, false)
	client := s.relayed(files)
	c.talk()
	for i := range files / 2 {
		s.pair(i)
		if i%(files/20) == 0 {
			s.inForce(i)
		}
	}
	lost, sent := c.hush()
	t.Logf("%s, %d files: %d of %d packets of %d calls lost", path, files, lost, sent, calls)
	if lost != 0 || sent < 2*calls*10 {
		t.Errorf("%d of %d packets lost", lost, sent)
	}
	s.unharmed(alice, bob, client)
	c.wantOn(s.scene, path)
	s.edge.same(t, before)
	c.hangUp(s.scene)
	eventually(t, 15*time.Second, "no call and no pinhole of a call is left", func() bool { return s.edge.Count("calls") == 0 && s.edge.Count("h323_calls") == 0 })
}

// unharmed checks the H.323 call and TURN's client, and ends the call.
func (s *reloadStage) unharmed(alice, bob *Proc, client *Proc) {
	s.Helper()
	h323Heard(s.T, alice, bob, false)
	for _, p := range []*Proc{alice, bob} {
		fmt.Fprintln(p.stdin, "report")
		if !until(h323Time, func() bool { return logged(p, "missed 0\n") }) || logged(p, "ended") {
			s.Errorf("H.323: %s has missed packets, or its call has ended: %s", p.Name, tail(p.Log, 300))
		}
	}
	fmt.Fprintln(bob.stdin, "hangup")
	if err := client.Wait(2 * time.Minute); err != nil {
		s.Errorf("TURN: %v", err)
	}
	if b, err := os.ReadFile(client.Log); err != nil || !strings.Contains(string(b), "Total lost packets 0 (0.000000%)") {
		s.Errorf("TURN: %s", tail(client.Log, 800))
	}
}

// TestReloadTunnel: while the relay and both agents read good and broken files in turn, the sessions of two sites stay, and
// neither a stream nor datagrams miss anything.
func TestReloadTunnel(t *testing.T) {
	x := tunnelLab(t, tunnelConfig{})
	x.Join(t)
	_, files := reloadSize()
	rounds, done := files/20, make(chan struct{})
	go func() {
		defer close(done)
		for range rounds {
			x.reload(t)
		}
	}()
	for going := true; going && !t.Failed(); {
		select {
		case <-done: // and once more afterwards
			going = false
		default:
		}
		if err := echoes(x.a.local(t, 7000), 4<<20); err != nil {
			t.Errorf("TCP: %v", err)
		}
		if err := x.a.datagrams(t, 200); err != nil {
			t.Errorf("UDP: %v", err)
		}
	}
	<-done
	for _, e := range []*tunnelEnd{x.a, x.b} {
		if sessions, resumed := e.metric("edged_agent_sessions_total"), e.metric("edged_agent_resumes_total"); sessions != 1 || resumed != 0 {
			t.Errorf("%s has had %d sessions, %d resumed", e.Name, sessions, resumed)
		}
	}
}

// reload has all three daemons read a broken file and then a good one.
func (x *tunnelRig) reload(t *testing.T) {
	for _, e := range []*tunnelEnd{x.relay, x.a, x.b} {
		good, err := os.ReadFile(e.file())
		if err != nil {
			t.Error(err)
			return
		}
		for _, more := range []string{"no_such_key: 1\n", ""} {
			if err := os.WriteFile(e.file(), []byte(string(good)+more), 0o600); err != nil {
				t.Error(err)
				return
			}
			_, err := e.edged(x, "reload", "--admin", "127.0.0.1:9060")
			if (err != nil) != (more != "") || err != nil && !strings.Contains(err.Error(), "no_such_key") {
				t.Errorf("%s, with %q: %v", e.Name, more, err)
			}
		}
	}
}

// TestReloadControl: a restart in place of a reload does cost packets where user space carries them.
func TestReloadControl(t *testing.T) {
	onlyEdged(t, "it has no such reload")
	s := newReloadStage(t, "user")
	c := s.crowdedOn("user", 5)
	c.talk()
	pass(200 * time.Millisecond)
	s.edge.proc.Stop(syscall.SIGKILL)
	s.edge.Start(t)
	pass(200 * time.Millisecond)
	lost, sent := c.hush()
	t.Logf("%d of %d packets lost", lost, sent)
	if lost == 0 {
		t.Error("nothing is lost by a restart either: what does the count count?")
	}
}

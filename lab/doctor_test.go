//go:build lab

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"golang.org/x/sys/unix"
)

// patient is a healthy gateway in a namespace of its own, on which a case plants a fault.
type patient struct {
	*testing.T
	host    *Host
	in, out netip.Addr
	dir     string
	config  string
	resolv  string   // /etc/resolv.conf
	mounts  string   // more mounts, as commands
	by      []string // what starts doctor
	args    []string
}

// newPatient makes the gateway of which doctor has nothing to say.
func (r *Rig) newPatient(t *testing.T, n int) *patient {
	p := &patient{T: t, host: r.namespace(fmt.Sprintf("p%d", n)), dir: t.TempDir(), args: []string{"--call=false"}}
	r.plug(p.host, inside, "lan", n)
	p.in = p.host.IP
	r.plug(p.host, outside, "wan", n)
	p.out = p.host.IP
	r.ip("-n %s route add default via %s254", p.host.ns, nets4[outside])
	p.sysctl("net/ipv4/ip_local_reserved_ports", "40000-59999")
	must(t, "state", os.Mkdir(p.dir+"/state", 0o700))
	for dir := p.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) { // nobody, too, looks into it
		must(t, "folder", os.Chmod(dir, 0o755))
	}
	p.config = fmt.Sprintf(`admin: {listen: 127.0.0.1:9060}
state: {dir: "%s/state"}
networks:
  inside: {addresses: [%s], subnets: [%s0/24], trusted: true}
  outside: {addresses: [%s], trusted: false}
pinholes: {udp: 50000-50999, tcp: 40000-40999}
media: {datapath: user}
sip: {listen: ["udp://inside:5060", "tcp://inside:5060", "udp://outside:5060", "tcp://outside:5060"]}
`, p.dir, p.in, nets4[inside], p.out)
	return p
}

func (p *patient) sysctl(key, value string) { must(p, key, p.host.writeSysctl(key, value)) }

// change replaces a text of the configuration.
func (p *patient) change(from, to string) {
	p.Helper()
	if !strings.Contains(p.config, from) {
		p.Fatalf("the configuration has no %q", from)
	}
	p.config = strings.Replace(p.config, from, to, 1)
}

// file writes a file beside the configuration.
func (p *patient) file(name, text string, mode os.FileMode) {
	must(p, name, os.WriteFile(filepath.Join(p.dir, name), []byte(text), mode))
	must(p, name, os.Chmod(filepath.Join(p.dir, name), mode))
}

// sh runs commands in the namespace.
func (p *patient) sh(commands string) {
	p.Helper()
	must(p, commands, p.host.Do(func() error {
		if out, err := exec.Command("sh", "-ec", commands).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// nft loads rules in the namespace.
func (p *patient) nft(rules string) {
	p.Helper()
	p.file("rules.nft", rules, 0o644)
	p.sh("nft -f " + p.dir + "/rules.nft")
}

// holds keeps a port of the namespace until the case ends.
func (p *patient) holds(proto, address string) {
	p.Helper()
	must(p, address, p.host.Do(func() error {
		if proto == "udp" {
			pc, err := net.ListenPacket("udp", address)
			if err == nil {
				p.Cleanup(func() { pc.Close() })
			}
			return err
		}
		ln, err := net.Listen("tcp", address)
		if err == nil {
			p.Cleanup(func() { ln.Close() })
		}
		return err
	}))
}

// finding is what doctor prints.
type finding struct{ Level, About, Text, Why, Remedy string }

func (f finding) String() string {
	return fmt.Sprintf("%s  %s: %s | %s | → %s", f.Level, f.About, f.Text, f.Why, f.Remedy)
}

// doctor runs doctor and returns its findings but for those that are fine.
func (p *patient) doctor() (bad []finding, code int) {
	p.Helper()
	bin, err := edgedBinary()
	must(p, "build edged", err)
	p.file("edged.yaml", p.config, 0o644)
	p.file("resolv.conf", p.resolv, 0o644)
	script := fmt.Sprintf("mount --bind %s/resolv.conf /etc/resolv.conf\n%s\nexec \"$@\"", p.dir, p.mounts)
	argv := append([]string{"unshare", "--mount", "sh", "-ec", script, "sh"}, p.by...)
	argv = append(append(argv, bin, "doctor", "--json", "--config", p.dir+"/edged.yaml"), p.args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	var errs strings.Builder
	cmd.Stderr = &errs
	var out []byte
	err = p.host.Do(func() error { out, err = cmd.Output(); return err })
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		must(p, "doctor", err)
	}
	var doc struct{ Findings []finding }
	if err := json.Unmarshal(out, &doc); err != nil {
		p.Fatalf("%v: %s%s", err, out, errs.String())
	}
	for _, f := range doc.Findings {
		if f.Level != "ok" {
			bad = append(bad, f)
		}
	}
	return bad, code
}

// clockIsWrong tells whether this machine's clock is kept by nobody: then doctor rightly says so everywhere.
func clockIsWrong() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err != nil || state == unix.TIME_ERROR
}

// withoutClock leaves out what doctor says of the machine's clock, if that is true.
func withoutClock(list []finding) []finding {
	var out []finding
	for _, f := range list {
		if f.About != "clock" || !clockIsWrong() {
			out = append(out, f)
		}
	}
	return out
}

// planted is one fault: what is done, and what doctor must say of it.
type planted struct {
	name   string
	plant  func(*patient)
	level  string
	about  string // the beginning
	text   string // regular expressions
	remedy string
	cured  bool // the remedy is a command, after which doctor has nothing more to say
}

func plantedFaults() []planted {
	return []planted{
		{"port taken", func(p *patient) { p.holds("udp", p.out.String()+":5060") }, "fail", "port udp 198.51.100", `taken by lab\.test \(pid \d+\)`, `sip\.listen\[2\] another port`, false},
		{"port taken, all addresses", func(p *patient) { p.holds("tcp", ":5060") }, "fail", "port tcp", `taken by lab\.test`, `stop it`, false},
		{"admin port taken", func(p *patient) { p.holds("tcp", "127.0.0.1:9060") }, "fail", "daemon", `held by lab\.test`, `admin\.listen another port`, false},
		{"address missing", func(p *patient) { p.sh("ip addr del " + p.out.String() + "/24 dev wan") }, "fail", "address outside", `no interface has 198`, `ip addr add .*networks\.outside\.addresses`, false},
		{"interface down", func(p *patient) { p.sh("ip link set lan down") }, "fail", "address inside", `lan, which is down`, `^ip link set lan up$`, true},
		{"no default route", func(p *patient) { p.sh("ip route del default") }, "fail", "route outside", `no default route for IPv4`, `ip -4 route add default via`, false},
		{"subnet routed elsewhere", func(p *patient) { p.change("subnets: [", "subnets: [10.99.0.0/16, ") }, "fail", "route inside", `10\.99\.0\.0/16 leaves by wan, not by lan`, `ip route add 10\.99\.0\.0/16 via`, false},
		{"rp_filter", func(p *patient) {
			p.sh("ip route replace default via " + nets4[inside] + "254 dev lan")
			p.sysctl("net/ipv4/conf/wan/rp_filter", "1")
		}, "fail", "rp_filter", `wan checks senders strictly`, `rp_filter=2`, false},
		{"MTU differs", func(p *patient) { p.sh("ip link set wan mtu 1492") }, "warn", "MTU", `that of wan \(outside\) is 1492, that of lan`, `ip link set lan mtu 1492`, false},
		{"MTU too small", func(p *patient) { p.sh("ip link set lan mtu 1200") }, "fail", "MTU", `that of lan is 1200`, `mtu 1500`, false},
		{"helper, nftables", func(p *patient) {
			p.nft(`table inet fw { ct helper voip { type "sip" protocol udp; l3proto inet; }
chain pre { type filter hook prerouting priority 0; udp dport 5060 ct helper set "voip"; }
}`)
		}, "warn", "helpers", `helper "sip" gets packets by chain pre of table inet fw`, `^nft delete rule inet fw pre handle \d+$`, true},
		{"helper, iptables, transparent", func(p *patient) {
			p.config += "h323: {listen: [\"tcp://inside:1720\", \"tcp://outside:1720\"], transparent: true}\nfirewall: {manage: true}\n"
			p.sh("iptables-nft -t raw -A PREROUTING -p tcp --dport 1720 -j CT --helper Q.931")
		}, "fail", "helpers", `"Q\.931"`, `^iptables -t raw -D PREROUTING 1$`, true},
		{"input closed", func(p *patient) {
			p.nft(`table inet site { chain in { type filter hook input priority 0; policy drop; iif lo accept; ct state established,related accept; tcp dport 22 accept; }
}`)
		}, "fail", "firewall", `chain in of table inet site \(policy drop\) drops what is sent to udp`, `nft insert rule inet site in udp dport 5060 accept`, false},
		{"media ports closed, ufw", func(p *patient) {
			p.sh("iptables-nft -N ufw-user-input; iptables-nft -A INPUT -j ufw-user-input; iptables-nft -A ufw-user-input -p udp --dport 5060 -j ACCEPT; iptables-nft -A ufw-user-input -p tcp --dport 5060 -j ACCEPT; iptables-nft -P INPUT DROP")
		}, "fail", "firewall", `drops what is sent to udp .*:50000`, `^ufw allow 50000:50999/udp`, false},
		{"closed for the mark", func(p *patient) {
			p.change("tcp: 40000-40999}", "tcp: 40000-40999, firewall: nftables}\nfirewall: {manage: true}")
			p.nft(`table inet site { chain in { type filter hook input priority 0; policy drop; }
}`)
		}, "fail", "firewall", `drops what is sent to`, `nft insert rule inet site in meta mark 0x6564 accept`, false},
		{"sent on to a container", func(p *patient) {
			p.sh("iptables-nft -t nat -N DOCKER; iptables-nft -t nat -A PREROUTING -j DOCKER; iptables-nft -t nat -A DOCKER -p udp --dport 5060 -j DNAT --to-destination 172.17.0.2:5060")
		}, "fail", "firewall", `sent on to another host by rule 1 of chain DOCKER`, `docker ps --filter publish=5060`, false},
		{"Docker closes FORWARD", func(p *patient) {
			p.sysctl("net/ipv4/ip_forward", "1")
			p.sh("iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -P FORWARD DROP")
		}, "warn", "forwarding", `chain FORWARD .* drops what is forwarded from lan to wan`, `^iptables -I DOCKER-USER -i lan -o wan -j ACCEPT`, false},
		{"transparent without rules", func(p *patient) { p.change("sip: {", "sip: {transparent: true, ") }, "fail", "transparent", `table inet edged is not there`, `edged firewall apply`, false},
		{"transparent, src_valid_mark", func(p *patient) {
			p.change("sip: {", "firewall: {manage: true}\nsip: {transparent: true, ")
			p.sysctl("net/ipv4/conf/all/src_valid_mark", "1")
		}, "fail", "transparent", `src_valid_mark is 1`, `^sysctl -w net\.ipv4\.conf\.all\.src_valid_mark=0$`, true},
		{"DNS dead", func(p *patient) { p.resolv = "nameserver 127.0.0.1\n"; p.byName() }, "fail", "DNS", `server 127\.0\.0\.1:53 does not answer`, `nameserver lines of /etc/resolv\.conf`, false},
		{"no such name", func(p *patient) {
			p.host.Knows(p, map[string]netip.Addr{"other.example.org": p.out})
			p.resolv = "nameserver 127.0.0.1\n"
			p.byName()
		}, "fail", "DNS", `pbx\.example\.org \(sip\.domains\.example\.org\.server\) is not found`, `dig .*pbx\.example\.org`, false},
		{"private address outside", func(p *patient) {
			p.sh("ip addr add 10.1.2.3/24 dev wan")
			p.change("["+p.out.String()+"]", "[10.1.2.3]")
		}, "warn", "NAT outside", `10\.1\.2\.3 is private`, `networks\.outside\.advertise`, false},
		{"few descriptors", func(p *patient) { p.by = []string{"prlimit", "--nofile=512:512"} }, "fail", "descriptors", `may open 512, 2000 are needed`, `LimitNOFILE=\d+`, false},
		{"secret missing", func(p *patient) { p.config += turnWithSecret }, "fail", "secrets", `turn\.secret_file: open`, `chown edged`, false},
		{"secret unreadable", func(p *patient) {
			p.config += turnWithSecret
			p.file("turn.secret", "one\n", 0o600)
			p.asNobody()
		}, "fail", "secrets", `permission denied`, `LoadCredential=`, false},
		{"secret for everybody", func(p *patient) { p.config += turnWithSecret; p.file("turn.secret", "one\n", 0o644) }, "warn", "secrets", `everybody may read`, `chmod o-r`, false},
		{"state below a file", func(p *patient) { p.file("plain", "", 0o644); p.change("/state\"}", "/plain/state\"}") }, "fail", "state", `no folder`, `another state\.dir`, false},
		{"state read-only", func(p *patient) { p.mounts = "mount -t tmpfs -o ro none " + p.dir + "/state" }, "fail", "state", `mounted read-only`, `remount,rw`, false},
		{"state full", func(p *patient) { p.mounts = "mount -t tmpfs -o size=64k none " + p.dir + "/state" }, "fail", "state", `room for 0 MiB`, `make room`, false},
		{"state of somebody else", func(p *patient) { p.asNobody() }, "fail", "state", `may not be written by this user`, `chown edged`, false},
		{"rules not seen", func(p *patient) { p.asNobody() }, "warn", "not seen", `CAP_NET_ADMIN`, `sudo edged doctor`, false},
		{"kernel gives media ports away", func(p *patient) { p.sysctl("net/ipv4/ip_local_reserved_ports", "\n") }, "warn", "port ranges", `pinholes\.udp \(50000-50999\)`, `^sysctl -w net\.ipv4\.ip_local_reserved_ports=40000-40999,50000-50999`, false},
		{"media port taken", func(p *patient) { p.holds("udp", p.out.String()+":50500") }, "warn", "port ranges", `50500 by lab\.test`, `pinholes\.udp`, false},
		{"backlog", func(p *patient) { p.sysctl("net/core/somaxconn", "64") }, "warn", "backlog", `somaxconn is 64`, `^sysctl -w net\.core\.somaxconn=4096$`, true},
		{"certificate ended", func(p *patient) { p.certificate(-time.Hour) }, "fail", "certificate", `it has ended`, `renew`, false},
		{"certificate ends soon", func(p *patient) { p.certificate(48 * time.Hour) }, "warn", "certificate", `ends soon`, `renew`, false},
		{"no certificate", func(p *patient) { p.change(`"udp://inside:5060"`, `"tls://inside:5061", "udp://inside:5060"`) }, "fail", "c", `tls`, `tls`, false},
		{"key not the certificate's", func(p *patient) { p.certificate(time.Hour * 999); p.file("edge.key", "", 0o600) }, "fail", "certificates", `PEM data in key`, `must be a pair`, false},
		{"configuration", func(p *patient) { p.change("media: {", "media: {dscp: 64, ") }, "fail", "configuration", `media\.dscp`, `correct media\.dscp`, false},
		{"loopback down", func(p *patient) { p.args = nil; p.sh("ip link set lo down") }, "fail", "call", `lo is down`, `^ip link set lo up$`, true},
	}
}

const turnWithSecret = "turn: {listen: [\"udp://outside:3478\"], realm: example.org, secret_file: turn.secret}\n"

// byName gives the edge a server that it has to look up.
func (p *patient) byName() {
	p.change("sip: {", "sip: {domains: {example.org: {network: outside, server: \"udp:pbx.example.org:5060\"}}, ")
}

// asNobody has doctor run without any right.
func (p *patient) asNobody() {
	p.by = strings.Fields("setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all")
}

// certificate gives the edge one that ends after a while.
func (p *patient) certificate(left time.Duration) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(p, "key", err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge"}, DNSNames: []string{"edge.example.org"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(left),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(p, "certificate", err)
	writePEM(p, filepath.Join(p.dir, "edge.pem"), "CERTIFICATE", der)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(p, "key", err)
	writePEM(p, filepath.Join(p.dir, "edge.key"), "PRIVATE KEY", pkcs8)
	must(p, "key", os.Chmod(filepath.Join(p.dir, "edge.key"), 0o600))
	p.config += "tls: {certificates: [{cert: edge.pem, key: edge.key}]}\n"
}

// TestDoctor: doctor has nothing to say of a healthy gateway, whether the daemon runs or not; and each planted fault is
// found, alone or with what follows from it, with its remedy. A remedy that is a command is carried out, and helps.
func TestDoctor(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "it has no doctor")
	t.Run("healthy", func(t *testing.T) {
		p := r.newPatient(t, 20)
		p.args = nil
		if bad, code := p.doctor(); len(withoutClock(bad)) > 0 || code != 0 {
			t.Errorf("exit code %d, %v", code, bad)
		}
		p.runsEdge()
		if bad, code := p.doctor(); len(withoutClock(bad)) > 0 || code != 0 {
			t.Errorf("beside the daemon: exit code %d, %v", code, bad)
		}
	})
	for i, c := range plantedFaults() {
		t.Run(c.name, func(t *testing.T) {
			p := r.newPatient(t, 21+i)
			c.plant(p)
			bad, code := p.doctor()
			var found *finding
			for _, f := range bad {
				if f.Level == c.level && strings.HasPrefix(f.About, c.about) && regexp.MustCompile(c.text).MatchString(f.Text) && regexp.MustCompile(c.remedy).MatchString(f.Remedy) {
					found = &f
				}
			}
			if found == nil || c.level == "fail" && code != 1 {
				t.Fatalf("exit code %d, %v", code, bad)
			}
			if c.cured {
				p.sh(found.Remedy)
				if bad, code := p.doctor(); len(withoutClock(bad)) > 0 || code != 0 {
					t.Errorf("after %q: exit code %d, %v", found.Remedy, code, bad)
				}
			}
		})
	}
}

// runsEdge starts the daemon.
func (p *patient) runsEdge() {
	p.Helper()
	bin, err := edgedBinary()
	must(p, "build edged", err)
	p.host.dir = p.dir
	e := p.host.Start(p, "edged", bin, "run", "--config", p.dir+"/edged.yaml", "--drain", "1s")
	e.Logged(p, 20*time.Second, "ready")
}

// TestRivals: the daemon refuses to rewrite what a helper of the kernel rewrites, names the rule, and starts if it is told to
// accept that, or if the rule is gone; a helper elsewhere is no reason.
func TestRivals(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "it knows no helpers")
	for i, c := range []struct {
		name, port, helpers string
		starts              bool
	}{{"refused", "5060", "refuse", false}, {"accepted", "5060", "accept", true}, {"another port", "5080", "refuse", true}} {
		t.Run(c.name, func(t *testing.T) {
			p := r.newPatient(t, 120+i)
			p.change("sip: {", "firewall: {manage: true, helpers: "+c.helpers+"}\nsip: {transparent: true, ")
			p.nft(`table inet fw { ct helper voip { type "sip" protocol udp; l3proto inet; }
chain pre { type filter hook prerouting priority 0; udp dport ` + c.port + ` ct helper set "voip"; }
}`)
			p.file("edged.yaml", p.config, 0o644)
			p.host.dir = p.dir
			if c.starts {
				p.runsEdge()
				return
			}
			bin, err := edgedBinary()
			must(t, "build edged", err)
			e := p.host.Start(t, "edged", bin, "run", "--config", p.dir+"/edged.yaml")
			if err := e.Wait(20 * time.Second); err == nil {
				t.Error("it started")
			}
			if log := tail(e.Log, 4000); !strings.Contains(log, "nft delete rule inet fw pre handle") || !strings.Contains(log, "firewall.helpers: accept") {
				t.Error(log)
			}
		})
	}
}

// TestDoctorNAT: a STUN server outside tells what the NAT in front makes of the edge's address; once the configuration says
// it, there is nothing to say.
func TestDoctorNAT(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "it has no doctor")
	server := r.Outside("stun")
	answerSTUN(t, server)
	home, router := r.BehindNAT("edge")
	p := &patient{T: t, host: home, dir: t.TempDir(), args: []string{"--call=false", "--stun", server.IP.String() + ":3478"}}
	must(t, "state", os.Mkdir(p.dir+"/state", 0o700))
	p.sysctl("net/ipv4/ip_local_reserved_ports", "40000-59999")
	p.config = fmt.Sprintf("state: {dir: %s/state}\nnetworks: {outside: {addresses: [%s], trusted: false}}\npinholes: {udp: 50000-50999}\nmedia: {datapath: user}\nsip: {listen: [\"udp://outside:5060\"]}\n", p.dir, home.IP)
	bad, code := p.doctor()
	bad = withoutClock(bad)
	if len(bad) != 1 || code != 1 || bad[0].About != "NAT outside" || !strings.Contains(bad[0].Remedy, "networks.outside.advertise: "+router.IP.String()) {
		t.Fatalf("exit code %d, %v", code, bad)
	}
	p.change("trusted: false", "trusted: false, advertise: "+router.IP.String())
	if bad, code := p.doctor(); len(withoutClock(bad)) > 0 || code != 0 {
		t.Errorf("with advertise: exit code %d, %v", code, bad)
	}
}

// answerSTUN tells whoever asks how it sees them.
func answerSTUN(t *testing.T, h *Host) {
	t.Helper()
	var pc net.PacketConn
	must(t, "STUN server", h.Do(func() (err error) {
		pc, err = net.ListenPacket("udp4", h.IP.String()+":3478")
		return err
	}))
	done := make(chan struct{})
	t.Cleanup(func() { pc.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var req stun.Message
			at, ok := from.(*net.UDPAddr)
			if stun.Decode(buf[:n], &req) != nil || !ok {
				continue
			}
			resp, err := stun.Build(&req, stun.BindingSuccess, &stun.XORMappedAddress{IP: at.IP, Port: at.Port})
			if err == nil {
				_, _ = pc.WriteTo(resp.Raw, from)
			}
		}
	}()
}

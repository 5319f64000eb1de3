//go:build lab

package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/ils"
	"edged.dev/edged/pkg/pinhole"
)

// ilsSchema is what slapd must know to be a NetMeeting directory, and an attribute of another one with the
// same name as an ILS server's own.
const ilsSchema = `include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
attributetype (1.3.6.1.4.1.32473.1.1 NAME 'sipaddress' EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
attributetype (1.3.6.1.4.1.32473.1.2 NAME 'sport' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
attributetype (1.3.6.1.4.1.32473.1.3 NAME 'sappid' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
attributetype (1.3.6.1.4.1.32473.1.4 NAME 'sprotid' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
attributetype (1.3.6.1.4.1.32473.1.5 NAME 'smimetype' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
attributetype (1.3.6.1.4.1.32473.1.6 NAME 'sflags' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
attributetype (1.3.6.1.4.1.32473.1.7 NAME 'ipAddress' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
objectclass (1.3.6.1.4.1.32473.2.1 NAME 'RTPerson' STRUCTURAL MUST cn MAY (sipaddress $ sport $ sappid $ sprotid $ smimetype $ sflags $ rfc822Mailbox $ description))
objectclass (1.3.6.1.4.1.32473.2.2 NAME 'numbered' SUP top AUXILIARY MAY ipAddress)
`

// slapd runs a directory server on the host, with a NetMeeting directory and another one.
func (h *Host) slapd(t *testing.T) netip.AddrPort {
	t.Helper()
	dir := filepath.Join(h.dir, "slapd-"+h.Name)
	conf := ilsSchema + "allow bind_v2 update_anon bind_anon_dn\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n"
	for i, suffix := range []string{"objectClass=RTPerson", "dc=example,dc=org"} {
		data := filepath.Join(dir, fmt.Sprint("db", i))
		must(t, "slapd", os.MkdirAll(data, 0o700))
		conf += fmt.Sprintf("database mdb\nsuffix %q\ndirectory %s\naccess to * by * write\n", suffix, data)
	}
	file, at := filepath.Join(dir, "slapd.conf"), netip.AddrPortFrom(h.IP, 389)
	must(t, "slapd", os.WriteFile(file, []byte(conf), 0o600))
	h.Start(t, "slapd-"+h.Name, "slapd", "-d", "0", "-f", file, "-h", "ldap://"+at.String()+"/")
	eventually(t, 20*time.Second, "slapd listens", func() bool { return h.listens(t, 389) })
	h.ldap(t, "ldapadd", at, "dn: objectClass=RTPerson\nobjectClass: RTPerson\ncn: root\n\ndn: dc=example,dc=org\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: example\n")
	return at
}

// ldap runs one of OpenLDAP's clients on the host, with the text as its input, and returns what it printed.
func (h *Host) ldap(t *testing.T, tool string, server netip.AddrPort, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(tool, append([]string{"-x", "-H", "ldap://" + server.String(), "-o", "nettimeout=20"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := h.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s at %v: %v: %s", tool, server, err, errs.String())
	}
	return out.String()
}

// address looks a name up as NetMeeting does, and returns the address that the entry has for this host.
func (h *Host) address(t *testing.T, server netip.AddrPort, cn string, args ...string) string {
	t.Helper()
	args = append([]string{"-LLL", "-b", "objectClass=RTPerson"}, args...)
	out := h.ldap(t, "ldapsearch", server, "", append(args, "(&(objectClass=RTPerson)(cn="+cn+")(sappid=ms-netmeeting)(sprotid=h323))", "sipaddress")...)
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "sipaddress: "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// littleEndian writes an address as ILS does.
func littleEndian(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprint(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
}

// enlist registers the host as NetMeeting does: Add, then Modify ([MS-TAIL] 4.1).
func (h *Host) enlist(t *testing.T, server netip.AddrPort, cn string, args ...string) {
	t.Helper()
	dn := "dn: cn=" + cn + ",objectClass=RTPerson\n"
	h.ldap(t, "ldapadd", server, dn+"objectClass: RTPerson\ncn: "+cn+"\nsflags: 1\nsipaddress: "+littleEndian(h.IP)+"\n", args...)
	h.ldap(t, "ldapmodify", server, dn+"changetype: modify\nreplace: sappid\nsappid: ms-netmeeting\n-\nreplace: sprotid\nsprotid: h323\n-\nreplace: sport\nsport: 1720\n", args...)
}

// gateNetworks are the rig's networks in the words of the seam.
func (r *Rig) gateNetworks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{r.GW.IPOn(inside, 4)}, Subnets: []netip.Prefix{netip.MustParsePrefix(nets4[inside] + "0/24")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{r.GW.IPOn(outside, 4)}},
	}
}

// listen opens a TCP listener of the gateway's on a side.
func (r *Rig) listen(t *testing.T, s side, port uint16) net.Listener {
	t.Helper()
	var ln net.Listener
	must(t, "listen", r.GW.Do(func() (err error) {
		ln, err = net.Listen("tcp4", netip.AddrPortFrom(r.GW.IPOn(s, 4), port).String())
		return err
	}))
	t.Cleanup(func() { ln.Close() })
	return ln
}

// dialer returns how the gateway dials.
func (r *Rig) dialer() func(ctx context.Context, to string) (net.Conn, error) {
	return func(ctx context.Context, to string) (conn net.Conn, err error) {
		err = r.GW.Do(func() error {
			conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp4", to)
			return err
		})
		return conn, err
	}
}

// directoryGate serves 389 on both sides of the gateway; with the gateway's ALG off it only passes octets on.
func (r *Rig) directoryGate(t *testing.T, cfg ils.Config, alg bool) *ils.Registry {
	t.Helper()
	cfg.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 389}, {Proto: "tcp", Network: "outside", Port: 389}}
	server, err := ils.New(cfg, ils.Deps{Networks: r.gateNetworks(), Dial: r.dialer()}, zaptest.NewLogger(t))
	must(t, "ils", err)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for s, name := range []string{"inside", "outside"} {
		ln := r.listen(t, side(s), 389)
		if alg {
			work.Go(func() { must(t, "serve", server.ServeListener(ctx, name, ln)) })
		} else {
			work.Go(func() { r.passOn(ctx, ln, cfg.Server) })
		}
	}
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
	return server.Registry()
}

// passOn is a relay that reads nothing: the negative control.
func (r *Rig) passOn(ctx context.Context, ln net.Listener, to string) {
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		a, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer a.Close()
			b, err := r.dialer()(ctx, to)
			if err != nil {
				return
			}
			defer b.Close()
			go func() {
				io.Copy(b, a)
				b.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(a, b)
		}()
	}
}

// ilsLab begins a case that needs OpenLDAP's programs.
func ilsLab(t *testing.T) *Rig {
	t.Helper()
	for _, name := range []string{"slapd", "ldapadd", "ldapmodify", "ldapsearch", "ldapdelete", "ldapcompare"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: slapd, ldap-utils)", err)
		}
	}
	return lab(t)
}

// TestILSOutsideServer: two inside users register at a directory outside and are found from both sides, each
// under an address that means something to who asks; an outside host that looks one up is led to that one.
func TestILSOutsideServer(t *testing.T) {
	r := ilsLab(t)
	in1, in2, srv, out := r.Inside("in1"), r.Inside("in2"), r.Outside("srv"), r.Outside("out1")
	direct := srv.slapd(t)
	cfg := ils.DefaultConfig()
	cfg.Server = direct.String()
	reg := r.directoryGate(t, cfg, true)
	fromIn, fromOut := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 389), netip.AddrPortFrom(r.GW.IPOn(outside, 4), 389)
	wan := r.Capture("wan", "tcp", "port", "389")

	in1.enlist(t, fromIn, "alice@example.org")
	in2.enlist(t, fromIn, "bob@example.org", "-P", "2")
	out.enlist(t, fromOut, "carol@example.org")
	public := littleEndian(r.GW.IPOn(outside, 4))
	for _, tc := range []struct {
		who  *Host
		at   netip.AddrPort
		name string
		want string
	}{
		{out, direct, "alice@example.org", public},
		{out, direct, "bob@example.org", public},
		{out, fromOut, "alice@example.org", public},
		{in2, fromIn, "alice@example.org", littleEndian(in1.IP)},
		{in1, fromIn, "bob@example.org", littleEndian(in2.IP)},
		{in1, fromIn, "carol@example.org", littleEndian(out.IP)},
	} {
		for _, version := range []string{"2", "3"} {
			if got := tc.who.address(t, tc.at, tc.name, "-P", version); got != tc.want {
				t.Errorf("%s finds %s at %v (v%s) under %s, want %s", tc.who.Name, tc.name, tc.at, version, got, tc.want)
			}
		}
	}
	for name, host := range map[string]*Host{"bob@example.org": in2, "alice@example.org": in1} {
		out.address(t, fromOut, name)
		if to, ok := reg.Route("", r.GW.IPOn(outside, 4), out.IP, ils.H323); !ok || to != netip.AddrPortFrom(host.IP, 1720) {
			t.Errorf("after looking %s up a call goes to %v, want %v", name, to, host.IP)
		}
	}
	// an address in a filter, and in a comparison
	if got := in1.ldap(t, "ldapsearch", fromIn, "", "-LLL", "-b", "objectClass=RTPerson", "(sipaddress="+littleEndian(in1.IP)+")", "cn"); !strings.Contains(got, "cn: alice@example.org") {
		t.Errorf("no entry with alice's own address:\n%s", got)
	}
	in1.ldap(t, "ldapmodify", fromIn, "dn: cn=alice@example.org,objectClass=RTPerson\nchangetype: delete\n")
	if got, ok := reg.Lookup("alice@example.org"); ok {
		t.Errorf("deleted, but: %+v", got)
	}
	leaked := []string{littleEndian(in1.IP), littleEndian(in2.IP)}
	for _, p := range wan.Stop(t) {
		for _, a := range leaked {
			if bytes.Contains(p.Payload, []byte(a)) {
				t.Errorf("%s left the gateway: %q", a, p.Payload)
			}
		}
	}
}

// TestILSInsideServer: the directory is inside, its users registered without passing the edge.
func TestILSInsideServer(t *testing.T) {
	r := ilsLab(t)
	in1, in2, srv, out := r.Inside("in1"), r.Inside("in2"), r.Inside("srv"), r.Outside("out1")
	direct := srv.slapd(t)
	cfg := ils.DefaultConfig()
	cfg.Server, cfg.Pool = direct.String(), []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("198.51.100.3")}
	reg := r.directoryGate(t, cfg, true)
	fromOut := netip.AddrPortFrom(r.GW.IPOn(outside, 4), 389)
	in1.enlist(t, direct, "alice@example.org")
	in2.enlist(t, direct, "bob@example.org")
	seen := map[string]bool{}
	for name, host := range map[string]*Host{"alice@example.org": in1, "bob@example.org": in2} {
		got := out.address(t, fromOut, name)
		e, ok := reg.Lookup(name)
		if !ok || e.Host != host.IP || got != littleEndian(e.Public) || seen[got] {
			t.Errorf("%s is found under %s, and the registry has %+v", name, got, e)
		}
		seen[got] = true
		if to, ok := reg.Route("", e.Public, netip.MustParseAddr("203.0.113.9"), ils.T120); !ok || to.Addr() != host.IP {
			t.Errorf("a stranger's call to %v goes to %v", e.Public, to)
		}
	}
}

// TestILSOrdinaryDirectory: other entries, on the same port and with attributes of the same name, stay.
func TestILSOrdinaryDirectory(t *testing.T) {
	r := ilsLab(t)
	in1, srv := r.Inside("in1"), r.Outside("srv")
	direct := srv.slapd(t)
	cfg := ils.DefaultConfig()
	cfg.Server = direct.String()
	r.directoryGate(t, cfg, true)
	fromIn := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 389)
	dn, number := "cn=printer,dc=example,dc=org", littleEndian(in1.IP)
	in1.ldap(t, "ldapadd", fromIn, "dn: "+dn+"\nobjectClass: device\nobjectClass: numbered\ncn: printer\nipAddress: "+number+"\nserialNumber: "+in1.IP.String()+"\n")
	out := srv.ldap(t, "ldapsearch", direct, "", "-LLL", "-b", "dc=example,dc=org", "(cn=printer)")
	if !strings.Contains(out, "ipAddress: "+number) || !strings.Contains(out, "serialNumber: "+in1.IP.String()) {
		t.Errorf("stored:\n%s", out)
	}
	if through := in1.ldap(t, "ldapsearch", fromIn, "", "-LLL", "-b", "dc=example,dc=org", "(cn=printer)"); through != out {
		t.Errorf("read through the edge:\n%s\nread directly:\n%s", through, out)
	}
	if out := in1.ldap(t, "ldapsearch", fromIn, "", "-LLL", "-b", "dc=example,dc=org", "(ipAddress="+number+")", "cn"); !strings.Contains(out, "cn: printer") {
		t.Errorf("not found by its number:\n%s", out)
	}
}

// TestILSBuiltin: a site without a directory has the edge's.
func TestILSBuiltin(t *testing.T) {
	r := ilsLab(t)
	in1, in2, out := r.Inside("in1"), r.Inside("in2"), r.Outside("out1")
	cfg := ils.DefaultConfig()
	cfg.Server = ils.Builtin
	reg := r.directoryGate(t, cfg, true)
	fromIn, fromOut := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 389), netip.AddrPortFrom(r.GW.IPOn(outside, 4), 389)
	in1.enlist(t, fromIn, "alice@example.org")
	out.enlist(t, fromOut, "carol@example.org", "-P", "2")
	if got := out.address(t, fromOut, "alice@example.org"); got != littleEndian(r.GW.IPOn(outside, 4)) {
		t.Errorf("from outside alice is at %s", got)
	}
	if got := in2.address(t, fromIn, "alice@example.org"); got != littleEndian(in1.IP) {
		t.Errorf("from inside alice is at %s", got)
	}
	if got := in2.address(t, fromIn, "carol@example.org"); got != littleEndian(out.IP) {
		t.Errorf("from inside carol is at %s", got)
	}
	if e, ok := reg.Resolved(out.IP); !ok || e.Host != in1.IP {
		t.Errorf("Resolved = %+v, %v", e, ok)
	}
	in1.ldap(t, "ldapdelete", fromIn, "", "cn=alice@example.org,objectClass=RTPerson")
	if got := out.address(t, fromOut, "alice@example.org"); got != "" {
		t.Errorf("deleted, but found at %s", got)
	}
}

// TestILSControl: without the ALG the inside address is what the world learns.
func TestILSControl(t *testing.T) {
	r := ilsLab(t)
	in1, srv, out := r.Inside("in1"), r.Outside("srv"), r.Outside("out1")
	direct := srv.slapd(t)
	cfg := ils.DefaultConfig()
	cfg.Server = direct.String()
	r.directoryGate(t, cfg, false)
	in1.enlist(t, netip.AddrPortFrom(r.GW.IPOn(inside, 4), 389), "alice@example.org")
	if got := out.address(t, direct, "alice@example.org"); got != littleEndian(in1.IP) {
		t.Errorf("the control found %s: the cases prove nothing", got)
	}
}

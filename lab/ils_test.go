//go:build lab

package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/ils"
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

// directoryGate is an edged with the directory service on both sides, and whatever else is configured.
func (r *Rig) directoryGate(t *testing.T, server, more string) *Edge {
	t.Helper()
	return r.Edge(t, EdgeConfig{More: fmt.Sprintf("ils: {listen: [\"tcp://inside:389\", \"tcp://inside:1002\", \"tcp://outside:389\"], server: %q}\n%s", server, more)})
}

// users lists who is registered, by name.
func (e *Edge) users(t *testing.T) map[string]ils.Entry {
	t.Helper()
	_, b := e.get("/api/v1/ils")
	var doc struct{ ILS []ils.Entry }
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	out := map[string]ils.Entry{}
	for _, u := range doc.ILS {
		out[u.Name] = u
	}
	return out
}

// ilsLab begins a case that needs OpenLDAP's programs.
func ilsLab(t *testing.T) *Rig {
	t.Helper()
	for _, name := range []string{"slapd", "ldapadd", "ldapmodify", "ldapsearch", "ldapdelete", "ldapcompare"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: slapd, ldap-utils)", err)
		}
	}
	onlyEdged(t, "it has no directory")
	return lab(t)
}

// TestILSOutsideServer: two inside users register at a directory outside and are found from both sides, each
// under an address that means something to who asks; an outside host that looks one up is led to that one.
func TestILSOutsideServer(t *testing.T) {
	r := ilsLab(t)
	in1, in2, srv, out := r.Inside("in1"), r.Inside("in2"), r.Outside("srv"), r.Outside("out1")
	direct := srv.slapd(t)
	e := r.directoryGate(t, direct.String(), "t120: {listen: [\"tcp://outside:1503\"]}\n")
	for i, h := range []*Host{in1, in2} {
		h.answerer(t, 1503, byte(i+1))
	}
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
	for i, name := range []string{"alice@example.org", "bob@example.org", "alice@example.org"} {
		out.address(t, fromOut, name)
		out.reaches(t, r.GW.IPOn(outside, 4), byte(i%2+1))
	}
	// an address in a filter, and in a comparison
	if got := in1.ldap(t, "ldapsearch", fromIn, "", "-LLL", "-b", "objectClass=RTPerson", "(sipaddress="+littleEndian(in1.IP)+")", "cn"); !strings.Contains(got, "cn: alice@example.org") {
		t.Errorf("no entry with alice's own address:\n%s", got)
	}
	in1.ldap(t, "ldapmodify", fromIn, "dn: cn=alice@example.org,objectClass=RTPerson\nchangetype: delete\n")
	if got := e.users(t); len(got) != 1 || got["bob@example.org"].Host != in2.IP {
		t.Errorf("alice is deleted, and the registry has %+v", got)
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
	e := r.directoryGate(t, direct.String(), "t120: {listen: [\"tcp://outside:1503\"]}\n")
	public := r.GW.IPOn(outside, 4)
	for i, h := range []*Host{in1, in2} {
		h.answerer(t, 1503, byte(i+1))
		h.enlist(t, direct, fmt.Sprintf("user%d@example.org", i+1))
	}
	for _, i := range []byte{2, 1} {
		name := fmt.Sprintf("user%d@example.org", i)
		if got := out.address(t, netip.AddrPortFrom(public, 389), name); got != littleEndian(public) {
			t.Errorf("%s is found under %s", name, got)
		}
		out.reaches(t, public, i)
	}
	if got := e.users(t); len(got) != 2 || got["user1@example.org"].Host != in1.IP {
		t.Errorf("the registry has %+v", got)
	}
}

// TestILSOrdinaryDirectory: other entries, on the same port and with attributes of the same name, stay.
func TestILSOrdinaryDirectory(t *testing.T) {
	r := ilsLab(t)
	in1, srv := r.Inside("in1"), r.Outside("srv")
	direct := srv.slapd(t)
	r.directoryGate(t, direct.String(), "")
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
	e := r.directoryGate(t, ils.Builtin, "")
	fromIn, fromOut := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 1002), netip.AddrPortFrom(r.GW.IPOn(outside, 4), 389)
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
	if got := e.users(t); len(got) != 1 || got["alice@example.org"].Host != in1.IP {
		t.Errorf("the registry has %+v", got)
	}
	in1.ldap(t, "ldapdelete", fromIn, "", "cn=alice@example.org,objectClass=RTPerson")
	if got := out.address(t, fromOut, "alice@example.org"); got != "" {
		t.Errorf("deleted, but found at %s", got)
	}
}

// TestILSControl: with the ALG off, and the port forwarded, the inside address is what the world learns.
func TestILSControl(t *testing.T) {
	r := ilsLab(t)
	in1, srv, out := r.Inside("in1"), r.Outside("srv"), r.Outside("out1")
	direct := srv.slapd(t)
	r.Edge(t, EdgeConfig{More: fmt.Sprintf("forwards: [{name: ldap, listen: \"tcp://inside:389\", to: %q, allow: [%s0/24]}]\n", direct, nets4[inside])})
	in1.enlist(t, netip.AddrPortFrom(r.GW.IPOn(inside, 4), 389), "alice@example.org")
	if got := out.address(t, direct, "alice@example.org"); got != littleEndian(in1.IP) {
		t.Errorf("the control found %s: the cases prove nothing", got)
	}
}

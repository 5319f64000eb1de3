//go:build lab

package lab

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Who logs in at the lab's proxies.
const (
	proxyUser     = "alice"
	proxyPassword = "secret1"
	kerberosRealm = "EXAMPLE.ORG"
	proxyService  = "HTTP/proxy.example.org"
)

// need skips the case where a program is missing.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
		}
	}
}

// openDir makes a directory that processes without privileges can use. It is removed with the test.
func openDir(t testing.TB) string {
	t.Helper()
	base := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d", prefix, os.Getpid()))
	must(t, "directory", os.MkdirAll(base, 0o755))
	dir, err := os.MkdirTemp(base, "box-")
	must(t, "directory", err)
	must(t, "directory", os.Chmod(dir, 0o777))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// writeFile writes a file that anybody can read.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	must(t, "file", os.WriteFile(name, []byte(text), 0o644))
	must(t, "file", os.Chmod(name, 0o644))
	return name
}

// listening waits until a port of the host answers.
func (h *Host) listening(t testing.TB, at netip.AddrPort, p *Proc) {
	t.Helper()
	eventually(t, 30*time.Second, p.Name+" listens on "+at.String(), func() bool {
		return !p.Alive() || h.Do(func() error {
			c, err := net.DialTimeout("tcp", at.String(), time.Second)
			if err == nil {
				_ = c.Close()
			}
			return err
		}) == nil
	})
	if !p.Alive() {
		t.Fatalf("%s ended: %v\n%s", p.Name, p.err, tail(p.Log, 4000))
	}
}

// squidLogins are the ways to log in at squid that the lab has: "" is none, fake is Debian's ntlm_fake_auth, whose
// challenge has a target name outside of the message.
var squidLogins = []string{"", "basic", "digest", "ntlm", "fake", "negotiate"}

// squid starts squid on the host's address on side s and returns where. more is appended to its configuration.
func (h *Host) squid(t testing.TB, s side, port uint16, login, more string) netip.AddrPort {
	t.Helper()
	need(t, "squid")
	dir := openDir(t)
	at := netip.AddrPortFrom(h.IPOn(s, 4), port)
	auth := ""
	switch login {
	case "basic":
		need(t, "htpasswd")
		file := filepath.Join(dir, "basic")
		out, err := exec.Command("htpasswd", "-bcm", file, proxyUser, proxyPassword).CombinedOutput()
		must(t, string(out), err)
		must(t, "password file", os.Chmod(file, 0o644))
		auth = "auth_param basic program /usr/lib/squid/basic_ncsa_auth " + file + "\nauth_param basic realm edged-lab\nauth_param basic children 2\n"
	case "digest":
		sum := md5.Sum([]byte(proxyUser + ":edged-lab:" + proxyPassword))
		file := writeFile(t, filepath.Join(dir, "digest"), proxyUser+":edged-lab:"+hex.EncodeToString(sum[:])+"\n")
		auth = "auth_param digest program /usr/lib/squid/digest_file_auth -c " + file + "\nauth_param digest realm edged-lab\nauth_param digest children 2\n"
	case "ntlm":
		need(t, "/usr/bin/python3")
		helper := writeFile(t, filepath.Join(dir, "ntlm_helper.py"), readPeer(t, "tunnel/ntlm_helper.py"))
		auth = "auth_param ntlm program /usr/bin/python3 " + helper + "\nauth_param ntlm children 4\nauth_param ntlm keep_alive on\n"
	case "fake":
		auth = "auth_param ntlm program /usr/lib/squid/ntlm_fake_auth\nauth_param ntlm children 4\nauth_param ntlm keep_alive on\n"
	case "negotiate":
		keytab := startKDC(t).keytab
		auth = "auth_param negotiate program /usr/lib/squid/negotiate_kerberos_auth -k " + keytab + " -s " + proxyService + "@" + kerberosRealm + "\nauth_param negotiate children 2\n"
	}
	ok := "acl ok src 0.0.0.0/0\n"
	if auth != "" {
		ok = "acl ok proxy_auth REQUIRED\n"
	}
	name := fmt.Sprintf("squid-%s-%d", or(login, "open"), port)
	conf := fmt.Sprintf(`http_port %s
pid_filename %[2]s/pid
cache_log %[2]s/cache.log
access_log stdio:%[2]s/access.log
coredump_dir %[2]s
cache deny all
shutdown_lifetime 1 second
pinger_enable off
visible_hostname proxy.example.org
dns_nameservers 127.0.0.1
acl SSL_ports port 443 2492
%s%shttp_access deny CONNECT !SSL_ports
http_access allow ok
http_access deny all
%s`, at, dir, auth, ok, more)
	p := h.Start(t, name, "squid", "-N", "-f", writeFile(t, filepath.Join(dir, "squid.conf"), conf))
	t.Cleanup(func() {
		p.Stop(syscall.SIGKILL) // it takes five seconds for SIGTERM
		if t.Failed() {
			t.Logf("%s:\n%s\n%s", name, tail(filepath.Join(dir, "cache.log"), 3000), tail(filepath.Join(dir, "access.log"), 3000))
		}
	})
	h.listening(t, at, p)
	return at
}

// readPeer reads a file of the folder of real client programs: EDGED_PEERS, default ../shared/peers beside the repository.
func readPeer(t testing.TB, name string) string {
	t.Helper()
	file := filepath.Join(or(os.Getenv("EDGED_PEERS"), "../../shared/peers"), name)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Skipf("SKIPPED: %v (EDGED_PEERS names its folder)", err)
	}
	return string(b)
}

// tinyproxy starts tinyproxy, which wants Basic, on the host's address on side s and returns where.
func (h *Host) tinyproxy(t testing.TB, s side, port uint16) netip.AddrPort {
	t.Helper()
	need(t, "tinyproxy")
	dir := openDir(t)
	at := netip.AddrPortFrom(h.IPOn(s, 4), port)
	conf := fmt.Sprintf("Port %d\nListen %s\nTimeout 600\nLogFile \"%s/log\"\nPidFile \"%[3]s/pid\"\nMaxClients 200\nAllow 0.0.0.0/0\nBasicAuth %s %s\nConnectPort 443\nConnectPort 2492\nDisableViaHeader Yes\n",
		at.Port(), at.Addr(), dir, proxyUser, proxyPassword)
	p := h.Start(t, "tinyproxy", "tinyproxy", "-d", "-c", writeFile(t, filepath.Join(dir, "conf"), conf))
	h.listening(t, at, p)
	return at
}

// dante starts dante's SOCKS5 proxy on the host's address on side s, which lets through to port 443 and 80. With login
// it wants the password of a user that exists in its own view of the system only.
func (h *Host) dante(t testing.TB, s side, port uint16, login bool) netip.AddrPort {
	t.Helper()
	need(t, "danted", "unshare", "openssl")
	dir := openDir(t)
	at := netip.AddrPortFrom(h.IPOn(s, 4), port)
	method := map[bool]string{false: "none", true: "username"}[login]
	rule := func(port int) string {
		return fmt.Sprintf("socks pass {\n  from: 0.0.0.0/0 to: 0.0.0.0/0 port = %d\n  command: connect\n  log: error connect\n}\n", port)
	}
	conf := fmt.Sprintf("logoutput: %s/log\ninternal: %s port = %d\nexternal: wan\nclientmethod: none\nsocksmethod: %s\nuser.privileged: root\nuser.unprivileged: nobody\n"+
		"client pass {\n  from: 0.0.0.0/0 to: 0.0.0.0/0\n  log: error\n}\n", dir, at.Addr(), at.Port(), method) + rule(443) + rule(80) +
		"socks block {\n  from: 0.0.0.0/0 to: 0.0.0.0/0\n  log: error connect\n}\n"
	file := writeFile(t, filepath.Join(dir, "conf"), conf)
	hash, err := exec.Command("openssl", "passwd", "-6", proxyPassword).Output()
	must(t, "password", err)
	for name, line := range map[string]string{
		"passwd": proxyUser + ":x:4711:4711::/nonexistent:/bin/false\n",
		"shadow": proxyUser + ":" + strings.TrimSpace(string(hash)) + ":19000:0:99999:7:::\n",
	} {
		b, err := os.ReadFile("/etc/" + name)
		must(t, name, err)
		writeFile(t, filepath.Join(dir, name), string(b)+line)
	}
	script := fmt.Sprintf("mount --bind %s/passwd /etc/passwd && mount --bind %[1]s/shadow /etc/shadow && exec danted -f %s -p %[1]s/pid", dir, file)
	p := h.Start(t, fmt.Sprintf("dante-%s", method), "unshare", "--mount", "sh", "-c", script)
	h.listening(t, at, p)
	return at
}

// kdc is a Kerberos realm with alice and the proxy's service.
type kdc struct {
	config string // krb5.conf
	keytab string // of the service
	alice  string // keytab of alice
	cache  string // a ticket of alice
}

// kdcOf has the realm of each case that has one; several ask for it.
var (
	kdcOnce sync.Mutex
	kdcOf   = map[testing.TB]kdc{}
)

// startKDC starts MIT's KDC on loopback of this process's own namespace: the library that asks it opens its own sockets.
func startKDC(t testing.TB) kdc {
	t.Helper()
	need(t, "krb5kdc", "kdb5_util", "kadmin.local", "kinit")
	kdcOnce.Lock()
	defer kdcOnce.Unlock()
	if k, ok := kdcOf[t]; ok {
		return k
	}
	dir := openDir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, "port", err)
	at := l.Addr().String()
	_ = l.Close()
	conf := fmt.Sprintf("[libdefaults]\n default_realm = %s\n dns_lookup_kdc = false\n udp_preference_limit = 1\n rdns = false\n[realms]\n %[1]s = {\n  kdc = %s\n }\n", kerberosRealm, at)
	profile := fmt.Sprintf("[kdcdefaults]\n kdc_listen = \"\"\n kdc_tcp_listen = %s\n[realms]\n %s = {\n  database_name = %s/principal\n  key_stash_file = %[3]s/stash\n  acl_file = %[3]s/acl\n }\n", at, kerberosRealm, dir)
	k := kdc{config: writeFile(t, filepath.Join(dir, "krb5.conf"), conf), keytab: filepath.Join(dir, "http.keytab"), alice: filepath.Join(dir, "alice.keytab"), cache: filepath.Join(dir, "cache")}
	env := append(os.Environ(), "KRB5_CONFIG="+k.config, "KRB5_KDC_PROFILE="+writeFile(t, filepath.Join(dir, "kdc.conf"), profile))
	run := func(stdin string, argv ...string) {
		t.Helper()
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env, cmd.Stdin = env, strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		must(t, fmt.Sprintf("%v: %s", argv, out), err)
	}
	run("", "kdb5_util", "create", "-r", kerberosRealm, "-s", "-P", "master")
	run("", "kadmin.local", "-q", "addprinc -pw "+proxyPassword+" "+proxyUser)
	run("", "kadmin.local", "-q", "addprinc -randkey "+proxyService)
	run("", "kadmin.local", "-q", "ktadd -k "+k.keytab+" "+proxyService)
	run("", "kadmin.local", "-q", "ktadd -norandkey -k "+k.alice+" "+proxyUser)
	must(t, "keytab", os.Chmod(k.keytab, 0o644))
	cmd := exec.Command("krb5kdc", "-n")
	cmd.Env = env
	must(t, "krb5kdc", cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(t, 20*time.Second, "the KDC listens", func() bool {
		c, err := net.Dial("tcp", at)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	run(proxyPassword+"\n", "kinit", "-c", k.cache, proxyUser)
	kdcOf[t] = k
	t.Cleanup(func() { kdcOnce.Lock(); delete(kdcOf, t); kdcOnce.Unlock() })
	return k
}

// nginx starts nginx as a reverse proxy before the relay's port 80; buffers says whether it collects requests and answers,
// as it does unless it is told not to.
func (h *Host) nginx(t testing.TB, at, to netip.AddrPort, buffers bool) {
	t.Helper()
	need(t, "nginx")
	dir := openDir(t)
	more := ""
	if !buffers {
		more = "proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\"; client_max_body_size 0;"
	}
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 512; }
http { access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
 server { listen %[2]s; location / { proxy_pass http://%[3]s; %[4]s } } }
`, dir, at, to, more)
	p := h.Start(t, "nginx", "nginx", "-p", dir, "-c", writeFile(t, filepath.Join(dir, "nginx.conf"), conf))
	h.listening(t, at, p)
}

// haproxy starts HAProxy before the relay's port 80, as it is or told not to wait for more before it sends.
func (h *Host) haproxy(t testing.TB, at, to netip.AddrPort, noDelay bool) {
	t.Helper()
	need(t, "haproxy")
	option := ""
	if noDelay {
		option = " option http-no-delay\n"
	}
	conf := fmt.Sprintf("defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n timeout tunnel 60s\n%sfrontend f\n bind %s\n default_backend b\nbackend b\n server s %s\n", option, at, to)
	p := h.Start(t, "haproxy", "haproxy", "-db", "-f", writeFile(t, filepath.Join(openDir(t), "conf"), conf))
	h.listening(t, at, p)
}

//go:build lab

package lab

import (
	"crypto/rand"
	"crypto/sha1"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// messengerTime is how long a client may take for one step; a loaded machine needs much of it.
const messengerTime = 30 * time.Second

// badSignature is what the client says when its server's signature is bad, and then hangs up.
const badSignature = "Invalid message signature"

// Messenger is a running pidgin-sipe, without its window.
type Messenger struct {
	User string
	Host *Host
	proc *Proc
	home string
	// meddled tells that its server's signatures are meant to be bad; else one that is fails the test.
	meddled bool
}

// Messenger starts a client of user@example.org on the host that talks to the server or edge at the address; it
// has signed on when the call returns.
func (h *Host) Messenger(t testing.TB, user string, to netip.AddrPort, proto string) *Messenger {
	t.Helper()
	m := h.messenger(t, user, to, proto)
	m.wants(t, "signed-on")
	return m
}

// messenger starts a client, and does not wait for anything. It connects through an HTTP proxy if that is named: host, port,
// user and password.
func (h *Host) messenger(t testing.TB, user string, to netip.AddrPort, proto string, proxy ...string) *Messenger {
	t.Helper()
	bin, err := sipecli()
	must(t, "build sipecli", err)
	m := &Messenger{User: user, Host: h, home: filepath.Join(h.dir, "messenger-"+user)}
	must(t, "home", os.MkdirAll(m.home, 0o700))
	m.proc = h.Start(t, "messenger-"+user, append([]string{bin, m.home, user + "@example.org", "pw-" + user, to.String(), proto}, proxy...)...)
	t.Cleanup(func() {
		if m.count("error", badSignature) > 0 && !m.meddled {
			t.Errorf("%s was sent a bad signature: %q", m.User, m.events("error"))
		}
	})
	return m
}

// sipecli compiles the client once per run.
var sipecli = sync.OnceValues(func() (string, error) {
	flags, err := exec.Command("pkg-config", "--cflags", "--libs", "purple").Output()
	if err != nil {
		return "", fmt.Errorf("pkg-config: %w", err)
	}
	bin := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d", prefix, os.Getpid()), "sipecli")
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		return "", err
	}
	args := append([]string{"-O1", "-rdynamic", "-o", bin, "sipe/sipecli.c"}, strings.Fields(string(flags))...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("gcc: %w: %s", err, out)
	}
	return bin, nil
})

//go:embed sipe/kamailio.cfg
var messengerRegistrar string

// MessengerRegistrar starts a Kamailio that Messenger's clients can register with.
func (h *Host) MessengerRegistrar(t testing.TB) netip.AddrPort {
	t.Helper()
	h.kamailio(t, "messenger-registrar", messengerRegistrar, map[string]any{"IP": h.IP})
	return h.Addr(4, 5060)
}

// messengerLab begins a case with Messenger's client.
func messengerLab(t *testing.T) *Rig {
	t.Helper()
	onlyEdged(t, "it knows nothing of Microsoft's clients")
	r := lab(t)
	if _, err := sipecli(); err != nil {
		t.Skipf("SKIPPED: pidgin-sipe cannot be built (Debian packages: lab/packages.txt): %v", err)
	}
	if _, err := os.Stat("/usr/lib/purple-2/libsipe.so"); errors.Is(err, os.ErrNotExist) {
		t.Skip("SKIPPED: no pidgin-sipe (Debian packages: lab/packages.txt)")
	}
	return r
}

// Do gives the client a command.
func (m *Messenger) Do(format string, args ...any) {
	fmt.Fprintf(m.proc.stdin, format+"\n", args...)
}

// events returns the events that begin so.
func (m *Messenger) events(prefix string) (found []string) {
	b, err := os.ReadFile(m.proc.Log)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "EV "); ok && strings.HasPrefix(rest, prefix) {
			found = append(found, rest)
		}
	}
	return found
}

// counts waits until there are n events that begin so and contain the texts, and tells whether there are.
func (m *Messenger) counts(n int, prefix string, texts ...string) bool {
	return until(messengerTime, func() bool { return m.count(prefix, texts...) >= n || !m.proc.Alive() }) && m.count(prefix, texts...) >= n
}

func (m *Messenger) count(prefix string, texts ...string) (n int) {
events:
	for _, e := range m.events(prefix) {
		for _, text := range texts {
			if !strings.Contains(e, text) {
				continue events
			}
		}
		n++
	}
	return n
}

// wants fails the test unless the client reports such an event.
func (m *Messenger) wants(t testing.TB, prefix string, texts ...string) {
	t.Helper()
	if !m.counts(1, prefix, texts...) {
		if !m.proc.Alive() {
			t.Fatalf("%s ended: %v", m.User, m.proc.err)
		}
		t.Fatalf("%s does not report %q %q; it reports:\n%s", m.User, prefix, texts, strings.Join(m.events(""), "\n"))
	}
}

// says sends an instant message, and waits until the other client has it.
func (m *Messenger) says(t testing.TB, to *Messenger, text string) {
	t.Helper()
	m.Do("im sip:%s@example.org %s", to.User, text)
	to.wants(t, "im-recv sip:"+m.User+"@example.org", text)
}

// Renumber gives an inside host an address that pidgin-sipe does not take for private, so that it listens itself when
// it sends a file: only 10., 172.16. and 192.168. count.
func (h *Host) Renumber(t testing.TB, r *Rig) {
	t.Helper()
	b := h.IP.As4()
	to := netip.AddrFrom4([4]byte{172, 20, b[2], b[3]})
	r.ip("-n %s addr del %v/24 dev eth0", h.ns, h.IP)
	r.ip("-n %s addr add %v/24 dev eth0", h.ns, to)
	r.ip("-n %s route add %v/32 dev eth0", h.ns, r.GW.IPOn(h.Side, 4))
	r.ip("-n %s route replace default via %v", h.ns, r.GW.IPOn(h.Side, 4))
	r.ip("-n %s route replace %v/32 dev lan", r.GW.ns, to)
	h.IP = to
}

// offers makes a file of random octets and offers it to the other client.
func (m *Messenger) offers(t testing.TB, to *Messenger, name string, size int) *offered {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	return m.offersData(t, to, name, data)
}

// offersData offers a file.
func (m *Messenger) offersData(t testing.TB, to *Messenger, name string, data []byte) *offered {
	t.Helper()
	dir := filepath.Join(m.home, "files")
	must(t, "file", os.MkdirAll(dir, 0o700))
	file := filepath.Join(dir, name)
	must(t, "file", os.WriteFile(file, data, 0o600))
	m.Do("send sip:%s@example.org %s", to.User, file)
	return &offered{from: m, to: to, name: name, data: data}
}

// offered is a file on its way.
type offered struct {
	from, to *Messenger
	name     string
	data     []byte
}

// arrives waits until both clients say that the file is complete, and compares.
func (f *offered) arrives(t testing.TB) {
	t.Helper()
	f.from.wants(t, "xfer send-complete", " "+f.name)
	f.to.wants(t, "xfer recv-complete", " "+f.name)
	if !f.complete(messengerTime) {
		t.Errorf("%s: %d octets arrived, %d were sent, and they differ", f.name, len(f.received(t)), len(f.data))
	}
}

// complete tells whether the file that was sent is at the receiver within d.
func (f *offered) complete(d time.Duration) bool {
	want := sha1.Sum(f.data)
	return until(d, func() bool {
		b, err := os.ReadFile(f.file())
		return err == nil && sha1.Sum(b) == want
	})
}

// file is where the receiver writes it.
func (f *offered) file() string { return filepath.Join(f.to.home, "dl", f.name) }

// received returns what has been written of the file, nil if nothing was.
func (f *offered) received(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(f.file())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("file: %v", err)
	}
	return b
}

//go:build lab

package lab

import (
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

// Messenger is a running pidgin-sipe, without its window.
type Messenger struct {
	User string
	Host *Host
	proc *Proc
	home string
	read int // octets of the log that have been judged, by "next"
}

// Messenger starts a client of user@example.org on the host that talks to the server or edge at the address; it
// has signed on when the call returns.
func (h *Host) Messenger(t testing.TB, user string, to netip.AddrPort, proto string) *Messenger {
	t.Helper()
	m := h.messenger(t, user, to, proto)
	m.wants(t, "signed-on")
	return m
}

// messenger starts a client, and does not wait for anything.
func (h *Host) messenger(t testing.TB, user string, to netip.AddrPort, proto string) *Messenger {
	t.Helper()
	bin, err := sipecli()
	must(t, "build sipecli", err)
	m := &Messenger{User: user, Host: h, home: filepath.Join(h.dir, "messenger-"+user)}
	must(t, "home", os.MkdirAll(m.home, 0o700))
	m.proc = h.Start(t, "messenger-"+user, bin, m.home, user+"@example.org", "pw-"+user, to.String(), proto)
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

// counts waits until there are n events that begin so and contain the texts, within d.
func (m *Messenger) counts(d time.Duration, n int, prefix string, texts ...string) bool {
	return until(d, func() bool { return m.count(prefix, texts...) >= n || !m.proc.Alive() }) && m.count(prefix, texts...) >= n
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
	if !m.counts(messengerTime, 1, prefix, texts...) {
		t.Fatalf("%s does not report %q %q; it reports:\n%s", m.User, prefix, texts, strings.Join(m.events(""), "\n"))
	}
}

// says sends an instant message, and waits until the other client has it.
func (m *Messenger) says(t testing.TB, to *Messenger, text string) {
	t.Helper()
	m.Do("im sip:%s@example.org %s", to.User, text)
	to.wants(t, "im-recv sip:"+m.User+"@example.org", text)
}

//go:build lab

package lab

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newMailRig is a relay whose mailboxes lie on a small disk of their own. Site a may leave messages for b; b may reach a,
// but not leave anything there.
func newMailRig(t *testing.T) *tunnelRig {
	r := lab(t)
	onlyEdged(t, "the reference has no tunnel")
	disk := filepath.Join(r.Dir, "tunnel-relay", "state", "tunnel", "mailbox")
	must(t, "folder", os.MkdirAll(disk, 0o700))
	must(t, "disk", syscall.Mount("none", disk, "tmpfs", 0, "size=96m"))
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	x := newTunnelRig(t, r, tunnelConfig{
		Policy: "[{from: a, to: b, services: [mailbox]}, {from: b, to: a, services: [echo]}]",
		Relay:  "mailbox: {per_device: 40MiB, min_free: 8MiB}\n",
	})
	x.Join(t)
	return x
}

func (x *tunnelRig) mailDisk() string {
	return filepath.Join(x.relay.dir, "state", "tunnel", "mailbox")
}

// slow limits what a router sends to the outside until it is called again with "".
func (h *Host) slow(t *testing.T, rate string) {
	t.Helper()
	args := []string{"qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms"}
	if rate == "" {
		args = []string{"qdisc", "del", "dev", "eth0", "root"}
	}
	must(t, "rate", h.Do(func() error {
		if out, err := exec.Command("tc", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// mail sends a file whose name is its text, or random octets if size is not 0.
func (e *tunnelEnd) mail(x *tunnelRig, to, name string, size int, flags ...string) (string, error) {
	file := filepath.Join(e.dir, name)
	text := []byte(name)
	if size > 0 {
		text = make([]byte, size)
		_, _ = rand.Read(text)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return "", err
	}
	return e.edged(x, append([]string{"tunnel", "send", to, file}, flags...)...)
}

// half returns the octets of a half-sent file at the relay.
func (x *tunnelRig) half() (n int64) {
	_ = filepath.Walk(filepath.Join(x.mailDisk(), "files"), func(_ string, st os.FileInfo, err error) error {
		if err == nil && !st.IsDir() {
			n += st.Size()
		}
		return nil
	})
	return n
}

// TestTunnelMailbox: what site a sends while b is away, through a relay that is killed in the middle of it, b fetches when it
// comes: each once, in order, nothing that has expired. What the policy, the quota or the disk do not let in is refused
// to the sender's face.
func TestTunnelMailbox(t *testing.T) {
	x := newMailRig(t)
	eventually(t, 30*time.Second, "b's key is published", func() bool {
		_, err := x.a.mail(x, "b", "first", 0)
		return err == nil
	})
	_, err := x.b.mail(x, "a", "back", 0)
	mailRefused(t, err, "no rule lets b reach the service mailbox of a")
	x.b.kill()
	_, err = x.a.mail(x, "b", "short-lived", 0, "--ttl", "1s")
	must(t, "send", err)
	late := time.Now().Add(1500 * time.Millisecond)
	x.mailKilled(t)
	_, err = x.a.mail(x, "b", "last", 0)
	must(t, "send", err)
	_, err = x.a.mail(x, "b", "more", 16<<20)
	mailRefused(t, err, "quota would be exceeded: of the device")
	<-time.After(time.Until(late))
	x.b.start(t, x, "tunnel")
	eventually(t, 30*time.Second, "b is attached", func() bool { return x.b.attachedBy(x) != "" })
	x.mailFetched(t, "first", "large", "last")

	fill := filepath.Join(x.mailDisk(), "fill")
	must(t, "fill the disk", os.WriteFile(fill, make([]byte, 70<<20), 0o600))
	_, err = x.a.mail(x, "b", "no-room", 16<<20)
	mailRefused(t, err, "the disk is full")
	must(t, "make room", os.Remove(fill))
	_, err = x.a.mail(x, "b", "room", 16<<20)
	must(t, "send", err)
	x.mailFetched(t, "room")
}

// mailKilled sends the file "large", of 32 MiB, and kills the relay while a part of it is there.
func (x *tunnelRig) mailKilled(t *testing.T) {
	t.Helper()
	const size = 32 << 20
	x.a.router.slow(t, "50mbit")
	sent := make(chan error, 1)
	go func() {
		_, err := x.a.mail(x, "b", "large", size)
		sent <- err
	}()
	eventually(t, 30*time.Second, "a part of the file is there", func() bool { return x.half() > 4<<20 })
	x.relay.kill()
	if n := x.half(); n >= size {
		t.Errorf("the relay was killed with %d octets on its disk: too late", n)
	}
	x.a.router.slow(t, "")
	x.relay.start(t, x, "run")
	must(t, "send", <-sent)
	out, err := x.a.edged(x, "tunnel", "send", "b", filepath.Join(x.a.dir, "large"))
	if err != nil || !strings.HasPrefix(out, "was stored at the relay before") {
		t.Errorf("the same command again: %s, %v", out, err)
	}
}

// mailFetched wants b's inbox to have these of a's files, in this order, and then nothing.
func (x *tunnelRig) mailFetched(t *testing.T, names ...string) {
	t.Helper()
	in := filepath.Join(x.b.dir, "in-"+names[0])
	out, err := x.b.edged(x, "tunnel", "inbox", "--to", in)
	if want := strings.Join(names, " from a\n") + " from a"; err != nil || out != want {
		t.Errorf("inbox: %q, want %q, %v", out, want, err)
	}
	for _, name := range names {
		want, err := os.ReadFile(filepath.Join(x.a.dir, name))
		must(t, "file", err)
		got, err := os.ReadFile(filepath.Join(in, name))
		if a, b := sha256.Sum256(want), sha256.Sum256(got); err != nil || a != b {
			t.Errorf("%s: %d octets of %d, SHA-256 %x, want %x, %v", name, len(got), len(want), b, a, err)
		}
	}
	if out, err := x.b.edged(x, "tunnel", "inbox", "--to", in+"-again"); err != nil || out != "" {
		t.Errorf("a second time: %q, %v", out, err)
	}
}

// mailRefused wants a message to have been refused, and the sender to be told why.
func mailRefused(t *testing.T, err error, why string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("want %q: %v", why, err)
	}
}

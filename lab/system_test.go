//go:build lab && system

package lab

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func ownNamespace(t testing.TB) netns.NsHandle {
	fd, err := netns.Get()
	must(t, "own namespace", err)
	return fd
}

// directCall makes a call from alice to bob's own address, and both hear each other.
func (s *scene) directCall() (a, b *Dialog) {
	s.Helper()
	a, req := s.invite(s.alice, s.bob, fmt.Sprintf("sip:bob@%v", s.bob.Addr), Offer{Addr: s.va.Addr})
	b = s.answer(a, s.bob, req, s.va, s.vb)
	s.hearEachOther(300 * time.Millisecond)
	return a, b
}

// TestPackage is a newcomer's day: install the deb, edit three lines, start; then a reload with a broken file, a
// daemon that hangs, the sandbox, and the end.
func TestPackage(t *testing.T) {
	deb := builtPackage(t)
	s := newScene(t, plan{NoEdge: true})
	d := s.rig.Boot(t)
	must(t, "deb", copyFile(deb, filepath.Join(d.root, "edged.deb")))
	d.Run("dpkg", "--install", "/edged.deb")
	if out, err := d.Try("systemctl", "is-active", "edged"); err == nil {
		t.Errorf("the package starts a service that nobody has configured: %s", out)
	}
	before := s.alice.NewDialog(s.inGate, fmt.Sprintf("sip:bob@%v", s.bob.Addr))
	before.Send("MESSAGE", "")
	s.bob.Never("a message before the service runs", 300*time.Millisecond, func(m *Message) bool { return m.CallID() == before.ID })

	threeLines := []string{"192.0.2.1]", s.inGate.Addr().String() + "]", "192.0.2.0/24", nets4[inside] + "0/24", "198.51.100.1]", s.outGate.Addr().String() + "]"}
	d.Edit("etc/edged/edged.yaml", threeLines...)
	d.Run("edged", "check")
	d.Run("systemctl", "enable", "--now", "edged")
	a, _ := s.directCall()

	d.Edit("etc/edged/edged.yaml", "sip:\n", "sip:\n  no_such_key: 1\n")
	d.Run("systemctl", "reload", "edged")
	eventually(t, 10*time.Second, "the broken file is noticed", func() bool {
		out, _ := d.Try("edged", "status", "--admin", "127.0.0.1:9060")
		return strings.Contains(out, "no_such_key")
	})
	s.hearEachOther(300 * time.Millisecond)
	a.Bye(s.bob)
	second, _ := s.directCall()
	second.Bye(s.bob)
	d.Edit("etc/edged/edged.yaml", "  no_such_key: 1\n", "")

	d.exposure(2.0)
	d.hang()
	again, _ := s.directCall()
	again.Bye(s.bob)
	s.listenersAreKept(d)
	s.activated(d)

	d.Run("dpkg", "--purge", "edged")
	d.nothingLeft()
}

// builtPackage returns the deb of this machine's architecture, which make test-system has built.
func builtPackage(t *testing.T) string {
	t.Helper()
	arch, err := exec.Command("dpkg", "--print-architecture").Output()
	must(t, "architecture", err)
	list, _ := filepath.Glob("../bin/packages/*_" + strings.TrimSpace(string(arch)) + ".deb")
	if len(list) != 1 {
		t.Fatalf("bin/packages holds %d packages for this machine: make test-system builds it", len(list))
	}
	return list[0]
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// exposure checks what systemd thinks of the unit's sandbox: 0 is closed, 10 open.
func (s *system) exposure(limit float64) {
	s.Helper()
	out := s.Run("systemd-analyze", "security", "--no-pager", "edged.service")
	m := regexp.MustCompile(`Overall exposure level for edged.service: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		s.Fatalf("systemd-analyze says:\n%s", out)
	}
	if score, err := strconv.ParseFloat(m[1], 64); err != nil || score > limit {
		s.Errorf("exposure %s, at most %v", m[1], limit)
	} else {
		s.Logf("systemd-analyze security: %s", m[1])
	}
}

// dropIn changes the unit, and restarts the service.
func (s *system) dropIn(lines string) {
	s.Helper()
	s.Run("mkdir", "-p", "/etc/systemd/system/edged.service.d")
	must(s, "drop-in", os.WriteFile(filepath.Join(s.root, "etc/systemd/system/edged.service.d/test.conf"), []byte("[Service]\n"+lines), 0o644))
	s.Run("systemctl", "daemon-reload")
	s.Run("systemctl", "restart", "edged")
}

// hang stops the daemon's process: the watchdog has to end it and systemd to start another.
func (s *system) hang() {
	s.Helper()
	s.dropIn("WatchdogSec=3\n")
	pid := func() string { return s.Run("systemctl", "show", "--value", "--property", "MainPID", "edged") }
	first := pid()
	s.Run("sh", "-c", "kill -STOP "+first)
	eventually(s, 60*time.Second, "another daemon in place of the one that hangs", func() bool {
		now := pid()
		state, _ := s.Try("systemctl", "is-active", "edged")
		return now != first && now != "0" && state == "active"
	})
	s.Run("rm", "-r", "/etc/systemd/system/edged.service.d")
}

// listenersAreKept restarts and kills the daemon while somebody connects all the time: nobody is refused, and what is said
// meanwhile is answered. Without the store of systemd they are refused.
func (s *scene) listenersAreKept(d *system) {
	s.Helper()
	if n := d.Run("systemctl", "show", "--value", "--property", "NFileDescriptorStore", "edged"); n != "4" {
		s.Errorf("systemd keeps %s listeners, want 4", n)
	}
	kill := func() { d.Run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "edged") }
	for how, end := range map[string]func(){"restarted": func() { d.Run("systemctl", "restart", "edged") }, "killed": kill} {
		if in, refused := s.connecting(d, end); refused != 0 {
			s.Errorf("%s: %d refused, %d let in", how, refused, in)
		} else {
			s.Logf("%s: %d connections, none refused", how, in)
		}
		a, _ := s.directCall()
		a.Bye(s.bob)
	}
	d.dropIn("FileDescriptorStoreMax=0\n")
	d.Run("systemctl", "stop", "edged") // which empties the store
	d.Run("systemctl", "start", "edged")
	if in, refused := s.connecting(d, kill); refused == 0 {
		s.Errorf("without the store nobody of %d is refused: what does it do?", in)
	} else {
		s.Logf("without the store: %d let in, %d refused", in, refused)
	}
	d.Run("rm", "-r", "/etc/systemd/system/edged.service.d")
	d.Run("systemctl", "daemon-reload")
}

// connecting ends the daemon and connects until another one runs and answers.
func (s *scene) connecting(d *system, end func()) (in, refused int) {
	s.Helper()
	pid := func() string { return d.Run("systemctl", "show", "--value", "--property", "MainPID", "edged") }
	before, over, counted := pid(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(counted)
		for {
			var c net.Conn
			err := s.inHost.Do(func() (err error) {
				c, err = net.DialTimeout("tcp4", s.inGate.String(), 10*time.Second)
				return err
			})
			if err == nil {
				in++
				_ = c.Close()
			} else {
				refused++
			}
			select {
			case <-over:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	end()
	eventually(s, 60*time.Second, "another daemon", func() bool {
		now := pid()
		state, _ := d.Try("systemctl", "is-active", "edged")
		return now != before && now != "0" && state == "active"
	})
	close(over)
	<-counted
	return in, refused
}

// activated has systemd open the listeners: the first call starts the daemon.
func (s *scene) activated(d *system) {
	s.Helper()
	d.Run("systemctl", "stop", "edged")
	d.Edit("usr/lib/systemd/system/edged.socket", "Datagram=192.0.2.1:", "Datagram="+s.inGate.Addr().String()+":", "Stream=192.0.2.1:", "Stream="+s.inGate.Addr().String()+":",
		"Datagram=198.51.100.1:", "Datagram="+s.outGate.Addr().String()+":", "Stream=198.51.100.1:", "Stream="+s.outGate.Addr().String()+":")
	d.Run("systemctl", "daemon-reload")
	d.Run("systemctl", "enable", "--now", "edged.socket")
	if state, _ := d.Try("systemctl", "is-active", "edged"); state != "inactive" {
		s.Errorf("before the first packet the service is %s", state)
	}
	a, _ := s.directCall()
	a.Bye(s.bob)
	if n := d.Run("systemctl", "show", "--value", "--property", "NFileDescriptorStore", "edged"); n != "0" {
		s.Errorf("%s of the socket unit's listeners are in the store, too", n)
	}
	if log := d.Run("journalctl", "--unit", "edged", "--no-pager"); strings.Contains(log, "handed over a socket that is no listener") || strings.Contains(log, "of no use") {
		s.Errorf("not all sockets are used: %s", log)
	}
}

// nothingLeft looks for anything that bears the product's name.
func (s *system) nothingLeft() {
	s.Helper()
	must(s, "look", filepath.WalkDir(s.root, func(path string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, s.root)
		switch {
		case err != nil || name == "/edged.deb" || strings.HasPrefix(name, "/var/log/"):
		case name == "/proc" || name == "/sys" || name == "/run" || name == "/dev":
			return fs.SkipDir
		case strings.Contains(e.Name(), "edged") && name != "":
			s.Errorf("left after the purge: %s", name)
		}
		return nil
	}))
	if out, err := s.Try("systemctl", "cat", "edged"); err == nil {
		s.Errorf("the unit is still there:\n%s", out)
	}
}

// TestImage builds the image without any network and runs its file system as a container would: as nobody special,
// with two capabilities, in the gateway's network.
func TestImage(t *testing.T) {
	s := newScene(t, plan{NoEdge: true})
	store := filepath.Join(s.rig.Dir, "store")
	build := exec.Command("unshare", "--net", "../tools/image.sh")
	build.Env = append(os.Environ(), "IMAGE_ROOT="+store)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("image: %v\n%s", err, out)
	}
	buildah := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("buildah", append([]string{"--root", store, "--storage-driver", "vfs"}, args...)...).Output()
		must(t, "buildah "+args[0], err)
		return strings.TrimSpace(string(out))
	}
	name := buildah("from", "--pull-never", "localhost/edged:latest")
	t.Cleanup(func() { _ = exec.Command("buildah", "--root", store, "--storage-driver", "vfs", "rm", name).Run() })
	if user := buildah("inspect", "--format", "{{.OCIv1.Config.User}}", name); user != "65532:65532" {
		t.Errorf("the image runs as %q", user)
	}
	root := buildah("mount", name)
	s.smallerThan(root, 40<<20)
	for _, dir := range []string{"etc/edged", "proc", "sys"} { // as a container engine makes them
		must(t, "mount point", os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, dir := range []string{"/proc", "/sys"} {
		must(t, dir, unix.Mount(dir, root+dir, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(root+dir, unix.MNT_DETACH) })
	}
	config := fmt.Sprintf("admin: {listen: 127.0.0.1:9060}\nnetworks:\n  inside: {addresses: [%v], subnets: [%s0/24]}\n  outside: {addresses: [%v]}\n"+
		"media: {pin: \"\"}\nsip: {listen: [\"udp://inside:5060\", \"udp://outside:5060\"]}\n", s.inGate.Addr(), nets4[inside], s.outGate.Addr())
	must(t, "configuration", os.WriteFile(filepath.Join(root, "etc/edged/edged.yaml"), []byte(config), 0o644))
	s.container(root, "/edged", "check")
	ready := s.container(root, "/edged", "run")
	eventually(t, 20*time.Second, "the container is healthy", func() bool { return s.container(root, "/edged", "status", "--healthz").Wait(5*time.Second) == nil })
	a, _ := s.directCall()
	a.Bye(s.bob)
	if log, _ := os.ReadFile(ready.Log); !bytes.Contains(log, []byte(`"attached":"tcx"`)) {
		t.Errorf("two capabilities, and media is not in the kernel:\n%s", log)
	}
}

// container runs a program of the image as its user with CAP_NET_ADMIN and CAP_BPF, on the gateway.
func (s *scene) container(root string, argv ...string) *Proc {
	s.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_BPF}, Setpgid: true, Pdeathsig: syscall.SIGKILL,
	}
	return s.rig.GW.launch(s, "container-"+argv[len(argv)-1], cmd)
}

// smallerThan checks how much the files below a folder hold.
func (s *scene) smallerThan(root string, limit int64) {
	s.Helper()
	var sum int64
	must(s, "size", filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if info, e := e.Info(); err == nil && e == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	}))
	s.Logf("image: %.1f MiB", float64(sum)/(1<<20))
	if sum > limit {
		s.Errorf("image: %d bytes, at most %d", sum, limit)
	}
}

//go:build lab && system

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// system is a whole Debian, booted with its own systemd in the gateway's namespace.
type system struct {
	testing.TB
	root string
	proc *Proc
	init string // process id of its systemd, as the host sees it
}

// debian returns a fresh copy of Debian's base system. The original is made once (debootstrap, a minute) and kept
// in EDGED_SYSTEM_CACHE, by default the user's cache folder.
func debian(t testing.TB, dir string) string {
	t.Helper()
	cache := os.Getenv("EDGED_SYSTEM_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		must(t, "cache folder", err)
		cache = filepath.Join(user, "edged-lab")
	}
	base := filepath.Join(cache, "bookworm")
	if _, err := os.Stat(filepath.Join(base, "etc/debian_version")); err != nil {
		must(t, "cache folder", os.MkdirAll(cache, 0o755))
		t.Log("debootstrap: a minute or two")
		making := base + ".new"
		must(t, "remove the unfinished", os.RemoveAll(making))
		out, err := exec.Command("debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2", "bookworm", making).CombinedOutput()
		if err != nil {
			t.Fatalf("debootstrap: %v\n%s", err, out[max(0, len(out)-2000):])
		}
		must(t, "keep", os.Rename(making, base))
	}
	root := filepath.Join(dir, "debian")
	out, err := exec.Command("cp", "-a", base, root).CombinedOutput()
	if err != nil {
		t.Fatalf("copy: %v %s", err, out)
	}
	return root
}

// Boot starts Debian on the gateway and waits until its systemd has started everything.
func (r *Rig) Boot(t testing.TB) *system {
	t.Helper()
	s := &system{TB: t, root: debian(t, r.Dir)}
	host := &Host{Name: "host", fd: ownNamespace(t), dir: r.Dir}
	s.proc = host.Start(t, "debian", "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe",
		"--link-journal=no", "--directory="+s.root, "--network-namespace-path=/run/netns/"+r.GW.ns,
		"--capability=CAP_NET_ADMIN,CAP_BPF", "--system-call-filter=bpf")
	t.Cleanup(func() { // systemd ends when it is told so, or nspawn kills it
		_, _ = s.Try("systemctl", "poweroff", "--force", "--force")
	})
	eventually(t, 60*time.Second, "Debian has booted", func() bool {
		if s.init = s.child(); s.init == "" {
			return false
		}
		state, _ := s.Try("systemctl", "is-system-running")
		return strings.HasPrefix(state, "running") || strings.HasPrefix(state, "degraded")
	})
	return s
}

// child returns the one process that systemd-nspawn has started, "" if there is none yet.
func (s *system) child() string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.proc.cmd.Process.Pid))
	if list := strings.Fields(string(b)); len(list) > 0 {
		return list[len(list)-1]
	}
	return ""
}

// Try runs a command inside.
func (s *system) Try(argv ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--target", s.init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd=/",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"}, argv...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Run runs a command inside that has to succeed.
func (s *system) Run(argv ...string) string {
	s.Helper()
	out, err := s.Try(argv...)
	if err != nil {
		log, _ := s.Try("journalctl", "--unit", "edged", "--lines", "30", "--no-pager")
		s.Fatalf("%s: %v\n%s\n%s", strings.Join(argv, " "), err, out, log)
	}
	return out
}

// Edit replaces texts of a file inside, each of which must be there.
func (s *system) Edit(file string, pairs ...string) {
	s.Helper()
	path := filepath.Join(s.root, file)
	b, err := os.ReadFile(path)
	must(s, "read "+file, err)
	text := string(b)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			s.Fatalf("%s has no %q:\n%s", file, pairs[i], text)
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	must(s, "write "+file, os.WriteFile(path, []byte(text), 0o644))
}

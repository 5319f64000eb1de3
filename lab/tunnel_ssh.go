//go:build lab

package lab

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// sshSite is OpenSSH at site b, as site a sees it: at port 2200 of its own loopback.
type sshSite struct {
	from *tunnelEnd
	dir  string // keys, and what is copied
	args []string
}

// sshd starts OpenSSH's server at site b.
func (x *tunnelRig) sshd(t *testing.T) *sshSite {
	t.Helper()
	need(t, "ssh", "scp", "ssh-keygen", "/usr/sbin/sshd")
	dir := openDir(t)
	must(t, "mode", os.Chmod(dir, 0o755))
	for _, name := range []string{"host", "user"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput()
		must(t, string(out), err)
	}
	must(t, "separation", os.MkdirAll("/run/sshd", 0o755))
	conf := writeFile(t, filepath.Join(dir, "sshd.conf"), fmt.Sprintf("ListenAddress 192.0.2.2:2200\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\n"+
		"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n", dir, dir))
	server := x.b.Start(t, "sshd", "/usr/sbin/sshd", "-D", "-e", "-f", conf)
	x.b.listening(t, x.b.Addr(4, 2200), server)
	return &sshSite{from: x.a, dir: dir, args: []string{"-F", "none", "-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30", "-o", "BatchMode=yes"}}
}

// run runs one of OpenSSH's programs at site a.
func (s *sshSite) run(stdin []byte, program string, args ...string) (out []byte, err error) {
	cmd := exec.Command(program, append(append([]string{}, s.args...), args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	err = s.from.Do(func() (err error) {
		out, err = cmd.Output()
		return err
	})
	return out, err
}

// talk runs a command at site b that answers what it is told, and copies a file there and back.
func (s *sshSite) talk(t *testing.T, size int) error {
	t.Helper()
	file := make([]byte, size)
	_, _ = rand.Read(file)
	got, err := s.run(file, "ssh", "-p", "2200", "root@127.0.0.1", "cat; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		return fmt.Errorf("ssh: %w, want the exit code of what ran there", err)
	}
	if !bytes.Equal(got, file) {
		return fmt.Errorf("ssh: %d octets sent, %d came back, or other ones", len(file), len(got))
	}
	here, there, back := filepath.Join(s.dir, "here"), filepath.Join(s.dir, "there"), filepath.Join(s.dir, "back")
	must(t, "file", os.WriteFile(here, file, 0o600))
	if _, err := s.run(nil, "scp", "-P", "2200", here, "root@127.0.0.1:"+there); err != nil {
		return fmt.Errorf("scp there: %w", err)
	}
	if _, err := s.run(nil, "scp", "-P", "2200", "root@127.0.0.1:"+there, back); err != nil {
		return fmt.Errorf("scp back: %w", err)
	}
	if got, err = os.ReadFile(back); err != nil || !bytes.Equal(got, file) {
		return fmt.Errorf("scp: %d octets came back, or other ones: %w", len(got), err)
	}
	for _, name := range []string{there, back} {
		must(t, "file", os.Remove(name))
	}
	return nil
}

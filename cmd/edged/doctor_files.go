package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media/fastpath"
)

// Room that a state directory should have, and must.
const (
	roomWanted = 100 << 20
	roomNeeded = 10 << 20
)

// state looks at state.dir.
func (x *exam) state(context.Context) []finding {
	dir := x.cfg.State.Dir
	if dir == "" {
		return []finding{{
			Level: fastpath.Warn, About: "state", Text: "state.dir is empty", Why: "registrations and calls end with the daemon", Remedy: "state: {dir: /var/lib/edged}",
		}}
	}
	at := existingFolder(dir)
	remedy := fmt.Sprintf("mkdir -p %s && chown edged %s, StateDirectory=edged in the systemd unit, or another state.dir", dir, dir)
	bad := func(text string) []finding {
		return []finding{{Level: fastpath.Fail, About: "state", Text: text, Why: "the daemon does not start, or forgets registrations when it ends", Remedy: remedy}}
	}
	st, err := os.Stat(at)
	if err != nil {
		return bad(err.Error())
	}
	if !st.IsDir() {
		return bad(at + " is no folder")
	}
	var fsStat unix.Statfs_t
	if err := unix.Statfs(at, &fsStat); err == nil {
		if fsStat.Flags&unix.ST_RDONLY != 0 {
			remedy = fmt.Sprintf("mount -o remount,rw the file system of %s, or another state.dir", at)
			return bad(at + " is on a file system that is mounted read-only")
		}
		if room := fsStat.Bavail * uint64(fsStat.Bsize); room < roomWanted {
			f := finding{
				Level: fastpath.Warn, About: "state", Text: fmt.Sprintf("%s has room for %d MiB", at, room>>20), Why: "without room registrations and call records are not written",
				Remedy: "make room (journalctl --vacuum-size=200M, old logs), or another state.dir",
			}
			if room < roomNeeded {
				f.Level = fastpath.Fail
			}
			return []finding{f}
		}
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		if x.daemon.runs() && errors.Is(err, unix.EACCES) {
			return []finding{fine("state", "%s is the daemon's, not this user's", at)}
		}
		return bad(fmt.Sprintf("%s may not be written by this user: %v", at, err))
	}
	return []finding{fine("state", "%s may be written", at)}
}

// existingFolder returns the path or the nearest folder above it that exists, in which it would be made.
func existingFolder(dir string) string {
	for {
		_, err := os.Lstat(dir)
		up := filepath.Dir(dir)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) || up == dir {
			return dir
		}
		dir = up
	}
}

// secretFile is a file of the configuration that nobody else should read.
type secretFile struct{ key, path string }

// secretFiles lists them.
func (c *config) secretFiles() []secretFile {
	var out []secretFile
	add := func(key, path string) {
		if path != "" {
			out = append(out, secretFile{key, within(c.dir, path)})
		}
	}
	for i, p := range c.TLS.Certificates {
		add(fmt.Sprintf("tls.certificates[%d].key", i), p.Key)
	}
	add("turn.users_file", c.TURN.UsersFile)
	add("turn.secret_file", c.TURN.SecretFile)
	add("proxy.users_file", c.Proxy.UsersFile)
	add("agent.key_file", c.Agent.KeyFile)
	add("tunnel.key_file", c.Tunnel.KeyFile)
	return out
}

// secrets looks whether files with secrets can be read by the daemon and by nobody else.
func (x *exam) secrets(context.Context) []finding {
	var out []finding
	list := x.cfg.secretFiles()
	for _, f := range list {
		out = append(out, x.secret(f)...)
	}
	out = append(out, x.readable("tunnel.users_file", x.cfg.Tunnel.UsersFile)...)
	out = append(out, x.readable("tls.client_ca", x.cfg.TLS.ClientCA)...)
	if open, err := os.Stat(x.file); err == nil && open.Mode()&0o004 != 0 && x.inlineSecrets() {
		out = append(out, finding{
			Level: fastpath.Warn, About: "secrets", Text: fmt.Sprintf("everybody may read %s, which has passwords in it", x.file), Why: "whoever has an account here has them",
			Remedy: "name them ${NAME} and put NAME=value into /etc/edged/edged.env (mode 600), or use files; chmod 640 " + x.file,
		})
	}
	if len(out) == 0 && len(list) > 0 {
		out = append(out, fine("secrets", "%d files can be read by this user, and not by everybody", len(list)))
	}
	return out
}

func (x *exam) secret(f secretFile) []finding {
	st, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(f.key, ".key_file") {
		return nil // it is made
	}
	if list := x.readable(f.key, f.path); list != nil || err != nil {
		return list
	}
	if st.Mode()&0o004 == 0 {
		return nil
	}
	return []finding{{
		Level: fastpath.Warn, About: "secrets", Text: fmt.Sprintf("everybody may read %s (%s)", f.path, f.key), Why: "whoever has an account here has the secret",
		Remedy: fmt.Sprintf("chmod o-r %s, and chgrp edged %s (chmod g+r) if the daemon is not its owner", f.path, f.path),
	}}
}

// readable looks whether this user may read a file.
func (x *exam) readable(key, path string) []finding {
	if path == "" {
		return nil
	}
	path = within(x.cfg.dir, path)
	if f, err := os.Open(path); err == nil {
		f.Close()
		return nil
	} else if x.daemon.runs() && errors.Is(err, fs.ErrPermission) {
		return []finding{fine("secrets", "%s is the daemon's, not this user's", path)}
	} else {
		return []finding{{
			Level: fastpath.Fail, About: "secrets", Text: fmt.Sprintf("%s: %v", key, err), Why: "the daemon does not start, or refuses to reload",
			Remedy: fmt.Sprintf("chown edged %s (chmod 400), LoadCredential= in the systemd unit, or correct %s", path, key),
		}}
	}
}

// inlineSecrets tells whether the file itself has passwords, and not only ${NAME}.
func (x *exam) inlineSecrets() bool {
	c := x.cfg
	if c.Admin.Token == "" && len(c.TURN.Users) == 0 && len(c.MSTURN.Users)+len(c.MSTURN.Secrets) == 0 {
		return false
	}
	data, err := os.ReadFile(x.file)
	if err != nil {
		return false
	}
	var secrets []string
	secrets = append(secrets, string(c.Admin.Token))
	for _, p := range c.TURN.Users {
		secrets = append(secrets, fmt.Sprint(p))
	}
	for _, s := range secrets {
		if s != "" && strings.Contains(string(data), s) {
			return true
		}
	}
	return false
}

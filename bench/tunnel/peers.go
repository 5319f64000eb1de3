package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// file writes a file and returns its path.
func (b *builder) file(name, text string) (string, error) {
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// edged is a relay and two agents of a binary; limits are lines of the relay's section.
func (b *builder) edged(name, binary, limits string) (*way, error) {
	relayAt, entry := "127.0.0.1:"+port(), "127.0.0.1:"+port()
	conf := func(who, text string) (string, error) {
		return b.file(name+"/"+who+".yaml", fmt.Sprintf("admin: {listen: \"127.0.0.1:%s\"}\nstate: {dir: %s}\nnetworks: {outside: {addresses: [127.0.0.1]}}\n"+
			"pinholes: {udp: 61000-61999, tcp: 62000-62999}\n%s",
			port(), filepath.Join(b.dir, name, who), text))
	}
	relay, err := conf("relay", fmt.Sprintf("tunnel:\n  listen: [\"https://outside:%s\"]\n  policy: [{from: a, to: b, services: [\"*\"]}]\n%s",
		strings.TrimPrefix(relayAt, "127.0.0.1:"), limits))
	if err != nil {
		return nil, err
	}
	w := &way{name: name, entry: entry}
	if err := b.run(w, binary, "run", "--config", relay); err != nil {
		return nil, err
	}
	if err := ready(relayAt); err != nil {
		return nil, err
	}
	relayID, err := b.say(binary, "tunnel", "key", "--relay", "--config", relay)
	if err != nil {
		return nil, err
	}
	ids := map[string]string{}
	for _, who := range []string{"a", "b"} {
		c, err := conf(who, fmt.Sprintf("sip: {listen: [\"udp://outside:%s\"]}\n", port())) // any that is valid
		if err != nil {
			return nil, err
		}
		token, err := b.say(binary, "tunnel", "token", who, "--config", relay)
		if err != nil {
			return nil, err
		}
		if _, err := b.say(binary, "tunnel", "enrol", "--relay", relayAt, token, "--config", c); err != nil {
			return nil, err
		}
		if ids[who], err = b.say(binary, "tunnel", "key", "--config", c); err != nil {
			return nil, err
		}
	}
	for who, more := range map[string]string{
		"a": fmt.Sprintf("  devices: {b: %s}\n  forwards: [{listen: \"tcp://%s\", device: b, service: sink}]\n", ids["b"], entry),
		"b": fmt.Sprintf("  devices: {a: %s}\n  services: {sink: {tcp: \"%s\", allow: [a]}}\n", ids["a"], b.sink.Addr()),
	} {
		c, err := conf(who, fmt.Sprintf("agent:\n  relays: [{address: \"%s\", id: %s}]\n  rungs: [tls]\n%s", relayAt, relayID, more))
		if err != nil {
			return nil, err
		}
		if err := b.run(w, binary, "tunnel", "--config", c); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// say runs edged and returns what it prints.
func (b *builder) say(binary string, args ...string) (string, error) {
	out, err := exec.Command(binary, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("edged %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// run starts a process of a way.
func (b *builder) run(w *way, name string, args ...string) error {
	p, err := b.start(name, args...)
	if err == nil {
		w.procs = append(w.procs, p)
	}
	return err
}

// stunnel is a pair of them with TLS 1.3.
func (b *builder) stunnel() (*way, error) {
	bin, err := exec.LookPath("stunnel4")
	if err != nil {
		return nil, err
	}
	cert, err := b.certificate()
	if err != nil {
		return nil, err
	}
	entry, between := "127.0.0.1:"+port(), "127.0.0.1:"+port()
	w := &way{name: "stunnel", entry: entry}
	for side, text := range map[string]string{
		"server": fmt.Sprintf("[x]\naccept = %s\nconnect = %s\ncert = %s\n", between, b.sink.Addr(), cert),
		"client": fmt.Sprintf("[x]\nclient = yes\naccept = %s\nconnect = %s\n", entry, between),
	} {
		conf, err := b.file("stunnel-"+side, "foreground = yes\npid =\nsslVersion = TLSv1.3\n"+text)
		if err != nil {
			return nil, err
		}
		if err := b.run(w, bin, conf); err != nil {
			return nil, err
		}
	}
	return w, ready(between)
}

// certificate returns a file with a key and a certificate.
func (b *builder) certificate() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"relay.example.org"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return b.file("stunnel.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))+
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

func (b *builder) haproxy() (*way, error) {
	bin, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, err
	}
	w := &way{name: "haproxy", entry: "127.0.0.1:" + port()}
	conf, err := b.file("haproxy.cfg", fmt.Sprintf("defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"+
		" option splice-auto\nlisten x\n bind %s\n server s %s\n", w.entry, b.sink.Addr()))
	if err != nil {
		return nil, err
	}
	return w, b.run(w, bin, "-db", "-f", conf)
}

// ssh is OpenSSH's own forwarding.
func (b *builder) ssh() (*way, error) {
	client, err := exec.LookPath("ssh")
	if err != nil {
		return nil, err
	}
	server, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(b.dir, name)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return nil, err
	}
	at, local := port(), port()
	conf, err := b.file("sshd.conf", fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nStrictModes no\nUsePAM no\n"+
		"PidFile none\nPermitRootLogin yes\n", at, b.dir, b.dir))
	if err != nil {
		return nil, err
	}
	w := &way{name: "ssh", entry: "127.0.0.1:" + local}
	if err := b.run(w, server, "-D", "-e", "-f", conf); err != nil {
		return nil, err
	}
	if err := ready("127.0.0.1:" + at); err != nil {
		return nil, err
	}
	return w, b.run(w, client, "-F", "none", "-N", "-p", at, "-i", filepath.Join(b.dir, "user"), "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-L", local+":"+b.sink.Addr().String(), "root@127.0.0.1")
}

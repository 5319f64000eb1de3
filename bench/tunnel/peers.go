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

// edged is a relay and an agent of a binary in the far place, and one in the near one, attached by a rung; limits are
// lines of the relay's section.
func (b *builder) edged(name, binary, rung, limits string) (*way, error) {
	relayPort, entry := b.far.port(), b.near.port()
	relayAt := b.far.ip + ":" + relayPort
	relay, err := b.config(name, "relay", b.far, fmt.Sprintf("tunnel:\n  listen: [\"https://outside:%[1]s\", \"quic://outside:%[1]s\"]\n"+
		"  policy: [{from: a, to: b, services: [\"*\"]}]\n%s", relayPort, limits))
	if err != nil {
		return nil, err
	}
	w := &way{name: name, entry: "127.0.0.1:" + entry}
	if err := b.run(w, b.far, binary, "run", "--config", relay); err != nil {
		return nil, err
	}
	if err := b.far.ready(relayAt); err != nil {
		return nil, err
	}
	relayID, err := b.say(b.far, binary, "tunnel", "key", "--relay", "--config", relay)
	if err != nil {
		return nil, err
	}
	ids := map[string]string{}
	for who, at := range map[string]place{"a": b.near, "b": b.far} {
		if ids[who], err = b.enrol(name, binary, who, at, relay, relayAt); err != nil {
			return nil, err
		}
	}
	forwards, services := fmt.Sprintf("{listen: \"tcp://%s\", device: b, service: sink}", w.entry), fmt.Sprintf("sink: {tcp: \"%s\", allow: [a]}", b.sink.Addr())
	if b.echo != "" {
		w.datagrams = w.entry
		forwards += fmt.Sprintf(", {listen: \"udp://%s\", device: b, service: echo}", w.datagrams)
		services += fmt.Sprintf(", echo: {udp: \"%s\", allow: [a]}", b.echo)
	}
	agent := func(who string, at place, more string) error {
		c, err := b.config(name, who, at, fmt.Sprintf("agent:\n  relays: [{address: \"%s\", id: %s}]\n  rungs: [%s]\n%s", relayAt, relayID, rung, more))
		if err != nil {
			return err
		}
		return b.run(w, at, binary, "tunnel", "--config", c)
	}
	if err := agent("a", b.near, fmt.Sprintf("  devices: {b: %s}\n  forwards: [%s]\n", ids["b"], forwards)); err != nil {
		return nil, err
	}
	return w, agent("b", b.far, fmt.Sprintf("  devices: {a: %s}\n  services: {%s}\n", ids["a"], services))
}

// config writes the configuration of one of a way's processes.
func (b *builder) config(name, who string, at place, text string) (string, error) {
	return b.file(name+"/"+who+".yaml", fmt.Sprintf("admin: {listen: \"127.0.0.1:%s\"}\nstate: {dir: %s}\nnetworks: {outside: {addresses: [%s]}}\n"+
		"pinholes: {udp: 61000-61999, tcp: 62000-62999}\n%s",
		at.port(), filepath.Join(b.dir, name, who), at.ip, text))
}

// enrol makes a device and has the relay admit it; it returns the device's ID.
func (b *builder) enrol(name, binary, who string, at place, relay, relayAt string) (string, error) {
	c, err := b.config(name, who, at, fmt.Sprintf("sip: {listen: [\"udp://outside:%s\"]}\n", at.port())) // any that is valid
	if err != nil {
		return "", err
	}
	token, err := b.say(b.far, binary, "tunnel", "token", who, "--config", relay)
	if err != nil {
		return "", err
	}
	if _, err := b.say(at, binary, "tunnel", "enrol", "--relay", relayAt, token, "--config", c); err != nil {
		return "", err
	}
	return b.say(at, binary, "tunnel", "key", "--config", c)
}

// say runs edged and returns what it prints.
func (b *builder) say(at place, binary string, args ...string) (string, error) {
	out, err := at.command(binary, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("edged %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// run starts a process of a way.
func (b *builder) run(w *way, at place, name string, args ...string) error {
	p, err := b.start(at, name, args...)
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
	entry, between := "127.0.0.1:"+b.near.port(), b.far.ip+":"+b.far.port()
	w := &way{name: "stunnel", entry: entry}
	for _, side := range []struct {
		name, text string
		at         place
	}{
		{"server", fmt.Sprintf("accept = %s\nconnect = %s\ncert = %s\n", between, b.sink.Addr(), cert), b.far},
		{"client", fmt.Sprintf("client = yes\naccept = %s\nconnect = %s\n", entry, between), b.near},
	} {
		conf, err := b.file("stunnel-"+side.name, "foreground = yes\npid =\nsslVersion = TLSv1.3\n[x]\n"+side.text)
		if err != nil {
			return nil, err
		}
		if err := b.run(w, side.at, bin, conf); err != nil {
			return nil, err
		}
	}
	return w, b.near.ready(between)
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
	w := &way{name: "haproxy", entry: "127.0.0.1:" + b.near.port()}
	conf, err := b.file("haproxy.cfg", fmt.Sprintf("defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"+
		" option splice-auto\nlisten x\n bind %s\n server s %s\n", w.entry, b.sink.Addr()))
	if err != nil {
		return nil, err
	}
	return w, b.run(w, b.near, bin, "-db", "-f", conf)
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
	at, local := b.far.port(), b.near.port()
	conf, err := b.file("sshd.conf", fmt.Sprintf("Port %s\nListenAddress %s\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nStrictModes no\nUsePAM no\n"+
		"PidFile none\nPermitRootLogin yes\n", at, b.far.ip, b.dir, b.dir))
	if err != nil {
		return nil, err
	}
	w := &way{name: "ssh", entry: "127.0.0.1:" + local}
	if err := b.run(w, b.far, server, "-D", "-e", "-f", conf); err != nil {
		return nil, err
	}
	if err := b.near.ready(b.far.ip + ":" + at); err != nil {
		return nil, err
	}
	return w, b.run(w, b.near, client, "-F", "none", "-N", "-p", at, "-i", filepath.Join(b.dir, "user"), "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-L", local+":"+b.sink.Addr().String(), "root@"+b.far.ip)
}

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"edged.dev/edged/bench/veth"
)

const (
	udpPort, tlsPort = 3478, 5349
	peerPort         = 3480
	user, password   = "alice", "secret"
	realm            = "example.org"
)

// server is one that is measured.
type server struct {
	name  string
	start func() (stop func(), err error)
}

// certificate makes one that both servers show; nobody verifies it.
func (r *rig) certificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if _, err := r.File(name, string(pem.EncodeToMemory(b))); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) edged(binary string) server {
	return server{"edged", func() (func(), error) {
		file, err := r.File("edged.yaml", fmt.Sprintf(`log: {level: error}
admin: {listen: "unix:%s"}
state: {dir: ""}
media: {datapath: user, pin: ""}
networks:
  near: {addresses: [%s], subnets: [192.0.2.0/24], trusted: true}
  far: {addresses: [%s], trusted: false}
pinholes: {udp: 20000-59999, per_owner: 40000}
tls: {certificates: [{cert: cert.pem, key: key.pem}]}
turn:
  listen: ["udp://near:%d", "tls://near:%d"]
  relay: far
  realm: %s
  users: {%s: %s}
  challenges: 0
  quota: {per_user: 40000, allocations: 40000}
  peers: {allow: [198.51.100.0/24]}
limits: {per_source: {connections: 0}}
`, filepath.Join(r.Dir, "admin.sock"), veth.NearIP, veth.FarIP, udpPort, tlsPort, realm, user, password))
		if err != nil {
			return nil, err
		}
		return r.Process(binary, "run", "--drain", "0s", "--config", file)
	}}
}

func (r *rig) coturn() server {
	return server{"coturn", func() (func(), error) {
		return r.Process("turnserver", "-n", "--no-cli", "--no-dtls", "-m", "1", "--listening-ip", veth.NearIP, "--relay-ip", veth.FarIP,
			"--listening-port", fmt.Sprint(udpPort), "--tls-listening-port", fmt.Sprint(tlsPort), "--cert", filepath.Join(r.Dir, "cert.pem"),
			"--pkey", filepath.Join(r.Dir, "key.pem"), "--lt-cred-mech", "--user", user+":"+password, "--realm", realm,
			"--min-port", "20000", "--max-port", "59999", "--log-file", "/dev/null", "--pidfile", "/dev/null")
	}}
}

// readyTime is how long a server may take to answer.
const readyTime = 15 * time.Second

// with runs a measurement while a server runs.
func (r *rig) with(s server, f func() error) error {
	stop, err := s.start()
	if err != nil {
		return err
	}
	defer stop()
	for end := time.Now().Add(readyTime); ; {
		c, err := r.dial(false)
		if err == nil {
			err = c.binding()
			c.close()
		}
		if err == nil {
			return f()
		}
		if time.Now().After(end) {
			return fmt.Errorf("no answer: %w", err)
		}
	}
}

// resident returns the resident memory of the server in kB.
func (r *rig) resident() (kB int, err error) {
	pids, err := veth.Run("ip", "netns", "pids", r.Gateway)
	if err != nil {
		return 0, err
	}
	for _, pid := range strings.Fields(pids) {
		text, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			var n int
			if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &n); err == nil {
				kB += n
			}
		}
	}
	if kB == 0 {
		return 0, errors.New("the server's memory is not told")
	}
	return kB, nil
}

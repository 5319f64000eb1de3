package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

// backend is a TLS server for a name that says its name and echoes; conf may be changed before.
func backend(t *testing.T, dir, name string, change func(*tls.Config)) string {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}}
	if change != nil {
		change(conf)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	return echoes(t, ln, name+"\n")
}

// echoes has a listener greet whoever comes, and send back what he says. It returns the listener's address.
func echoes(t *testing.T, ln net.Listener, greeting string) string {
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, greeting)
				io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

// pool holds the certificates of the files NAME.pem.
func pool(t *testing.T, dir string, names ...string) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(dir, n+".pem"))
		if err != nil || !p.AppendCertsFromPEM(b) {
			t.Fatalf("%s: %v", n, err)
		}
	}
	return p
}

// tlsLine connects for a server name, sends a line, and returns what comes back first.
func tlsLine(t *testing.T, addr string, conf *tls.Config, line string) (string, error) {
	t.Helper()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Minute}, Config: conf}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, line); err != nil {
		return "", err
	}
	b := make([]byte, 200)
	n, err := c.Read(b)
	got, _, _ := strings.Cut(string(b[:n]), "\n")
	return got, err
}

// TestSharedPort: one port leads to SIP, to a forward that passes TLS, and to one that terminates it, by server name.
func TestSharedPort(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"edge", "web", "psom"} {
		writeTestCertificate(t, dir, n, n+".example.org", time.Now().Add(time.Hour))
	}
	all, err := os.ReadFile(filepath.Join(dir, "edge.pem"))
	if err != nil {
		t.Fatal(err)
	}
	psomPEM, err := os.ReadFile(filepath.Join(dir, "psom.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), append(all, psomPEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	web := backend(t, dir, "web", nil)
	psom := backend(t, dir, "psom", func(c *tls.Config) { // for the edge alone
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool(t, dir, "edge")
	})
	d := startDaemon(t, sipAt(t.TempDir(), fmt.Sprintf("tls: {certificates: [{cert: %s/edge.pem, key: %[1]s/edge.key}], client_ca: %[1]s/ca.pem}\n"+
		"sip: {listen: ['tls://inside:5061']}\nforwards:\n"+
		"  - {name: web, listen: 'tcp://inside:5061', sni: [web.example.org], to: '%s', allow: [127.0.0.0/8]}\n"+
		"  - {name: psom, listen: 'tcp://inside:5061', sni: [edge.example.org], to: '%s', allow: [127.0.0.0/8], tls: terminate, server_name: psom.example.org}\n"+
		"  - {name: none, listen: 'tcp://inside:5061', sni: [closed.example.org], to: '%[2]s', allow: [192.0.2.0/24]}\n", dir, web, psom)))
	pid := os.Getpid()
	addr := fmt.Sprintf("127.77.%d.%d:5061", pid>>8&255, pid&255)
	const request = "OPTIONS sip:example.org SIP/2.0\r\nVia: SIP/2.0/TLS 127.0.0.1;branch=z9hG4bK1\r\nMax-Forwards: 0\r\nFrom: <sip:a@example.org>;tag=1\r\n" +
		"To: <sip:a@example.org>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
	for _, tc := range []struct{ name, cert, line, want string }{
		{"web.example.org", "web", "hello\n", "web"},
		{"edge.example.org", "edge", "hello\n", "psom"},
	} {
		got, err := tlsLine(t, addr, &tls.Config{ServerName: tc.name, RootCAs: pool(t, dir, tc.cert)}, tc.line)
		if err != nil || got != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.name, got, err, tc.want)
		}
	}
	// A client without a server name, as those of 2007, gets SIP, and the edge's first certificate.
	got, err := tlsLine(t, addr, &tls.Config{InsecureSkipVerify: true}, request)
	if err != nil || !strings.HasPrefix(got, "SIP/2.0 ") {
		t.Errorf("no name: %q, %v", got, err)
	}
	if got, err := tlsLine(t, addr, &tls.Config{ServerName: "closed.example.org", InsecureSkipVerify: true}, "hello\n"); err == nil {
		t.Errorf("who is not allowed got %q", got)
	}
	if got := plainLine(t, addr, "GET / HTTP/1.1\r\n\r\n"); !errors.Is(got, syscall.ECONNRESET) {
		t.Errorf("HTTP: %v, want a reset", got)
	}
	until(t, "it is logged", func() bool {
		return d.logs.FilterMessage("connection refused").FilterField(zap.String("class", "http")).Len() == 1
	})
}

// plainLine sends a text and returns the error of reading the answer.
func plainLine(t *testing.T, addr, text string) error {
	t.Helper()
	var dialer net.Dialer
	c, err := dialer.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// TestBlockedPort: it resets who comes, and the API says who that was.
func TestBlockedPort(t *testing.T) {
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly+"blocked: ['tcp://inside:1350', 'udp://inside:3478']\n"))
	pid := os.Getpid()
	if err := plainLine(t, fmt.Sprintf("127.77.%d.%d:1350", pid>>8&255, pid&255), "hello"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%v, want a reset", err)
	}
	var doc struct {
		Attempts []struct {
			Port, Source string
			Count        int
		}
	}
	until(t, "the attempt is shown", func() bool {
		body, err := d.get(context.Background(), "/api/v1/blocked")
		return err == nil && json.Unmarshal(body, &doc) == nil && len(doc.Attempts) == 1
	})
	if a := doc.Attempts[0]; a.Port != "tcp://inside:1350" || !strings.HasPrefix(a.Source, "127.") || a.Count != 1 {
		t.Errorf("%+v", a)
	}
	if body, err := d.get(context.Background(), "/api/v1/ports"); err != nil || !strings.Contains(string(body), `"key": "blocked[0]"`) {
		t.Errorf("ports: %v %.300s", err, body)
	}
}

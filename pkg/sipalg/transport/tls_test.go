package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
)

func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	src := &certs{server: &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, "one.example.org"), ca.issue(t, "two.example.org")},
	}}
	tr, rec := newTransport(Config{}, src)
	own, _ := serveTCP(t, tr, "inside", flow.TLS, "127.0.0.1:0")
	dial := func(conf *tls.Config) (*tls.Conn, error) {
		conf.RootCAs = ca.pool
		return tls.Dial("tcp", own.String(), conf)
	}
	for _, name := range []string{"one.example.org", "two.example.org"} { // SNI
		nc, err := dial(&tls.Config{ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		big := sipMessage(1, strings.Repeat("x", 30000))
		write(t, nc, "\r\n\r\n"+big)
		f := rec.message(t, big)
		if f.Proto != flow.TLS || f.Local != own {
			t.Errorf("flow %+v", f)
		}
		if err := tr.Send(f, []byte(big)); err != nil {
			t.Fatal(err)
		}
		expect(t, nc, "\r\n"+big)
		nc.Close()
		rec.ended(t, f)
	}
	old := &tls.Config{ServerName: "three.example.org", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	src.mu.Lock() // the next handshake sees a new certificate
	src.server = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "three.example.org")}}
	src.mu.Unlock()
	nc, err := dial(&tls.Config{ServerName: "three.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	rec.next(t)
	if _, err := dial(old.Clone()); err == nil {
		t.Error("TLS 1.1 was accepted by default")
	}
	waitFor(t, "the count", func() bool { return drops(tr, handshake) == 1 })
	src.mu.Lock()
	src.server = src.server.Clone()
	src.server.MinVersion = tls.VersionTLS10
	src.mu.Unlock()
	if nc, err = dial(old); err != nil {
		t.Fatalf("TLS 1.1, where the source allows 1.0: %v", err)
	}
	nc.Close()
	rec.next(t)
	rec.quiet(t)
}

func TestTLSHandshakeTimeout(t *testing.T) {
	ca := newAuthority(t)
	tr, rec := newTransport(Config{Handshake: 20 * time.Millisecond}, &certs{server: &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "one.example.org")}}})
	own, _ := serveTCP(t, tr, "inside", flow.TLS, "127.0.0.1:0")
	nc := dialTCP(t, own)
	write(t, nc, "\x16\x03\x01")
	if n, err := nc.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes, want the end", n)
	}
	waitFor(t, "the count", func() bool { return drops(tr, handshake) == 1 })
	rec.quiet(t)
}

// Two edges that dial each other with mutual TLS: one connection serves both ways, but only for
// names that the peer's certificate covers.
func TestMutualTLSReuse(t *testing.T) {
	ca := newAuthority(t)
	mutual := func(name string) *certs {
		cert := ca.issue(t, name)
		return &certs{
			server: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: ca.pool, ClientAuth: tls.VerifyClientCertIfGiven},
			client: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: ca.pool},
		}
	}
	alice, heardA := newTransport(Config{}, mutual("alice.example.org"))
	bob, heardB := newTransport(Config{}, mutual("bob.example.org"))
	serveTCP(t, alice, "inside", flow.TLS, "127.0.0.1:0")
	at, _ := serveTCP(t, bob, "inside", flow.TLS, "127.0.0.1:0")
	waitLocal(t, alice, "inside", flow.TLS)
	waitLocal(t, bob, "inside", flow.TLS)

	tg := flow.Target{Network: "inside", Proto: flow.TLS, Addr: at, ServerName: "bob.example.org"}
	out := sendTo(t, alice, tg, sipMessage(1, ""))
	if out.err != nil {
		t.Fatal(out.err)
	}
	in := heardB.message(t, sipMessage(1, ""))
	if again := sendTo(t, alice, tg, sipMessage(2, "")); again != out {
		t.Errorf("second message on %+v, want %+v", again, out)
	}
	heardB.message(t, sipMessage(2, ""))
	if i, _ := bob.Connection(in); len(i.Names) != 1 || i.Names[0] != "alice.example.org" {
		t.Errorf("bob knows the peer as %v", i.Names)
	}

	back := flow.Target{Network: "inside", Proto: flow.TLS, Addr: in.Remote, ServerName: "alice.example.org"}
	if s := sendTo(t, bob, back, sipMessage(3, "")); s.err != nil || s.flow != in {
		t.Errorf("back on %+v, want %+v", s, in)
	}
	heardA.message(t, sipMessage(3, ""))
	back.ServerName = "mallory.example.org" // dials instead, and finds nobody at a client's port
	if s := sendTo(t, bob, back, sipMessage(4, "")); s.err == nil {
		t.Errorf("a name that the certificate does not cover was sent to on %+v", s.flow)
	}

	tg.ServerName = "mallory.example.org"
	var wrong x509.HostnameError
	if s := sendTo(t, alice, tg, "x"); !errors.As(s.err, &wrong) {
		t.Errorf("the server's certificate is another's: %v, want x509.HostnameError", s.err)
	}
	tg.ServerName = "" // the address stands for the host, and this certificate names none
	if s := sendTo(t, alice, tg, "x"); !errors.As(s.err, &wrong) {
		t.Errorf("the server's certificate does not name the address: %v", s.err)
	}
}

// A client without a certificate is reached by its flow, never by a target.
func TestTLSNoReuseWithoutCertificate(t *testing.T) {
	ca := newAuthority(t)
	tr, rec := newTransport(Config{}, &certs{server: &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "one.example.org")}}})
	own, _ := serveTCP(t, tr, "inside", flow.TLS, "127.0.0.1:0")
	nc, err := tls.Dial("tcp", own.String(), &tls.Config{ServerName: "one.example.org", RootCAs: ca.pool})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	write(t, nc, sipMessage(1, ""))
	f := rec.message(t, sipMessage(1, ""))
	var op *net.OpError
	if s := sendTo(t, tr, flow.Target{Network: "inside", Proto: flow.TLS, Addr: f.Remote, ServerName: "phone.example.org"}, "x"); !errors.As(s.err, &op) {
		t.Errorf("sent %+v, want a refused dial", s)
	}
	if err := tr.Send(f, []byte("by flow")); err != nil {
		t.Fatal(err)
	}
	expect(t, nc, "by flow")
}

// verifying is a recorder that wants to know who has shown a certificate.
type verifying struct {
	*recorder
	names chan string
}

func (v verifying) Verified(_ flow.Flow, cert *x509.Certificate) { v.names <- cert.DNSNames[0] }

// A verified client is told before its first message; one without a certificate is not.
func TestVerified(t *testing.T) {
	ca := newAuthority(t)
	rec := verifying{newRecorder(), make(chan string, 10)}
	src := &certs{server: &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, "one.example.org")}, ClientCAs: ca.pool, ClientAuth: tls.VerifyClientCertIfGiven,
	}}
	tr := New(Config{}, loopback(), src, rec, zap.NewNop())
	own, _ := serveTCP(t, tr, "inside", flow.TLS, "127.0.0.1:0")
	for i, name := range []string{"peer.example.org", ""} {
		conf := &tls.Config{ServerName: "one.example.org", RootCAs: ca.pool}
		if name != "" {
			conf.Certificates = []tls.Certificate{ca.issue(t, name)}
		}
		nc, err := tls.Dial("tcp", own.String(), conf)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		write(t, nc, sipMessage(i, ""))
		rec.message(t, sipMessage(i, ""))
		select {
		case got := <-rec.names:
			if got != name {
				t.Errorf("%q has proved its name, want %q", got, name)
			}
		default:
			if name != "" {
				t.Errorf("%s has proved its name, and nobody was told before its message", name)
			}
		}
	}
}

package sipalg

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"testing"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
)

// TestPeer: a server that has proved a name of sip.peers, or of a domain's server, speaks for other hosts while one of
// its connections lives and the name is configured; another certificate gives nothing.
func TestPeer(t *testing.T) {
	cfg := testConfig(func(c *Config) {
		c.Peers = []string{"sip.partner.example.org"}
		c.OptionalClientCertificates = []string{"outside"}
		c.Domains["other.example.org"] = Domain{Network: "outside", Server: "tls:edge.other.example.org"}
	})
	for _, c := range []struct {
		names []string
		peer  bool
	}{{[]string{"sip.partner.example.org"}, true}, {[]string{"edge.other.example.org"}, true}, {[]string{"stranger.example.org"}, false}} {
		w := newWorld(t, func(to *Config) { *to = cfg })
		server := w.phone("server", flow.TLS, "198.51.100.70:5061", "198.51.100.1:5061")
		alice := w.alice()
		alice.signUp().send("REGISTER", "", "Contact: <sip:alice@10.0.0.5:5062>", "Expires: 600")
		w.bob()
		f := func() flow.Flow {
			return flow.Flow{Conn: w.conn(flow.TLS, server.addr, server.first), Network: "outside", Proto: flow.TLS, Local: server.first, Remote: server.addr}
		}
		covers := func(name string) bool { return slices.Contains(c.names, name) }
		trusted := func() bool { return w.core.servers[server.addr.Addr()] }
		w.do(func() { w.core.Verified(w.now, f(), covers, &w.out) })
		if trusted() != c.peer {
			t.Fatalf("%v is trusted: %v", c.names, trusted())
		}
		if !c.peer {
			continue
		}
		w.core.limits.MessagesPerSecond = 1
		for range 50 { // no limit binds it
			server.dial("sip:nobody@198.51.100.1").send("OPTIONS", "")
			server.expect("404")
		}
		w.do(func() { w.core.Configure(testConfig(nil), w.core.limits) })
		if trusted() {
			t.Error("still trusted though it is not configured any more")
		}
		w.do(func() { w.core.Configure(cfg, w.core.limits) })
		if !trusted() {
			t.Error("not trusted again")
		}
		w.hangUp(server.addr)
		if trusted() || len(w.core.peers) != 0 {
			t.Error("trusted without a connection")
		}
	}
}

// TestPeerCertificate: alternative names count, and where there are none the subject's common name.
func TestPeerCertificate(t *testing.T) {
	const name = "sip.partner.example.org"
	for _, c := range []struct {
		what string
		cert *x509.Certificate
		want bool
	}{
		{"alternative name", &x509.Certificate{DNSNames: []string{name}}, true},
		{"any host of the domain", &x509.Certificate{DNSNames: []string{"*.partner.example.org"}}, true},
		{"common name", &x509.Certificate{Subject: pkix.Name{CommonName: "SIP.partner.example.org"}}, true},
		{"common name beside others", &x509.Certificate{DNSNames: []string{"x.example.org"}, Subject: pkix.Name{CommonName: name}}, false},
		{"another", &x509.Certificate{DNSNames: []string{"x.example.org"}}, false},
		{"nothing", &x509.Certificate{}, false},
	} {
		cfg := testConfig(func(c *Config) {
			c.Peers, c.OptionalClientCertificates = []string{name}, []string{"outside"}
			c.Listen = nil
		})
		s, err := New(cfg, Deps{Networks: testNetworks()}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		f := flow.Flow{Conn: 7, Network: "outside", Proto: flow.TLS, Local: ap("198.51.100.1:5061"), Remote: ap("203.0.113.70:40000")}
		s.Verified(f, c.cert)
		if s.core.servers[f.Remote.Addr()] != c.want {
			t.Errorf("%s: trusted %v", c.what, !c.want)
		}
		s.Closed(f)
		if s.core.servers[f.Remote.Addr()] {
			t.Errorf("%s: trusted after its end", c.what)
		}
		s.stop()
		s.work.Wait()
	}
}

package forwardproxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn/peerpolicy"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = time.Minute

func targets(t *testing.T, list ...string) []Target {
	t.Helper()
	out := make([]Target, len(list))
	for i, text := range list {
		if err := out[i].UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func prefixList(list ...string) (out []netip.Prefix) {
	for _, text := range list {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// names is a server of DNS that gives each question for A the next of its answers.
func names(t *testing.T, answers ...[]string) (*net.Resolver, *atomic.Int32) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := &atomic.Int32{}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			for _, a := range answers[min(int(asked.Add(1)), len(answers))-1] {
				rr, err := dns.NewRR(q.Question[0].Name + " 0 IN A " + a)
				if err != nil {
					t.Error(err)
				}
				m.Answer = append(m.Answer, rr)
			}
		}
		w.WriteMsg(m)
	})}
	go srv.ActivateAndServe()
	t.Cleanup(func() { srv.Shutdown() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", pc.LocalAddr().String())
	}}, asked
}

// whyNot dials and returns why that was refused, "" if it was not. Nothing in these tests answers but loopback.
func whyNot(t *testing.T, d *Dialer, network, host string, port uint16) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := d.Dial(ctx, network, host, port)
	if err == nil {
		conn.Close()
		return ""
	}
	var refused *Refused
	if !errors.As(err, &refused) {
		return "dialled"
	}
	if !errors.Is(err, ErrNotAllowed) {
		t.Errorf("%v is no ErrNotAllowed", err)
	}
	return refused.Reason
}

func TestDialer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	open := pinhole.AddrPortOf(ln.Addr()).Port()
	nets := pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.9")}, Subnets: prefixList("127.77.0.0/16", "8.8.0.0/16"), Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("9.9.9.9")}},
	}
	resolver, _ := names(t, []string{"127.0.0.1"})
	for _, tc := range []struct {
		name, network, host string
		allow, deny         []string
		private             []string
		want                string
	}{
		{"allowed", "tcp", "127.0.0.1", []string{"127.0.0.0/8:*"}, nil, []string{"127.0.0.1/32"}, ""},
		{"by name", "tcp", "www.example.org", []string{"*.example.org:*"}, nil, []string{"127.0.0.1/32"}, ""},
		{"by the name's address", "tcp", "www.example.org", []string{"127.0.0.1:*"}, nil, []string{"127.0.0.1/32"}, ""},
		{"not listed", "tcp", "www.example.com", []string{"*.example.org:*"}, nil, nil, notListed},
		{"not listed by address", "tcp", "www.example.com", []string{"192.0.2.0/24:*"}, nil, nil, notListed},
		{"port", "tcp", "www.example.org", []string{"*.example.org:1"}, nil, nil, notListed},
		{"transport", "udp", "www.example.org", []string{"*.example.org:*"}, nil, nil, notListed},
		{"denied name", "tcp", "www.example.org", []string{"*:*"}, []string{"www.example.org:*"}, nil, denied},
		{"denied address", "tcp", "www.example.org", []string{"*:*"}, []string{"127.0.0.0/8:*"}, []string{"127.0.0.0/8"}, denied},
		{"loopback", "tcp", "127.0.0.1", []string{"*:*"}, nil, nil, peerpolicy.Special},
		{"loopback by name", "tcp", "www.example.org", []string{"*:*"}, nil, nil, peerpolicy.Special},
		{"loopback by 0", "tcp", "0.0.0.0", []string{"*:*"}, nil, nil, peerpolicy.Special},
		{"loopback, IPv6", "tcp", "::1", []string{"*:*"}, nil, nil, peerpolicy.Special},
		{"link-local", "tcp", "169.254.169.254", []string{"*:*"}, nil, nil, peerpolicy.Special},
		{"NAT64 of loopback", "tcp", "64:ff9b::7f00:1", []string{"*:*"}, nil, nil, peerpolicy.Special},
		{"private", "tcp", "10.0.0.1", []string{"*:*"}, nil, nil, peerpolicy.Special},
		{"own", "tcp", "9.9.9.9", []string{"*:*"}, nil, nil, peerpolicy.Own},
		{"own of the host", "udp", "11.0.0.1", []string{"udp/*:*"}, nil, nil, peerpolicy.Own},
		{"inside with public addresses", "udp", "8.8.1.1", []string{"udp/*:*"}, nil, nil, inside},
		{"inside, allowed", "udp", "8.8.1.1", []string{"udp/*:*"}, nil, []string{"8.8.0.0/16"}, ""},
		{"routed inside", "udp", "8.9.1.1", []string{"udp/*:*"}, nil, nil, inside},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := NewDialer(Config{Allow: targets(t, tc.allow...), Deny: targets(t, tc.deny...), Private: prefixList(tc.private...)}, Surroundings{
				Networks: nets, Resolver: resolver,
				RouteTo: func(a netip.Addr) string { return map[string]string{"8.9.1.1": "inside"}[a.String()] },
				Own:     func(a netip.Addr) bool { return a == netip.MustParseAddr("11.0.0.1") },
			})
			if got := whyNot(t, d, tc.network, tc.host, open); got != tc.want && got != "dialled" || tc.want != "" && got == "dialled" {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// TestRebinding: a name whose second answer is another address gains nothing, as there is no second question.
func TestRebinding(t *testing.T) {
	resolver, asked := names(t, []string{"127.0.0.2"}, []string{"127.0.0.1"})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := NewDialer(Config{Allow: targets(t, "*:*"), Private: prefixList("127.0.0.2/32")}, Surroundings{Resolver: resolver})
	port := pinhole.AddrPortOf(ln.Addr()).Port()
	if got := whyNot(t, d, "tcp", "www.example.org", port); got != "dialled" || asked.Load() != 1 { // nobody listens on 127.0.0.2
		t.Errorf("%q after %d questions", got, asked.Load())
	}
	if got := whyNot(t, d, "tcp", "www.example.org", port); got != peerpolicy.Special {
		t.Errorf("the second answer: %q", got)
	}
}

// TestOneOfMany: of the addresses of a name those that are refused are passed over.
func TestOneOfMany(t *testing.T) {
	resolver, _ := names(t, []string{"127.0.0.2", "127.0.0.1"})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := NewDialer(Config{Allow: targets(t, "*:*"), Private: prefixList("127.0.0.1/32")}, Surroundings{Resolver: resolver})
	if got := whyNot(t, d, "tcp", "www.example.org", pinhole.AddrPortOf(ln.Addr()).Port()); got != "" {
		t.Error(got)
	}
}

// TestNotLookedUp: a name that nothing allows is not told to any server of DNS.
func TestNotLookedUp(t *testing.T) {
	resolver, asked := names(t, []string{"127.0.0.1"})
	d := NewDialer(Config{Allow: targets(t, "*.example.org:443", "192.0.2.0/24:80")}, Surroundings{Resolver: resolver})
	for host, port := range map[string]uint16{"secret.example.com": 443, "www.example.org": 444} {
		if got := whyNot(t, d, "tcp", host, port); got != notListed {
			t.Errorf("%s: %q", host, got)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d questions", n)
	}
}

func TestConfigure(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := pinhole.AddrPortOf(ln.Addr()).Port()
	d := NewDialer(Config{Allow: targets(t, "127.0.0.1:*"), Private: prefixList("127.0.0.1/32")}, Surroundings{})
	got := []string{whyNot(t, d, "tcp", "127.0.0.1", port)}
	d.Configure(Config{Allow: targets(t, "127.0.0.1:*")})
	got = append(got, whyNot(t, d, "tcp", "127.0.0.1", port))
	if want := []string{"", peerpolicy.Special}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

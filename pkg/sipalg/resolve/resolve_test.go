package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"edged.dev/edged/pkg/sipalg/flow"
)

const records = `
naptr.example.org. 300 IN NAPTR 20 10 "s" "SIP+D2U" "" _sip._udp.naptr.example.org.
naptr.example.org. 300 IN NAPTR 10 20 "s" "SIP+D2T" "" _tcp.elsewhere.example.org.
naptr.example.org. 300 IN NAPTR 10 10 "S" "SIPS+D2T" "" _sips._tcp.naptr.example.org.
naptr.example.org. 300 IN NAPTR 1 1 "s" "SIP+D2S" "" _sip._sctp.naptr.example.org.
naptr.example.org. 300 IN NAPTR 1 1 "u" "E2U+sip" "!^.*$!sip:x@example.org!" .
_sips._tcp.naptr.example.org. 300 IN SRV 0 0 5061 a.example.org.
_tcp.elsewhere.example.org. 300 IN SRV 0 0 5070 b.example.org.
_sip._udp.naptr.example.org. 300 IN SRV 0 0 5080 a.example.org.

srv.example.org. 300 IN A 192.0.2.99
_sip._udp.srv.example.org. 300 IN SRV 20 0 5060 b.example.org.
_sip._udp.srv.example.org. 300 IN SRV 10 0 5062 a.example.org.
_sip._tcp.srv.example.org. 300 IN SRV 10 0 5063 a.example.org.
_sip._tls.srv.example.org. 300 IN SRV 10 0 5064 a.example.org.

none.example.org. 300 IN A 192.0.2.98
_sip._udp.none.example.org. 300 IN SRV 0 0 0 .
_sip._tcp.none.example.org. 300 IN SRV 0 0 5060 a.example.org.

off.example.org. 300 IN A 192.0.2.97
_sip._udp.off.example.org. 300 IN SRV 0 0 0 .

half.example.org. 300 IN A 192.0.2.96
_sip._udp.half.example.org. 300 IN SRV 0 0 5060 missing.example.org.
_sip._udp.half.example.org. 300 IN SRV 1 0 5060 a.example.org.

a.example.org. 300 IN A 192.0.2.1
a.example.org. 300 IN AAAA 2001:db8::1
b.example.org. 300 IN A 192.0.2.2
b.example.org. 300 IN A 192.0.2.3
six.example.org. 300 IN AAAA 2001:db8::6
alias.example.org. 300 IN CNAME alias2.example.org.
alias2.example.org. 300 IN CNAME b.example.org.
loop.example.org. 300 IN CNAME loop2.example.org.
loop2.example.org. 300 IN CNAME loop.example.org.
dangling.example.org. 300 IN CNAME missing.example.org.
empty.example.org. 300 IN TXT "no address"
`

func hostsFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func config(t testing.TB, servers ...netip.AddrPort) Config {
	return Config{Servers: servers, Hosts: hostsFile(t, ""), Pick: func(int) int { return 0 }, Timeout: 20 * time.Second}
}

func describe(list []Answer) (out []string) {
	for _, a := range list {
		out = append(out, fmt.Sprintf("%v %v %s", a.Proto, a.Addr, a.Name))
	}
	return out
}

func TestResolve(t *testing.T) {
	z := newZone(t, records)
	r := New(config(t, z.addr))
	for _, c := range []struct {
		name string
		q    Query
		want []string // without the name, which is the host
		err  error
	}{
		{"numeric", Query{Host: "192.0.2.7"}, []string{"udp 192.0.2.7:5060 "}, nil},
		{"numeric, port, transport", Query{Host: "192.0.2.7", Port: 5070, Proto: flow.TCP}, []string{"tcp 192.0.2.7:5070 "}, nil},
		{"numeric, sips", Query{Host: "192.0.2.7", Secure: true}, []string{"tls 192.0.2.7:5061 "}, nil},
		{"numeric, sips and tcp", Query{Host: "192.0.2.7", Secure: true, Proto: flow.TCP}, []string{"tls 192.0.2.7:5061 "}, nil},
		{"IPv6 in brackets", Query{Host: "[2001:db8::7]", Proto: flow.TLS}, []string{"tls [2001:db8::7]:5061 "}, nil},
		{"IPv6 without", Query{Host: "2001:db8::7"}, []string{"udp [2001:db8::7]:5060 "}, nil},
		{"mapped IPv4", Query{Host: "::ffff:192.0.2.7"}, []string{"udp 192.0.2.7:5060 "}, nil},
		{"WebSocket ports", Query{Host: "192.0.2.7", Proto: flow.WS, Secure: true}, []string{"wss 192.0.2.7:443 "}, nil},
		{"sips over UDP", Query{Host: "192.0.2.7", Proto: flow.UDP, Secure: true}, nil, ErrNotFound},

		{"NAPTR", Query{Host: "naptr.example.org"}, []string{
			"tls 192.0.2.1:5061", "tls [2001:db8::1]:5061", "tcp 192.0.2.2:5070", "tcp 192.0.2.3:5070", "udp 192.0.2.1:5080", "udp [2001:db8::1]:5080",
		}, nil},
		{"NAPTR, sips", Query{Host: "naptr.example.org", Secure: true}, []string{"tls 192.0.2.1:5061", "tls [2001:db8::1]:5061"}, nil},
		{"a transport skips NAPTR", Query{Host: "naptr.example.org", Proto: flow.UDP}, []string{"udp 192.0.2.1:5080", "udp [2001:db8::1]:5080"}, nil},

		{"SRV of each transport", Query{Host: "srv.example.org"}, []string{
			"udp 192.0.2.1:5062", "udp [2001:db8::1]:5062", "udp 192.0.2.2:5060", "udp 192.0.2.3:5060",
			"tcp 192.0.2.1:5063", "tcp [2001:db8::1]:5063", "tls 192.0.2.1:5064", "tls [2001:db8::1]:5064",
		}, nil},
		{"SRV of one transport", Query{Host: "srv.example.org", Proto: flow.TCP}, []string{"tcp 192.0.2.1:5063", "tcp [2001:db8::1]:5063"}, nil},
		{"SRV, sips", Query{Host: "srv.example.org", Secure: true}, []string{"tls 192.0.2.1:5064", "tls [2001:db8::1]:5064"}, nil},
		{"upper case and a final dot", Query{Host: "SRV.Example.ORG.", Proto: flow.TCP}, []string{"tcp 192.0.2.1:5063", "tcp [2001:db8::1]:5063"}, nil},
		{"a port skips SRV", Query{Host: "srv.example.org", Port: 5099}, []string{"udp 192.0.2.99:5099"}, nil},
		{"one transport is off", Query{Host: "none.example.org"}, []string{"tcp 192.0.2.1:5060", "tcp [2001:db8::1]:5060"}, nil},
		{"all that is announced is off", Query{Host: "off.example.org"}, nil, ErrNotFound},
		{"a target without address", Query{Host: "half.example.org"}, []string{"udp 192.0.2.1:5060", "udp [2001:db8::1]:5060"}, nil},

		{"address only", Query{Host: "b.example.org"}, []string{"udp 192.0.2.2:5060", "udp 192.0.2.3:5060"}, nil},
		{"address only, sips", Query{Host: "b.example.org", Secure: true}, []string{"tls 192.0.2.2:5061", "tls 192.0.2.3:5061"}, nil},
		{"IPv6 only", Query{Host: "six.example.org", Proto: flow.TCP}, []string{"tcp [2001:db8::6]:5060"}, nil},
		{"WebSocket", Query{Host: "b.example.org", Proto: flow.WS}, []string{"ws 192.0.2.2:80", "ws 192.0.2.3:80"}, nil},
		{"aliases", Query{Host: "alias.example.org"}, []string{"udp 192.0.2.2:5060", "udp 192.0.2.3:5060"}, nil},
		{"a loop of aliases", Query{Host: "loop.example.org", Port: 5060}, nil, ErrNotFound},
		{"an alias of nothing", Query{Host: "dangling.example.org", Port: 5060}, nil, ErrNotFound},
		{"no such name", Query{Host: "missing.example.org"}, nil, ErrNotFound},
		{"no address", Query{Host: "empty.example.org"}, nil, ErrNotFound},
		{"no name at all", Query{Host: ""}, nil, ErrNotFound},
		{"a label too long", Query{Host: strings.Repeat("x", 64) + ".example.org"}, nil, ErrNotFound},
		{"a name too long", Query{Host: strings.Repeat("x.", 130) + "example.org"}, nil, ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, err := r.Resolve(t.Context(), c.q)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			var want []string
			for _, w := range c.want {
				if !strings.HasSuffix(w, " ") {
					w += " " + strings.TrimSuffix(c.q.Host, ".")
				}
				want = append(want, w)
			}
			if diff := cmp.Diff(want, describe(list)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// An edge without UDP on a network is not sent there by default.
func TestOwnTransports(t *testing.T) {
	z := newZone(t, records)
	cfg := config(t, z.addr)
	cfg.Protos = []flow.Proto{flow.TCP, flow.TLS}
	r := New(cfg)
	for host, want := range map[string]string{
		"192.0.2.7":         "tcp 192.0.2.7:5060 ",
		"b.example.org":     "tcp 192.0.2.2:5060 b.example.org",
		"srv.example.org":   "tcp 192.0.2.1:5063 srv.example.org",
		"naptr.example.org": "tls 192.0.2.1:5061 naptr.example.org",
	} {
		list, err := r.Resolve(t.Context(), Query{Host: host})
		if err != nil || describe(list)[0] != want {
			t.Errorf("%s: %v, %v; want first %s", host, describe(list), err, want)
		}
	}
}

func TestIPv6First(t *testing.T) {
	z := newZone(t, records)
	cfg := config(t, z.addr)
	cfg.IPv6First = true
	list, err := New(cfg).Resolve(t.Context(), Query{Host: "a.example.org", Port: 5060})
	if diff := cmp.Diff([]string{"udp [2001:db8::1]:5060 a.example.org", "udp 192.0.2.1:5060 a.example.org"}, describe(list)); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestCacheAndSingleFlight(t *testing.T) {
	z := newZone(t, records)
	r := New(config(t, z.addr))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := r.Resolve(t.Context(), Query{Host: "b.example.org"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, typ := range []uint16{dns.TypeNAPTR, dns.TypeA, dns.TypeAAAA} { // also the denials
		if n := z.count("b.example.org", typ); n != 1 {
			t.Errorf("%s was asked %d times", dns.TypeToString[typ], n)
		}
	}
}

func TestTruncated(t *testing.T) {
	z := newZone(t, records)
	z.set(func() { z.truncate = true })
	list, err := New(config(t, z.addr)).Resolve(t.Context(), Query{Host: "b.example.org", Port: 5060})
	z.mu.Lock()
	defer z.mu.Unlock()
	if err != nil || len(list) != 2 || z.tcp != 2 {
		t.Errorf("got %v, %v with %d questions over TCP; want 2 answers, 2 questions", list, err, z.tcp)
	}
}

func TestNextServer(t *testing.T) {
	bad, good := newZone(t, records), newZone(t, records)
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented} {
		bad.set(func() { bad.rcode = rcode })
		list, err := New(config(t, bad.addr, good.addr)).Resolve(t.Context(), Query{Host: "b.example.org"})
		if err != nil || len(list) != 2 {
			t.Errorf("%s: %v, %v", dns.RcodeToString[rcode], list, err)
		}
	}
	r := New(config(t, bad.addr))
	_, err := r.Resolve(t.Context(), Query{Host: "b.example.org"})
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
		t.Errorf("no server answers: %v, want ErrUnavailable", err)
	}
	before := bad.total()
	if _, err = r.Resolve(t.Context(), Query{Host: "b.example.org"}); !errors.Is(err, ErrUnavailable) || bad.total() != before {
		t.Errorf("%v, %d more questions; want the failure remembered", err, bad.total()-before)
	}
	if _, err := New(config(t)).Resolve(t.Context(), Query{Host: "b.example.org", Port: 1}); err == nil {
		t.Error("resolved without any server of the zone")
	}
}

// A server that is silent costs its timeout, then the next one is asked.
func TestSilentServer(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	good := newZone(t, records)
	cfg := config(t, silent.LocalAddr().(*net.UDPAddr).AddrPort(), good.addr)
	cfg.Timeout = 50 * time.Millisecond
	cfg.Attempts = 20 // the good one may be slow too, on this machine
	list, err := New(cfg).Resolve(t.Context(), Query{Host: "b.example.org", Port: 5060})
	if err != nil || len(list) != 2 {
		t.Errorf("got %v, %v", list, err)
	}
}

// The caller's patience bounds the wait; the question goes on for others.
func TestContext(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg := config(t, silent.LocalAddr().(*net.UDPAddr).AddrPort())
	cfg.Timeout, cfg.Attempts = 100*time.Millisecond, 1
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(cfg).Resolve(ctx, Query{Host: "b.example.org"}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

func TestHosts(t *testing.T) {
	z := newZone(t, records)
	cfg := config(t, z.addr)
	cfg.Hosts = hostsFile(t, "# comment\n192.0.2.50 srv.example.org PBX # more\n2001:db8::50 pbx\n192.0.2.51 pbx\nbad line\n\n192.0.2.52\n")
	r := New(cfg)
	for host, want := range map[string][]string{
		"srv.example.org": {"udp 192.0.2.50:5060 srv.example.org"}, // instead of its SRV
		"pbx":             {"udp 192.0.2.50:5060 pbx", "udp 192.0.2.51:5060 pbx", "udp [2001:db8::50]:5060 pbx"},
	} {
		list, err := r.Resolve(t.Context(), Query{Host: host})
		if diff := cmp.Diff(want, describe(list)); diff != "" || err != nil {
			t.Error(err, diff)
		}
	}
	if n := z.total(); n != 0 {
		t.Errorf("%d questions were asked about hosts that the file names", n)
	}
}

func TestResolvConf(t *testing.T) {
	z := newZone(t, records)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 127.0.0.1\nsearch nowhere.example.org example.org\noptions ndots:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(Config{ResolvConf: path, Hosts: hostsFile(t, ""), Timeout: 20 * time.Second})
	r.conf.get().Port = fmt.Sprint(z.addr.Port()) // resolv.conf(5) has no way to say it
	list, err := r.Resolve(t.Context(), Query{Host: "six", Port: 5060})
	if diff := cmp.Diff([]string{"udp [2001:db8::6]:5060 six"}, describe(list)); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if n := z.count("six.nowhere.example.org", dns.TypeA); n != 1 {
		t.Errorf("the first search domain was tried %d times", n)
	}
}

func TestBoundsOnAnswers(t *testing.T) {
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, "_sip._udp.big.example.org. 60 IN SRV 0 0 %d t%d.example.org.\n", 5060+i, i)
		for j := range 10 {
			fmt.Fprintf(&text, "t%d.example.org. 60 IN A 198.51.100.%d\n", i, j)
		}
	}
	z := newZone(t, text.String())
	z.set(func() { z.truncate = true })
	list, err := New(config(t, z.addr)).Resolve(t.Context(), Query{Host: "big.example.org", Proto: flow.UDP})
	if err != nil || len(list) != maxAnswers {
		t.Errorf("%d answers, %v; want %d", len(list), err, maxAnswers)
	}
	if n, most := z.total(), 2*(1+2*maxTargets); n > most { // each over UDP and over TCP
		t.Errorf("%d questions, want at most %d", n, most)
	}
}

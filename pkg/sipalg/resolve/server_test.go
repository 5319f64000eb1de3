package resolve

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// zone is an in-process DNS server on loopback, over UDP and TCP.
type zone struct {
	addr netip.AddrPort

	mu       sync.Mutex // guards what follows
	records  map[question][]dns.RR
	names    map[string]bool // that exist
	rcode    int             // if not 0, all there is to say
	truncate bool            // over UDP
	asked    map[question]int
	tcp      int // questions over TCP
}

// newZone serves records in master file format, one a line, until the test ends.
func newZone(t testing.TB, text string) *zone {
	t.Helper()
	z := &zone{records: map[question][]dns.RR{}, names: map[string]bool{}, asked: map[question]int{}}
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		q := question{key(rr.Header().Name), rr.Header().Rrtype}
		z.records[q] = append(z.records[q], rr)
		z.names[q.name] = true
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skipf("needs the same port for TCP: %v", err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: z}, {Listener: ln, Handler: z}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ActivateAndServe()
		<-up
		t.Cleanup(func() { s.Shutdown() })
	}
	return z
}

// ServeDNS implements [dns.Handler].
func (z *zone) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	resp := new(dns.Msg)
	resp.SetReply(req)
	q := question{key(req.Question[0].Name), req.Question[0].Qtype}
	z.asked[q]++
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	switch {
	case z.rcode != 0:
		resp.Rcode = z.rcode
	case z.truncate && !overTCP:
		resp.Truncated = true
	default:
		z.answer(resp, q)
	}
	if overTCP {
		z.tcp++
	}
	w.WriteMsg(resp)
}

func (z *zone) answer(resp *dns.Msg, q question) {
	resp.Answer = z.records[q]
	if resp.Answer == nil {
		resp.Answer = z.records[question{q.name, dns.TypeCNAME}] // the target is for the client to ask for
	}
	if resp.Answer == nil {
		soa, _ := dns.NewRR("example.org. 60 IN SOA ns.example.org. root.example.org. 1 2 3 4 60")
		resp.Ns = []dns.RR{soa}
		if !z.names[q.name] {
			resp.Rcode = dns.RcodeNameError
		}
	}
}

func (z *zone) count(name string, typ uint16) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked[question{key(name), typ}]
}

func (z *zone) total() (n int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, c := range z.asked {
		n += c
	}
	return n
}

func (z *zone) set(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

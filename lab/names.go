//go:build lab

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/dns"
)

// Knows gives the host a name server of its own, with these names, which the programs that are started from now on ask.
func (h *Host) Knows(t testing.TB, names map[string]netip.Addr) {
	t.Helper()
	var pc net.PacketConn
	must(t, "name server", h.Do(func() (err error) {
		pc, err = net.ListenPacket("udp4", "127.0.0.1:53")
		return err
	}))
	s, done := &dns.Server{PacketConn: pc, Handler: zone(names)}, make(chan struct{})
	t.Cleanup(func() {
		_ = pc.Close()
		<-done
	})
	go serveNames(s, done)
	script := "true"
	for file, text := range map[string]string{
		"hosts": "127.0.0.1 localhost\n", "nsswitch.conf": "hosts: files dns\n", "resolv.conf": "nameserver 127.0.0.1\n",
	} {
		own := filepath.Join(h.dir, h.Name+"-"+file)
		must(t, file, os.WriteFile(own, []byte(text), 0o644))
		script += fmt.Sprintf(" && mount --bind '%s' /etc/%s", own, file)
	}
	h.by = []string{"unshare", "--mount", "sh", "-c", script + ` && exec "$@"`, "sh"}
}

func serveNames(s *dns.Server, done chan<- struct{}) {
	defer close(done)
	_ = s.ActivateAndServe()
}

// zone answers with an address, or that there is none of this type, or no such name.
type zone map[string]netip.Addr

// ServeDNS implements [dns.Handler].
func (z zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	for _, question := range q.Question {
		name := question.Name
		a, known := z[name[:len(name)-1]]
		header := dns.RR_Header{Name: name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 60}
		switch {
		case !known:
			m.Rcode = dns.RcodeNameError
		case question.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		case question.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(m)
}

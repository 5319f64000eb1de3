//go:build lab

package lab

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"text/template"
	"time"
)

//go:embed kamailio/registrar.cfg
var registrarConfig string

//go:embed kamailio/edge.cfg
var referenceConfig string

// RegistrarConfig describes the outside registrar.
type RegistrarConfig struct {
	Password string // digest authentication is demanded if set, the same for every user
	TLS      *Certificates
}

// Registrar starts Kamailio on h as registrar and proxy of example.org, locations in memory.
func (h *Host) Registrar(t testing.TB, c RegistrarConfig) *Proc {
	t.Helper()
	return h.kamailio(t, "registrar", registrarConfig, map[string]any{
		"IP": h.IP, "IP6": h.IP6, "Password": c.Password, "TLS": c.TLS,
	})
}

// Reference starts what edged is compared with, on the gateway: Kamailio with rtpengine, which
// stands for "the rig works": a case that fails there too is not edged's fault.
func (r *Rig) Reference(t testing.TB) *Proc {
	t.Helper()
	lan, wan := r.GW.IPOn(inside, 4), r.GW.IPOn(outside, 4)
	rtp := r.GW.Start(t, "rtpengine", "rtpengine", "--foreground", "--log-stderr", "--table=-1",
		fmt.Sprintf("--interface=lan/%v", lan), fmt.Sprintf("--interface=wan/%v", wan),
		"--listen-ng=127.0.0.1:2223", "--port-min=30000", "--port-max=31000", "--no-fallback=false")
	rtp.Logged(t, 10*time.Second, "Startup complete")
	return r.GW.kamailio(t, "reference", referenceConfig, map[string]any{
		"Lan": lan, "Wan": wan, "Net": nets4[inside], "Server": firstOutside(r),
	})
}

// firstOutside returns the address of the first outside host: the server of example.org.
func firstOutside(r *Rig) netip.Addr {
	for _, h := range r.hosts[1:] {
		if h.Side == outside {
			return h.IP
		}
	}
	return netip.Addr{}
}

func (h *Host) kamailio(t testing.TB, name, text string, data any) *Proc {
	t.Helper()
	var b bytes.Buffer
	must(t, name, template.Must(template.New(name).Parse(text)).Execute(&b, data))
	file := filepath.Join(h.dir, name+".cfg")
	must(t, name, os.WriteFile(file, b.Bytes(), 0o644))
	p := h.Start(t, "kamailio-"+name, "kamailio", "-f", file, "-DD", "-E", "-m", "32", "-M", "4", "-w", h.dir)
	eventually(t, 15*time.Second, name+" answers", func() bool { return !p.Alive() || h.listens(t, 5060) })
	if !p.Alive() {
		t.Fatalf("%s ended: %s", name, tail(p.Log, 2000))
	}
	return p
}

//go:build lab

package lab

import (
	"embed"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"testing"
	"time"
)

//go:embed webrtc
var webPages embed.FS

// sipJS returns the folder of SIP.js (MIT), which a page imports as modules from /lib/.
func sipJS(t *testing.T) string {
	t.Helper()
	return npmPackage(t, "sip.js", "0.21.2", "sha512-tSqTcIgrOd2IhP/rd70JablvAp+fSfLSxO4hGNY6LkWRY1SKygTO7OtJEV/BQb8oIxtMRx0LE7nUF2MaqGbFzA==")
}

// both is a tree above another one.
type both struct{ upper, lower fs.FS }

func (b both) Open(name string) (fs.File, error) {
	if f, err := b.upper.Open(name); err == nil {
		return f, nil
	}
	return b.lower.Open(name)
}

// TestBrowser: Chromium runs on a host, and pages, scripts and their faults are seen.
func TestBrowser(t *testing.T) {
	r := lab(t)
	h := r.Outside("web")
	b := h.Browser(t)
	p := b.Open(t, h.Site(t, os.DirFS(sipJS(t)))+"/package.json")
	var name string
	p.Eval(t, "import('/lib/index.js').then(m => m.name)", &name)
	if name != "sip.js" {
		t.Errorf("the module is %q", name)
	}
	if err := p.Try("Promise.reject(new Error('no'))", nil); err == nil {
		t.Error("a rejected promise is no error")
	}
	p.Eval(t, "console.error('one', 2)", nil)
	p.Until(t, 10*time.Second, "a secure context", "isSecureContext && navigator.mediaDevices")
	eventually(t, 10*time.Second, "the console's error", func() bool { return len(p.Errors()) == 1 })
}

// webPhone is a page with SIP.js, registered through the edge over wss.
type webPhone struct {
	*Page
	user string
	hz   int
}

// webRig is a browser outside and a plain phone inside, both at the registrar inside.
type webRig struct {
	*trio
	web *webPhone
}

// newWebRig starts all of them; sip are more lines of edged's section.
func newWebRig(t *testing.T, sip string) *webRig {
	t.Helper()
	onlyEdged(t, "its configuration here has no WebSocket")
	r := lab(t)
	w := &webRig{trio: &trio{rig: r, registrar: r.Inside("registrar")}}
	in, out := r.Inside("in1"), r.Outside("out1")
	files := both{webPages, os.DirFS(sipJS(t))}
	browser := out.Browser(t)
	w.registrar.Registrar(t, RegistrarConfig{})
	a := newAuthority(t, r.Dir)
	w.edge = r.Edge(t, EdgeConfig{
		SIP: sip + "\norigins: [\"localhost:*\"]", Listen: []string{"wss://outside:7443"},
		TLS:     a.issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(inside, 4), r.GW.IPOn(outside, 4)),
		Domains: fmt.Sprintf("example.org: {network: inside, server: \"udp:%v:5060\"}", w.registrar.IP),
	})
	w.alice = in.Phone(t, PhoneConfig{User: "alice", Hz: 440, Register: true, Proxy: netip.AddrPortFrom(w.registrar.IP, 5060).String()})
	w.web = &webPhone{Page: browser.Open(t, out.Site(t, files)+"/webrtc/phone.html"), user: "carol", hz: 700}
	w.web.Until(t, 20*time.Second, "SIP.js is there", "window.phone?.ready")
	w.web.Eval(t, fmt.Sprintf("phone.start({server: 'wss://%v:7443', user: 'carol', domain: 'example.org', password: '', hz: %d})", r.GW.IPOn(outside, 4), w.web.hz), nil)
	w.web.Until(t, 20*time.Second, "the page is registered", "phone.registered")
	return w
}

// hears waits until the page hears a tone.
func (p *webPhone) hears(t *testing.T, hz int) {
	t.Helper()
	var got float64
	if !until(20*time.Second, func() bool {
		pass(50 * time.Millisecond)
		return p.Try("phone.hears()", &got) == nil && math.Abs(got-float64(hz)) < 20
	}) {
		var stats any
		_ = p.Try("phone.stats()", &stats)
		t.Fatalf("the page hears %.0f Hz, not %d: %v", got, hz, stats)
	}
	t.Logf("the page hears %.0f Hz", got)
}

// converse wants both to hear each other.
func (w *webRig) converse(t *testing.T) {
	t.Helper()
	w.web.hears(t, w.alice.Hz)
	until(20*time.Second, func() bool {
		pass(100 * time.Millisecond)
		return w.alice.Heard(t).Part(w.web.hz) >= time.Second
	})
	wantSound(t, w.alice, w.web.hz, time.Second)
}

const webProfiles = "media_profile: {\"wss://outside\": webrtc, outside: rtp, inside: rtp}"

// TestWebRTCCalls: a browser calls a plain phone, and is called by it; either ends the call.
func TestWebRTCCalls(t *testing.T) {
	w := newWebRig(t, webProfiles)
	w.alice.Forget()
	w.web.Eval(t, "phone.dial('sip:alice@example.org')", nil)
	w.alice.Expect(t, 20*time.Second, "CALL_ESTABLISHED")
	w.converse(t)
	w.web.Eval(t, "phone.hangup()", nil)
	w.alice.Expect(t, 10*time.Second, "CALL_CLOSED")

	w.alice.Forget()
	w.alice.Dial(t, "sip:carol@example.org")
	w.alice.Expect(t, 20*time.Second, "CALL_ESTABLISHED")
	w.converse(t)
	w.alice.Hangup(t)
	w.web.Until(t, 10*time.Second, "the call's end", "phone.state === 'Terminated'")
	w.edge.Clean(t)
}

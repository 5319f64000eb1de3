//go:build lab

package lab

import (
	"embed"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"strings"
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
	hz int
}

// webRig is a browser outside and a plain phone inside, both at the registrar inside.
type webRig struct {
	*trio
	web  *webPhone
	page func(user string, hz int, camera bool) *webPhone
}

// newWebRig starts all of them; sip are more lines of edged's section. The browser is behind a NAT and so has no public address, or it
// comes by IPv6. The edge has one port 443, for TURN and SIP too.
func newWebRig(t *testing.T, sip string, family int) *webRig {
	t.Helper()
	onlyEdged(t, "its configuration here has no WebSocket")
	r := lab(t)
	w := &webRig{trio: &trio{rig: r, registrar: r.Inside("registrar")}}
	in := r.Inside("in1")
	var out *Host
	if family == 4 {
		out, _ = r.BehindNAT("home")
	} else {
		out = r.Outside("out1")
	}
	gate := netip.AddrPortFrom(r.GW.IPOn(outside, family), 443)
	files := both{webPages, os.DirFS(sipJS(t))}
	browser := out.Browser(t)
	w.registrar.Registrar(t, RegistrarConfig{})
	a := newAuthority(t, r.Dir)
	w.edge = r.Edge(t, EdgeConfig{
		SIP: sip + "\norigins: [\"localhost:*\"]", Listen: []string{"wss://outside:443", "tls://outside:443"},
		TLS:     a.issue(t, "edge", []string{"edge.example.org"}, gate.Addr()),
		More:    "turn: {listen: [\"tls://outside:443\"], realm: example.org, users: {alice: secret}}\nshared: [{listen: \"tcp://outside:443\"}]\n",
		Domains: fmt.Sprintf("example.org: {network: inside, server: \"udp:%v:5060\"}", w.registrar.IP),
	})
	w.alice = in.Phone(t, PhoneConfig{User: "alice", Hz: 440, Register: true, Proxy: netip.AddrPortFrom(w.registrar.IP, 5060).String()})
	w.page = func(user string, hz int, camera bool) *webPhone {
		p := &webPhone{Page: browser.Open(t, out.Site(t, files)+"/webrtc/phone.html"), hz: hz}
		there := func() (ok bool) { return p.Try("!!window.phone?.ready", &ok) == nil && ok }
		if !until(20*time.Second, there) { // Chromium gives its loading up if it sees the network change
			p.Eval(t, "location.reload()", nil)
		}
		p.Until(t, 20*time.Second, "SIP.js is there", "window.phone?.ready")
		p.Eval(t, fmt.Sprintf("phone.start({server: 'wss://%v', user: '%s', domain: 'example.org', password: '', hz: %d, camera: %v})", gate, user, hz, camera), nil)
		p.Until(t, 20*time.Second, "the page is registered", "phone.registered")
		return p
	}
	w.web = w.page("carol", 700, false)
	return w
}

// dial lets the page call alice.
func (w *webRig) dial(t *testing.T) {
	t.Helper()
	w.alice.Forget()
	w.web.Eval(t, "phone.dial('sip:alice@example.org')", nil)
	w.alice.Expect(t, 20*time.Second, "CALL_ESTABLISHED")
}

// hears waits until the page hears a tone, 0 is none.
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
}

// converse wants both to hear each other. A phone that was put on hold records nothing any more.
func (w *webRig) converse(t *testing.T) {
	t.Helper()
	w.web.hears(t, w.alice.Hz)
	until(20*time.Second, func() bool {
		pass(100 * time.Millisecond)
		return w.alice.Heard(t).Part(w.web.hz) >= time.Second
	})
	wantSound(t, w.alice, w.web.hz, time.Second)
}

// again wants both to hear each other, by what arrives at alice.
func (w *webRig) again(t *testing.T, when string) {
	t.Helper()
	w.web.hears(t, w.alice.Hz)
	lan := w.rig.Capture("lan", "udp")
	pass(700 * time.Millisecond)
	if s := heardOnWire(rtpTo(lan.Stop(t), w.rig.GW, w.alice.ip())); !s.near(w.web.hz) || s.Voiced < 400*time.Millisecond {
		t.Errorf("%s alice gets %v", when, s)
	}
}

const webProfiles = "media_profile: {\"wss://outside\": webrtc, inside: rtp}"

// TestWebRTCBrowserCalls: a browser calls a plain phone, holds and resumes the call, takes other candidates and ends it. RTCP comes
// to the phone's own port for it, though the browser has it at RTP's; a camera is refused, and the call goes on.
func TestWebRTCBrowserCalls(t *testing.T) {
	w := newWebRig(t, webProfiles, 4)
	lan := w.rig.Capture("lan", "udp")
	w.dial(t)
	w.converse(t)
	w.web.Eval(t, "phone.hold(true)", nil)
	w.web.hears(t, 0)
	w.web.Eval(t, "phone.hold(false)", nil)
	w.again(t, "after the browser has resumed")
	var before, after string
	const ufrag = "phone.pc().localDescription.sdp.match(/ice-ufrag:(.*)/)[1]"
	w.web.Eval(t, ufrag, &before)
	w.web.Eval(t, "phone.restart()", nil)
	w.web.Eval(t, ufrag, &after)
	w.web.Until(t, 10*time.Second, "ICE is connected", "['connected', 'completed'].includes(phone.pc().iceConnectionState)")
	w.again(t, "after the ICE restart")
	if before == after {
		t.Error("ICE has not restarted")
	}
	w.web.Until(t, 15*time.Second, "the phone's report", "phone.stats().then(s => s['remote-inbound-rtp-audio']?.roundTripTime !== undefined)")
	w.web.Eval(t, "phone.hangup()", nil)
	w.alice.Expect(t, 10*time.Second, "CALL_CLOSED")
	w.wantReports(t, lan.Stop(t))
	w.edge.Clean(t)

	w.web = w.page("carol", 700, true)
	w.dial(t)
	w.converse(t)
	var video string
	w.web.Eval(t, "phone.pc().remoteDescription.sdp.match(/m=video (.*)/)[0]", &video)
	if !strings.HasPrefix(video, "m=video 0 UDP/TLS/RTP/SAVPF ") {
		t.Errorf("the camera's m-line is answered with %q", video)
	}
	w.alice.Hangup(t)
	w.web.Until(t, 10*time.Second, "the call's end", "phone.state === 'Terminated'")
	w.edge.Clean(t)
}

// wantReports looks for RTCP among what arrived at alice: at odd ports.
func (w *webRig) wantReports(t *testing.T, all []Packet) {
	t.Helper()
	odd := 0
	for _, p := range all {
		if p.Dst.Addr() != w.alice.ip() || len(p.Payload) < 8 || p.Payload[1] < 192 || p.Payload[1] > 223 || p.Payload[0]>>6 != 2 {
			continue
		}
		if p.Dst.Port()%2 == 0 {
			t.Errorf("RTCP at %v", p.Dst)
		}
		odd++
	}
	if odd == 0 {
		t.Error("no RTCP at the phone's port for it")
	}
}

// TestWebRTCPhoneCalls: a plain phone calls a browser, holds and resumes the call, and ends it; then the browser does.
func TestWebRTCPhoneCalls(t *testing.T) {
	w := newWebRig(t, webProfiles, 6)
	for _, ends := range []func(){
		func() { w.alice.Hangup(t) },
		func() { w.web.Eval(t, "phone.hangup()", nil); w.alice.Expect(t, 10*time.Second, "CALL_CLOSED") },
	} {
		w.alice.Forget()
		w.alice.Dial(t, "sip:carol@example.org")
		w.alice.Expect(t, 20*time.Second, "CALL_ESTABLISHED")
		w.converse(t)
		w.alice.Command(t, "hold", "")
		w.web.hears(t, 0)
		w.alice.Command(t, "resume", "")
		w.again(t, "after alice has resumed")
		ends()
		w.web.Until(t, 10*time.Second, "the call's end", "phone.state === 'Terminated'")
	}
	if faults := w.web.Errors(); len(faults) > 0 {
		t.Errorf("the page complains: %q", faults)
	}
	w.edge.Clean(t)
}

// TestWebRTCBrowsers: two pages with cameras call each other; each has its own transports with the edge, and sees and hears the other.
func TestWebRTCBrowsers(t *testing.T) {
	w := newWebRig(t, webProfiles, 4)
	pages := []*webPhone{w.page("carol", 700, true), w.page("dave", 1000, true)}
	pages[0].Eval(t, "phone.dial('sip:dave@example.org')", nil)
	for i, p := range pages {
		p.Until(t, 20*time.Second, "the call", "phone.state === 'Established'")
		p.hears(t, pages[1-i].hz)
		const decoded = "phone.stats().then(s => s['inbound-rtp-video']).then(v => v?.frameWidth === 640 && v.framesDecoded"
		p.Until(t, 20*time.Second, "pictures", decoded+" > 5)")
		var n int
		p.Eval(t, "phone.stats().then(s => s['inbound-rtp-video'].framesDecoded)", &n)
		p.Until(t, 20*time.Second, "more pictures", fmt.Sprintf("%s > %d)", decoded, n+5))
	}
	pages[1].Eval(t, "phone.hangup()", nil)
	pages[0].Until(t, 10*time.Second, "the call's end", "phone.state === 'Terminated'")
	w.edge.Clean(t)
}

// TestWebRTCControl: without media_profile the two do not hear each other, and where the browser's network is plain it is refused.
func TestWebRTCControl(t *testing.T) {
	w := newWebRig(t, "media_profile: {}", 4)
	dial := func() (status int) {
		w.web.Eval(t, "phone.dial('sip:alice@example.org')", nil)
		w.web.Until(t, 20*time.Second, "an end, or a call", "phone.status || ['Established', 'Terminated'].includes(phone.state)")
		w.web.Eval(t, "phone.status", &status)
		return status
	}
	if dial() == 0 {
		pass(2 * time.Second)
		if s := w.alice.Heard(t); s.near(w.web.hz) {
			t.Error("they hear each other: the control is broken")
		}
		w.web.Eval(t, "phone.hangup()", nil)
	}
	c := w.edge.config
	c.SIP = strings.Replace(c.SIP, "{}", "{outside: rtp, inside: rtp}", 1)
	w.edge.Reload(t, c)
	w.edge.proc.Logged(t, 10*time.Second, "configuration reloaded")
	if status := dial(); status != 488 {
		t.Errorf("the browser is refused with %d", status)
	}
	w.edge.Clean(t)
}

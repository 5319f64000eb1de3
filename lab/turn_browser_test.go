//go:build lab

package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// relayPage has two peer connections of one page meet, each of which may use relayed candidates alone: 50 messages go and come
// back by a data channel, and a canvas that moves is seen as video.
const relayPage = `<!doctype html><meta charset=utf-8><title>relay</title><script>
const sleep = ms => new Promise(r => setTimeout(r, ms));
async function relay(server, messages, frames, patience) {
	const cfg = {iceServers: [server], iceTransportPolicy: 'relay'};
	const a = new RTCPeerConnection(cfg), b = new RTCPeerConnection(cfg);
	const out = {got: 0, octets: 0, frames: 0, width: 0, height: 0, candidates: [], errors: [], pairs: []};
	for (const [x, y] of [[a, b], [b, a]]) {
		x.onicecandidate = e => {
			if (!e.candidate || !e.candidate.candidate) return;
			out.candidates.push(e.candidate.candidate);
			y.addIceCandidate(e.candidate).catch(e => out.errors.push(String(e)));
		};
		x.onicecandidateerror = e => out.errors.push(e.errorCode + ' ' + e.errorText);
	}
	const canvas = document.createElement('canvas'), video = document.createElement('video');
	canvas.width = 320; canvas.height = 240;
	const pen = canvas.getContext('2d');
	let n = 0;
	const painter = setInterval(() => {
		pen.fillStyle = 'hsl(' + n++ * 7 % 360 + ' 90% 50%)';
		pen.fillRect(0, 0, 320, 240);
	}, 40);
	video.muted = video.autoplay = true;
	document.body.append(canvas, video);
	a.addTrack(canvas.captureStream(25).getVideoTracks()[0]);
	b.ontrack = e => { video.srcObject = new MediaStream([e.track]); };
	b.ondatachannel = e => { e.channel.binaryType = 'arraybuffer'; e.channel.onmessage = m => e.channel.send(m.data); };
	const channel = a.createDataChannel('t');
	channel.binaryType = 'arraybuffer';
	channel.onopen = () => { for (let i = 0; i < messages; i++) channel.send(new Uint8Array(1000 + i)); };
	channel.onmessage = m => { out.got++; out.octets += m.data.byteLength; };
	await a.setLocalDescription(await a.createOffer());
	await b.setRemoteDescription(a.localDescription);
	await b.setLocalDescription(await b.createAnswer());
	await a.setRemoteDescription(b.localDescription);
	for (const end = performance.now() + patience; performance.now() < end; await sleep(50)) {
		for (const s of (await b.getStats()).values())
			if (s.type === 'inbound-rtp' && s.kind === 'video') {
				out.frames = s.framesDecoded || 0; out.width = s.frameWidth || 0; out.height = s.frameHeight || 0;
			}
		if (out.got >= messages && out.frames >= frames) break;
	}
	for (const x of [a, b]) {
		const stats = await x.getStats();
		for (const s of stats.values())
			if (s.type === 'candidate-pair' && s.nominated && s.state === 'succeeded') {
				const l = stats.get(s.localCandidateId), r = stats.get(s.remoteCandidateId);
				out.pairs.push({local: l.candidateType, remote: r.candidateType, protocol: l.relayProtocol || '', address: l.address || ''});
			}
	}
	clearInterval(painter); a.close(); b.close(); canvas.remove(); video.remove();
	return out;
}
</script><body></body>`

// relayed is what came of it.
type relayed struct {
	Got, Octets, Frames, Width, Height int
	Candidates, Errors                 []string
	Pairs                              []struct{ Local, Remote, Protocol, Address string }
}

const (
	relayMessages = 50
	relayFrames   = 25
	relayOctets   = relayMessages*1000 + relayMessages*(relayMessages-1)/2
)

// relay runs the page with one server.
func (p *Page) relay(t *testing.T, url, password string, patience time.Duration) (out relayed) {
	t.Helper()
	server, err := json.Marshal(map[string]string{"urls": url, "username": "alice", "credential": password})
	must(t, "server", err)
	p.Eval(t, fmt.Sprintf("relay(%s, %d, %d, %d)", server, relayMessages, relayFrames, patience.Milliseconds()), &out)
	return out
}

// browserTURN is an edge with TURN on all ports that browsers may use, and a host for one; more are lines of the section.
func browserTURN(t *testing.T, name string, more ...string) (*Rig, *Edge, *Host) {
	onlyEdged(t, "the reference has no TURN")
	r := lab(t)
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
	}
	certs := newAuthority(t, r.Dir).issue(t, "edge", []string{"turn.example.org"}, r.GW.IPOn(outside, 4), r.GW.IPOn(outside, 6))
	e := r.Edge(t, EdgeConfig{TLS: certs, More: "turn:\n  listen: [\"udp://outside:3478\", \"tcp://outside:3478\", \"tls://outside:443\"]\n" +
		"  realm: example.org\n  users: {alice: secret}\n  quota: {per_user: 200}\n" + indent(strings.Join(more, "\n"), "  ")})
	return r, e, r.Outside(name)
}

// openRelay opens the page in a browser.
func openRelay(t *testing.T, h *Host, flags ...string) *Page {
	t.Helper()
	site := h.Site(t, fstest.MapFS{"relay.html": {Data: []byte(relayPage)}})
	return h.Browser(t, flags...).Open(t, site+"/relay.html")
}

// TestTURNBrowser: two peer connections of a real browser, both on this one server, have a data channel and video by each transport, by
// address and by name. With a wrong password there is nothing.
func TestTURNBrowser(t *testing.T) {
	r, e, h := browserTURN(t, "browser")
	h.Knows(t, map[string]netip.Addr{"turn.example.org": r.GW.IPOn(outside, 4)})
	p := openRelay(t, h)
	v4, v6 := r.GW.IPOn(outside, 4), r.GW.IPOn(outside, 6)
	for _, c := range []struct {
		name, url, transport string
		relay                netip.Addr
	}{
		{"udp", "turn:" + v4.String() + ":3478?transport=udp", "udp", v4},
		{"tcp", "turn:" + v4.String() + ":3478?transport=tcp", "tcp", v4},
		{"tls", "turns:" + v4.String() + ":443?transport=tcp", "tls", v4},
		{"udp by name", "turn:turn.example.org:3478?transport=udp", "udp", v4},
		{"tcp by name", "turn:turn.example.org:3478?transport=tcp", "tcp", v4},
		{"tls by name", "turns:turn.example.org:443?transport=tcp", "tls", v4},
		{"udp over ipv6", "turn:[" + v6.String() + "]:3478?transport=udp", "udp", v6},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			e.checkRelay(t, p.relay(t, c.url, "secret", 30*time.Second), c.transport, c.relay, c.url)
		})
	}
	t.Run("wrong-password", func(t *testing.T) {
		out := p.relay(t, "turn:"+v4.String()+":3478?transport=udp", "wrong", 3*time.Second)
		if out.Got != 0 || out.Frames != 0 || len(out.Candidates) != 0 || !strings.Contains(strings.Join(out.Errors, "\n"), "401") {
			t.Errorf("%+v", out)
		}
	})
}

// checkRelay fails the test unless everything has come by relayed candidates of one transport.
func (e *Edge) checkRelay(t *testing.T, out relayed, transport string, relay netip.Addr, url string) {
	t.Helper()
	if out.Got != relayMessages || out.Octets != relayOctets {
		t.Errorf("%d messages, %d octets have come back", out.Got, out.Octets)
	}
	if out.Frames < relayFrames || out.Width != 320 || out.Height != 240 {
		t.Errorf("%d frames of %d×%d", out.Frames, out.Width, out.Height)
	}
	if len(out.Pairs) != 2 {
		t.Errorf("%d pairs", len(out.Pairs))
	}
	for _, pair := range out.Pairs {
		if pair.Local != "relay" || pair.Remote != "relay" || pair.Protocol != transport || strings.Trim(pair.Address, "[]") != relay.String() {
			t.Errorf("pair %+v", pair)
		}
	}
	if n := e.Metric("edged_turn_allocations_total", `transport="`+transport+`"`); n < 2 {
		t.Errorf("%v allocations by %s", n, transport)
	}
	if t.Failed() {
		t.Logf("%s: %+v", url, out)
	}
}

// TestTURNBrowserProxy: a browser that may reach an HTTP proxy and nothing else has both by CONNECT, to 3478 and to 443; and
// without the proxy it has nothing.
func TestTURNBrowserProxy(t *testing.T) {
	if _, err := exec.LookPath("squid"); err != nil {
		t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
	}
	r, e, h := browserTURN(t, "shut-in")
	proxy := r.Outside("proxy")
	proxy.Squid(t)
	h.onlyTo(t, netip.AddrPortFrom(proxy.IP, 3128))
	v4 := r.GW.IPOn(outside, 4)
	p := openRelay(t, h, fmt.Sprintf("--proxy-server=http://%s:3128", proxy.IP))
	for _, c := range []struct{ name, url, transport string }{
		{"tcp", "turn:" + v4.String() + ":3478?transport=tcp", "tcp"},
		{"tls", "turns:" + v4.String() + ":443?transport=tcp", "tls"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.checkRelay(t, p.relay(t, c.url, "secret", 30*time.Second), c.transport, v4, c.url)
		})
	}
	t.Run("none", func(t *testing.T) {
		out := openRelay(t, h).relay(t, "turns:"+v4.String()+":443?transport=tcp", "secret", 3*time.Second)
		if out.Got != 0 || out.Frames != 0 || len(out.Candidates) != 0 {
			t.Errorf("without the proxy: %+v", out)
		}
	})
}

// Squid starts an HTTP proxy that lets everybody CONNECT anywhere, on port 3128.
func (h *Host) Squid(t testing.TB) {
	t.Helper()
	conf := h.dir + "/squid.conf"
	must(t, "squid", os.WriteFile(conf, []byte("http_port 3128\nhttp_access allow all\ncache deny all\ncache_mem 8 MB\nmemory_cache_shared off\n"+
		"access_log none\ncache_log /dev/null\npid_filename none\npinger_enable off\nshutdown_lifetime 1 seconds\n"), 0o644))
	p := h.Start(t, "squid", "squid", "-N", "-d", "1", "-f", conf)
	eventually(t, 30*time.Second, "squid listens", func() bool { return h.listens(t, 3128) || !p.Alive() })
}

// onlyTo has the host reach one TCP port and itself.
func (h *Host) onlyTo(t testing.TB, at netip.AddrPort) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("table inet labonly {\n chain out {\n  type filter hook output priority 0; policy drop;\n"+
		"  oifname lo accept\n  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n  ip daddr %s tcp dport %d accept\n }\n}\n", at.Addr(), at.Port()))
	must(t, "nft", h.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

//go:build lab

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"
)

// echoPage has a browser send a canvas to Janus's echo test, by its HTTP API, and count the frames that come back.
const echoPage = `<!doctype html><meta charset=utf-8><title>echo</title><script>
async function echo(janus, frames, patience) {
	const post = async (path, o) => (await fetch(janus + path, {method: 'POST', body: JSON.stringify({transaction: 't' + Math.random(), ...o})})).json();
	const session = '/' + (await post('', {janus: 'create'})).data.id;
	const handle = session + '/' + (await post(session, {janus: 'attach', plugin: 'janus.plugin.echotest'})).data.id;
	const pc = new RTCPeerConnection(), out = {frames: 0, width: 0, remote: '', candidates: []};
	const canvas = document.createElement('canvas'), video = document.createElement('video');
	canvas.width = 320; canvas.height = 240;
	const pen = canvas.getContext('2d');
	let n = 0;
	setInterval(() => { pen.fillStyle = 'hsl(' + n++ * 7 % 360 + ' 90% 50%)'; pen.fillRect(0, 0, 320, 240); }, 40);
	video.muted = video.autoplay = true;
	document.body.append(canvas, video);
	pc.addTrack(canvas.captureStream(25).getVideoTracks()[0]);
	pc.ontrack = e => { video.srcObject = new MediaStream([e.track]); };
	await pc.setLocalDescription(await pc.createOffer());
	while (pc.iceGatheringState !== 'complete') await new Promise(r => pc.addEventListener('icegatheringstatechange', r, {once: true}));
	await post(handle, {janus: 'message', body: {audio: false, video: true}, jsep: {type: 'offer', sdp: pc.localDescription.sdp, force_relay: true}});
	let answer;
	while (!answer) answer = (await (await fetch(janus + session)).json()).jsep;
	async function poll() { for (;;) await (await fetch(janus + session)).json(); } // Janus forgets who does not ask
	poll().catch(() => {});
	await pc.setRemoteDescription(answer);
	out.candidates = answer.sdp.match(/a=candidate.*/g) || [];
	for (const end = performance.now() + patience; performance.now() < end && out.frames < frames; await new Promise(r => setTimeout(r, 100))) {
		const stats = await pc.getStats();
		for (const s of stats.values()) {
			if (s.type === 'inbound-rtp' && s.kind === 'video') { out.frames = s.framesDecoded || 0; out.width = s.frameWidth || 0; }
			if (s.type === 'candidate-pair' && s.nominated && s.state === 'succeeded') out.remote = stats.get(s.remoteCandidateId).address;
		}
	}
	pc.close();
	return out;
}
</script><body></body>`

// Janus starts the server of that name with a TURN server of its own, which it uses for all that it sends and gets.
func (h *Host) Janus(t testing.TB, turn string) {
	t.Helper()
	plugins, err := filepath.Glob("/usr/lib/*/janus/plugins/libjanus_echotest.so")
	if _, missing := exec.LookPath("janus"); missing != nil || err != nil || len(plugins) == 0 {
		t.Skip("SKIPPED: there is no Janus (Debian packages: lab/packages.txt)")
	}
	janus, dir := filepath.Dir(filepath.Dir(plugins[0])), filepath.Join(h.dir, h.Name)
	for _, sub := range []string{"plugins", "transports", "configs", "none"} {
		must(t, "janus", os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	must(t, "janus", os.Symlink(plugins[0], filepath.Join(dir, "plugins", filepath.Base(plugins[0]))))
	must(t, "janus", os.Symlink(janus+"/transports/libjanus_http.so", dir+"/transports/libjanus_http.so"))
	must(t, "janus", os.WriteFile(dir+"/configs/janus.transport.http.jcfg", []byte("general: {json = \"plain\" base_path = \"/janus\" http = true port = 8088}\n"), 0o644))
	must(t, "janus", os.WriteFile(dir+"/configs/janus.jcfg", fmt.Appendf(nil,
		"general: {configs_folder = \"%[1]s/configs\" plugins_folder = \"%[1]s/plugins\" transports_folder = \"%[1]s/transports\" events_folder = \"%[1]s/none\" loggers_folder = \"%[1]s/none\"}\n"+
			"nat: {%[2]s allow_force_relay = true}\n", dir, turn), 0o644))
	p := h.Start(t, "janus-"+h.Name, "janus", "-F", dir+"/configs", "-C", dir+"/configs/janus.jcfg", "--disable-colors")
	eventually(t, 30*time.Second, "Janus listens", func() bool { return h.listens(t, 8088) || !p.Alive() })
}

// TestTURNJanus: Janus, which may be reached at its relay port alone, echoes a browser's video; by UDP and by TCP to the edge. With a
// wrong password it has no relay port.
func TestTURNJanus(t *testing.T) {
	r, e, h := browserTURN(t, "browser", "peers: {allow: [198.51.100.0/24]}")
	b := h.Browser(t)
	site := h.Site(t, fstest.MapFS{"echo.html": {Data: []byte(echoPage)}})
	v4 := r.GW.IPOn(outside, 4)
	for _, c := range []struct {
		transport, password string
		patience            time.Duration
	}{{"udp", "secret", 40 * time.Second}, {"tcp", "secret", 40 * time.Second}, {"udp", "wrong", 3 * time.Second}} {
		name := c.transport + "-" + c.password
		t.Run(name, func(t *testing.T) {
			janus := r.Outside(name)
			janus.Janus(t, fmt.Sprintf("turn_server = %q turn_port = 3478 turn_type = %q turn_user = \"alice\" turn_pwd = %q", v4, c.transport, c.password))
			var out struct {
				Frames, Width int
				Remote        string
				Candidates    []string
			}
			b.Open(t, site+"/echo.html").Eval(t, fmt.Sprintf("echo('http://%s:8088/janus', %d, %d)", janus.IP, relayFrames, c.patience.Milliseconds()), &out)
			works := out.Frames >= relayFrames && out.Width == 320 && out.Remote == v4.String()
			if works != (c.password == "secret") || !works && out.Frames != 0 {
				t.Errorf("%+v", out)
			}
			if n := e.Metric("edged_turn_allocations_total", `transport="`+c.transport+`"`); n == 0 {
				t.Error("Janus has not allocated")
			}
		})
	}
}

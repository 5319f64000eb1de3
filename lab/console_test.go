//go:build lab

package lab

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const consoleURL = "http://127.0.0.1:9060/console/"

// consoleToken is what users log in with.
const consoleToken = "console-sesame-0123456789"

// consoleRig is an edge with 50 calls that talk, a registered phone, a client of TURN and a device of the tunnel, and a
// browser on the edge itself.
type consoleRig struct {
	*Edge
	browser *Browser
	axe     string
	page    *Page // the only one: what it may have to complain of is judged at the end
}

const consoleSections = `turn:
  listen: ["udp://outside:3478"]
  realm: example.org
  users: {alice: secret}
  peers: {allow: [192.0.2.0/24, 198.51.100.0/24]}
tunnel:
  listen: ["https://outside:443"]
forwards: [{name: web, listen: "tcp://outside:8057", to: "10.77.1.9:8057", allow: [198.51.100.0/24]}]
`

// newConsoleRig returns with everything up; ended is closed when the processes of the calls have ended.
func newConsoleRig(t *testing.T) (rig *consoleRig, ended <-chan struct{}) {
	t.Helper()
	onlyEdged(t, "nobody else has this console")
	r := lab(t)
	axe := npmPackage(t, "axe-core", "4.14.1", "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==")
	source, err := os.ReadFile(filepath.Join(axe, "axe.min.js"))
	must(t, "axe", err)
	in, out := r.Inside("in1"), r.Outside("out1")
	l := Load{Calls: 50, PerSecond: 25, Talk: 10 * time.Minute, Proto: "udp", From: in, To: out, FromFam: 4, ToFam: 4, Domain: "example.org"} // they are hung up
	l.Next = netip.AddrPortFrom(r.GW.IPOn(inside, 4), 5060)
	registrar := out.Agent(t, "registrar", "udp", out.Addr(4, 5080), nil)
	c := EdgeConfig{
		Pinholes: "{udp: 40000-59999, per_owner: 1000}", Token: consoleToken, More: consoleSections,
		Domains: fmt.Sprintf("%s: {network: outside, server: \"udp:%v\"}\nphones.example.org: {network: outside, server: \"udp:%v\"}", l.Domain, l.callee(), registrar.Addr),
	}
	a := newAuthority(t, r.Dir)
	c.TLS = a.issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(inside, 4), r.GW.IPOn(outside, 4))
	rig = &consoleRig{Edge: r.Edge(t, c), axe: string(source)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(t) // to sipp a BYE that it has not sent itself is a failure
	}()
	rig.browser = r.GW.Browser(t, "--force-device-scale-factor=1")
	in.Agent(t, "carol", "udp", in.Addr(4, 5070), nil).Register(l.Next, registrar, "phones.example.org")
	rig.others(t, r, out)
	eventually(t, 60*time.Second, "50 calls, a registration, an allocation and a device", func() bool {
		up := slices.DeleteFunc(document[struct{ State string }](t, rig.Edge, "calls", "calls"), func(c struct{ State string }) bool { return c.State != "up" })
		return len(up) == 50 && len(document[struct{}](t, rig.Edge, "registrations", "registrations")) == 1 &&
			len(document[struct{}](t, rig.Edge, "turn", "turn")) > 0 && len(document[struct{}](t, rig.Edge, "tunnels", "tunnels")) == 1
	})
	return rig, done
}

// others starts coturn's client and its peer, and the agent of a site.
func (r *consoleRig) others(t *testing.T, rig *Rig, peer *Host) {
	t.Helper()
	need(t, "turnutils_uclient", "turnutils_peer", "tcpdump")
	edge := rig.GW.IPOn(outside, 4)
	peer.Start(t, "peer", "turnutils_peer", "-L", peer.IP.String(), "-p", "3480")
	eventually(t, 10*time.Second, "the peer listens", func() bool { return peer.listens(t, 3480) })
	rig.Outside("client").Start(t, "uclient", "turnutils_uclient", "-u", "alice", "-w", "secret", "-e", peer.IP.String(), "-r", "3480",
		"-n", "100000", "-m", "1", "-l", "170", "-z", "50", "-c", edge.String())
	bin, err := edgedBinary()
	must(t, "build edged", err)
	x := &tunnelRig{Rig: rig, bin: bin, relay: &tunnelEnd{Host: rig.GW, dir: rig.Dir}}
	site := x.end(t, rig.Outside("branch"), nil)
	token, err := x.relay.edged(x, "tunnel", "token", "branch")
	must(t, "token", err)
	site.configure(t, "")
	_, err = site.edged(x, "tunnel", "enrol", "--relay", edge.String(), token)
	must(t, "enrol", err)
	key, err := x.relay.edged(x, "tunnel", "key", "--relay")
	must(t, "key", err)
	site.configure(t, fmt.Sprintf("agent:\n  relays: [{address: %v, id: %s}]\n", edge, key))
	site.Start(t, "agent", bin, "tunnel", "--config", site.file())
}

// document reads a list of the API.
func document[T any](t testing.TB, e *Edge, path, name string) []T {
	t.Helper()
	_, body := e.get("/api/v1/" + path)
	var doc map[string]json.RawMessage
	must(t, path, json.Unmarshal(body, &doc))
	var list []T
	must(t, path, json.Unmarshal(doc[name], &list))
	return list
}

// rows returns the texts of a table's cells as the page shows them, by the row's key.
func (p *Page) rows(t testing.TB, table string) map[string][]string {
	t.Helper()
	var rows map[string][]string
	p.Eval(t, fmt.Sprintf(`Object.fromEntries([...document.querySelectorAll("#%s tbody tr")].map(r =>
		[r.dataset.key, [...r.cells].map(c => c.firstElementChild?.textContent ?? "")]))`, table), &rows)
	return rows
}

func (p *Page) look(t testing.TB, wide, high int, scheme string) {
	t.Helper()
	p.browser.must(t, p.session, "Emulation.setDeviceMetricsOverride", map[string]any{"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 500}, nil)
	p.browser.must(t, p.session, "Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// picture writes a PNG of what is seen to the folder that EDGED_LAB_IMAGES names.
func (p *Page) picture(t testing.TB, name string) {
	t.Helper()
	dir := os.Getenv("EDGED_LAB_IMAGES")
	if dir == "" {
		return
	}
	var shot struct {
		Data string `json:"data"`
	}
	p.browser.must(t, p.session, "Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	must(t, "picture", err)
	must(t, "picture", os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644))
}

// accessible runs axe-core in the page and lets no serious finding pass.
func (r *consoleRig) accessible(t testing.TB, p *Page, what string) {
	t.Helper()
	if err := p.Try("window.axe !== undefined || (() => {"+r.axe+"})()", nil); err != nil {
		t.Fatalf("axe: %v", err)
	}
	var found []string
	p.Eval(t, `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations.filter(v => v.impact === "serious" || v.impact === "critical")
		.map(v => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map(n => n.html + " " + n.failureSummary).join(" | ")))`, &found)
	for _, f := range found {
		t.Errorf("%s: %s", what, f)
	}
}

// open goes to a page of the console, in the one tab.
func (r *consoleRig) open(t *testing.T, path string) *Page {
	t.Helper()
	r.page.visit(t, consoleURL+path)
	r.page.Until(t, 20*time.Second, path+" is live", `document.getElementById("live")?.textContent === "live"`)
	return r.page
}

// visit goes to an address, and returns when its document is complete.
func (p *Page) visit(t *testing.T, url string) {
	t.Helper()
	p.Eval(t, "window.left = true", nil)
	p.browser.must(t, p.session, "Page.navigate", map[string]any{"url": url}, nil)
	p.Until(t, 30*time.Second, url+" is complete", "!window.left && document.readyState === 'complete'")
}

// submit presses the button that a selector names, and wants a page that says something.
func (p *Page) submit(t *testing.T, button, says string) {
	t.Helper()
	p.Eval(t, fmt.Sprintf("window.left = true; document.querySelector(%q).click()", button), nil)
	p.Until(t, 20*time.Second, button+" has led to "+says, fmt.Sprintf("!window.left && document.readyState === 'complete' && document.body.textContent.includes(%q)", says))
}

// press presses a key as a user does.
func (p *Page) press(t *testing.T, key string, code int, text string) {
	t.Helper()
	kinds := []string{"rawKeyDown", "keyUp"}
	if text != "" {
		kinds = []string{"rawKeyDown", "char", "keyUp"}
	}
	for _, kind := range kinds {
		p.browser.must(t, p.session, "Input.dispatchKeyEvent", map[string]any{"type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code}, nil)
	}
}

// login: without the token there is no page, with it there is.
func (r *consoleRig) login(t *testing.T) {
	t.Helper()
	r.page = r.browser.Open(t, consoleURL+"calls")
	r.page.Until(t, 10*time.Second, "the login", `location.pathname === "/console/login"`)
	r.accessible(t, r.page, "login")
	r.page.Eval(t, fmt.Sprintf("document.getElementById('token').value = %q", consoleToken), nil)
	r.page.submit(t, "button.primary", "Overview")
}

// consolePages are all but those of one call.
func consolePages() []string {
	return []string{"", "calls", "streams", "registrations", "pinholes", "turn", "tunnels", "mailboxes", "ils", "forwards", "proxy", "ports", "drops", "bans", "certificates", "events"}
}

// TestConsole: during 50 calls every page shows what the API says, is kept up to date, has no serious fault of
// accessibility, light or dark, on a desk or a phone; what its buttons do is done; and the browser has nothing to complain of.
func TestConsole(t *testing.T) {
	began := time.Now()
	r, ended := newConsoleRig(t)
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"login", r.login}, {"calls", r.calls}, {"streams", r.streams}, {"fixed", r.fixed}, {"live", r.live}, {"one call", r.oneCall},
		{"actions", r.actions}, {"looks", r.looks}, {"after", func(t *testing.T) { r.after(t, ended) }},
	} {
		step.do(t)
		t.Logf("%s after %v", step.name, time.Since(began).Round(time.Second))
	}
	for _, e := range r.page.Errors() {
		t.Errorf("console: %s", e)
	}
}

// looks has axe-core judge every page, on a desk by day and on a phone at night.
func (r *consoleRig) looks(t *testing.T) {
	t.Helper()
	for _, path := range consolePages() {
		p := r.open(t, path)
		p.look(t, 1280, 800, "light")
		r.accessible(t, p, "light "+path)
		p.look(t, 390, 844, "dark")
		r.accessible(t, p, "dark "+path)
		var over int
		p.Eval(t, "document.documentElement.scrollWidth - innerWidth", &over)
		if over > 0 {
			t.Errorf("%s is %d pixels wider than a phone", path, over)
		}
	}
}

// calls holds the pages "calls" and "overview" against the API.
func (r *consoleRig) calls(t *testing.T) {
	t.Helper()
	p := r.open(t, "calls")
	p.Until(t, 10*time.Second, "50 rows", `document.querySelectorAll("#calls tbody tr").length === 50`)
	rows := p.rows(t, "calls")
	for _, c := range document[struct{ ID, Caller, Callee, State string }](t, r.Edge, "calls", "calls") {
		if got := rows[c.ID]; len(got) != 8 || got[7] != "Hang up" || got[2] != c.State || got[4] != c.Caller || got[5] != c.Callee {
			t.Errorf("call %v is shown as %q", c, got)
		}
	}
	p.look(t, 390, 844, "light")
	p.picture(t, "console-phone")
	over := r.open(t, "")
	for name, list := range map[string]int{
		"Calls": 50, "Registrations": 1, "Tunnels": 1,
		"Pinholes": len(document[struct{}](t, r.Edge, "pinholes", "pinholes")), "TURN allocations": len(document[struct{}](t, r.Edge, "turn", "turn")),
	} {
		over.Until(t, 20*time.Second, fmt.Sprint(list, " ", name), fmt.Sprintf(`document.getElementById("figure-%s").querySelector(".value").textContent === "%d"`, name, list))
	}
}

// streams: what a page shows a while after one answer of the API, and before the next one, lies between them.
func (r *consoleRig) streams(t *testing.T) {
	t.Helper()
	type hole struct {
		ID   uint64
		Kind string
		Ends [2]struct{ Stats struct{ Packets int } }
	}
	p := r.open(t, "streams")
	before := document[hole](t, r.Edge, "pinholes", "pinholes")
	pass(4 * time.Second) // a page may be a second behind
	rows := p.rows(t, "streams")
	after := document[hole](t, r.Edge, "pinholes", "pinholes")
	if len(rows) != 2*len(before) || len(before) < 50 || len(after) != len(before) {
		t.Fatalf("%d rows of %d and %d pinholes", len(rows), len(before), len(after))
	}
	for i, h := range before {
		if h.Kind != "rtp" {
			continue // TURN's, whose client may rest
		}
		for end := range h.Ends {
			var n int
			_, err := fmt.Sscan(strings.ReplaceAll(rows[fmt.Sprint(h.ID, "-", end)][3], ",", ""), &n)
			if from, to := h.Ends[end].Stats.Packets, after[i].Ends[end].Stats.Packets; err != nil || n < from || n > to || from == to {
				t.Errorf("pinhole %d: %d packets are shown, between %d and %d", h.ID, n, from, to)
			}
		}
	}
	p.Until(t, 10*time.Second, "lines of packets", `document.querySelectorAll("#streams svg.spark").length >= 100`)
	p.look(t, 1280, 800, "light")
	p.picture(t, "console-streams")
}

// fixed holds the pages whose figures stand still against the API.
func (r *consoleRig) fixed(t *testing.T) {
	t.Helper()
	holes := r.open(t, "pinholes").rows(t, "pinholes")
	for _, h := range document[struct {
		ID    uint64
		Owner string
		Ends  [2]struct{ Local string }
	}](t, r.Edge, "pinholes", "pinholes") {
		if got := holes[fmt.Sprint(h.ID)]; len(got) != 9 || got[2] != h.Owner || got[3] != or(h.Ends[0].Local, "–") || got[4] != or(h.Ends[1].Local, "–") {
			t.Errorf("pinhole %v is shown as %q", h, got)
		}
	}
	ports := r.open(t, "ports").rows(t, "listeners")
	listeners := document[struct {
		Network, Key string
		Port         int
	}](t, r.Edge, "ports", "listeners")
	for i, l := range listeners {
		if got := ports[fmt.Sprint(i)]; len(got) != 5 || got[0] != l.Network || got[2] != fmt.Sprint(l.Port) || got[4] != l.Key {
			t.Errorf("listener %v is shown as %q", l, got)
		}
	}
	if len(ports) != len(listeners) || len(ports) < 6 {
		t.Errorf("%d of %d listeners are shown", len(ports), len(listeners))
	}
	certs := r.open(t, "certificates").rows(t, "certificates")
	for _, c := range document[struct{ Name, SHA256 string }](t, r.Edge, "certificates", "certificates") {
		if got := certs[c.SHA256]; len(got) != 7 || got[0] != c.Name {
			t.Errorf("certificate %v is shown as %q", c, got)
		}
	}
	for path, says := range map[string]string{"ils": "The directory is off", "proxy": "The proxy is off", "mailboxes": "No messages wait.", "bans": "Nobody is banned."} {
		r.open(t, path).Until(t, 10*time.Second, says, fmt.Sprintf(`document.querySelector(".empty").textContent.includes(%q)`, says))
	}
}

// live holds the pages of what is there besides calls against the API.
func (r *consoleRig) live(t *testing.T) {
	t.Helper()
	rows := r.open(t, "registrations").rows(t, "registrations")
	for _, g := range document[struct{ Contact, Client string }](t, r.Edge, "registrations", "registrations") {
		for _, got := range rows {
			if len(rows) != 1 || got[0] != "carol@phones.example.org" || got[1] != g.Contact || got[2] != g.Client || got[4] != "outside" {
				t.Errorf("registration %v is shown as %q", g, got)
			}
		}
	}
	rows = r.open(t, "turn").rows(t, "turn")
	allocations := document[struct{ User, Client, Relayed, Transport string }](t, r.Edge, "turn", "turn")
	for _, a := range allocations {
		if got := rows[a.Transport+a.Client+a.Relayed]; len(got) != 9 || got[0] != "alice" || got[1] != a.Client || got[2] != a.Relayed {
			t.Errorf("allocation %v is shown as %q", a, got)
		}
	}
	if len(rows) != len(allocations) || len(rows) == 0 {
		t.Errorf("%d rows of %d allocations", len(rows), len(allocations))
	}
	rows = r.open(t, "tunnels").rows(t, "devices")
	for _, d := range document[struct{ ID, Rung, Remote string }](t, r.Edge, "tunnels", "tunnels") {
		if got := rows[d.ID]; len(got) != 10 || got[0] != "branch" || got[1] != "attached" || got[2] != d.Rung || got[3] != d.Remote {
			t.Errorf("device %v is shown as %q", d, got)
		}
	}
	if got := r.open(t, "forwards").rows(t, "forwards")["web"]; len(got) != 9 || got[2] != "10.77.1.9:8057" || got[4] != "0" {
		t.Errorf("the forward is shown as %q", got)
	}
}

// oneCall follows a link of the calls by keyboard, and finds the media of the call plotted.
func (r *consoleRig) oneCall(t *testing.T) {
	t.Helper()
	p := r.open(t, "calls")
	p.press(t, "Tab", 9, "")
	p.Until(t, 5*time.Second, "the first key leads past the navigation", `document.activeElement.classList.contains("skip")`)
	p.press(t, "Enter", 13, "\r")
	for there, keys := false, 0; !there && keys < 12; keys++ {
		p.press(t, "Tab", 9, "")
		p.Eval(t, `!!document.activeElement.closest("#calls tbody a")`, &there)
	}
	p.press(t, "Enter", 13, "\r")
	p.Until(t, 20*time.Second, "the call's page", `location.pathname.startsWith("/console/calls/") && document.getElementById("live")?.textContent === "live"`)
	p.Until(t, 30*time.Second, "eight graphs are drawn", `[...document.querySelectorAll("#graphs .line")].filter(l => l.getBBox().width > 200).length === 8`)
	p.Until(t, 20*time.Second, "the ladder of a call: INVITE, 100, 200, ACK on both sides", `document.querySelectorAll("#ladder .arrow").length >= 7 && document.querySelector("#ladder .rungs").getBBox().height > 200`)
	p.Eval(t, `document.querySelectorAll("#ladder details")[1].open = document.querySelectorAll("#ladder details")[2].open = true`, nil)
	p.Until(t, 10*time.Second, "what was rewritten is marked", `document.querySelector("#ladder .old") && document.querySelector("#ladder .new")`)
	r.accessible(t, p, "a call")
	r.download(t, p)
	p.look(t, 1280, 900, "light")
	p.picture(t, "console-call")
	var reached string
	p.Eval(t, `document.querySelector("main h1").textContent`, &reached)
	if !strings.Contains(reached, "→") {
		t.Errorf("the page is %q", reached)
	}
}

// download: the file of the call's signalling is one that tcpdump reads.
func (r *consoleRig) download(t *testing.T, p *Page) {
	t.Helper()
	var text string
	p.Eval(t, `fetch(document.querySelector("#ladder a[download]").href).then(r => r.arrayBuffer()).then(b => btoa(String.fromCharCode(...new Uint8Array(b))))`, &text)
	b, err := base64.StdEncoding.DecodeString(text)
	must(t, "pcapng", err)
	file := filepath.Join(t.TempDir(), "call.pcapng")
	must(t, "pcapng", os.WriteFile(file, b, 0o644))
	out, err := exec.Command("tcpdump", "-n", "-r", file).CombinedOutput()
	if n := strings.Count(string(out), "SIP"); err != nil || n < 7 {
		t.Errorf("tcpdump reads %d messages: %v\n%s", n, err, out)
	}
}

// actions has each button pressed, and what it does done; draining comes last, as it ends the daemon.
func (r *consoleRig) actions(t *testing.T) {
	t.Helper()
	r.hangUp(t)
	p := r.open(t, "bans")
	p.Eval(t, `for (const [name, value] of [["target", "203.0.113.66"], ["why", "it sweeps"]]) document.querySelector("#actions input[name=" + name + "]").value = value`, nil)
	p.submit(t, "#actions button", "Banned: 203.0.113.66, until")
	type ban struct{ Target, Why, By string }
	if list := document[ban](t, r.Edge, "bans", "bans"); len(list) != 1 || list[0].Target != "203.0.113.66" || list[0].Why != "it sweeps" || !strings.HasPrefix(list[0].By, "console 127.0.0.1:") {
		t.Errorf("bans: %+v", list)
	}
	if got := r.open(t, "bans").rows(t, "bans")["203.0.113.66"]; len(got) != 6 || got[1] != "it sweeps" || got[5] != "Lift" {
		t.Errorf("the ban is shown as %q", got)
	}
	p.submit(t, "#bans form button", "Lifted: the ban of 203.0.113.66")
	if list := document[ban](t, r.Edge, "bans", "bans"); len(list) != 0 {
		t.Errorf("bans: %+v", list)
	}
	p = r.open(t, "")
	p.submit(t, "#actions form[action$=reload] button", "Reloaded")
	r.audited(t, "calls/{id}/hangup 200", "bans 200", "delete bans 200", "reload 200")
}

// audited wants one event of each action that a session of the console has asked for.
func (r *consoleRig) audited(t *testing.T, want ...string) {
	t.Helper()
	asked := map[string]int{}
	for _, e := range document[struct {
		Type string
		Data struct {
			Action, By, Client string
			Status             int
		}
	}](t, r.Edge, "events/recent", "events") {
		if e.Type == "admin_action" && strings.HasPrefix(e.Data.By, "console session ") && strings.HasPrefix(e.Data.Client, "127.0.0.1:") {
			asked[fmt.Sprint(e.Data.Action, " ", e.Data.Status)]++
		}
	}
	for _, what := range want {
		if asked[what] != 1 {
			t.Errorf("%s: %d lines of audit: %v", what, asked[what], asked)
		}
	}
}

// hangUp ends one call by its button: both of its ends get a BYE and answer it, the others talk on.
func (r *consoleRig) hangUp(t *testing.T) {
	t.Helper()
	first := document[struct{ ID string }](t, r.Edge, "calls", "calls")[0].ID
	p := r.open(t, "calls")
	p.submit(t, fmt.Sprintf("#calls tr[data-key=%q] button", first), "Hung up: both sides of 1 call are told")
	eventually(t, 20*time.Second, "49 calls are left", func() bool { return len(document[struct{}](t, r.Edge, "calls", "calls")) == 49 })
	told := map[string]int{}
	for _, m := range document[struct {
		Direction, Network, CSeq string
		Status                   int
	}](t, r.Edge, "calls/"+first+"/trace", "messages") {
		if strings.HasSuffix(m.CSeq, " BYE") {
			told[fmt.Sprint(m.Direction, " ", m.Network, " ", m.Status)]++
		}
	}
	for _, what := range []string{"out inside 0", "out outside 0", "in inside 200", "in outside 200"} {
		if told[what] == 0 {
			t.Errorf("%s: %v", what, told)
		}
	}
	for _, e := range document[struct {
		Type string
		Data json.RawMessage
	}](t, r.Edge, "events/recent", "events") {
		var record struct{ ID, Reason string }
		if e.Type == "call_ended" && (json.Unmarshal(e.Data, &record) != nil || record.ID != first || record.Reason != "hung up by operator") {
			t.Errorf("the record is %s", e.Data)
		}
	}
}

// after: the calls are gone, by the command this time, and are events; then the daemon drains, and ends.
func (r *consoleRig) after(t *testing.T, ended <-chan struct{}) {
	t.Helper()
	bin, err := edgedBinary()
	must(t, "build edged", err)
	args := []string{"calls", "hangup", "--config", r.file}
	for _, c := range document[struct{ ID string }](t, r.Edge, "calls", "calls") {
		args = append(args, c.ID)
	}
	must(t, "hang up", r.rig.GW.Do(func() error {
		out, err := exec.Command(bin, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}))
	<-ended
	r.open(t, "calls").Until(t, 20*time.Second, "no calls", `document.querySelector(".empty")?.textContent.includes("edged demo")`)
	r.open(t, "events").Until(t, 10*time.Second, "50 calls have ended", `[...document.querySelectorAll("#events tbody tr")].filter(r => r.cells[1].textContent === "call ended").length === 50`)
	p := r.open(t, "")
	p.Eval(t, `document.querySelector("#actions input[name=sure]").click()`, nil)
	p.submit(t, "#actions form[action$=drain] button", "Draining: no new calls are taken")
	if err := r.proc.Wait(30 * time.Second); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

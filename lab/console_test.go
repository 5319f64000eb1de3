//go:build lab

package lab

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const consoleURL = "http://127.0.0.1:9060/console/"

// consoleRig is an edge with 50 calls that talk, and a browser on the edge itself.
type consoleRig struct {
	*Edge
	browser *Browser
	axe     string
	page    *Page // the only one that is open: browsers have few connections for one site
}

func newConsoleRig(t *testing.T) (*consoleRig, <-chan error) {
	t.Helper()
	onlyEdged(t, "nobody else has this console")
	r := lab(t)
	axe := npmPackage(t, "axe-core", "4.14.1", "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==")
	source, err := os.ReadFile(filepath.Join(axe, "axe.min.js"))
	must(t, "axe", err)
	in, out := r.Inside("in1"), r.Outside("out1")
	l := Load{Calls: 50, PerSecond: 10, Talk: 100 * time.Second, Proto: "udp", From: in, To: out, FromFam: 4, ToFam: 4, Domain: "example.org"}
	l.Next = netip.AddrPortFrom(r.GW.IPOn(inside, 4), 5060)
	c := EdgeConfig{Pinholes: "{udp: 40000-59999, per_owner: 1000}", Domains: fmt.Sprintf("%s: {network: outside, server: \"udp:%v\"}", l.Domain, l.callee())}
	a := newAuthority(t, r.Dir)
	c.TLS = a.issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(inside, 4), r.GW.IPOn(outside, 4))
	rig := &consoleRig{Edge: r.Edge(t, c), browser: r.GW.Browser(t, "--force-device-scale-factor=1"), axe: string(source)}
	ended := make(chan error, 1)
	go func() { ended <- l.Run(t) }()
	return rig, ended
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
	if err := p.Try(r.axe+"; true", nil); err != nil {
		t.Fatalf("axe: %v", err)
	}
	var found []string
	p.Eval(t, `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations.filter(v => v.impact === "serious" || v.impact === "critical")
		.map(v => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map(n => n.html + " " + n.failureSummary).join(" | ")))`, &found)
	for _, f := range found {
		t.Errorf("%s: %s", what, f)
	}
}

// close closes the page. It must have had nothing to complain of, the policy neither.
func (r *consoleRig) close(t *testing.T) {
	t.Helper()
	if r.page == nil {
		return
	}
	var at string
	r.page.Eval(t, "location.href", &at)
	for _, e := range r.page.Errors() {
		t.Errorf("console of %s: %s", at, e)
	}
	r.browser.must(t, r.page.session, "Page.close", nil, nil)
	r.page = nil
}

// open opens a page of the console in place of the last one.
func (r *consoleRig) open(t *testing.T, path string) *Page {
	t.Helper()
	r.close(t)
	p := r.browser.Open(t, consoleURL+path)
	r.page = p
	p.Until(t, 20*time.Second, path+" is live", `document.getElementById("live").textContent === "live"`)
	return p
}

// TestConsole: during 50 calls every page shows what the API says, is kept up to date, has no serious fault of
// accessibility, light or dark, on a desk or a phone, and the browser has nothing to complain of.
func TestConsole(t *testing.T) {
	r, ended := newConsoleRig(t)
	eventually(t, 60*time.Second, "50 calls are up", func() bool {
		return len(slices.DeleteFunc(document[struct{ State string }](t, r.Edge, "calls", "calls"), func(c struct{ State string }) bool { return c.State != "up" })) == 50
	})
	r.calls(t)
	r.streams(t)
	r.fixed(t)
	r.oneCall(t)
	for _, path := range []string{"", "calls", "streams", "registrations", "pinholes", "turn", "tunnels", "ports", "drops", "certificates", "events"} {
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
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	r.after(t)
}

// calls holds the pages "calls" and "overview" against the API.
func (r *consoleRig) calls(t *testing.T) {
	t.Helper()
	p := r.open(t, "calls")
	p.Until(t, 10*time.Second, "50 rows", `document.querySelectorAll("#calls tbody tr").length === 50`)
	rows := p.rows(t, "calls")
	for _, c := range document[struct{ ID, Caller, Callee, State string }](t, r.Edge, "calls", "calls") {
		if got := rows[c.ID]; len(got) != 7 || got[2] != c.State || got[4] != c.Caller || got[5] != c.Callee {
			t.Errorf("call %v is shown as %q", c, got)
		}
	}
	p.look(t, 390, 844, "light")
	p.picture(t, "console-phone")
	over := r.open(t, "")
	over.Until(t, 10*time.Second, "50 calls and 50 pinholes", `["Calls", "Pinholes"].every(x => document.querySelector("#figure-" + x + " .value").textContent === "50")`)
}

// streams: what a page shows a while after one answer of the API, and before the next one, lies between them.
func (r *consoleRig) streams(t *testing.T) {
	t.Helper()
	type hole struct {
		ID   uint64
		Ends [2]struct{ Stats struct{ Packets int } }
	}
	p := r.open(t, "streams")
	before := document[hole](t, r.Edge, "pinholes", "pinholes")
	pass(4 * time.Second) // a page may be a second behind
	rows := p.rows(t, "streams")
	after := document[hole](t, r.Edge, "pinholes", "pinholes")
	if len(rows) != 100 || len(before) != 50 || len(after) != 50 {
		t.Fatalf("%d rows of %d and %d pinholes", len(rows), len(before), len(after))
	}
	for i, h := range before {
		for end := range h.Ends {
			var n int
			_, err := fmt.Sscan(strings.ReplaceAll(rows[fmt.Sprint(h.ID, "-", end)][3], ",", ""), &n)
			if from, to := h.Ends[end].Stats.Packets, after[i].Ends[end].Stats.Packets; err != nil || n < from || n > to || from == to {
				t.Errorf("pinhole %d: %d packets are shown, between %d and %d", h.ID, n, from, to)
			}
		}
	}
	p.Until(t, 10*time.Second, "lines of packets", `document.querySelectorAll("#streams svg.spark").length === 100`)
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
		if got := holes[fmt.Sprint(h.ID)]; len(got) != 9 || got[2] != h.Owner || got[3] != h.Ends[0].Local || got[4] != h.Ends[1].Local {
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
	for path, says := range map[string]string{"registrations": "Nobody is registered.", "turn": "TURN is off", "tunnels": "The tunnel is off"} {
		r.open(t, path).Until(t, 10*time.Second, says, fmt.Sprintf(`document.querySelector(".empty").textContent.includes(%q)`, says))
	}
}

// oneCall follows a link of the calls by keyboard, and finds the media of the call plotted.
func (r *consoleRig) oneCall(t *testing.T) {
	t.Helper()
	p := r.open(t, "calls")
	p.Eval(t, `document.querySelector("#calls tbody a").focus()`, nil)
	for _, kind := range []string{"rawKeyDown", "char", "keyUp"} {
		p.browser.must(t, p.session, "Input.dispatchKeyEvent", map[string]any{"type": kind, "key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13}, nil)
	}
	p.Until(t, 20*time.Second, "the call's page", `location.pathname.startsWith("/console/calls/") && document.getElementById("live")?.textContent === "live"`)
	p.Until(t, 30*time.Second, "eight graphs are drawn", `[...document.querySelectorAll("#graphs .line")].filter(l => l.getBBox().width > 200).length === 8`)
	p.Until(t, 20*time.Second, "the ladder of a call: INVITE, 100, 200, ACK on both sides", `document.querySelectorAll("#ladder .arrow").length >= 7 && document.querySelector("#ladder .rungs").getBBox().height > 200`)
	p.Eval(t, `document.querySelectorAll("#ladder details")[1].open = document.querySelectorAll("#ladder details")[2].open = true`, nil)
	p.Until(t, 10*time.Second, "what was rewritten is marked", `document.querySelector("#ladder .old") && document.querySelector("#ladder .new")`)
	r.accessible(t, p, "a call")
	p.look(t, 1280, 900, "light")
	p.picture(t, "console-call")
	var reached string
	p.Eval(t, `document.querySelector("main h1").textContent`, &reached)
	if !strings.Contains(reached, "→") {
		t.Errorf("the page is %q", reached)
	}
}

// after: the calls are gone, and are events.
func (r *consoleRig) after(t *testing.T) {
	t.Helper()
	r.Clean(t)
	p := r.open(t, "calls")
	p.Until(t, 10*time.Second, "no calls", `document.querySelector(".empty").textContent.includes("edged demo")`)
	p = r.open(t, "events")
	p.Until(t, 10*time.Second, "50 events", `document.querySelectorAll("#events tbody tr").length === 50`)
	r.close(t)
}

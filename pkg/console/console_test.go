package console

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

var update = flag.Bool("update", false, "write the golden files")

// hostile is what a phone may call itself.
const hostile = `<script>alert(1)</script>\" onload=x`

// documents are an API's state at 2000-01-01 00:10:00, ten minutes after the clock of testing/synctest begins.
func documents() map[string]string {
	return map[string]string{
		"status": `{"build":{"version":"1.2.3","platform":"linux/amd64"},"uptime_seconds":93784,"state":"ready",
			"config":{"loaded_at":"2000-01-01T00:00:00Z","error":"edged.yaml:3: sip.listen: no","restart_required":["sip.dscp"]},
			"services":{"sip":{"calls":1,"listeners":["udp://192.0.2.1:5060"]},"odd":null}}`,
		"calls": `{"calls":[{"id":"7f/1","call_id":"a@192.0.2.7","from":"<sip:alice@example.org>","to":"<sip:bob@example.org>","networks":["inside","outside"],
			"caller":"192.0.2.7:5060","callee":"198.51.100.9:5060","state":"up","started":"2000-01-01T00:00:00Z","answered":"2000-01-01T00:08:00Z","dialogs":1,"pinholes":1},
			{"id":"8","call_id":"b","from":"` + hostile + `","to":"sip:x@example.org","networks":["inside","outside"],"caller":"192.0.2.8:5060","state":"ringing","started":"2000-01-01T00:09:59Z"}]}`,
		"pinholes": `{"pinholes":[{"id":5,"owner":"192.0.2.7","label":"a@192.0.2.7","kind":"rtp","path":"tc","age_seconds":600,"idle_seconds":0.1,"ends":[
			{"network":"inside","local":"192.0.2.1:50000","latched":"192.0.2.7:4000","path":"tc","stats":{"packets":1234567,"bytes":212345678,"lost":12,"jitter_seconds":0.0031,"rtt_seconds":0.02,"mos":4.31}},
			{"network":"outside","local":"198.51.100.1:50002","declared":"198.51.100.9:6000","path":"user","why":"it is encrypted","stats":{"packets":90,"bytes":900,"lost":10,"jitter_seconds":0,"mos":2.5}}]}]}`,
		"registrations": `{"registrations":[{"aor":"sip:alice@example.org","contact":"<sip:alice@192.0.2.7>","network":"inside","client":"192.0.2.7:5060","transport":"udp","registrar_network":"outside","nat":true,"since":"2000-01-01T00:00:00Z","expires":"2000-01-01T00:15:00Z"}]}`,
		"ports":         `{"profiles":[],"listeners":[{"protocol":"udp","network":"inside","port":5060,"handler":"sip","scheme":"udp","key":"sip.listen[0]"}],"tables":[{"title":"A document","profile":"access","rows":[{"row":"1","component":"Access Edge","ports":"5061","protocol":"SIP","edge":[{"network":"outside","protocol":"tcp","ports":"5061","state":"served","text":"served by sip"}]}]}]}`,
		"certificates":  `{"certificates":[{"name":"edge.example.org","names":["edge.example.org"],"issuer":"CN=authority","algorithm":"ECDSA","not_before":"1999-12-01T00:00:00Z","not_after":"2000-01-05T00:00:00Z","sha256":"00112233445566778899aabbccddeeff"}]}`,
		"calls/7f%2F1/trace": `{"call_id":"a@192.0.2.7","from":"sip:alice@example.org","to":"sip:bob@example.org","started":"2000-01-01T00:00:00Z","parties":["192.0.2.7:5060","198.51.100.9:5060"],"messages":[
			{"seq":41,"time":"2000-01-01T00:00:00.5Z","direction":"in","network":"inside","transport":"udp","remote":"192.0.2.7:5060","summary":"INVITE sip:bob@example.org","text":"INVITE"},
			{"seq":43,"time":"2000-01-01T00:00:01Z","direction":"out","network":"outside","transport":"udp","remote":"198.51.100.9:5060","summary":"INVITE sip:bob@example.org","of":41,"text":"INVITE","diff":[{"op":"=","line":"INVITE"},{"op":"-","line":"c=IN IP4 192.0.2.7"},{"op":"+","line":"c=IN IP4 198.51.100.1"}]},
			{"seq":44,"time":"2000-01-01T00:00:02Z","direction":"in","network":"outside","transport":"udp","remote":"198.51.100.9:5060","summary":"486 Busy <Here>","status":486,"text":"SIP/2.0 486"}]}`,
		"calls/ended/trace": `{"call_id":"ended","from":"sip:a@example.org","to":"sip:b@example.org","messages":[]}`,
		"traces":            `{"traces":[{"call_id":"a@192.0.2.7","from":"sip:alice@example.org","to":"sip:bob@example.org","method":"INVITE","status":486,"started":"2000-01-01T00:00:00Z","messages":3}]}`,
		"events/recent":     `{"events":[{"id":2,"time":"2000-01-01T00:09:00Z","type":"reload","data":{"ok":false,"error":"no"}},{"id":1,"time":"2000-01-01T00:01:00Z","type":"call_ended","data":{"id":"1","from":"sip:a@example.org","to":"sip:b@example.org","status":200,"reason":"BYE","seconds":61}}]}`,
		"turn":              `{"turn":[{"user":"alice","client":"192.0.2.50:1024","transport":"udp","relayed":"198.51.100.1:51000","protocol":"udp","seconds":599,"permissions":2,"channels":1,"octets_from_client":2048,"octets_from_peers":5}]}`,
		"ils":               `{"ils":[{"name":"alice@example.org","host":"192.0.2.7","ports":[1720,1503],"public":"198.51.100.7","expires":"2000-01-01T00:20:00Z"}]}`,
		"forwards":          `{"forwards":[{"name":"psom","listen":"tcp://outside:8057","to":"192.0.2.9:8057","path":"user","why":"it is terminated","connections":2,"connections_total":1234,"bytes_from_clients":2048,"bytes_from_target":9,"refused":{"not_allowed":3}}]}`,
		"proxy":             `{"connections":[{"protocol":"socks5","client":"192.0.2.8:4000","user":"alice","target":"www.example.org:443","since":"2000-01-01T00:09:00Z","from_client":10,"from_target":4096}]}`,
		"mailboxes":         `[{"device":"branch","id":"ABCDEF","messages":3,"octets":5000,"quota":1048576,"readers":1,"oldest":"2000-01-01T00:00:00Z"}]`,
		"bans":              `{"bans":[{"target":"192.0.2.66","why":"it sweeps","by":"console 127.0.0.1:1","since":"2000-01-01T00:00:00Z","until":"2000-01-01T01:00:00Z"},{"target":"user:mallory","since":"2000-01-01T00:05:00Z"}]}`,
		"tunnels":           `{"tunnels":[{"device":"branch","id":"ABCDEF","rung":"https","remote":"192.0.2.9:999","since":"2000-01-01T00:00:00Z","carrier":true,"moves":3,"rtt_ms":12.5,"streams":1,"bytes_in":10,"bytes_out":20}],"streams":[]}`,
	}
}

// newTest returns a console of an API that has the documents.
func newTest(t *testing.T, token string, docs map[string]string) *Console {
	t.Helper()
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := docs[strings.TrimPrefix(r.URL.EscapedPath(), "/api/v1/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, body)
	})
	reg := prometheus.NewRegistry()
	drops := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "edged_media_dropped_total", Help: "Packets not relayed."}, []string{"reason"})
	reg.MustRegister(drops)
	drops.WithLabelValues("wrong_source").Add(4321)
	drops.WithLabelValues("never").Add(0)
	c, err := New(Deps{API: api, Metrics: reg, Token: token}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ask(c *Console, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+path, nil))
	return w
}

// TestPagesAreGolden holds each page of a fixed state against testdata/PAGE.html.
func TestPagesAreGolden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTest(t, "", documents())
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
		defer stop()
		if err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		c.version = "v"
		for name, path := range map[string]string{
			"overview": "", "calls": "calls", "call": "calls/7f%2F1", "streams": "streams", "pinholes": "pinholes", "registrations": "registrations",
			"turn": "turn", "tunnels": "tunnels", "ports": "ports", "drops": "drops", "certificates": "certificates", "events": "events",
			"ils": "ils", "forwards": "forwards", "proxy": "proxy", "mailboxes": "mailboxes", "bans": "bans",
			"filtered": "calls?q=ALICE", "missing": "calls/9", "past": "calls/ended",
		} {
			w := ask(c, Prefix+path)
			if want := map[bool]int{true: 404, false: 200}[name == "missing"]; w.Code != want {
				t.Errorf("%s: %d %s", name, w.Code, w.Body)
			}
			golden(t, name, w.Body.String())
		}
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	got = regexp.MustCompile(`points="[^"]{200,}"`).ReplaceAllString(got, `points="many"`) // 300 samples tell a reader nothing
	file := filepath.Join("testdata", name+".html")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from testdata (go test -update writes it anew):\n%s", name, got)
	}
}

// TestHostileTextStaysText: what a stranger sends is never markup, and the policy would stop it if it were.
func TestHostileTextStaysText(t *testing.T) {
	w := ask(newTest(t, "", documents()), Prefix+"calls?q="+url.QueryEscape(`"><script>x</script>`))
	w2 := ask(newTest(t, "", documents()), Prefix+"calls")
	for _, body := range []string{w.Body.String(), w2.Body.String()} {
		if strings.Contains(body, "<script>") || strings.Contains(body, " style=") || strings.Contains(body, "<style") {
			t.Errorf("markup of a stranger, or style in the page:\n%s", body)
		}
	}
	if !strings.Contains(w2.Body.String(), "&lt;script&gt;alert(1)") {
		t.Error("the hostile caller is not shown")
	}
	if got := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'; script-src 'self'; style-src 'self'") || strings.Contains(got, "unsafe") {
		t.Errorf("policy %q", got)
	}
}

// TestServicesThatAreOff: each page says so instead of failing.
func TestServicesThatAreOff(t *testing.T) {
	c := newTest(t, "", map[string]string{"status": `{"state":"ready"}`})
	for _, p := range pages() {
		if !p.nav {
			continue
		}
		path := Prefix + strings.TrimSuffix(p.path, "{$}")
		if w := ask(c, path); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `class="empty"`) && p.path != "drops" {
			t.Errorf("%s: %d\n%s", path, w.Code, w.Body)
		}
	}
}

func TestTableIsCut(t *testing.T) {
	var list []string
	for i := range 500 {
		list = append(list, fmt.Sprintf(`{"id":"%d","from":"sip:u%d@example.org","networks":["a","b"]}`, i, i))
	}
	c := newTest(t, "", map[string]string{"status": `{}`, "calls": `{"calls":[` + strings.Join(list, ",") + `]}`})
	body := ask(c, Prefix+"calls").Body.String()
	if n := strings.Count(body, "<tr data-key"); n != maxRows || !strings.Contains(body, "The first 200 of 500 are shown") || !strings.Contains(body, `data-rows="500"`) {
		t.Errorf("%d rows", n)
	}
	body = ask(c, Prefix+"calls?q=u49").Body.String() // u49, u490 to u499
	if n := strings.Count(body, "<tr data-key"); n != 11 {
		t.Errorf("%d rows are found", n)
	}
}

func TestLogin(t *testing.T) {
	c := newTest(t, "sesame", documents())
	post := func(path, token string, header map[string]string, cookies ...*http.Cookie) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1"+Prefix+path, strings.NewReader(url.Values{"token": {token}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for k, v := range header {
			r.Header.Set(k, v)
		}
		for _, k := range cookies {
			r.AddCookie(k)
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		return w
	}
	if w := ask(c, Prefix+"calls"); w.Code != http.StatusSeeOther || w.Header().Get("Location") != Prefix+"login" {
		t.Errorf("without a session: %d", w.Code)
	}
	if w := post("login", "sesam", nil); w.Code != http.StatusUnauthorized || len(w.Result().Cookies()) != 0 {
		t.Errorf("a wrong token: %d", w.Code)
	}
	if w := post("login", "sesame", map[string]string{"Sec-Fetch-Site": "cross-site"}); w.Code != http.StatusForbidden {
		t.Errorf("from another site: %d", w.Code)
	}
	w := post("login", "sesame", nil)
	if w.Code != http.StatusSeeOther || len(w.Result().Cookies()) != 1 {
		t.Fatalf("login: %d", w.Code)
	}
	cookie := w.Result().Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Path != Prefix {
		t.Errorf("cookie %v", cookie)
	}
	get := func() int {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+Prefix+"calls", nil)
		r.AddCookie(cookie)
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		return w.Code
	}
	if code := get(); code != http.StatusOK {
		t.Errorf("with a session: %d", code)
	}
	post("logout", "", nil, cookie)
	if code := get(); code != http.StatusSeeOther {
		t.Errorf("after logging out: %d", code)
	}
}

// TestActions: they need a session, its form's key and the daemon's consent.
func TestActions(t *testing.T) {
	var asked []string
	c, err := New(Deps{Token: "sesame", API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			body, _ := io.ReadAll(r.Body)
			by, ok := Session(r.Context())
			if !ok || len(by) != 8 {
				t.Errorf("asked by %q", by)
			}
			asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.String()+" "+r.Header.Get("X-Edged")+" "+string(body)))
			fmt.Fprint(w, `{"ok":true,"changed":["log.level"],"calls":7,"ended":1,"target":"192.0.2.7","connections":2,"lifted":"192.0.2.7"}`)
			return
		}
		if r.URL.Path == "/api/v1/mailboxes" {
			fmt.Fprint(w, `[]`)
			return
		}
		fmt.Fprint(w, `{"calls":[{"id":"x1","from":"sip:a@example.org","to":"sip:b@example.org"}],"bans":[{"target":"192.0.2.7"}]}`)
	})}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	session := &http.Cookie{Name: cookieName, Value: c.sessions.open(time.Now())}
	post := func(action string, form url.Values, cookie *http.Cookie) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1"+Prefix+"actions/"+action, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if cookie != nil {
			r.AddCookie(cookie)
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		return w
	}
	with := httptest.NewRequest(http.MethodGet, "/", nil)
	with.AddCookie(session)
	good := url.Values{"key": {formKey(with)}}
	for _, bad := range []*httptest.ResponseRecorder{post("reload", good, nil), post("reload", nil, session), post("drain", good, session), post("calls", good, session)} {
		if bad.Code == http.StatusOK || len(asked) > 0 {
			t.Errorf("%d, asked %v", bad.Code, asked)
		}
	}
	if w := post("reload", good, session); !strings.Contains(w.Body.String(), "Reloaded: log.level") {
		t.Errorf("reload: %d %s", w.Code, w.Body)
	}
	good.Set("sure", "on")
	if w := post("drain", good, session); !strings.Contains(w.Body.String(), "the last of 7 calls") {
		t.Errorf("drain: %d %s", w.Code, w.Body)
	}
	for action, says := range map[string]string{"hangup": "both sides of 1 call are told", "ban": "192.0.2.7, until the ban is lifted; 2 connections", "unban": "Lifted: the ban of 192.0.2.7"} {
		if w := post(action, good, session); w.Code != http.StatusBadRequest {
			t.Errorf("%s of nobody: %d", action, w.Code)
		}
		full := url.Values{"key": good["key"], "id": {"a/b"}, "target": {"192.0.2.7"}, "for": {"0"}, "why": {"it sweeps"}}
		if w := post(action, full, session); !strings.Contains(w.Body.String(), says) {
			t.Errorf("%s: %d %s", action, w.Code, w.Body)
		}
	}
	slices.Sort(asked)
	if want := []string{
		"DELETE /api/v1/bans?target=192.0.2.7", `POST /api/v1/bans 1 {"for":"0","target":"192.0.2.7","why":"it sweeps"}`,
		"POST /api/v1/calls/a%2Fb/hangup 1", "POST /api/v1/drain 1", "POST /api/v1/reload 1",
	}; !slices.Equal(asked, want) {
		t.Errorf("asked %q", asked)
	}
	for path, want := range map[string]string{"": "Drain", "calls": `aria-label="Hang up a@example.org to b@example.org"`, "calls/x1": "Hang up</button>", "bans": `aria-label="Lift the ban of 192.0.2.7"`} {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+Prefix+path, nil)
		r.AddCookie(session)
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		if body := w.Body.String(); !strings.Contains(body, want) || !strings.Contains(body, good.Get("key")) {
			t.Errorf("%q has no button, or not the key:\n%s", path, body)
		}
	}
}

func TestSessionsEndAndAreBounded(t *testing.T) {
	s, now := newSessions(), time.Unix(1_000_000, 0)
	with := func(cookie string) *http.Request {
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1/", nil)
		r.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
		return r
	}
	first := s.open(now)
	if !s.valid(with(first), now.Add(sessionLife-time.Second)) || s.valid(with(first), now.Add(sessionLife)) || s.valid(with("x"), now) {
		t.Error("the life of a session")
	}
	for i := range maxSessions {
		s.open(now.Add(time.Duration(i+1) * time.Second))
	}
	if len(s.end) != maxSessions || s.valid(with(first), now) {
		t.Errorf("%d sessions", len(s.end))
	}
}

// TestLive: a page's content comes as an event, and again when the API says something else.
func TestLive(t *testing.T) {
	var asked atomic.Int64
	c, err := New(Deps{API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"calls":[{"id":"1","from":"sip:alice@example.org","pinholes":%d},{"id":"2","from":"sip:x@example.org"}]}`, asked.Add(1))
	})}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(c)
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+Prefix+"calls?q=alice", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	read := bufio.NewReader(resp.Body)
	for range 2 {
		var got strings.Builder
		for {
			line, err := read.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if line == "\n" {
				break
			}
			if !strings.HasPrefix(line, "event: content\n") && !strings.HasPrefix(line, "data: ") {
				t.Fatalf("line %q", line)
			}
			got.WriteString(line)
		}
		if !strings.Contains(got.String(), "alice@example.org") || strings.Contains(got.String(), "x@example.org") {
			t.Fatalf("event\n%s", got.String())
		}
	}
}

func TestLivePagesAreBounded(t *testing.T) {
	c := newTest(t, "", documents())
	for range liveClients {
		c.streams <- struct{}{}
	}
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+Prefix+"calls", nil)
	r.Header.Set("Accept", "text/event-stream")
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d", w.Code)
	}
}

func TestStaticFiles(t *testing.T) {
	c := newTest(t, "sesame", nil)
	for name, kind := range map[string]string{"console.js": "text/javascript", "console.css": "text/css", "icon.svg": "image/svg+xml"} {
		w := ask(c, c.static(name))
		body, _ := io.ReadAll(w.Body)
		if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), kind) || len(body) == 0 {
			t.Errorf("%s: %d %s", name, w.Code, w.Header().Get("Content-Type"))
		}
	}
}

func TestHistory(t *testing.T) {
	h, now := newHistory(), time.Unix(1_000_000, 0)
	hole := func(id uint64, packets uint64, lost int64) pinholeDoc {
		var p pinholeDoc
		p.ID = id
		p.Ends[0].Stats = statsDoc{Packets: packets, Lost: lost, Jitter: 0.004, MOS: 4.2}
		return p
	}
	for i := range 2 * maxSamples {
		h.add(now.Add(time.Duration(i)*samplePeriod), []pinholeDoc{hole(1, uint64(i)*100, int64(i)*25)})
	}
	g := h.graphs(1, 0)
	for i, want := range []string{"50", "20.0", "4.0", "4.20"} {
		if g[i].Last != want {
			t.Errorf("%s is %s, want %s", g[i].Name, g[i].Last, want)
		}
	}
	if n := len(strings.Fields(g[0].Points)); n != maxSamples-1 {
		t.Errorf("%d points", n)
	}
	h.add(now, nil)
	if g := h.graphs(1, 0); g[0].Points != "" {
		t.Error("a closed pinhole is remembered")
	}
	var many []pinholeDoc
	for i := range uint64(2 * maxStreams) {
		many = append(many, hole(i, 0, 0))
	}
	h.add(now, many)
	if len(h.holes) != maxStreams {
		t.Errorf("%d streams are kept", len(h.holes))
	}
}

func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		count(0): "0", count(999): "999", count(-1234): "-1,234", count(uint64(1234567)): "1,234,567",
		octets(1023).Text: "1023 B", octets(1536).Text: "1.5 KiB", octets(3 << 40).Text: "3.0 TiB",
		seconds(59.9): "59s", seconds(61): "1m 01s", seconds(90061): "1d 01h",
		mos(0).Text: "–", mos(4.4).Class: "good", mos(1).Class: "bad",
		lost(statsDoc{Packets: 95, Lost: 5}).Class: "bad", lost(statsDoc{Packets: 1000, Lost: -3}).Sub: "0.0 %",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

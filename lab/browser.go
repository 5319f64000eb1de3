//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Browser is a headless Chromium in a host's namespace. It is driven by its debugging pipe (the DevTools protocol: JSON that
// ends with a zero byte), so that it needs no port and no other program.
type Browser struct {
	Host *Host
	proc *Proc
	to   *os.File

	mu    sync.Mutex
	next  int
	calls map[int]chan answer
	pages map[string]*Page // by session
	gone  error            // why no more answers come
}

// Page is a tab of a Browser.
type Page struct {
	browser *Browser
	session string

	mu     sync.Mutex
	log    []string
	errors []string
}

// answer is what Chromium says to one command.
type answer struct {
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// browserCall bounds the time of a command, and so what a promise of Eval may take.
const browserCall = 60 * time.Second

// Browser starts a Chromium with more flags on h. It skips the case where there is none.
func (h *Host) Browser(t testing.TB, flags ...string) *Browser {
	t.Helper()
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
	}
	eventually(t, 20*time.Second, "the addresses of "+h.Name+" are settled", h.settled)
	profile, err := os.MkdirTemp("", prefix+"-chromium-")
	must(t, "profile", err)
	t.Cleanup(func() { // the last of its processes may still write
		until(5*time.Second, func() bool { return os.RemoveAll(profile) == nil })
	})
	in, to, err := os.Pipe()
	must(t, "pipe", err)
	from, out, err := os.Pipe()
	must(t, "pipe", err)
	argv := append([]string{
		"chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-breakpad", "--disable-dev-shm-usage", "--mute-audio",
		"--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required",
		"--ignore-certificate-errors", "--remote-debugging-pipe", "--user-data-dir=" + profile,
	}, flags...)
	b := &Browser{Host: h, to: to, calls: make(map[int]chan answer), pages: make(map[string]*Page)}
	b.proc = h.start(t, "chromium-"+h.Name, []*os.File{in, out}, argv...)
	_, _ = in.Close(), out.Close()
	done := make(chan struct{})
	go b.read(from, done)
	t.Cleanup(func() {
		b.Close()
		<-done
	})
	b.must(t, "", "Browser.getVersion", nil, nil)
	return b
}

// settled tells whether no address of h is tentative any more. One that comes later is a change of network to Chromium,
// which then gives up what it is loading.
func (h *Host) settled() bool {
	out, err := exec.Command("ip", "-n", h.ns, "address", "show", "tentative").CombinedOutput()
	return err == nil && len(bytes.TrimSpace(out)) == 0
}

// read takes what Chromium says until it has ended.
func (b *Browser) read(from *os.File, done chan<- struct{}) {
	defer close(done)
	defer func() { _ = from.Close() }()
	r := bufio.NewReaderSize(from, 1<<16)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.end(fmt.Errorf("chromium has ended: %w", err))
			return
		}
		var m struct {
			answer
			ID      int             `json:"id"`
			Method  string          `json:"method"`
			Params  json.RawMessage `json:"params"`
			Session string          `json:"sessionId"`
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		call, page := b.calls[m.ID], b.pages[m.Session]
		delete(b.calls, m.ID)
		b.mu.Unlock()
		switch {
		case call != nil:
			call <- m.answer
		case page != nil:
			page.note(m.Method, m.Params)
		}
	}
}

// end fails the commands that wait, and those to come.
func (b *Browser) end(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = why
	for id, call := range b.calls {
		close(call)
		delete(b.calls, id)
	}
}

// call gives a command to Chromium, or to a page of it, and waits for the answer.
func (b *Browser) call(session, method string, params, result any) error {
	call := make(chan answer, 1)
	b.mu.Lock()
	b.next++
	id, gone := b.next, b.gone
	b.calls[id] = call
	b.mu.Unlock()
	if gone != nil {
		return gone
	}
	if params == nil {
		params = struct{}{}
	}
	text, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params, "sessionId": session})
	if session == "" {
		text, err = json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	}
	if err != nil {
		return err
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a, ok := <-call:
		switch {
		case !ok:
			return errors.New("chromium has ended")
		case a.Error != nil:
			return fmt.Errorf("%s: %s", method, a.Error.Message)
		case result != nil:
			return json.Unmarshal(a.Result, result)
		}
		return nil
	case <-time.After(browserCall):
		return fmt.Errorf("%s: no answer within %v", method, browserCall)
	}
}

func (b *Browser) must(t testing.TB, session, method string, params, result any) {
	t.Helper()
	if err := b.call(session, method, params, result); err != nil {
		t.Fatalf("browser: %v\n%s", err, tail(b.proc.Log, 3000))
	}
}

// Close ends the browser, as its user would. It may be called again.
func (b *Browser) Close() {
	if b.proc.Alive() {
		_ = b.call("", "Browser.close", nil, nil)
		_ = b.proc.Wait(10 * time.Second)
	}
	b.proc.Stop(syscall.SIGTERM)
	_ = syscall.Kill(-b.proc.cmd.Process.Pid, syscall.SIGKILL) // its helpers
	_ = b.to.Close()
}

// Open opens an address in a new tab, and returns when the document is complete.
func (b *Browser) Open(t testing.TB, url string) *Page {
	t.Helper()
	var target struct {
		ID string `json:"targetId"`
	}
	var attached struct {
		Session string `json:"sessionId"`
	}
	b.must(t, "", "Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	b.must(t, "", "Target.attachToTarget", map[string]any{"targetId": target.ID, "flatten": true}, &attached)
	p := &Page{browser: b, session: attached.Session}
	b.mu.Lock()
	b.pages[p.session] = p
	b.mu.Unlock()
	for _, domain := range []string{"Runtime", "Log", "Page"} {
		b.must(t, p.session, domain+".enable", nil, nil)
	}
	var went struct {
		Error string `json:"errorText"`
	}
	b.must(t, p.session, "Page.navigate", map[string]any{"url": url}, &went)
	if went.Error != "" {
		t.Fatalf("browser: %s: %s", url, went.Error)
	}
	p.Until(t, 30*time.Second, url+" is complete", "document.readyState === 'complete' && location.href !== 'about:blank'")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", url, p.Console())
		}
	})
	return p
}

// consoleEvent is what Chromium says of a page's console, of an exception or of its own complaints.
type consoleEvent struct {
	Type string `json:"type"`
	Args []struct {
		Value       any    `json:"value"`
		Description string `json:"description"`
	} `json:"args"`
	Exception struct {
		Text      string `json:"text"`
		Exception struct {
			Description string `json:"description"`
		} `json:"exception"`
	} `json:"exceptionDetails"`
	Entry struct {
		Level string `json:"level"`
		Text  string `json:"text"`
		URL   string `json:"url"`
	} `json:"entry"`
}

// line returns the event as a line of text, empty if it is none, and whether it tells of a fault.
func (e *consoleEvent) line(method string) (line string, bad bool) {
	switch method {
	case "Runtime.consoleAPICalled":
		line, bad = e.Type+":", e.Type == "error" || e.Type == "assert"
		for _, a := range e.Args {
			if a.Description != "" {
				line += " " + a.Description
			} else {
				line += fmt.Sprintf(" %v", a.Value)
			}
		}
	case "Runtime.exceptionThrown":
		line, bad = e.Exception.Text+" "+e.Exception.Exception.Description, true
	case "Log.entryAdded":
		if !strings.HasSuffix(e.Entry.URL, "/favicon.ico") { // which each browser asks for
			line, bad = e.Entry.Level+": "+e.Entry.Text+" "+e.Entry.URL, e.Entry.Level == "error"
		}
	}
	return line, bad
}

// note keeps what the page says on its console, and what fails in it.
func (p *Page) note(method string, params json.RawMessage) {
	var e consoleEvent
	if json.Unmarshal(params, &e) != nil {
		return
	}
	line, bad := e.line(method)
	p.mu.Lock()
	defer p.mu.Unlock()
	if line != "" {
		p.log = append(p.log, line)
	}
	if bad {
		p.errors = append(p.errors, line)
	}
}

// Console returns all that the page has said.
func (p *Page) Console() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.log, "\n")
}

// Errors returns console errors, uncaught exceptions and resources that could not be had.
func (p *Page) Errors() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.errors...)
}

// Try evaluates an expression of JavaScript, waits for it if it is a promise (at most a minute), and unmarshals its value into
// result, if that is not nil. What JavaScript throws is the error.
func (p *Page) Try(js string, result any) error {
	var r struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception *struct {
			Text      string `json:"text"`
			Exception struct {
				Description string          `json:"description"`
				Value       json.RawMessage `json:"value"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	err := p.browser.call(p.session, "Runtime.evaluate", map[string]any{"expression": js, "awaitPromise": true, "returnByValue": true}, &r)
	switch {
	case err != nil:
		return err
	case r.Exception != nil:
		return fmt.Errorf("%s %s %s", r.Exception.Text, r.Exception.Exception.Description, r.Exception.Exception.Value)
	case result != nil && r.Result.Value != nil:
		return json.Unmarshal(r.Result.Value, result)
	}
	return nil
}

// Eval is Try whose error ends the test.
func (p *Page) Eval(t testing.TB, js string, result any) {
	t.Helper()
	if err := p.Try(js, result); err != nil {
		t.Fatalf("browser: %s: %v\nconsole:\n%s", js, err, p.Console())
	}
}

// Until waits until an expression of JavaScript is true.
func (p *Page) Until(t testing.TB, d time.Duration, what, js string) {
	t.Helper()
	var err error
	ok := until(d, func() bool {
		var v bool
		err = p.Try("!!("+js+")", &v)
		return err == nil && v
	})
	if !ok {
		t.Fatalf("not within %v: %s (%v)\nconsole:\n%s", d, what, err, p.Console())
	}
}

// Site serves files on the host's own loopback, and returns the address that they are below: an origin that browsers
// trust as one of https.
func (h *Host) Site(t testing.TB, files fs.FS) string {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	}))
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.FileServerFS(files)}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	go serveSite(s, ln, done)
	return fmt.Sprintf("http://localhost:%d", ln.Addr().(*net.TCPAddr).Port)
}

func serveSite(s *http.Server, ln net.Listener, done chan<- struct{}) {
	defer close(done)
	_ = s.Serve(ln)
}

// npmPackage returns the folder of a package of npm at a version, fetched once per machine by npm itself, which checks it. The
// case is skipped where that cannot be done.
func npmPackage(t testing.TB, name, version, integrity string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "edged-lab", name+"-"+version)
	if _, err := os.Stat(filepath.Join(dir, "package", "package.json")); err == nil {
		return filepath.Join(dir, "package")
	}
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skipf("SKIPPED: %v (it fetches %s %s)", err, name, version)
	}
	must(t, "npm", os.MkdirAll(filepath.Dir(dir), 0o755))
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "fetch-")
	must(t, "npm", err)
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	out, err := fetchPackage(tmp, name+"@"+version, integrity)
	if err != nil {
		t.Skipf("SKIPPED: npm does not give %s %s: %v: %s", name, version, err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, other := os.Stat(dir); other != nil { // nor has another case been faster
			t.Fatalf("npm: %v", err)
		}
	}
	return filepath.Join(dir, "package")
}

// fetchPackage unpacks what npm packs below dir.
func fetchPackage(dir, spec, integrity string) ([]byte, error) {
	pack := exec.Command("npm", "pack", "--json", "--pack-destination", dir, spec)
	pack.Dir = dir
	out, err := pack.Output()
	if err != nil {
		return out, err
	}
	var packed []struct{ Filename, Integrity string }
	if err := json.Unmarshal(out, &packed); err != nil || len(packed) != 1 {
		return out, fmt.Errorf("no list of one package: %w", err)
	}
	if packed[0].Integrity != integrity {
		return out, fmt.Errorf("integrity is %s", packed[0].Integrity)
	}
	return exec.Command("tar", "-xzf", filepath.Join(dir, filepath.Base(packed[0].Filename)), "-C", dir).CombinedOutput()
}

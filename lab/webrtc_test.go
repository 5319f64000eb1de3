//go:build lab

package lab

import (
	"os"
	"testing"
	"time"
)

// sipJS returns the folder of SIP.js (MIT), which a page imports as modules from /lib/.
func sipJS(t *testing.T) string {
	t.Helper()
	return npmPackage(t, "sip.js", "0.21.2", "sha512-tSqTcIgrOd2IhP/rd70JablvAp+fSfLSxO4hGNY6LkWRY1SKygTO7OtJEV/BQb8oIxtMRx0LE7nUF2MaqGbFzA==")
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

package sipalg

import (
	"fmt"
	"strings"

	"edged.dev/edged/pkg/sipalg/flow"
)

// signatureOf returns a message's Microsoft signature and what it covers ([MS-SIPAE], version 4), read without the
// codec; "" if it has none.
func signatureOf(m *msg) (sig, covered string) {
	for _, l := range m.lines {
		switch name(l) {
		case "authorization", "proxy-authorization", "authentication-info", "proxy-authentication-info":
		default:
			continue
		}
		for _, key := range []string{`response="`, `rspauth="`} {
			if _, v, ok := strings.Cut(l, key); ok {
				sig, _, _ = strings.Cut(v, `"`)
				covered = l
			}
		}
	}
	if sig == "" {
		return "", ""
	}
	for _, h := range []string{"Call-ID", "CSeq", "Expires", "P-Asserted-Identity", "P-Preferred-Identity"} {
		covered += "<" + m.get(h) + ">"
	}
	for _, h := range []string{"From", "To"} {
		covered += "<" + uriOf(m.get(h)) + "><" + tagOf(m.get(h)) + ">"
	}
	if m.status != 0 {
		covered += fmt.Sprint(m.status)
	}
	return sig, covered
}

// checkSignature holds for every message of the edge: what is signed is as it came, and is sent once.
func (w *world) checkSignature(f flow.Flow, raw string) {
	w.t.Helper()
	sig, covered := signatureOf(parseMsg(raw))
	if sig == "" {
		return
	}
	if was := w.signed[sig]; was != covered {
		w.t.Errorf("signed\n%s\nsent as\n%s", was, covered)
	}
	once := fmt.Sprint(f.Conn, " ", sig)
	if f.Conn != 0 && w.resent[once] {
		w.t.Errorf("a signed message is sent twice by one connection:\n%s", raw)
	}
	w.resent[once] = true
}

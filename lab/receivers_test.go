//go:build lab

package lab

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

//go:embed kamailio/hep.cfg
var hepReceiver string

// rsyslogConfig writes what rsyslogd has understood of each message, field by field.
const rsyslogConfig = `
module(load="imudp")
module(load="imtcp")
input(type="imudp" address="127.0.0.1" port="1514")
input(type="imtcp" address="127.0.0.1" port="1514")
template(name="fields" type="string" string="%%protocol-version%%|%%syslogfacility-text%%|%%syslogseverity-text%%|%%app-name%%|%%procid%%|%%msgid%%|%%structured-data%%|%%msg%%\n")
action(type="omfile" file="%s" template="fields")
`

// TestReceivers: rsyslogd understands the call records, and Kamailio the copies of signalling by HEP3. Without hep it gets none.
func TestReceivers(t *testing.T) {
	onlyEdged(t, "the reference sends neither")
	for _, c := range []struct {
		network, format string
		hep             bool
	}{{"udp", "json", true}, {"tcp", "structured", false}} {
		t.Run(c.network+"-"+c.format, func(t *testing.T) {
			r := lab(t)
			records := r.rsyslog(t)
			copies := r.hepReceiver(t)
			more := fmt.Sprintf("cdr: {syslog: %q, format: %s, facility: local3}\n", c.network+"://127.0.0.1:1514", c.format)
			if c.hep {
				more += "hep: {to: 'udp://127.0.0.1:19061'}\n"
			}
			traces := r.otelReceiver(t)
			if c.hep {
				more += "otel: {endpoint: 'http://127.0.0.1:14318', headers: {X-Lab: 'yes'}}\n"
			}
			s := newSceneOn(t, r, plan{Edge: EdgeConfig{More: more}})
			a, b := s.call()
			a.Bye(b.Agent)
			eventually(t, 15*time.Second, "rsyslogd has the record", func() bool { return len(read(records)) > 0 })
			wantRecord(t, string(read(records)), c.format, a.ID)
			if !c.hep {
				if len(traces) != 0 {
					t.Error("a trace without otel")
				}
				if text := string(read(copies.Log)); strings.Contains(text, "copy of") {
					t.Errorf("copies without hep:\n%s", text)
				}
				return
			}
			wantTrace(t, traces, a.ID)
			for _, want := range []string{
				fmt.Sprintf("copy of INVITE %s from %v", a.ID, s.alice.Addr), fmt.Sprintf("copy of INVITE %s from %v", a.ID, s.outGate),
				fmt.Sprintf("copy of 200 INVITE %s from %v", a.ID, s.bob.Addr), fmt.Sprintf("copy of 200 BYE %s from %v", a.ID, s.inGate),
			} {
				copies.Logged(t, 15*time.Second, want)
			}
		})
	}
}

func read(file string) []byte {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil // not written yet
	}
	return b
}

// rsyslog starts rsyslogd on the gateway, and returns the file that it writes.
func (r *Rig) rsyslog(t *testing.T) string {
	t.Helper()
	conf, out := filepath.Join(r.Dir, "rsyslog.conf"), filepath.Join(r.Dir, "records")
	must(t, "rsyslog", os.WriteFile(conf, fmt.Appendf(nil, rsyslogConfig, out), 0o644))
	r.GW.Start(t, "rsyslogd", "rsyslogd", "-n", "-f", conf, "-i", filepath.Join(r.Dir, "rsyslog.pid"))
	eventually(t, 15*time.Second, "rsyslogd listens", func() bool {
		up := false
		_ = r.GW.Do(func() error {
			conn, err := net.DialTimeout("tcp", "127.0.0.1:1514", time.Second)
			if up = err == nil; up {
				conn.Close()
			}
			return nil
		})
		return up
	})
	return out
}

// otelReceiver takes traces of OpenTelemetry on the gateway.
func (r *Rig) otelReceiver(t *testing.T) <-chan string {
	t.Helper()
	bodies := make(chan string, 16)
	var ln net.Listener
	must(t, "otel", r.GW.Do(func() (err error) {
		ln, err = net.Listen("tcp", "127.0.0.1:14318")
		return err
	}))
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		b, err := io.ReadAll(q.Body)
		if err != nil || q.URL.Path != "/v1/traces" || q.Header.Get("X-Lab") != "yes" {
			t.Errorf("%v %v: %v", q.URL, q.Header, err)
		}
		bodies <- string(b)
	})}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return bodies
}

// wantTrace waits for the trace of a call: the call, the INVITE that came and the one that was sent on.
func wantTrace(t *testing.T, traces <-chan string, callID string) {
	t.Helper()
	select {
	case text := <-traces:
		t.Log(text)
		if strings.Count(text, `"traceId"`) != 3 || strings.Count(text, `"name":"INVITE"`) != 2 || strings.Count(text, `"name":"ringing"`) != 2 ||
			!strings.Contains(text, `"stringValue":"`+callID+`"`) || strings.Contains(text, `"status"`) {
			t.Error("this is no trace of the call")
		}
	case <-time.After(20 * time.Second):
		t.Error("no trace")
	}
}

// hepReceiver starts Kamailio's sipcapture on the gateway.
func (r *Rig) hepReceiver(t *testing.T) *Proc {
	t.Helper()
	dir := filepath.Join(r.Dir, "sipcapture")
	must(t, "kamailio", os.MkdirAll(dir, 0o755))
	conf := filepath.Join(r.Dir, "hep.cfg")
	must(t, "kamailio", os.WriteFile(conf, []byte(strings.ReplaceAll(hepReceiver, "DIR", dir)), 0o644))
	p := r.GW.Start(t, "kamailio-hep", "kamailio", "-f", conf, "-DD", "-E", "-Y", dir, "-m", "16", "-M", "4")
	eventually(t, 15*time.Second, "kamailio listens", func() bool { return r.GW.listens(t, 19061) })
	return p
}

// wantRecord checks what rsyslogd has understood of the one record of a call.
func wantRecord(t *testing.T, text, format, callID string) {
	t.Helper()
	f := strings.SplitN(strings.TrimSuffix(text, "\n"), "|", 8)
	if len(f) != 8 || strings.Contains(f[7], "\n") {
		t.Fatalf("rsyslogd wrote %q", text)
	}
	if got := strings.Join(f[:4], " ") + " " + f[5]; got != "1 local3 info edged CDR" || f[4] == "-" {
		t.Errorf("header: %s, PID %s", got, f[4])
	}
	if format == "structured" {
		if !strings.HasPrefix(f[6], "[call@32473 id=") || !strings.Contains(f[6], `call_id="`+callID+`"`) || !strings.Contains(f[6], `status="200"`) {
			t.Errorf("structured data: %s", f[6])
		}
		return
	}
	var doc struct {
		CallID string `json:"call_id"`
		Status int
	}
	if err := json.Unmarshal([]byte(f[7]), &doc); err != nil || doc.CallID != callID || doc.Status != 200 || f[6] != "-" {
		t.Errorf("body %s: %v", f[7], err)
	}
}

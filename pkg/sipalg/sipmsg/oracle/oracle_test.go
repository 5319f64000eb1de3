package oracle

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	sipgo "github.com/emiago/sipgo/sip"
	"github.com/ghettovoice/gosip/log"
	gosip "github.com/ghettovoice/gosip/sip"
	"github.com/ghettovoice/gosip/sip/parser"
	"github.com/sirupsen/logrus"

	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// fields are what a proxy routes by, as text; "" means absent.
type fields map[string]string

func own(raw []byte) (fields, error) {
	var m sipmsg.Message
	if err := m.Parse(raw); err != nil {
		return nil, err
	}
	f := fields{"method": m.Method(), "uri": string(m.RequestURI()), "call-id": string(m.CallID()),
		"from-tag": string(m.From().Tag()), "to-tag": string(m.To().Tag()), "body": strconv.Itoa(len(m.Body()))}
	n, method := m.CSeq()
	f["cseq"] = fmt.Sprint(n, " ", method)
	if v, ok := m.TopVia(); ok {
		f["branch"] = string(v.Branch)
	}
	if n, ok := m.MaxForwards(); ok {
		f["max-forwards"] = strconv.Itoa(n)
	}
	return f, nil
}

var errPanic = errors.New("panic")

func byGosip(raw []byte) (f fields, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	quiet := logrus.New()
	quiet.SetLevel(logrus.PanicLevel)
	msg, err := parser.NewPacketParser(log.NewLogrusLogger(quiet, "", nil)).ParseMessage(raw)
	if err != nil {
		return nil, err
	}
	f = fields{"body": strconv.Itoa(len(msg.Body()))}
	if r, ok := msg.(gosip.Request); ok {
		f["method"], f["uri"] = string(r.Method()), r.Recipient().String()
	}
	if v, ok := msg.CallID(); ok {
		f["call-id"] = string(*v)
	}
	if v, ok := msg.CSeq(); ok {
		f["cseq"] = fmt.Sprint(v.SeqNo, " ", v.MethodName)
	}
	if v, ok := msg.From(); ok {
		f["from-tag"] = gosipParam(v.Params, "tag")
	}
	if v, ok := msg.To(); ok {
		f["to-tag"] = gosipParam(v.Params, "tag")
	}
	if v, ok := msg.ViaHop(); ok {
		f["branch"] = gosipParam(v.Params, "branch")
	}
	if v := msg.GetHeaders("Max-Forwards"); len(v) > 0 {
		f["max-forwards"] = v[0].Value()
	}
	return f, nil
}

func gosipParam(p gosip.Params, name string) string {
	if p == nil {
		return ""
	}
	if v, ok := p.Get(name); ok && v != nil {
		return v.String()
	}
	return ""
}

func bySipgo(raw []byte) (f fields, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	msg, err := sipgo.NewParser().ParseSIP(raw)
	if err != nil {
		return nil, err
	}
	f = fields{"body": strconv.Itoa(len(msg.Body()))}
	if r, ok := msg.(*sipgo.Request); ok {
		f["method"], f["uri"] = string(r.Method), r.Recipient.String()
	}
	if v := msg.CallID(); v != nil {
		f["call-id"] = v.Value()
	}
	if v := msg.CSeq(); v != nil {
		f["cseq"] = fmt.Sprint(v.SeqNo, " ", v.MethodName)
	}
	if v := msg.From(); v != nil {
		f["from-tag"] = v.Params.GetOr("tag", "")
	}
	if v := msg.To(); v != nil {
		f["to-tag"] = v.Params.GetOr("tag", "")
	}
	if v := msg.Via(); v != nil {
		f["branch"] = v.Params.GetOr("branch", "")
	}
	if v := msg.GetHeaders("Max-Forwards"); len(v) > 0 {
		f["max-forwards"] = v[0].Value()
	}
	return f, nil
}

// difference names the fields that differ, sorted.
func difference(a, b fields) []string {
	var out []string
	for k := range union(a, b) {
		if a[k] != b[k] {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func union(a, b fields) fields {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// messages are the torture messages, Microsoft's, and the desk phone's.
func messages(t *testing.T) map[string][]byte {
	t.Helper()
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "..", "shared", "corpora")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("SKIP: no corpora (set EDGED_CORPORA): %v", err)
	}
	out := map[string][]byte{}
	for _, pattern := range []string{
		filepath.Join(dir, "sip-torture", "rfc*.dat"), filepath.Join(dir, "sip-torture", "*.sip"),
		filepath.Join(dir, "ms-sip", "*.sip"), filepath.Join("..", "testdata", "*.sip"),
	} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("nothing at %s: %v", pattern, err)
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				t.Fatal(err)
			}
			out[filepath.Base(n)] = wire(filepath.Base(n), b)
		}
	}
	return out
}

// wire restores what some files lost: CRLF, and the empty line.
func wire(name string, b []byte) []byte {
	if strings.HasPrefix(name, "kamailio") {
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
	}
	if strings.HasPrefix(name, "jsip") && !bytes.Contains(b, []byte("\r\n\r\n")) {
		b = append(b, "\r\n"...)
	}
	return b
}

func TestGosip(t *testing.T) { compare(t, byGosip, gosipDeviates) }

func TestSipgo(t *testing.T) { compare(t, bySipgo, sipgoDeviates) }

// compare asserts that the other parser says the same about every message that
// both accept, except for exactly the deviations that are known.
func compare(t *testing.T, other func([]byte) (fields, error), known map[string]string) {
	both, equal := 0, 0
	all := messages(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		a, err := own(bytes.Clone(all[name]))
		if err != nil {
			continue
		}
		b, err := other(bytes.Clone(all[name]))
		if err != nil {
			if errors.Is(err, errPanic) {
				t.Logf("%s: %v", name, err)
			}
			continue
		}
		both++
		diff := difference(a, b)
		if len(diff) == 0 {
			equal++
		}
		if got := strings.Join(diff, " "); got != known[name] {
			t.Errorf("%s: differs in %q, known is %q", name, got, known[name])
			for _, k := range diff {
				t.Logf("  %s: own %q, other %q", k, a[k], b[k])
			}
		}
	}
	t.Logf("%d messages, %d accepted by both, %d equal, %d known deviations", len(all), both, equal, len(known))
	if both < 150 {
		t.Errorf("only %d messages are accepted by both", both)
	}
}

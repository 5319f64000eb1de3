package mras

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn/timelimited"
)

const testSecret = "a secret of the relay"

func testIssuer() *Issuer {
	c := DefaultConfig()
	c.Host, c.HostInside = "av.example.org", "10.0.0.1"
	return New(c, testSecret)
}

var testNow = time.Unix(1_800_000_000, 0)

// testRequest is what pidgin-sipe sends.
const testRequest = `<request requestID="7" from="sip:alice@example.org" version="1.0" to="sip:mras@example.org" xmlns="http://schemas.microsoft.com/2006/09/sip/mrasp" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` +
	`<credentialsRequest credentialsRequestID="9"><identity>sip:alice@example.org</identity><location>internet</location><duration>480</duration></credentialsRequest></request>`

// TestAnswer: the credentials are those that the relay takes, for as long as was asked and may be, at the relay for the location.
func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		life           time.Duration
		host           string
	}{
		{"as sipe asks", "", "", 8 * time.Hour, "av.example.org"},
		{"shorter", "<duration>480<", "<duration>60<", time.Hour, "av.example.org"},
		{"longer than may be", "<duration>480<", "<duration>100000<", 8 * time.Hour, "av.example.org"},
		{"without a duration", "<duration>480</duration>", "", 8 * time.Hour, "av.example.org"},
		{"in the intranet", ">internet<", ">intranet<", 8 * time.Hour, "10.0.0.1"},
		{"without a location", "<location>internet</location>", "", 8 * time.Hour, "av.example.org"},
	} {
		body, user, err := testIssuer().Answer([]byte(strings.Replace(testRequest, c.from, c.to, 1)), testNow)
		if err != nil || user != "alice@example.org" {
			t.Fatalf("%s: %q, %v", c.name, user, err)
		}
		a, err := read(body)
		if err != nil {
			t.Fatalf("%s: %v: %s", c.name, err, body)
		}
		got, err := a.credentials(testNow, 24*time.Hour)
		name := timelimited.Name("alice@example.org", testNow.Add(c.life))
		if err != nil || got.Name != name || string(got.Password) != string(timelimited.Password(testSecret, name)) || !got.Until.Equal(testNow.Add(c.life)) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if len(a.places) != 3 || string(body[a.places[0].from:a.places[0].to]) != c.host {
			t.Errorf("%s: relay in %s", c.name, body)
		}
		if !strings.Contains(string(body), `requestID="7" version="1.0" serverVersion="2.0" to="sip:mras@example.org" from="sip:alice@example.org" reasonPhrase="OK"`) ||
			!strings.Contains(string(body), `credentialsRequestID="9"`) || !strings.Contains(string(body), "<udpPort>3478</udpPort><tcpPort>443</tcpPort>") {
			t.Errorf("%s: %s", c.name, body)
		}
	}
}

func TestBadRequests(t *testing.T) {
	for name, body := range map[string]string{
		"empty": "", "no xml": "hello", "another element": strings.ReplaceAll(testRequest, "request ", "reqwest "),
		"another namespace": strings.Replace(testRequest, "mrasp", "other", 1), "not closed": testRequest[:len(testRequest)-4],
		"no identity": strings.Replace(testRequest, "sip:alice@example.org</identity>", "</identity>", 1),
		"no request":  `<request requestID="1" xmlns="` + namespace + `"/>`,
		"long id":     strings.Replace(testRequest, `ID="7"`, `ID="`+strings.Repeat("7", 65)+`"`, 1),
		"long user":   strings.Replace(testRequest, "<identity>sip:", "<identity>sip:"+strings.Repeat("a", 500), 1),
		"duration":    strings.Replace(testRequest, "480", "-480", 1),
		"entity":      `<!DOCTYPE r [<!ENTITY a "b">]>` + strings.Replace(testRequest, "alice", "&a;", 2),
	} {
		if got, _, err := testIssuer().Answer([]byte(body), testNow); !errors.Is(err, ErrMalformed) || got != nil {
			t.Errorf("%s: %v, %s", name, err, got)
		}
	}
	if _, _, err := testIssuer().Answer(make([]byte, maxBody+1), testNow); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

// testAnswer is what an A/V edge sends: two relays, in an order of its own, and what we do not know.
func testAnswer() string {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	return "<?xml version=\"1.0\"?>\r\n<response requestID=\"7\" reasonPhrase=\"OK\" xmlns=\"" + namespace + "\">\r\n <!-- kept --><credentialsResponse credentialsRequestID=\"9\">" +
		"<credentials><username>" + b64("\x01\x02blob") + "</username><password>" + b64("\x03secret") + "</password><duration>120</duration></credentials>" +
		"<mediaRelayList><mediaRelay><location>internet</location><hostName>av.example.net</hostName><udpPort>3479</udpPort><tcpPort>444</tcpPort><x>1</x></mediaRelay>" +
		"<mediaRelay ><tcpPort>1</tcpPort ><location>intranet</location><hostName>other.example.net</hostName></mediaRelay></mediaRelayList></credentialsResponse></response>\r\n"
}

// TestRewrite: relays are replaced in each of their places, all else stays as it was.
func TestRewrite(t *testing.T) {
	in := testAnswer()
	out, login, err := testIssuer().Rewrite([]byte(in), testNow)
	want := strings.NewReplacer("av.example.net", "av.example.org", "3479", "3478", "444", "443", "<tcpPort>1<", "<tcpPort>443<", "other.example.net", "10.0.0.1").Replace(in)
	if err != nil || string(out) != want {
		t.Errorf("%v:\n%s\nwant\n%s", err, out, want)
	}
	if login.Name != "\x01\x02blob" || string(login.Password) != "\x03secret" || !login.Until.Equal(testNow.Add(2*time.Hour)) {
		t.Errorf("%+v", login)
	}
	for name, body := range map[string]string{
		"no relay":       strings.ReplaceAll(in, "mediaRelay>", "x>"),
		"no credentials": strings.ReplaceAll(in, "credentials>", "x>"),
		"no base64":      strings.Replace(in, "<username>", "<username>*", 1),
		"cut":            in[:len(in)-12],
		"refusal":        `<response reasonPhrase="Forbidden" xmlns="` + namespace + `"/>`,
		"deep":           strings.Repeat("<aaaaaaaaaa>", 100),
	} {
		if out, _, err := testIssuer().Rewrite([]byte(body), testNow); !errors.Is(err, ErrMalformed) || out != nil {
			t.Errorf("%s: %v, %s", name, err, out)
		}
	}
}

func TestIs(t *testing.T) {
	for text, want := range map[string]bool{MediaType: true, "Application/MSRTC-media-relay-auth+xml; charset=utf-8": true, "application/xml": false, "": false} {
		if Is(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

// TestServes: without networks it is the trusted ones that may ask.
func TestServes(t *testing.T) {
	nets := pinhole.Networks{"inside": {Trusted: true}, "outside": {}}
	for _, c := range []struct {
		list            []string
		inside, outside bool
	}{{nil, true, false}, {[]string{"outside"}, false, true}} {
		cfg := Config{Networks: c.list}
		if cfg.Serves("inside", nets) != c.inside || cfg.Serves("outside", nets) != c.outside || cfg.Serves("other", nets) {
			t.Errorf("%v", c.list)
		}
	}
}

// FuzzMRAS: no body panics; what is answered or rewritten can be read, and is rewritten to itself.
func FuzzMRAS(f *testing.F) {
	f.Add([]byte(testRequest))
	f.Add([]byte(testAnswer()))
	f.Add([]byte("<response><credentialsResponse><mediaRelayList><mediaRelay/></mediaRelayList></credentialsResponse></response>"))
	s := testIssuer()
	f.Fuzz(func(t *testing.T, body []byte) {
		if got, _, err := s.Answer(body, testNow); err == nil {
			if _, _, err := s.Rewrite(got, testNow); err != nil {
				t.Fatalf("%v: %s", err, got)
			}
		}
		once, login, err := s.Rewrite(body, testNow)
		if err != nil {
			return
		}
		twice, again, err := s.Rewrite(once, testNow)
		if err != nil || string(once) != string(twice) || login.Name != again.Name {
			t.Fatalf("%v: %q, then %q", err, once, twice)
		}
	})
}

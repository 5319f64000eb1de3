package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/splice/forward"
)

// roleConfig parses a configuration beside a certificate tls/edge.
func roleConfig(t *testing.T, text string) *config {
	t.Helper()
	dir := t.TempDir()
	writeTestCertificate(t, filepath.Join(dir, "tls"), "edge", "sip.example.org", time.Now().Add(time.Hour))
	cfg, err := parseConfig(filepath.Join(dir, "edged.yaml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

const roleNetworks = "networks: {inside: {addresses: [10.0.0.1]}, outside: {addresses: [198.51.100.1]}}\n"

const roleTLS = "tls: {certificates: [{cert: tls/edge.pem, key: tls/edge.key}], client_ca: tls/edge.pem}\n"

// grooveRelay is an old relay inside.
const grooveRelay = "tunnel: {groove: {relays: {relay.example.org: '10.0.0.7:2492'}}}\n"

// TestExplain: the port tables of configurations, beside the documents', are those of testdata/explain.
func TestExplain(t *testing.T) {
	for name, text := range map[string]string{
		"none":         "sip: {listen: ['udp://inside:5060', 'tls://outside:5061']}\n" + roleTLS,
		"netmeeting":   "profiles: [netmeeting]\nils: {server: builtin}\n",
		"groove":       "profiles: [groove]\n",
		"groove-relay": "profiles: [groove]\n" + grooveRelay,
		"lcs-tcp": "profiles: [lcs-2005]\n" +
			"sip: {domains: {example.org: {network: outside, server: 'tcp:198.51.100.20:5060'}}}\n",
		"ocs": "profiles: [ocs-2007-r2-edge]\n" + roleTLS +
			"sip: {domains: {example.org: {network: inside, server: 'tls:director.example.org:5061'}}}\n" +
			"forwards:\n" +
			"  - {name: web, listen: 'tcp://outside:443', sni: [web.example.org, '*.meet.example.org'], to: '10.0.0.9:443', allow: [0.0.0.0/0]}\n" +
			"  - {name: psom, listen: 'tcp://outside:443', sni: [conf.example.org], to: '10.0.0.8:8057', allow: [0.0.0.0/0]}\n",
		"all": "profiles: [lcs-2005, ocs-2007-r2-edge, netmeeting, groove]\n" + roleTLS + "ils: {server: builtin}\n" +
			"sip: {domains: {example.org: {network: inside, server: 'tls:director.example.org:5061'}}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := roleConfig(t, roleNetworks+text).explain().print(&b); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "explain", name+".txt")
			if os.Getenv("EDGED_UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("EDGED_UPDATE_GOLDEN=1 go test -run TestExplain ./cmd/edged writes anew:\n%s", d)
			}
		})
	}
}

// TestExplainJSON: the JSON says the same.
func TestExplainJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "edged.yaml")
	if err := os.WriteFile(file, []byte(roleNetworks+"profiles: [groove]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	if code := execute([]string{"check", "--explain", "--json", "--config", file}, &out, &stderr); code != exitOK {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	var got portTable
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	want := cfg.explain()
	if d := cmp.Diff(want, got); d != "" || len(got.Tables) != 1 {
		t.Errorf("%d tables; %s", len(got.Tables), d)
	}
	if code := execute([]string{"check", "--json", "--config", file}, &out, &stderr); code != exitFailed {
		t.Errorf("--json alone: exit code %d", code)
	}
}

// TestMatrixIsWhole: the OCS and Messenger tables have the 57 rows of the role matrix, and each leg can be read.
func TestMatrixIsWhole(t *testing.T) {
	wants := []string{
		handlerSIP, handlerH323, handlerT120, handlerAudio, handlerILS, handlerForward, wantNextHop, wantMedia, wantFile, wantWeb, wantTURN, wantMRAS,
		wantGroove, wantBlock,
	}
	seen := map[string]bool{}
	for _, d := range documents() {
		for _, r := range d.rows {
			if d.role == profileLCS || d.role == profileOCS {
				if seen[r.no] {
					t.Errorf("row %s is there twice", r.no)
				}
				seen[r.no] = true
			}
			if len(r.legs) == 0 {
				t.Errorf("%s, row %s says nothing", d.title, r.no)
			}
			for _, text := range r.legs {
				if l := parseLeg(text); len(l.ports) == 0 || !slices.Contains(wants, l.want) || l.side != "IN" && l.side != "OUT" {
					t.Errorf("row %s: leg %q", r.no, text)
				}
			}
		}
	}
	if len(seen) != 57 {
		t.Errorf("%d rows, want 57", len(seen))
	}
}

// TestProfilesYield: what the file names itself is left as it is.
func TestProfilesYield(t *testing.T) {
	lcs := "profiles: [lcs-2005]\n"
	next := "domains: {example.org: {network: inside, server: 'tls:pool.example.org'}}"
	for _, tc := range []struct {
		name, text    string
		sip, t120     string
		blockedNumber int
	}{
		{"without certificates", lcs + "sip: {" + next + "}\n", "udp://inside:5060 tcp://inside:5060", "tcp://inside:1503 tcp://outside:1503", 4},
		{
			"with certificates", lcs + roleTLS + "sip: {" + next + "}\n", "udp://inside:5060 tcp://inside:5060 tls://inside:5061 tls://outside:5061",
			"tcp://inside:1503 tcp://outside:1503", 2,
		},
		{
			"a partner whom DNS finds", lcs + "sip: {domains: {example.org: {network: inside, server: 'tcp:10.0.0.20'}, partner.example.org: {network: outside}}}\n",
			"udp://inside:5060 tcp://inside:5060", "tcp://inside:1503 tcp://outside:1503", 4,
		},
		{
			"a server outside", lcs + "sip: {domains: {example.org: {network: outside, server: '198.51.100.20'}}}\n",
			"udp://inside:5060 tcp://inside:5060 udp://outside:5060 tcp://outside:5060", "tcp://inside:1503 tcp://outside:1503", 2,
		},
		{"own listeners", lcs + "sip: {listen: ['tcp://inside:5070'], " + next + "}\n", "tcp://inside:5070", "tcp://inside:1503 tcp://outside:1503", 4},
		{"no listeners", lcs + "sip: {" + next + "}\nt120: {listen: []}\n", "udp://inside:5060 tcp://inside:5060", "", 6},
		{"nothing blocked", lcs + "sip: {" + next + "}\nblocked: []\n", "udp://inside:5060 tcp://inside:5060", "tcp://inside:1503 tcp://outside:1503", 0},
		{
			"a forward instead", lcs + "sip: {" + next + "}\n" +
				"forwards: [{name: a, listen: 'tcp://outside:5061', to: '10.0.0.9:5061', allow: [0.0.0.0/0]}]\n",
			"udp://inside:5060 tcp://inside:5060", "tcp://inside:1503 tcp://outside:1503", 3,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := roleConfig(t, roleNetworks+tc.text)
			var sip, t120 []string
			for _, l := range c.SIP.Listen {
				sip = append(sip, l.String())
			}
			for _, l := range c.T120.Listen {
				t120 = append(t120, l.String())
			}
			if got := strings.Join(sip, " "); got != tc.sip {
				t.Errorf("sip.listen %s, want %s", got, tc.sip)
			}
			if got := strings.Join(t120, " "); got != tc.t120 {
				t.Errorf("t120.listen %s, want %s", got, tc.t120)
			}
			if len(c.Blocked) != tc.blockedNumber {
				t.Errorf("%d blocked: %v", len(c.Blocked), c.Blocked)
			}
		})
	}
}

// TestProfileCertificates: partners of OCS may show certificates, unless the file says something else.
func TestProfileCertificates(t *testing.T) {
	for lines, want := range map[string]string{
		"": "[inside outside]", "client_certificates: [inside], ": "[]", "optional_client_certificates: [outside], ": "[outside]",
	} {
		c := roleConfig(t, roleNetworks+roleTLS+"profiles: [ocs-2007-r2-edge]\n"+
			"sip: {"+lines+"domains: {example.org: {network: inside, server: 'tls:10.0.0.20'}}}\n")
		if got := fmt.Sprint(c.SIP.OptionalClientCertificates); got != want {
			t.Errorf("%q: %s, want %s", lines, got, want)
		}
	}
}

// TestProfilesOpenNoMore: whatever a profile opens is asked for by a row of its documents, on that side.
func TestProfilesOpenNoMore(t *testing.T) {
	for name, text := range map[profileName]string{
		profileLCS:        roleTLS + "sip: {domains: {example.org: {network: outside, server: 'tcp:198.51.100.20'}}}\n",
		profileOCS:        roleTLS + "sip: {domains: {example.org: {network: inside, server: 'tls:10.0.0.20'}}}\n",
		profileNetMeeting: "ils: {server: builtin}\n",
		profileGroove:     grooveRelay,
	} {
		c := roleConfig(t, roleNetworks+"profiles: ["+string(name)+"]\n"+text)
		asked := map[pinhole.Listen][]string{}
		for _, d := range documents() {
			for _, r := range d.rows {
				for _, text := range r.legs {
					l := parseLeg(text)
					if d.role != name || l.count() > wideLeg {
						continue
					}
					for _, network := range c.side(l.side) {
						for _, s := range l.ports {
							for port := int(s.first); port <= int(s.last); port++ {
								at := pinhole.Listen{Proto: l.proto, Network: network, Port: uint16(port)}
								asked[at] = append(asked[at], l.want)
							}
						}
					}
				}
			}
		}
		for _, p := range c.listeners() {
			wants := asked[pinhole.Listen{Proto: p.Proto, Network: p.Network, Port: p.Port}]
			if p.Handler == handlerBlocked && len(wants) > 0 || slices.Contains(wants, p.Handler) || slices.Contains(wants, wantGroove) && p.carriesGroove(c) {
				continue
			}
			t.Errorf("%s opens %s for %s; its documents want %v there", name, p, p.Handler, wants)
		}
	}
}

// TestListenersAreWhole: whatever section has listeners, the port table knows them; ports are judged taken by it.
func TestListenersAreWhole(t *testing.T) {
	var c config
	want := map[string]bool{}
	port := uint16(1000)
	var fill func(v reflect.Value, key string)
	fill = func(v reflect.Value, key string) {
		switch list := v.Addr().Interface().(type) {
		case *[]pinhole.Listen:
			port++
			*list = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: port}}
			want[key+"[0]"] = true
		case *[]sipalg.Listen:
			port++
			*list = []sipalg.Listen{{Proto: flow.TCP, Network: "inside", Port: port}}
			want[key+"[0]"] = true
		case *[]forward.Rule:
			port++
			*list = []forward.Rule{{Listen: pinhole.Listen{Proto: "tcp", Network: "inside", Port: port}}}
			want[key+"[0]"] = true
		default:
			if v.Kind() != reflect.Struct || isText(v.Type()) {
				return
			}
			for i := range v.NumField() {
				if k := yamlKey(v.Type().Field(i)); k != "" {
					fill(v.Field(i), join(key, k))
				}
			}
		}
	}
	fill(reflect.ValueOf(&c).Elem(), "")
	got := map[string]bool{}
	for _, p := range c.listeners() {
		got[p.Key] = true
	}
	if d := cmp.Diff(want, got); d != "" || len(want) < 8 {
		t.Errorf("%d sections with listeners; %s", len(want), d)
	}
}

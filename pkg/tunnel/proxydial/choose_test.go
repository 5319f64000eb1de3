package proxydial

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProxies(t *testing.T) {
	const target = "relay.example.org:443"
	pac := filepath.Join(t.TempDir(), "proxy.pac")
	if err := os.WriteFile(pac, []byte(`function FindProxyForURL(url, host) {
		if (shExpMatch(host, "*.example.org") && url.substring(0, 6) == "https:" && !isPlainHostName(host) && isInNet("10.1.2.3", "10.0.0.0", "255.0.0.0"))
			return "PROXY proxy.example.org:3128; SOCKS5 proxy.example.org:1080; HTTPS proxy.example.org; SOCKS4 x:1; DIRECT";
		return "DIRECT";
	}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  Config
		env  map[string]string
		want string
	}{
		{"nothing", Config{}, nil, "[direct]"},
		{"none", Config{URL: "none"}, map[string]string{"HTTPS_PROXY": "http://proxy.example.org"}, "[direct]"},
		{"url", Config{URL: "socks5://proxy.example.org"}, map[string]string{"HTTPS_PROXY": "http://other.example.org"}, "[socks5://proxy.example.org:1080]"},
		{"url, no_proxy", Config{URL: "http://proxy.example.org", NoProxy: []string{".example.org"}}, nil, "[direct]"},
		{"https_proxy", Config{}, map[string]string{"https_proxy": "proxy.example.org:3128"}, "[http://proxy.example.org:3128]"},
		{"ALL_PROXY", Config{}, map[string]string{"ALL_PROXY": "socks5h://alice:secret1@proxy.example.org"}, "[socks5://proxy.example.org:1080]"},
		{"NO_PROXY", Config{}, map[string]string{"HTTPS_PROXY": "https://proxy.example.org", "NO_PROXY": "example.org"}, "[direct]"},
		{"NO_PROXY of others", Config{}, map[string]string{"HTTPS_PROXY": "https://proxy.example.org", "NO_PROXY": "example.net"}, "[https://proxy.example.org:443]"},
		{"PAC", Config{PAC: pac}, nil, "[http://proxy.example.org:3128 socks5://proxy.example.org:1080 https://proxy.example.org:443 direct]"},
	} {
		d, _ := dialer(t, func(cfg *Config) { cfg.URL, cfg.PAC, cfg.NoProxy = c.cfg.URL, c.cfg.PAC, c.cfg.NoProxy })
		d.Getenv = func(k string) string { return c.env[k] }
		got, err := d.Proxies(within(t), target)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v; want %s", c.name, got, err, c.want)
		}
	}
}

func TestPACFromURL(t *testing.T) {
	fetched := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fetched++
		fmt.Fprint(w, `function FindProxyForURL(url, host) { return "PROXY " + host + ":3128" }`)
	}))
	defer s.Close()
	d, _ := dialer(t, func(cfg *Config) { cfg.PAC = s.URL + "/proxy.pac" })
	for range 3 {
		got, err := d.Proxies(within(t), "relay.example.org:443")
		if err != nil || fmt.Sprint(got) != "[http://relay.example.org:3128]" {
			t.Fatalf("%v, %v", got, err)
		}
	}
	if fetched != 1 {
		t.Errorf("fetched %d times", fetched)
	}
}

// TestPACLimits has scripts that never end or want all memory. Each must fail, and soon.
func TestPACLimits(t *testing.T) {
	for name, body := range map[string]string{
		"endless":   `for (;;) {}`,
		"recursion": `return FindProxyForURL(url, host)`,
		"doubling":  `for (var s = "x";;) { s += s }`,
		"list":      `for (var a = [];;) { a.push("x" + a.length) }`,
		"join":      `return new Array(100000000).join("xxxxxxxxxxxxxxxxxxxxx")`,
		"throws":    `throw "no"`,
		"nothing":   `return "BOGUS x"`,
		"missing":   `return noSuchFunction()`,
	} {
		file := filepath.Join(t.TempDir(), "proxy.pac")
		if err := os.WriteFile(file, []byte("function FindProxyForURL(url, host) {"+body+"}"), 0o600); err != nil {
			t.Fatal(err)
		}
		d, _ := dialer(t, func(cfg *Config) { cfg.PAC = file })
		began := time.Now()
		got, err := d.Proxies(within(t), "relay.example.org:443")
		if err == nil {
			t.Errorf("%s: %v", name, got)
		}
		if took := time.Since(began); took > 4*scriptTime {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{URL: "ftp://x"}, "url: the scheme"},
		{Config{URL: "http://alice:secret1@proxy.example.org"}, "url: a login"},
		{Config{URL: "http://proxy.example.org:0"}, "url: the port"},
		{Config{URL: "http://a b"}, "url: not a URL"},
		{Config{URL: "http://x", PAC: "y"}, "pac: url is set"},
		{Config{PAC: "ftp://x/y"}, "pac: a file"},
		{Config{PasswordFile: "x"}, "user: is missing"},
		{Config{Hold: -1}, "hold: "},
		{Config{User: "alice", Kerberos: Kerberos{Keytab: "x"}}, "user: must be NAME@REALM"},
		{Config{User: "alice@EXAMPLE.ORG", Kerberos: Kerberos{Password: true}}, "kerberos.password: "},
	} {
		err := c.cfg.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret1") {
			t.Errorf("%v has the password", err)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Error(err)
	}
}

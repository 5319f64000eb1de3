package proxydial

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Config is the section of who dials: which proxy, and how to log in there. The zero value takes the proxy of the
// environment, without a login but what its URL says. Files are read when they are needed, so a new password is live.
type Config struct {
	// URL is http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT, "none", or "" for PAC, then the environment.
	URL string `yaml:"url" jsonschema_description:"http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT of the proxy; none: there is none; empty: pac, then the environment (HTTPS_PROXY, ALL_PROXY, NO_PROXY)"`
	// PAC names a proxy auto-configuration script: a file, or an http:// or https:// URL, fetched without a proxy.
	PAC string `yaml:"pac" jsonschema_description:"a proxy auto-configuration script: a file, or an http:// or https:// URL"`
	// NoProxy are hosts, domains (.example.org), addresses and prefixes that are reached without URL.
	NoProxy []string `yaml:"no_proxy" jsonschema_description:"hosts, domains (.example.org), addresses and prefixes that are reached without url"`
	// User is NAME, DOMAIN\NAME or NAME@REALM.
	User string `yaml:"user" jsonschema_description:"who logs in at the proxy: NAME, DOMAIN\\NAME or NAME@REALM"`
	// PasswordFile holds the password in its first line.
	PasswordFile string `yaml:"password_file" jsonschema_description:"file with the password in its first line"`
	// AllowBasic permits Basic, which shows the password to everybody between here and an http:// proxy.
	AllowBasic bool `yaml:"allow_basic" jsonschema:"default=false" jsonschema_description:"permit Basic, which shows the password to everybody on the way to an http:// proxy"`
	// CAFile holds the authorities for https:// proxies; empty: the system's.
	CAFile string `yaml:"ca_file" jsonschema_description:"authorities (PEM) for https:// proxies; empty: the system's"`
	// Hold is how long nobody logs in at a proxy after it refused a login, so that no account is locked. 0 = 5 min.
	Hold     time.Duration `yaml:"hold" jsonschema_description:"how long no login is tried after one was refused, so that no account is locked; default 5m"`
	Kerberos Kerberos      `yaml:"kerberos" jsonschema_description:"how Negotiate logs in; empty: by the ticket cache of the environment (KRB5CCNAME)"`
}

// Kerberos says where tickets come from: a cache, a keytab, or the password of the section.
type Kerberos struct {
	Config    string `yaml:"config" jsonschema_description:"Kerberos configuration; default KRB5_CONFIG, then /etc/krb5.conf"`
	Cache     string `yaml:"cache" jsonschema_description:"ticket cache file; default KRB5CCNAME"`
	Keytab    string `yaml:"keytab" jsonschema_description:"keytab with the key of user"`
	Password  bool   `yaml:"password" jsonschema:"default=false" jsonschema_description:"get tickets by user and password_file"`
	Principal string `yaml:"principal" jsonschema_description:"the proxy's principal; default HTTP/HOST of the proxy"`
}

// Fault is one thing wrong with the section; Key is relative to it.
type Fault struct{ Key, Text string }

func (f Fault) Error() string { return f.Key + ": " + f.Text }

// FaultKey returns the key, for whoever knows its line.
func (f Fault) FaultKey() string { return f.Key }

// Validate returns all faults, each a [Fault], joined.
func (c Config) Validate() error {
	var faults []error
	add := func(key, format string, a ...any) { faults = append(faults, Fault{key, fmt.Sprintf(format, a...)}) }
	if c.URL != "" && c.URL != none {
		p, err := ParseProxy(c.URL)
		switch {
		case err != nil:
			add("url", "%v", err)
		case p.user != nil:
			add("url", "a login does not belong into the URL; use user and password_file")
		}
	}
	if c.URL != "" && c.PAC != "" {
		add("pac", "url is set, too")
	}
	if _, isURL := pacURL(c.PAC); !isURL && strings.Contains(c.PAC, "://") {
		add("pac", "a file, or an http:// or https:// URL")
	}
	if c.PasswordFile != "" && c.User == "" {
		add("user", "is missing: there is a password_file")
	}
	if c.Hold < 0 {
		add("hold", "must not be negative")
	}
	if k := c.Kerberos; (k.Keytab != "" || k.Password) && !strings.Contains(c.User, "@") {
		add("user", "must be NAME@REALM for kerberos")
	}
	if k := c.Kerberos; k.Password && c.PasswordFile == "" {
		add("kerberos.password", "there is no password_file")
	}
	return errors.Join(faults...)
}

const none = "none"

// Scheme is how a proxy is spoken to.
type Scheme string

// The schemes. Direct is no proxy at all.
const (
	Direct Scheme = ""
	HTTP   Scheme = "http"
	HTTPS  Scheme = "https"
	SOCKS5 Scheme = "socks5"
)

// Proxy is one proxy, or none: the zero value is the direct way.
type Proxy struct {
	Scheme  Scheme
	Address string // HOST:PORT
	user    *url.Userinfo
}

// String returns SCHEME://HOST:PORT, without a login, or "direct".
func (p Proxy) String() string {
	if p.Scheme == Direct {
		return "direct"
	}
	return string(p.Scheme) + "://" + p.Address
}

// ParseProxy reads SCHEME://[USER:PASSWORD@]HOST[:PORT]; without a scheme it is http.
// The ports are 80, 443 and 1080 where none is said.
func ParseProxy(text string) (Proxy, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return Proxy{}, errors.New("not a URL") // the cause would repeat the password
	}
	p := Proxy{Scheme: Scheme(strings.ToLower(u.Scheme)), user: u.User}
	ports := map[Scheme]string{HTTP: "80", HTTPS: "443", SOCKS5: "1080"}
	if p.Scheme == "socks5h" || p.Scheme == "socks" {
		p.Scheme = SOCKS5 // names are always resolved by the proxy
	}
	port, known := ports[p.Scheme]
	switch {
	case !known:
		return Proxy{}, errors.New("the scheme is not http, https or socks5")
	case u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "":
		return Proxy{}, errors.New("not SCHEME://HOST:PORT")
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Proxy{}, errors.New("the port is not 1 to 65535")
	}
	p.Address = net.JoinHostPort(u.Hostname(), port)
	return p, nil
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tunnel/device"
)

// Domain is below which every service of every device has a name: SERVICE.DEVICE.edged.
const Domain = "edged"

// Applications is how applications of the site that know proxies reach services by name.
type Applications struct {
	Listen []ProxyListen     `yaml:"listen" jsonschema_description:"proxies for applications here: socks5://ADDRESS:PORT (UDP ASSOCIATE too), http://ADDRESS:PORT (CONNECT)"`
	From   []netip.Prefix    `yaml:"from" jsonschema_description:"who may use them; empty: this host alone"`
	Routes map[string]string `yaml:"routes" jsonschema_description:"names that lead to services beside SERVICE.DEVICE.edged: {HOST or HOST:PORT: DEVICE/SERVICE}; live"`
}

// Protocols of [ProxyListen].
const (
	SOCKS5 = "socks5"
	HTTP   = "http"
)

// ProxyListen is where a proxy for applications listens, written "socks5://ADDRESS:PORT" or "http://ADDRESS:PORT".
type ProxyListen struct {
	Proto string
	At    netip.AddrPort
}

// UnmarshalText reads "PROTO://ADDRESS:PORT".
func (l *ProxyListen) UnmarshalText(b []byte) error {
	proto, rest, _ := strings.Cut(string(b), "://")
	at, err := netip.ParseAddrPort(rest)
	if err != nil || proto != SOCKS5 && proto != HTTP || at.Port() == 0 {
		return fmt.Errorf("%q is not socks5://ADDRESS:PORT or http://ADDRESS:PORT", b)
	}
	*l = ProxyListen{proto, at}
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (l ProxyListen) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// String returns "PROTO://ADDRESS:PORT".
func (l ProxyListen) String() string { return l.Proto + "://" + l.At.String() }

// Sources returns who may use the proxies.
func (p Applications) Sources() []netip.Prefix {
	if len(p.From) > 0 {
		return p.From
	}
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
}

// ErrNoRoute says that a name leads to no service.
var ErrNoRoute = errors.New("the name leads to no service of a device")

// route returns the device and service that a host name and port mean.
func (c *Config) route(host string, port uint16) (name, service string, err error) {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, key := range []string{host + ":" + strconv.Itoa(int(port)), host} {
		if to, ok := c.Applications.Routes[key]; ok {
			name, service, _ = strings.Cut(to, "/")
			return name, service, nil
		}
	}
	labels := strings.Split(host, ".")
	if len(labels) != 3 || labels[2] != Domain {
		return "", "", ErrNoRoute
	}
	if _, err := c.Resolve(labels[1]); err != nil {
		return "", "", ErrNoRoute
	}
	return labels[1], labels[0], nil
}

// DialHost reaches the service that a host name and port mean, or returns [ErrNoRoute].
func (a *Agent) DialHost(ctx context.Context, host string, port uint16) (*Conn, error) {
	name, service, err := a.cfg.Load().route(host, port)
	if err != nil {
		return nil, err
	}
	return a.Dial(ctx, name, service)
}

func (c *Config) validateApplications(faults *pinhole.Faults) {
	p := c.Applications
	for i, l := range p.Listen {
		if slices.Contains(p.Listen[:i], l) {
			faults.Add(fmt.Sprintf("applications.listen[%d]", i), "%s stands twice", l)
		}
	}
	for i, f := range p.From {
		if f.IsValid() && f != f.Masked() {
			faults.Add(fmt.Sprintf("applications.from[%d]", i), "%s names a host; the network is %s", f, f.Masked())
		}
	}
	for _, host := range slices.Sorted(maps.Keys(p.Routes)) {
		name, service, _ := strings.Cut(p.Routes[host], "/")
		_, err := c.Resolve(name)
		if err == nil {
			err = device.CheckName(service)
		}
		if err != nil {
			*faults = append(*faults, pinhole.Fault{Key: "applications.routes." + host, Text: fmt.Sprintf("%q is not DEVICE/SERVICE: %v", p.Routes[host], err)})
		}
		if host != strings.ToLower(host) {
			*faults = append(*faults, pinhole.Fault{Key: "applications.routes." + host, Text: "write the name in lower case"})
		}
	}
}

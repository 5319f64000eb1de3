package proxydial

import (
	"context"
	"net/url"
	"os"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// Proxies returns the ways to target, HOST:PORT, in the order to be tried: of the section's URL, else of its PAC script,
// else of the environment. The direct way is among them only where one of these says so.
func (d *Dialer) Proxies(ctx context.Context, target string) ([]Proxy, error) {
	switch {
	case d.cfg.URL == none:
		return []Proxy{{}}, nil
	case d.cfg.URL != "":
		return d.choose(d.cfg.URL, strings.Join(d.cfg.NoProxy, ","), target)
	case d.pac != nil:
		return d.pac.find(ctx, target)
	}
	proxy := d.getenv("HTTPS_PROXY")
	if proxy == "" {
		proxy = d.getenv("ALL_PROXY")
	}
	if proxy == "" {
		return []Proxy{{}}, nil
	}
	return d.choose(proxy, d.getenv("NO_PROXY"), target)
}

// getenv returns a variable in capitals or, as most programs have it, in small letters.
func (d *Dialer) getenv(key string) string {
	get := d.Getenv
	if get == nil {
		get = os.Getenv
	}
	if v := get(key); v != "" {
		return v
	}
	return get(strings.ToLower(key))
}

// choose returns the proxy, or the direct way if except has the target.
func (d *Dialer) choose(proxy, except, target string) ([]Proxy, error) {
	p, err := ParseProxy(proxy)
	if err != nil {
		return nil, err
	}
	if except == "" {
		return []Proxy{p}, nil
	}
	// It judges exceptions as net/http does.
	judge := httpproxy.Config{HTTPSProxy: "http://proxy.invalid", NoProxy: except}
	if u, err := judge.ProxyFunc()(&url.URL{Scheme: "https", Host: target}); err == nil && u == nil {
		return []Proxy{{}}, nil
	}
	return []Proxy{p}, nil
}

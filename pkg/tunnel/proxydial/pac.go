package proxydial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/metrics"
	"strings"
	"time"

	"github.com/dop251/goja"
)

const (
	maxScript  = 1 << 20         // of a PAC script, in bytes
	scriptTime = 5 * time.Second // for one answer, its DNS queries included
	scriptHeap = 64 << 20        // how much the heap may grow meanwhile, in bytes
	scriptKept = 10 * time.Minute
	maxWays    = 16 // of one answer
)

// script is a PAC script: a function FindProxyForURL(url, host) in JavaScript. One evaluation runs at a time; one that
// does not end in time is interrupted, and as long as it has not ended (a regular expression cannot be interrupted)
// there is no other. This bounds mistakes of its author; it is no wall against him.
type script struct {
	source string

	turn    chan struct{} // of size one: who has put something in may evaluate, and use what follows
	program *goja.Program
	loaded  time.Time
}

func newScript(source string) *script { return &script{source: source, turn: make(chan struct{}, 1)} }

// find asks the script for the ways to target, HOST:PORT.
func (s *script) find(ctx context.Context, target string) ([]Proxy, error) {
	ctx, cancel := context.WithTimeout(ctx, scriptTime)
	defer cancel()
	program, err := s.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("pac: %w", err)
	}
	vm := goja.New()
	vm.SetMaxCallStackSize(256)
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1) // one, so that the goroutine ends though nobody waits any more
	go func() {
		defer func() { <-s.turn }()
		text, err := evaluate(ctx, vm, program, target)
		done <- result{text, err}
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := heapBytes() + scriptHeap; ; {
		select {
		case r := <-done:
			if r.err != nil {
				return nil, fmt.Errorf("pac: %w", r.err)
			}
			return parsePAC(r.text)
		case <-ctx.Done():
			vm.Interrupt("too slow")
			return nil, fmt.Errorf("pac: %w", context.Cause(ctx))
		case <-tick.C:
			if heapBytes() > limit {
				vm.Interrupt("too much memory")
			}
		}
	}
}

// heapBytes returns what objects of the heap take, living or not yet collected.
func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// begin takes the turn to evaluate and returns the compiled script, read anew from time to time.
func (s *script) begin(ctx context.Context) (*goja.Program, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, errors.New("the script is still busy")
	}
	program, err := s.compiled(ctx)
	if err != nil {
		<-s.turn
	}
	return program, err
}

func (s *script) compiled(ctx context.Context) (*goja.Program, error) {
	if s.program == nil || time.Since(s.loaded) > scriptKept {
		text, err := s.load(ctx)
		if err != nil {
			return nil, err
		}
		program, err := goja.Compile("pac", text, false)
		if err != nil {
			return nil, err
		}
		s.program, s.loaded = program, time.Now()
	}
	return s.program, nil
}

// pacURL tells whether the source is fetched.
func pacURL(source string) (*url.URL, bool) {
	u, err := url.Parse(source)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, false
	}
	return u, true
}

// load reads the file or fetches the URL, without a proxy.
func (s *script) load(ctx context.Context) (string, error) {
	from, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = from.Close() }()
	b, err := io.ReadAll(io.LimitReader(from, maxScript+1))
	if err == nil && len(b) > maxScript {
		err = errors.New("the script is larger than 1 MiB")
	}
	return string(b), err
}

func (s *script) open(ctx context.Context) (io.ReadCloser, error) {
	u, ok := pacURL(s.source)
	if !ok {
		return os.Open(s.source)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	fetch := http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	resp, err := fetch.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s answered %s", u.Redacted(), resp.Status)
	}
	return resp.Body, nil
}

// evaluate runs the script and asks its function. The URL that it is shown has no path.
func evaluate(ctx context.Context, vm *goja.Runtime, program *goja.Program, target string) (string, error) {
	if err := (environment{ctx, vm}).define(); err != nil {
		return "", err
	}
	if _, err := vm.RunProgram(program); err != nil {
		return "", err
	}
	find, ok := goja.AssertFunction(vm.Get("FindProxyForURL"))
	if !ok {
		return "", errors.New("there is no function FindProxyForURL")
	}
	host := hostOf(target)
	v, err := find(goja.Undefined(), vm.ToValue("https://"+target+"/"), vm.ToValue(host))
	if err != nil {
		return "", err
	}
	if goja.IsUndefined(v) || goja.IsNull(v) {
		return "DIRECT", nil
	}
	return v.String(), nil
}

// parsePAC reads what a script answered: "PROXY host:port; SOCKS host:port; DIRECT".
func parsePAC(text string) ([]Proxy, error) {
	var out []Proxy
	for _, part := range strings.Split(text, ";") {
		words := strings.Fields(part)
		if len(words) == 0 {
			continue
		}
		if len(out) == maxWays {
			break
		}
		kind := strings.ToUpper(words[0])
		if kind == "DIRECT" && len(words) == 1 {
			out = append(out, Proxy{})
			continue
		}
		scheme, ok := map[string]Scheme{"PROXY": HTTP, "HTTP": HTTP, "HTTPS": HTTPS, "SOCKS": SOCKS5, "SOCKS5": SOCKS5}[kind]
		if !ok || len(words) != 2 {
			continue // SOCKS4 and what comes after us
		}
		if p, err := ParseProxy(string(scheme) + "://" + words[1]); err == nil && p.user == nil {
			out = append(out, p)
		}
	}
	if len(out) == 0 && strings.TrimSpace(text) != "" {
		return nil, errors.New("pac: nothing usable in the script's answer")
	}
	if len(out) == 0 {
		return []Proxy{{}}, nil
	}
	return out, nil
}

// lookup returns the first IPv4 address of a name, as PAC scripts know no other; "" if there is none.
func lookup(ctx context.Context, host string) string {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil || len(addrs) == 0 {
		return ""
	}
	return addrs[0].Unmap().String()
}

package proxydial

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Web makes connections for plain HTTP requests to one target, by way of one HTTP proxy or directly. It knows how the
// proxy wants each request, or each connection, to be logged in. It may be used concurrently.
type Web struct {
	d      *Dialer
	proxy  Proxy
	target string
	path   string
	rtt    time.Duration

	mu     sync.Mutex
	try    attempt           // how the first request got through
	nonces map[string]*nonce // of Digest, by method
	spare  net.Conn          // of the first request, if it is logged in
}

// nonce is a challenge that is answered again and again. Each method has its own: they use different connections, and
// squid wants the counts of a nonce in order.
type nonce struct {
	try   attempt
	since time.Time
	used  int
}

// A nonce of Digest is replaced before proxies say that it is stale, since what runs over requests cannot repeat one.
// squid takes a nonce 50 times.
const (
	nonceUses = 40
	nonceTime = 4 * time.Minute
	nonceWait = 10 * time.Second // for another one
)

// Web asks target, HOST:PORT, for path by way of p, and returns what later requests need. Any answer of the target will
// do but a 5xx, or a 403, which is more likely one of the proxy. It is for the direct way and for HTTP proxies.
func (d *Dialer) Web(ctx context.Context, p Proxy, target, path string) (*Web, error) {
	w := &Web{d: d, proxy: p, target: target, path: path, nonces: map[string]*nonce{}}
	conn, err := w.log(ctx)
	w.spare = conn
	return w, err
}

// log says the first request; the connection that it returns is idle, nil if it is used up.
func (w *Web) log(ctx context.Context) (net.Conn, error) {
	x := &exchange{d: w.d, proxy: w.proxy, method: http.MethodGet, uri: w.URI(w.path), host: w.target, passed: passedWeb}
	if !w.Proxied() {
		x.proxy = Proxy{Address: w.target}
	}
	resp, err := x.run(ctx)
	if err != nil {
		return nil, err
	}
	// Some proxies close after every request without having said so: a connection is only kept where the login is its own.
	if !x.drain(ctx, resp) || x.br.Buffered() > 0 || !byConnection(x.try.scheme) {
		x.drop()
	}
	w.rtt, w.try = x.turn, x.try
	return x.conn, nil
}

func passedWeb(status int) bool {
	return status/100 != 5 && status != http.StatusForbidden && status != http.StatusProxyAuthRequired
}

// Proxied tells whether requests go to a proxy, and so name the target with http:// in front.
func (w *Web) Proxied() bool { return w.proxy.Scheme != Direct }

// URI returns what a request line says for a path.
func (w *Web) URI(path string) string {
	if w.Proxied() {
		return "http://" + w.target + path
	}
	return path
}

// RTT is what a request and its answer took at the beginning.
func (w *Web) RTT() time.Duration { return w.rtt }

// Dial opens a connection for requests; it belongs to the caller.
func (w *Web) Dial(ctx context.Context) (net.Conn, error) {
	w.mu.Lock()
	conn, scheme := w.spare, w.try.scheme
	w.spare = nil
	w.mu.Unlock()
	switch {
	case conn != nil:
		return conn, nil
	case byConnection(scheme):
		return w.again(ctx)
	case w.Proxied():
		return w.d.open(ctx, w.proxy)
	}
	return w.d.tcp(ctx, w.target)
}

// again logs a further connection in.
func (w *Web) again(ctx context.Context) (net.Conn, error) {
	other := &Web{d: w.d, proxy: w.proxy, target: w.target, path: w.path}
	conn, err := other.log(ctx)
	if err == nil && conn == nil {
		err = io.ErrUnexpectedEOF // a login of a connection that ends with it
	}
	return conn, err
}

// Authorize returns the value of Proxy-Authorization for a request, "" where it needs none. uri is what the
// request line says. With Digest it asks the proxy for another nonce now and then, for 10 s at most.
func (w *Web) Authorize(method, uri string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.try.login == nil || byConnection(w.try.scheme) {
		return ""
	}
	try := w.try
	if try.scheme == digest {
		try = w.nonceLocked(method)
	}
	value, _, err := try.login.answer(context.Background(), try.challenge, method, uri)
	if err != nil {
		return "" // it answered the same challenge before
	}
	return value
}

// nonceLocked returns what answers the next request of a method. If the proxy gives no new nonce an old one has to do.
func (w *Web) nonceLocked(method string) attempt {
	n := w.nonces[method]
	if n == nil {
		n = &nonce{try: w.try}
		w.nonces[method] = n
	}
	if n.used == 0 || n.used >= nonceUses || time.Since(n.since) > nonceTime {
		ctx, cancel := context.WithTimeout(context.Background(), nonceWait)
		defer cancel()
		other := &Web{d: w.d, proxy: w.proxy, target: w.target, path: w.path}
		if _, err := other.log(ctx); err == nil {
			*n = nonce{try: other.try, since: time.Now()}
		} else {
			w.d.log.Debug("no other nonce", zap.Stringer("proxy", w.proxy), zap.Error(err))
		}
	}
	n.used++
	return n.try
}

// Close closes the connection that was not taken.
func (w *Web) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spare != nil {
		w.spare.Close()
		w.spare = nil
	}
}

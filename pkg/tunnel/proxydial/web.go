package proxydial

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Web makes connections for plain HTTP requests to one target, by way of one HTTP proxy or directly. It knows how the
// proxy wants each request, or each connection, to be logged in. It may be used concurrently.
type Web struct {
	d      *Dialer
	proxy  Proxy
	target string
	path   string
	rtt    time.Duration
	try    attempt // how the first request got through

	mu    sync.Mutex
	spare net.Conn // of the first request, if it is logged in
}

// Web asks target, HOST:PORT, for path by way of p, and returns what later requests need. Any answer of the target will
// do but a 5xx, or a 403, which is more likely one of the proxy. It is for the direct way and for HTTP proxies.
func (d *Dialer) Web(ctx context.Context, p Proxy, target, path string) (*Web, error) {
	w := &Web{d: d, proxy: p, target: target, path: path}
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
	conn := w.spare
	w.spare = nil
	w.mu.Unlock()
	switch {
	case conn != nil:
		return conn, nil
	case byConnection(w.try.scheme):
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
// request line says.
func (w *Web) Authorize(method, uri string) string {
	if w.try.login == nil || byConnection(w.try.scheme) {
		return ""
	}
	value, _, err := w.try.login.answer(context.Background(), w.try.challenge, method, uri)
	if err != nil {
		return "" // it answered the same challenge before
	}
	return value
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

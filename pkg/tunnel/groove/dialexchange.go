package groove

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// line is one of the two sequences of requests of a connection: its connection of TCP, a new one where a proxy has
// closed the last.
type line struct {
	d    *dialling
	conn net.Conn
	br   *bufio.Reader
	last time.Time // of a response
}

// reuseTime is how long a connection may have been idle to be used again. Proxies close theirs after a minute or two,
// and a request that goes into such an end is lost.
const reuseTime = 30 * time.Second

// do sends a request and returns the body of its response.
func (l *line) do(ctx context.Context, method string, body []byte, wait time.Duration) ([]byte, error) {
	length := int64(-1)
	if method == "POST" {
		length = int64(len(body))
	}
	if time.Since(l.last) > reuseTime {
		l.close()
	}
	if err := l.connect(ctx); err != nil {
		return nil, err
	}
	conn := l.conn
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	conn.SetDeadline(time.Now().Add(wait))
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	b, persist, err := l.exchange(append(l.d.head(method, length), body...))
	l.last = time.Now()
	if err != nil || !persist {
		l.close()
	}
	if err != nil {
		return nil, firstOf(ctx.Err(), err)
	}
	return b, nil
}

// exchange writes a request and reads its response.
func (l *line) exchange(req []byte) (b []byte, persist bool, err error) {
	if _, err := l.conn.Write(req); err != nil {
		return nil, false, err
	}
	h, err := readHead(l.br)
	if err != nil {
		return nil, false, err
	}
	if err := h.status(); err != nil {
		return nil, false, err
	}
	switch {
	case h.length > maxBody:
		return nil, false, errProtocol
	case h.length >= 0:
		b = make([]byte, h.length)
		_, err = io.ReadFull(l.br, b)
		return b, h.persist, err
	}
	b, err = io.ReadAll(io.LimitReader(l.br, maxBody+1)) // until the connection is closed, as in HTTP/1.0
	if len(b) > maxBody {
		err = errProtocol
	}
	return b, false, err
}

func (l *line) close() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// exchanges are the requests of a connection of KeepAlive or Polling.
type exchanges struct {
	q      *queued
	cancel context.CancelFunc
}

// newExchanges returns a connection without requests, and a context that ends with it; that of Dial is over by then. Its
// local and remote addresses are those of l's connection.
func newExchanges(l *line) (*exchanges, context.Context) {
	ctx, cancel := context.WithCancel(context.Background())
	return &exchanges{newQueued(l.conn, func() { time.AfterFunc(linger, cancel) }), cancel}, ctx
}

// failed ends the connection after an error of its carriage; err nil is the end of who writes.
func (x *exchanges) failed(err error) {
	var status *StatusError
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &status):
		err = io.EOF // as a proxy has it that tells what the relay has closed
	}
	x.q.fail(err)
	x.cancel()
}

// keepAlive builds a connection of that mode.
func (d *dialling) keepAlive(ctx context.Context) (net.Conn, error) {
	get, post := &line{d: d}, &line{d: d}
	type answer struct {
		b   []byte
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	posted := make(chan answer, 1) // of which there is one
	go func() {
		b, err := post.do(ctx, "POST", []byte(echo), requestTime)
		if err != nil {
			cancel() // the GET would wait in vain
		}
		posted <- answer{b, err}
	}()
	first, err := get.do(ctx, "GET", nil, requestTime)
	if err != nil {
		cancel()
	}
	p := <-posted
	switch {
	case p.err != nil && !errors.Is(p.err, context.Canceled):
		err = p.err
	case err == nil && (string(first) != echo || len(p.b) > 0):
		err = errProtocol
	}
	if err == nil {
		err = get.connect(ctx) // its addresses are the virtual connection's
	}
	if err != nil {
		get.close()
		post.close()
		return nil, err
	}
	x, alive := newExchanges(get)
	go x.getAll(alive, get)
	go x.postAll(alive, post)
	return x.q, nil
}

// connect sees to it that there is a connection.
func (l *line) connect(ctx context.Context) error {
	if l.conn != nil {
		return nil
	}
	conn, err := l.d.dial(ctx)
	if err == nil {
		l.conn, l.br, l.last = conn, bufio.NewReaderSize(conn, maxHead), time.Now()
	}
	return err
}

// getAll asks for what the server says, as long as there is room for it.
func (x *exchanges) getAll(ctx context.Context, l *line) {
	defer l.leave()
	for {
		b, err := l.do(ctx, "GET", nil, 2*emptyAfter)
		if err != nil {
			x.failed(err)
			return
		}
		_, _ = x.q.in.write(b, &deadline{}) // after Close nobody wants it
	}
}

// leave closes the connection with a request on it: from one that waits the server learns that nobody does any more.
func (l *line) leave() {
	if l.conn != nil {
		l.conn.SetWriteDeadline(time.Now().Add(linger))
		_, _ = l.conn.Write(l.d.head("GET", -1)) // or it learns it later
	}
	l.close()
}

// postAll brings what was written to the server.
func (x *exchanges) postAll(ctx context.Context, l *line) {
	defer l.close()
	for {
		b, over := x.q.out.take(maxBody, ctx.Done(), nil)
		if over || len(b) == 0 {
			x.failed(nil)
			return
		}
		if _, err := l.do(ctx, "POST", b, requestTime); err != nil {
			x.failed(err)
			return
		}
	}
}

// polling builds a connection of that mode. It is established with the first data.
func (d *dialling) polling(ctx context.Context) (net.Conn, error) {
	l := &line{d: d}
	probe := pollBody{relay: d.Relay, guid: d.uri.guid}
	answer, err := l.poll(ctx, probe)
	if err == nil && len(answer.data) > 0 {
		err = errProtocol
	}
	if err == nil {
		err = l.connect(ctx)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	x, alive := newExchanges(l)
	go x.pollAll(alive, l, probe)
	return x.q, nil
}

// poll sends one request and reads its response.
func (l *line) poll(ctx context.Context, p pollBody) (pollBody, error) {
	b, err := l.do(ctx, "POST", p.bytes(), requestTime)
	if err != nil {
		return pollBody{}, err
	}
	answer, err := parsePollBody(b, true)
	if err == nil && (answer.guid != p.guid || answer.seq != p.seq) {
		err = errProtocol
	}
	return answer, err
}

// pollAll exchanges data, the more often the more there are.
func (x *exchanges) pollAll(ctx context.Context, l *line, p pollBody) {
	defer l.close()
	interval, without := time.Duration(0), 0
	for {
		late := make(chan struct{})
		timer := time.AfterFunc(interval, func() { close(late) })
		b, over := x.q.out.take(p.room(), late, ctx.Done())
		timer.Stop()
		if over || ctx.Err() != nil {
			x.failed(nil)
			return
		}
		p.data = b
		answer, err := l.poll(ctx, p)
		if err != nil {
			x.failed(err)
			return
		}
		_, _ = x.q.in.write(answer.data, &deadline{}) // after Close nobody wants it
		p.seq++
		interval, without = answer.pace.next(interval, without, len(b)+len(answer.data) > 0)
	}
}

// next returns how long to wait before the next request, and how many went without data in a row with that.
func (p *pace) next(interval time.Duration, without int, data bool) (time.Duration, int) {
	without++
	switch {
	case data:
		return p.min, 0
	case without > p.repetitions:
		return min(max(2*interval, p.min), p.max), 1
	}
	return min(max(interval, p.min), p.max), without
}

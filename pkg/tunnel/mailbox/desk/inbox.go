package desk

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/mailbox/carry"
	"edged.dev/edged/pkg/tunnel/mailbox/letter"
)

// inbox is the reading that goes on between requests: a program that asks for one message after the other gets them from one
// stream.
type inbox struct {
	mu     sync.Mutex // one request at a time
	reader *carry.Reader
	cancel context.CancelFunc
	idle   *time.Timer
	after  uint64 // the last message that was handed out
	// dropped is up to where messages were acknowledged since the reader began: who asks for the first one goes on there.
	dropped atomic.Uint64
	next    chan result // closed when the reader has ended
	wg      sync.WaitGroup
}

type result struct {
	m   carry.Message
	err error
}

const (
	waitMost = 5 * time.Minute
	// readerIdle is how long a reader stays attached after a program's last request.
	readerIdle = time.Minute
)

// start makes the reader stand behind a message. in.mu is held.
func (k *Desk) start(after uint64) error {
	in := &k.in
	if in.reader != nil && (in.after == after || after == 0 && in.after <= in.dropped.Load()) {
		in.idle.Reset(readerIdle)
		return nil
	}
	in.close()
	in.dropped.Store(0)
	ctx, cancel := context.WithCancel(context.Background())
	reader, err := k.d.Client.Read(ctx, after)
	if err != nil {
		cancel()
		return err
	}
	next := make(chan result)
	in.reader, in.cancel, in.after, in.next = reader, cancel, after, next
	in.idle = time.AfterFunc(readerIdle, cancel)
	in.wg.Go(func() { pump(ctx, reader, next) })
	return nil
}

// pump reads messages ahead of the requests for them, one.
func pump(ctx context.Context, r *carry.Reader, next chan<- result) {
	defer r.Close()
	defer close(next)
	for {
		m, err := r.Next()
		select {
		case next <- result{m, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// close ends the reader. in.mu is held.
func (in *inbox) close() {
	if in.reader != nil {
		in.idle.Stop()
		in.cancel()
		in.reader = nil
	}
}

func (in *inbox) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.close()
	in.wg.Wait()
}

// take waits for the message after one. ok is false if none came.
func (k *Desk) take(ctx context.Context, after uint64, wait time.Duration) (m carry.Message, ok bool, err error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		if err := k.start(after); err != nil {
			return m, false, err
		}
		select {
		case r, going := <-k.in.next:
			if !going || r.err != nil {
				k.in.close()
			}
			if !going {
				continue // it was idle for too long
			}
			k.in.after = max(k.in.after, r.m.Seq)
			return r.m, r.err == nil, r.err
		case <-t.C:
			return m, false, nil
		case <-ctx.Done():
			return m, false, ctx.Err()
		}
	}
}

// read answers with the next message.
func (k *Desk) read(w http.ResponseWriter, r *http.Request) {
	after, err := number(r.URL.Query(), "after")
	wait := time.Duration(0)
	if err == nil {
		wait, err = duration(r.URL.Query(), "wait", 0)
	}
	if err != nil {
		fail(w, err)
		return
	}
	k.in.mu.Lock()
	defer k.in.mu.Unlock()
	// A message that waits is not missed because the first answer takes a moment.
	m, ok, err := k.take(r.Context(), after, max(min(wait, waitMost), time.Second))
	if err != nil {
		fail(w, err)
		return
	}
	if !ok {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	k.head(w.Header(), m)
	text, meta, err := k.text(r.Context(), m)
	if err != nil {
		k.in.close() // the same request gets it again
		k.d.Log.Warn("message not handed out", zap.Uint64("seq", m.Seq), zap.Error(err))
		fail(w, err)
		return
	}
	defer text.Close()
	w.Header().Set("Edged-Name", url.PathEscape(meta.Name))
	w.Header().Set("Content-Type", "application/octet-stream")
	if meta.Type != "" {
		w.Header().Set("Edged-Type", url.PathEscape(meta.Type))
	}
	http.ServeContent(w, r, "", time.Time{}, text)
}

// head says what is known of a message without opening it.
func (k *Desk) head(h http.Header, m carry.Message) {
	store := k.in.reader.Store()
	h.Set("Edged-Store", hex.EncodeToString(store[:]))
	h.Set("Edged-Seq", strconv.FormatUint(m.Seq, 10))
	h.Set("Edged-From", k.d.Text(m.From))
	h.Set("Edged-From-Name", k.d.Name(m.From))
	h.Set("Edged-Id", fmt.Sprintf("%x-%d", m.ID.Epoch, m.ID.Counter))
	h.Set("Edged-Queued", m.Queued.UTC().Format(time.RFC3339))
}

// content is a text that can be read from anywhere.
type content interface {
	io.ReadSeeker
	io.Closer
}

type small struct{ *bytes.Reader }

func (small) Close() error { return nil }

// text opens a message, fetched if need be, and verified as a whole.
func (k *Desk) text(ctx context.Context, m carry.Message) (content, Meta, error) {
	if m.Body != nil {
		o, err := k.d.Client.Open(m, bytes.NewReader(m.Body))
		if err != nil {
			return nil, Meta{}, err
		}
		b, err := io.ReadAll(o)
		if err != nil {
			return nil, Meta{}, err
		}
		meta, err := parseMeta(o.Meta)
		return small{bytes.NewReader(b)}, meta, err
	}
	return k.spooled(ctx, m)
}

// parseMeta reads what a letter says beside its text.
func parseMeta(b []byte) (m Meta, err error) {
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: meta data", letter.ErrForged)
	}
	return m, nil
}

// spool returns the name of a message's files.
func (k *Desk) spool(seq uint64) string {
	store := k.in.reader.Store()
	return filepath.Join(k.d.Spool, fmt.Sprintf("%x-%d", store[:], seq))
}

// spooled fetches what is missing of a large message, and opens it.
func (k *Desk) spooled(ctx context.Context, m carry.Message) (content, Meta, error) {
	name := k.spool(m.Seq)
	sealed, err := os.OpenFile(name+".sealed", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, Meta{}, err
	}
	defer sealed.Close()
	st, err := sealed.Stat()
	if err != nil {
		return nil, Meta{}, err
	}
	if st.Size() < m.Size {
		if err := k.d.Client.Fetch(ctx, m, st.Size(), sealed); err != nil {
			return nil, Meta{}, err
		}
	}
	if _, err := sealed.Seek(0, io.SeekStart); err != nil {
		return nil, Meta{}, err
	}
	text, meta, err := k.unseal(m, sealed, name+".text")
	if errors.Is(err, letter.ErrForged) {
		err = errors.Join(err, os.Remove(name+".sealed")) // fetched anew if it is asked for again
	}
	return text, meta, err
}

// unseal writes the text of a letter into a file, which is for this request only: it has no name any more when it is read.
func (k *Desk) unseal(m carry.Message, sealed io.Reader, name string) (content, Meta, error) {
	o, err := k.d.Client.Open(m, sealed)
	if err != nil {
		return nil, Meta{}, err
	}
	meta, err := parseMeta(o.Meta)
	if err != nil {
		return nil, meta, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, meta, err
	}
	err = os.Remove(name)
	if err == nil {
		_, err = io.Copy(f, o)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, meta, errors.Join(err, f.Close())
	}
	return f, meta, nil
}

// ack drops messages that the program has put to safety.
func (k *Desk) ack(w http.ResponseWriter, r *http.Request) {
	upto, err := number(r.URL.Query(), "upto")
	if err == nil && upto == 0 {
		err = fmt.Errorf("%w: upto is missing", errBad)
	}
	if err != nil {
		fail(w, err)
		return
	}
	store, err := k.d.Client.Ack(r.Context(), upto)
	if err != nil {
		fail(w, err)
		return
	}
	k.in.dropped.Store(upto)
	k.clean(store, upto)
	w.WriteHeader(http.StatusNoContent)
}

// clean removes what was kept of messages that are dropped, and of other stores'.
func (k *Desk) clean(store [16]byte, upto uint64) {
	list, err := os.ReadDir(k.d.Spool)
	if err != nil {
		k.d.Log.Warn("spool not cleaned", zap.Error(err))
		return
	}
	for _, e := range list {
		id, number, ok := strings.Cut(strings.TrimSuffix(e.Name(), ".sealed"), "-")
		seq, err := strconv.ParseUint(number, 10, 64)
		if !ok || err != nil || id == hex.EncodeToString(store[:]) && seq > upto {
			continue
		}
		if err := os.Remove(filepath.Join(k.d.Spool, e.Name())); err != nil {
			k.d.Log.Warn("spool not cleaned", zap.Error(err))
		}
	}
}

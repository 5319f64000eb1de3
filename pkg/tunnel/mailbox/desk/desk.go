package desk

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/mailbox"
	"edged.dev/edged/pkg/tunnel/mailbox/carry"
	"edged.dev/edged/pkg/tunnel/mailbox/letter"
)

// Deps are what a desk works with.
type Deps struct {
	Device mailbox.Device
	Client *carry.Client
	// Spool is the folder for the large message that is being read.
	Spool string
	// Resolve finds the device that a program has named.
	Resolve func(name string) (mailbox.Device, error)
	// Text writes a device's ID; Name gives the name it is known by, or "".
	Text, Name func(mailbox.Device) string
	Log        *zap.Logger
}

// Desk serves programs.
type Desk struct {
	d   Deps
	mux *http.ServeMux

	sending sync.Mutex // one unkeyed message at a time: they are numbered
	next    mailbox.ID // of the next one; Epoch 0: a new epoch is begun

	in inbox
}

// New returns a desk. It makes the spool's folder.
func New(d Deps) (*Desk, error) {
	if err := os.MkdirAll(d.Spool, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	k := &Desk{d: d, mux: http.NewServeMux()}
	k.mux.HandleFunc("POST /v1/messages", k.send)
	k.mux.HandleFunc("GET /v1/inbox", k.read)
	k.mux.HandleFunc("DELETE /v1/inbox", k.ack)
	k.mux.HandleFunc("GET /v1/status", k.status)
	return k, nil
}

// ServeHTTP implements [http.Handler].
func (k *Desk) ServeHTTP(w http.ResponseWriter, r *http.Request) { k.mux.ServeHTTP(w, r) }

// Pauses between attempts to publish the device's key.
const (
	publishPause = time.Second
	publishMost  = time.Minute
)

// Run publishes the device's key at the relay as soon as there is one, and reads no more when ctx ends.
func (k *Desk) Run(ctx context.Context) error {
	defer k.in.stop()
	for pause := publishPause; ; pause = min(2*pause, publishMost) {
		err := k.d.Client.Publish(ctx)
		if err == nil || errors.As(err, new(*carry.RefusedError)) {
			if err != nil {
				k.d.Log.Warn("key for letters not published", zap.Error(err))
			}
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// Meta is what a letter says beside its text.
type Meta struct {
	Name string `json:"name,omitempty"` // of a file
	Type string `json:"type,omitempty"` // Content-Type
}

// Sent is the answer to a message that is on the relay's disk.
type Sent struct {
	ID        string `json:"id"`
	Duplicate bool   `json:"duplicate"` // it was there already
	Discarded int    `json:"discarded"` // recipients that it was not kept for
}

// Failure is the answer to what did not work.
type Failure struct {
	Error  string `json:"error"`
	Reason string `json:"reason"` // quota, disk, size, denied, key, bad, forged, later
}

// maxKey bounds the key that a program calls a message by.
const maxKey = 256

// send takes a message of a program.
func (k *Desk) send(w http.ResponseWriter, r *http.Request) {
	o, key, err := k.outgoing(r)
	if err != nil {
		fail(w, err)
		return
	}
	var receipt mailbox.Receipt
	switch {
	case o.Flags&mailbox.Ephemeral != 0:
		receipt, err = k.d.Client.Send(r.Context(), o)
	case key != "":
		o.ID = mailbox.ID{Epoch: k.epoch(key, o), Counter: 1}
		receipt, err = k.d.Client.Send(r.Context(), o)
	default:
		receipt, err = k.numbered(r.Context(), &o)
	}
	if err != nil {
		k.d.Log.Info("message not sent", zap.Error(err))
		fail(w, err)
		return
	}
	answer(w, Sent{fmt.Sprintf("%x-%d", o.ID.Epoch, o.ID.Counter), receipt.Duplicate, receipt.Discarded})
}

// smallText is up to where a text is read before its message gets its number, in octets.
const smallText = 64 << 10

// numbered sends a message that the program has no key for. If it stays unknown what became of it, its number is not used again.
// No program waits for another one's text: a small one is here before it is its turn, a large one has numbers of its own.
func (k *Desk) numbered(ctx context.Context, o *carry.Outgoing) (mailbox.Receipt, error) {
	if o.Size > smallText {
		epoch, err := newEpoch()
		if err != nil {
			return mailbox.Receipt{}, err
		}
		o.ID = mailbox.ID{Epoch: epoch, Counter: 1}
		return k.d.Client.Send(ctx, *o)
	}
	text := make([]byte, o.Size)
	if _, err := io.ReadFull(o.Text, text); err != nil {
		return mailbox.Receipt{}, fmt.Errorf("%w: text: %w", errBad, err)
	}
	o.Text = bytes.NewReader(text)
	k.sending.Lock()
	defer k.sending.Unlock()
	if k.next.Epoch == 0 {
		epoch, err := newEpoch()
		if err != nil {
			return mailbox.Receipt{}, err
		}
		k.next = mailbox.ID{Epoch: epoch, Counter: 1}
	}
	o.ID = k.next
	receipt, err := k.d.Client.Send(ctx, *o)
	switch {
	case err == nil:
		k.next.Counter++
	case !errors.As(err, new(*carry.RefusedError)) || errors.Is(err, mailbox.ErrGap):
		k.next.Epoch = 0
	}
	return receipt, err
}

// newEpoch returns a random number, which is never 0.
func newEpoch() (uint64, error) {
	var b [8]byte
	_, err := rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:]) | 1, err
}

// epoch makes the number of a message of its key, and of all that must be the same for it to be the same message.
func (k *Desk) epoch(key string, o carry.Outgoing) uint64 {
	h := sha256.New()
	fmt.Fprintf(h, "edged message key\x00%s\x00%d\x00%s", key, o.Size, o.Meta)
	for _, d := range o.To {
		h.Write(d[:])
	}
	return binary.BigEndian.Uint64(h.Sum(nil)) | 1
}

var errBad = errors.New("bad request")

// outgoing reads what a program wants sent.
func (k *Desk) outgoing(r *http.Request) (o carry.Outgoing, key string, err error) {
	q := r.URL.Query()
	for _, name := range q["to"] {
		d, err := k.d.Resolve(name)
		if err != nil {
			return o, "", fmt.Errorf("%w: to: %w", errBad, err)
		}
		o.To = append(o.To, d)
	}
	if len(o.To) == 0 {
		return o, "", fmt.Errorf("%w: to is missing", errBad)
	}
	if r.ContentLength < 0 {
		return o, "", fmt.Errorf("%w: Content-Length is missing", errBad)
	}
	if key = q.Get("key"); len(key) > maxKey {
		return o, "", fmt.Errorf("%w: key has more than %d octets", errBad, maxKey)
	}
	if o.TTL, err = duration(q, "ttl", 0); err != nil {
		return o, "", err
	}
	for name, flag := range map[string]mailbox.Flags{"discard": mailbox.Discard, "ephemeral": mailbox.Ephemeral} {
		on := false
		if text := q.Get(name); text != "" {
			if on, err = strconv.ParseBool(text); err != nil {
				return o, "", fmt.Errorf("%w: %s: want true or false", errBad, name)
			}
		}
		if on {
			o.Flags |= flag
		}
	}
	o.Meta, err = json.Marshal(Meta{q.Get("name"), r.Header.Get("Content-Type")})
	if len(o.Meta) > letter.MaxMeta {
		err = fmt.Errorf("%w: name and type have more than %d octets", errBad, letter.MaxMeta)
	}
	o.Size, o.Text = r.ContentLength, r.Body
	return o, key, err
}

func duration(q url.Values, name string, value time.Duration) (time.Duration, error) {
	text := q.Get(name)
	if text == "" {
		return value, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%w: %s: want a duration, as 90s or 24h", errBad, name)
	}
	return d, nil
}

func number(q url.Values, name string) (uint64, error) {
	text := q.Get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s: want a number", errBad, name)
	}
	return n, nil
}

// Status is the answer to GET /v1/status.
type Status struct {
	Device   string     `json:"device"`
	Messages uint64     `json:"messages"`
	Octets   uint64     `json:"octets"`
	Quota    uint64     `json:"quota"`
	Oldest   *time.Time `json:"oldest,omitempty"`
}

func (k *Desk) status(w http.ResponseWriter, r *http.Request) {
	st, err := k.d.Client.Status(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	out := Status{Device: k.d.Text(k.d.Device), Messages: st.Messages, Octets: st.Octets, Quota: st.Quota}
	if !st.Oldest.IsZero() {
		oldest := st.Oldest.UTC()
		out.Oldest = &oldest
	}
	answer(w, out)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) //nolint:errcheck,errchkjson // the client has gone
}

// fail answers with what went wrong.
func fail(w http.ResponseWriter, err error) {
	code, reason := http.StatusServiceUnavailable, "later"
	for _, f := range []struct {
		err    error
		code   int
		reason string
	}{
		{errBad, http.StatusBadRequest, "bad"}, {mailbox.ErrBad, http.StatusBadRequest, "bad"},
		{mailbox.ErrQuota, http.StatusInsufficientStorage, "quota"}, {mailbox.ErrDisk, http.StatusInsufficientStorage, "disk"},
		{mailbox.ErrTooBig, http.StatusRequestEntityTooLarge, "size"}, {carry.ErrDenied, http.StatusForbidden, "denied"},
		{carry.ErrNoCard, http.StatusNotFound, "key"}, {letter.ErrForged, http.StatusUnprocessableEntity, "forged"},
	} {
		if errors.Is(err, f.err) {
			code, reason = f.code, f.reason
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	text := strings.TrimSpace(err.Error())
	json.NewEncoder(w).Encode(Failure{text, reason}) //nolint:errcheck,errchkjson // the client has gone
}

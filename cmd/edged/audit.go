package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/console"
)

// ownHeader must be on every POST: no page of another site can set it without being asked first, which is refused. Nor can it
// send a DELETE without that.
const ownHeader = "X-Edged"

// audit writes a line, and an event, of whatever somebody asks the daemon to do: who, from where, what, and how it ended.
type audit struct {
	log    *zap.Logger
	events *eventBroker
}

// auditEvent is the event "admin_action".
type auditEvent struct {
	Action  string `json:"action"`
	By      string `json:"by"`
	Client  string `json:"client"`
	Subject string `json:"subject,omitempty"`
	Status  int    `json:"status"`
	Outcome string `json:"outcome"`
}

const (
	// maxOutcome bounds what is said of an outcome, or of what was asked for, in octets.
	maxOutcome = 300
	// maxAsked bounds the body of what is asked for: of forms, too, which are read before they are looked at.
	maxAsked = 16 << 10
)

// of has an action of the admin listener audited, and a POST refused that has not our header. Its pattern is METHOD /api/v1/NAME.
func (a *audit) of(pattern string, token bool, next http.HandlerFunc) http.HandlerFunc {
	_, path, _ := strings.Cut(pattern, " ")
	name := strings.TrimPrefix(path, "/api/v1/")
	if strings.HasPrefix(pattern, http.MethodDelete) {
		name = "delete " + name
	}
	return func(w http.ResponseWriter, r *http.Request) {
		said := &answer{ResponseWriter: w}
		r.Body = http.MaxBytesReader(w, r.Body, maxAsked)
		if r.Method == http.MethodPost && r.Header.Get(ownHeader) != "1" {
			http.Error(said, "the header "+ownHeader+": 1 is missing", http.StatusForbidden)
		} else {
			next(said, r)
		}
		a.line(r, name, whoAsks(r, token), said.subject, said.status(), said.outcome())
	}
}

func (a *audit) line(r *http.Request, action, by, subject string, status int, outcome string) {
	action, subject = brief(action), brief(subject)
	a.log.Info("admin action", zap.String("action", action), zap.String("by", by), zap.String("client", r.RemoteAddr),
		zap.String("subject", subject), zap.Int("status", status), zap.String("outcome", outcome))
	a.events.publish("admin_action", auditEvent{action, by, r.RemoteAddr, subject, status, outcome})
}

// brief cuts what strangers may have written as long as a request's head may be.
func brief(s string) string {
	if len(s) <= maxOutcome {
		return s
	}
	return strings.ToValidUTF8(s[:maxOutcome], "") + "…"
}

// answer remembers how an action answers while it does.
type answer struct {
	http.ResponseWriter
	code    int
	body    []byte // its beginning
	subject string
}

// Unwrap gives [http.ResponseController] what is beneath: some actions stream.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(code int) {
	a.code = code
	a.ResponseWriter.WriteHeader(code)
}

// Write implements [http.ResponseWriter].
func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b[:min(len(b), maxOutcome-len(a.body))]...)
	return a.ResponseWriter.Write(b)
}

func (a *answer) status() int {
	if a.code == 0 {
		return http.StatusOK
	}
	return a.code
}

// outcome is what was answered, on one line; of what is no text only what it is.
func (a *answer) outcome() string {
	kind := a.Header().Get("Content-Type")
	if kind != "application/json" && !strings.HasPrefix(kind, "text/") {
		return kind
	}
	return strings.ToValidUTF8(strings.Join(strings.Fields(string(a.body)), " "), "")
}

// about notes whom or what an action is about, for the audit.
func about(w http.ResponseWriter, subject string) {
	if a, ok := w.(*answer); ok {
		a.subject = subject
	}
}

// peerKey is the context's key of who is at the other end of a unix socket.
type peerKey struct{}

// withPeer notes the user of a program that has come by a unix socket.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, fmt.Sprintf("uid %d, pid %d", cred.Uid, cred.Pid))
}

// whoAsks says who a request is from, as far as it is known.
func whoAsks(r *http.Request, token bool) string {
	if session, ok := console.Session(r.Context()); ok {
		return "console session " + session
	}
	if peer, ok := r.Context().Value(peerKey{}).(string); ok {
		return peer
	}
	if token {
		return "token"
	}
	return "no token"
}

package console

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// cookieName has no prefix __Host-: the admin listener itself speaks plain HTTP.
	cookieName  = "edged_console"
	sessionLife = 12 * time.Hour
	maxSessions = 64
)

// sessions are the users that have logged in; their cookies are good below Prefix only, never for the API.
type sessions struct {
	mu  sync.Mutex
	end map[[sha256.Size]byte]time.Time // by the hash of the cookie
}

func newSessions() *sessions { return &sessions{end: map[[sha256.Size]byte]time.Time{}} }

// open makes a session and returns its cookie. The one that would end first makes room.
func (s *sessions) open(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.end) >= maxSessions {
		var oldest [sha256.Size]byte
		first := now.Add(2 * sessionLife)
		for k, end := range s.end {
			if end.Before(first) {
				oldest, first = k, end
			}
		}
		delete(s.end, oldest)
	}
	cookie := rand.Text()
	s.end[sha256.Sum256([]byte(cookie))] = now.Add(sessionLife)
	return cookie
}

// valid tells whether a request comes from somebody who has logged in.
func (s *sessions) valid(r *http.Request, now time.Time) bool {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	end, ok := s.end[sha256.Sum256([]byte(cookie.Value))]
	return ok && now.Before(end)
}

func (s *sessions) close(r *http.Request) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.end, sha256.Sum256([]byte(cookie.Value)))
	}
}

// sessionKey is the context's key of who asks.
type sessionKey struct{}

// Session returns the name of the session in which the console's user has asked for something of the API; false if it was
// not asked for by the console. The name is no secret: it tells sessions apart in a log.
func Session(ctx context.Context) (name string, ok bool) {
	name, ok = ctx.Value(sessionKey{}).(string)
	return name, ok
}

// named returns a request's context with the name of its session.
func named(r *http.Request) context.Context {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return r.Context()
	}
	sum := sha256.Sum256([]byte("name of " + cookie.Value))
	return context.WithValue(r.Context(), sessionKey{}, hex.EncodeToString(sum[:4]))
}

// guard lets in who has logged in, and everybody where there is no token.
func (c *Console) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.deps.Token == "" || c.sessions.valid(r, time.Now()) {
			next.ServeHTTP(w, r)
			return
		}
		if r.Header.Get("Accept") == "text/event-stream" {
			http.Error(w, "log in first", http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, Prefix+"login", http.StatusSeeOther)
	})
}

func (c *Console) loginPage(w http.ResponseWriter, r *http.Request) {
	if c.deps.Token == "" || c.sessions.valid(r, time.Now()) {
		http.Redirect(w, r, Prefix, http.StatusSeeOther)
		return
	}
	c.render(w, http.StatusOK, "login.html", shown{Title: "Log in"})
}

// login exchanges the token of the configuration for a cookie.
func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	if c.deps.Token == "" || subtle.ConstantTimeCompare([]byte(r.PostFormValue("token")), []byte(c.deps.Token)) != 1 {
		c.render(w, http.StatusUnauthorized, "login.html", shown{Title: "Log in", Fault: "This is not the token of admin.token."})
		return
	}
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // Secure where the browser came by TLS; the listener itself speaks plain HTTP
		Name: cookieName, Value: c.sessions.open(time.Now()), Path: Prefix, MaxAge: int(sessionLife.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	c.log.Info("logged in to the console", zap.String("remote", r.RemoteAddr))
	http.Redirect(w, r, Prefix, http.StatusSeeOther)
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request) {
	c.sessions.close(r)
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // as at the login
		Name: cookieName, Path: Prefix, MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	http.Redirect(w, r, Prefix+"login", http.StatusSeeOther)
}

package console

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// formKey is what the forms of a session carry, which pages of other sites cannot know.
func formKey(r *http.Request) string {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256([]byte("forms of " + cookie.Value))
	return hex.EncodeToString(sum[:])
}

// form is a button in a row or on a page: it posts what Name says to actions/Action.
type form struct {
	Action, Name, Value string
	Label               string
	// About says in full what the button does, for those who do not see where it stands.
	About string
	Key   string
}

// action is one thing that users may do: how the API is asked for it, and the page on which its outcome is told.
type action struct {
	page, method string
	// ask makes the request's path below /api/v1/ and its body of what the form says; an empty path is a form that says too little.
	ask func(url.Values) (path string, body any)
	// done says what came of it.
	done func(answerDoc) string
}

// answerDoc is the fields of the API's answers to actions.
type answerDoc struct {
	Changed     []string
	Calls       int
	Ended       json.RawMessage // a number, or numbers by service
	Lifted      string
	Target      string
	Until       *time.Time
	Connections int
}

// actions are all of them, by the last part of the form's address.
func actions() map[string]action {
	return map[string]action{
		"reload": {"{$}", http.MethodPost, func(url.Values) (string, any) { return "reload", nil }, func(a answerDoc) string {
			if len(a.Changed) == 0 {
				return "Reloaded: nothing had changed."
			}
			return "Reloaded: " + strings.Join(a.Changed, ", ")
		}},
		"drain": {"{$}", http.MethodPost, func(f url.Values) (string, any) {
			if f.Get("sure") == "" {
				return "", nil
			}
			return "drain", nil
		}, func(a answerDoc) string {
			return fmt.Sprintf("Draining: no new calls are taken; the daemon ends with the last of %d calls.", a.Calls)
		}},
		"hangup": {"calls", http.MethodPost, func(f url.Values) (string, any) {
			if f.Get("id") == "" {
				return "", nil
			}
			return "calls/" + url.PathEscape(f.Get("id")) + "/hangup", nil
		}, func(a answerDoc) string { return fmt.Sprintf("Hung up: both sides of %s call are told.", a.Ended) }},
		"ban": {"bans", http.MethodPost, func(f url.Values) (string, any) {
			if f.Get("target") == "" {
				return "", nil
			}
			return "bans", map[string]string{"target": f.Get("target"), "for": f.Get("for"), "why": f.Get("why")}
		}, func(a answerDoc) string {
			until := "until the ban is lifted"
			if a.Until != nil {
				until = "until " + stamp(*a.Until)
			}
			return fmt.Sprintf("Banned: %s, %s; %d connections were cut.", a.Target, until, a.Connections)
		}},
		"unban": {"bans", http.MethodDelete, func(f url.Values) (string, any) {
			if f.Get("target") == "" {
				return "", nil
			}
			return "bans?target=" + url.QueryEscape(f.Get("target")), nil
		}, func(a answerDoc) string { return "Lifted: the ban of " + a.Lifted + "." }},
	}
}

// allowed tells whether a form was posted by somebody who has logged in, from a page of his session; he is told if it was not.
func (c *Console) allowed(w http.ResponseWriter, r *http.Request) bool {
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	key := formKey(r)
	if c.deps.Token == "" || key == "" || subtle.ConstantTimeCompare([]byte(r.PostFormValue("key")), []byte(key)) != 1 {
		http.Error(w, "log in first: actions need admin.token and a session", http.StatusForbidden)
		return false
	}
	return true
}

// act does what somebody who has logged in asks for, by way of the API, and says what came of it.
func (c *Console) act(w http.ResponseWriter, r *http.Request) {
	if !c.allowed(w, r) {
		return
	}
	a, known := actions()[r.PathValue("action")]
	var path string
	var body any
	if known {
		path, body = a.ask(r.PostForm)
	}
	if path == "" {
		http.Error(w, "no such action, or it was not confirmed", http.StatusBadRequest)
		return
	}
	in := io.Reader(http.NoBody)
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			c.fail(w, r, err)
			return
		}
		in = bytes.NewReader(text)
	}
	code, _, answer := c.source.send(named(r), a.method, path, r.RemoteAddr, in)
	c.source.forget() // what is shown next is later than what was done
	s, err := c.show(r, pageOf(a.page))
	if err != nil {
		c.fail(w, r, err)
		return
	}
	s.View.Notices = append([]notice{outcome(a, code, answer)}, s.View.Notices...)
	s.Still, s.Filter = true, false
	c.render(w, http.StatusOK, "page.html", s)
}

// outcome says in words what the API has answerDoc.
func outcome(a action, code int, body []byte) notice {
	var doc answerDoc
	if code < 300 && json.Unmarshal(body, &doc) == nil {
		return notice{"good", a.done(doc)}
	}
	var refused struct{ Error string }
	if json.Unmarshal(body, &refused) == nil && refused.Error != "" {
		return notice{"bad", "Refused: " + refused.Error}
	}
	return notice{"bad", fmt.Sprintf("Refused: %d %s", code, strings.TrimSpace(string(body)))}
}

// captureMedia gives a call's media from now on to a user who has logged in, as the API does.
func (c *Console) captureMedia(w http.ResponseWriter, r *http.Request) {
	if !c.allowed(w, r) {
		return
	}
	path := "/api/v1/calls/" + url.PathEscape(r.PathValue("id")) + "/capture?for=30s"
	req, err := http.NewRequestWithContext(named(r), http.MethodPost, path, http.NoBody) //nolint:gosec // for a handler of this process
	if err != nil {
		c.fail(w, r, err)
		return
	}
	req.RemoteAddr = r.RemoteAddr
	req.Header.Set("X-Edged", "1")
	c.deps.API.ServeHTTP(w, req)
}

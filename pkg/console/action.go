package console

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"go.uber.org/zap"
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

// act reloads or drains for somebody who has logged in, and says what came of it.
func (c *Console) act(w http.ResponseWriter, r *http.Request) {
	action := r.PathValue("action")
	r.Body = http.MaxBytesReader(w, r.Body, 4096)
	key := formKey(r)
	if c.deps.Token == "" || key == "" || subtle.ConstantTimeCompare([]byte(r.PostFormValue("key")), []byte(key)) != 1 {
		http.Error(w, "log in first: actions need admin.token and a session", http.StatusForbidden)
		return
	}
	if action != "reload" && action != "drain" || action == "drain" && r.PostFormValue("sure") == "" {
		http.Error(w, "no such action, or it was not confirmed", http.StatusBadRequest)
		return
	}
	code, _, body := c.source.ask(r.Context(), http.MethodPost, action, r.RemoteAddr)
	c.log.Info("asked by a user of the console", zap.String("action", action), zap.String("client", r.RemoteAddr), zap.Int("status", code))
	s, err := c.show(r, pages()[0])
	if err != nil {
		c.fail(w, r, err)
		return
	}
	s.View.Notices = append([]notice{outcome(action, code, body)}, s.View.Notices...)
	s.Still = true
	c.render(w, http.StatusOK, "page.html", s)
}

// outcome says in words what the API has answered.
func outcome(action string, code int, body []byte) notice {
	var doc struct {
		Changed         []string
		RestartRequired []string `json:"restart_required"`
		Error           string
		Calls           int
	}
	known := json.Unmarshal(body, &doc) == nil
	switch {
	case action == "drain" && code < 300 && known:
		return notice{"good", fmt.Sprintf("Draining: no new calls are taken; the daemon ends with the last of %d calls.", doc.Calls)}
	case action == "reload" && code < 300 && known && len(doc.Changed) == 0:
		return notice{"good", "Reloaded: nothing had changed."}
	case action == "reload" && code < 300 && known:
		return notice{"good", "Reloaded: " + strings.Join(doc.Changed, ", ")}
	case known && doc.Error != "":
		return notice{"bad", "Refused: " + doc.Error}
	}
	return notice{"bad", fmt.Sprintf("Refused: %d %s", code, strings.TrimSpace(string(body)))}
}

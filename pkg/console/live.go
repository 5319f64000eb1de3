package console

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"
)

const livePeriod = time.Second

// live sends the content of a page again whenever it has changed, as server-sent events.
func (c *Console) live(w http.ResponseWriter, r *http.Request, p page) {
	select {
	case c.streams <- struct{}{}:
		defer func() { <-c.streams }()
	default:
		http.Error(w, "too many live pages", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	send := func(text string) bool {
		// An error means that there are no deadlines, as with a handler's test: then there is none.
		if err := out.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return false
		}
		_, err := fmt.Fprint(w, text) //nolint:gosec // what the page's template has escaped
		return err == nil && out.Flush() == nil
	}
	tick := time.NewTicker(livePeriod)
	defer tick.Stop()
	last, quiet := "", 0
	for {
		// A session may end while its page is open.
		if c.deps.Token != "" && !c.sessions.valid(r, time.Now()) {
			return
		}
		next, event := c.content(r, p)
		switch quiet++; {
		case next != last:
			last, quiet = next, 0
			if !send(event + next) {
				return
			}
		case quiet >= 15 && !send(": still here\n\n"):
			return
		case quiet >= 15:
			quiet = 0
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// content returns a page's content as the data of an event, and the event's name.
func (c *Console) content(r *http.Request, p page) (data, event string) {
	s, err := c.show(r, p)
	if err != nil {
		return "data: " + strings.NewReplacer("\n", " ", "\r", " ").Replace(err.Error()) + "\n\n", "event: gone\n"
	}
	var out strings.Builder
	if err := c.templates.ExecuteTemplate(&out, "content", s); err != nil {
		c.log.Error("a page cannot be made", zap.String("page", s.Path), zap.Error(err))
		return "data: the page cannot be made\n\n", "event: gone\n"
	}
	var b strings.Builder
	for line := range strings.Lines(strings.ReplaceAll(out.String(), "\r", "&#13;")) { // a CR would end a line, too

		fmt.Fprintf(&b, "data: %s\n", strings.TrimRight(line, "\n"))
	}
	return b.String() + "\n", "event: content\n"
}

// fail says why there is no page.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusInternalServerError
	if errors.Is(err, errNotFound) {
		code = http.StatusNotFound
	} else {
		c.log.Warn("the API has no answer for the console", zap.String("page", r.URL.Path), zap.Error(err))
	}
	s := shown{Title: http.StatusText(code), Path: r.URL.Path, Fault: err.Error()}
	for _, p := range pages() {
		if p.nav {
			s.Nav = append(s.Nav, link{Prefix + strings.TrimSuffix(p.path, "{$}"), p.title, false})
		}
	}
	c.render(w, code, "page.html", s)
}

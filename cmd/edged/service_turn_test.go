package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestUserSite: what users_url answers, and what it may not.
func TestUserSite(t *testing.T) {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("realm") != "example.org" || r.FormValue("fixed") != "1" {
			http.Error(w, "realm", http.StatusBadRequest)
			return
		}
		switch r.FormValue("username") {
		case "a&b=c":
			fmt.Fprintln(w, "pass word")
		case "empty":
		case "long":
			fmt.Fprint(w, strings.Repeat("x", 2*maxPassword))
		case "lines":
			fmt.Fprint(w, "one\ntwo\n")
		case "broken":
			http.Error(w, "out of order", http.StatusInternalServerError)
		default:
			http.NotFound(w, r)
		}
	}))
	defer site.Close()
	s := userSite{site.URL + "/turn?fixed=1", "example.org", site.Client()}
	for name, want := range map[string]struct {
		password string
		found    bool
		fails    bool
	}{
		"a&b=c": {"pass word", true, false}, "nobody": {}, "empty": {fails: true}, "long": {fails: true}, "lines": {fails: true}, "broken": {fails: true},
	} {
		password, found, err := s.Password(t.Context(), name)
		if password != want.password || found != want.found || (err != nil) != want.fails {
			t.Errorf("%s: %q, %v, %v", name, password, found, err)
		}
	}
	site.Close()
	if _, _, err := s.Password(t.Context(), "secret-name"); err == nil || strings.Contains(err.Error(), "secret-name") {
		t.Errorf("nobody listens: %v", err)
	}
}

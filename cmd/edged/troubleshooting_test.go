package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestTroubleshooting: each command with its flags, each metric and each key that docs/troubleshooting.md names exists.
func TestTroubleshooting(t *testing.T) {
	b, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	metrics := documented(t)
	commands, used, keys := 0, 0, 0
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(string(b), -1) {
		text := m[1]
		switch {
		case strings.HasPrefix(text, "edged "):
			commands++
			checkCommand(t, text)
		case strings.HasPrefix(text, "edged_"):
			used++
			if _, ok := metrics[text]; !ok {
				t.Errorf("no metric %s", text)
			}
		case regexp.MustCompile(`^[a-z0-9]+(\.[A-Za-z_]+)+(: \S+)?$`).MatchString(text):
			keys++
			key, _, _ := strings.Cut(text, ":")
			if !knownKey(t, key) && !strings.HasSuffix(key, "pcapng") {
				t.Errorf("no key %s", key)
			}
		}
	}
	if commands < 20 || used < 15 || keys < 15 {
		t.Errorf("%d commands, %d metrics, %d keys: the page is not read rightly", commands, used, keys)
	}
}

// TestCommandsOfTheDocs: each command that README.md and the pages below docs name exists, with its flags. A page may
// put flags into brackets and go on with another program.
func TestCommandsOfTheDocs(t *testing.T) {
	pages := []string{"../../README.md"}
	for _, folder := range []string{"", "deploy/", "protocols/"} {
		some, err := filepath.Glob("../../docs/" + folder + "*.md")
		if err != nil || len(some) == 0 {
			t.Fatalf("no pages in docs/%s: %v", folder, err)
		}
		pages = append(pages, some...)
	}
	line, found := regexp.MustCompile("`(edged [^`|&;>]+)|(?m)^(?:[#$] |sudo )(?:sudo )?(edged [^|&;#>\n]+)"), 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range line.FindAllStringSubmatch(string(b), -1) {
			text := strings.NewReplacer("[", "", "]", "", "\n", " ").Replace(m[1] + m[2])
			if strings.HasPrefix(text, "edged completion") { // made when the program runs
				continue
			}
			found++
			t.Run(page, func(t *testing.T) { checkCommand(t, text) })
		}
	}
	if found < 100 {
		t.Errorf("%d commands: the pages are not read rightly", found)
	}
}

// checkCommand looks for a command line's words and flags in the program itself.
func checkCommand(t *testing.T, line string) {
	t.Helper()
	words := strings.Fields(line)[1:]
	cmd, rest, err := newRootCmd().Find(words)
	if err != nil || !cmd.Runnable() {
		t.Errorf("no command %q: %v", line, err)
		return
	}
	for _, w := range rest {
		if !strings.HasPrefix(w, "-") {
			if cmd.Args != nil && cmd.Args(cmd, []string{w}) != nil && !hasValueFlag(rest) {
				t.Errorf("%q takes no %q", line, w)
			}
			continue
		}
		name := strings.TrimLeft(strings.SplitN(w, "=", 2)[0], "-")
		var f *pflag.Flag
		if f = cmd.Flags().Lookup(name); f == nil && len(name) == 1 {
			f = cmd.Flags().ShorthandLookup(name)
		}
		if f == nil {
			t.Errorf("%q: no flag %s", line, w)
		}
	}
}

func hasValueFlag(words []string) bool {
	for _, w := range words {
		if strings.HasPrefix(w, "-") {
			return true
		}
	}
	return false
}

// knownKey tells whether the manual of the configuration, which is made from its schema, has a key; NAME stands for any.
func knownKey(t *testing.T, key string) bool {
	t.Helper()
	manual := strings.ReplaceAll(string(configManual()), `\`, "")
	return strings.Contains(manual, key)
}

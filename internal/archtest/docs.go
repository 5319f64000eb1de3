package archtest

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// CheckDocs returns what the Markdown files under fsys say of the tree that is not
// so: links to files that do not exist, tests and make targets that there are not.
func CheckDocs(fsys fs.FS) ([]string, error) {
	pages, err := readAll(fsys, ".md")
	if err != nil {
		return nil, err
	}
	sources, err := readAll(fsys, "_test.go")
	if err != nil {
		return nil, err
	}
	makefile, err := fs.ReadFile(fsys, "Makefile")
	if err != nil {
		return nil, err
	}
	tests := map[string]bool{}
	for _, src := range sources {
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(src, -1) {
			tests[m[1]] = true
		}
	}
	var faults []string
	for _, page := range slices.Sorted(maps.Keys(pages)) {
		text := pages[page]
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(text, -1) {
			if _, err := fs.Stat(fsys, path.Join(path.Dir(page), m[1])); err != nil {
				faults = append(faults, fmt.Sprintf("%s: link to %s, which does not exist", page, m[1]))
			}
		}
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
			if !tests[m[1]] {
				faults = append(faults, fmt.Sprintf("%s: names the test %s, which does not exist", page, m[1]))
			}
		}
		for _, m := range regexp.MustCompile("(?m)[`\n]make ([a-z-]+)[` \n]").FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
				faults = append(faults, fmt.Sprintf("%s: make %s, which is no target", page, m[1]))
			}
		}
	}
	return faults, nil
}

// readAll returns the text of all files whose names end so, by path. Hidden folders are left out.
func readAll(fsys fs.FS, suffix string) (map[string]string, error) {
	out := map[string]string{}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && strings.HasPrefix(path.Base(p), ".") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, suffix) {
			return nil
		}
		text, err := fs.ReadFile(fsys, p)
		out[p] = string(text)
		return err
	})
	return out, err
}
